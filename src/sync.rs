//! What threads share where the order of their steps decides something: the locks and counters of std, what they wait on,
//! and the rules that are swapped. Under `cfg(shuttle)` they are others, with which tests/concurrency tries orders out.

#[cfg(not(all(test, shuttle)))]
pub use arc_swap::ArcSwap;
#[cfg(not(all(test, shuttle)))]
pub use std::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(all(test, shuttle)))]
pub use tokio::sync::Notify;

#[cfg(all(test, shuttle))]
pub use self::steps::{ArcSwap, Notify};
#[cfg(all(test, shuttle))]
pub use shuttle::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, shuttle))]
#[path = "../tests/concurrency/steps.rs"]
mod steps;
