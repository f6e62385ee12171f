//! Every live tunnel: seated before its last check, ended when it loses its right, counted until its last line has run.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::admit::Admission;
use crate::auth::Principal;
use crate::clock::UnixTime;
use crate::denial::{Denial, Reason};
use crate::end::Cause;
use crate::limit::Permit;
use crate::relay::Control;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, Notify};

/// The list of the living.
#[derive(Default)]
pub struct Tunnels {
    live: Mutex<HashMap<u64, Arc<Live>>>,
    next: AtomicU64,
    draining: AtomicBool,
    /// Counts the times that all tunnels were asked about.
    asked: Mutex<u64>,
    /// Nobody is seated, or nobody will be.
    left: Notify,
}

/// One tunnel, as others see it.
#[derive(Debug)]
pub struct Live {
    number: u64,
    pub id: Box<str>,
    pub route: Arc<str>,
    pub upstream: Arc<str>,
    pub principal: Principal,
    pub caller: IpAddr,
    pub origin: Option<Box<str>>,
    pub kind: Kind,
    pub control: Control,
    opened: OnceLock<Opening>,
    closed: AtomicBool,
}

/// What goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tunnel,
    /// One plain request and its answer.
    Http,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Http => "http",
        }
    }
}

/// What is known as soon as both sides have said yes.
#[derive(Debug)]
pub struct Opening {
    pub at: SystemTime,
    pub since: Instant,
    pub subprotocol: Option<Box<str>>,
}

/// Who wants to be seated.
pub struct Applicant {
    pub id: Box<str>,
    pub upstream: Arc<str>,
    pub caller: IpAddr,
    pub origin: Option<Box<str>>,
    pub kind: Kind,
}

/// A place on the list. Whoever holds one was admitted, and is ended with everybody else.
#[derive(Debug)]
pub struct Seat {
    live: Arc<Live>,
    tunnels: Arc<Tunnels>,
    permit: Permit,
}

/// A seat whose holder was not asked again yet: nothing can be done with it but that.
#[derive(Debug)]
pub struct Claim(Seat);

/// Nobody has ended the tunnel before it began. Only [`Seat::confirm`] makes one.
#[derive(Debug)]
pub struct Confirmed(());

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tunnels")
    }
}

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an admitted principal on the list.
    ///
    /// # Errors
    /// 503 `draining`.
    pub fn seat(self: &Arc<Self>, admission: Admission, applicant: Applicant) -> Result<Claim, Denial> {
        let (principal, route, permit) = admission.into_parts();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live {
            number,
            id: applicant.id,
            route,
            upstream: applicant.upstream,
            caller: applicant.caller,
            origin: applicant.origin,
            kind: applicant.kind,
            control: Control::new(principal.valid_until()),
            principal,
            opened: OnceLock::new(),
            closed: AtomicBool::new(false),
        });
        let mut all = self.lock();
        // Looked at under the lock, so that a drain that comes later sees this seat.
        if self.draining.load(Ordering::SeqCst) {
            return Err(Denial::new(Reason::Draining, "this proxy is about to stop"));
        }
        all.insert(number, live.clone());
        drop(all);
        Ok(Claim(Seat { live, tunnels: self.clone(), permit }))
    }

    /// All tunnels that stand or are about to.
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.lock().values().cloned().collect()
    }

    /// Asks new rules about each tunnel: those that keep their right get its new date, the others are handed back.
    pub fn reconcile(&self, admits: impl Fn(&Live) -> Result<Option<UnixTime>, Cause>) -> Vec<(Arc<Live>, Cause)> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut lost = Vec::new();
        for live in self.all() {
            match admits(&live) {
                Ok(date) => live.control.expire_at(date),
                Err(cause) => lost.push((live, cause)),
            }
        }
        lost
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Returns when nobody is seated any more because a drain has begun.
    pub async fn drain_begun(&self) {
        loop {
            let told = self.left.notified();
            if self.is_draining() {
                return;
            }
            told.await;
        }
    }

    /// Seats nobody any more and ends everybody, spread over this time so that they do not all reconnect at once.
    pub async fn drain(&self, spread: Duration) {
        self.draining.store(true, Ordering::SeqCst);
        self.left.notify_waiters();
        let all = self.all();
        let begin = tokio::time::Instant::now();
        let count = u32::try_from(all.len()).unwrap_or(u32::MAX).max(1);
        for (index, live) in all.into_iter().enumerate() {
            let share = spread / count * u32::try_from(index).unwrap_or(u32::MAX);
            if !share.is_zero() {
                tokio::time::sleep_until(begin + share).await;
            }
            live.control.stop(Cause::Drain);
        }
    }

    /// Returns when nobody is seated.
    pub async fn empty(&self) {
        loop {
            let left = self.left.notified();
            if self.lock().is_empty() {
                return;
            }
            left.await;
        }
    }
}

impl Live {
    /// In the order in which they were seated.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn opening(&self) -> Option<&Opening> {
        self.opened.get()
    }

    pub fn is_open(&self) -> bool {
        self.opened.get().is_some() && !self.closed.load(Ordering::SeqCst)
    }

    /// Its last numbers are taken; from here on it only waits for its task to end.
    pub fn closed(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub fn key(&self) -> &str {
        self.principal.key().map_or("", |key| &key.id)
    }
}

