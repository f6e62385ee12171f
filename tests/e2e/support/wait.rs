//! Waiting for conditions, with a deadline that only a failing test ever reaches.

use std::time::{Duration, Instant};

/// Generous, because the machine may be loaded: only failures wait this long.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Long enough to see what must not come, short enough to do it often.
pub const SILENCE: Duration = Duration::from_millis(200);

const PAUSE: Duration = Duration::from_millis(5);

/// Waits until the condition holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    eventually_some(what, || holds().then_some(()));
}

/// Waits until there is a value.
#[track_caller]
pub fn eventually_some<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = find() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "did not happen in {DEADLINE:?}: {what}");
        pause(PAUSE);
    }
}

/// The beat of traffic in a test; never a way to wait for something.
#[expect(
    clippy::disallowed_methods,
    reason = "a test has threads of its own, and a condition that is polled needs a pause"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
