//! Bytes both ways between two streams: to each one's own end, with bounded memory, and a word at the end.
//!
//! One future for both directions and no task of its own. Each half reads into a scratch buffer that all tunnels of a
//! thread share, writes at once, and keeps only what the writer refused: an idle tunnel owns no buffer. Frame headers are
//! followed as they pass, so that a Close of ours stands between two frames or nowhere.

mod closing;
mod control;
mod half;

use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use self::closing::Closing;
pub use self::control::Control;
use self::control::ExpiryDate;
use self::half::{Broken, Half, Side};
use crate::clock::UnixTime;
use crate::end::{Cause, End};
use crate::frame::{self, Follower};

/// A date is looked at again after this, because clocks are set.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// When a tunnel ends by itself. `None`: not for this reason.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub idle: Option<Duration>,
    /// When its lifetime is over.
    pub until: Option<Instant>,
    pub half_close: Duration,
}

/// What each side had sent before the relay began, and whether extensions were agreed on.
#[derive(Debug, Default)]
pub struct Start {
    pub from_client: Vec<u8>,
    pub from_upstream: Vec<u8>,
    pub extensions: bool,
}

/// Two streams, and how far each direction has come.
pub struct Relay<D, U> {
    client: D,
    upstream: U,
    up: Half,
    down: Half,
    bounds: Bounds,
    /// When bytes last moved, in either direction.
    active: Instant,
    /// Who ended the conversation, as soon as one side has.
    first: Option<Cause>,
    /// The client got a Close of ours.
    told_client: bool,
    /// The control knows whom to wake.
    is_heard: bool,
    /// The date that the timer was set by.
    expires_at: ExpiryDate,
    timer: Pin<Box<Sleep>>,
    /// How it ends, once it does not end by itself.
    closing: Option<Box<Closing>>,
}

