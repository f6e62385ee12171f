//! Counts of what is open, by route, key and address, and the permits that keep them. Outside the rules, so that a reload
//! changes the limits and never the counts.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::clock::UnixTime;
use crate::denial::{Denial, Reason};
use crate::secret::Digest;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, Notify};
use crate::usage::KeyUse;

/// Limits of the whole process. `None` means no limit of this kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: Option<u32>,
    pub max_connections_per_address: Option<u32>,
    pub max_failed_attempts_per_minute: Option<u32>,
}

/// What one tunnel needs room for.
pub struct Wanted<'w> {
    pub route: &'w Arc<str>,
    pub max_of_route: Option<u32>,
    pub key: Option<&'w Arc<str>>,
    /// Which of the key's secrets was shown.
    pub secret: Option<&'w Digest>,
    pub max_of_key: Option<u32>,
    pub max_of_key_on_route: Option<u32>,
    pub address: IpAddr,
}

/// All counts of this process.
pub struct Counts {
    /// Since when the use of keys is watched.
    since: UnixTime,
    open: Mutex<Open>,
    /// Connections of the data port, tunnels included.
    room: Room,
    /// Clients that were refused with a Close frame and have not gone yet.
    declined: Arc<AtomicU32>,
    /// Clients that are waited for to send their first message.
    waiting: Arc<AtomicU32>,
}

/// How many connections there are, and how many there may be: descriptors are finite.
#[derive(Debug)]
pub struct Room {
    open: AtomicUsize,
    most: usize,
    left: Notify,
}

#[derive(Default)]
struct Open {
    limits: Limits,
    total: u32,
    routes: HashMap<Arc<str>, u32>,
    keys: HashMap<Arc<str>, KeyUse>,
    addresses: HashMap<IpAddr, u32>,
    failures: HashMap<IpAddr, Bucket>,
}

struct Bucket {
    level: f64,
    at: Instant,
}

/// Addresses whose failures are remembered; beyond that the oldest are forgotten.
const MAX_FAILING_ADDRESSES: usize = 65_536;

impl Default for Counts {
    fn default() -> Self {
        Self::with_room(usize::MAX)
    }
}

impl Counts {
    /// With room for so many connections.
    pub fn with_room(most: usize) -> Self {
        Self {
            since: UnixTime::now(),
            open: Mutex::default(),
            room: Room { most, ..Room::default() },
            declined: Arc::default(),
            waiting: Arc::default(),
        }
    }

