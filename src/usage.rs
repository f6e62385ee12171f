//! How keys and their secrets are used: what an operator wants to know before a secret is taken away. Kept beside the
//! counts of what is open, and like them outside the rules, so that a reload forgets none of it.

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::Arc;

use crate::clock::UnixTime;
use crate::secret::Digest;

/// How a key is used; kept when its last tunnel ends, for the operator who wants to know whether it still is.
#[derive(Debug, Clone, Default)]
pub struct KeyUse {
    pub all: Use,
    /// Of its secrets those that somebody has shown. Some may be gone from the rules by now.
    pub secrets: Vec<(Digest, Use)>,
    /// Of the routes on which it has tunnels, which are few, how many on each.
    by_route: Vec<(Arc<str>, u32)>,
    /// Handshakes of it that are no tunnels yet.
    pending: Arc<AtomicU32>,
}

/// What is known of the use of a key, or of one of its secrets, since the process started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Use {
    /// Tunnels open now, or about to be.
    pub open: u32,
    /// Tunnels that were opened.
    pub opened: u64,
    /// Requests that were refused although they showed it.
    pub refused: u64,
    /// When a tunnel of it was last opened or closed.
    pub last_used: Option<UnixTime>,
    pub last_refused: Option<UnixTime>,
}

impl Use {
    /// When somebody last had it.
    pub fn last_seen(&self) -> Option<UnixTime> {
        self.last_used.max(self.last_refused)
    }

    fn begin(&mut self, now: UnixTime) {
        self.open += 1;
        self.opened += 1;
        self.last_used = Some(now);
    }

    fn end(&mut self, opened: bool, now: UnixTime) {
        self.open = self.open.saturating_sub(1);
        self.opened -= u64::from(!opened && self.opened > 0);
        self.last_used = Some(now);
    }

    fn refuse(&mut self, now: UnixTime) {
        self.refused += 1;
        self.last_refused = Some(now);
    }
}

/// Secrets of one key that are remembered when they have no tunnel. A key that is rotated has two.
const MAX_SECRETS: usize = 32;

impl KeyUse {
    /// How many tunnels it has on a route.
    pub fn on(&self, route: &str) -> u32 {
        self.by_route.iter().find(|(name, _)| **name == *route).map_or(0, |(_, count)| *count)
    }

    pub fn secret(&self, digest: &Digest) -> Option<&Use> {
        self.secrets.iter().find(|(known, _)| known == digest).map(|(_, used)| used)
    }

    /// How many handshakes of it are under way.
    pub fn pending(&self) -> u32 {
        self.pending.load(Relaxed)
    }

    /// A tunnel is admitted: one more handshake is under way, until what is handed back is lowered again.
    pub fn begin(&mut self, route: &Arc<str>, secret: Option<&Digest>) -> Arc<AtomicU32> {
        let now = UnixTime::now();
        self.all.begin(now);
        if let Some(secret) = secret {
            self.of(secret).begin(now);
        }
        match self.by_route.iter_mut().find(|(name, _)| name == route) {
            Some((_, count)) => *count += 1,
            None => self.by_route.push((route.clone(), 1)),
        }
        self.pending.fetch_add(1, Relaxed);
        self.pending.clone()
    }

    /// What was admitted is gone again, whether it was a tunnel (`opened`) or did not become one.
    pub fn end(&mut self, route: &Arc<str>, secret: Option<&Digest>, opened: bool) {
        let now = UnixTime::now();
        self.all.end(opened, now);
        if let Some(secret) = secret {
            self.of(secret).end(opened, now);
        }
        if let Some(at) = self.by_route.iter().position(|(name, _)| name == route) {
            self.by_route[at].1 -= 1;
            if self.by_route[at].1 == 0 {
                self.by_route.swap_remove(at);
            }
        }
        if self.by_route.is_empty() {
            // Most keys that were used are not in use.
            self.by_route = Vec::new();
        }
    }

    /// A request that showed it was refused.
    pub fn refuse(&mut self, secret: Option<&Digest>) {
        let now = UnixTime::now();
        self.all.refuse(now);
        if let Some(secret) = secret {
            self.of(secret).refuse(now);
        }
    }

    fn of(&mut self, secret: &Digest) -> &mut Use {
        let known = self.secrets.iter().position(|(known, _)| known == secret);
        let at = known.unwrap_or_else(|| {
            self.make_room();
            self.secrets.push((*secret, Use::default()));
            self.secrets.len() - 1
        });
        &mut self.secrets[at].1
    }

