//! What a client offered, what the upstream is offered, and what the client is answered (design, section 3).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::support::head::{Answer, Head};
use crate::support::{Backend, Gate, KEY, alice, route, stand, ws};

/// Pair, prefix and presets, all on one route.
fn gate(backend: &Backend) -> Gate {
    Gate::start(&route(
        backend,
        "auth: [ { api_key: { extract_from: [ { header: X-Api-Key }, { subprotocol: { pair: x-api-key } }, \
         { subprotocol: { preset: kubernetes } }, { subprotocol: { preset: openai } }, \
         { subprotocol: { preset: deepgram } }, { subprotocol: { preset: bearer } } ] } } ]",
    ))
}

fn kubernetes() -> String {
    format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(KEY))
}

/// Offers, lets the upstream choose, and gives what the upstream saw and what the client was answered.
#[track_caller]
fn exchange(gate: &Gate, backend: &Backend, offer: &str, chosen: Option<&str>) -> (Head, Head) {
    let mut request = ws("/ws");
    if !offer.contains(KEY) && !offer.contains("k8s.io") {
        request = alice();
    }
    let client = gate.send(request.offer(offer));
    let mut up = backend.next();
    up.accept_with(&chosen.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default());
    let seen = up.head.clone();
    let (mut client, answer) = client.opened();
    client.send("through");
    up.expect("through");
    assert!(!answer.text().contains(KEY) && !answer.text().contains("k8s.io."), "{}", answer.text());
    assert!(!seen.text().contains(KEY) && !seen.text().contains("k8s.io."), "{}", seen.text());
    (seen, answer)
}

/// (offered, the upstream sees, it chooses, the client gets)
type Case<'c> = (&'c str, Option<&'c str>, Option<&'c str>, Option<&'c str>);

