//! A request walked through without a client and without an upstream, by the very code that decides: what `explain` shows.

use std::sync::Arc;

use http::request::Parts;
use zeroize::Zeroizing;

use crate::answer::Answer;
use crate::denial::Denial;
use crate::headers;
use crate::knock::{Asks, Knock};
use crate::log::Entry;
use crate::peer::Peer;
use crate::proxy::{Proxy, Received};
use crate::route::Route;
use crate::trail::{Step, Trail};

/// What would be done with a request that is let in.
pub enum Would {
    /// Dial its upstream with this head.
    Dial(Arc<Route>, Zeroizing<Vec<u8>>),
    /// Forward it as plain HTTP.
    Forward(Arc<Route>),
    /// Complete the handshake, and wait for the first message.
    Ask,
    /// Answer it: the counter for tickets.
    Answer(Answer),
}

impl Proxy {
    /// Every step of a request up to the upstream, and no further.
    pub fn rehearse(&self, peer: Peer, parts: Parts) -> (Vec<Step>, Result<Would, Denial>) {
        let mut entry = Entry::new(peer.address.ip(), parts.uri.path(), &parts.headers);
        entry.trail = Trail::kept();
        let would = self.receive(peer, parts, &mut entry, (&mut None, &mut None)).and_then(|received| match received {
            Received::Served(answer) => Ok(Would::Answer(answer)),
            Received::Knock(knock, None) if knock.awaits_message() => self.ask(knock, &entry).map(|_| Would::Ask),
            Received::Knock(knock, credential) => {
                let (seat, _) = self.let_in(&knock, credential.as_ref(), &mut entry)?;
                let Knock { rules, route, caller, parts, asks } = &*knock;
                let principal = &seat.live().principal;
                Ok(match asks {
                    Asks::Page(_) => Would::Forward(route.clone()),
                    Asks::Tunnel(upgrade) => {
                        let routes = &rules.routes;
                        let head = headers::upstream_request(parts, upgrade, routes, route, principal, caller, &entry);
                        Would::Dial(route.clone(), head)
                    }
                })
            }
        });
        (std::mem::take(&mut entry.trail).into_steps(), would)
    }
}