    /// Since when the use of keys is watched.
    pub fn since(&self) -> UnixTime {
        self.since
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Counts stay true even if a thread panicked here: every change is a single step.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the limits of new rules.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// Takes one place in every count that a tunnel stands in, or none.
    ///
    /// # Errors
    /// 503 `at_capacity` when the whole process is full, 429 `too_many_connections` for the others.
    pub fn admit(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<Permit, Denial> {
        let address = network(wanted.address);
        let mut open = self.lock();
        let Open { limits, total, routes, keys, addresses, .. } = &mut *open;
        let full = |count: u32, limit: Option<u32>| limit.is_some_and(|limit| count >= limit);
        if full(*total, limits.max_connections) {
            return Err(Denial::new(Reason::AtCapacity, "all connections are in use")
                .because("limits.max_connections is reached"));
        }
        let many = |cause: &'static str| {
            Err(Denial::new(Reason::TooManyConnections, "too many connections are open already").because(cause))
        };
        // Each count is looked up once, to be compared and then to be raised.
        let of_address = addresses.get_mut(&address);
        if full(of_address.as_deref().copied().unwrap_or(0), limits.max_connections_per_address) {
            return many("limits.max_connections_per_address is reached");
        }
        let of_route = routes.get_mut(wanted.route);
        if full(of_route.as_deref().copied().unwrap_or(0), wanted.max_of_route) {
            return many("the route's max_connections is reached");
        }
        if let Some(key) = wanted.key {
            let of_key = keys.get_mut(key);
            if full(of_key.as_deref().map_or(0, |key| key.all.open), wanted.max_of_key) {
                return many("the key's max_connections is reached");
            }
            if full(of_key.as_deref().map_or(0, |key| key.on(wanted.route)), wanted.max_of_key_on_route) {
                return many("the route's max_connections_per_key is reached");
            }
            match of_key {
                Some(count) => count.begin(wanted.route, wanted.secret),
                None => keys.entry(key.clone()).or_default().begin(wanted.route, wanted.secret),
            }
        }
        *total += 1;
        match of_route {
            Some(count) => *count += 1,
            None => _ = routes.insert(wanted.route.clone(), 1),
        }
        match of_address {
            Some(count) => *count += 1,
            None => _ = addresses.insert(address, 1),
        }
        drop(open);
        Ok(Permit {
            counts: self.clone(),
            route: wanted.route.clone(),
            key: wanted.key.cloned(),
            secret: wanted.secret.copied(),
            opened: AtomicBool::new(false),
            address,
        })
    }

    /// Whether this address has shown too many wrong credentials lately; asked before one is verified.
    ///
    /// # Errors
    /// 429 `too_many_attempts`.
    pub fn may_attempt(&self, address: IpAddr, now: Instant) -> Result<(), Denial> {
        let open = self.lock();
        let Some(limit) = open.limits.max_failed_attempts_per_minute else { return Ok(()) };
        match open.failures.get(&network(address)) {
            // Room for one more is wanted; what has leaked since the last failure makes none by itself.
            Some(bucket) if bucket.level_at(now, limit) > f64::from(limit) - 1.0 => {
                Err(Denial::new(Reason::TooManyAttempts, "too many failed attempts from this address")
                    .because("limits.max_failed_attempts_per_minute is reached"))
            }
            _ => Ok(()),
        }
    }

    /// Counts a wrong credential.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        let mut open = self.lock();
        let Some(limit) = open.limits.max_failed_attempts_per_minute else { return };
        if open.failures.len() >= MAX_FAILING_ADDRESSES {
            open.failures.retain(|_, bucket| bucket.level_at(now, limit) >= 1.0);
            if open.failures.len() >= MAX_FAILING_ADDRESSES {
                open.failures.clear();
            }
        }
        let bucket = open.failures.entry(network(address)).or_insert(Bucket { level: 0.0, at: now });
        *bucket = Bucket { level: bucket.level_at(now, limit) + 1.0, at: now };
    }

    /// Counts a refusal of somebody who showed a secret of this key.
    pub fn key_refused(&self, key: &Arc<str>, secret: Option<&Digest>) {
        let mut open = self.lock();
        match open.keys.get_mut(key) {
            Some(known) => known.refuse(secret),
            None => open.keys.entry(key.clone()).or_default().refuse(secret),
        }
    }

    /// Every key that opened something since the start, how many tunnels it has, and when it was last used. In order of
    /// names, at most `most` of them.
    pub fn keys(&self, most: usize) -> Vec<(Arc<str>, u32, UnixTime)> {
        let open = self.lock();
        let used = open.keys.iter().filter_map(|(id, key)| Some((id.clone(), key.all.open, key.all.last_used?)));
        let mut keys: Vec<_> = used.collect();
        drop(open);
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        keys.truncate(most);
        keys
    }

    /// How these keys are used; nothing for one that was never shown.
    pub fn usage<'k>(&self, ids: impl Iterator<Item = &'k str>) -> Vec<KeyUse> {
        let open = self.lock();
        ids.map(|id| open.keys.get(id).cloned().unwrap_or_default()).collect()
    }

    /// Forgets keys that are gone from the rules and have nothing open.
    pub fn forget_keys<'k>(&self, known: impl Iterator<Item = &'k str>) {
        let mut open = self.lock();
        let mut idle: HashSet<Arc<str>> =
            open.keys.iter().filter(|(_, key)| key.all.open == 0).map(|(id, _)| id.clone()).collect();
        drop(open);
        for id in known {
            if idle.is_empty() {
                return;
            }
            idle.remove(id);
        }
        open = self.lock();
        open.keys.retain(|id, key| key.all.open > 0 || !idle.contains(id));
    }

    /// A place among the refused who may stay to read why; `None` if so many are there already.
    pub fn decline(&self, most: u32) -> Option<Guest> {
        Guest::among(&self.declined, most)
    }

    /// A place among those who are waited for; `None` if so many are there already.
    pub fn wait_for(&self, most: u32) -> Option<Guest> {
        Guest::among(&self.waiting, most)
    }

    pub fn connections(&self) -> usize {
        self.room.open.load(Ordering::Relaxed)
    }

    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Counts an accepted connection, until it says [`Counts::leave`].
    pub fn enter(&self) {
        self.room.open.fetch_add(1, Ordering::Relaxed);
    }

    pub fn leave(&self) {
        if self.room.open.fetch_sub(1, Ordering::SeqCst) >= self.room.most {
            self.room.left.notify_waiters();
        }
    }
}

