//! What others may ask of a tunnel while it runs, and what it lets them see.

use std::sync::PoisonError;
use std::task::Waker;

use crate::clock::UnixTime;
use crate::end::Cause;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::SeqCst};

/// The reins of one tunnel, shared between its task and whoever may end it.
#[derive(Debug)]
pub struct Control {
    stop: AtomicU8,
    expires_at: AtomicI64,
    waker: Mutex<Option<Waker>>,
    pub up_bytes: AtomicU64,
    pub down_bytes: AtomicU64,
    pub up_messages: AtomicU64,
    pub down_messages: AtomicU64,
}

impl Control {
    pub fn new(expires_at: Option<UnixTime>) -> Self {
        Self {
            stop: AtomicU8::new(0),
            expires_at: AtomicI64::new(ExpiryDate::of(expires_at).0),
            waker: Mutex::new(None),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            up_messages: AtomicU64::new(0),
            down_messages: AtomicU64::new(0),
        }
    }

    /// Asks the tunnel to end. The first cause stays.
    pub fn stop(&self, cause: Cause) {
        if self.stop.compare_exchange(0, cause as u8, SeqCst, SeqCst).is_ok() {
            self.wake();
        }
    }

    pub fn stopped(&self) -> Option<Cause> {
        Cause::from_byte(self.stop.load(SeqCst))
    }

    /// Moves the date at which the tunnel's right ends.
    pub fn expire_at(&self, when: Option<UnixTime>) {
        let date = ExpiryDate::of(when).0;
        if self.expires_at.swap(date, SeqCst) != date {
            self.wake();
        }
    }

    pub fn expires_at(&self) -> Option<UnixTime> {
        self.expiry().date()
    }

    pub(super) fn expiry(&self) -> ExpiryDate {
        ExpiryDate(self.expires_at.load(SeqCst))
    }

    /// Whom an order wakes. It has to be left here before the orders are looked at.
    pub fn wake_by(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
    }
}

/// A date, or never, in eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExpiryDate(i64);

impl ExpiryDate {
    pub(super) const NEVER: Self = Self(i64::MAX);

    fn of(when: Option<UnixTime>) -> Self {
        when.map_or(Self::NEVER, |when| Self(when.0))
    }

    pub(super) fn date(self) -> Option<UnixTime> {
        (self != Self::NEVER).then_some(UnixTime(self.0))
    }
}
