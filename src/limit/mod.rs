//! Counts of what is open, by route, key and address, and the permits that keep them. Outside the rules, so that a reload
//! changes the limits and never the counts.

mod attempts;
mod here;
mod network;
mod room;
mod shares;
mod space;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use tracing::warn;

use self::attempts::Attempts;
use self::here::{Among, Here, leave};
use self::network::Network;
pub use self::room::Room;
pub use self::shares::Limits;
use self::shares::Shares;
pub use self::space::Space;
use crate::cap::Cap;
use crate::clock::UnixTime;
use crate::denial::Denial;
use crate::secret::Digest;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::usage::KeyUse;

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
}

#[derive(Default)]
struct Open {
    shares: Shares,
    total: u32,
    routes: HashMap<Arc<str>, u32>,
    keys: HashMap<Arc<str>, KeyUse>,
    addresses: HashMap<Network, Here>,
    /// Of all addresses together.
    all: Here,
    attempts: Attempts,
}

impl Default for Counts {
    fn default() -> Self {
        Self::within(Space::ENDLESS)
    }
}

impl Counts {
    /// With so much space for connections.
    pub fn within(space: Space) -> Self {
        let counts = Self { since: UnixTime::now(), open: Mutex::default(), room: Room::within(space) };
        counts.set_limits(&Limits::default());
        counts
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
    pub fn set_limits(&self, limits: &Limits) {
        let room = self.room.fit(limits.max_connections);
        let shares = limits.within(room);
        if let Some(wanted) = limits.max_connections.filter(|wanted| *wanted > shares.connections) {
            warn!(
                wanted,
                room,
                max_connections = shares.connections,
                "more connections are allowed than there is room for"
            );
        }
        self.lock().shares = shares;
    }

    /// The limits in force, those among them that the file leaves open.
    pub fn limits(&self) -> Limits {
        self.lock().shares.as_limits()
    }

    /// Takes one place in every count that a tunnel stands in, or none.
    ///
    /// # Errors
    /// 503 `at_capacity` when the whole process is full, 429 `too_many_connections` for the others.
    pub fn admit(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<Permit, Denial> {
        let address = Network::of(wanted.address);
        let mut open = self.lock();
        let Open { shares, total, routes, keys, addresses, .. } = &mut *open;
        let full = |count: u32, limit: Option<u32>| limit.is_some_and(|limit| count >= limit);
        if *total >= shares.connections {
            return Err(Denial::full(Cap::Connections));
        }
        // Each count is looked up once, to be compared and then to be raised.
        let of_address = addresses.get_mut(&address);
        if of_address.as_ref().map_or(0, |here| here.open) >= shares.connections_per_address {
            return Err(Denial::full(Cap::ConnectionsPerAddress));
        }
        let of_route = routes.get_mut(wanted.route);
        if full(of_route.as_deref().copied().unwrap_or(0), wanted.max_of_route) {
            return Err(Denial::full(Cap::ConnectionsOfRoute));
        }
        let mut pending = None;
        if let Some(key) = wanted.key {
            let of_key = keys.get_mut(key);
            if full(of_key.as_deref().map_or(0, |key| key.all.open), wanted.max_of_key) {
                return Err(Denial::full(Cap::ConnectionsOfKey));
            }
            if full(of_key.as_deref().map_or(0, |key| key.on(wanted.route)), wanted.max_of_key_on_route) {
                return Err(Denial::full(Cap::ConnectionsOfKeyOnRoute));
            }
            if of_key.as_deref().map_or(0, KeyUse::pending) >= shares.pending_per_key {
                return Err(Denial::full(Cap::PendingPerKey));
            }
            let of_key = match of_key {
                Some(count) => count,
                None => keys.entry(key.clone()).or_default(),
            };
            pending = Some(of_key.begin(wanted.route, wanted.secret));
        }
        *total += 1;
        match of_route {
            Some(count) => *count += 1,
            None => _ = routes.insert(wanted.route.clone(), 1),
        }
        match of_address {
            Some(here) => here.open += 1,
            None => _ = addresses.insert(address, Here { open: 1, ..Here::default() }),
        }
        drop(open);
        Ok(Permit {
            counts: self.clone(),
            route: wanted.route.clone(),
            key: wanted.key.cloned(),
            pending,
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
        match open.shares.failed_attempts_per_minute {
            Some(limit) if !open.attempts.may(Network::of(address), now, limit) => {
                Err(Denial::full(Cap::FailedAttempts))
            }
            _ => Ok(()),
        }
    }

    /// Counts a wrong credential.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        let mut open = self.lock();
        if let Some(limit) = open.shares.failed_attempts_per_minute {
            open.attempts.failed(Network::of(address), now, limit);
        }
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

    /// A place among the connections of this address that are no tunnel, for one that was just made. Whoever is there beyond
    /// the limit may stay to read that, as many as there may be otherwise; nobody does beyond that.
    pub fn arrive(self: &Arc<Self>, address: IpAddr) -> Arrived {
        let address = Network::of(address);
        let mut open = self.lock();
        let most = open.shares.pending_per_address;
        let here = open.addresses.entry(address).or_default();
        if here.pending >= most.saturating_mul(2) {
            return Arrived::Flood;
        }
        let is_welcome = here.pending < most;
        here.pending += 1;
        open.all.pending += 1;
        drop(open);
        let place = Guest { counts: self.clone(), address, among: Among::Pending };
        if is_welcome { Arrived::Welcome(place) } else { Arrived::TooMany(place) }
    }

    /// A place among the refused who may stay to read why.
    ///
    /// # Errors
    /// Of whom there are so many already.
    pub fn decline(self: &Arc<Self>, address: IpAddr) -> Result<Guest, Cap> {
        self.guest(address, Among::Declined)
    }

    /// A place among those who are waited for.
    ///
    /// # Errors
    /// 503 `at_capacity`, 429 `too_many_connections`.
    pub fn wait_for(self: &Arc<Self>, address: IpAddr) -> Result<Guest, Denial> {
        self.guest(address, Among::Waiting).map_err(Denial::full)
    }

    fn guest(self: &Arc<Self>, address: IpAddr, among: Among) -> Result<Guest, Cap> {
        let address = Network::of(address);
        let mut open = self.lock();
        let Open { shares, addresses, all, .. } = &mut *open;
        let (most, most_of_one, caps) = match among {
            Among::Waiting => (shares.waiting, shares.waiting_per_address, (Cap::Waiting, Cap::WaitingPerAddress)),
            _ => (shares.declined, shares.declined_per_address, (Cap::Declined, Cap::DeclinedPerAddress)),
        };
        if *all.count(among) >= most {
            return Err(caps.0);
        }
        if addresses.get_mut(&address).map_or(0, |here| *here.count(among)) >= most_of_one {
            return Err(caps.1);
        }
        *addresses.entry(address).or_default().count(among) += 1;
        *all.count(among) += 1;
        drop(open);
        Ok(Guest { counts: self.clone(), address, among })
    }

    /// Connections that are no tunnel, of all addresses; those that come through trusted proxies once they have said for whom.
    pub fn pending(&self) -> u32 {
        self.lock().all.pending
    }

    pub fn room(&self) -> &Room {
        &self.room
    }
}

/// What becomes of a new connection.
pub enum Arrived {
    Welcome(Guest),
    /// To be told so.
    TooMany(Guest),
    Flood,
}

/// One place among those who are here and have no tunnel; given back on drop.
pub struct Guest {
    counts: Arc<Counts>,
    address: Network,
    among: Among,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut open = self.counts.lock();
        *open.all.count(self.among) -= 1;
        leave(&mut open.addresses, self.address, |here| *here.count(self.among) -= 1);
    }
}

/// One place in each count; given back on drop.
pub struct Permit {
    counts: Arc<Counts>,
    route: Arc<str>,
    key: Option<Arc<str>>,
    /// Handshakes of the key that are no tunnels yet.
    pending: Option<Arc<AtomicU32>>,
    secret: Option<Digest>,
    opened: AtomicBool,
    address: Network,
}

impl Permit {
    /// What it was taken for is a tunnel now, not an attempt.
    pub fn opened(&self) {
        if !self.opened.swap(true, Ordering::Relaxed) {
            self.end_pending();
        }
    }

    fn end_pending(&self) {
        if let Some(pending) = &self.pending {
            pending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("route", &self.route).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let was_opened = *self.opened.get_mut();
        if !was_opened {
            self.end_pending();
        }
        let mut open = self.counts.lock();
        let Open { total, routes, keys, addresses, .. } = &mut *open;
        *total -= 1;
        leave(addresses, self.address, |here| here.open -= 1);
        if let Some(count) = routes.get_mut(&self.route) {
            *count -= 1;
            if *count == 0 {
                routes.remove(&self.route);
            }
        }
        if let Some(key) = &self.key
            && let Some(count) = keys.get_mut(key)
        {
            count.end(&self.route, self.secret.as_ref(), was_opened);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::denial::Reason;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn wanted<'w>(route: &'w Arc<str>, key: &'w Arc<str>) -> Wanted<'w> {
        Wanted {
            route,
            max_of_route: Some(3),
            key: Some(key),
            secret: None,
            max_of_key: Some(2),
            max_of_key_on_route: None,
            address: ADDRESS,
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
    fn what_memory_is_sure_to_be_enough_for_bounds_what_nobody_asked_for() {
        let counts = Counts::within(Space { files: 1000, memory: 100 });
        let room = |wanted| {
            counts.set_limits(&Limits { max_connections: wanted, ..Limits::default() });
            (counts.room().most(), counts.limits().max_connections, counts.room().bounded_by())
        };
        assert_eq!(room(None), (100, Some(97), Cap::Memory));
        assert_eq!(room(Some(50)), (100, Some(50), Cap::Memory));
        assert_eq!(room(Some(300)), (1000, Some(300), Cap::OpenFiles));
        assert_eq!(room(Some(2000)), (1000, Some(969), Cap::OpenFiles));
        assert_eq!(room(None), (100, Some(97), Cap::Memory));
    }

    #[test]
    fn what_became_a_tunnel_is_not_pending() {
        let counts = Arc::new(Counts::default());
        counts.set_limits(&Limits { max_pending_per_key: Some(1), ..Limits::default() });
        let (route, key): (Arc<str>, Arc<str>) = ("r".into(), "a".into());
        let first = counts.admit(&wanted(&route, &key)).unwrap();
        assert_eq!(counts.admit(&wanted(&route, &key)).unwrap_err().cap, Some(Cap::PendingPerKey));
        first.opened();
        first.opened();
        drop(counts.admit(&wanted(&route, &key)).unwrap());
        drop(counts.admit(&wanted(&route, &key)).unwrap());
        drop(first);
        let _last = counts.admit(&wanted(&route, &key)).unwrap();
        assert!(counts.admit(&wanted(&route, &key)).is_err(), "a place was given back twice");
    }

    #[test]
    fn nobody_is_remembered_who_has_gone() {
        let counts = Arc::new(Counts::default());
        counts.set_limits(&Limits { max_pending_per_address: Some(1), max_waiting: Some(1), ..Limits::default() });
        let Arrived::Welcome(first) = counts.arrive(ADDRESS) else { panic!("no place for one") };
        let Arrived::TooMany(second) = counts.arrive(ADDRESS) else { panic!("a place for two") };
        assert!(matches!(counts.arrive(ADDRESS), Arrived::Flood));
        let (route, key): (Arc<str>, Arc<str>) = ("r".into(), "a".into());
        let permit = counts.admit(&wanted(&route, &key)).unwrap();
        let waiting = counts.wait_for(ADDRESS).unwrap();
        assert_eq!(counts.wait_for(ADDRESS).err().map(|denial| denial.reason), Some(Reason::AtCapacity));
        assert_eq!((counts.pending(), counts.lock().addresses.len()), (2, 1));
        drop((first, second, permit, waiting));
        assert_eq!((counts.pending(), counts.lock().addresses.len()), (0, 0));
        assert_eq!(counts.lock().all, Here::default());
    }

    #[test]
    fn failures_leak_away() {
        let counts = Counts::default();
        counts.set_limits(&Limits { max_failed_attempts_per_minute: Some(2), ..Limits::default() });
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
