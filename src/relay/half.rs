//! One direction of a tunnel.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::buffers::{Kept, with_scratch};
use super::guard::{Cut, Excess, Guard, OUR_PING};
use crate::frame::Follower;
use crate::write_last::WriteLast;

/// Reads of one half before the other half has its turn.
pub(super) const TURNS: usize = 8;

/// One end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

/// Why a half cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A read failed: the side that is read from is gone.
    Lost,
    /// What was read must not pass.
    Excess(Excess),
}

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
    /// Where a route asks for more than bytes that pass.
    pub(super) guard: Option<Box<Guard>>,
}

impl Half {
    pub(super) fn new(follower: Follower, guard: Option<Box<Guard>>, start: &[u8]) -> Self {
        let kept = Kept::default();
        let mut half = Self { follower, kept, bytes: 0, ended: false, done: false, writer_gone: false, guard };
        if let Some(guard) = &mut half.guard {
            guard.note_read(start.len());
            guard.excess = guard.pass(&mut half.follower, start, &mut |bytes| half.kept.keep(bytes)).err();
            half.bytes = half.kept.len();
        } else {
            half.follower.follow(start);
            half.kept.keep(start);
            half.bytes = start.len() as u64;
        }
        half
    }

    /// Moves bytes until the reader ends, which is `Ready(Ok)`, or one of the two has to be waited for. `ends_by_close`:
    /// behind a Close comes the end of the writer's stream, at once.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        ends_by_close: bool,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: WriteLast + Unpin,
    {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            if ready!(self.kept.poll_write(cx, writer)).is_err() {
                self.give_up();
            }
            let turn = if self.guard.is_some() {
                self.guarded_turn(cx, reader, writer)
            } else {
                self.turn(cx, reader, writer, ends_by_close)
            };
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

    /// Read, follow, write. Whether the reader has ended.
    fn turn<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        ends_by_close: bool,
    ) -> Poll<Result<bool, Broken>>
    where
        R: AsyncRead + Unpin,
        W: WriteLast + Unpin,
    {
        with_scratch(usize::MAX, |buffer| {
            match Pin::new(&mut *reader).poll_read(cx, buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Lost)),
                Poll::Pending => return Poll::Pending,
            }
            let bytes = buffer.filled();
            if !self.writer_gone {
                self.follower.follow(bytes);
                self.bytes += bytes.len() as u64;
                let written = if ends_by_close && self.follower.saw_close() && !bytes.is_empty() {
                    self.kept.write_last(cx, writer, bytes)
                } else {
                    self.kept.write_through(cx, writer, bytes)
                };
                if written.is_err() {
                    self.give_up();
                }
            }
            Poll::Ready(Ok(bytes.is_empty()))
        })
    }

    /// The same under a guard: first what had to wait, then as much as may be read.
    fn guarded_turn<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<bool, Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let Some(guard) = &mut self.guard else { return Poll::Pending };
        if let Some(excess) = guard.excess {
            return Poll::Ready(Err(Broken::Excess(excess)));
        }
        if guard.until.is_some() {
            return Poll::Pending;
        }
        if guard.holds_rest() {
            let rest = guard.take_rest();
            return self.pass(cx, writer, &rest).map_ok(|()| false);
        }
        let room = guard.room();
        if room == 0 {
            return Poll::Pending;
        }
        with_scratch(room, |buffer| {
            match Pin::new(&mut *reader).poll_read(cx, buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Lost)),
                Poll::Pending => return Poll::Pending,
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if let Some(guard) = &mut self.guard {
                guard.note_read(bytes.len());
            }
            self.pass(cx, writer, bytes).map_ok(|()| false)
        })
    }

    /// Has the guard pass on what may pass.
    fn pass<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        input: &[u8],
    ) -> Poll<Result<(), Broken>> {
        let Some(guard) = &mut self.guard else { return Poll::Pending };
        if self.writer_gone {
            return Poll::Ready(Ok(()));
        }
        let (kept, passed, mut failed) = (&mut self.kept, &mut self.bytes, false);
        let asks = guard.is_waiting_to_ask();
        let result = guard.pass(&mut self.follower, input, &mut |bytes| {
            *passed += bytes.len() as u64;
            if !kept.is_empty() {
                kept.keep(bytes);
            } else if !failed {
                failed = kept.write_through(cx, writer, bytes).is_err();
            }
        });
        // Our Ping stands among it, and is nobody's bytes.
        if asks && !guard.is_waiting_to_ask() {
            *passed -= OUR_PING;
        }
        if failed {
            self.give_up();
        }
        Poll::Ready(result.map_err(Broken::Excess))
    }

    /// Puts a Ping behind what has passed, if this is the end of a frame.
    pub(super) fn ask(&mut self) {
        if let Some(guard) = &mut self.guard
            && !self.writer_gone
        {
            guard.ask(&self.follower, &mut |bytes| self.kept.keep(bytes));
        }
    }

    /// The reader has ended: what was held back goes on.
    pub(super) fn release(&mut self) {
        if let Some(guard) = &mut self.guard {
            let mut passed = 0;
            guard.release(&self.follower, &mut |bytes| {
                passed += bytes.len() as u64;
                self.kept.keep(bytes);
            });
            self.bytes += passed;
        }
    }

    /// Whether the reader is listened to: not while what came from it waits.
    pub(super) fn is_listening(&self) -> bool {
        let waits = self.guard.as_ref().is_some_and(|guard| guard.until.is_some() || guard.holds_rest());
        self.kept.is_empty() && !waits
    }

    /// The writer fails. The other half reads from it and will see what became of it, after all it had to say; what this
    /// half's reader says from here on is read and dropped, because a socket with unread bytes is closed with a reset,
    /// which takes what is on its way to the reader with it.
    pub(super) fn give_up(&mut self) {
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

    /// Whether what has passed ends with the end of a frame.
    pub(super) fn is_between(&self) -> bool {
        match &self.guard {
            Some(guard) => guard.is_between(&self.follower),
            None => self.follower.is_between(),
        }
    }

    /// Whether a Close of ours may stand behind what has passed, as soon as that ends with the end of a frame.
    pub(super) fn may_close(&self) -> bool {
        self.cut().map_or_else(|| !self.follower.is_lost() && !self.follower.saw_close(), |cut| cut.may_close)
    }

    /// Whole data messages that have passed.
    pub(super) fn messages(&self) -> u64 {
        self.cut().map_or_else(|| self.follower.messages(), |cut| cut.messages)
    }

    fn cut(&self) -> Option<Cut> {
        self.guard.as_ref().and_then(|guard| guard.cut)
    }
}
