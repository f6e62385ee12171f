//! The life of a request. Every step is a line in `Proxy::open`; the order is the security of this program.

use std::sync::Arc;
use std::time::Instant as StdInstant;

use arc_swap::ArcSwap;
use http::header::{HOST, ORIGIN, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method};
use tokio::time::Instant;

use crate::admit::{Door, admit, allow};
use crate::answer::Answer;
use crate::auth::ticket::Burned;
use crate::auth::{Credential, Facts, Kind, Principal, Tickets, verify};
use crate::clock::UnixTime;
use crate::denial::{Denial, Reason};
use crate::end::Cause;
use crate::handshake::{self, Upgrade};
use crate::headers;
use crate::issue;
use crate::limit::{Counts, Declined};
use crate::log::{self, Entry};
use crate::metrics::{Metrics, Outcome};
use crate::peer::{Caller, Peer};
use crate::random;
use crate::relay::{Bounds, Start};
use crate::route::{Issue, NotFound, OnFailure, Route};
use crate::rules::Rules;
use crate::tunnels::{Applicant, Live, Seat, Tunnels};
use crate::upstream::{self, Patience, Refusal, Stream};

/// What all requests share.
pub struct Proxy {
    pub rules: ArcSwap<Rules>,
    pub tunnels: Arc<Tunnels>,
    pub counts: Arc<Counts>,
    pub metrics: Metrics,
    /// Tickets that were used. Outside the rules: a reload gives none of them back.
    pub burned: Burned,
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
    /// Our 101 and a Close: a refusal that page code can read, and the place of whoever reads it.
    Declined(Vec<u8>, Declined),
    /// Anything else: the connection ends with it.
    Closed(Answer),
}

/// How a request ends that is not refused.
enum Done {
    Opened(Vec<u8>, Opened),
    PassedThrough(Refusal),
    /// By the counter for tickets, which has logged and counted it.
    Answered(Answer),
}

impl Proxy {
    /// Answers one request. Never fails: a refusal is an answer.
    pub async fn handle(&self, peer: Peer, mut parts: Parts) -> Reply {
        let mut entry = Entry::new(peer.address.ip(), parts.uri.path(), &parts.headers);
        let mut decline = None;
        match self.open(peer, &mut parts, &mut entry, &mut decline).await {
            Ok(Done::Opened(answer, opened)) => {
                self.metrics.answered(entry.route_label(), Outcome::Opened, entry.since.elapsed());
                Reply::Opened(answer, opened)
            }
            Ok(Done::PassedThrough(refusal)) => {
                entry.passed_through(refusal.status.as_u16());
                self.metrics.answered(entry.route_label(), Outcome::PassedThrough, entry.since.elapsed());
                Reply::Closed(pass_through(&refusal, &entry))
            }
            Ok(Done::Answered(answer)) => Reply::Closed(answer),
            Err(denial) => match decline.and_then(|decline| decline.answer(&self.counts, &entry.id, &denial)) {
                Some((answer, place)) => {
                    self.count_refusal(&entry, &denial, Some(denial.close_code()));
                    Reply::Declined(answer, place)
                }
                None => Reply::Closed(self.deny(&entry, &denial)),
            },
        }
    }

    /// One log line, one count, one answer.
    pub fn deny(&self, entry: &Entry, denial: &Denial) -> Answer {
        self.count_refusal(entry, denial, None);
        denial.answer(&entry.id)
    }

    fn count_refusal(&self, entry: &Entry, denial: &Denial, code: Option<u16>) {
        entry.refused(denial, code);
        self.metrics.refused(entry.route_label(), denial.reason);
        self.metrics.answered(entry.route_label(), Outcome::Refused, entry.since.elapsed());
    }

    async fn open(
        &self,
        peer: Peer,
        parts: &mut Parts,
        entry: &mut Entry,
        decline: &mut Option<Decline>,
    ) -> Result<Done, Denial> {
        let rules = self.rules.load_full(); // one snapshot until the tunnel stands
        let caller = rules.trusted_proxies.caller(peer, &parts.headers); // who is calling
        entry.caller = caller.address;
        if let Some((route, desk)) = find_desk(&rules, parts) {
            return Ok(Done::Answered(self.serve_desk(&rules, (route, desk), parts, &caller, entry)));
        }
        let route = find(&rules, parts)?; // where to                                        400 404
        entry.route = Some(route.name.clone());
        entry.upstream = Some(route.upstream.name.clone());
        let mut upgrade =
            handshake::parse(parts).map_err(|denial| self.explain(denial, &rules, route, parts, &caller))?; // 400 426
        *decline = Decline::of(route, &upgrade, &parts.headers, rules.max_declined);
        let offered = &mut upgrade.protocols;
        let credential = route.verifier.take_credential(parts, offered, route.hide_credentials)?; // 400
        let asked = Asked { rules: &rules, route, headers: &parts.headers, caller: &caller };
        let principal = self.verify(&asked, credential.as_ref(), true)?; // who they are      401 429
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
        let start = Start { from_client: Vec::new(), from_upstream: opened.early, extensions };
        let bounds = bounds(route);
        Ok(Done::Opened(answer, Opened { seat, upstream: opened.stream, start, bounds }))
    }

