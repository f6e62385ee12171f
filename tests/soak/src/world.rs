//! What is true at present, and who is told when it changes: keys, routes, upstreams, tunnels.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::clock;
use crate::deflate::Deflate;
use crate::stream::{Close, Inflated};

/// A moment that may come, once. 0: not yet.
#[derive(Default, Debug)]
pub(crate) struct Moment(AtomicU64);

impl Moment {
    pub(crate) fn comes(&self) {
        let _ = self.0.compare_exchange(0, clock::now(), SeqCst, SeqCst);
    }

    pub(crate) fn when(&self) -> Option<u64> {
        Some(self.0.load(SeqCst)).filter(|when| *when > 0)
    }

    pub(crate) fn has_come(&self) -> bool {
        self.when().is_some()
    }
}

/// A right that is taken away.
#[derive(Default, Debug)]
pub(crate) struct Loss {
    /// Just before the file was saved.
    pub(crate) begun: Moment,
    /// The log says that the file is in force.
    pub(crate) done: Moment,
}

/// Ways that a tunnel takes. The last one comes and goes.
pub(crate) const ROUTES: [&str; 4] = ["plain", "watched", "short", "guest"];
/// A tunnel on it lives so long.
pub(crate) const SHORT_LIFE: &str = "4s";

#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    /// The file that it stands in was loaded.
    pub(crate) in_force: Moment,
    /// It is removed from the file, or turned off in it.
    pub(crate) revoked: Loss,
    /// It opens the route `plain` only.
    pub(crate) narrowed: Loss,
}

/// A route that is there, or was: it comes back as another.
#[derive(Default, Debug)]
pub(crate) struct Guest {
    pub(crate) removed: Loss,
}

/// One process of the proxy.
#[derive(Default, Debug)]
pub(crate) struct Life {
    /// Just before it was told to stop.
    pub(crate) told_to_stop: Moment,
}

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// Each number is a life of its own.
    pub(crate) life: watch::Sender<u64>,
    pub(crate) is_up: AtomicBool,
    pub(crate) last_up: AtomicU64,
}

/// How a tunnel is to end, if nothing comes in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    ClientCloses,
    UpstreamCloses,
    /// Without a Close, perhaps in the middle of a frame. `true`: by a reset.
    ClientGoes(bool),
    UpstreamGoes(bool),
}

impl Plan {
    pub(crate) fn is_of_client(self) -> bool {
        matches!(self, Self::ClientCloses | Self::ClientGoes(_))
    }
}

/// What one end knows at its own end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Side {
    /// All that was written, and the whole messages in it.
    pub(crate) sent: u64,
    pub(crate) sent_messages: u64,
    pub(crate) received: u64,
    pub(crate) received_messages: u64,
    /// Pings of the proxy.
    pub(crate) pings: u64,
    pub(crate) inflated: Inflated,
    pub(crate) close: Option<Close>,
    /// The connection ended in the middle of a frame.
    pub(crate) inside: bool,
    /// What must not be.
    pub(crate) wrong: Option<String>,
    pub(crate) at: u64,
}

pub(crate) struct Tunnel {
    pub(crate) number: u64,
    pub(crate) seed: u64,
    pub(crate) route: usize,
    pub(crate) upstream: usize,
    pub(crate) key: Arc<Key>,
    pub(crate) guest: Arc<Guest>,
    /// Of the process that it goes to, or of the one before that.
    pub(crate) life: Arc<Life>,
    pub(crate) deflate: Deflate,
    pub(crate) plan: Plan,
    pub(crate) plan_at: u64,
    /// When the rules were looked at for it.
    pub(crate) begin: u64,
    /// The plan was carried out: just before.
    pub(crate) planned: Moment,
    /// Its upstream was killed.
    pub(crate) killed: Moment,
    pub(crate) client: Mutex<Option<Side>>,
    pub(crate) server: Mutex<Option<Side>>,
}

pub(crate) fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct World {
    pub(crate) proxy: SocketAddr,
    /// Of the last process that has said that it listens.
    pub(crate) life: watch::Sender<Arc<Life>>,
    pub(crate) keys: Mutex<Vec<Arc<Key>>>,
    pub(crate) guest: Mutex<Arc<Guest>>,
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) tunnels: Mutex<HashMap<u64, Arc<Tunnel>>>,
    /// No more tunnels, and those that are there end as planned, at once.
    pub(crate) finish: watch::Sender<bool>,
    pub(crate) total: Total,
    /// What must not be, the first hundred.
    pub(crate) faults: Mutex<Vec<String>>,
    pub(crate) fault_count: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Total {
    pub(crate) opened: AtomicU64,
    /// Tunnels on which messages are deflated by themselves, and those where they refer to the ones before.
    pub(crate) alone: AtomicU64,
    pub(crate) linked: AtomicU64,
    pub(crate) now: AtomicU64,
    pub(crate) peak: AtomicU64,
    pub(crate) refused: Mutex<std::collections::BTreeMap<String, u64>>,
    pub(crate) ends: Mutex<std::collections::BTreeMap<String, u64>>,
    pub(crate) events: Mutex<std::collections::BTreeMap<&'static str, u64>>,
    pub(crate) bytes: [AtomicU64; 2],
    pub(crate) received: [AtomicU64; 2],
    pub(crate) messages: [AtomicU64; 2],
    /// Deflated messages that have come, their payload, and what it inflated to.
    pub(crate) inflated: [AtomicU64; 3],
    pub(crate) complete: AtomicU64,
    pub(crate) pings: AtomicU64,
    /// The proxy's word did not reach the client: in the middle of a frame, or of a full socket.
    pub(crate) no_word: AtomicU64,
    pub(crate) drains: AtomicU64,
}

impl World {
    pub(crate) fn fault(&self, what: String) {
        if self.fault_count.fetch_add(1, SeqCst) < 100 {
            eprintln!("FAULT {what}");
            lock(&self.faults).push(what);
        }
    }

    pub(crate) fn happened(&self, what: &'static str) {
        *lock(&self.total.events).entry(what).or_default() += 1;
    }

    pub(crate) fn is_finishing(&self) -> bool {
        *self.finish.borrow()
    }
}
