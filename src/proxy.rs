//! The life of a request. Every step is a line in `Proxy::open` or, after it, in `Proxy::enter`; the order is the security
//! of this program.

use std::sync::Arc;
use std::time::Instant as StdInstant;

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::{HOST, UPGRADE};
use http::request::Parts;
use tokio::time::Instant;

use crate::admit::{Door, admit, check_origin};
use crate::answer::Answer;
use crate::auth::first_message::FirstMessage;
use crate::auth::ticket::Burned;
use crate::auth::{Credential, Facts, Principal, Tickets, verify};
use crate::clock::UnixTime;
use crate::decline::Decline;
use crate::denial::{Denial, Reason};
use crate::end::Cause;
use crate::first_message::First;
use crate::frame;
use crate::handshake::{self, Upgrade};
use crate::headers;
use crate::issue::{self, Served};
use crate::limit::{Counts, Guest};
use crate::log::{self, Entry};
use crate::metrics::{Metrics, Outcome};
use crate::peer::{Caller, Peer};
use crate::random;
use crate::relay::{Bounds, Start};
use crate::route::{Issue, NotFound, Route};
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
    /// Our 101, and whom it lets in no further than that.
    Asked(Vec<u8>, Box<Asked>),
    /// Our 101 and a Close: a refusal that page code can read, and the place of whoever reads it.
    Declined(Vec<u8>, Guest),
    /// Anything else: the connection ends with it.
    Closed(Answer),
}

/// How a request ends that is not refused.
enum Done {
    Opened(Vec<u8>, Opened),
    Asked(Vec<u8>, Box<Knock>, Guest),
    PassedThrough(Refusal),
    /// By the counter for tickets, which has logged and counted it.
    Served(Answer),
}

/// A handshake that is to be decided about.
struct Knock {
    rules: Arc<Rules>,
    route: Arc<Route>,
    caller: Caller,
    parts: Parts,
    upgrade: Upgrade,
}

/// A client whose handshake is complete, and whose first message is to say who it is.
pub struct Asked {
    knock: Knock,
    entry: Entry,
    _place: Guest,
}

impl Asked {
    /// What it is to say.
    pub fn wanted(&self) -> Option<&FirstMessage> {
        self.knock.route.verifier.first_message()
    }
}

