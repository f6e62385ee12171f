//! Where a connection is served: by the worker that accepted it, or by one that has less to do.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::connection;
use crate::limit::{Connection, Room};
use crate::proxy::Proxy;

/// Connections that were handed to a worker and not taken up by it yet. Beyond that, whoever accepts keeps them.
const QUEUE: usize = 256;
/// Connections that a worker may have more than the one with the fewest, besides a quarter of those, before it hands on.
const SLACK: usize = 2;

/// One worker, as the others see it.
pub struct Desk {
    proxy: Arc<Proxy>,
    /// Itself included.
    all: Arc<Vec<Load>>,
    index: usize,
}

struct Load {
    open: AtomicUsize,
    queue: mpsc::Sender<Arrival>,
}

/// An accepted connection on its way to its worker.
pub struct Arrival {
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
}

/// A connection's place among those of its worker, and of the process.
struct Place {
    all: Arc<Vec<Load>>,
    index: usize,
    _counted: Connection,
}

/// A desk for each of so many workers, and what arrives there from the others.
pub fn desks(count: usize, proxy: &Arc<Proxy>) -> Vec<(Arc<Desk>, mpsc::Receiver<Arrival>)> {
    let (queues, arrivals): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(QUEUE)).unzip();
    let all: Vec<Load> = queues.into_iter().map(|queue| Load { open: AtomicUsize::new(0), queue }).collect();
    let all = Arc::new(all);
    let desk = |index| Arc::new(Desk { proxy: proxy.clone(), all: all.clone(), index });
    arrivals.into_iter().enumerate().map(|(index, arrivals)| (desk(index), arrivals)).collect()
}

impl Desk {
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    pub fn room(&self) -> &Room {
        self.proxy.counts.room()
    }

    /// Serves a connection, here or where there is less to do.
    pub fn welcome(&self, stream: TcpStream, address: SocketAddr) {
        let index = self.whose_turn();
        let place = Place::take(&self.all, index, self.proxy.counts.connection());
        let arrival = Arrival { stream, address, place };
        if index == self.index {
            self.begin(arrival);
        } else if let Err(TrySendError::Full(arrival) | TrySendError::Closed(arrival)) =
            self.all[index].queue.try_send(arrival)
        {
            self.begin(arrival);
        }
    }

    /// Whoever has the fewest; ourselves if we have hardly more, because to hand on wakes another thread.
    fn whose_turn(&self) -> usize {
        let open = |index: &usize| self.all[*index].open.load(Relaxed);
        let least = (0..self.all.len()).min_by_key(open).unwrap_or(self.index);
        if open(&self.index) > open(&least) + SLACK + open(&least) / 4 { least } else { self.index }
    }

    pub fn begin(&self, arrival: Arrival) {
        let Arrival { stream, address, place } = arrival;
        let proxy = self.proxy.clone();
        // What the handshake needs is on the heap, so that it is gone when the tunnel stands: the task is as large as the
        // largest thing that it holds across a wait, for as long as it lives.
        let arriving = Box::pin(connection::arrive(stream, address, proxy.clone()));
        #[expect(clippy::disallowed_methods, reason = "counted by its place, which drains wait for")]
        tokio::spawn(async move {
            if let Some(mut tunnel) = arriving.await {
                tunnel.relay(&proxy).await;
            }
            drop(place);
        });
    }
}

impl Place {
    fn take(all: &Arc<Vec<Load>>, index: usize, counted: Connection) -> Self {
        all[index].open.fetch_add(1, Relaxed);
        Self { all: all.clone(), index, _counted: counted }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all[self.index].open.fetch_sub(1, Relaxed);
    }
}
