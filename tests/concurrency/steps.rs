//! What shuttle does not have.

use std::sync::Arc;

use shuttle::thread::yield_now;
use tokio::sync::futures::Notified;

/// Rules that are swapped in one step, before and after which others may take theirs.
pub struct ArcSwap<T>(arc_swap::ArcSwap<T>);

impl<T> ArcSwap<T> {
    pub fn from_pointee(value: T) -> Self {
        Self(arc_swap::ArcSwap::from_pointee(value))
    }

    pub fn load(&self) -> arc_swap::Guard<Arc<T>> {
        yield_now();
        let loaded = self.0.load();
        yield_now();
        loaded
    }

    pub fn load_full(&self) -> Arc<T> {
        arc_swap::Guard::into_inner(self.load())
    }

    pub fn swap(&self, new: Arc<T>) -> Arc<T> {
        yield_now();
        let old = self.0.swap(new);
        yield_now();
        old
    }
}

/// A place to wait at. Who comes to it, and who calls, may be overtaken on the way.
#[derive(Debug, Default)]
pub struct Notify(tokio::sync::Notify);

impl Notify {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn notified(&self) -> Notified<'_> {
        yield_now();
        self.0.notified()
    }

    pub fn notify_waiters(&self) {
        yield_now();
        self.0.notify_waiters();
    }
}
