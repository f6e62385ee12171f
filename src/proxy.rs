//! The life of a request. Every step is a line in `Proxy::open`; the order is the security of this program.

use std::sync::Arc;
use std::time::Instant as StdInstant;

use arc_swap::ArcSwap;
use http::header::HOST;
use http::request::Parts;
use tokio::time::Instant;

use crate::admit::{Door, admit};
use crate::answer::Answer;
use crate::auth::{Credential, Principal, verify};
use crate::clock::UnixTime;
use crate::denial::{Denial, Reason};
use crate::end::Cause;
use crate::handshake;
use crate::headers;
use crate::limit::Counts;
use crate::log::{self, Entry};
use crate::metrics::{Metrics, Outcome};
use crate::peer::{Caller, Peer};
use crate::random;
use crate::relay::{Bounds, Start};
use crate::route::{NotFound, Route};
use crate::rules::Rules;
use crate::tunnels::{Applicant, Live, Seat, Tunnels};
use crate::upstream::{self, Patience, Refusal, Stream};

/// What all requests share.
pub struct Proxy {
    pub rules: ArcSwap<Rules>,
    pub tunnels: Arc<Tunnels>,
    pub counts: Arc<Counts>,
    pub metrics: Metrics,
}

/// Both sides have said yes: what the relay needs once our 101 is on its way.
pub struct Opened {
    pub seat: Seat,
    pub upstream: Stream,
    pub start: Start,
    pub bounds: Bounds,
}

/// What becomes of a request.
#[expect(clippy::large_enum_variant, reason = "moved once, and the large one is the common one")]
pub enum Reply {
    /// Our 101, and what the relay needs after it.
    Opened(Vec<u8>, Opened),
    /// Anything else: the connection ends with it.
    Closed(Answer),
}

/// How a request ends that is not refused.
enum Done {
    Opened(Vec<u8>, Opened),
    PassedThrough(Refusal),
}

impl Proxy {
    /// Answers one request. Never fails: a refusal is an answer.
    pub async fn handle(&self, peer: Peer, mut parts: Parts) -> Reply {
        let mut entry = Entry::new(peer.address.ip(), parts.uri.path(), &parts.headers);
        match self.open(peer, &mut parts, &mut entry).await {
            Ok(Done::Opened(answer, opened)) => {
                self.metrics.answered(entry.route_label(), Outcome::Opened, entry.since.elapsed());
                Reply::Opened(answer, opened)
            }
            Ok(Done::PassedThrough(refusal)) => {
                entry.passed_through(refusal.status.as_u16());
                self.metrics.answered(entry.route_label(), Outcome::PassedThrough, entry.since.elapsed());
                Reply::Closed(pass_through(&refusal, &entry))
            }
            Err(denial) => Reply::Closed(self.deny(&entry, &denial)),
        }
    }

    /// One log line, one count, one answer.
    pub fn deny(&self, entry: &Entry, denial: &Denial) -> Answer {
        entry.refused(denial);
        self.metrics.refused(entry.route_label(), denial.reason);
        self.metrics.answered(entry.route_label(), Outcome::Refused, entry.since.elapsed());
        denial.answer(&entry.id)
    }

    async fn open(&self, peer: Peer, parts: &mut Parts, entry: &mut Entry) -> Result<Done, Denial> {
        let rules = self.rules.load_full(); // one snapshot until the tunnel stands
        let caller = rules.trusted_proxies.caller(peer, &parts.headers); // who is calling
        entry.caller = caller.address;
        let route = find(&rules, parts)?; // where to                                        400 404
        entry.route = Some(route.name.clone());
        entry.upstream = Some(route.upstream.name.clone());
        let mut upgrade =
            handshake::parse(parts).map_err(|denial| self.explain(denial, &rules, route, parts, &caller))?; // 400 426
        let offered = &mut upgrade.protocols;
        let credential = route.verifier.take_credential(parts, offered, route.hide_credentials)?; // 400
        let principal = self.verify(&rules, route, credential.as_ref(), &caller)?; // who they are 401 429
        entry.key = principal.key().map(|key| key.id.clone());
        let carrier = credential.as_ref().map(Credential::carrier);
        let answerable = upgrade.check_answerable(carrier)?; // could we say yes                400
        let door = Door { name: &route.name, conditions: &route.conditions };
        let admission = admit(&door, principal, carrier, &parts.headers, &caller, &self.counts)?; // 403 429 503
        let claim = self.tunnels.seat(admission, applicant(entry, route))?; // on the list first  503
        let seat = claim.ask_again(|live| self.admits(live))?; // and asked once more           401 403 404
        let request = headers::upstream_request(
            parts,
            &upgrade,
            &rules.routes,
            route,
            &seat.live().principal,
            &caller,
            &entry.id,
        );
        let patience = Patience { connect: route.timeouts.connect, handshake: route.timeouts.handshake };
        let opened = match route.upstream.open(&seat, &request, &upgrade, patience).await? {
            upstream::Answer::Refused(refusal) => return Ok(Done::PassedThrough(refusal)), // their no   any
            upstream::Answer::Opened(opened) => opened, // their yes                            502 503 504
        };
        let confirmed = seat.confirm()?; // nobody ended it meanwhile                           401 403 404 503
        let extensions = opened.switched.has_extensions();
        let (answer, subprotocol) = handshake::accept_answer(&upgrade, opened.switched, answerable); // our yes
        seat.opened(confirmed, subprotocol);
        self.metrics.opened(seat.live());
        log::opened(seat.live());
        let watch = route.watch(seat.live().principal.key().and_then(|key| key.limits.as_deref()));
        let start = Start { from_client: Vec::new(), from_upstream: opened.early, extensions, watch };
        let bounds = bounds(route);
        Ok(Done::Opened(answer, Opened { seat, upstream: opened.stream, start, bounds }))
    }

