//! The credential in the first message: the handshake is completed first, and the upstream asked when the key is good.

use rustix::process::Signal;

use crate::support::frames::{Frame, close, masked, plain, text};
use crate::support::{Backend, Conn, Gate, KEY, Request, Wire, alice, eventually, route, ws};

const TEXT: &str =
    "auth: [{ api_key: { extract_from: [{ header: X-Api-Key }, { first_message: { format: text } }] } }]";
const GRAPHQL: &str = "auth: [{ api_key: { extract_from: { first_message: graphql-transport-ws } } }]";

fn first_message(fields: &str) -> String {
    format!("auth: [{{ api_key: {{ extract_from: [{{ first_message: {{ {fields} }} }}] }} }}]")
}

fn start(backend: &Backend, fields: &str) -> Gate {
    Gate::start(&route(backend, fields))
}

/// A client that was let in as far as its first message.
#[track_caller]
fn asked(gate: &Gate, request: Request) -> Wire {
    gate.send(request).opened().0
}

/// Closed with this code and reason; the log and the metric say so too, and the upstream was not asked.
#[track_caller]
fn turned_away(gate: &Gate, mut wire: Wire, code: u16, reason: &str) {
    assert_eq!(wire.read_close(), (code, reason.to_owned()));
    wire.send(close(code));
    assert!(wire.read_to_end().is_empty());
    said(gate, code, reason);
    eventually("it is counted", || gate.metric("wsbouncer_refusals_total", &[("reason", reason)]) >= 1.0);
}

#[track_caller]
fn accepted(backend: &Backend) -> Conn {
    let mut conn = backend.next();
    conn.accept();
    conn
}

/// A line of the log says so.
#[track_caller]
fn said(gate: &Gate, code: u16, reason: &str) {
    gate.log_line(|line| line.is("refused") && line.get("code") == code.to_string() && line.get("reason") == reason);
}

/// What this says is one frame of the client, unmasked.
#[track_caller]
fn reads(conn: &mut Conn, payload: &str) {
    let frame = conn.read_frame();
    assert!(frame.masked && frame.opcode == 1, "{frame:?}");
    assert_eq!(String::from_utf8_lossy(&frame.payload), payload);
}

#[test]
fn the_upstream_hears_nothing_until_the_key_is_good() {
    let backend = Backend::manual();
    let gate = start(&backend, TEXT);
    let mut client = asked(&gate, ws("/ws"));
    client.stays_silent();
    assert_eq!(backend.accepted(), 0);
    client.send(text(KEY));
    let mut upstream = accepted(&backend);
    assert_eq!(upstream.head.get("X-Auth-Key-Id"), Some("alice"));
    assert!(!upstream.head.text().contains(KEY));
    upstream.send(plain(1, b"welcome"));
    assert_eq!(client.read_frame(), Frame { opcode: 1, masked: false, payload: b"welcome".to_vec() });
    client.send(text("hello"));
    reads(&mut upstream, "hello");
    assert!(!gate.raw_log().contains(KEY));
    assert_eq!(gate.connections()[0]["key"], "alice");
}

#[test]
fn whoever_shows_a_key_in_the_request_is_not_asked() {
    let backend = Backend::manual();
    let gate = start(&backend, TEXT);
    let client = gate.send(alice());
    let mut upstream = accepted(&backend);
    let mut client = client.opened().0;
    client.send(text(KEY));
    reads(&mut upstream, KEY);
    gate.refuses_before(&backend, ws("/ws").with("X-Api-Key", "wrong"), 401, "invalid_credential");
}

