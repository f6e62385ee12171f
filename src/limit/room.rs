//! How many connections there are, and how many there may be: descriptors and memory are finite.

use tracing::warn;

use super::space::Space;
use crate::cap::Cap;
use crate::sync::Notify;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Places for the connections of the data port, tunnels included.
#[derive(Debug)]
pub struct Room {
    open: AtomicUsize,
    most: AtomicUsize,
    space: Space,
    left: Notify,
}

impl Room {
    pub fn within(space: Space) -> Self {
        let most = AtomicUsize::new(space.files.min(space.memory));
        Self { open: AtomicUsize::new(0), most, space, left: Notify::new() }
    }

    /// Takes over how many tunnels are wanted, and says for how many connections there is room then. What memory is sure
    /// to be enough for is an estimate of the worst: whoever asks for more in so many words gets it.
    pub fn fit(&self, wanted: Option<u32>) -> usize {
        let Space { files, memory } = self.space;
        let is_wanted = wanted.is_some_and(|wanted| wanted as usize > memory);
        let most = if is_wanted { files } else { files.min(memory) };
        if is_wanted {
            warn!(
                wanted,
                sure = memory,
                "limits.max_connections allows more than there is memory for if all of them need it"
            );
        }
        if self.most.swap(most, Ordering::SeqCst) < most {
            self.left.notify_waiters();
        }
        most
    }

    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// Which limit of the system it is.
    pub fn bounded_by(&self) -> Cap {
        if self.most() < self.space.files { Cap::Memory } else { Cap::OpenFiles }
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn has_place(&self) -> bool {
        self.open.load(Ordering::SeqCst) < self.most()
    }

    /// Counts an accepted connection, until it says [`Room::leave`].
    pub fn enter(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub fn leave(&self) {
        if self.open.fetch_sub(1, Ordering::SeqCst) >= self.most() {
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