impl Claim {
    /// The last check, after the seat was taken: a key that was revoked in between is seen either here or by `reconcile`.
    ///
    /// # Errors
    /// The refusal that the new rules make of it.
    pub fn ask_again(self, admits: impl FnOnce(&Live) -> Result<Option<UnixTime>, Cause>) -> Result<Seat, Denial> {
        let seat = self.0;
        let asked = || seat.tunnels.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *asked();
        let date = admits(&seat.live).map_err(|cause| seat.denial(cause))?;
        let now = asked();
        // Rules that came meanwhile have set the date themselves, or are about to.
        if *now == before {
            seat.live.control.expire_at(date);
        }
        drop(now);
        seat.confirm().map(|_| seat)
    }
}

impl Seat {
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Whether nobody ended the tunnel before it began.
    ///
    /// # Errors
    /// The refusal for what ended it.
    pub fn confirm(&self) -> Result<Confirmed, Denial> {
        self.live.control.stopped().map_or(Ok(Confirmed(())), |cause| Err(self.denial(cause)))
    }

    fn denial(&self, cause: Cause) -> Denial {
        let denial = match cause {
            Cause::Expired => Denial::new(Reason::ExpiredCredential, "this credential has expired"),
            Cause::NotAllowedOnRoute => Denial::new(Reason::NotAllowedOnRoute, "this key does not open this route"),
            Cause::RouteRemoved => Denial::new(Reason::NoRoute, "nothing is served here"),
            Cause::Drain | Cause::Shutdown => Denial::new(Reason::Draining, "this proxy is about to stop"),
            Cause::ClosedByOperator => Denial::new(Reason::Draining, "this request was ended from outside"),
            _ => Denial::new(Reason::InvalidCredential, "this credential does not open anything here"),
        };
        let key = self.live.principal.key().map(|key| key.id.clone());
        let why = match cause {
            Cause::ClosedByOperator => "an operator has closed it before it was answered",
            _ => "the rules changed during the handshake",
        };
        denial.because(why).of_key(key)
    }

    /// Both sides have said yes.
    pub fn opened(&self, _: Confirmed, subprotocol: Option<Box<str>>) {
        self.permit.opened();
        let _ = self.live.opened.set(Opening { at: SystemTime::now(), since: Instant::now(), subprotocol });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.tunnels.lock();
        all.remove(&self.live.number);
        // Capacity that a rush left behind is given back.
        if all.capacity() > 1024 && all.len() < all.capacity() / 4 {
            all.shrink_to_fit();
        }
        let is_empty = all.is_empty();
        drop(all);
        if is_empty {
            self.tunnels.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::{Conditions, Door, admit};
    use crate::auth::api_key::{Key, Keys};
    use crate::auth::ticket::Signer;
    use crate::auth::{Facts, Place, Tickets, Verifier, verify};
    use crate::limit::Counts;
    use crate::peer::{Peer, TrustedProxies};
    use crate::secret::Digest;

    fn claim(tunnels: &Arc<Tunnels>) -> Claim {
        let mut keys = Keys::default();
        let key = Key {
            id: "alice".into(),
            routes: None,
            not_before: None,
            expires_at: None,
            disabled: false,
            max_connections: None,
            limits: None,
            attributes: Box::default(),
        };
        keys.add(&key, &[(Digest::of(b"secret"), None)]).unwrap();
        let places = vec![Place::Header(http::HeaderName::from_static("x-api-key"))];
        let request = http::Request::builder().header("x-api-key", "secret").body(()).unwrap();
        let (mut parts, ()) = request.into_parts();
        let verifier = Verifier::of_keys(places);
        let credential = verifier.take_credential(&mut parts, &mut Vec::new(), true).unwrap();
        let peer = Peer::new("127.0.0.1:1".parse().unwrap());
        let signer = Signer::new(&[]);
        let tickets = Tickets { signer: &signer, burned: None, route: "main", origin: b"", address: peer.address.ip() };
        let facts = Facts { keys: &keys, now: UnixTime(0), tickets };
        let principal = verify(&verifier, credential.as_ref(), &facts).unwrap();
        let caller = TrustedProxies::default().caller(peer, &parts.headers);
        let (name, conditions) = (Arc::from("main"), Conditions::default());
        let door = Door { name: &name, conditions: &conditions };
        let counts = Arc::new(Counts::default());
        let admission = admit(&door, principal, None, &parts.headers, &caller, &counts).unwrap();
        let applicant = Applicant {
            id: "1".into(),
            upstream: "u".into(),
            caller: caller.address,
            origin: None,
            kind: Kind::Tunnel,
        };
        tunnels.seat(admission, applicant).unwrap()
    }

    /// A reload that comes between the last question and its answer has the last word.
    #[test]
    fn a_date_of_older_rules_never_replaces_one_of_newer() {
        let tunnels = Arc::<Tunnels>::default();
        let claim = claim(&tunnels);
        let seat = claim.ask_again(|_| {
            // The old rules have answered; before the answer is taken over, new rules come.
            assert!(tunnels.reconcile(|_| Ok(Some(UnixTime(100)))).is_empty());
            Ok(None)
        });
        assert_eq!(seat.unwrap().live().control.expires_at(), Some(UnixTime(100)));
    }
}
