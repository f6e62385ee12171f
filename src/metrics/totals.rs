//! Sums over all routes, those that are gone from the rules included: what somebody who looks at the whole wants, without
//! a walk over all series.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::latency::{Buckets, Latency};
use crate::denial::Reason;

#[derive(Debug, Default)]
pub struct Totals {
    open: AtomicI64,
    opened: AtomicU64,
    refusals: [AtomicU64; Reason::ALL.len()],
    handshake: Latency,
}

/// All of it at one moment.
pub struct Sums {
    pub open: i64,
    pub opened: u64,
    /// By reason; those that happened.
    pub refusals: Vec<(&'static str, u64)>,
    pub handshake: Buckets,
}

impl Totals {
    pub fn answered(&self, took: Duration) {
        self.handshake.observe(took);
    }

    pub fn refused(&self, reason: Reason) {
        self.refusals[reason as usize].fetch_add(1, Relaxed);
    }

    pub fn opened(&self) {
        self.open.fetch_add(1, Relaxed);
        self.opened.fetch_add(1, Relaxed);
    }

    pub fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    pub fn read(&self) -> Sums {
        let refusals =
            Reason::ALL.iter().zip(&self.refusals).map(|(reason, count)| (reason.word(), count.load(Relaxed)));
        Sums {
            open: self.open.load(Relaxed),
            opened: self.opened.load(Relaxed),
            refusals: refusals.filter(|(_, count)| *count > 0).collect(),
            handshake: self.handshake.read(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        let totals = Totals::default();
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            (0..=times).for_each(|_| totals.refused(reason));
        }
        let wanted: Vec<_> = Reason::ALL.iter().zip(1..).map(|(reason, count)| (reason.word(), count)).collect();
        assert_eq!(totals.read().refusals, wanted);
    }
}
