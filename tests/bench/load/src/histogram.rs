//! Durations, kept as counts: exact to one part in 128, whatever their range.

use std::time::Duration;

/// Buckets for each power of two.
const PRECISION: u32 = 7;

#[derive(Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    largest: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; 64 << PRECISION], count: 0, largest: 0 }
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)] += 1;
        self.count += 1;
        self.largest = self.largest.max(nanos);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.largest = self.largest.max(other.largest);
    }

    /// In microseconds: so much, or less, was it for this part of all (0 to 1).
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count below 2^53, rounded up")]
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let wanted = ((self.count as f64) * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return lowest_of(at) as f64 / 1000.0;
            }
        }
        self.largest()
    }

    /// In microseconds.
    pub(crate) fn largest(&self) -> f64 {
        self.largest as f64 / 1000.0
    }
}

/// Small values have a bucket each; above, the highest bits choose it.
fn bucket(nanos: u64) -> usize {
    let power = nanos.max(1).ilog2().max(PRECISION);
    let within = usize::try_from(nanos >> (power - PRECISION)).unwrap_or(usize::MAX);
    ((power - PRECISION) as usize) * (1 << PRECISION) + within
}

fn lowest_of(bucket: usize) -> u64 {
    let power = (bucket >> PRECISION).saturating_sub(1);
    ((bucket - (power << PRECISION)) as u64) << power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_near_to_it() {
        for nanos in (0..70).chain([127, 128, 255, 256, 1000, 123_456, 987_654_321, u64::MAX / 3]) {
            let low = lowest_of(bucket(nanos));
            assert!(low <= nanos && (nanos - low) * 128 <= nanos, "{nanos} {low}");
        }
        assert!(bucket(u64::MAX) < 64 << PRECISION);
    }

    #[test]
    fn quantiles() {
        let mut histogram = Histogram::new();
        for micros in 1..=1000 {
            histogram.add(Duration::from_micros(micros));
        }
        for (part, wanted) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = histogram.quantile(part);
            assert!((found - wanted).abs() <= wanted / 100.0, "{part}: {found}");
        }
        assert_eq!(Histogram::new().quantile(0.5), 0.0);
    }
}
