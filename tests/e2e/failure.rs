//! Refusals that page code can read: the handshake is completed to be closed with a code (`on_failure`).

use crate::support::client::plain_get;
use crate::support::{Backend, Gate, KEY, Request, Wire, alice, eventually, frames, route, ws};

const PAGE: &str = "https://page.test";

/// A handshake that is completed and closed: what was selected, and code and reason. The log and the metric agree.
#[track_caller]
fn declined(gate: &Gate, request: Request, code: u16, reason: &str) -> (Option<String>, Wire) {
    let count = || gate.metric("wsbouncer_refusals_total", &[("reason", reason)]);
    let before = count();
    let (mut wire, head) = gate.send(request).opened();
    assert_eq!(wire.read_close(), (code, reason.to_owned()));
    let id = head.get("X-Request-Id").expect("an id to ask the operator about").to_owned();
    let line = gate.log_line(|line| line.is("refused") && line.get("id") == id);
    assert_eq!((line.get("reason").as_str(), line.number("code")), (reason, u64::from(code)));
    assert_eq!(line.number("status"), u64::from(code - 4000));
    eventually("the refusal is counted once", || count() == before + 1.0);
    (head.get("Sec-WebSocket-Protocol").map(str::to_owned), wire)
}

fn start(backend: &Backend, fields: &str) -> Gate {
    Gate::start(&route(backend, fields))
}

#[test]
fn every_refusal_has_a_code_and_the_upstream_hears_nothing() {
    let backend = Backend::manual();
    let gate = start(
        &backend,
        "on_failure: close\nallowed_origins: [\"https://page.test\"]\nlimits: { max_connections_per_key: 1 }",
    );
    let sent = |request: Request, code, reason| {
        let (_, mut wire) = declined(&gate, request, code, reason);
        wire.send(frames::close(code));
        assert!(wire.read_to_end().is_empty(), "nothing after the Close, and a clean end");
    };
    sent(ws("/ws"), 4401, "missing_credential");
    sent(ws("/ws").with("X-Api-Key", "wrong"), 4401, "invalid_credential");
    sent(alice().offer(&format!("x-api-key, {KEY}")), 4400, "conflicting_credentials");
    sent(alice().with("Origin", "https://evil.test"), 4403, "origin_not_allowed");
    assert_eq!(backend.accepted(), 0);
    let first = gate.send(alice());
    let mut upstream = backend.next();
    upstream.accept();
    let _first = first.opened();
    sent(alice(), 4429, "too_many_connections");
}

#[test]
fn an_upstream_that_fails_is_told_by_code_too() {
    let backend = Backend::answers("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n");
    let gate = start(&backend, "on_failure: close");
    declined(&gate, alice(), 4502, "upstream_bad_handshake");
}

#[test]
fn a_browser_that_offered_gets_one_selected_and_never_the_key() {
    let backend = Backend::manual();
    let places = "auth: [{ api_key: { extract_from: [{ subprotocol: { pair: x-api-key } }, { subprotocol: { prefix: key. } }] } }]";
    let gate = start(&backend, &format!("on_failure: close\n{places}"));
    let selected = |offer: &str, reason| declined(&gate, ws("/ws").offer(offer), 4401, reason).0;
    assert_eq!(selected("x-api-key, wrong", "invalid_credential").as_deref(), Some("x-api-key"));
    assert_eq!(selected("chat, x-api-key, wrong", "invalid_credential").as_deref(), Some("chat"));
    assert_eq!(selected("key.wrong, chat", "invalid_credential").as_deref(), Some("chat"));
    assert_eq!(selected("chat, v2", "missing_credential").as_deref(), Some("chat"));
    // Nothing is left that could be selected: still told, to clients that do not insist.
    let (alone, _) = declined(&gate, ws("/ws").offer(&format!("key.{KEY}")), 4400, "bad_handshake");
    assert_eq!(alone, None);
}

#[test]
fn auto_tells_pages_by_code_and_others_by_status() {
    let backend = Backend::manual();
    let gate = start(&backend, "on_failure: auto");
    declined(&gate, ws("/ws").with("Origin", PAGE), 4401, "missing_credential");
    gate.refuses_before(&backend, ws("/ws"), 401, "missing_credential");
}

#[test]
fn what_is_no_handshake_is_answered_in_http() {
    let backend = Backend::manual();
    let gate = start(&backend, "on_failure: close\npath: /ws");
    gate.refuses(plain_get("/ws"), 426, "upgrade_required");
    gate.refuses(ws("/ws").set("Sec-WebSocket-Key", "short"), 400, "bad_handshake");
    gate.refuses(ws("/elsewhere"), 404, "no_route");
}

#[test]
fn whoever_does_not_go_has_two_seconds_and_one_of_few_places() {
    let backend = Backend::manual();
    let gate = Gate::start(&format!("limits: {{ max_declined: 2 }}\n{}", route(&backend, "on_failure: close")));
    let stay = || declined(&gate, ws("/ws"), 4401, "missing_credential").1;
    let (mut first, second) = (stay(), stay());
    gate.refuses(ws("/ws"), 401, "missing_credential");
    drop(second);
    eventually("a place is free again", || gate.send(ws("/ws")).read_head().first.contains("101"));
    assert!(first.read_to_end().is_empty(), "closed although the client never said anything");
}

#[test]
fn a_client_that_floods_after_its_refusal_is_cut_off() {
    let backend = Backend::manual();
    let gate = start(&backend, "on_failure: close");
    let (_, mut wire) = declined(&gate, ws("/ws"), 4401, "missing_credential");
    let piece = frames::masked(2, &[0; 60_000]);
    let refused = (0..200).any(|_| wire.try_send(&piece).is_err());
    assert!(refused, "12 MB were taken");
    assert_eq!(backend.accepted(), 0);
}