    /// Forgets the one that was not seen for longest, if there are many. Those with tunnels stay: they are counted still.
    fn make_room(&mut self) {
        // One is what most keys have, and there may be a million of these.
        self.secrets.reserve_exact(1);
        let idle = self.secrets.iter().enumerate().filter(|(_, (_, used))| used.open == 0);
        let oldest = idle.min_by_key(|(_, (_, used))| used.last_seen()).map(|(at, _)| at);
        if let Some(at) = oldest.filter(|_| self.secrets.len() >= MAX_SECRETS) {
            self.secrets.swap_remove(at);
        }
    }
}

/// Whether a secret can go, judged by what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    Safe,
    /// It has open tunnels.
    InUse,
    /// Somebody has shown it within the quiet time.
    SeenLately,
    /// Nobody has shown it yet, and the process is younger than the quiet time.
    TooEarlyToTell,
    /// Nobody has shown it since the process started: left over, or not handed out yet.
    NeverShown,
    /// No other secret of the key has been used since this one was: whoever has it has no other one.
    NoSuccessor,
}

impl Removal {
    /// Judges a secret. `successor`: when another secret of the key, one that is good now, was last used. `dead`: it opens
    /// nothing any more, whoever shows it.
    pub fn judge(
        used: &Use,
        successor: Option<UnixTime>,
        dead: bool,
        (now, since, quiet): (UnixTime, UnixTime, i64),
    ) -> Self {
        let is_recent = |date: UnixTime| now.0.saturating_sub(date.0) < quiet;
        if used.open > 0 {
            Self::InUse
        } else if dead {
            Self::Safe
        } else if used.last_seen().is_some_and(is_recent) {
            Self::SeenLately
        } else if successor.is_none_or(|date| used.last_seen().is_some_and(|seen| date < seen)) {
            Self::NoSuccessor
        } else if used.last_seen().is_some() {
            Self::Safe
        } else if is_recent(since) {
            Self::TooEarlyToTell
        } else {
            Self::NeverShown
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::InUse => "in_use",
            Self::SeenLately => "seen_lately",
            Self::TooEarlyToTell => "too_early_to_tell",
            Self::NeverShown => "never_shown",
            Self::NoSuccessor => "no_successor",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_can_go_when_another_one_has_taken_over() {
        let seen = |last: i64| Use { opened: 1, last_used: Some(UnixTime(last)), ..Use::default() };
        // It is 1000, the process started at 0, and quiet is 100 seconds.
        let judge = |used: &Use, successor: Option<i64>| {
            Removal::judge(used, successor.map(UnixTime), false, (UnixTime(1000), UnixTime(0), 100))
        };
        assert_eq!(judge(&seen(500), Some(600)), Removal::Safe);
        assert_eq!(judge(&Use { open: 1, ..seen(500) }, Some(600)), Removal::InUse);
        assert_eq!(judge(&seen(901), Some(950)), Removal::SeenLately);
        let tried = Use { last_refused: Some(UnixTime(901)), ..seen(500) };
        assert_eq!(judge(&tried, Some(950)), Removal::SeenLately);
        assert_eq!(judge(&seen(500), None), Removal::NoSuccessor);
        assert_eq!(judge(&seen(500), Some(400)), Removal::NoSuccessor);
        // The new one of two, which nobody has got yet.
        assert_eq!(judge(&Use::default(), None), Removal::NoSuccessor);
        // The new one still, or an old one since before the start: only the operator knows.
        assert_eq!(judge(&Use::default(), Some(400)), Removal::NeverShown);
        let young = (UnixTime(1000), UnixTime(901), 100);
        assert_eq!(Removal::judge(&Use::default(), Some(UnixTime(950)), false, young), Removal::TooEarlyToTell);
        assert_eq!(Removal::judge(&Use::default(), None, true, young), Removal::Safe);
    }

    #[test]
    fn what_never_opened_was_not_opened() {
        let (mut key, route, secret) = (KeyUse::default(), Arc::from("r"), Digest::of(b"s"));
        let _ = key.begin(&route, Some(&secret));
        let _ = key.begin(&route, Some(&secret));
        assert_eq!((key.on("r"), key.all.open, key.all.opened), (2, 2, 2));
        key.end(&route, Some(&secret), false);
        key.end(&route, Some(&secret), true);
        let used = key.secret(&secret).unwrap();
        assert_eq!((key.on("r"), used.open, used.opened, key.all.opened), (0, 0, 1, 1));
    }

    #[test]
    fn memory_of_secrets_is_bounded_and_keeps_those_in_use() {
        let (mut key, route) = (KeyUse::default(), Arc::from("r"));
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        let _ = key.begin(&route, Some(&digest(0)));
        for n in 1..200 {
            key.refuse(Some(&digest(n)));
        }
        assert_eq!(key.secrets.len(), MAX_SECRETS);
        assert_eq!(key.secret(&digest(0)).map(|used| used.open), Some(1));
        assert_eq!(key.all.refused, 199);
    }
}
