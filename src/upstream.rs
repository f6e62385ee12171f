//! The protected service: where it is, and our half of the handshake with it. One fresh connection for each tunnel, never
//! shared and never used again.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{UnixStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};

use crate::denial::{Denial, Reason};
use crate::fields::{Twice, only};
use crate::handshake::{self, Switched, Upgrade};
use crate::socket::Socket;
use crate::tunnels::Seat;
use crate::write_last::WriteLast;

/// One upstream of the file.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in the file, or its URL where it stands in a route.
    pub name: Arc<str>,
    pub endpoint: Endpoint,
    /// `host: upstream` sends this as `Host`; `None` keeps the client's.
    pub host: Option<Box<str>>,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A literal address: no look-up, ever.
    Address(SocketAddr),
    Name {
        host: Box<str>,
        port: u16,
    },
    Unix(PathBuf),
}

/// How long each step may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub connect: Duration,
    /// From the dial to the complete answer.
    pub handshake: Duration,
}

/// What the upstream said to a handshake that was sent to it.
pub enum Answer {
    /// A 101 that was checked.
    Opened(Opened),
    /// Something else.
    Refused(Refusal),
}

/// An answer that is no 101. Its body is whole.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

pub struct Opened {
    pub switched: Switched,
    pub stream: Stream,
    /// What came right behind the 101.
    pub early: Vec<u8>,
}

const MAX_HEAD: usize = 16 * 1024;
const MAX_LINES: usize = 64;
/// What is passed on of a refusal's body.
const MAX_BODY: usize = 64 * 1024;
/// 1xx answers that are skipped before the real one.
const MAX_INTERIM: usize = 16;

impl Upstream {
    /// Dials, sends the handshake and waits for the answer; tells when it was dialled. Wants a seat: nobody dials who was not admitted.
    ///
    /// # Errors
    /// 502 `upstream_unreachable` or `upstream_bad_handshake`, 503 `at_capacity` when we are out of descriptors, 504.
    pub async fn open(
        &self,
        _seat: &Seat,
        request: &[u8],
        upgrade: &Upgrade,
        patience: Patience,
        dialled: impl FnOnce(),
    ) -> Result<Answer, Denial> {
        let deadline = Instant::now() + patience.handshake;
        let dial = timeout(patience.connect.min(patience.handshake), self.endpoint.dial(request));
        let (mut stream, sent) =
            dial.await.map_err(|_| late("no connection in time"))?.map_err(|error| unreachable(&error))?;
        dialled();
        let exchange = async {
            if sent < request.len() {
                stream.write_all(&request[sent..]).await.map_err(|error| cannot_send(&error))?;
            }
            hear(&mut stream, upgrade).await
        };
        match timeout_at(deadline, exchange).await.map_err(|_| late("no complete answer in time"))?? {
            Heard::No(refusal) => Ok(Answer::Refused(refusal)),
            Heard::Yes(switched, early) => Ok(Answer::Opened(Opened { switched, stream, early })),
        }
    }
}

impl Upstream {
    /// A fresh connection, on which nothing was sent yet. Wants a seat like [`Upstream::open`].
    ///
    /// # Errors
    /// 502 `upstream_unreachable`, 503 `at_capacity`, 504.
    pub async fn connect(&self, _seat: &Seat, patience: Patience) -> Result<Stream, Denial> {
        let dial = timeout(patience.connect.min(patience.handshake), self.endpoint.dial(b""));
        let dialled = dial.await.map_err(|_| late("no connection in time"))?;
        dialled.map(|(stream, _)| stream).map_err(|error| unreachable(&error))
    }
}

/// An answer, before it is known what becomes of the connection.
#[derive(Debug)]
pub enum Heard {
    /// A 101 that was checked, and what came right behind it.
    Yes(Switched, Vec<u8>),
    No(Refusal),
}

/// Reads the answer to a handshake.
///
/// # Errors
/// 502 `upstream_bad_handshake`.
pub async fn hear<S: AsyncRead + Unpin>(stream: &mut S, upgrade: &Upgrade) -> Result<Heard, Denial> {
    let reply = Reply::read(stream).await?;
    if reply.status == 101 {
        let switched = handshake::check_reply(upgrade, reply.version, reply.headers).map_err(broken)?;
        return Ok(Heard::Yes(switched, reply.rest));
    }
    reply.into_refusal(stream).await.map(Heard::No)
}

pub fn late(cause: &'static str) -> Denial {
    Denial::new(Reason::UpstreamTimeout, "the service did not answer in time").because(cause)
}

