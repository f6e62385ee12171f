//! What a request needs to know, as plain values: [`Rules`], swapped whole on reload, and [`Settings`], read once.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::Principal;
use crate::auth::Verifier;
use crate::auth::api_key::{Keys, Rejected};
use crate::clock::UnixTime;
use crate::end::Cause;
use crate::limit::Limits;
use crate::peer::TrustedProxies;
use crate::route::RouteTable;

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
    pub trusted_proxies: TrustedProxies,
    pub limits: Limits,
    /// From accept until the request head is complete.
    pub head_timeout: Duration,
    /// Idle time after which TCP starts to probe a silent peer.
    pub tcp_keepalive: Option<Duration>,
    pub on_revoked: Duration,
    pub on_route_removed: Duration,
    pub drain: Drain,
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
        let route = self.routes.by_name(route).ok_or(Cause::RouteRemoved)?;
        if !self.upstreams.contains(upstream) {
            return Err(Cause::RouteRemoved);
        }
        if matches!(route.verifier, Verifier::Open) {
            return Ok(None);
        }
        // Whoever came in when the route was open has shown nothing.
        let (Some(key), Some(secret)) = (principal.key(), principal.secret()) else {
            return Err(Cause::Revoked);
        };
        match self.keys.find(secret, now) {
            Ok(found) if found.key.id != key.id => Err(Cause::Revoked),
            Ok(found) if !found.key.opens(&route.name) => Err(Cause::NotAllowedOnRoute),
            Ok(found) => Ok(found.valid_until),
            Err((Rejected::Expired, _)) => Err(Cause::Expired),
            Err((Rejected::Unknown | Rejected::Disabled | Rejected::NotYetValid, _)) => Err(Cause::Revoked),
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
