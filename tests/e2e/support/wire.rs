//! One end of a socket, for either side: raw bytes in and out, heads, frames, and every way to end it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tokio_tungstenite::tungstenite::WebSocket;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::frames::Frame;
use super::head::{Answer, Head};
use super::wait::{DEADLINE, SILENCE, pause};

/// TCP or Unix.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub fn try_clone(&self) -> Self {
        match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone().unwrap()),
            Self::Unix(stream) => Self::Unix(stream.try_clone().unwrap()),
        }
    }

    fn set_read_timeout(&self, limit: Duration) {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)).unwrap(),
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)).unwrap(),
        }
    }

    fn prepare(&self) {
        self.set_read_timeout(DEADLINE);
        match self {
            Self::Tcp(stream) => {
                stream.set_write_timeout(Some(DEADLINE)).unwrap();
                stream.set_nodelay(true).unwrap();
            }
            Self::Unix(stream) => stream.set_write_timeout(Some(DEADLINE)).unwrap(),
        }
    }

    pub fn shutdown(&self, how: Shutdown) {
        // The other side may have closed already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How the other side ended the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    Eof,
    Reset,
}

/// A socket and what was read from it ahead.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    ahead: Vec<u8>,
}

impl Wire {
    pub fn new(stream: Stream) -> Self {
        stream.prepare();
        Self { stream, ahead: Vec::new() }
    }

    #[track_caller]
    pub fn connect(to: SocketAddr) -> Self {
        Self::new(Stream::Tcp(TcpStream::connect(to).unwrap()))
    }

    /// A second handle, to write or read from another thread.
    pub fn handle(&self) -> Stream {
        self.stream.try_clone()
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends what may fail because the other side has closed already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Bytes that are there, at least one; none means the end.
    pub fn read_some(&mut self) -> io::Result<Vec<u8>> {
        if !self.ahead.is_empty() {
            return Ok(std::mem::take(&mut self.ahead));
        }
        let mut buffer = vec![0; 65536];
        let count = self.stream.read(&mut buffer)?;
        buffer.truncate(count);
        Ok(buffer)
    }

    /// A head up to its empty line, or what came of one before the end.
    #[track_caller]
    pub fn read_head_bytes(&mut self) -> Vec<u8> {
        let mut seen = Vec::new();
        loop {
            let more = self.read_some().unwrap_or_else(|error| panic!("{error}, after {:?}", show(&seen)));
            if more.is_empty() {
                return seen;
            }
            seen.extend(more);
            if let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                self.ahead = seen.split_off(at + 4);
                return seen;
            }
        }
    }

    #[track_caller]
    pub fn read_head(&mut self) -> Head {
        let raw = self.read_head_bytes();
        assert!(raw.ends_with(b"\r\n\r\n"), "no whole head but {:?}", show(&raw));
        Head::parse(&raw)
    }

    /// A whole answer, after which the connection must end: one request is one connection.
    #[track_caller]
    pub fn read_answer(&mut self) -> Answer {
        let head = self.read_head();
        let body = self.read_to_end();
        if let Some(length) = head.get("Content-Length") {
            assert_eq!(length, body.len().to_string(), "{head:?}");
        }
        Answer { head, body }
    }

    #[track_caller]
    pub fn read_exact(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let more = self.read_some().unwrap_or_else(|error| panic!("{error}, after {} bytes", bytes.len()));
            assert!(!more.is_empty(), "ended after {} of {count} bytes: {:?}", bytes.len(), show(&bytes));
            bytes.extend(more);
        }
        self.ahead = bytes.split_off(count);
        bytes
    }

    /// Reads these very bytes.
    #[track_caller]
    pub fn expect(&mut self, wanted: impl AsRef<[u8]>) {
        let wanted = wanted.as_ref();
        let got = self.read_exact(wanted.len());
        assert!(got == wanted, "got {:?}, wanted {:?}", show(&got), show(wanted));
    }

    /// Everything up to a clean end.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let (bytes, ending) = self.read_to_close();
        assert_eq!(ending, Ending::Eof, "after {:?}", show(&bytes));
        bytes
    }

    /// Everything, however it ends.
    #[track_caller]
    pub fn read_to_close(&mut self) -> (Vec<u8>, Ending) {
        let mut bytes = Vec::new();
        loop {
            match self.read_some() {
                Ok(more) if more.is_empty() => return (bytes, Ending::Eof),
                Ok(more) => bytes.extend(more),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return (bytes, Ending::Reset);
                }
                Err(error) => panic!("{error}, after {:?}", show(&bytes)),
            }
        }
    }

    /// Ends its own direction, and reads what may still come, however it ends.
    pub fn read_until_quiet(&mut self) {
        self.shutdown_write();
        while self.read_some().is_ok_and(|bytes| !bytes.is_empty()) {}
    }

    /// Nothing arrives for a moment, not even an end.
    #[track_caller]
    pub fn stays_silent(&mut self) {
        self.stream.set_read_timeout(SILENCE);
        let got = self.read_some();
        self.stream.set_read_timeout(DEADLINE);
        match got {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("not silent: {error}"),
            Ok(bytes) => panic!("not silent: {:?}", show(&bytes)),
        }
    }

    /// Nothing arrives for a moment, except Pings, which nobody answers.
    #[track_caller]
    pub fn stays_silent_or_pings(&mut self) {
        self.stream.set_read_timeout(SILENCE);
        let got = self.read_some();
        self.stream.set_read_timeout(DEADLINE);
        if let Ok(bytes) = got {
            assert!(bytes.chunks(10).all(|frame| frame.starts_with(&[0x89, 8])), "not only pings: {:?}", show(&bytes));
            pause(SILENCE);
        }
    }

    #[track_caller]
    pub fn read_frame(&mut self) -> Frame {
        Frame::read(|count| Some(self.read_exact(count))).expect("as many bytes as it takes")
    }

    /// The Close frame that comes next, and then the end of the stream within the grace.
    #[track_caller]
    pub fn read_close(&mut self) -> (u16, String) {
        let frame = self.read_frame();
        let close = frame.close();
        close.unwrap_or_else(|| panic!("no Close but {frame:?}"))
    }

    pub fn shutdown_write(&self) {
        self.stream.shutdown(Shutdown::Write);
    }

    /// Ends with a reset instead of an orderly close.
    pub fn reset(self) {
        if let Stream::Tcp(stream) = &self.stream {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Sends until nobody has taken anything for a while; the bytes that were taken.
    pub fn send_until_stuck(&mut self, patience: Duration, most: usize) -> usize {
        let Stream::Tcp(stream) = &mut self.stream else { panic!("only TCP") };
        stream.set_nonblocking(true).unwrap();
        let chunk = vec![b'x'; 65536];
        let (mut sent, mut last) = (0, Instant::now());
        while last.elapsed() < patience && sent < most {
            match stream.write(&chunk) {
                Ok(count) => (sent, last) = (sent + count, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => pause(Duration::from_millis(5)),
                Err(error) => panic!("{error}"),
            }
        }
        stream.set_nonblocking(false).unwrap();
        sent
    }

    /// Hands the socket to a foreign WebSocket implementation.
    pub fn into_websocket(self, role: Role) -> WebSocket<Stream> {
        WebSocket::from_partially_read(self.stream, self.ahead, role, None)
    }
}

/// Bytes as a message shows them, not too many.
pub fn show(bytes: &[u8]) -> String {
    const MOST: usize = 2000;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]).into_owned();
    if bytes.len() > MOST { format!("{text}... ({} bytes)", bytes.len()) } else { text }
}
