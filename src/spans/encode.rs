//! Protocol Buffers, as far as spans need them: <https://protobuf.dev/programming-guides/encoding/>. The numbers of fields
//! are those of opentelemetry-proto 1, which are fixed.

/// A message that is being written.
#[derive(Debug, Default)]
pub struct Message(Vec<u8>);

/// How a field's value is written.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED_32: u8 = 5;

impl Message {
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn tag(&mut self, field: u32, kind: u8) {
        self.varint(u64::from(field) << 3 | u64::from(kind));
    }

    pub fn number(&mut self, field: u32, number: u64) {
        self.tag(field, VARINT);
        self.varint(number);
    }

    pub fn fixed64(&mut self, field: u32, number: u64) {
        self.tag(field, FIXED_64);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub fn fixed32(&mut self, field: u32, number: u32) {
        self.tag(field, FIXED_32);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, LENGTH_DELIMITED);
        self.varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.0.extend_from_slice(bytes);
    }

    pub fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    pub fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.0);
    }
}

/// A `KeyValue`; the closure writes its `AnyValue`.
pub fn attribute(name: &str, write: impl FnOnce(&mut Message)) -> Message {
    let (mut pair, mut value) = (Message::default(), Message::default());
    pair.text(1, name);
    write(&mut value);
    pair.message(2, &value);
    pair
}

/// An `ExportTraceServiceRequest` with these spans, all of this process.
pub fn request(spans: &[Vec<u8>]) -> Vec<u8> {
    const NAME: &str = "wsbouncer";
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let (mut resource, mut scope) = (Message::default(), Message::default());
    resource.message(1, &attribute("service.name", |value| value.text(1, NAME)));
    resource.message(1, &attribute("service.version", |value| value.text(1, VERSION)));
    scope.text(1, NAME);
    scope.text(2, VERSION);
    let mut of_scope = Message(Vec::with_capacity(spans.iter().map(|span| span.len() + 4).sum()));
    of_scope.message(1, &scope);
    spans.iter().for_each(|span| of_scope.bytes(2, span));
    let (mut of_resource, mut whole) = (Message::default(), Message::default());
    of_resource.message(1, &resource);
    of_resource.message(2, &of_scope);
    whole.message(1, &of_resource);
    whole.into_bytes()
}
