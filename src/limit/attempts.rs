//! Wrong credentials, counted by address in a table that does not grow for ever.

use std::collections::HashMap;
use std::time::Instant;

use super::network::Network;

/// Addresses that are remembered. Beyond that the half with the fewest failures is forgotten, so that somebody with many
/// addresses does not clear the one that was caught.
const MAX_ADDRESSES: usize = 65_536;

/// The failures of each address.
#[derive(Default)]
pub(super) struct Attempts(HashMap<Network, Bucket>);

/// Failures leak away at the rate that is allowed.
struct Bucket {
    level: f64,
    at: Instant,
}

impl Attempts {
    /// Whether there is room for one more of so many in a minute; what has leaked since the last failure makes none by
    /// itself.
    pub(super) fn may(&self, from: Network, now: Instant, per_minute: u32) -> bool {
        let level = self.0.get(&from).map_or(0.0, |bucket| bucket.level_at(now, per_minute));
        level <= f64::from(per_minute) - 1.0
    }

    pub(super) fn failed(&mut self, from: Network, now: Instant, per_minute: u32) {
        if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&from) {
            self.forget(now, per_minute);
        }
        let bucket = self.0.entry(from).or_insert(Bucket { level: 0.0, at: now });
        *bucket = Bucket { level: bucket.level_at(now, per_minute) + 1.0, at: now };
    }

    /// Makes room for as many as are left, so that it is not done for each.
    fn forget(&mut self, now: Instant, per_minute: u32) {
        let mut levels: Vec<f64> = self.0.values().map(|bucket| bucket.level_at(now, per_minute)).collect();
        let middle = levels.len() / 2;
        let (_, median, _) = levels.select_nth_unstable_by(middle, f64::total_cmp);
        let median = *median;
        self.0.retain(|_, bucket| bucket.level_at(now, per_minute) > median);
    }
}

impl Bucket {
    fn level_at(&self, now: Instant, per_minute: u32) -> f64 {
        let minutes = now.saturating_duration_since(self.at).as_secs_f64() / 60.0;
        (self.level - minutes * f64::from(per_minute)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn network(number: usize) -> Network {
        Network::of(Ipv4Addr::from(u32::try_from(number).unwrap()).into())
    }

    #[test]
    fn a_full_table_forgets_those_with_the_fewest_failures() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let caught = network(0);
        (0..3).for_each(|_| attempts.failed(caught, now, 3));
        for number in 1..MAX_ADDRESSES * 3 {
            attempts.failed(network(number), now, 3);
            assert!(attempts.0.len() <= MAX_ADDRESSES);
        }
        assert!(!attempts.may(caught, now, 3), "whoever has many addresses has cleared the one that was caught");
        assert!(attempts.may(network(1), now, 3));
    }
}
