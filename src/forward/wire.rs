//! The two sockets as hyper sees them: what moves is noted, and the client's holds one request and no other.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};
use tokio::time::Instant;

use super::body::Progress;
use crate::socket::Socket;
use crate::upstream::Stream;

/// What a client may send behind its request before it is taken for one that is not worth waiting for.
const MOST_BEHIND: usize = 256 * 1024;

/// The client's socket. hyper reads a head of ours, which says only how the body is framed, and then that body.
pub struct FromClient {
    start: Vec<u8>,
    at: usize,
    socket: Take<Socket>,
    /// Bytes that came behind the request. They are nobody's, and are thrown away, so that a hang-up is seen behind them.
    behind: usize,
    progress: Progress,
}

impl FromClient {
    /// `early` is what came with the vetted head, and `length` the body's, `u64::MAX` where its chunks say it.
    pub fn new(head: String, early: &[u8], length: u64, socket: Socket, progress: Progress) -> Self {
        let of_body = early.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        let mut start = head.into_bytes();
        start.extend_from_slice(&early[..of_body]);
        let left = length - u64::try_from(of_body).unwrap_or(length);
        Self { start, at: 0, socket: socket.take(left), behind: early.len() - of_body, progress }
    }

    pub fn into_socket(self) -> Socket {
        self.socket.into_inner()
    }

    /// Whether bytes came behind the request.
    pub fn has_unread(&self) -> bool {
        self.behind > 0
    }

    /// Waits for the end behind the request.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(self.socket.get_mut()).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.behind += buffer.filled().len();
            if self.behind > MOST_BEHIND {
                return Poll::Ready(Err(io::Error::other("it sends on behind its request")));
            }
        }
    }
}

impl AsyncRead for FromClient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let start = &this.start[this.at..];
        if !start.is_empty() {
            let count = start.len().min(buffer.remaining());
            buffer.put_slice(&start[..count]);
            this.at += count;
            return Poll::Ready(Ok(()));
        }
        if this.socket.limit() == 0 {
            return this.poll_behind(cx);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        this.progress.with(|state| state.moved += buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FromClient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(self.socket.get_mut()).poll_write(cx, bytes);
        self.progress.with(|state| match &polled {
            Poll::Ready(Ok(count)) => {
                state.moved += count;
                state.stuck = None;
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => _ = state.stuck.get_or_insert_with(Instant::now),
        });
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.socket.get_mut()).poll_flush(cx)
    }

    /// What had to be said was said by then, so that it does not matter whether this still goes.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.socket.get_mut()).poll_shutdown(cx).map(|_| Ok(()))
    }
}

/// The connection to the upstream.
pub struct ToUpstream {
    pub stream: Stream,
    pub progress: Progress,
}

impl AsyncRead for ToUpstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.progress.with(|state| state.moved += buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ToUpstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.progress.with(|state| state.moved += count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
