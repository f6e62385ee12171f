//! What a request needs to know, as plain values: [`Rules`], swapped whole on reload, and [`Settings`], read once.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::Principal;
use crate::auth::Verifier;
use crate::auth::api_key::{Found, Key, Keys, Rejected};
use crate::auth::ticket::Signer;
use crate::clock::UnixTime;
use crate::end::Cause;
use crate::limit::Limits;
use crate::peer::TrustedProxies;
use crate::route::RouteTable;
use crate::secret::Digest;
use crate::spans::Collector;

/// Read once, at the start: a change of these needs a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

/// Everything that decides about requests and tunnels. Immutable; a reload swaps the whole.
pub struct Rules {
    pub routes: RouteTable,
    /// Names of all upstreams: those of the file, and the URLs that stand in routes.
    pub upstreams: HashSet<Arc<str>>,
    pub keys: Keys,
    /// Who signs tickets.
    pub tickets: Signer,
    pub trusted_proxies: TrustedProxies,
    pub limits: Limits,
    /// From accept until the request head is complete.
    pub head_timeout: Duration,
    /// Idle time after which TCP starts to probe a silent peer.
    pub tcp_keepalive: Option<Duration>,
    pub on_revoked: Duration,
    pub on_route_removed: Duration,
    pub drain: Drain,
    /// What operators have to show, if anything.
    pub admin_token: Option<Digest>,
    /// Where spans are sent to, in a build that makes some.
    pub collector: Option<Arc<Collector>>,
    /// SHA-256 over the files these rules were made of, to see whether two instances agree.
    pub fingerprint: String,
}

impl Rules {
    /// Whether a tunnel that was opened under other rules would still be: the principal, by the secret it used, on its
    /// route. Says until when.
    ///
    /// # Errors
    /// What it has lost.
    pub fn admits(
        &self,
        principal: &Principal,
        route: &str,
        upstream: &str,
        now: UnixTime,
    ) -> Result<Option<UnixTime>, Cause> {
        // The credential first: a key that goes together with its route is revoked at once, not drained like the route.
        let proven = match (principal.key(), principal.secret()) {
            (Some(key), Some(secret)) => Some(self.still_proves(key, secret, now)),
            _ => None,
        };
        let found = self.routes.by_name(route).filter(|_| self.upstreams.contains(upstream));
        match (found.map(|route| &route.verifier), proven) {
            (Some(Verifier::Open), _) => Ok(None),
            (_, Some(Err(cause))) => Err(cause),
            (None, _) => Err(Cause::RouteRemoved),
            (Some(Verifier::Closed(_)), Some(Ok(found))) if found.opens(route) => Ok(found.valid_until),
            (Some(Verifier::Closed(_)), Some(Ok(_))) => Err(Cause::NotAllowedOnRoute),
            // Whoever came in when the route was open has shown nothing.
            (Some(Verifier::Closed(_)), None) => Err(Cause::Revoked),
        }
    }

    fn still_proves(&self, key: &Key, secret: &Digest, now: UnixTime) -> Result<Found<'_>, Cause> {
        match self.keys.find(secret, now) {
            Ok(found) if *found.id() == *key.id => Ok(found),
            Err((Rejected::Expired, _)) => Err(Cause::Expired),
            Ok(_) | Err((Rejected::Unknown | Rejected::Disabled | Rejected::NotYetValid, _)) => Err(Cause::Revoked),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// All tunnels are gone after this.
    pub timeout: Duration,
    /// Closing them is spread over this, so that clients do not reconnect all at once.
    pub spread: Duration,
}
