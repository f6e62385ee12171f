//! Between the handshake and the upstream: a client that was told yes by us, and whose first message is to say who it is.

use crate::admit::check_origin;
use crate::denial::{Denial, Reason};
use crate::first_message::First;
use crate::frame;
use crate::handshake;
use crate::knock::{Asked, Asks, Knock};
use crate::log::Entry;
use crate::metrics::Outcome;
use crate::proxy::{Done, Opened, Proxy};
use crate::random;

impl Proxy {
    /// Completes the handshake of whoever is to prove itself by its first message. What needs no proof is looked at first.
    pub(crate) fn ask(&self, mut knock: Box<Knock>, entry: &Entry) -> Result<Done, Denial> {
        check_origin(knock.route.conditions.origins.as_deref(), &knock.parts.headers, None)?;
        let wanted = knock.route.verifier.first_message().and_then(|first| first.subprotocol.clone());
        let Asks::Tunnel(upgrade) = &mut knock.asks else {
            return Err(Denial::bad_handshake("only a WebSocket has a first message"));
        };
        upgrade.narrow(wanted.as_deref())?;
        if self.tunnels.is_draining() {
            return Err(Denial::new(Reason::Draining, "this proxy is about to stop"));
        }
        let place = self.counts.wait_for(knock.caller.address)?;
        let answer = handshake::switch(upgrade.key(), wanted.as_deref(), &entry.id);
        Ok(Done::Asked(answer, knock, place))
    }

    /// The first message of a client that was asked for it: what the relay needs.
    ///
    /// # Errors
    /// The Close frame that says why there is no tunnel. It is logged and counted.
    pub async fn hear(&self, asked: Asked, first: First) -> Result<Opened, Vec<u8>> {
        let Asked { knock, mut entry, place: _place } = asked;
        let wanted = knock.route.verifier.first_message();
        let credential = wanted.and_then(|wanted| wanted.read(&first.text));
        let forwarded = wanted.filter(|wanted| wanted.forward).map(|_| frame::text(&first.text, random::bytes()));
        match self.enter(&knock, credential.as_ref(), &mut entry).await {
            Ok(Done::Opened(_, mut opened)) => {
                self.answered(&entry, Outcome::Opened, 101);
                opened.start.from_client = forwarded.unwrap_or_default();
                opened.start.from_client.extend(first.rest);
                Ok(opened)
            }
            Ok(Done::PassedThrough(refusal)) => {
                let denial = Denial::new(Reason::UpstreamBadHandshake, "the service gave no valid answer");
                Err(self.turn_away(&entry, &denial.because(format!("it answered {}", refusal.status.as_u16()))))
            }
            // Nothing else comes of entering.
            Ok(Done::Asked(..) | Done::Served(_) | Done::Forward(_)) => Err(Vec::new()),
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
}
