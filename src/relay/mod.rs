//! Bytes both ways between two streams: to each one's own end, with bounded memory, and a word at the end.
//!
//! One future for both directions and no task of its own. Each half reads into a scratch buffer that all tunnels of a
//! thread share, writes at once, and keeps only what the writer refused: an idle tunnel owns no buffer. Frame headers are
//! followed as they pass, so that a Close of ours stands between two frames or nowhere. More than that is done only where
//! a route asks for it, by a guard that other tunnels do not have.

mod buffers;
mod closing;
mod control;
mod guard;
mod half;
mod terms;
mod tick;

use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::time::{Instant, Sleep, sleep_until};

pub use self::buffers::{MEMORY_OF_EACH, held, memory_of_all};
use self::closing::{Closing, Order};
pub use self::control::Control;
use self::control::ExpiryDate;
use self::guard::Guard;
pub use self::guard::{Pinging, Watch};
use self::half::{Broken, Half, Side};
pub use self::terms::Bounds;
use self::terms::Terms;
use self::tick::{earlier, next_tick, refilled_at, tick};
use crate::clock::UnixTime;
use crate::end::{Breach, Cause, Direction, End};
use crate::frame::{self, Follower};
use crate::write_last::WriteLast;

/// A date is looked at again after this, because clocks are set.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// What each side had sent before the relay began, and whether extensions were agreed on.
#[derive(Debug, Default)]
pub struct Start {
    pub from_client: Vec<u8>,
    pub from_upstream: Vec<u8>,
    pub extensions: bool,
    /// `None`: nothing but its bounds.
    pub watch: Option<Box<Watch>>,
}

