//! From what a caller shows to who it is: [`Credential`] in, [`Principal`] out.

pub mod api_key;
pub mod credential;
pub mod first_message;
pub mod ticket;

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;

use self::api_key::{Found, Key, Keys, Rejected};
pub use self::credential::{Credential, Kind, Place};
use self::first_message::FirstMessage;
use self::ticket::{Bound, Burned, Signer, Unfit};
use crate::clock::UnixTime;
use crate::denial::{Denial, Reason};
use crate::fields::plain_name;
use crate::secret::Digest;

/// How a route wants to know who is calling.
#[derive(Debug)]
pub enum Verifier {
    /// `auth: none`, written down by somebody.
    Open,
    Closed(Ways),
}

/// All ways into a route that is not open to everybody.
#[derive(Debug)]
pub struct Ways {
    /// Where a credential may stand in a request, and for what it is taken there.
    pub places: Vec<(Place, Kind)>,
    /// Where to look for a key when the request holds no credential.
    pub first_message: Option<FirstMessage>,
    /// Where tickets are to be had.
    pub ticket_path: Option<Box<str>>,
}

/// Who a caller is, proven. Only [`verify`] makes one.
#[derive(Debug, Clone)]
pub struct Principal(Who);

#[derive(Debug, Clone)]
enum Who {
    Anyone,
    Key { key: Arc<Key>, secret: Digest, valid_until: Option<UnixTime> },
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Who::Anyone => f.write_str("anyone: this route is open (auth: none)"),
            Who::Key { key, valid_until: Some(UnixTime(until)), .. } => {
                let until = jiff::Timestamp::from_second(*until).unwrap_or(jiff::Timestamp::MAX);
                write!(f, "the key {}, until {until}", key.id)
            }
            Who::Key { key, .. } => write!(f, "the key {}", key.id),
        }
    }
}

impl Principal {
    fn of(found: Found<'_>, secret: Digest) -> Self {
        Self(Who::Key { key: found.key().clone(), secret, valid_until: found.valid_until })
    }

    pub fn key(&self) -> Option<&Arc<Key>> {
        match &self.0 {
            Who::Anyone => None,
            Who::Key { key, .. } => Some(key),
        }
    }

    /// The digest of the very secret that was used, so that removing it ends what it opened.
    pub fn secret(&self) -> Option<&Digest> {
        match &self.0 {
            Who::Anyone => None,
            Who::Key { secret, .. } => Some(secret),
        }
    }

    pub fn valid_until(&self) -> Option<UnixTime> {
        match &self.0 {
            Who::Anyone => None,
            Who::Key { valid_until, .. } => *valid_until,
        }
    }
}

impl Verifier {
    /// For keys in these places.
    pub fn of_keys(places: impl IntoIterator<Item = Place>) -> Self {
        let places = places.into_iter().map(|place| (place, Kind::Key)).collect();
        Self::Closed(Ways { places, first_message: None, ticket_path: None })
    }

    fn places(&self) -> &[(Place, Kind)] {
        match self {
            Self::Open => &[],
            Self::Closed(ways) => &ways.places,
        }
    }

    /// Names of the headers that a credential may stand in.
    pub fn headers(&self) -> impl Iterator<Item = &str> {
        self.places().iter().filter_map(|(place, _)| match place {
            Place::Header(name) => Some(name.as_str()),
            Place::Bearer | Place::Basic => Some("authorization"),
            Place::Cookie(_) | Place::Query(_) | Place::Subprotocol { .. } => None,
        })
    }

    /// Where tickets for the route are to be had.
    pub fn ticket_path(&self) -> Option<&str> {
        match self {
            Self::Open => None,
            Self::Closed(ways) => ways.ticket_path.as_deref(),
        }
    }

    /// Where it found a credential, for people: never the credential.
    pub fn describe(&self, credential: &Credential) -> String {
        let what = match credential.kind() {
            Kind::Key => "a key",
            Kind::Ticket => "a ticket",
        };
        let place = self.places().get(credential.place());
        let place = place.map_or("the first message".into(), |(place, kind)| credential::describe(place, *kind));
        format!("{what} of {} characters, as {place}", credential.secret().length())
    }

    pub fn first_message(&self) -> Option<&FirstMessage> {
        match self {
            Self::Open => None,
            Self::Closed(ways) => ways.first_message.as_ref(),
        }
    }

    /// Takes the credential out of the request, where this verifier wants one.
    ///
    /// # Errors
    /// 400 `conflicting_credentials`.
    pub fn take_credential(
        &self,
        parts: &mut Parts,
        offered: &mut Vec<Box<str>>,
        hide: bool,
    ) -> Result<Option<Credential>, Denial> {
        credential::take(self.places(), parts, offered, hide)
    }

    /// What a refusal may select of an offer, so that a browser takes it: the first item that is no credential.
    pub fn selectable<'o>(&self, offered: &'o [Box<str>]) -> Option<&'o str> {
        credential::selectable(self.places(), offered)
    }

    /// Whether a backend might read a header of this name (`plain`: as such backends read it) as one that a credential of
    /// this route stands in, although it is another one.
    pub fn has_alias(&self, name: &str, plain: &str) -> bool {
        let stands_for = |wanted: &str| wanted.len() == plain.len() && wanted != name && plain_name(wanted) == plain;
        self.places().iter().any(|(place, _)| match place {
            Place::Header(wanted) => stands_for(wanted.as_str()),
            Place::Bearer | Place::Basic => stands_for("authorization"),
            Place::Cookie(_) => stands_for("cookie"),
            Place::Query(_) | Place::Subprotocol { .. } => false,
        })
    }
}