#[track_caller]
fn check(cases: &[Case<'_>]) {
    let backend = Backend::manual();
    let gate = gate(&backend);
    for (offer, seen, chosen, answered) in cases {
        let (head, answer) = exchange(&gate, &backend, offer, *chosen);
        let context = format!("offer {offer:?}, choice {chosen:?}");
        assert_eq!(head.get("Sec-WebSocket-Protocol").map(spaced), seen.map(spaced), "{context}: offered upstream");
        assert_eq!(answer.get("Sec-WebSocket-Protocol"), *answered, "{context}: answered");
    }
}

/// Blanks after commas do not matter.
fn spaced(list: &str) -> String {
    list.split(',').map(str::trim).collect::<Vec<_>>().join(",")
}

#[test]
fn a_pair_is_answered_with_its_marker_unless_the_upstream_chooses() {
    let pair = format!("x-api-key, {KEY}");
    let then_chat = format!("{pair}, chat, v2.chat");
    let between = format!("chat, {pair}, v2.chat");
    let last = format!("chat,v2.chat,x-api-key,{KEY}");
    check(&[
        (&pair, None, None, Some("x-api-key")),
        (&then_chat, Some("chat, v2.chat"), None, Some("x-api-key")),
        (&then_chat, Some("chat, v2.chat"), Some("chat"), Some("chat")),
        (&then_chat, Some("chat, v2.chat"), Some("v2.chat"), Some("v2.chat")),
        (&between, Some("chat, v2.chat"), None, Some("x-api-key")),
        (&between, Some("chat, v2.chat"), Some("v2.chat"), Some("v2.chat")),
        (&last, Some("chat, v2.chat"), None, Some("x-api-key")),
        (&last, Some("chat, v2.chat"), Some("chat"), Some("chat")),
    ]);
}

#[test]
fn a_marker_comes_back_as_the_client_wrote_it() {
    let (bearer, capital, token) = (format!("bearer, {KEY}"), format!("Bearer, {KEY}, chat"), format!("token, {KEY}"));
    check(&[
        (&bearer, None, None, Some("bearer")),
        (&capital, Some("chat"), None, Some("Bearer")),
        (&capital, Some("chat"), Some("chat"), Some("chat")),
        (&token, None, None, Some("token")),
    ]);
}

#[test]
fn a_prefixed_item_is_answered_with_the_first_of_the_rest_unless_the_upstream_chooses() {
    let kubernetes = kubernetes();
    let first = format!("{kubernetes}, v4.channel.k8s, v3.channel");
    let last = format!("v4.channel.k8s, v3.channel, {kubernetes}");
    let openai = format!("realtime, openai-insecure-api-key.{KEY}, openai-beta.realtime-v1");
    check(&[
        (&first, Some("v4.channel.k8s, v3.channel"), None, Some("v4.channel.k8s")),
        (&first, Some("v4.channel.k8s, v3.channel"), Some("v3.channel"), Some("v3.channel")),
        (&last, Some("v4.channel.k8s, v3.channel"), None, Some("v4.channel.k8s")),
        (&openai, Some("realtime, openai-beta.realtime-v1"), None, Some("realtime")),
        (
            &openai,
            Some("realtime, openai-beta.realtime-v1"),
            Some("openai-beta.realtime-v1"),
            Some("openai-beta.realtime-v1"),
        ),
    ]);
}

#[test]
fn a_lone_prefixed_item_is_refused_with_the_call_that_works() {
    let backend = Backend::manual();
    let gate = gate(&backend);
    for item in [kubernetes(), format!("openai-insecure-api-key.{KEY}")] {
        let client = gate.send(ws("/ws").offer(&item));
        // Whether the upstream was asked first is left open; if it was, it selects nothing.
        if backend.accepted() > 0 {
            backend.next().accept();
        }
        let mut client = client;
        let answer = client.read_answer();
        gate.check_refusal(&answer, 400, "bad_handshake");
        assert!(answer.field("detail").contains("new WebSocket("), "{}", answer.text());
        assert_no_secret(&answer);
    }
    assert_eq!(gate.connections().len(), 0);
}

fn assert_no_secret(answer: &Answer) {
    let all = answer.head.text() + &answer.text();
    assert!(!all.contains(KEY) && !all.contains(&URL_SAFE_NO_PAD.encode(KEY)), "{all}");
}

#[test]
fn without_a_credential_among_them_subprotocols_pass_both_ways_unchanged() {
    check(&[
        ("chat", Some("chat"), None, None),
        ("chat", Some("chat"), Some("chat"), Some("chat")),
        ("chat, superchat", Some("chat, superchat"), Some("superchat"), Some("superchat")),
        ("mqtt", Some("mqtt"), Some("mqtt"), Some("mqtt")),
    ]);
}

#[test]
fn several_lines_are_one_list_in_order() {
    let backend = Backend::manual();
    let gate = gate(&backend);
    let client = gate.send(ws("/ws").offer("a , b").offer("x-api-key").offer(&format!("{KEY},c")));
    let mut up = backend.next();
    up.accept_with("Sec-WebSocket-Protocol: c\r\n");
    assert_eq!(up.head.all("Sec-WebSocket-Protocol").join(",").replace(' ', ""), "a,b,c");
    assert_eq!(client.opened().1.get("Sec-WebSocket-Protocol"), Some("c"));
}

#[test]
fn the_chosen_subprotocol_is_logged_and_the_secret_is_not() {
    let backend = Backend::manual();
    let gate = gate(&backend);
    exchange(&gate, &backend, &format!("x-api-key, {KEY}"), None);
    let line = gate.log_line(|line| line.is("tunnel opened"));
    assert_eq!(line.get("subprotocol"), "x-api-key");
    assert!(!gate.raw_log().contains(KEY));
}

#[test]
fn a_secret_that_looks_like_its_marker_is_still_the_secret() {
    let backend = Backend::manual();
    let yaml = format!("upstream: {}\nkeys: [ {{ id: odd, secret: x-api-key }} ]\n", backend.url());
    let gate = Gate::start(&yaml);
    let client = gate.send(ws("/ws").offer("x-api-key, x-api-key, chat"));
    let mut up = backend.next();
    assert_eq!(up.head.get("Sec-WebSocket-Protocol"), Some("chat"));
    up.accept();
    client.opened();
}

// ---- what cannot be a list

#[test]
fn a_list_that_is_none_is_refused() {
    let (backend, gate) = stand();
    for list in ["chat,,v2", "a b", "chat;v2", "chat, \"v2\"", "chat/2", "a@b", "(x)", "", ","] {
        let answer = gate.refuses_before(&backend, alice().offer(list), 400, "bad_handshake");
        assert!(answer.field("detail").to_lowercase().contains("protocol"), "{list:?}: {}", answer.text());
    }
}

#[test]
fn a_list_has_at_most_32_items_and_4_kib() {
    let (backend, gate) = stand();
    let items = |count: usize| (0..count).map(|n| format!("p{n}")).collect::<Vec<_>>().join(", ");
    let client = gate.send(alice().offer(&items(32)));
    let mut up = backend.next();
    up.accept_with("Sec-WebSocket-Protocol: p31\r\n");
    client.opened();
    gate.refuses(alice().offer(&items(33)), 400, "bad_handshake");
    gate.refuses(alice().offer(&items(20)).offer(&items(20)), 400, "bad_handshake");
    let long = |length: usize| "p".repeat(length);
    gate.refuses(alice().offer(&long(4200)), 400, "bad_handshake");
    let client = gate.send(alice().offer(&long(4000)));
    backend.next().accept();
    client.opened();
    assert_eq!(backend.accepted(), 2);
}

// ---- an upstream that chooses what it must not

#[test]
fn an_upstream_cannot_choose_what_it_was_not_offered() {
    let backend = Backend::manual();
    let gate = gate(&backend);
    let pair = format!("x-api-key, {KEY}, chat");
    for (offer, chosen) in [
        ("chat", "evil"),
        ("chat", "CHAT"),
        ("chat", "chat, chat"),
        ("chat", ""),
        (&*pair, "x-api-key"),
        (&*pair, KEY),
        (&*pair, "evil"),
    ] {
        let request = if offer == pair { ws("/ws") } else { alice() };
        let mut client = gate.send(request.offer(offer));
        let mut up = backend.next();
        up.accept_with(&format!("Sec-WebSocket-Protocol: {chosen}\r\n"));
        let answer = client.read_answer();
        assert_eq!(answer.status(), 502, "choice {chosen:?} of {offer:?}");
        gate.check_refusal(&answer, 502, "upstream_bad_handshake");
        assert_no_secret(&answer);
    }
    let mut client = gate.send(alice().offer("a, b"));
    backend.next().accept_with("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n");
    gate.check_refusal(&client.read_answer(), 502, "upstream_bad_handshake");
    let mut client = gate.send(alice());
    backend.next().accept_with("Sec-WebSocket-Protocol: chat\r\n");
    gate.check_refusal(&client.read_answer(), 502, "upstream_bad_handshake");
}