    fn verify(
        &self,
        rules: &Rules,
        route: &Route,
        credential: Option<&Credential>,
        caller: &Caller,
    ) -> Result<Principal, Denial> {
        if credential.is_some() {
            self.counts.may_attempt(caller.address, StdInstant::now())?;
        }
        let verified = verify(&route.verifier, credential, &rules.keys, UnixTime::now());
        if credential.is_some() && verified.is_err() {
            self.counts.failed(caller.address, StdInstant::now());
        }
        verified
    }

    /// A plain request that carried a good key comes from somebody who took one authenticated request for an authenticated
    /// connection: tell them.
    fn explain(&self, denial: Denial, rules: &Rules, route: &Route, parts: &mut Parts, caller: &Caller) -> Denial {
        if denial.reason != Reason::UpgradeRequired || parts.headers.contains_key(http::header::UPGRADE) {
            return denial;
        }
        let credential = route.verifier.take_credential(parts, &mut Vec::new(), true);
        let Ok(Some(credential)) = credential else { return denial };
        match self.verify(rules, route, Some(&credential), caller) {
            Ok(principal) => Denial::new(Reason::UpgradeRequired, handshake::KEY_ON_PLAIN_REQUEST)
                .of_key(principal.key().map(|key| key.id.clone())),
            Err(_) => denial,
        }
    }

    /// The question that every tunnel is asked again after a change.
    pub fn admits(&self, live: &Live) -> Result<Option<UnixTime>, Cause> {
        self.rules.load().admits(&live.principal, &live.route, &live.upstream, UnixTime::now())
    }
}

fn find<'r>(rules: &'r Rules, parts: &Parts) -> Result<&'r Arc<Route>, Denial> {
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    rules.routes.find(host, parts.uri.path()).map_err(|not_found| match not_found {
        NotFound::NoRoute => Denial::new(Reason::NoRoute, "nothing is served here"),
        NotFound::AmbiguousPath => Denial::new(Reason::AmbiguousPath, "this path could be read in more than one way"),
    })
}

fn applicant(entry: &Entry, route: &Route) -> Applicant {
    Applicant {
        id: entry.id.clone(),
        upstream: route.upstream.name.clone(),
        caller: entry.caller,
        origin: entry.origin.clone(),
    }
}

/// A lifetime is cut by up to a tenth, so that tunnels that were opened together do not end together.
fn bounds(route: &Route) -> Bounds {
    let [byte] = random::bytes();
    let cut = f64::from(byte) / 255.0 / 10.0;
    Bounds {
        idle: route.timeouts.idle,
        until: route.timeouts.max_lifetime.map(|lifetime| Instant::now() + lifetime.mul_f64(1.0 - cut)),
        half_close: route.timeouts.half_close,
    }
}

/// The upstream's no as the client gets it: end-to-end headers, a body of known length, and the end of the connection.
fn pass_through(refusal: &Refusal, entry: &Entry) -> Answer {
    let mut draft = Answer::of(refusal.status);
    draft.pass_on(&refusal.headers);
    if !refusal.headers.contains_key("x-request-id") {
        draft.line("x-request-id", entry.id.as_bytes());
    }
    draft.line("connection", b"close");
    draft.with_body(&refusal.body)
}
