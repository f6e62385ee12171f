//! Attacks that other systems fell for, each by its number in `tests/e2e/threats.md`, which says where every one of them is
//! shown. What comes behind a head is always in one write with it.

mod credentials;
mod enumeration;
mod exhaustion;
mod operation;
mod smuggling;
mod syntax;
mod targets;
mod upgrade;
mod upstream;

use crate::support::client::plain_get;
use crate::support::head::Answer;
use crate::support::{Backend, Gate, KEY, Request, alice, config, eventually, route, small};

/// A gate that is attacked, before an upstream that sees what gets there.
struct Trial {
    backend: Backend,
    gate: Gate,
}

impl Trial {
    /// Plain requests are told to upgrade.
    fn of_sockets() -> Self {
        let backend = Backend::manual();
        let gate = config(&small(&backend, "")).level("info").start();
        Self { backend, gate }
    }

    /// Plain requests go on to the upstream.
    fn of_pages() -> Self {
        let backend = Backend::manual();
        let gate = config(&route(&backend, "http: forward")).level("info").start();
        Self { backend, gate }
    }

    fn both() -> [Self; 2] {
        [Self::of_sockets(), Self::of_pages()]
    }

    /// Refused by us alone, once, with this word in answer, log and metric; and nobody was dialled.
    #[track_caller]
    fn refuses(&self, request: impl Into<Vec<u8>>, status: u16, reason: &str) -> Answer {
        self.gate.refuses_before(&self.backend, request, status, reason)
    }

    #[track_caller]
    fn refuses_all(&self, requests: impl IntoIterator<Item = Request>, status: u16, reason: &str) {
        for request in requests {
            self.refuses(request, status, reason);
        }
    }

    /// After all that, a good client is served as ever, and nothing of the attack has become a tunnel.
    #[track_caller]
    fn still_serves(mut self) {
        assert_eq!(self.gate.metric("wsbouncer_tunnels_opened_total", &[]), 0.0);
        // Who has its answer may be a moment ahead of the gauge.
        eventually("nothing is forwarded any more", || self.gate.metric("wsbouncer_forwards_open", &[]) == 0.0);
        self.still_serves_after(0);
        self.gate.is_well();
    }

    #[track_caller]
    fn still_serves_after(&self, opened: usize) {
        let client = self.gate.send(alice());
        let mut up = self.backend.next();
        assert_eq!(up.head.target(), "/ws");
        up.accept();
        let (mut client, _) = client.opened();
        client.send("still here");
        up.expect("still here");
        assert_eq!(self.gate.metric("wsbouncer_tunnels_opened_total", &[]), (opened + 1) as f64);
    }
}

/// A plain request with Alice's key.
fn page(method: &str, target: &str) -> Request {
    plain_get(target).first_line(&format!("{method} {target} HTTP/1.1")).with("X-Api-Key", KEY)
}

/// What an attacker hides behind a request: another one, with a key, so that it would be served if it were ever read.
fn hidden() -> Vec<u8> {
    let plain = page("GET", "/hidden").bytes();
    [plain, alice().first_line("GET /hidden HTTP/1.1").bytes()].concat()
}