impl Proxy {
    /// Answers one request. Never fails: a refusal is an answer.
    pub async fn handle(&self, peer: Peer, parts: Parts) -> Reply {
        let mut entry = Entry::new(peer.address.ip(), parts.uri.path(), &parts.headers);
        let mut decline = None;
        match self.open(peer, parts, &mut entry, &mut decline).await {
            Ok(Done::Opened(answer, opened)) => {
                self.metrics.answered(entry.route_label(), Outcome::Opened, entry.since.elapsed());
                Reply::Opened(answer, opened)
            }
            Ok(Done::Asked(answer, knock, place)) => {
                Reply::Asked(answer, Box::new(Asked { knock: *knock, entry, _place: place }))
            }
            Ok(Done::PassedThrough(refusal)) => {
                entry.passed_through(refusal.status.as_u16());
                self.metrics.answered(entry.route_label(), Outcome::PassedThrough, entry.since.elapsed());
                Reply::Closed(pass_through(&refusal, &entry))
            }
            Ok(Done::Served(answer)) => Reply::Closed(answer),
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
        if let Some(key) = denial.key.as_ref().or(entry.key.as_ref()) {
            self.counts.key_refused(key, denial.secret.as_deref().or(entry.secret.as_ref()));
        }
        self.metrics.refused(entry.route_label(), denial.reason);
        self.metrics.answered(entry.route_label(), Outcome::Refused, entry.since.elapsed());
    }

    /// What is asked, and by whom.
    async fn open(
        &self,
        peer: Peer,
        mut parts: Parts,
        entry: &mut Entry,
        decline: &mut Option<Decline>,
    ) -> Result<Done, Denial> {
        let rules = self.rules.load_full(); // one snapshot until the tunnel stands
        let caller = rules.trusted_proxies.caller(peer, &parts.headers); // who is calling
        entry.caller = caller.address;
        if let Some(desk) = issue::find_desk(&rules, host(&parts), &parts) {
            return Ok(Done::Served(self.serve(&rules, desk, &mut parts, &caller, entry)));
        }
        let route = find(&rules, &parts)?.clone(); // where to                               400 404
        entry.route = Some(route.name.clone());
        entry.upstream = Some(route.upstream.name.clone());
        let mut upgrade =
            handshake::parse(&parts).map_err(|denial| self.explain(denial, &rules, &route, &mut parts, &caller))?; // 400 426
        *decline = Decline::of(&route, &upgrade, &parts.headers, rules.max_declined);
        let offered = &mut upgrade.protocols;
        let credential = route.verifier.take_credential(&mut parts, offered, route.hide_credentials)?; // 400
        let knock = Knock { rules, route, caller, parts, upgrade };
        if credential.is_none() && knock.route.verifier.first_message().is_some() {
            return self.ask(knock, entry);
        }
        self.enter(knock, credential, entry).await
    }

    /// Whether whoever shows this may come in, and the service says yes.
    async fn enter(&self, knock: Knock, credential: Option<Credential>, entry: &mut Entry) -> Result<Done, Denial> {
        let Knock { rules, route, caller, parts, upgrade } = &knock;
        let asked = (&**rules, &**route, &parts.headers, caller);
        let principal = self.verify(asked, credential.as_ref(), Some(&self.burned))?; // who they are   401 429 503
        entry.key = principal.key().map(|key| key.id.clone());
        entry.secret = principal.secret().copied();
        let carrier = credential.as_ref().map(Credential::carrier);
        let answerable = upgrade.check_answerable(carrier)?; // could we say yes                400
        let door = Door { name: &route.name, conditions: &route.conditions };
        let admission = admit(&door, principal, carrier, &parts.headers, caller, &self.counts)?; // 403 429 503
        let claim = self.tunnels.seat(admission, applicant(entry, route))?; // on the list first  503
        let seat = claim.ask_again(|live| self.admits(live))?; // and asked once more           401 403 404
        let principal = &seat.live().principal;
        let request = headers::upstream_request(parts, upgrade, &rules.routes, route, principal, caller, &entry.id);
        let patience = Patience { connect: route.timeouts.connect, handshake: route.timeouts.handshake };
        let opened = match route.upstream.open(&seat, &request, upgrade, patience).await? {
            upstream::Answer::Refused(refusal) => return Ok(Done::PassedThrough(refusal)), // their no   any
            upstream::Answer::Opened(opened) => opened, // their yes                            502 503 504
        };
        let confirmed = seat.confirm()?; // nobody ended it meanwhile                           401 403 404 503
        let extensions = opened.switched.has_extensions();
        let (answer, subprotocol) = handshake::accept_answer(upgrade, opened.switched, answerable); // our yes
        seat.opened(confirmed, subprotocol);
        self.metrics.opened(seat.live());
        log::opened(seat.live());
        let start = Start { from_client: Vec::new(), from_upstream: opened.early, extensions };
        let bounds = bounds(route);
        Ok(Done::Opened(answer, Opened { seat, upstream: opened.stream, start, bounds }))
    }

    /// Completes the handshake of whoever is to prove itself by its first message. What needs no proof is looked at first.
    fn ask(&self, mut knock: Knock, entry: &Entry) -> Result<Done, Denial> {
        check_origin(knock.route.conditions.origins.as_deref(), &knock.parts.headers, None)?;
        let wanted = knock.route.verifier.first_message().and_then(|first| first.subprotocol.clone());
        knock.upgrade.narrow(wanted.as_deref())?;
        if self.tunnels.is_draining() {
            return Err(Denial::new(Reason::Draining, "this proxy is about to stop"));
        }
        let place = self.counts.wait_for(knock.rules.max_waiting).ok_or_else(|| {
            Denial::new(Reason::AtCapacity, "all connections are in use").because("limits.max_waiting is reached")
        })?;
        let answer = handshake::switch(knock.upgrade.key(), wanted.as_deref(), &entry.id);
        Ok(Done::Asked(answer, Box::new(knock), place))
    }

    /// The first message of a client that was asked for it: what the relay needs.
    ///
    /// # Errors
    /// The Close frame that says why there is no tunnel. It is logged and counted.
    pub async fn hear(&self, asked: Asked, first: First) -> Result<Opened, Vec<u8>> {
        let Asked { knock, mut entry, _place } = asked;
        let wanted = knock.route.verifier.first_message();
        let credential = wanted.and_then(|wanted| wanted.read(&first.text));
        let forwarded = wanted.filter(|wanted| wanted.forward).map(|_| frame::text(&first.text, random::bytes()));
        match self.enter(knock, credential, &mut entry).await {
            Ok(Done::Opened(_, mut opened)) => {
                self.metrics.answered(entry.route_label(), Outcome::Opened, entry.since.elapsed());
                opened.start.from_client = forwarded.unwrap_or_default();
                opened.start.from_client.extend(first.rest);
                Ok(opened)
            }
            Ok(Done::PassedThrough(refusal)) => {
                let denial = Denial::new(Reason::UpstreamBadHandshake, "the service gave no valid answer");
                Err(self.turn_away(&entry, &denial.because(format!("it answered {}", refusal.status.as_u16()))))
            }
            // Nothing else comes of entering.
            Ok(Done::Asked(..) | Done::Served(_)) => Err(Vec::new()),
            Err(denial) => Err(self.turn_away(&entry, &denial)),
        }
    }

    /// The Close frame for a client that was asked and has not answered, or not as it should.
    pub fn not_heard(&self, asked: &Asked, denial: &Denial) -> Vec<u8> {
        self.turn_away(&asked.entry, denial)
    }

    fn turn_away(&self, entry: &Entry, denial: &Denial) -> Vec<u8> {
        let code = denial.late_close_code();
        self.count_refusal(entry, denial, Some(code));
        frame::close(code, denial.reason.word(), None)
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
            Ok(Served::Preflight(answer)) => answer,
            Ok(Served::Ticket(answer)) => {
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
