//! One thread for each core, each with a runtime of its own: a tunnel is accepted, served and closed on one thread, so that
//! its bytes meet no lock and wake no other core. What such threads lack, a scheduler that moves work between them, is
//! done once for each connection: a worker with more of them than the others hands new ones on.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::limit::{Connection, Room};
use crate::proxy::Proxy;
use crate::{connection, listener, log};

/// Connections that were handed to a worker and not taken up by it yet. Beyond that, whoever accepts keeps them.
const QUEUE: usize = 256;

/// Connections that a worker may have more than the one with the fewest, besides a quarter of those, before it hands on.
const SLACK: usize = 2;

/// The threads of this process that serve connections.
pub struct Workers {
    stage: watch::Sender<Stage>,
    /// Closes when nobody accepts any more.
    accepting: mpsc::Receiver<Infallible>,
    /// Has something when a worker has ended.
    ended: mpsc::Receiver<()>,
    threads: Vec<JoinHandle<()>>,
}

/// What workers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serve,
    /// Nobody new.
    Finish,
    Stop,
}

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
struct Arrival {
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

impl Workers {
    /// Starts as many as there are cores to run on. Each accepts on all of these listeners.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be had.
    pub fn start(listeners: &[TcpListener], proxy: &Arc<Proxy>) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let (queues, arrivals): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(QUEUE)).unzip();
        let all: Vec<Load> = queues.into_iter().map(|queue| Load { open: AtomicUsize::new(0), queue }).collect();
        let all = Arc::new(all);
        let (stage, told) = watch::channel(Stage::Serve);
        let (door, accepting) = mpsc::channel(1);
        let (sign, ended) = mpsc::channel(1);
        let mut threads = Vec::with_capacity(count);
        for (index, arrivals) in arrivals.into_iter().enumerate() {
            let desk = Arc::new(Desk { proxy: proxy.clone(), all: all.clone(), index });
            let listeners = listeners.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
            let (told, door, sign) = (told.clone(), door.clone(), Sign(sign.clone()));
            let runtime = Builder::new_current_thread().enable_all().on_thread_park(log::flush).build()?;
            let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                log::keep_lines_together();
                runtime.block_on(work(listeners, desk, arrivals, told, door));
                // Whatever still looks up a name at this point is not waited for.
                runtime.shutdown_background();
                log::flush();
                drop(sign);
            })?;
            threads.push(thread);
        }
        Ok(Self { stage, accepting, ended, threads })
    }

    /// Returns when a worker has ended, which none does unasked.
    pub async fn ended(&mut self) {
        let _ = self.ended.recv().await;
    }

    /// Closes the listeners. Who is there already is served on.
    pub async fn close_doors(&mut self) {
        self.stage.send_replace(Stage::Finish);
        let _ = self.accepting.recv().await;
    }

    /// Ends all threads, and with them whoever is still there.
    pub async fn stop(self) {
        self.stage.send_replace(Stage::Stop);
        let threads = self.threads;
        let join = spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
        let _ = timeout(Duration::from_secs(1), join).await;
    }
}

/// Put up when a worker's thread ends, for whatever reason.
struct Sign(mpsc::Sender<()>);

impl Drop for Sign {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// The main task of a worker: starts what arrives, until it is told to stop.
async fn work(
    listeners: Vec<TcpListener>,
    desk: Arc<Desk>,
    mut arrivals: mpsc::Receiver<Arrival>,
    mut told: watch::Receiver<Stage>,
    door: mpsc::Sender<Infallible>,
) {
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let (desk, door) = (desk.clone(), door.clone());
        accepting.spawn(async move {
            listener::accept(listener, &desk).await;
            drop(door);
        });
    }
    drop(door);
    loop {
        tokio::select! {
            Some(arrival) = arrivals.recv() => desk.begin(arrival),
            stage = told.wait_for(|stage| *stage != Stage::Serve) => match stage.map(|stage| *stage) {
                Ok(Stage::Finish) => break,
                _ => return,
            },
            Some(_) = accepting.join_next() => return,
        }
    }
    accepting.shutdown().await;
    loop {
        tokio::select! {
            Some(arrival) = arrivals.recv() => desk.begin(arrival),
            _ = told.wait_for(|stage| *stage == Stage::Stop) => return,
        }
    }
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

    fn begin(&self, arrival: Arrival) {
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
