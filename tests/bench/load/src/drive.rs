//! One run: threads that work, a warm-up, a time in which everything is counted, and the result.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::histogram::Histogram;
use crate::machine::{self, Tree};

/// How long connections may take to stand before the work begins without them.
const SETUP: Duration = Duration::from_secs(20);

/// What is common to all kinds of work.
pub(crate) struct Plan {
    pub(crate) mode: &'static str,
    /// What CPU time is divided by.
    pub(crate) unit: &'static str,
    pub(crate) label: String,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
    pub(crate) warmup: f64,
    pub(crate) proxy: Option<u32>,
    pub(crate) server: Option<u32>,
}

impl Plan {
    /// How many of the connections are this thread's.
    pub(crate) fn share(&self, thread: usize) -> usize {
        (self.connections + self.threads - 1 - thread) / self.threads
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
enum Phase {
    Setup,
    WarmUp,
    Measure,
    Stop,
}

/// What the threads of a run share.
pub(crate) struct Run {
    phase: AtomicU8,
    begun: watch::Sender<bool>,
    ready: AtomicUsize,
    failed: AtomicUsize,
    bytes: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
}

/// What one thread has counted while everything was counted.
pub(crate) struct Tally {
    pub(crate) latencies: Histogram,
    pub(crate) units: u64,
    /// Other numbers for the result, by name.
    pub(crate) extra: BTreeMap<&'static str, f64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self { latencies: Histogram::new(), units: 0, extra: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        self.latencies.add(latency);
        self.units += 1;
    }
}

impl Run {
    pub(crate) fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Setup as u8),
            begun: watch::channel(false).0,
            ready: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            errors: Mutex::default(),
        }
    }

    pub(crate) fn is_measuring(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Measure as u8
    }

    pub(crate) fn is_over(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Stop as u8
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.phase.load(Ordering::Relaxed) != Phase::Setup as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// Waits until every connection stands, so that opening them is not part of what is measured.
    pub(crate) async fn begin(&self) {
        // The other end is in `self`: it cannot be gone.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// A connection stands, or does not.
    pub(crate) fn opened<T>(&self, result: io::Result<T>) -> io::Result<T> {
        let count = if result.is_ok() { &self.ready } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
        result
    }

    pub(crate) fn passed(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts an error by its text. What fails because the run is over is none.
    pub(crate) fn error(&self, error: &impl ToString) {
        if !self.is_over() {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            *errors.entry(error.to_string()).or_default() += 1;
        }
    }

    pub(crate) fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs one task per connection, on threads with a runtime each, and measures.
pub(crate) fn tasks<F>(plan: &Plan, details: Value, task: impl Fn(Rc<Worker>) -> F + Sync) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let run = std::sync::Arc::new(Run::new());
    let work = |thread: usize| -> io::Result<Tally> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = Rc::new(Worker { run: run.clone(), tally: RefCell::new(Tally::new()) });
        let tasks = LocalSet::new();
        tasks.block_on(&runtime, async {
            for _ in 0..plan.share(thread) {
                let (task, worker) = (task(worker.clone()), worker.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = task.await {
                        worker.run.error(&error);
                    }
                });
            }
            while !run.is_over() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        drop(tasks);
        Ok(worker.tally.replace(Tally::new()))
    };
    measure(plan, &run, details, work)
}

/// One thread's tasks, seen from one of them.
pub(crate) struct Worker {
    pub(crate) run: std::sync::Arc<Run>,
    tally: RefCell<Tally>,
}

impl Worker {
    pub(crate) fn count(&self, latency: Duration) {
        if self.run.is_measuring() {
            self.tally.borrow_mut().add(latency);
        }
    }
}

/// Runs `work` on every thread through all phases, and prints what came of it.
pub(crate) fn measure(
    plan: &Plan,
    run: &Run,
    details: Value,
    work: impl Fn(usize) -> io::Result<Tally> + Sync,
) -> io::Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..plan.threads).map(|at| scope.spawn(move || work(at))).collect();
        let waits_for_all = matches!(plan.mode, "echo" | "paced" | "stream");
        let begin = Instant::now();
        let settled = || run.ready.load(Ordering::Relaxed) + run.failed.load(Ordering::Relaxed);
        while waits_for_all && settled() < plan.connections && begin.elapsed() < SETUP {
            thread::sleep(Duration::from_millis(5));
        }
        run.enter(Phase::WarmUp);
        run.begun.send_replace(true);
        thread::sleep(Duration::from_secs_f64(plan.warmup));

        let (proxy, server) = (plan.proxy.map(Tree::of), plan.server.map(Tree::of));
        let look = || {
            let cpu = |tree: &Option<Tree>| tree.as_ref().map(Tree::cpu);
            (cpu(&proxy), cpu(&server), machine::own_cpu(), machine::busy(), run.bytes.load(Ordering::Relaxed))
        };
        let before = look();
        let since = Instant::now();
        run.enter(Phase::Measure);
        thread::sleep(Duration::from_secs_f64(plan.seconds));
        run.enter(Phase::Stop);
        let elapsed = since.elapsed().as_secs_f64();
        let after = look();

        let mut total = Tally::new();
        for thread in threads {
            let tally =
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the load generator broke")))?;
            total.latencies.merge(&tally.latencies);
            total.units += tally.units;
            for (name, value) in tally.extra {
                let largest = total.extra.entry(name).or_insert(value);
                *largest = largest.max(value);
            }
        }
        let units = if plan.unit == "MB" { (after.4 - before.4) as f64 / 1e6 } else { total.units as f64 };
        let per_unit = |microseconds: f64| if units > 0.0 { microseconds / units } else { 0.0 };
        let proxy = before.0.zip(after.0).map(|(before, after)| after.since(before));
        let server = before.1.zip(after.1).map(|(before, after)| after.since(before).total());
        let own = (after.2 - before.2).as_secs_f64() * 1e6;
        let ours = own + server.unwrap_or(0.0) + proxy.map_or(0.0, machine::Cpu::total);
        let cores = |microseconds: f64| microseconds / (elapsed * 1e6);
        let errors = run.errors();
        let mut result = json!({
            "mode": plan.mode,
            "label": plan.label,
            "connections": plan.connections,
            "ready": run.ready.load(Ordering::Relaxed),
            "seconds": round(elapsed),
            "unit": plan.unit,
            "units": round(units),
            "rate": round(units / elapsed),
            "p50_us": round(total.latencies.quantile(0.5)),
            "p90_us": round(total.latencies.quantile(0.9)),
            "p99_us": round(total.latencies.quantile(0.99)),
            "p999_us": round(total.latencies.quantile(0.999)),
            "max_us": round(total.latencies.largest()),
            "proxy_us": proxy.map(|cpu| round(per_unit(cpu.total()))),
            "proxy_user_us": proxy.map(|cpu| round(per_unit(cpu.user))),
            "proxy_system_us": proxy.map(|cpu| round(per_unit(cpu.system))),
            "proxy_cores": proxy.map(|cpu| round(cores(cpu.total()))),
            "server_us": server.map(|cpu| round(per_unit(cpu))),
            "client_us": round(per_unit(own)),
            "stranger_cores": round(cores(after.3.working - before.3.working - ours)),
            "stolen_cores": round(cores(after.3.stolen - before.3.stolen)),
            "errors": errors.values().sum::<u64>(),
            "error_texts": errors,
        });
        if let (Value::Object(result), Value::Object(details)) = (&mut result, details) {
            result.extend(details);
            result.extend(total.extra.into_iter().map(|(name, value)| (name.to_owned(), json!(round(value)))));
        }
        print(&result, &["rate", "p50_us", "p99_us", "proxy_us", "server_us", "client_us", "stranger_cores"]);
        Ok(())
    })
}

/// The result as JSON for programs, and some of it for people.
pub(crate) fn print(result: &Value, shown: &[&str]) {
    println!("{result}");
    let none = Map::new();
    let fields = result.as_object().unwrap_or(&none);
    let word = |name: &str| fields.get(name).map(|value| value.as_str().map_or(value.to_string(), str::to_owned));
    let mut line = format!("{:<16} {:<10}", word("label").unwrap_or_default(), word("mode").unwrap_or_default());
    for name in shown {
        line.push_str(&format!(" {name} {}", word(name).unwrap_or_default()));
    }
    if let Some(errors) = fields.get("error_texts").filter(|errors| errors.as_object().is_some_and(|it| !it.is_empty()))
    {
        line.push_str(&format!(" ERRORS {errors}"));
    }
    eprintln!("{line}");
}

/// Three digits behind the point are more than there is to know.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
