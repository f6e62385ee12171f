//! Time that passes only while this process runs: it may be stopped for minutes, and nothing is late for that.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

static NOW: AtomicU64 = AtomicU64::new(1);
const TICK: Duration = Duration::from_millis(20);
const MOST: Duration = Duration::from_millis(500);

/// Milliseconds, from 1 on.
pub(crate) fn now() -> u64 {
    NOW.load(Relaxed)
}

pub(crate) fn start() {
    std::thread::spawn(|| {
        let mut last = Instant::now();
        loop {
            std::thread::sleep(TICK);
            let passed = last.elapsed();
            last = Instant::now();
            NOW.fetch_add(u64::try_from(passed.min(MOST).as_millis()).unwrap_or(0), Relaxed);
        }
    });
}

/// Returns when it is this time.
pub(crate) async fn sleep_until(then: u64) {
    loop {
        let left = then.saturating_sub(now());
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(left)).await;
    }
}

pub(crate) async fn sleep(millis: u64) {
    sleep_until(now() + millis).await;
}

/// `None`: not within this time.
pub(crate) async fn within<T>(millis: u64, what: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        value = what => Some(value),
        () = sleep(millis) => None,
    }
}
