//! First messages against tungstenite, and the credential in one against another JSON reader. The input: a bound, how it is
//! cut, a format, and then what the client sends.

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use std::io::{Cursor, Read, Write};
use std::time::Duration;

use tinyjson::JsonValue;
use wsbouncer::auth::first_message::{FirstMessage, Format};
use wsbouncer::first_message::{Fault, First, Intake};

use crate::bytes::Input;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (max_bytes, cut) = (input.short() % 5000, usize::from(input.byte()) + 1);
    let kind = input.byte();
    let bytes = input.0;
    if kind & 1 != 0 {
        return read_message(kind, bytes);
    }
    let own = take(bytes, max_bytes, cut);
    assert_eq!(own, take(bytes, max_bytes, bytes.len().max(1)), "however it is cut");
    let foreign = foreign(bytes);
    match (own, foreign) {
        (Ok(Some(first)), Some(text)) => {
            assert_eq!(*first.text, text);
            assert!(first.text.len() <= max_bytes && bytes.ends_with(&first.rest));
        }
        (Ok(Some(first)), None) => panic!("a first message to one only: {:?}", first.text),
        // Bounds are ours alone.
        (Err(Fault::TooBig), _) => {}
        (other, Some(text)) => panic!("{other:?} and {text:?}"),
        (_, None) => {}
    }
}

fn take(bytes: &[u8], max_bytes: usize, cut: usize) -> Result<Option<First>, Fault> {
    let mut intake = Intake::new(max_bytes);
    let mut answers = 0;
    for (at, piece) in bytes.chunks(cut).enumerate() {
        let taken = intake.take(piece);
        answers += intake.take_answers().len();
        assert!(answers <= 16 * 127, "pongs without end");
        if let Some(mut first) = taken? {
            first.rest.extend(&bytes[bytes.len().min((at + 1) * cut)..]);
            return Ok(Some(first));
        }
    }
    Ok(None)
}

/// What a server on tungstenite takes for the first message, if that is a text.
fn foreign(bytes: &[u8]) -> Option<String> {
    let whole = whole_frames(bytes);
    let config = WebSocketConfig::default().read_buffer_size(4096);
    let mut socket = WebSocket::from_raw_socket(Wire(&bytes[..whole]), Role::Server, Some(config));
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => return Some(text.as_str().to_owned()),
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// So many bytes are whole frames up to the first Close, so that nobody reserves room for what is only announced.
fn whole_frames(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let mut cursor = Cursor::new(&bytes[at..]);
        let Ok(Some((header, length))) = FrameHeader::parse(&mut cursor) else { return at };
        let end = usize::try_from(length).ok().and_then(|length| length.checked_add(at + cursor.position() as usize));
        match end {
            Some(end) if end <= bytes.len() => at = end,
            _ => return at,
        }
        if header.opcode == OpCode::Control(Control::Close) {
            return at;
        }
    }
}

struct Wire<'b>(&'b [u8]);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Read::read(&mut self.0, buffer)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The input is a message, behind a pointer into it and a line break.
fn read_message(kind: u8, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if text.len() > 4096 {
        return;
    }
    let (pointer, message) = text.split_once('\n').unwrap_or(("", text));
    let is_json = kind & 2 != 0;
    let format = if is_json { Format::Json(pointer.into()) } else { Format::Text };
    let timeout = Duration::from_secs(1);
    let first = FirstMessage { format, subprotocol: None, forward: false, timeout, max_bytes: 4096 };
    let own = first.read(message);
    let own = own.as_ref().map(|found| found.secret().as_bytes());
    let found = if is_json { at_pointer(message, pointer) } else { Some(message.to_owned()) };
    let wanted = found.map(|text| without_scheme(&text).to_owned()).filter(|text| !text.is_empty());
    match (own, wanted) {
        // The other one takes more: it has no limit of depth, and of names that stand twice either may have the last.
        (None, _) => {}
        (own, wanted) => assert_eq!(own, wanted.as_deref().map(str::as_bytes)),
    }
}

fn without_scheme(text: &str) -> &str {
    let text = text.trim_matches(|letter: char| letter.is_ascii_whitespace());
    match text.get(..6) {
        Some(scheme) if scheme.to_lowercase() == "bearer" && text[6..].starts_with(' ') => {
            text[6..].trim_matches(|letter: char| letter.is_ascii_whitespace())
        }
        _ => text,
    }
}

fn at_pointer(message: &str, pointer: &str) -> Option<String> {
    let root: JsonValue = message.parse().ok()?;
    let mut at = &root;
    let mut steps = pointer.split('/');
    if steps.next() != Some("") {
        return None;
    }
    for step in steps {
        let name = step.replace("~1", "/").replace("~0", "~");
        at = match at {
            JsonValue::Object(fields) => fields.get(&name)?,
            JsonValue::Array(items) => {
                let is_index =
                    step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
                items.get(step.parse::<usize>().ok().filter(|_| is_index)?)?
            }
            _ => return None,
        };
    }
    match at {
        JsonValue::String(text) => Some(text.clone()),
        _ => None,
    }
}
