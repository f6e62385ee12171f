//! A TCP socket that is tried before it is waited for: most handshakes and refusals find their bytes there, and need no
//! place in the runtime's event queue until the tunnel stands, or at all.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{SendFlags, send};
use socket2::{Domain, Protocol, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;

use crate::queue::{Side, Ticket};
use crate::write_last::WriteLast;

/// A non-blocking socket, connected or about to be.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    /// Its place in the event queue of its worker, once somebody had to wait for it.
    ticket: Option<Ticket>,
    /// The other end is on this machine.
    is_local: bool,
}

impl Socket {
    /// Takes over a socket that must be non-blocking.
    pub fn new(stream: TcpStream, peer: IpAddr) -> Self {
        Self { stream, ticket: None, is_local: peer.to_canonical().is_loopback() }
    }

    /// Begins to connect. The first write waits until that is done, or fails with the reason why it cannot be.
    ///
    /// # Errors
    /// What the system says at once: no descriptor, no route, nobody listening on this machine.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        // The request goes at once, and takes the acknowledgement with it: a packet less.
        let _ = socket.set_tcp_quickack(false);
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => Ok(Self::new(socket.into(), to.ip())),
        }
    }

    /// What is there already: `None` if nothing is.
    pub fn read_now(&mut self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        match self.stream.read(buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            done => Some(done),
        }
    }

    /// Returns when the other side has closed, or is lost. Never, once it has sent something that was not read.
    pub async fn hung_up(&mut self) {
        let gone = std::future::poll_fn(|cx| {
            ready!(self.poll_wait(cx, Side::Read))?;
            self.poll_try(cx, Side::Read, |stream| stream.peek(&mut [0]))
        });
        if gone.await.is_ok_and(|count| count > 0) {
            std::future::pending::<()>().await;
        }
    }

    /// Writes the last that this side has to say. Behind it the socket has to be shut down or dropped.
    ///
    /// # Errors
    /// What the system says.
    pub async fn write_last(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        std::future::poll_fn(|cx| {
            while written < bytes.len() {
                match ready!(Pin::new(&mut *self).poll_write_last(cx, &bytes[written..]))? {
                    0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                    count => written += count,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Has TCP look after a peer that could vanish without a word. On this machine none can: its kernel closes for it.
    pub fn ask_after(&self, idle: Duration) {
        if !self.is_local {
            let _ = socket2::SockRef::from(&self.stream).set_tcp_keepalive(&keepalive(idle));
        }
    }

    /// Waits until a try is worth it. Gives the socket its place in the queue, and then it is not before that says so.
    fn poll_wait(&mut self, cx: &Context<'_>, side: Side) -> Poll<io::Result<()>> {
        let ticket = match &self.ticket {
            Some(ticket) => ticket,
            None => self.ticket.insert(Ticket::new(&self.stream, side)?),
        };
        ticket.poll(side, cx)
    }

    fn poll_try<T>(
        &mut self,
        cx: &Context<'_>,
        side: Side,
        mut attempt: impl FnMut(&mut TcpStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match attempt(&mut self.stream) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if let Some(ticket) = &self.ticket {
                        ticket.in_vain(side);
                    }
                    ready!(self.poll_wait(cx, side))?;
                }
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        attempt: impl Fn(&mut TcpStream, &[u8]) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let turn = ready!(poll_proceed(cx));
        if self.ticket.is_some() {
            ready!(self.poll_wait(cx, Side::Write))?;
        }
        let count = ready!(self.poll_try(cx, Side::Write, |stream| attempt(stream, bytes)))?;
        turn.made_progress();
        self.note(Side::Write, count, bytes.len());
        Poll::Ready(Ok(count))
    }

    /// Less than there was room for: that was all.
    fn note(&self, side: Side, count: usize, room: usize) {
        if let Some(ticket) = self.ticket.as_ref().filter(|_| 0 < count && count < room) {
            ticket.spent(side);
        }
    }
}

/// Four questions after so much silence, and a peer that answers none is gone. Whoever asks early asks often, too.
pub fn keepalive(idle: Duration) -> TcpKeepalive {
    TcpKeepalive::new().with_time(idle).with_interval(idle.min(Duration::from_secs(15))).with_retries(4)
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A peer that never pauses must not hold the thread: whoever reads in a loop is made to wait now and then.
        let turn = ready!(poll_proceed(cx));
        ready!(self.poll_wait(cx, Side::Read))?;
        let unfilled = buffer.initialize_unfilled();
        let count = ready!(self.poll_try(cx, Side::Read, |stream| stream.read(unfilled)))?;
        turn.made_progress();
        self.note(Side::Read, count, unfilled.len());
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, bytes, |stream, bytes| stream.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }
}

impl WriteLast for Socket {
    // At worst the system holds it back for 200 ms (`MSG_MORE`, send(2); `TCP_CORK`, tcp(7)).
    fn poll_write_last(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_send(cx, bytes, |stream, bytes| Ok(send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::MORE)?))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::{JoinSet, yield_now};

    use super::*;
    use crate::queue;

    /// A socket of ours, and its other end.
    fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, from) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (Socket::new(stream, from.ip()), other)
    }

    /// Polls a future once, in vain, does something, and awaits it.
    async fn waits_for<T>(future: impl Future<Output = T>, news: impl FnOnce()) -> T {
        let mut future = std::pin::pin!(future);
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await;
        assert!(polled, "there was nothing to wait for");
        yield_now().await;
        news();
        tokio::time::timeout(Duration::from_secs(5), future).await.expect("nobody was woken")
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let mut serving = JoinSet::new();
        serving.spawn(queue::serve());
        let (mut socket, mut other) = pair();
        let mut buffer = [0; 8];
        for _ in 0..3 {
            let count = waits_for(socket.read(&mut buffer), || other.write_all(b"some").unwrap()).await;
            assert_eq!(count.unwrap(), 4);
        }
        let large = vec![0; 16 << 20];
        let mut reading = other.try_clone().unwrap();
        let read = move || {
            std::thread::spawn(move || while reading.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {});
        };
        waits_for(socket.write_all(&large), read).await.unwrap();
        waits_for(socket.hung_up(), || other.shutdown(Shutdown::Both).unwrap()).await;
    }

    /// A place that was given back is given out again, and nothing of who had it is left there.
    #[tokio::test]
    async fn a_place_is_for_one_at_a_time() {
        let mut serving = JoinSet::new();
        serving.spawn(queue::serve());
        for _ in 0..3 {
            let (mut socket, other) = pair();
            let count = waits_for(socket.read(&mut [0; 8]), || other.shutdown(Shutdown::Write).unwrap()).await;
            assert_eq!(count.unwrap(), 0);
        }
        let (mut socket, mut other) = pair();
        let count = waits_for(socket.read(&mut [0; 8]), || other.write_all(b"some").unwrap()).await;
        assert_eq!(count.unwrap(), 4);
    }

    /// The end of the stream can come together with the last bytes, and is told of once.
    #[tokio::test]
    async fn an_end_behind_few_bytes_is_seen() {
        let mut serving = JoinSet::new();
        serving.spawn(queue::serve());
        let (mut socket, mut other) = pair();
        let mut buffer = [0; 8];
        let news = || {
            other.write_all(b"last").unwrap();
            other.shutdown(Shutdown::Write).unwrap();
        };
        assert_eq!(waits_for(socket.read(&mut buffer), news).await.unwrap(), 4);
        let end = tokio::time::timeout(Duration::from_secs(5), socket.read(&mut buffer)).await;
        assert_eq!(end.expect("nobody told of the end").unwrap(), 0);
    }
}
