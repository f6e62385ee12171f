//! `probe`: one GET over a plain socket. It is the health check of containers, run every few seconds beside the proxy,
//! so it starts no runtime and ends within a deadline whatever the other side does.

use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::{ProbeArgs, print, remark};

const CONNECT: Duration = Duration::from_secs(2);
const TOTAL: Duration = Duration::from_secs(5);
/// Head and body together. A status page is far smaller; what is longer is cut, and the status counts.
const MAX_ANSWER: u64 = 64 * 1024;

pub fn run(args: &ProbeArgs) -> ExitCode {
    match get(args.url.clone()) {
        Ok(answer) if answer.status == 200 => match print(&answer.to_text()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(answer) => {
            remark(answer.to_text().trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            remark(format_args!("error: {}: {error}", args.url.text));
            ExitCode::FAILURE
        }
    }
}

/// A URL taken apart, as far as a GET needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was typed, for messages.
    text: String,
    /// As it stands in the URL, for the Host header: `localhost:9901`, `[::1]:9901`.
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    /// For clap: `http://host[:port][/path][?query]`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a URL has no blanks and only ASCII characters".into());
        }
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => return Err(format!("{scheme}:// is not supported, only http://")),
            None => return Err("write it in full, as http://HOST:PORT/PATH".into()),
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("a user name or password does not belong into this URL".into());
        }
        let (host, port) = split_authority(authority).ok_or("the host or the port is not valid")?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            text: text.into(),
            authority: authority.into(),
            host: host.into(),
            port,
            path: format!("{slash}{path}"),
        })
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`; port 80 when there is none.
fn split_authority(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, port)
    } else {
        authority.split_at(authority.find(':').unwrap_or(authority.len()))
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port > 0)?
        }
        Some(_) => return None,
        None if port.is_empty() => 80,
        None => return None,
    };
    (!host.is_empty()).then_some((host, port))
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    reason: String,
    body: Vec<u8>,
}

impl Answer {
    fn to_text(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        let end = if body.is_empty() || body.ends_with('\n') { "" } else { "\n" };
        format!("{} {}\n{body}{end}", self.status, self.reason)
    }
}

/// Looking up a name cannot be given a deadline, so all of it runs beside a clock.
fn get(target: Target) -> io::Result<Answer> {
    let deadline = Instant::now() + TOTAL;
    let (done, result) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        // Nobody listens any more when the time is over.
        let _ = done.send(exchange(&target, deadline));
    })?;
    result.recv_timeout(TOTAL).unwrap_or_else(|_| Err(too_late()))
}

fn exchange(target: &Target, deadline: Instant) -> io::Result<Answer> {
    let addresses = (target.host.as_str(), target.port).to_socket_addrs()?;
    let mut stream = connect(addresses)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: wsbouncer-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        target.path, target.authority
    );
    stream.write_all(request.as_bytes())?;
    read_answer(WithDeadline { stream, deadline })
}

/// Tries every address of a name (`localhost` is two) until the time for connecting is over.
fn connect(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let deadline = Instant::now() + CONNECT;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A socket whose reads end at a moment, however slowly bytes trickle in.
struct WithDeadline {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for WithDeadline {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(too_late()) } else { Ok(left) }
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// Reads until the answer is whole, the other side closes, or the limit is reached. What was cut short counts as far as
/// it came: the status is what matters.
fn read_answer(input: impl Read) -> io::Result<Answer> {
    let mut input = input.take(MAX_ANSWER);
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = match input.read(&mut chunk) {
            Ok(length) => length,
            // EAGAIN is how a socket says that its read timeout is over.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(too_late()),
            Err(error) => return Err(error),
        };
        bytes.extend_from_slice(&chunk[..length]);
        match parse(&bytes)? {
            Some((answer, whole)) if whole || length == 0 => return Ok(answer),
            None if length == 0 => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the answer"));
            }
            _ => {}
        }
    }
}

/// The answer as far as it is there, and whether that is all of it; `None` while its head is not complete.
fn parse(bytes: &[u8]) -> io::Result<Option<(Answer, bool)>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_length) = head.parse(bytes).map_err(|_| invalid())? else {
        return Ok(None);
    };
    let value = |name: &str| {
        head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    let rest = &bytes[head_length..];
    let (body, whole) = if value("transfer-encoding").is_some() {
        dechunk(rest)
    } else if let Some(length) = value("content-length") {
        let length: usize = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
        (rest[..length.min(rest.len())].to_vec(), rest.len() >= length)
    } else {
        (rest.to_vec(), false)
    };
    let status = head.code.ok_or_else(invalid)?;
    Ok(Some((Answer { status, reason: head.reason.unwrap_or_default().into(), body }, whole)))
}

/// The chunks of a body put together, and whether the last one has been seen.
fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((start, length))) = httparse::parse_chunk_size(rest) {
        if length == 0 {
            return (body, true);
        }
        let chunk = &rest[start..];
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        body.extend_from_slice(&chunk[..length.min(chunk.len())]);
        // After a chunk stands a line end.
        let Some(next) = length.checked_add(2).and_then(|end| chunk.get(end..)) else { break };
        rest = next;
    }
    (body, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, port: u16, authority: &str, path: &str) -> Option<(String, u16, String, String)> {
        Some((host.into(), port, authority.into(), path.into()))
    }

    fn parsed(text: &str) -> Option<(String, u16, String, String)> {
        Target::parse(text).ok().map(|target| (target.host, target.port, target.authority, target.path))
    }

    #[test]
    fn urls() {
        assert_eq!(parsed("http://127.0.0.1:9901/readyz"), target("127.0.0.1", 9901, "127.0.0.1:9901", "/readyz"));
        assert_eq!(parsed("http://localhost"), target("localhost", 80, "localhost", "/"));
        assert_eq!(parsed("HTTP://a.example?x=1#y"), target("a.example", 80, "a.example", "/?x=1"));
        assert_eq!(parsed("http://[::1]:9901/a/b?c"), target("::1", 9901, "[::1]:9901", "/a/b?c"));
        assert_eq!(parsed("http://[::1]/"), target("::1", 80, "[::1]", "/"));
    }

    #[test]
    fn wrong_urls_say_why() {
        let why = |text| Target::parse(text).err().unwrap_or_else(|| panic!("{text} is taken"));
        assert!(why("https://127.0.0.1/").contains("only http://"));
        assert!(why("127.0.0.1:9901").contains("http://HOST:PORT/PATH"));
        assert!(why("http://me:secret@127.0.0.1/").contains("password"));
        assert!(why("http://a b/").contains("blanks"));
        assert!(why("http://a/\r\nX: y").contains("blanks"));
        for text in ["http://", "http://:80", "http://a:", "http://a:0", "http://a:x", "http://a:+1", "http://a:65536"]
        {
            assert!(why(text).contains("the host or the port"), "{text}");
        }
        for text in ["http://[::1", "http://[x]:1", "http://[::1]x", "http://::1:80/"] {
            assert!(why(text).contains("the host or the port"), "{text}");
        }
    }

    fn read(answer: &str) -> Result<String, io::ErrorKind> {
        // One byte at a time where that is few, then the end of the connection.
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = if self.0.len() < 1000 { self.0.len().min(1) } else { buffer.len() };
                self.0.read(&mut buffer[..length])
            }
        }
        read_answer(Slow(answer.as_bytes())).map(|answer| answer.to_text()).map_err(|error| error.kind())
    }

    #[test]
    fn answers() {
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokMORE"), Ok("200 OK\nok\n".into()));
        assert_eq!(read("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"), Ok("204 No Content\n".into()));
        assert_eq!(read("HTTP/1.0 503 Busy\r\n\r\nwait\n"), Ok("503 Busy\nwait\n".into()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3;x=y\r\n ok\r\n0\r\n\r\nMORE";
        assert_eq!(read(chunked), Ok("200 OK\nok ok\n".into()));
    }

    #[test]
    fn answers_that_are_none() {
        assert_eq!(read(""), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-"), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(read("SSH-2.0-OpenSSH_9.2\r\n"), Err(io::ErrorKind::InvalidData));
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn cut_answers_keep_their_status() {
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"), Ok("200 OK\nok\n".into()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nok";
        assert_eq!(read(chunked), Ok("200 OK\nok\n".into()));
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(100_000));
        assert!(read(&endless).is_ok_and(|text| text.len() < 66_000));
        let head = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(100_000));
        assert_eq!(read(&head), Err(io::ErrorKind::UnexpectedEof));
    }
}