impl<D, U> Relay<D, U>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    pub fn new(client: D, upstream: U, start: &Start, bounds: Bounds) -> Self {
        let now = Instant::now();
        Self {
            client,
            upstream,
            up: Half::new(Follower::from_client(start.extensions), &start.from_client),
            down: Half::new(Follower::from_upstream(start.extensions), &start.from_upstream),
            bounds,
            active: now,
            first: None,
            told_client: false,
            is_heard: false,
            expires_at: ExpiryDate::NEVER,
            timer: Box::pin(sleep_until(now)),
            closing: None,
        }
    }

    /// Relays until both directions have ended, a bound is reached, or `control` says stop; then closes both streams. Has
    /// to be polled by one task from beginning to end, and not after that.
    pub fn poll(&mut self, cx: &mut Context<'_>, control: &Control) -> Poll<End> {
        if self.closing.is_none() {
            let Some((cause, lost)) = ready!(self.poll_relay(cx, control)) else {
                return Poll::Ready(self.end(control));
            };
            let cause = self.cause_of(cause);
            let closing = Closing::new((&mut self.up, &mut self.down), cause, lost);
            self.timer.as_mut().reset(closing.boundary_by);
            self.closing = Some(Box::new(closing));
        }
        let (sides, halves) = ((&mut self.client, &mut self.upstream), (&mut self.up, &mut self.down));
        let Some(closing) = &mut self.closing else { return Poll::Pending };
        ready!(closing.poll(cx, sides, halves, self.timer.as_mut()));
        let end = End { cause: closing.cause, code: closing.code() };
        // Best effort: whoever still listens learns of the end by this or by the close that follows.
        let _ = Pin::new(&mut self.client).poll_shutdown(cx);
        let _ = Pin::new(&mut self.upstream).poll_shutdown(cx);
        self.publish(control);
        Poll::Ready(end)
    }

    /// `None`: both directions came to their own end. Else why the tunnel is to be closed, and which side is gone already.
    fn poll_relay(&mut self, cx: &mut Context<'_>, control: &Control) -> Poll<Option<(Cause, Option<Side>)>> {
        if !self.is_heard {
            // Before the orders are looked at, so that none comes in between.
            control.wake_by(cx.waker());
            self.is_heard = true;
            self.set_timer(control);
        }
        if let Some(cause) = control.stopped() {
            return Poll::Ready(Some((cause, None)));
        }
        let was_ending = self.is_ending();
        let before = self.up.bytes + self.down.bytes;
        let up = self.poll_up(cx);
        let down = self.poll_down(cx);
        if self.up.bytes + self.down.bytes != before {
            self.active = Instant::now();
            self.publish(control);
        }
        self.note_who_was_first();
        if down == Poll::Ready(Err(Broken)) {
            return Poll::Ready(Some((Cause::UpstreamLost, Some(Side::Upstream))));
        }
        if up == Poll::Ready(Err(Broken)) {
            return Poll::Ready(Some((Cause::ClientLost, Some(Side::Client))));
        }
        if self.is_over() {
            return Poll::Ready(None);
        }
        if self.is_ending() != was_ending || control.expiry() != self.expires_at {
            self.set_timer(control);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let (next, cause) = self.next_bound();
            if next <= Instant::now() {
                return Poll::Ready(Some((cause, None)));
            }
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.up.done {
            return Poll::Ready(Ok(()));
        }
        ready!(self.up.poll(cx, &mut self.client, &mut self.upstream))?;
        self.up.ended = true;
        if self.was_said() {
            return Poll::Ready(Ok(()));
        }
        self.up.poll_finish(cx, &mut self.upstream)
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.down.done {
            return Poll::Ready(Ok(()));
        }
        if !self.down.ended {
            ready!(self.down.poll(cx, &mut self.upstream, &mut self.client))?;
            self.down.ended = true;
            // An upstream that ends without a Close has died, as far as anybody can tell.
            if !self.up.follower.saw_close() && !self.down.writer_gone && self.down.can_insert() {
                let cause = Cause::UpstreamLost;
                self.down.kept.keep(&frame::close(cause.close_code(), cause.word(), None));
                self.told_client = true;
            }
        }
        if self.was_said() {
            return Poll::Ready(Ok(()));
        }
        self.down.poll_finish(cx, &mut self.client)
    }

    /// All was said and delivered, so that the sockets need not be ended one direction at a time: one side has ended, and
    /// the other has too, or has nothing to add because both have said Close (RFC 6455 section 5.5.1).
    fn was_said(&self) -> bool {
        let both_closed = self.up.follower.saw_close() && self.down.follower.saw_close();
        let ended = self.up.ended && self.down.ended || both_closed && (self.up.ended || self.down.ended);
        ended && self.up.kept.is_empty() && self.down.kept.is_empty()
    }

    fn set_timer(&mut self, control: &Control) {
        self.expires_at = control.expiry();
        let (next, _) = self.next_bound();
        self.timer.as_mut().reset(next);
    }

    /// Only this task writes these counters; others read them when they like.
    fn publish(&self, control: &Control) {
        control.up_bytes.store(self.up.bytes, Relaxed);
        control.down_bytes.store(self.down.bytes, Relaxed);
        control.up_messages.store(self.up.follower.messages(), Relaxed);
        control.down_messages.store(self.down.follower.messages(), Relaxed);
    }

    fn note_who_was_first(&mut self) {
        if self.first.is_some() {
            return;
        }
        self.first = if self.up.follower.saw_close() || (self.up.ended && !self.up.writer_gone) {
            Some(Cause::Client)
        } else if self.down.follower.saw_close()
            || (self.down.ended && !self.down.writer_gone && self.down.follower.is_lost())
        {
            Some(Cause::Upstream)
        } else if self.down.ended && !self.down.writer_gone {
            Some(Cause::UpstreamLost)
        } else {
            None
        };
    }

    /// Both directions are through, or nobody is left to read. An upstream that is gone is no reason to leave a client that
    /// still reads what came from it.
    fn is_over(&self) -> bool {
        if self.was_said() {
            return true;
        }
        let down = self.down.done || self.down.writer_gone;
        (self.up.done || self.up.writer_gone && self.down.writer_gone) && down
    }

    /// One side has ended, or both have said Close: what is left should not take long.
    fn is_ending(&self) -> bool {
        let gone = self.up.writer_gone || self.down.writer_gone;
        gone || self.up.ended || self.down.ended || (self.up.follower.saw_close() && self.down.follower.saw_close())
    }

    /// What is ordered stays what it is. A break, or silence, after a Close is the end of that conversation.
    fn cause_of(&self, cause: Cause) -> Cause {
        let (up, down) = (self.up.follower.saw_close(), self.down.follower.saw_close());
        let is_after_close = match cause {
            Cause::ClientLost | Cause::UpstreamLost => up || down,
            Cause::HalfCloseTimeout => up && down,
            _ => false,
        };
        if is_after_close { self.first.unwrap_or(cause) } else { cause }
    }

    fn next_bound(&self) -> (Instant, Cause) {
        let far = self.active + Duration::from_secs(100 * 365 * 24 * 60 * 60);
        let mut next = (far, Cause::IdleTimeout);
        let mut at_latest = |when: Instant, cause| {
            if when < next.0 {
                next = (when, cause);
            }
        };
        if let Some(idle) = self.bounds.idle {
            at_latest(self.active + idle, Cause::IdleTimeout);
        }
        if self.is_ending() {
            at_latest(self.active + self.bounds.half_close, Cause::HalfCloseTimeout);
        }
        if let Some(until) = self.bounds.until {
            at_latest(until, Cause::MaxLifetime);
        }
        if let Some(expires_at) = self.expires_at.date() {
            let left = expires_at.0.saturating_sub(UnixTime::now().0);
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(CLOCK_CHECK);
            at_latest(Instant::now() + left, Cause::Expired);
        }
        next
    }

    fn end(&self, control: &Control) -> End {
        self.publish(control);
        let cause = self.first.unwrap_or(Cause::Client);
        let code = match cause {
            Cause::Client => self.up.follower.close_code(),
            Cause::UpstreamLost => self.told_client.then(|| cause.close_code()),
            _ => self.down.follower.close_code(),
        };
        End { cause, code }
    }
}
