//! How many connections there are, and how many there may be: descriptors are finite.

use crate::sync::Notify;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Places for the connections of the data port, tunnels included.
#[derive(Debug)]
pub struct Room {
    open: AtomicUsize,
    most: usize,
    left: Notify,
}

impl Room {
    pub fn of(most: usize) -> Self {
        Self { open: AtomicUsize::new(0), most, left: Notify::new() }
    }

    pub fn most(&self) -> usize {
        self.most
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn has_place(&self) -> bool {
        self.open.load(Ordering::SeqCst) < self.most
    }

    /// Counts an accepted connection, until it says [`Room::leave`].
    pub fn enter(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub fn leave(&self) {
        if self.open.fetch_sub(1, Ordering::SeqCst) >= self.most {
            self.left.notify_waiters();
        }
    }

    pub async fn wait_for_place(&self) {
        while !self.has_place() {
            let left = self.left.notified();
            // Who leaves between these two lines has left a note.
            if !self.has_place() {
                left.await;
            }
        }
    }
}
