//! One thread for each core, each with a runtime of its own: a tunnel is accepted, served and closed on one thread, so that
//! its bytes meet no lock and wake no other core. What such threads lack, a scheduler that moves work between them, is
//! done once for each connection: a worker with more of them than the others hands new ones on.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::desk::{Arrival, Desks, desks};
use crate::proxy::Proxy;
use crate::{listener, log, queue};

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

/// As many as there are cores to run on; a container's limit counts.
pub fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Workers {
    /// Starts them. Each accepts on one socket of each address.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be had.
    pub fn start(mut listeners: Vec<Vec<TcpListener>>, proxy: &Arc<Proxy>) -> io::Result<Self> {
        let count = count();
        let (stage, told) = watch::channel(Stage::Serve);
        let (door, accepting) = mpsc::channel(1);
        let (sign, ended) = mpsc::channel(1);
        let mut threads = Vec::with_capacity(count);
        for (index, (desks, arrivals)) in desks(count, proxy).into_iter().enumerate() {
            let listeners = listeners.iter_mut().filter_map(Vec::pop).collect();
            let (told, door, sign) = (told.clone(), door.clone(), Sign(sign.clone()));
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                runtime.block_on(work(listeners, Arc::new(desks), arrivals, told, door));
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
    desks: Arc<Desks>,
    mut arrivals: mpsc::Receiver<Arrival>,
    mut told: watch::Receiver<Stage>,
    door: mpsc::Sender<Infallible>,
) {
    let mut scribe = JoinSet::new();
    scribe.spawn(log::keep_lines_together());
    let mut queue = JoinSet::new();
    queue.spawn(queue::serve());
    let listeners: Vec<Arc<TcpListener>> = listeners.into_iter().map(Arc::new).collect();
    let mut accepting = JoinSet::new();
    for listener in &listeners {
        let (listener, desks) = (listener.clone(), desks.clone());
        accepting.spawn(async move { listener::accept(listener, &desks).await });
    }
    loop {
        tokio::select! {
            Some(arrival) = arrivals.recv() => arrival.begin(),
            stage = told.wait_for(|stage| *stage != Stage::Serve) => match stage.map(|stage| *stage) {
                Ok(Stage::Finish) => break,
                _ => return,
            },
            Some(_) = accepting.join_next() => return,
            Some(_) = queue.join_next() => return,
        }
    }
    accepting.shutdown().await;
    listeners.into_iter().for_each(|listener| listener::accept_the_rest(&listener, &desks));
    drop(door);
    loop {
        tokio::select! {
            Some(arrival) = arrivals.recv() => arrival.begin(),
            _ = told.wait_for(|stage| *stage == Stage::Stop) => return,
            Some(_) = queue.join_next() => return,
        }
    }
}
