//! The bodies of a forwarded request and of its answer, on their way: counted, bounded, and without trailers.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use crate::denial::Denial;

/// What the parts of one exchange have to tell the task that drives them all.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub struct State {
    /// Bytes of the request's body that were passed on, and of the answer's.
    pub up: u64,
    pub down: u64,
    /// Bytes that moved on either socket, framing and all.
    pub moved: usize,
    /// Since when the client has taken nothing of what there is for it.
    pub stuck: Option<Instant>,
    /// The request's body is asked for, and nothing of it is there.
    pub waits_for_client: bool,
    /// The request's body has come to its end.
    pub up_done: bool,
    /// Nothing is wanted any more of the answer's body.
    pub down_done: bool,
    /// Of the answer that was begun.
    pub status: Option<u16>,
    pub answered_at: Option<Instant>,
    pub fault: Option<Fault>,
    /// Why there is no answer of the upstream's.
    pub denial: Option<Denial>,
}

/// What was wrong with a body, the first fault of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    TooLarge,
    /// Chunks that are none.
    Malformed,
    ClientLost,
    UpstreamLost,
}

impl Progress {
    pub fn with<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fault(&self, fault: Fault) {
        self.with(|state| state.fault = state.fault.or(Some(fault)));
    }
}

type Broken = Box<dyn Error + Send + Sync>;

/// The request's body, from the client to the upstream.
pub struct Up {
    pub body: Incoming,
    /// What there may still be of it.
    pub left: u64,
    pub progress: Progress,
}

impl Body for Up {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            let polled = Pin::new(&mut self.body).poll_frame(cx);
            let is_done = self.body.is_end_stream() || matches!(polled, Poll::Ready(None));
            self.progress.with(|state| {
                state.waits_for_client = polled.is_pending();
                state.up_done |= is_done;
            });
            let frame = match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => {
                    self.progress.fault(if is_malformed(&error) { Fault::Malformed } else { Fault::ClientLost });
                    return Poll::Ready(Some(Err(error.into())));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let Some(left) = self.left.checked_sub(length) else {
                self.progress.fault(Fault::TooLarge);
                return Poll::Ready(Some(Err("the request body is too large".into())));
            };
            self.left = left;
            self.progress.with(|state| state.up += length);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether the client has sent chunks that are none; it is still there then.
fn is_malformed(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}

/// The answer's body, from the upstream to the client.
pub struct Down {
    pub body: Incoming,
    pub progress: Progress,
}

impl Body for Down {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    self.progress.with(|state| state.down += length);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.progress.fault(Fault::UpstreamLost);
                    return Poll::Ready(Some(Err(error)));
                }
                other => return other,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        self.progress.with(|state| state.down_done = true);
    }
}
