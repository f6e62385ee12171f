//! A plain socket on which nothing lasts longer than it may.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use super::target::Target;

/// A connection whose reads and writes end at a moment, however slowly bytes trickle.
pub struct Line {
    stream: TcpStream,
    deadline: Instant,
}

impl Line {
    /// Looks the name up, which cannot be given a deadline, and connects within so much time.
    ///
    /// # Errors
    /// What the resolver or the last of the addresses said.
    pub fn open(target: &Target, connect: Duration, deadline: Instant) -> io::Result<Self> {
        let addresses = (target.host.as_str(), target.port).to_socket_addrs()?;
        let stream = to_any(addresses, Instant::now() + connect)?;
        // What is measured here is the other side, not how long the kernel waits for more to send.
        stream.set_nodelay(true)?;
        Ok(Self { stream, deadline })
    }

    /// Nothing lasts beyond this moment any more, if it was to last longer.
    pub fn shorten(&mut self, deadline: Instant) {
        self.deadline = self.deadline.min(deadline);
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer).map_err(in_time)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(bytes).map_err(in_time)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tries every address of a name (`localhost` is two) until the time for connecting is over.
fn to_any(addresses: impl Iterator<Item = SocketAddr>, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// EAGAIN is how a socket says that its timeout is over.
fn in_time(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { too_late() } else { error }
}

/// # Errors
/// [`too_late`] when nothing is.
pub fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(too_late()) } else { Ok(left) }
}

pub fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}
