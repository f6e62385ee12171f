//! One direction of a tunnel.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frame::Follower;

/// What one read takes at most. Larger ones save system calls on large frames.
const SCRATCH: usize = 64 * 1024;
/// Reads of one half before the other half has its turn.
pub(super) const TURNS: usize = 16;

thread_local! {
    /// Shared by all tunnels of a thread: nothing stays in it from one poll to the next.
    pub(super) static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// One end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

/// A read failed: the side that is read from is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// One direction.
pub(super) struct Half {
    pub(super) follower: Follower,
    pub(super) kept: Kept,
    pub(super) bytes: u64,
    /// The reader has come to its end.
    pub(super) ended: bool,
    /// ... and the writer has been told.
    pub(super) done: bool,
    /// Nothing can be written any more.
    pub(super) writer_gone: bool,
}

impl Half {
    pub(super) fn new(mut follower: Follower, start: Vec<u8>) -> Self {
        follower.follow(&start);
        let bytes = start.len() as u64;
        Self { follower, kept: Kept { bytes: start, sent: 0 }, bytes, ended: false, done: false, writer_gone: false }
    }

    /// Moves bytes until the reader ends, which is `Ready(Ok)`, or one of the two has to be waited for.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            if ready!(self.kept.poll_write(cx, writer)).is_err() {
                self.give_up();
            }
            let turn = BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken)),
                    Poll::Pending => return Poll::Pending,
                }
                let bytes = buffer.filled();
                if !self.writer_gone {
                    self.follower.follow(bytes);
                    self.bytes += bytes.len() as u64;
                    if self.kept.write_through(cx, writer, bytes).is_err() {
                        self.give_up();
                    }
                }
                Poll::Ready(Ok(bytes.is_empty()))
            });
            match turn {
                Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => {
                    let _ = Pin::new(writer).poll_flush(cx);
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The writer fails. The other half reads from it and will see what became of it, after all it had to say; what this
    /// half's reader says from here on is read and dropped, because a socket with unread bytes is closed with a reset,
    /// which takes what is on its way to the reader with it.
    fn give_up(&mut self) {
        self.kept = Kept::default();
        self.writer_gone = true;
    }

    /// After the reader's end: writes what is kept, then passes the end on.
    pub(super) fn poll_finish<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), Broken>> {
        if !self.done && !self.writer_gone && ready!(self.kept.poll_write(cx, writer)).is_ok() {
            let _ = ready!(Pin::new(writer).poll_shutdown(cx));
        }
        self.kept = Kept::default();
        self.done = true;
        Poll::Ready(Ok(()))
    }

    /// Whether a frame of ours may stand after what has passed.
    pub(super) fn can_insert(&self) -> bool {
        self.follower.is_between() && !self.follower.saw_close()
    }
}

/// What the writer refused.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) bytes: Vec<u8>,
    sent: usize,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), ()>> {
        while self.sent < self.bytes.len() {
            match ready!(Pin::new(&mut *writer).poll_write(cx, &self.bytes[self.sent..])) {
                Ok(0) | Err(_) => return Poll::Ready(Err(())),
                Ok(count) => self.sent += count,
            }
        }
        if !self.bytes.is_empty() {
            *self = Self::default();
        }
        Poll::Ready(Ok(()))
    }

    /// Writes bytes at once and keeps the rest. Nothing is kept yet.
    fn write_through<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
    ) -> Result<(), ()> {
        let mut written = 0;
        while written < bytes.len() {
            match Pin::new(&mut *writer).poll_write(cx, &bytes[written..]) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(()),
                Poll::Ready(Ok(count)) => written += count,
                Poll::Pending => {
                    self.bytes.extend_from_slice(&bytes[written..]);
                    break;
                }
            }
        }
        Ok(())
    }
}
