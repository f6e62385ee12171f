//! A refusal that page code can read: the handshake is completed by us, and closed at once with a code (`on_failure`).

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderMap, ORIGIN};

use crate::cap::Cap;
use crate::denial::Denial;
use crate::handshake::{self, Upgrade};
use crate::limit::{Counts, Guest};
use crate::route::{OnFailure, Route};

/// How a handshake would be declined, known before anything else is looked at.
pub struct Decline {
    key: Box<str>,
    protocol: Option<Box<str>>,
    caller: IpAddr,
}

impl Decline {
    /// `None` where refusals are HTTP answers.
    pub fn of(route: &Route, upgrade: &Upgrade, headers: &HeaderMap, caller: IpAddr) -> Option<Self> {
        match route.on_failure {
            OnFailure::Http => return None,
            OnFailure::Auto if !headers.contains_key(ORIGIN) => return None,
            OnFailure::Auto | OnFailure::Close => {}
        }
        let protocol = route.verifier.selectable(&upgrade.protocols).map(Into::into);
        Some(Self { key: upgrade.key().into(), protocol, caller })
    }

    /// Our 101 with its Close, and a place for whoever reads it.
    ///
    /// # Errors
    /// The limit, where so many are being told already that this one gets an HTTP answer.
    pub fn answer(self, counts: &Arc<Counts>, id: &str, denial: &Denial) -> Result<(Vec<u8>, Guest), Cap> {
        let place = counts.decline(self.caller)?;
        Ok((handshake::decline_answer(&self.key, self.protocol.as_deref(), id, denial), place))
    }
}
