//! One exchange, driven: the client's connection and the upstream's in one task, until the client has its answer, somebody
//! is gone, or it has to end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::{client, server};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;

use super::body::{Fault, Progress, Up};
use super::once::Once;
use super::wire::{FromClient, ToUpstream};
use crate::clock::UnixTime;
use crate::denial::{Denial, Reason};
use crate::end::Cause;
use crate::relay::Bounds;
use crate::tunnels::Seat;
use crate::upstream::{self, Patience};

/// A date is looked at again after this, because clocks are set.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

type Server = server::conn::http1::Connection<TokioIo<FromClient>, Once>;
type Client = client::conn::http1::Connection<TokioIo<ToUpstream>, Up>;

/// The two connections of one exchange, and how far it has come.
pub struct Both<'f> {
    seat: &'f Seat,
    bounds: &'f Bounds,
    patience: Patience,
    server: Server,
    upstream: Option<Client>,
    progress: &'f Progress,
    is_heard: bool,
    /// What was seen of it when bytes last moved, and when the request's body last did.
    seen: (usize, u64),
    active: Instant,
    sent: Instant,
    timer: Pin<Box<Sleep>>,
}

/// What an exchange may wait for too long.
#[derive(Debug, Clone, Copy)]
enum Bound {
    RequestBody,
    Answer,
    Idle,
    Stall,
    Lifetime,
    Expiry,
}

impl<'f> Both<'f> {
    pub fn new(
        (seat, patience, bounds): (&'f Seat, Patience, &'f Bounds),
        server: Server,
        upstream: Client,
        progress: &'f Progress,
    ) -> Self {
        let now = Instant::now();
        Self {
            seat,
            bounds,
            patience,
            server,
            upstream: Some(upstream),
            progress,
            is_heard: false,
            seen: (0, 0),
            active: now,
            sent: now,
            timer: Box::pin(sleep_until(now)),
        }
    }

    /// Drives both until the client has its answer, somebody is gone, or it has to end. How it ended, or why there is no
    /// answer.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Cause, Denial>> {
        let control = &self.seat.live().control;
        if !self.is_heard {
            // Before the orders are looked at, so that none comes in between.
            control.wake_by(cx.waker());
            self.is_heard = true;
        }
        if let Some(cause) = control.stopped() {
            return Poll::Ready(self.stopped(cause));
        }
        if let Some(upstream) = &mut self.upstream
            && let Poll::Ready(ended) = Pin::new(upstream).poll(cx)
        {
            if let Err(error) = ended {
                debug!(%error, "the connection to the upstream ended");
            }
            self.upstream = None;
        }
        let mut served = Pin::new(&mut self.server).poll(cx);
        if self.upstream.is_some() && self.progress.with(|state| state.down_done) {
            // It has answered, and does not need what may still be missing of the request.
            self.upstream = None;
            if served.is_pending() {
                served = Pin::new(&mut self.server).poll(cx);
            }
        }
        self.note_progress();
        if let Poll::Ready(served) = served {
            return Poll::Ready(self.verdict(served.is_ok()));
        }
        loop {
            // Looked at here and not left to the timer alone: it does not fire on a task that has had its turn.
            let (next, bound) = self.next_bound();
            if next <= Instant::now() {
                return Poll::Ready(self.overdue(bound));
            }
            if next < self.timer.deadline() {
                self.timer.as_mut().reset(next);
            }
            ready!(self.timer.as_mut().poll(cx));
            self.timer.as_mut().reset(next);
        }
    }

    /// For what is left on the client's side.
    pub fn into_server(self) -> Server {
        self.server
    }

    fn note_progress(&mut self) {
        use std::sync::atomic::Ordering::Relaxed;
        let (moved, up, down) = self.progress.with(|state| (state.moved, state.up, state.down));
        if (moved, up) == self.seen {
            return;
        }
        self.active = Instant::now();
        if up != self.seen.1 {
            self.sent = self.active;
        }
        self.seen = (moved, up);
        let control = &self.seat.live().control;
        control.up_bytes.store(up, Relaxed);
        control.down_bytes.store(down, Relaxed);
    }

    fn is_begun(&self) -> bool {
        self.progress.with(|state| state.status.is_some())
    }

    /// hyper is through with the client, well or not.
    fn verdict(&self, well: bool) -> Result<Cause, Denial> {
        self.progress.with(|state| {
            let is_begun = state.status.is_some();
            match state.fault {
                _ if well && is_begun => Ok(Cause::Complete),
                Some(Fault::TooLarge) if is_begun => Ok(Cause::BodyTooLarge),
                Some(Fault::TooLarge) => Err(Denial::too_large()),
                Some(Fault::Malformed) if !is_begun => Err(Denial::bad_handshake("the request body is malformed")),
                Some(Fault::ClientLost | Fault::Malformed) => Ok(Cause::ClientLost),
                Some(Fault::UpstreamLost) => Ok(Cause::UpstreamLost),
                None => state.denial.take().map_or(Ok(Cause::ClientLost), Err),
            }
        })
    }

    /// Somebody has ended it. Before the answer was begun that can still be said.
    fn stopped(&self, cause: Cause) -> Result<Cause, Denial> {
        if self.is_begun() { Ok(cause) } else { self.seat.confirm().map(|_| cause) }
    }

    fn overdue(&self, bound: Bound) -> Result<Cause, Denial> {
        let late = || Err(upstream::late("no answer in time"));
        match bound {
            Bound::RequestBody => Err(Denial::new(Reason::RequestTimeout, "the request body did not arrive in time")),
            Bound::Answer => late(),
            Bound::Idle => Ok(Cause::IdleTimeout),
            Bound::Stall => Ok(Cause::WriteStall),
            Bound::Lifetime if self.is_begun() => Ok(Cause::MaxLifetime),
            Bound::Lifetime => late(),
            Bound::Expiry => {
                self.seat.live().control.stop(Cause::Expired);
                self.stopped(Cause::Expired)
            }
        }
    }

    fn next_bound(&self) -> (Instant, Bound) {
        let (is_begun, waits_for_client, stuck) =
            self.progress.with(|state| (state.status.is_some(), state.waits_for_client, state.stuck));
        let far = self.active + Duration::from_secs(100 * 365 * 24 * 60 * 60);
        let mut next = (far, Bound::Idle);
        let mut at_latest = |when: Instant, bound| {
            if when < next.0 {
                next = (when, bound);
            }
        };
        match self.bounds.idle {
            Some(idle) if is_begun => at_latest(self.active + idle, Bound::Idle),
            Some(idle) if waits_for_client => at_latest(self.sent + idle, Bound::RequestBody),
            _ => {}
        }
        if let (Some(since), Some(limit), true) = (stuck, self.bounds.write_stall, is_begun) {
            at_latest(since + limit, Bound::Stall);
        }
        if !is_begun && !waits_for_client {
            at_latest(self.sent + self.patience.handshake, Bound::Answer);
        }
        if let Some(until) = self.bounds.until {
            at_latest(until, Bound::Lifetime);
        }
        if let Some(expires_at) = self.seat.live().control.expires_at() {
            let left = expires_at.0.saturating_sub(UnixTime::now().0);
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
            at_latest(Instant::now() + left.min(CLOCK_CHECK), Bound::Expiry);
        }
        next
    }
}
