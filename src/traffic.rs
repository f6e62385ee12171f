//! How much may pass through one tunnel, in each direction, as plain numbers; and the buckets that hold what passes to
//! them. What looks at the bytes is the relay.

use std::time::Duration;

use tokio::time::Instant;

/// Limits of one tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Traffic {
    /// From the client to the upstream.
    pub up: Flow,
    pub down: Flow,
}

/// Limits of one direction. `None` means no limit of this kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The payloads of all fragments of a message, as they are on the wire.
    pub max_message: Option<u64>,
    pub messages: Option<Rate>,
    pub bytes: Option<Rate>,
}

/// So much in a second, and so much at once after a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    pub per_second: u64,
    pub burst: u64,
    /// What is too much has to wait. Otherwise it ends the tunnel.
    pub delays: bool,
}

impl Traffic {
    /// What both allow.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self { up: self.up.and(&other.up), down: self.down.and(&other.down) }
    }
}

impl Flow {
    fn and(&self, other: &Self) -> Self {
        Self {
            max_message: both(self.max_message, other.max_message, u64::min),
            messages: both(self.messages, other.messages, Rate::and),
            bytes: both(self.bytes, other.bytes, Rate::and),
        }
    }
}

impl Rate {
    fn and(self, other: Self) -> Self {
        Self {
            per_second: self.per_second.min(other.per_second),
            burst: self.burst.min(other.burst),
            delays: self.delays && other.delays,
        }
    }
}

fn both<T>(a: Option<T>, b: Option<T>, and: impl FnOnce(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(and(a, b)),
        (one, None) | (None, one) => one,
    }
}

/// How much a rate still allows: full at first, it refills evenly.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// Less than nothing where more was taken than was there.
    level: f64,
    at: Instant,
}

/// Whoever waits for a rate of bytes waits for so much of a second, so that it does not wake for every byte.
const WORTH_WAKING: f64 = 0.05;

impl Bucket {
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: as_f64(rate.burst), at: now }
    }

    pub fn delays(&self) -> bool {
        self.rate.delays
    }

    /// How many there are, in whole ones.
    pub fn level(&mut self, now: Instant) -> u64 {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + seconds * as_f64(self.rate.per_second)).min(as_f64(self.rate.burst));
        self.at = self.at.max(now);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to the burst")]
        let whole = self.level.max(0.0) as u64;
        whole
    }

    /// Takes so many, whether they are there or not.
    pub fn take(&mut self, count: usize) {
        self.level -= as_f64(count as u64);
    }

    /// Whether more was taken than was there.
    pub fn is_overdrawn(&self) -> bool {
        self.level < 0.0
    }

    /// Puts back what was taken for nothing.
    pub fn give_back(&mut self, count: usize) {
        self.level += as_f64(count as u64);
    }

    /// When there is one again; of a rate of many, when there are some.
    pub fn refilled_at(&self) -> Instant {
        let rate = as_f64(self.rate.per_second);
        let wanted = (rate * WORTH_WAKING).min(as_f64(self.rate.burst)).max(1.0);
        let seconds = ((wanted - self.level) / rate).max(0.0);
        // A timer rounds, and so does arithmetic: a millisecond later it is there for certain.
        self.at + Duration::from_secs_f64(seconds.min(1e6)) + Duration::from_millis(1)
    }
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts beyond 2^53 here, and if so, not to the last one")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 20, delays: true };

    #[test]
    fn the_stricter_number_counts() {
        let route = Flow { max_message: Some(100), messages: Some(RATE), bytes: None };
        let stricter = Rate { per_second: 5, burst: 30, delays: false };
        let key = Flow { max_message: None, messages: Some(stricter), bytes: Some(RATE) };
        let both = Traffic { up: route, down: key }.and(&Traffic { up: key, down: Flow::default() });
        let messages = Some(Rate { per_second: 5, burst: 20, delays: false });
        assert_eq!(both.up, Flow { max_message: Some(100), messages, bytes: Some(RATE) });
        assert_eq!(both.down, key);
    }

    #[test]
    fn a_bucket_refills_evenly_and_not_beyond_its_burst() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::new(RATE, start);
        assert_eq!(bucket.level(at(5_000)), 20);
        bucket.take(20);
        assert_eq!((bucket.level(at(5_000)), bucket.refilled_at()), (0, at(5_101)));
        assert_eq!((bucket.level(at(5_050)), bucket.level(at(5_250))), (0, 2));
        bucket.take(12);
        assert_eq!((bucket.level(at(6_000)), bucket.level(at(6_250))), (0, 0), "a debt is paid first");
        assert_eq!(bucket.level(at(6_350)), 1);
        bucket.give_back(3);
        assert_eq!(bucket.level(at(6_350)), 4);
        assert_eq!(bucket.level(at(99_000)), 20);
        assert_eq!(bucket.level(at(5_000)), 20, "a clock that is read out of turn takes nothing back");
    }
}
