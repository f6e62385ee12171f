//! The life of a request. Every step is a line in `Proxy::receive` or, after it, in `Proxy::enter`; the order is the security
//! of this program.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant as StdInstant;

use http::HeaderMap;
use http::header::UPGRADE;
use http::request::Parts;

use crate::admit::{Door, admit};
use crate::answer::Answer;
use crate::auth::credential::Carrier;
use crate::auth::ticket::Burned;
use crate::auth::{Credential, Facts, Principal, Tickets, verify};
use crate::cap::Cap;
use crate::clock::UnixTime;
use crate::decline::Decline;
use crate::denial::{Denial, Reason};
use crate::end::Cause;
use crate::forward::{self, Forward};
use crate::handshake::{self, Answerable};
use crate::headers;
use crate::issue::{self, Served};
use crate::knock::{Asked, Asks, Knock, find, host};
use crate::limit::{Arrived, Counts, Guest, Space};
use crate::log::{self, Entry};
use crate::metrics::{Metrics, Outcome};
use crate::peer::{Caller, Peer};
use crate::relay::{Bounds, Start};
use crate::route::{Issue, Route};
use crate::rules::Rules;
use crate::spans::{BUILT_IN, Phase, Spans};
use crate::sync::ArcSwap;
use crate::tunnels::{Applicant, Kind, Live, Seat, Tunnels};
use crate::upstream::{self, Refusal, Stream};

/// What all requests share.
pub struct Proxy {
    pub rules: ArcSwap<Rules>,
    pub tunnels: Arc<Tunnels>,
    pub counts: Arc<Counts>,
    pub metrics: Metrics,
    /// Tickets that were used. Outside the rules: a reload gives none of them back.
    pub burned: Burned,
    /// Those that are to be sent.
    pub spans: Arc<Spans>,
}

/// Both sides have said yes: what the relay needs once our 101 is on its way.
pub struct Opened {
    pub seat: Seat,
    pub upstream: Stream,
    pub start: Start,
    pub bounds: Bounds,
}

/// What becomes of a request.
pub enum Reply {
    /// Our 101, and what the relay needs after it.
    Opened(Vec<u8>, Opened),
    /// Our 101, and whom it lets in no further than that.
    Asked(Vec<u8>, Box<Asked>),
    /// Our 101 and a Close: a refusal that page code can read, and the place of whoever reads it.
    Declined(Vec<u8>, Guest),
    /// A plain request that goes to the upstream.
    Forward(Entry, Box<Forward>),
    /// Anything else: the connection ends with it.
    Closed(Answer),
}

/// How a request ends that is not refused.
pub(crate) enum Done {
    Opened(Vec<u8>, Opened),
    Asked(Vec<u8>, Box<Knock>, Guest),
    PassedThrough(Refusal),
    /// By the counter for tickets, which has logged and counted it.
    Served(Answer),
    Forward(Box<Forward>),
}

/// A request as far as it is understood.
pub(crate) enum Received {
    Served(Answer),
    Knock(Box<Knock>, Option<Credential>),
}

impl Proxy {
    /// With nothing open, and so much space for connections.
    pub fn new(rules: Rules, space: Space) -> Self {
        let (tunnels, counts) = (Arc::<Tunnels>::default(), Arc::new(Counts::within(space)));
        counts.set_limits(&rules.limits);
        let (spans, mut metrics) = (Arc::<Spans>::default(), Metrics::new(tunnels.clone(), counts.clone()));
        if BUILT_IN {
            metrics.show_spans(spans.clone());
        }
        Self { metrics, rules: ArcSwap::from_pointee(rules), tunnels, counts, burned: Burned::default(), spans }
    }

