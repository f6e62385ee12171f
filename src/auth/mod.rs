//! From what a caller shows to who it is: [`Credential`] in, [`Principal`] out.

pub mod api_key;
pub mod credential;

use std::sync::Arc;

use http::request::Parts;

use self::api_key::{Key, Keys, Rejected};
pub use self::credential::{Credential, Place};
use crate::clock::UnixTime;
use crate::denial::{Denial, Reason};
use crate::fields::plain_name;
use crate::secret::Digest;

/// How a route wants to know who is calling.
#[derive(Debug)]
pub enum Verifier {
    /// `auth: none`, written down by somebody.
    Open,
    ApiKey(Vec<Place>),
}

/// Who a caller is, proven. Only [`verify`] makes one.
#[derive(Debug, Clone)]
pub struct Principal(Who);

#[derive(Debug, Clone)]
enum Who {
    Anyone,
    Key { key: Arc<Key>, secret: Digest, valid_until: Option<UnixTime> },
}

impl Principal {
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
        match self {
            Self::Open => Ok(None),
            Self::ApiKey(places) => credential::take(places, parts, offered, hide),
        }
    }
}

impl Verifier {
    /// Whether a backend might read a header of this name (`plain`: as such backends read it) as one that a credential of
    /// this route stands in, although it is another one.
    pub fn has_alias(&self, name: &str, plain: &str) -> bool {
        let stands_for = |wanted: &str| wanted.len() == plain.len() && wanted != name && plain_name(wanted) == plain;
        match self {
            Self::Open => false,
            Self::ApiKey(places) => places.iter().any(|place| match place {
                Place::Header(wanted) => stands_for(wanted.as_str()),
                Place::Bearer | Place::Basic => stands_for("authorization"),
                Place::Cookie(_) => stands_for("cookie"),
                Place::Query(_) | Place::Subprotocol { .. } => false,
            }),
        }
    }
}

/// Turns a credential into a principal. `None` is right only where the route is open.
///
/// # Errors
/// 401: missing, invalid or expired. Unknown, disabled and not yet valid look the same from outside.
pub fn verify(
    verifier: &Verifier,
    credential: Option<&Credential>,
    keys: &Keys,
    now: UnixTime,
) -> Result<Principal, Denial> {
    let places = match verifier {
        Verifier::Open => return Ok(Principal(Who::Anyone)),
        Verifier::ApiKey(places) => places,
    };
    let Some(credential) = credential else {
        return Err(Denial::new(Reason::MissingCredential, credential::missing(places))
            .challenge(credential::challenge(places)));
    };
    let digest = credential.digest();
    let invalid = |cause: &'static str| {
        Denial::new(Reason::InvalidCredential, "this credential does not open anything here")
            .because(cause)
            .challenge(credential::challenge(places))
    };
    match keys.find(&digest, now) {
        Ok(found) if credential.user().is_some_and(|user| *user != *found.id()) => {
            Err(invalid("the user name is not the id of the secret's key").of_key(Some(found.key().id.clone())))
        }
        Ok(found) => {
            let (key, valid_until) = (found.key().clone(), found.valid_until);
            Ok(Principal(Who::Key { key, secret: digest, valid_until }))
        }
        Err((why, found)) => {
            let denial = match why {
                Rejected::Unknown => invalid("unknown key"),
                Rejected::Disabled => invalid("the key is disabled"),
                Rejected::NotYetValid => invalid("the key is not valid yet"),
                Rejected::Expired => Denial::new(Reason::ExpiredCredential, "this credential has expired")
                    .because("past valid_until or expires_at")
                    .challenge(credential::challenge(places)),
            };
            Err(denial.of_key(found.map(|found| found.key().id.clone())))
        }
    }
}