    /// `burn`: whether a ticket is used up by it.
    fn verify(&self, asked: &Asked<'_>, credential: Option<&Credential>, burn: bool) -> Result<Principal, Denial> {
        let address = asked.caller.address;
        if credential.is_some() {
            self.counts.may_attempt(address, StdInstant::now())?;
        }
        let tickets = Tickets {
            signer: &asked.rules.tickets,
            burned: burn.then_some(&self.burned),
            route: &asked.route.name,
            origin: issue::origin(asked.headers),
            address,
        };
        let facts = Facts { keys: &asked.rules.keys, now: UnixTime::now(), tickets };
        let verified = verify(&asked.route.verifier, credential, &facts);
        if credential.is_some() && verified.is_err() {
            self.counts.failed(address, StdInstant::now());
        }
        verified
    }

    /// The counter for tickets of a route: answers, logs and counts.
    fn serve_desk(
        &self,
        rules: &Rules,
        (route, desk): (&Arc<Route>, &Issue),
        parts: &mut Parts,
        caller: &Caller,
        entry: &mut Entry,
    ) -> Answer {
        entry.route = Some(route.name.clone());
        if parts.method == Method::OPTIONS
            && let Ok(answer) = issue::preflight(route, &parts.headers)
        {
            return answer;
        }
        match self.issue(rules, (route, desk), parts, caller, entry) {
            Ok(answer) => {
                entry.issued();
                self.metrics.answered(entry.route_label(), Outcome::Ticket, entry.since.elapsed());
                answer
            }
            Err(denial) => {
                self.count_refusal(entry, &denial, None);
                denial.answer_with(&entry.id, |draft| issue::share(draft, &route.conditions, &parts.headers))
            }
        }
    }

    /// A ticket for whoever proves by a key that it may use the route. Takes no place there: whoever dials does.
    fn issue(
        &self,
        rules: &Rules,
        (route, desk): (&Arc<Route>, &Issue),
        parts: &mut Parts,
        caller: &Caller,
        entry: &mut Entry,
    ) -> Result<Answer, Denial> {
        issue::check_method(route, parts)?;
        let credential = route.verifier.take_credential(parts, &mut Vec::new(), true)?;
        if credential.as_ref().is_some_and(|credential| credential.kind() == Kind::Ticket) {
            return Err(Denial::new(Reason::InvalidCredential, "a ticket gets no ticket: send the key"));
        }
        let asked = Asked { rules, route, headers: &parts.headers, caller };
        let principal = self.verify(&asked, credential.as_ref(), false)?;
        entry.key = principal.key().map(|key| key.id.clone());
        let door = Door { name: &route.name, conditions: &route.conditions };
        allow(&door, &principal, credential.as_ref().map(Credential::carrier), &parts.headers)?;
        issue::hand_out(route, desk, &principal, &parts.headers, caller, &rules.tickets, &entry.id)
    }

    /// A plain request that carried a good key comes from somebody who took one authenticated request for an authenticated
    /// connection: tell them.
    fn explain(&self, denial: Denial, rules: &Rules, route: &Route, parts: &mut Parts, caller: &Caller) -> Denial {
        if denial.reason != Reason::UpgradeRequired || parts.headers.contains_key(UPGRADE) {
            return denial;
        }
        let credential = route.verifier.take_credential(parts, &mut Vec::new(), true);
        let Ok(Some(credential)) = credential else { return denial };
        let asked = Asked { rules, route, headers: &parts.headers, caller };
        match self.verify(&asked, Some(&credential), false) {
            Ok(principal) => {
                Denial::new(Reason::UpgradeRequired, handshake::key_on_plain_request(route.verifier.ticket_path()))
                    .of_key(principal.key().map(|key| key.id.clone()))
            }
            Err(_) => denial,
        }
    }

    /// The question that every tunnel is asked again after a change.
    pub fn admits(&self, live: &Live) -> Result<Option<UnixTime>, Cause> {
        self.rules.load().admits(&live.principal, &live.route, &live.upstream, UnixTime::now())
    }
}

/// How a refusal is answered on a route whose pages are to learn of it.
struct Decline {
    accept: Box<str>,
    protocol: Option<Box<str>>,
    most: u32,
}

impl Decline {
    fn of(route: &Route, upgrade: &Upgrade, headers: &HeaderMap, most: u32) -> Option<Self> {
        match route.on_failure {
            OnFailure::Http => return None,
            OnFailure::Auto if !headers.contains_key(ORIGIN) => return None,
            OnFailure::Auto | OnFailure::Close => {}
        }
        let protocol = route.verifier.selectable(&upgrade.protocols).map(Into::into);
        Some(Self { accept: upgrade.accept().into(), protocol, most })
    }

    /// `None` where so many are being told already that this one gets an HTTP answer.
    fn answer(self, counts: &Arc<Counts>, id: &str, denial: &Denial) -> Option<(Vec<u8>, Declined)> {
        let place = counts.decline(self.most)?;
        Some((handshake::decline_answer(&self.accept, self.protocol.as_deref(), id, denial), place))
    }
}

/// What a credential is looked at for.
struct Asked<'a> {
    rules: &'a Rules,
    route: &'a Route,
    headers: &'a HeaderMap,
    caller: &'a Caller,
}

/// The counter for tickets that a request has come to.
fn find_desk<'r>(rules: &'r Rules, parts: &Parts) -> Option<(&'r Arc<Route>, &'r Issue)> {
    if !rules.routes.has_desks() || parts.headers.contains_key(UPGRADE) {
        return None;
    }
    let route = rules.routes.find_desk(host(parts), parts.uri.path())?;
    route.tickets.as_ref().map(|issue| (route, issue))
}

fn host(parts: &Parts) -> &str {
    parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}

fn find<'r>(rules: &'r Rules, parts: &Parts) -> Result<&'r Arc<Route>, Denial> {
    rules.routes.find(host(parts), parts.uri.path()).map_err(|not_found| match not_found {
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