#[test]
fn graphql_gets_its_first_message_and_what_came_with_it() {
    let backend = Backend::manual();
    let gate = start(&backend, GRAPHQL);
    let init = format!(r#"{{"type":"connection_init","payload":{{"token":"Bearer {KEY}"}}}}"#);
    let next = r#"{"id":"1","type":"subscribe"}"#;
    let (wire, head) = gate.send(ws("/ws").offer("graphql-transport-ws, graphql-ws").followed_by(text(&init))).opened();
    assert_eq!(head.get("Sec-WebSocket-Protocol"), Some("graphql-transport-ws"));
    let mut client = wire;
    let mut upstream = backend.next();
    assert_eq!(upstream.head.get("Sec-WebSocket-Protocol"), Some("graphql-transport-ws"));
    assert!(!upstream.head.has("Sec-WebSocket-Extensions"));
    client.send(text(next));
    upstream.stays_silent();
    upstream.accept_with("Sec-WebSocket-Protocol: graphql-transport-ws\r\n");
    reads(&mut upstream, &init);
    reads(&mut upstream, next);
    upstream.send(plain(1, br#"{"type":"connection_ack"}"#));
    assert_eq!(client.read_frame().payload, br#"{"type":"connection_ack"}"#);
}

#[test]
fn the_subprotocol_has_to_be_offered_and_extensions_are_declined() {
    let backend = Backend::manual();
    let gate = start(&backend, GRAPHQL);
    let answer = gate.refuses_before(&backend, ws("/ws").offer("graphql-ws"), 400, "bad_handshake");
    assert!(answer.field("detail").contains("graphql-transport-ws"));
    let offer = ws("/ws").offer("graphql-transport-ws").with("Sec-WebSocket-Extensions", "permessage-deflate");
    let (_, head) = gate.send(offer).opened();
    assert!(!head.has("Sec-WebSocket-Extensions"));
}

#[test]
fn fragments_pings_and_what_follows_come_in_order() {
    let backend = Backend::manual();
    let gate = start(&backend, &first_message("json: /token, forward: true"));
    let message = format!(r#"{{"token":"{KEY}"}}"#);
    let (a, b) = message.as_bytes().split_at(9);
    let mut first = masked(1, a);
    first[0] &= 0x7f;
    let rest = masked(0, b);
    let pipelined: Vec<u8> = (0..50).flat_map(|at| text(&format!("later {at}"))).collect();
    let stream = [first, masked(9, b"there?"), masked(10, b""), rest, pipelined].concat();
    for cut in [1, 7, stream.len()] {
        let mut client = asked(&gate, ws("/ws"));
        for piece in stream.chunks(cut) {
            client.send(piece);
        }
        assert_eq!(client.read_frame(), Frame { opcode: 10, masked: false, payload: b"there?".to_vec() });
        let mut upstream = accepted(&backend);
        reads(&mut upstream, &message);
        for at in 0..50 {
            reads(&mut upstream, &format!("later {at}"));
        }
    }
}

#[test]
fn a_wrong_key_has_the_code_of_its_refusal() {
    let backend = Backend::manual();
    let yaml = route(&backend, &format!("{TEXT}\nlimits: {{ max_connections_per_key: 1 }}"));
    let yaml = yaml.replace(
        "keys:\n",
        "keys:\n  - { id: old, secret: old-secret-0123456789, expires_at: 2020-01-01 }\n  - { id: bob, secret: bob-secret-0123456789, routes: [] }\n",
    );
    let gate = Gate::start(&yaml);
    let says = |key: &str, code, reason| {
        let mut wire = asked(&gate, ws("/ws"));
        wire.send(text(key));
        turned_away(&gate, wire, code, reason);
    };
    says("wrong", 4401, "invalid_credential");
    says("  ", 4401, "missing_credential");
    says("old-secret-0123456789", 4401, "expired_credential");
    says("bob-secret-0123456789", 4403, "not_allowed_on_route");
    assert_eq!(backend.accepted(), 0);
    let mut first = asked(&gate, ws("/ws"));
    first.send(text(KEY));
    let _upstream = accepted(&backend);
    gate.wait_for_open(1);
    says(KEY, 4429, "too_many_connections");
}

#[test]
fn what_is_no_first_message_has_a_code() {
    let backend = Backend::manual();
    let gate = start(&backend, &first_message("json: /token, max_bytes: 64B"));
    let mut fragment = masked(1, b"{");
    fragment[0] &= 0x7f;
    let long = text(&"x".repeat(65));
    let cases: [(&[u8], u16, &str); 9] = [
        (&text("{}"), 4401, "missing_credential"),
        (&text("no json"), 4401, "missing_credential"),
        (&masked(2, b"binary"), 1003, "bad_first_message"),
        (&masked(1, &[0xff, 0xfe]), 1007, "bad_first_message"),
        (&long[..8], 1009, "bad_first_message"),
        (&plain(1, b"not masked"), 1002, "bad_first_message"),
        (&[fragment, text("{}")].concat(), 1002, "bad_first_message"),
        (&close(1000), 1000, "bad_first_message"),
        (b"GET / HTTP/1.1\r\n", 1002, "bad_first_message"),
    ];
    for (bytes, code, reason) in cases {
        let mut wire = asked(&gate, ws("/ws"));
        wire.send(bytes);
        assert_eq!(wire.read_close(), (code, reason.to_owned()), "{bytes:?}");
        said(&gate, code, reason);
        if code == 1000 {
            assert!(wire.read_to_end().is_empty(), "both have said Close");
        }
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn whoever_says_nothing_is_late() {
    let backend = Backend::manual();
    let gate = start(&backend, &first_message("format: text, timeout: 200ms"));
    let silent = asked(&gate, ws("/ws"));
    turned_away(&gate, silent, 4408, "request_timeout");
    // Half a frame, then nothing.
    let mut slow = asked(&gate, ws("/ws"));
    slow.send(&text(KEY)[..9]);
    turned_away(&gate, slow, 4408, "request_timeout");
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn only_so_many_are_waited_for() {
    let backend = Backend::manual();
    let gate = Gate::start(&format!("limits: {{ max_waiting: 2 }}\n{}", route(&backend, TEXT)));
    let (first, _second) = (asked(&gate, ws("/ws")), asked(&gate, ws("/ws")));
    gate.refuses_before(&backend, ws("/ws"), 503, "at_capacity");
    drop(first);
    eventually("a place is free again", || gate.ask_status(ws("/ws")) == 101);
}

#[test]
fn an_origin_that_may_not_connect_is_not_asked() {
    let backend = Backend::manual();
    let gate = start(&backend, &format!("{TEXT}\nallowed_origins: [\"https://page.test\"]"));
    gate.refuses_before(&backend, ws("/ws").with("Origin", "https://evil.test"), 403, "origin_not_allowed");
    asked(&gate, ws("/ws").with("Origin", "https://page.test"));
}

#[test]
fn an_upstream_that_fails_after_our_101_is_told_by_code() {
    let gone = Backend::manual();
    let url = gone.url();
    drop(gone);
    let dead = Gate::start(&format!(
        "keys: [{{ id: alice, secret: {KEY} }}]\nroutes:\n  - {{ name: main, upstream: \"{url}\", auth: [{{ api_key: {{ extract_from: {{ first_message: {{ format: text }} }} }} }}] }}\n"
    ));
    let knock = |gate: &Gate| {
        let mut wire = asked(gate, ws("/ws"));
        wire.send(text(KEY));
        wire
    };
    turned_away(&dead, knock(&dead), 1014, "upstream_unreachable");

    let refusing = Backend::answers("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let gate = start(&refusing, TEXT);
    turned_away(&gate, knock(&gate), 1014, "upstream_bad_handshake");
    let line = gate.log_line(|line| line.is("refused"));
    assert_eq!((line.get("cause").as_str(), line.get("key").as_str()), ("it answered 403", "alice"));

    let mute = Backend::manual();
    let gate = start(&mute, &format!("{TEXT}\ntimeouts: {{ handshake: 200ms }}"));
    turned_away(&gate, knock(&gate), 1013, "upstream_timeout");
}

#[test]
fn a_key_that_is_revoked_while_the_upstream_is_asked_opens_nothing() {
    let backend = Backend::manual();
    let gate = start(&backend, TEXT);
    let mut client = asked(&gate, ws("/ws"));
    client.send(text(KEY));
    let mut upstream = backend.next();
    let without = gate.yaml().replace(KEY, "another-secret-0123456789");
    gate.reloads(|| gate.edit_config(&without));
    upstream.accept();
    turned_away(&gate, client, 4401, "invalid_credential");
}

#[test]
fn who_goes_while_the_upstream_is_asked_is_not_waited_for() {
    let backend = Backend::manual();
    let gate = start(&backend, TEXT);
    let mut client = asked(&gate, ws("/ws"));
    client.send(text(KEY));
    let mut upstream = backend.next();
    drop(client);
    assert!(upstream.read_to_close().0.is_empty());
    eventually("its place is given back", || gate.metric("wsbouncer_connections_open", &[]) == 0.0);
}

#[test]
fn a_drain_does_not_wait_for_first_messages() {
    let backend = Backend::manual();
    let mut gate = start(&backend, TEXT);
    let waiting = asked(&gate, ws("/ws"));
    gate.signal(Signal::TERM);
    let mut waiting = waiting;
    assert_eq!(waiting.read_close(), (1012, "draining".into()));
    drop(waiting);
    assert!(gate.exit().success());
}
