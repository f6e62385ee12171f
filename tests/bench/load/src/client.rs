//! One client's side of a connection: where it leads, the opening handshake, what is answered.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Where connections lead, and what their handshakes say.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    path: String,
    headers: String,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("ws://").ok_or("a URL begins with ws://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address: SocketAddr = host.parse().map_err(|_| format!("`{host}` is not an address with a port"))?;
        if !address.ip().is_loopback() {
            return Err(format!("{address} is not on loopback"));
        }
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { address, path: path.to_owned(), headers: String::new() })
    }

    pub(crate) fn with_headers(&self, lines: &[String]) -> Self {
        let headers = lines.iter().map(|line| format!("{line}\r\n")).collect();
        Self { headers, ..self.clone() }
    }

    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    pub(crate) fn handshake(&self) -> Vec<u8> {
        let Self { address, path, headers } = self;
        format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        )
        .into_bytes()
    }
}

pub(crate) fn fault(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

/// A connection that is opened to be thrown away. Each comes from another of our many addresses: from one alone, ports
/// that wait for stray packets would run out within seconds.
pub(crate) async fn connect_from_anywhere(target: &Target) -> io::Result<TcpStream> {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let socket = TcpSocket::new_v4()?;
    let source = Ipv4Addr::new(127, 0, 1, 1 + NEXT.fetch_add(1, Ordering::Relaxed) % 240);
    socket.bind(SocketAddr::new(source.into(), 0))?;
    let stream = socket.connect(target.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) async fn connect(target: &Target) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An answer's head, in the buffer that it was read into.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_length: Option<usize>,
    pub(crate) closes: bool,
    accept_is_right: bool,
    /// Bytes of the head, and of all that was read.
    pub(crate) head: usize,
    pub(crate) read: usize,
}

impl Answer {
    fn switching(self) -> io::Result<Self> {
        match self.status {
            101 if self.accept_is_right => Ok(self),
            101 => Err(fault("Sec-WebSocket-Accept is wrong")),
            status => Err(fault(format!("status {status}"))),
        }
    }
}

/// `None`: the head is not complete.
fn parse(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let status = response.parse(bytes).map_err(|error| fault(format!("not an answer: {error}")))?;
    let httparse::Status::Complete(head) = status else { return Ok(None) };
    let value = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value.trim_ascii())
    };
    Ok(Some(Answer {
        status: response.code.unwrap_or(0),
        content_length: value("content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()),
        closes: value("connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close")),
        accept_is_right: value("sec-websocket-accept") == Some(ACCEPT),
        head,
        read: bytes.len(),
    }))
}

pub(crate) async fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Answer> {
    let mut have = 0;
    while have < buffer.len() {
        match stream.read(&mut buffer[have..]).await? {
            0 => return Err(fault("the connection ended before the answer")),
            count => have += count,
        }
        if let Some(answer) = parse(&buffer[..have])? {
            return Ok(answer);
        }
    }
    Err(fault("the head of the answer is too long"))
}

/// A whole opening handshake on a fresh connection. What came behind the answer is left in the buffer.
pub(crate) async fn upgrade(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> io::Result<Answer> {
    stream.write_all(request).await?;
    answer(stream, buffer).await?.switching()
}

/// The same on a blocking socket, where nothing may come behind the answer.
pub(crate) fn upgrade_blocking(stream: &mut std::net::TcpStream, request: &[u8]) -> io::Result<()> {
    use std::io::{Read as _, Write as _};
    stream.write_all(request)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 4096 {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let answer = parse(&head)?.ok_or_else(|| fault("the head of the answer is too long"))?;
    answer.switching().map(drop)
}