    /// Answers one request. Never fails: a refusal is an answer. `place`: of the connection among those without a tunnel;
    /// taken here where it is only now known for whom a trusted proxy speaks. `arrived`: when its connection did, where that
    /// is recorded. What can be said at once is decided before this returns; the future holds what is left, and nothing
    /// twice.
    pub fn handle<'p>(
        &'p self,
        peer: Peer,
        parts: Parts,
        arrived: Option<StdInstant>,
        place: &mut Option<Guest>,
    ) -> impl Future<Output = Reply> + use<'p> {
        let mut entry = Entry::new(peer.address.ip(), parts.uri.path(), &parts.headers);
        if let Some(arrived) = arrived.filter(|_| self.rules.load().collector.is_some()) {
            entry.span = self.spans.begin(&parts.headers, arrived);
        }
        let mut decline = None;
        let received = self.receive(peer, parts, &mut entry, (&mut decline, place));
        async move {
            let done = match received {
                Ok(Received::Served(answer)) => Ok(Done::Served(answer)),
                Ok(Received::Knock(knock, None)) if knock.awaits_message() => self.ask(knock, &entry),
                Ok(Received::Knock(knock, credential)) => self.enter(&knock, credential.as_ref(), &mut entry).await,
                Err(denial) => Err(denial),
            };
            self.reply(done, entry, decline)
        }
    }

    fn reply(&self, done: Result<Done, Denial>, entry: Entry, decline: Option<Decline>) -> Reply {
        match done {
            Ok(Done::Opened(answer, opened)) => {
                self.answered(&entry, Outcome::Opened, 101);
                Reply::Opened(answer, opened)
            }
            Ok(Done::Asked(answer, knock, place)) => Reply::Asked(answer, Box::new(Asked { knock, entry, place })),
            Ok(Done::PassedThrough(refusal)) => {
                entry.passed_through(refusal.status.as_u16());
                self.answered(&entry, Outcome::PassedThrough, refusal.status.as_u16());
                Reply::Closed(pass_through(&refusal, &entry))
            }
            Ok(Done::Served(answer)) => Reply::Closed(answer),
            Ok(Done::Forward(forward)) => Reply::Forward(entry, forward),
            Err(denial) => match decline.map(|decline| decline.answer(&self.counts, &entry.id, &denial)) {
                Some(Ok((answer, place))) => {
                    self.count_refusal(&entry, &denial, Some(denial.close_code()));
                    Reply::Declined(answer, place)
                }
                Some(Err(cap)) => {
                    self.metrics.limit_reached(cap);
                    Reply::Closed(self.deny(&entry, &denial))
                }
                None => Reply::Closed(self.deny(&entry, &denial)),
            },
        }
    }

    /// Counts an answer that is no refusal.
    pub(crate) fn answered(&self, entry: &Entry, outcome: Outcome, status: u16) {
        self.metrics.answered(entry.route_label(), outcome, entry.since.elapsed());
        entry.ended(outcome.word(), Some(status));
    }

    /// One log line, one count, one answer.
    pub fn deny(&self, entry: &Entry, denial: &Denial) -> Answer {
        self.count_refusal(entry, denial, None);
        denial.answer(&entry.id)
    }

    pub(crate) fn count_refusal(&self, entry: &Entry, denial: &Denial, code: Option<u16>) {
        entry.refused(denial, code);
        if let Some(key) = denial.key.as_ref().or(entry.key.as_ref()) {
            self.counts.key_refused(key, denial.secret.as_deref().or(entry.secret.as_ref()));
        }
        self.metrics.refused(entry.route_label(), denial.reason);
        if let Some(cap) = denial.cap {
            self.metrics.limit_reached(cap);
        }
        self.metrics.answered(entry.route_label(), Outcome::Refused, entry.since.elapsed());
    }

    /// What is asked for, by whom, and what they show.
    pub(crate) fn receive(
        &self,
        peer: Peer,
        mut parts: Parts,
        entry: &mut Entry,
        (decline, place): (&mut Option<Decline>, &mut Option<Guest>),
    ) -> Result<Received, Denial> {
        let rules = self.rules.load_full(); // one snapshot until the tunnel stands
        let caller = rules.trusted_proxies.caller(peer, &parts.headers); // who is calling
        entry.caller = caller.address;
        entry.trail.note("caller", || caller.to_string());
        if place.is_none() {
            *place = Some(self.take_place(caller.address)?); // for whom the proxy speaks          429
        }
        if let Some(desk) = issue::find_desk(&rules, host(&parts), &parts) {
            return Ok(Received::Served(self.serve(&rules, desk, &mut parts, &caller, entry)));
        }
        let route = find(&rules, &parts)?.clone(); // where to                               400 404
        entry.route = Some(route.name.clone());
        entry.upstream = Some(route.upstream.name.clone());
        entry.trail.note("route", || route.to_string());
        let asks = match forward::asked_for(&route, &parts)? {
            Some(plain) => Asks::Page(plain), // which goes on as it is                     400 405
            None => {
                let parsed = handshake::parse(&parts);
                Asks::Tunnel(parsed.map_err(|denial| self.explain(denial, &rules, &route, &mut parts, &caller))?) // 400 426
            }
        };
        let mut knock = Box::new(Knock { rules, route, caller, parts, asks });
        let credential = knock.take_credential(decline)?; // 400
        entry.trail.note("request", || knock.asks.to_string());
        entry.trail.note("credential", || {
            let found = credential.as_ref().map(|credential| knock.route.verifier.describe(credential));
            found.unwrap_or_else(|| "none in the request".into())
        });
        Ok(Received::Knock(knock, credential))
    }

    /// A place among those of this address that have no tunnel.
    fn take_place(&self, address: IpAddr) -> Result<Guest, Denial> {
        match self.counts.arrive(address) {
            Arrived::Welcome(place) => Ok(place),
            Arrived::TooMany(_) | Arrived::Flood => Err(Denial::full(Cap::PendingPerAddress)),
        }
    }

    /// Whether whoever shows this may come in.
    pub(crate) fn let_in<'c>(
        &self,
        knock: &Knock,
        credential: Option<&'c Credential>,
        entry: &mut Entry,
    ) -> Result<(Seat, Option<Answerable<'c>>), Denial> {
        let Knock { rules, route, caller, parts, asks } = knock;
        // A page is many requests, and a browser sends its cookies with each: such a ticket loads them all, and opens one
        // tunnel. Any other is used up by whatever shows it.
        let carrier = credential.map(Credential::carrier);
        let is_of_page = matches!(asks, Asks::Page(_)) && carrier == Some(&Carrier::TicketCookie);
        let burned = (!is_of_page).then_some(&self.burned);
        let asked = (&**rules, &**route, &parts.headers, caller);
        let principal = self.verify(asked, credential, burned)?; // who they are               401 429 503
        entry.span.reached(Phase::Verify);
        entry.key = principal.key().map(|key| key.id.clone());
        entry.secret = principal.secret().copied();
        entry.trail.note("principal", || principal.to_string());
        let answerable = asks.upgrade().map(|upgrade| upgrade.check_answerable(carrier)).transpose()?; // 400
        let door = Door { name: &route.name, conditions: &route.conditions };
        let admission = admit(&door, principal, carrier, &parts.headers, caller, &self.counts)?; // 403 429 503
        entry.trail.note("admission", || "the key opens this route, the origin may connect, and there is room".into());
        let claim = self.tunnels.seat(admission, applicant(entry, route, asks))?; // on the list first  503
        let seat = claim.ask_again(|live| self.admits(live))?; // and asked once more           401 403 404
        Ok((seat, answerable))
    }

    /// Lets in whoever may come in, if the service says yes.
    pub(crate) async fn enter(
        &self,
        knock: &Knock,
        credential: Option<&Credential>,
        entry: &mut Entry,
    ) -> Result<Done, Denial> {
        let (seat, answerable) = self.let_in(knock, credential, entry)?;
        let Knock { rules, route, caller, parts, asks } = knock;
        let principal = &seat.live().principal;
        let (upgrade, answerable) = match (asks, answerable) {
            (Asks::Tunnel(upgrade), Some(answerable)) => (upgrade, answerable),
            (Asks::Page(plain), _) => {
                let request = headers::plain_request(parts, &rules.routes, route, principal, caller, entry);
                return Forward::new(seat, request, *plain, route).map(|forward| Done::Forward(Box::new(forward))); // 413
            }
            (Asks::Tunnel(_), None) => return Err(Denial::bad_handshake("the request cannot be answered")),
        };
        let request = headers::upstream_request(parts, upgrade, &rules.routes, route, principal, caller, entry);
        let asked = route.upstream.open(&seat, &request, upgrade, route.patience(), || entry.span.reached(Phase::Dial));
        let answer = asked.await?;
        entry.span.reached(Phase::Answer);
        let opened = match answer {
            upstream::Answer::Refused(refusal) => return Ok(Done::PassedThrough(refusal)), // their no   any
            upstream::Answer::Opened(opened) => opened, // their yes                            502 503 504
        };
        let confirmed = seat.confirm()?; // nobody ended it meanwhile                           401 403 404 503
        let extensions = opened.switched.has_extensions();
        let (answer, subprotocol) = handshake::accept_answer(upgrade, opened.switched, answerable); // our yes
        seat.opened(confirmed, subprotocol);
        self.metrics.opened(seat.live());
        log::opened(seat.live());
        let watch = route.watch(seat.live().principal.key().and_then(|key| key.limits.as_deref()));
        let start = Start { from_client: Vec::new(), from_upstream: opened.early, extensions, watch };
        Ok(Done::Opened(answer, Opened { seat, upstream: opened.stream, start, bounds: route.bounds() }))
    }

    /// `burned`: where a ticket is used up by it.
    fn verify(
        &self,
        (rules, route, headers, caller): (&Rules, &Route, &HeaderMap, &Caller),
        credential: Option<&Credential>,
        burned: Option<&Burned>,
    ) -> Result<Principal, Denial> {
        let address = caller.address;
        if credential.is_some() {
            self.counts.may_attempt(address, StdInstant::now())?;
        }
        let (signer, origin) = (&rules.tickets, issue::origin(headers));
        let tickets = Tickets { signer, burned, route: &route.name, origin, address };
        let facts = Facts { keys: &rules.keys, now: UnixTime::now(), tickets };
        let verified = verify(&route.verifier, credential, &facts);
        if credential.is_some() && verified.is_err() {
            self.counts.failed(address, StdInstant::now());
        }
        verified
    }

    /// The counter for tickets of a route: one log line, one count, one answer.
    fn serve(
        &self,
        rules: &Rules,
        (route, desk): (&Arc<Route>, &Issue),
        parts: &mut Parts,
        caller: &Caller,
        entry: &mut Entry,
    ) -> Answer {
        entry.route = Some(route.name.clone());
        let verify = |credential: Option<&Credential>, headers: &HeaderMap| {
            self.verify((rules, route, headers, caller), credential, None)
        };
        match issue::serve((route, desk), parts, caller, &rules.tickets, entry, verify) {
            Ok(Served::Preflight(answer)) => {
                entry.span.forget(); // counted nowhere
                answer
            }
            Ok(Served::Ticket(answer)) => {
                entry.issued();
                self.answered(entry, Outcome::Ticket, 200);
                answer
            }
            Err(denial) => {
                self.count_refusal(entry, &denial, None);
                denial.answer_with(&entry.id, |draft| issue::share(draft, &route.conditions, &parts.headers))
            }
        }
    }

    /// A plain request that carried a good key comes from somebody who took one authenticated request for an authenticated
    /// connection: tell them.
    fn explain(&self, denial: Denial, rules: &Rules, route: &Route, parts: &mut Parts, caller: &Caller) -> Denial {
        if denial.reason != Reason::UpgradeRequired || parts.headers.contains_key(UPGRADE) {
            return denial;
        }
        let credential = route.verifier.take_credential(parts, &mut Vec::new(), true);
        let Ok(Some(credential)) = credential else { return denial };
        match self.verify((rules, route, &parts.headers, caller), Some(&credential), None) {
            Ok(principal) => {
                let detail = handshake::key_on_plain_request(route.verifier.ticket_path());
                let key = principal.key().map(|key| key.id.clone());
                Denial::new(Reason::UpgradeRequired, detail).of_key(key).of_secret(principal.secret().copied())
            }
            Err(_) => denial,
        }
    }

    /// The question that every tunnel is asked again after a change.
    pub fn admits(&self, live: &Live) -> Result<Option<UnixTime>, Cause> {
        self.rules.load().admits(&live.principal, &live.route, &live.upstream, UnixTime::now())
    }
}

fn applicant(entry: &Entry, route: &Route, asks: &Asks) -> Applicant {
    Applicant {
        id: entry.id.clone(),
        upstream: route.upstream.name.clone(),
        caller: entry.caller,
        origin: entry.origin.clone(),
        kind: if asks.upgrade().is_some() { Kind::Tunnel } else { Kind::Http },
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
