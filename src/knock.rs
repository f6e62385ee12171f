//! A request that is to be decided about: what it asks for, of which route, and by whom.

use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;

use crate::auth::Credential;
use crate::auth::first_message::FirstMessage;
use crate::decline::Decline;
use crate::denial::{Denial, Reason};
use crate::forward::Plain;
use crate::handshake::Upgrade;
use crate::limit::Guest;
use crate::log::Entry;
use crate::peer::Caller;
use crate::route::{NotFound, Route};
use crate::rules::Rules;

/// A handshake that is to be decided about.
pub struct Knock {
    pub rules: Arc<Rules>,
    pub route: Arc<Route>,
    pub caller: Caller,
    pub parts: Parts,
    pub asks: Asks,
}

/// What is asked for.
pub enum Asks {
    Tunnel(Upgrade),
    /// A plain request that goes on as it is.
    Page(Plain),
}

impl std::fmt::Display for Asks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Page(_) => f.write_str("plain HTTP, which this route forwards"),
            Self::Tunnel(upgrade) if upgrade.protocols.is_empty() => {
                f.write_str("a WebSocket handshake, version 13, with no subprotocol to choose from")
            }
            Self::Tunnel(upgrade) => {
                write!(f, "a WebSocket handshake, version 13, offering {}", upgrade.protocols.join(", "))
            }
        }
    }
}

impl Asks {
    pub fn upgrade(&self) -> Option<&Upgrade> {
        match self {
            Self::Tunnel(upgrade) => Some(upgrade),
            Self::Page(_) => None,
        }
    }
}

impl Knock {
    /// Takes the credential out of the request. Before that, notes how a refusal would be told to a page.
    ///
    /// # Errors
    /// 400 `conflicting_credentials`.
    pub fn take_credential(&mut self, decline: &mut Option<Decline>) -> Result<Option<Credential>, Denial> {
        let mut nothing = Vec::new();
        let offered = match &mut self.asks {
            Asks::Page(_) => &mut nothing,
            Asks::Tunnel(upgrade) => {
                *decline = Decline::of(&self.route, upgrade, &self.parts.headers, self.caller.address);
                &mut upgrade.protocols
            }
        };
        self.route.verifier.take_credential(&mut self.parts, offered, self.route.hide_credentials)
    }

    /// Whether its credential may come as its first message.
    pub fn awaits_message(&self) -> bool {
        matches!(self.asks, Asks::Tunnel(_)) && self.route.verifier.first_message().is_some()
    }
}

/// A client whose handshake is complete, and whose first message is to say who it is.
pub struct Asked {
    pub knock: Box<Knock>,
    pub entry: Entry,
    /// Among those who are waited for.
    pub place: Guest,
}

impl Asked {
    /// What it is to say.
    pub fn wanted(&self) -> Option<&FirstMessage> {
        self.knock.route.verifier.first_message()
    }
}

/// The host that a request names.
pub fn host(parts: &Parts) -> &str {
    parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}

/// Where a request leads.
///
/// # Errors
/// 404 `no_route`, 400 `ambiguous_path`.
pub fn find<'r>(rules: &'r Rules, parts: &Parts) -> Result<&'r Arc<Route>, Denial> {
    rules.routes.find(host(parts), parts.uri.path()).map_err(|not_found| match not_found {
        NotFound::NoRoute => Denial::new(Reason::NoRoute, "nothing is served here"),
        NotFound::AmbiguousPath => Denial::new(Reason::AmbiguousPath, "this path could be read in more than one way"),
    })
}