impl Default for Room {
    fn default() -> Self {
        Self { open: AtomicUsize::new(0), most: usize::MAX, left: Notify::new() }
    }
}

impl Room {
    pub fn most(&self) -> usize {
        self.most
    }

    pub fn has_place(&self) -> bool {
        self.open.load(Ordering::SeqCst) < self.most
    }

    pub async fn wait_for_place(&self) {
        while !self.has_place() {
            let left = self.left.notified();
            // Who leaves between these two lines has left a note.
            if !self.has_place() {
                left.await;
            }
        }
    }
}

impl Bucket {
    /// Failures leak away at the rate that is allowed.
    fn level_at(&self, now: Instant, per_minute: u32) -> f64 {
        let minutes = now.saturating_duration_since(self.at).as_secs_f64() / 60.0;
        (self.level - minutes * f64::from(per_minute)).max(0.0)
    }
}

/// One place among those who are here and have no tunnel; given back on drop.
pub struct Guest(Arc<AtomicU32>);

impl Guest {
    fn among(count: &Arc<AtomicU32>, most: u32) -> Option<Self> {
        let one_more = |count| (count < most).then_some(count + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self(count.clone()))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One place in each count; given back on drop.
pub struct Permit {
    counts: Arc<Counts>,
    route: Arc<str>,
    key: Option<Arc<str>>,
    secret: Option<Digest>,
    opened: AtomicBool,
    address: IpAddr,
}

impl Permit {
    /// What it was taken for is a tunnel now, not an attempt.
    pub fn opened(&self) {
        self.opened.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("route", &self.route).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        fn give_back<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
        let mut open = self.counts.lock();
        open.total -= 1;
        give_back(&mut open.routes, &self.route);
        give_back(&mut open.addresses, &self.address);
        if let Some(key) = &self.key
            && let Some(count) = open.keys.get_mut(key)
        {
            count.end(&self.route, self.secret.as_ref(), *self.opened.get_mut());
        }
    }
}

/// One home network counts as one address: a /64 for IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn wanted<'w>(route: &'w Arc<str>, key: &'w Arc<str>) -> Wanted<'w> {
        Wanted {
            route,
            max_of_route: Some(3),
            key: Some(key),
            secret: None,
            max_of_key: Some(2),
            max_of_key_on_route: None,
            address: "127.0.0.1".parse().unwrap(),
        }
    }

    #[test]
    fn permits_go_back_when_they_drop() {
        let counts = Arc::new(Counts::default());
        let (route, a, b): (Arc<str>, Arc<str>, Arc<str>) = ("r".into(), "a".into(), "b".into());
        let first = counts.admit(&wanted(&route, &a)).unwrap();
        let _second = counts.admit(&wanted(&route, &a)).unwrap();
        assert_eq!(counts.admit(&wanted(&route, &a)).unwrap_err().reason, Reason::TooManyConnections);
        let _third = counts.admit(&wanted(&route, &b)).unwrap();
        assert!(counts.admit(&wanted(&route, &b)).is_err(), "the route is full");
        drop(first);
        let fourth = counts.admit(&wanted(&route, &a));
        assert!(fourth.is_ok());
        assert_eq!(counts.keys(9).iter().map(|(_, open, _)| *open).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn failures_leak_away() {
        let counts = Counts::default();
        counts.set_limits(Limits { max_failed_attempts_per_minute: Some(2), ..Limits::default() });
        let address = "2001:db8::1".parse().unwrap();
        let neighbour = "2001:db8::2".parse().unwrap();
        let now = Instant::now();
        assert!(counts.may_attempt(address, now).is_ok());
        counts.failed(address, now);
        counts.failed(neighbour, now);
        assert!(counts.may_attempt(address, now).is_err(), "one network, one count");
        assert!(counts.may_attempt(address, now + Duration::from_secs(31)).is_ok());
    }
}
