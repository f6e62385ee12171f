//! How a tunnel ends that does not end by itself.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::buffers::{Kept, with_scratch};
use super::half::{Broken, Half, Side, TURNS};
use crate::end::{Breach, Cause};
use crate::frame;
use crate::random;

/// How long a frame that is under way may take to end when a tunnel is to be closed; then it goes without a Close.
const BOUNDARY_WAIT: Duration = Duration::from_millis(400);
/// How long both sides have, from the order to close, to answer before the sockets are closed.
const CLOSE_WAIT: Duration = Duration::from_millis(800);

/// The end of a tunnel that does not end by itself: a Close to each side at a frame boundary, then a short wait for the
/// answers. What the sides send meanwhile is read, so that nothing unread turns the close into a reset, and goes nowhere.
pub(super) struct Closing {
    pub(super) cause: Cause,
    pub(super) breach: Option<Breach>,
    up: Farewell,
    down: Farewell,
    pub(super) boundary_by: Instant,
    over_by: Instant,
}

/// Why a tunnel is to be closed.
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) cause: Cause,
    /// A side that is gone already.
    pub(super) gone: Option<Side>,
    pub(super) breach: Option<Breach>,
}

impl From<Cause> for Order {
    fn from(cause: Cause) -> Self {
        Self { cause, gone: None, breach: None }
    }
}

impl Order {
    /// For a half that cannot go on, and the side that it reads from.
    pub(super) fn of(broken: Broken, reader: Side) -> Self {
        match (broken, reader) {
            (Broken::Excess(excess), _) => Self { breach: Some(excess.breach), ..excess.cause.into() },
            (Broken::Lost, Side::Client) => Self { gone: Some(reader), ..Cause::ClientLost.into() },
            (Broken::Lost, Side::Upstream) => Self { gone: Some(reader), ..Cause::UpstreamLost.into() },
        }
    }
}

/// What is left to do in one direction: the frame that is under way, and the Close after it.
struct Farewell {
    close: Option<Vec<u8>>,
    /// The Close stands in its place, if it is not written yet.
    inserted: bool,
    /// The side that is read from has answered, or is gone.
    heard: bool,
}

impl Closing {
    pub(super) fn new((up, down): (&mut Half, &mut Half), order: Order) -> Self {
        let now = Instant::now();
        let Order { cause, gone, breach } = order;
        let (client_gone, upstream_gone) = (gone == Some(Side::Client), gone == Some(Side::Upstream));
        let to_client = frame::close(cause.close_code(), cause.word(), None);
        let to_upstream = frame::close(1001, cause.word(), Some(random::bytes()));
        Self {
            cause,
            breach,
            up: Farewell::new(up, to_upstream, upstream_gone, client_gone),
            down: Farewell::new(down, to_client, client_gone, upstream_gone),
            boundary_by: now + BOUNDARY_WAIT,
            over_by: now + CLOSE_WAIT,
        }
    }

    /// The code that the client was told.
    pub(super) fn code(&self) -> Option<u16> {
        self.down.inserted.then(|| self.cause.close_code())
    }

    pub(super) fn poll<D, U>(
        &mut self,
        cx: &mut Context<'_>,
        (client, upstream): (&mut D, &mut U),
        (up, down): (&mut Half, &mut Half),
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<()>
    where
        D: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let up = self.up.poll(cx, up, client, upstream);
        let down = self.down.poll(cx, down, upstream, client);
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(());
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.over_by {
                return Poll::Ready(());
            }
            self.up.close = None;
            self.down.close = None;
            timer.as_mut().reset(self.over_by);
        }
        Poll::Pending
    }
}

impl Farewell {
    fn new(half: &mut Half, close: Vec<u8>, gone: bool, source_gone: bool) -> Self {
        if gone {
            half.kept = Kept::default();
        }
        let possible = !gone && !half.writer_gone && !half.ended && half.may_close();
        let heard = source_gone || half.ended || half.follower.saw_close();
        let mut farewell = Self { close: possible.then_some(close), inserted: false, heard };
        farewell.insert_if_between(half);
        farewell
    }

    fn insert_if_between(&mut self, half: &mut Half) {
        if half.is_between()
            && let Some(close) = self.close.take()
        {
            half.kept.keep(&close);
            self.inserted = true;
        }
    }

    /// Ready when the writer has everything and the reader was heard.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, half: &mut Half, reader: &mut R, writer: &mut W) -> Poll<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut written = half.kept.poll_write(cx, writer);
        for _ in 0..TURNS {
            if self.heard {
                return written.map(|_| ());
            }
            if self.close.is_some() && written.is_pending() {
                return Poll::Pending;
            }
            let read = with_scratch(usize::MAX, |buffer| {
                let read = Pin::new(&mut *reader).poll_read(cx, buffer);
                self.take(half, buffer.filled());
                read.map(|result| result.is_ok() && !buffer.filled().is_empty())
            });
            written = half.kept.poll_write(cx, writer);
            match read {
                Poll::Ready(true) => self.heard = self.close.is_none() && half.follower.saw_close(),
                Poll::Ready(false) => self.heard = true,
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Passes on what belongs to the frame under way; the rest is only looked at, for the answer to our Close.
    fn take(&mut self, half: &mut Half, bytes: &[u8]) {
        let mut rest = bytes;
        if self.close.is_some() {
            let used = half.follower.follow_to_end_of_frame(bytes);
            half.kept.keep(&bytes[..used]);
            half.bytes += used as u64;
            rest = &bytes[used..];
            if half.follower.is_lost() || half.follower.saw_close() {
                self.close = None;
            }
            self.insert_if_between(half);
        }
        half.follower.follow(rest);
    }
}