fn unreachable(error: &io::Error) -> Denial {
    // EMFILE and ENFILE are our own trouble, not the upstream's.
    if matches!(error.raw_os_error(), Some(23 | 24)) {
        return Denial::new(Reason::AtCapacity, "all connections are in use").because(error.to_string());
    }
    if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) {
        return cannot_send(error);
    }
    Denial::new(Reason::UpstreamUnreachable, "the service cannot be reached").because(error.to_string())
}

fn cannot_send(error: &io::Error) -> Denial {
    broken(format!("cannot send to it: {error}"))
}

pub fn broken(cause: impl AsRef<str>) -> Denial {
    Denial::new(Reason::UpstreamBadHandshake, "the service gave no valid answer").because(cause.as_ref().to_owned())
}

impl Endpoint {
    /// Connects and begins to send, which is one wait and not two. Says how much was sent.
    async fn dial(&self, request: &[u8]) -> io::Result<(Stream, usize)> {
        match self {
            Self::Address(address) => dial_tcp(*address, request).await,
            Self::Unix(path) => Ok((Stream::Unix(UnixStream::connect(path).await?), 0)),
            Self::Name { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
                for address in lookup_host((&**host, *port)).await? {
                    match dial_tcp(address, request).await {
                        Ok(dialled) => return Ok(dialled),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

async fn dial_tcp(address: SocketAddr, request: &[u8]) -> io::Result<(Stream, usize)> {
    let mut socket = Socket::connect(address)?;
    let sent = socket.write(request).await?;
    Ok((Stream::Tcp(socket), sent))
}

/// An answer's head, and the bytes behind it.
struct Reply {
    version: u8,
    status: u16,
    headers: HeaderMap,
    rest: Vec<u8>,
}

impl Reply {
    async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Self, Denial> {
        let mut bytes = Vec::with_capacity(1024);
        for _ in 0..MAX_INTERIM {
            let length = Self::fill(stream, &mut bytes).await?;
            let rest = bytes.split_off(length);
            let (version, status, headers) = parse(&bytes).map_err(broken)?;
            if status < 100 {
                return Err(broken("its status is none"));
            }
            if status >= 200 || status == 101 {
                return Ok(Self { version, status, headers, rest });
            }
            if version != 1 {
                return Err(broken("its interim answer is not HTTP/1.1"));
            }
            bytes = rest;
        }
        Err(broken("it sends interim answers without end"))
    }

    /// Reads until a whole head is there, and says how long it is.
    async fn fill<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut Vec<u8>) -> Result<usize, Denial> {
        let mut from = 0;
        loop {
            // The same bytes that make a request head unreadable make an answer so.
            let scanned = crate::head::scan(bytes, from).map_err(|_| broken("its answer is not HTTP/1.1"))?;
            if let Some(length) = scanned {
                return Ok(length);
            }
            if bytes.len() > MAX_HEAD {
                return Err(broken("the head of its answer is over 16 KiB"));
            }
            from = bytes.len();
            let count = stream.read_buf(bytes).await.map_err(|error| broken(format!("cannot read: {error}")))?;
            if count == 0 {
                return Err(broken("it closed the connection before it had answered"));
            }
        }
    }

    async fn into_refusal<S: AsyncRead + Unpin>(self, stream: &mut S) -> Result<Refusal, Denial> {
        let status = StatusCode::from_u16(self.status).ok().filter(|status| status.as_u16() < 600);
        let status = status.ok_or_else(|| broken("its status is none"))?;
        let framing = Framing::of(status, &self.headers).map_err(broken)?;
        let body = framing.read(self.rest, stream).await?;
        Ok(Refusal { status, headers: self.headers, body })
    }
}

fn parse(head: &[u8]) -> Result<(u8, u16, HeaderMap), &'static str> {
    // The parser skips empty lines before it.
    if !head.starts_with(b"HTTP/") {
        return Err("its answer is not HTTP/1.1");
    }
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    let mut response = httparse::Response::new(&mut lines);
    let parsed = response.parse(head).map_err(|_| "its answer is not HTTP/1.1")?;
    let (httparse::Status::Complete(_), Some(version), Some(status)) = (parsed, response.version, response.code) else {
        return Err("its answer is not HTTP/1.1");
    };
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for line in response.headers.iter() {
        let name =
            HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| "its answer has a malformed header name")?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| "its answer has a malformed header")?;
        headers.append(name, value);
    }
    Ok((version, status, headers))
}

/// Where a refusal's body ends (RFC 9112 section 6.3).
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Framing {
    fn of(status: StatusCode, headers: &HeaderMap) -> Result<Self, &'static str> {
        use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
        let has_encoding = headers.contains_key(TRANSFER_ENCODING);
        let length = match only(headers, &CONTENT_LENGTH) {
            Ok(None) => None,
            Ok(Some(text)) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(text.parse().map_err(|_| "its Content-Length is no number")?)
            }
            Ok(Some(_)) => return Err("its Content-Length is no number"),
            Err(Twice) => return Err("its answer has two Content-Length headers"),
        };
        match (has_encoding, length) {
            _ if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => Ok(Self::Length(0)),
            (true, Some(_)) => Err("its answer has both Content-Length and Transfer-Encoding"),
            (true, None) => match only(headers, &TRANSFER_ENCODING) {
                Ok(Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Ok(Self::Chunked),
                _ => Err("its Transfer-Encoding is not chunked"),
            },
            (false, Some(length)) if length > MAX_BODY => Err(TOO_LONG),
            (false, Some(length)) => Ok(Self::Length(length)),
            (false, None) => Ok(Self::UntilClose),
        }
    }

    async fn read<S: AsyncRead + Unpin>(self, start: Vec<u8>, stream: &mut S) -> Result<Vec<u8>, Denial> {
        let mut raw = start;
        loop {
            match &self {
                Self::Length(length) if raw.len() >= *length => {
                    raw.truncate(*length);
                    return Ok(raw);
                }
                Self::Chunked => {
                    if let Some(body) = unchunk(&raw).map_err(broken)? {
                        return Ok(body);
                    }
                }
                Self::Length(_) | Self::UntilClose => {}
            }
            if raw.len() > 2 * MAX_BODY || (matches!(self, Self::UntilClose) && raw.len() > MAX_BODY) {
                return Err(broken(TOO_LONG));
            }
            match stream.read_buf(&mut raw).await {
                Ok(0) if matches!(self, Self::UntilClose) => return Ok(raw),
                Ok(0) => return Err(broken("its answer ends too early")),
                Ok(_) => {}
                Err(error) => return Err(broken(format!("cannot read: {error}"))),
            }
        }
    }
}

const TOO_LONG: &str = "it refuses with over 64 KiB of body";

/// The body in these chunks (RFC 9112 section 7.1), or `None` when the last one is not there yet. Trailers are dropped.
fn unchunk(mut raw: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let mut body = Vec::new();
    loop {
        let (start, length) = match httparse::parse_chunk_size(raw) {
            Ok(httparse::Status::Complete((start, length))) => (start, length),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("its chunks are malformed"),
        };
        if length == 0 {
            return Ok(Some(body));
        }
        let length = usize::try_from(length).ok().filter(|length| body.len() + length <= MAX_BODY).ok_or(TOO_LONG)?;
        let Some(chunk) = raw.get(start..start + length + 2) else { return Ok(None) };
        let data = chunk.strip_suffix(b"\r\n").ok_or("its chunks are malformed")?;
        body.extend_from_slice(data);
        raw = &raw[start + length + 2..];
    }
}

/// A connection to an upstream.
pub enum Stream {
    Tcp(Socket),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl WriteLast for Stream {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_begins_with_its_status_line() {
        let yes = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n";
        assert!(parse(yes).is_ok_and(|(version, status, _)| (version, status) == (1, 101)));
        assert!(parse(&[b"\r\n", &yes[..]].concat()).is_err(), "found by fuzzing");
        assert!(parse(&[b"\n", &yes[..]].concat()).is_err());
    }

    /// HTTP/1.0 has none (RFC 9110 section 15.2). Found by fuzzing.
    #[tokio::test]
    async fn interim_answers_are_of_a_version_that_has_them() {
        let status = async |interim: &str| {
            let answers = format!("{interim} 100 x\r\n\r\nHTTP/1.1 403 x\r\n\r\n");
            Reply::read(&mut answers.as_bytes()).await.map(|reply| reply.status).ok()
        };
        assert_eq!(status("HTTP/1.1").await, Some(403));
        assert_eq!(status("HTTP/1.0").await, None);
    }

    #[test]
    fn chunks_become_a_body() {
        assert_eq!(unchunk(b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n"), Ok(Some(b"abcd".to_vec())));
        assert_eq!(unchunk(b"3\r\nab"), Ok(None));
        assert!(unchunk(b"3\r\nabcd\r\n").is_err());
        assert!(unchunk(b"FFFFFFFFFFFFFFFFF\r\n").is_err());
        assert_eq!(unchunk(b"FFFFFF\r\n"), Err(TOO_LONG));
    }
}
