//! Where a connection is served: by the worker that accepted it, or by one that has less to do.

use std::future::poll_fn;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::connection::Life;
use crate::limit::Room;
use crate::proxy::Proxy;

/// Connections that were handed to a worker and not taken up by it yet. Beyond that, whoever accepts keeps them.
const QUEUE: usize = 256;
/// Connections that a worker may have more than the one with the fewest, besides a quarter of those, before it hands on.
const SLACK: usize = 2;

/// One worker, as the others see it.
pub struct Desk {
    proxy: Arc<Proxy>,
    /// Connections that it serves.
    open: AtomicUsize,
    queue: mpsc::Sender<Arrival>,
}

/// A worker's own desk, and those of all.
pub struct Desks {
    own: Arc<Desk>,
    all: Arc<[Arc<Desk>]>,
}

/// An accepted connection on its way to its worker.
pub struct Arrival {
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
}

/// A connection's place among those of its worker, and of the process.
struct Place(Arc<Desk>);

/// The desks of so many workers, and what arrives there from the others.
pub fn desks(count: usize, proxy: &Arc<Proxy>) -> Vec<(Desks, mpsc::Receiver<Arrival>)> {
    let desk = |_| {
        let (queue, arrivals) = mpsc::channel(QUEUE);
        (Arc::new(Desk { proxy: proxy.clone(), open: AtomicUsize::new(0), queue }), arrivals)
    };
    let (all, arrivals): (Vec<_>, Vec<_>) = (0..count).map(desk).unzip();
    let shared: Arc<[Arc<Desk>]> = all.clone().into();
    let desks = all.into_iter().map(|own| Desks { own, all: shared.clone() });
    desks.zip(arrivals).collect()
}

impl Desks {
    pub fn proxy(&self) -> &Proxy {
        &self.own.proxy
    }

    pub fn room(&self) -> &Room {
        self.own.proxy.counts.room()
    }

    /// Serves a connection, here or where there is less to do.
    pub fn welcome(&self, stream: TcpStream, address: SocketAddr) {
        let desk = self.whose_turn();
        let arrival = Arrival { stream, address, place: Place::at(desk) };
        if Arc::ptr_eq(desk, &self.own) {
            arrival.begin();
        } else if let Err(TrySendError::Full(arrival) | TrySendError::Closed(arrival)) = desk.queue.try_send(arrival) {
            arrival.begin();
        }
    }

    /// Whoever has the fewest; ourselves if we have hardly more, because to hand on wakes another thread.
    fn whose_turn(&self) -> &Arc<Desk> {
        let own = self.own.open.load(Relaxed);
        let least = self.all.iter().map(|desk| (desk.open.load(Relaxed), desk)).min_by_key(|(open, _)| *open);
        match least {
            Some((least, desk)) if own > least + SLACK + least / 4 => desk,
            _ => &self.own,
        }
    }
}

impl Arrival {
    /// Starts the connection's task on the worker that this is called on.
    pub fn begin(self) {
        let Self { stream, address, place } = self;
        let mut life = Life::begin(stream, address, &place.0.proxy);
        #[expect(clippy::disallowed_methods, reason = "counted by its place, which drains wait for")]
        tokio::spawn(poll_fn(move |cx| life.poll(cx, &place.0.proxy)));
    }
}

impl Place {
    fn at(desk: &Arc<Desk>) -> Self {
        desk.open.fetch_add(1, Relaxed);
        desk.proxy.counts.room().enter();
        Self(desk.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.proxy.counts.room().leave();
    }
}
