//! A TCP socket that is tried before it is waited for: most handshakes and refusals find their bytes there, and need no
//! place in the runtime's event queue until the tunnel stands, or at all.

use std::io::{self, Read as _, Write as _};
use std::net::{self, IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A non-blocking socket, connected or about to be.
#[derive(Debug)]
pub struct Socket {
    state: State,
    /// The other end is on this machine.
    is_local: bool,
}

#[derive(Debug)]
enum State {
    /// Nobody waits for it.
    Loose(net::TcpStream),
    /// The runtime says when it can be read or written.
    Queued(TcpStream),
    /// It could not be queued.
    Lost,
}

impl Socket {
    /// Takes over a socket that must be non-blocking.
    pub fn new(stream: net::TcpStream, peer: IpAddr) -> Self {
        Self { state: State::Loose(stream), is_local: peer.to_canonical().is_loopback() }
    }

    /// Begins to connect. The first write waits until that is done, or fails with the reason why it cannot be.
    ///
    /// # Errors
    /// What the system says at once: no descriptor, no route, nobody listening on this machine.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => Ok(Self::new(socket.into(), to.ip())),
        }
    }

    /// What is there already: `None` if nothing is, and with it nothing was tried.
    pub fn read_now(&mut self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let State::Loose(stream) = &mut self.state else { return None };
        match stream.read(buffer) {
            Err(error) if is_not_yet(&error) => None,
            done => Some(done),
        }
    }

    /// Gives it a place in the event queue of the runtime that this is called on.
    fn queued(&mut self) -> io::Result<&mut TcpStream> {
        if let State::Loose(_) = &self.state
            && let State::Loose(stream) = std::mem::replace(&mut self.state, State::Lost)
        {
            self.state = State::Queued(TcpStream::from_std(stream)?);
        }
        match &mut self.state {
            State::Queued(stream) => Ok(stream),
            State::Loose(_) | State::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Returns when the other side has closed, or is lost. Never, once it has sent something that was not read.
    pub async fn hung_up(&mut self) {
        let gone = std::future::poll_fn(|cx| {
            let Ok(stream) = self.queued() else { return Poll::Ready(true) };
            let mut byte = [0];
            stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)).map(|peeked| !peeked.is_ok_and(|count| count > 0))
        });
        if !gone.await {
            std::future::pending::<()>().await;
        }
    }

    /// Has TCP look after a peer that could vanish without a word. On this machine none can: its kernel closes for it.
    pub fn ask_after(&self, idle: Duration) {
        let socket = match &self.state {
            State::Loose(stream) => socket2::SockRef::from(stream),
            State::Queued(stream) => socket2::SockRef::from(stream),
            State::Lost => return,
        };
        if !self.is_local {
            let _ = socket.set_tcp_keepalive(&keepalive(idle));
        }
    }
}

/// Four questions after so much silence, and a peer that answers none is gone.
pub fn keepalive(idle: Duration) -> TcpKeepalive {
    TcpKeepalive::new().with_time(idle).with_interval(Duration::from_secs(15)).with_retries(4)
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.queued()?).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let State::Loose(stream) = &mut self.state {
            match stream.write(bytes) {
                Err(error) if is_not_yet(&error) => {}
                done => return Poll::Ready(done),
            }
        }
        Pin::new(self.queued()?).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let State::Loose(stream) = &self.state {
            return Poll::Ready(stream.shutdown(net::Shutdown::Write));
        }
        let stream = self.queued()?;
        ready!(Pin::new(stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
