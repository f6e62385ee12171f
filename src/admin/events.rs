//! Server-sent events (HTML standard, section 9.2): the status once a second, for as long as somebody looks.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::status;
use crate::proxy::Proxy;
use crate::reload::Status;

/// Whoever looks for longer asks again.
pub const LONGEST: Duration = Duration::from_secs(600);

/// A body of events. Made piece by piece as the client takes it: nothing is computed for one who does not.
pub struct Events {
    proxy: Arc<Proxy>,
    reload: Arc<Mutex<Status>>,
    ticks: Interval,
    until: Instant,
    was_last: bool,
    _place: OwnedSemaphorePermit,
}

impl Events {
    pub fn new(proxy: Arc<Proxy>, reload: Arc<Mutex<Status>>, place: OwnedSemaphorePermit) -> Self {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { proxy, reload, ticks, until: Instant::now() + LONGEST, was_last: false, _place: place }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let events = self.get_mut();
        if events.was_last {
            return Poll::Ready(None);
        }
        ready!(events.ticks.poll_tick(cx));
        // Who looks is told that it is draining, and not kept.
        events.was_last = events.proxy.tunnels.is_draining() || Instant::now() >= events.until;
        let reload = events.reload.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let event = format!("data: {}\n\n", status::now(&events.proxy, &reload));
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}