/// Two streams, and how far each direction has come.
pub struct Relay<D, U> {
    client: D,
    upstream: U,
    up: Half,
    down: Half,
    bounds: Terms,
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
    D: AsyncRead + WriteLast + Unpin,
    U: AsyncRead + WriteLast + Unpin,
{
    pub fn new(client: D, upstream: U, start: &Start, bounds: &Bounds) -> Self {
        let now = Instant::now();
        let (watch_up, watch_down) = start.watch.as_deref().map(Guard::both).unwrap_or_default();
        let is_strict = start.watch.as_ref().is_some_and(|watch| watch.strict);
        let from_client = Follower::from_client(start.extensions).strict(is_strict);
        let from_upstream = Follower::from_upstream(start.extensions).strict(is_strict);
        Self {
            client,
            upstream,
            up: Half::new(from_client, watch_up, &start.from_client),
            down: Half::new(from_upstream, watch_down, &start.from_upstream),
            bounds: Terms::of(bounds),
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
            let Some(order) = ready!(self.poll_relay(cx, control)) else {
                return Poll::Ready(self.end(control));
            };
            let order = Order { cause: self.cause_of(order.cause), ..order };
            let closing = Closing::new((&mut self.up, &mut self.down), order);
            self.timer.as_mut().reset(closing.boundary_by);
            self.closing = Some(Box::new(closing));
        }
        let (sides, halves) = ((&mut self.client, &mut self.upstream), (&mut self.up, &mut self.down));
        let Some(closing) = &mut self.closing else { return Poll::Pending };
        ready!(closing.poll(cx, sides, halves, self.timer.as_mut()));
        let code = if self.told_client { Some(closing.cause.close_code()) } else { closing.code() };
        let end = End { cause: closing.cause, code, breach: closing.breach };
        // Best effort: whoever still listens learns of the end by this or by the close that follows.
        let _ = Pin::new(&mut self.client).poll_shutdown(cx);
        let _ = Pin::new(&mut self.upstream).poll_shutdown(cx);
        self.publish(control);
        Poll::Ready(end)
    }

    /// `None`: both directions came to their own end. Else why the tunnel is to be closed.
    fn poll_relay(&mut self, cx: &mut Context<'_>, control: &Control) -> Poll<Option<Order>> {
        if !self.is_heard {
            // Before the orders are looked at, so that none comes in between.
            control.wake_by(cx.waker());
            self.is_heard = true;
            self.set_timer(control);
        }
        if let Some(cause) = control.stopped() {
            return Poll::Ready(Some(cause.into()));
        }
        let was_ending = self.is_ending();
        let before = self.moved();
        let up = self.poll_up(cx);
        let down = self.poll_down(cx);
        if self.moved() != before {
            self.active = Instant::now();
            self.publish(control);
        }
        self.note_who_was_first();
        if let Poll::Ready(Err(broken)) = down {
            return Poll::Ready(Some(Order::of(broken, Side::Upstream)));
        }
        if let Poll::Ready(Err(broken)) = up {
            return Poll::Ready(Some(Order::of(broken, Side::Client)));
        }
        if self.is_over() {
            return Poll::Ready(None);
        }
        if self.is_ending() != was_ending || control.expiry() != self.expires_at {
            self.set_timer(control);
        } else if let Some(sooner) = earlier(refilled_at(&self.up, &self.down), self.stall().map(|(at, _)| at))
            && sooner < self.timer.deadline()
        {
            self.timer.as_mut().reset(sooner);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if tick(cx, (&mut self.up, &mut self.down), &mut self.client, now) {
                return Poll::Ready(Some(Cause::PingTimeout.into()));
            }
            let (next, cause) = self.next_bound();
            // Of a date it says that it is now, by a clock that has moved on since `now`.
            if next <= Instant::now() {
                let breach = self.stall().filter(|_| cause == Cause::WriteStall).map(|(_, breach)| breach);
                return Poll::Ready(Some(Order { breach, ..cause.into() }));
            }
            let next = next_tick(&self.up, &self.down, now).map_or(next, |tick| tick.min(next));
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.up.done {
            return Poll::Ready(Ok(()));
        }
        ready!(self.up.poll(cx, &mut self.client, &mut self.upstream, false))?;
        self.up.ended = true;
        self.up.release();
        if self.was_said() {
            return Poll::Ready(Ok(()));
        }
        self.up.poll_finish(cx, &mut self.upstream)
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.down.done && self.down.ended {
            return Poll::Ready(Ok(()));
        }
        if !self.down.ended {
            let client_closed = self.up.follower.saw_close();
            let polled = self.down.poll(cx, &mut self.upstream, &mut self.client, client_closed);
            // Both have said Close. To end the connection is the server's part, which is ours here (RFC 6455 section 7.1.1);
            // if the upstream has ended it too, all of it is over in this turn.
            if polled.is_pending() && client_closed && self.down.follower.saw_close() && self.down.kept.is_empty() {
                let _ = self.down.poll_finish(cx, &mut self.client);
            }
            ready!(polled)?;
            self.down.ended = true;
            // An upstream that ends without a Close has died, as far as anybody can tell.
            let can_close = self.down.is_between() && self.down.may_close();
            if !self.up.follower.saw_close() && !self.down.writer_gone && can_close {
                let cause = Cause::UpstreamLost;
                self.down.kept.keep(&frame::close(cause.close_code(), cause.word(), None));
                self.told_client = true;
            } else {
                self.down.release();
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

    /// What was read and what was written, in both directions together.
    fn moved(&self) -> (u64, u64) {
        (self.up.bytes + self.down.bytes, self.up.kept.len() + self.down.kept.len())
    }

    /// When a side has taken nothing for too long, and in which direction, as far as can be said now.
    fn stall(&self) -> Option<(Instant, Breach)> {
        if self.up.kept.is_empty() && self.down.kept.is_empty() {
            return None;
        }
        let limit = self.bounds.write_stall.length()?;
        let stuck = |half: &Half, direction| {
            half.kept.stuck_since().map(|since| (since + limit, Breach { direction, fault: None }))
        };
        match (stuck(&self.up, Direction::Up), stuck(&self.down, Direction::Down)) {
            (Some(up), Some(down)) => Some(if up.0 <= down.0 { up } else { down }),
            (one, None) | (None, one) => one,
        }
    }

    fn set_timer(&mut self, control: &Control) {
        self.expires_at = control.expiry();
        let (next, _) = self.next_bound();
        let tick = next_tick(&self.up, &self.down, Instant::now());
        self.timer.as_mut().reset(tick.map_or(next, |tick| tick.min(next)));
    }

    /// Only this task writes these counters; others read them when they like.
    fn publish(&self, control: &Control) {
        control.up_bytes.store(self.up.bytes, Relaxed);
        control.down_bytes.store(self.down.bytes, Relaxed);
        control.up_messages.store(self.up.messages(), Relaxed);
        control.down_messages.store(self.down.messages(), Relaxed);
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

    /// What is ordered stays what it is, unless the client was told something else before: that was the end, whatever took
    /// away the rest. A break, or silence, after a Close is the end of that conversation.
    fn cause_of(&self, cause: Cause) -> Cause {
        if self.told_client {
            return Cause::UpstreamLost;
        }
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
        if let Some(idle) = self.bounds.idle.length() {
            at_latest(self.active + idle, Cause::IdleTimeout);
        }
        if let Some(half_close) = self.bounds.half_close.length().filter(|_| self.is_ending()) {
            at_latest(self.active + half_close, Cause::HalfCloseTimeout);
        }
        if let Some((at, _)) = self.stall() {
            at_latest(at, Cause::WriteStall);
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
        End::new(cause, code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of these there are as many as there are idle connections: what only some routes ask for is behind a pointer.
    #[test]
    fn an_idle_tunnel_is_small() {
        assert!(
            size_of::<Half>() <= 72 && size_of::<Relay<(), ()>>() <= 256,
            "{} {}",
            size_of::<Half>(),
            size_of::<Relay<(), ()>>()
        );
        assert!(Guard::both(&Watch::default()).0.is_none());
    }
}
