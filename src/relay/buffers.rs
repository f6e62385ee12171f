//! The memory of tunnels: a scratch that all of a thread share, and what is kept for a side that does not take it yet.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::write_last::WriteLast;

/// What one read takes at most, and one direction keeps. Larger ones save system calls on large frames.
const MOST_AT_ONCE: usize = 512 * 1024;
/// The same while [`PLENTY`] is kept already.
const LITTLE_AT_ONCE: usize = 8 * 1024;
/// What is kept for all tunnels of the process together before less is read at a time: a few that do not keep up cost
/// what that takes, and many of them not as much each.
const PLENTY: usize = 16 << 20;

/// Memory that each tunnel may take for its two directions, however many there are.
pub const MEMORY_OF_EACH: usize = 2 * LITTLE_AT_ONCE;

/// Memory that all tunnels together take beyond [`MEMORY_OF_EACH`], at most, on so many threads.
pub fn memory_of_all(threads: usize) -> usize {
    PLENTY + threads * MOST_AT_ONCE
}

/// Bytes of memory that all tunnels of the process keep.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// How much memory that is now.
pub fn held() -> usize {
    HELD.load(Relaxed)
}

thread_local! {
    /// Nothing stays in it from one poll to the next.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST_AT_ONCE].into_boxed_slice());
}

/// Lends room to read into: no more than `most`, and no more than may be kept now.
pub(super) fn with_scratch<T>(most: usize, read: impl FnOnce(&mut ReadBuf<'_>) -> T) -> T {
    let most = most.min(if held() < PLENTY { MOST_AT_ONCE } else { LITTLE_AT_ONCE });
    SCRATCH.with_borrow_mut(|scratch| read(&mut ReadBuf::new(&mut scratch[..most])))
}

/// What the writer refused. Nearly always nothing, and then it is a null pointer.
#[derive(Default)]
pub(super) struct Kept(Option<Box<Unsent>>);

struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
    /// When the writer last took some of it, or when it began to wait.
    since: Instant,
    /// What stands in [`HELD`] for it.
    counted: usize,
}

impl Unsent {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let taken = self.bytes.capacity();
        HELD.fetch_add(taken - self.counted, Relaxed);
        self.counted = taken;
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        HELD.fetch_sub(self.counted, Relaxed);
    }
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn len(&self) -> u64 {
        self.0.as_ref().map_or(0, |unsent| (unsent.bytes.len() - unsent.sent) as u64)
    }

    /// Since when the writer has taken nothing of what waits for it. `None`: nothing waits.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        self.0.as_ref().map(|unsent| unsent.since)
    }

    /// Keeps these bytes behind those that are kept already.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let new = || Box::new(Unsent { bytes: Vec::new(), sent: 0, since: Instant::now(), counted: 0 });
            self.0.get_or_insert_with(new).add(bytes);
        }
    }

    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), ()>> {
        let Some(unsent) = &mut self.0 else { return Poll::Ready(Ok(())) };
        while unsent.sent < unsent.bytes.len() {
            match ready!(Pin::new(&mut *writer).poll_write(cx, &unsent.bytes[unsent.sent..])) {
                Ok(0) | Err(_) => return Poll::Ready(Err(())),
                Ok(count) => {
                    unsent.sent += count;
                    unsent.since = Instant::now();
                }
            }
        }
        self.0 = None;
        Poll::Ready(Ok(()))
    }

    /// Writes bytes that the end of the stream is to follow, and keeps the rest. Nothing is kept yet.
    pub(super) fn write_last<W: WriteLast + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
    ) -> Result<(), ()> {
        match Pin::new(&mut *writer).poll_write_last(cx, bytes) {
            Poll::Ready(Ok(count)) if count == bytes.len() => Ok(()),
            Poll::Ready(Ok(0) | Err(_)) => Err(()),
            Poll::Ready(Ok(count)) => self.write_through(cx, writer, &bytes[count..]),
            Poll::Pending => {
                self.keep(bytes);
                Ok(())
            }
        }
    }

    /// Writes bytes at once and keeps the rest. Nothing is kept yet.
    pub(super) fn write_through<W: AsyncWrite + Unpin>(
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
                    self.keep(&bytes[written..]);
                    break;
                }
            }
        }
        Ok(())
    }
}
