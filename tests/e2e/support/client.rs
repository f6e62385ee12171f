//! The client's half of a handshake, every line of it open to change.

/// A key and the accept value that RFC 6455 section 1.3 gives for it.
pub const WS_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const WS_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A request to be sent as it stands.
#[derive(Debug, Clone)]
pub struct Request {
    first: String,
    lines: Vec<Vec<u8>>,
    after: Vec<u8>,
}

/// A valid handshake without a credential.
pub fn ws(target: &str) -> Request {
    let request = Request { first: format!("GET {target} HTTP/1.1"), lines: Vec::new(), after: Vec::new() };
    request
        .with("Host", "gate.test")
        .with("Upgrade", "websocket")
        .with("Connection", "Upgrade")
        .with("Sec-WebSocket-Version", "13")
        .with("Sec-WebSocket-Key", WS_KEY)
}

/// A request that asks for no upgrade.
pub fn plain_get(target: &str) -> Request {
    let request = Request { first: format!("GET {target} HTTP/1.1"), lines: Vec::new(), after: Vec::new() };
    request.with("Host", "gate.test")
}

impl Request {
    /// Adds a header, after those that are there.
    #[must_use]
    pub fn with(self, name: &str, value: &str) -> Self {
        self.raw(format!("{name}: {value}"))
    }

    /// Adds a line that need not be a header.
    #[must_use]
    pub fn raw(mut self, line: impl AsRef<[u8]>) -> Self {
        self.lines.push(line.as_ref().to_vec());
        self
    }

    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        let prefix = format!("{name}:").into_bytes();
        self.lines.retain(|line| !line.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(&prefix)));
        self
    }

    /// Puts a header in the place of what there was of this name.
    #[must_use]
    pub fn set(self, name: &str, value: &str) -> Self {
        self.without(name).with(name, value)
    }

    #[must_use]
    pub fn first_line(mut self, line: &str) -> Self {
        line.clone_into(&mut self.first);
        self
    }

    #[must_use]
    pub fn host(self, host: &str) -> Self {
        self.set("Host", host)
    }

    /// Offers subprotocols.
    #[must_use]
    pub fn offer(self, list: &str) -> Self {
        self.with("Sec-WebSocket-Protocol", list)
    }

    /// Bytes glued to the head.
    #[must_use]
    pub fn followed_by(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.after.extend(bytes.as_ref());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.first).into_bytes();
        for line in &self.lines {
            bytes.extend(line);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"\r\n");
        bytes.extend(&self.after);
        bytes
    }
}

impl From<&Request> for Vec<u8> {
    fn from(request: &Request) -> Self {
        request.bytes()
    }
}

impl From<Request> for Vec<u8> {
    fn from(request: Request) -> Self {
        request.bytes()
    }
}
