//! What a connection costs over which nothing passes.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::client::{self, Target, fault};
use crate::drive::{Run, print, round};
use crate::frame;
use crate::machine::{self, Memory, Tree};

/// Connections that are opened, or spoken over, at the same time.
const AT_ONCE: usize = 64;

pub(crate) fn run(
    target: &Target,
    label: &str,
    proxy: Option<u32>,
    connections: usize,
    hold: f64,
    touch: usize,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = Run::new();
    let memory = || proxy.map_or(Memory::default(), |pid| Tree::of(pid).memory());
    let cpu = || proxy.map_or(0.0, |pid| Tree::of(pid).cpu().total());
    LocalSet::new().block_on(&runtime, async {
        let (empty, slab) = (memory(), machine::slab());
        let (begin, cpu_before) = (Instant::now(), cpu());
        let streams = open(&run, target, connections).await;
        let (opened_in, cpu_after) = (begin.elapsed().as_secs_f64(), cpu());
        sleep(Duration::from_secs_f64(hold)).await;
        let (full, slab_full) = (memory(), machine::slab());
        let opened = streams.len();

        let mut touched = None;
        let mut streams = streams;
        if touch > 0 {
            streams = speak(&run, streams, touch).await;
            sleep(Duration::from_secs_f64(hold)).await;
            touched = Some(memory());
        }
        let is_silent = |stream: &&TcpStream| {
            matches!(stream.try_read(&mut [0; 64]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        let alive = streams.iter().filter(is_silent).count();

        let each = |before: f64, after: f64| round((after - before) * 1024.0 / opened.max(1) as f64);
        let errors = run.errors();
        let result = json!({
            "mode": "idle",
            "label": label,
            "connections": connections,
            "ready": opened,
            "alive": alive,
            "open_seconds": round(opened_in),
            "open_us": round((cpu_after - cpu_before) / opened.max(1) as f64),
            "base_rss_kb": empty.rss,
            "base_pss_kb": empty.pss,
            "rss_bytes": each(empty.rss, full.rss),
            "pss_bytes": each(empty.pss, full.pss),
            "touch": touch,
            "touched_pss_bytes": touched.map(|touched| each(empty.pss, touched.pss)),
            "slab_bytes": each(slab, slab_full),
            "errors": errors.values().sum::<u64>(),
            "error_texts": errors,
        });
        print(&result, &["ready", "alive", "base_pss_kb", "pss_bytes", "touched_pss_bytes", "open_us"]);
        Ok(())
    })
}

async fn open(run: &Run, target: &Target, connections: usize) -> Vec<TcpStream> {
    let request = target.handshake();
    let (streams, left) = (RefCell::new(Vec::with_capacity(connections)), Cell::new(connections));
    let opener = async || {
        let mut buffer = vec![0; 4096];
        while left.get() > 0 {
            left.set(left.get() - 1);
            let opening = async {
                let mut stream = client::connect(target).await?;
                client::upgrade(&mut stream, &request, &mut buffer).await?;
                io::Result::Ok(stream)
            };
            match timeout(Duration::from_secs(10), opening).await {
                Ok(Ok(stream)) => streams.borrow_mut().push(stream),
                Ok(Err(error)) => run.error(&error),
                Err(late) => run.error(&late),
            }
        }
    };
    at_once(opener).await;
    streams.into_inner()
}

/// One message there and back over each; gives those back that are still good.
async fn speak(run: &Run, streams: Vec<TcpStream>, size: usize) -> Vec<TcpStream> {
    let payload = frame::payload(size);
    let sent = frame::frame(frame::BINARY, &payload, Some(frame::MASK));
    let wanted = frame::frame(frame::BINARY, &payload, None);
    let (silent, spoken) = (RefCell::new(streams), RefCell::new(Vec::new()));
    let speaker = async || {
        let mut buffer = vec![0; wanted.len()];
        loop {
            let Some(mut stream) = silent.borrow_mut().pop() else { return };
            let exchange = async {
                stream.write_all(&sent).await?;
                stream.read_exact(&mut buffer).await?;
                if buffer == wanted { Ok(()) } else { Err(fault("another message came back than was sent")) }
            };
            match exchange.await {
                Ok(()) => spoken.borrow_mut().push(stream),
                Err(error) => run.error(&error),
            }
        }
    };
    at_once(speaker).await;
    spoken.into_inner()
}

async fn at_once(worker: impl AsyncFn()) {
    let mut all: Vec<_> = (0..AT_ONCE).map(|_| Box::pin(worker())).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|worker| worker.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