impl Ways {
    /// "send the key in ... or in ...", from the route's own configuration.
    fn missing(&self) -> String {
        let mut ways: Vec<String> = self
            .places
            .iter()
            .filter(|(_, kind)| *kind == Kind::Key)
            .map(|(place, kind)| credential::describe(place, *kind))
            .collect();
        if self.first_message.is_some() {
            ways.push("the first message".into());
        }
        let tickets = self.places.iter().filter(|(_, kind)| *kind == Kind::Ticket);
        let tickets: Vec<String> = tickets.map(|(place, kind)| credential::describe(place, *kind)).collect();
        if let Some(path) = &self.ticket_path {
            ways.push(format!("a ticket from POST {path}, sent as {}", tickets.join(" or ")));
        }
        format!("this route wants a key on the WebSocket handshake itself: {}", ways.join("; or "))
    }
}

/// What a credential is judged by.
pub struct Facts<'f> {
    pub keys: &'f Keys,
    pub now: UnixTime,
    pub tickets: Tickets<'f>,
}

/// What a ticket is judged by.
pub struct Tickets<'f> {
    pub signer: &'f Signer,
    /// `None` to look at a ticket without using it up.
    pub burned: Option<&'f Burned>,
    pub route: &'f str,
    /// Empty where there is none.
    pub origin: &'f [u8],
    pub address: IpAddr,
}

/// Turns a credential into a principal. `None` is right only where the route is open.
///
/// # Errors
/// 401: missing, invalid or expired. Unknown, disabled, not yet valid and used up look the same from outside. 503 when
/// more tickets are used than can be remembered.
pub fn verify(verifier: &Verifier, credential: Option<&Credential>, facts: &Facts<'_>) -> Result<Principal, Denial> {
    let ways = match verifier {
        Verifier::Open => return Ok(Principal(Who::Anyone)),
        Verifier::Closed(ways) => ways,
    };
    let challenge = credential::challenge(&ways.places);
    let verified = match credential {
        None => Err(Denial::new(Reason::MissingCredential, ways.missing())),
        Some(credential) => match credential.kind() {
            Kind::Key => by_secret(credential, facts),
            Kind::Ticket => by_ticket(credential, facts),
        },
    };
    verified.map_err(|denial| denial.challenge(challenge))
}

fn by_secret(credential: &Credential, facts: &Facts<'_>) -> Result<Principal, Denial> {
    let digest = credential.digest();
    let found = look_up(&digest, facts)?;
    if credential.user().is_some_and(|user| *user != *found.id()) {
        let cause = "the user name is not the id of the secret's key";
        return Err(invalid(cause).of_key(Some(found.key().id.clone())));
    }
    Ok(Principal::of(found, digest))
}

fn by_ticket(credential: &Credential, facts: &Facts<'_>) -> Result<Principal, Denial> {
    let tickets = &facts.tickets;
    let bound = Bound { route: tickets.route, origin: Some(tickets.origin), address: Some(tickets.address) };
    let ticket = tickets.signer.check(credential.secret().as_bytes(), &bound, facts.now).map_err(unfit)?;
    let found = look_up(&ticket.secret, facts)?;
    if !ticket.is_of(found.id()) {
        return Err(invalid("the secret of this ticket is another key's by now"));
    }
    if let Some(burned) = tickets.burned {
        burned.burn(&ticket, facts.now).map_err(|why| unfit(why).of_key(Some(found.key().id.clone())))?;
    }
    Ok(Principal::of(found, ticket.secret))
}

fn look_up<'k>(digest: &Digest, facts: &Facts<'k>) -> Result<Found<'k>, Denial> {
    facts.keys.find(digest, facts.now).map_err(|(why, found)| {
        let denial = match why {
            Rejected::Unknown => invalid("unknown key"),
            Rejected::Disabled => invalid("the key is disabled"),
            Rejected::NotYetValid => invalid("the key is not valid yet"),
            Rejected::Expired => expired("past valid_until or expires_at"),
        };
        denial.of_key(found.map(|found| found.key().id.clone()))
    })
}

fn unfit(why: Unfit) -> Denial {
    match why {
        Unfit::Malformed => invalid("this is no ticket"),
        Unfit::Foreign => invalid("the ticket is signed by nobody known, or for another route, origin or address"),
        Unfit::Used => invalid("the ticket was used already"),
        Unfit::Expired => expired("the ticket is past its time"),
        Unfit::Full => Denial::new(Reason::AtCapacity, "no more tickets can be used now")
            .because("too many used tickets are remembered"),
    }
}

fn invalid(cause: &'static str) -> Denial {
    Denial::new(Reason::InvalidCredential, "this credential does not open anything here").because(cause)
}

fn expired(cause: &'static str) -> Denial {
    Denial::new(Reason::ExpiredCredential, "this credential has expired").because(cause)
}
