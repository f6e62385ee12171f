//! What a refusal tells: unknown, disabled, not yet valid and malformed credentials have one answer, to the byte, from
//! every place and in every form in which it is told. Only the id and the date differ; here the client gives the id.
//!
//! A secret that is right and past its date is told so, by contract: nobody but its holder can hear that.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::page;
use crate::support::client::plain_get;
use crate::support::frames::{close, text};
use crate::support::{Backend, Gate, KEY, Request, config, ws};

const DISABLED: &str = "disabled-secret-12345678";
const EARLY: &str = "early-secret-0123456789a";
const EXPIRED: &str = "expired-secret-012345678";
const UNKNOWN: &str = "unknown-secret-012345678";
const PAGE: &str = "https://page.test";

/// One route with these fields, and a key of each kind.
fn start(backend: &Backend, fields: &str) -> Gate {
    let fields: String = fields.lines().map(|line| format!("    {}\n", line.trim())).collect();
    let yaml = format!(
        "keys:\n\
         \x20 - {{ id: alice, secret: {KEY} }}\n\
         \x20 - {{ id: off, secret: {DISABLED}, disabled: true }}\n\
         \x20 - {{ id: soon, secret: {EARLY}, not_before: 2999-01-01 }}\n\
         \x20 - {{ id: old, secret: {EXPIRED}, expires_at: 2020-01-01 }}\n\
         routes:\n  - name: main\n    upstream: {}\n{fields}",
        backend.url()
    );
    config(&yaml).level("info").start()
}

/// All bytes of the answer but the date's.
#[track_caller]
fn told(gate: &Gate, request: &Request) -> String {
    let mut client = gate.send(request.clone().with("X-Request-Id", "one-for-all"));
    let head = String::from_utf8(client.read_head_bytes()).unwrap();
    let rest = if head.starts_with("HTTP/1.1 101 ") {
        let start = client.read_exact(2);
        let frame = [&start[..], &client.read_exact(usize::from(start[1]))].concat();
        client.send(close(1000));
        assert!(client.read_to_end().is_empty());
        frame
    } else {
        client.read_to_end()
    };
    let lines: Vec<&str> = head.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("date:")).collect();
    assert_eq!(lines.len(), head.split("\r\n").count() - 1, "one date in {head}");
    format!("{}{}", lines.join("\r\n"), String::from_utf8_lossy(&rest))
}

/// Where a key may stand, and how it is put there.
struct Place {
    yaml: &'static str,
    carry: fn(Request, &str) -> Request,
    /// What is no key at all there, as no other place could have it.
    malformed: &'static [&'static str],
}

const PLACES: [Place; 9] = [
    Place {
        yaml: "{ header: X-Api-Key }",
        carry: |request, key| request.with("X-Api-Key", key),
        malformed: &["a", "\"\"", "a, b", "Bearer x"],
    },
    Place {
        yaml: "bearer",
        carry: |request, key| request.with("Authorization", &format!("Bearer {key}")),
        malformed: &["a", "a b", ",", "=", "Bearer"],
    },
    Place {
        yaml: "basic",
        carry: |request, key| request.with("Authorization", &format!("Basic {}", basic(key))),
        malformed: &[],
    },
    Place {
        yaml: "basic",
        carry: |request, raw| request.with("Authorization", &format!("Basic {raw}")),
        malformed: &["%%%", "YQ==", "Og==", "YWxpY2U6", "AAA", "=", "a b"],
    },
    Place {
        yaml: "{ subprotocol: { pair: x-api-key } }",
        carry: |request, key| request.offer(&format!("x-api-key, {key}, chat")),
        malformed: &["a", "%", "~"],
    },
    Place {
        yaml: "{ subprotocol: { prefix: key., encoding: base64url } }",
        carry: |request, key| request.offer(&format!("chat, key.{}", URL_SAFE_NO_PAD.encode(key))),
        malformed: &["a", "\u{1}"],
    },
    Place {
        yaml: "{ subprotocol: { prefix: key., encoding: base64url } }",
        carry: |request, raw| request.offer(&format!("chat, key.{raw}")),
        malformed: &["%%%", "A", "+", "~~~~", "QUFBQQ.."],
    },
    Place {
        yaml: "{ query: api_key }",
        carry: |request, key| at_query(&request, "api_key", key),
        malformed: &["a", "%00", "%ff%fe", "+", "=", "%41"],
    },
    Place {
        yaml: "{ cookie: session }",
        carry: |request, key| request.with("Origin", PAGE).with("Cookie", &format!("a=1; session={key}")),
        malformed: &["a", "\"a", "=", "\"a\""],
    },
];

/// The user whose secret it is, so that the secret is all that can be wrong.
fn basic(key: &str) -> String {
    let user = match key {
        DISABLED => "off",
        EARLY => "soon",
        EXPIRED => "old",
        _ => "alice",
    };
    STANDARD.encode(format!("{user}:{key}"))
}

fn at_query(request: &Request, name: &str, value: &str) -> Request {
    let first = String::from_utf8(request.bytes()).unwrap();
    let method = first.split(' ').next().unwrap().to_owned();
    request.clone().first_line(&format!("{method} /ws?{name}={value} HTTP/1.1"))
}

/// Every answer is the first one, which has this in it.
#[track_caller]
fn all_alike(answers: &[(String, String)], has: &str) {
    assert!(answers.len() >= 3 && answers[0].1.contains(has), "{answers:?}");
    for (what, answer) in &answers[1..] {
        assert_eq!(*answer, answers[0].1, "{what} is told another thing than {}", answers[0].0);
    }
}

/// From every place; `ask` makes the request that a credential is put in.
#[track_caller]
fn alike_from_every_place(more: &str, has: &str, ask: fn() -> Request) {
    let backend = Backend::manual();
    for place in &PLACES {
        let fields = format!(
            "auth: [ {{ api_key: {{ extract_from: [ {} ] }} }} ]\nallowed_origins: [ \"{PAGE}\" ]\n{more}",
            place.yaml
        );
        let gate = start(&backend, &fields);
        let asked = |key: &str| (format!("{key} by {}", place.yaml), told(&gate, &(place.carry)(ask(), key)));
        let answers: Vec<_> = [UNKNOWN, DISABLED, EARLY].iter().chain(place.malformed).map(|key| asked(key)).collect();
        all_alike(&answers, has);
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn t059_an_answer_does_not_tell_which_keys_there_are() {
    alike_from_every_place("on_failure: http", "\"invalid_credential\"", || ws("/ws"));
}

#[test]
fn t059_neither_does_a_close_frame() {
    alike_from_every_place("on_failure: close", "invalid_credential", || ws("/ws"));
}

#[test]
fn t059_neither_does_the_answer_to_a_plain_request() {
    let backend = Backend::manual();
    for (more, has) in [("http: forward", "\"invalid_credential\""), ("http: refuse", "\"upgrade_required\"")] {
        for place in PLACES.iter().filter(|place| !place.yaml.contains("subprotocol")) {
            let fields = format!(
                "auth: [ {{ api_key: {{ extract_from: [ {} ] }} }} ]\nallowed_origins: [ \"{PAGE}\" ]\n{more}",
                place.yaml
            );
            let gate = start(&backend, &fields);
            let asked =
                |key: &str| (format!("{key} by {}", place.yaml), told(&gate, &(place.carry)(plain_get("/ws"), key)));
            let keys = [UNKNOWN, DISABLED, EARLY];
            let answers: Vec<_> = keys.iter().chain(place.malformed).map(|key| asked(key)).collect();
            all_alike(&answers, has);
        }
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn t059_basic_does_not_tell_which_users_there_are() {
    let backend = Backend::manual();
    for form in ["http", "close"] {
        let gate =
            start(&backend, &format!("auth: [ {{ api_key: {{ extract_from: [ basic ] }} }} ]\non_failure: {form}"));
        let asked = |user: &str, password: &str| {
            let pair = STANDARD.encode(format!("{user}:{password}"));
            let request = ws("/ws").with("Authorization", &format!("Basic {pair}"));
            (format!("{user}:{password}"), told(&gate, &request))
        };
        let answers = [
            asked("alice", UNKNOWN),
            asked("nobody", UNKNOWN),
            asked("off", UNKNOWN),
            asked("off", DISABLED),
            asked("", UNKNOWN),
            asked("alice", ""),
            // The secret of somebody, under another name.
            asked("nobody", KEY),
            asked("off", KEY),
            asked("Alice", KEY),
            asked("alice", DISABLED),
        ];
        all_alike(&answers, "invalid_credential");
    }
}

#[test]
fn t059_neither_does_the_close_after_a_first_message() {
    let backend = Backend::manual();
    let yaml =
        "auth: [ { api_key: { extract_from: [ { header: X-Api-Key }, { first_message: { format: text } } ] } } ]";
    let gate = start(&backend, yaml);
    let said = |key: &str| {
        let (mut wire, _) = gate.send(ws("/ws")).opened();
        wire.send(text(key));
        let frame = wire.read_frame();
        (key.to_owned(), format!("{:?} {:?}", frame.opcode, String::from_utf8_lossy(&frame.payload)))
    };
    let answers = [UNKNOWN, DISABLED, EARLY, "a", "Bearer Bearer x", "{\"token\":\"x\"}", "\u{7f}"].map(said);
    all_alike(&answers, "invalid_credential");
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn t059_a_ticket_that_opens_nothing_does_not_tell_why() {
    let backend = Backend::echo();
    for form in ["http", "close"] {
        let fields = format!("tickets: {{ path: /ticket }}\non_failure: {form}");
        let gate = start(&backend, &fields);
        let desk = || page("POST", "/ticket").with("Content-Length", "0");
        let used = gate.ask(desk()).field("ticket");
        gate.open(at_query(&ws("/ws"), "ticket", &used));
        let fresh = gate.ask(desk()).field("ticket");
        let mut forged = fresh.clone().into_bytes();
        forged[40] ^= 1;
        let forged = String::from_utf8(forged).unwrap();
        let stranger = start(&backend, &fields);
        let foreign = stranger.ask(desk()).field("ticket");
        let orphan = gate.ask(desk()).field("ticket");
        let asked = |ticket: &str| (ticket.to_owned(), told(&gate, &at_query(&ws("/ws"), "ticket", ticket)));
        let mut answers: Vec<_> = [&*used, &forged, &foreign, "x", "AAAA", &fresh[1..], UNKNOWN].map(asked).into();
        // Its key is gone, then disabled.
        gate.edit_config(&gate.yaml().replace(KEY, "another-secret-012345678"));
        answers.push(asked(&orphan));
        gate.edit_config(&gate.yaml().replace("another-secret-012345678 }", &format!("{KEY}, disabled: true }}")));
        answers.push(asked(&orphan));
        all_alike(&answers, "invalid_credential");
        // The counter for tickets asks as the route does.
        let at_desk = |key: &str| (key.to_owned(), told(&gate, &desk().set("X-Api-Key", key)));
        all_alike(&[UNKNOWN, DISABLED, EARLY, "a", KEY].map(at_desk), "\"invalid_credential\"");
    }
}

/// The contract has a word of its own for it. It is the only one, and it is told to nobody who does not hold the secret.
#[test]
fn t059_only_the_holder_of_a_right_secret_hears_that_it_is_over() {
    let backend = Backend::manual();
    for form in ["http", "close"] {
        let gate = start(&backend, &format!("on_failure: {form}"));
        let asked = |key: &str| told(&gate, &ws("/ws").with("X-Api-Key", key));
        let (over, unknown) = (asked(EXPIRED), asked(UNKNOWN));
        assert!(over.contains("expired_credential"), "{over}");
        for (at, _) in EXPIRED.char_indices() {
            let near = format!("{}X{}", &EXPIRED[..at], &EXPIRED[at + 1..]);
            assert_eq!(asked(&near), unknown, "{near}");
        }
        assert_eq!(asked(&EXPIRED[1..]), unknown);
        assert_eq!(asked(&EXPIRED.to_uppercase()), unknown);
        // Besides the word and what explains it, the answers are one.
        let without = |text: &str| {
            let text = text.replace("expired_credential", "WORD").replace("invalid_credential", "WORD");
            let text = text.replace("this credential has expired", "WHY");
            let text = text.replace("this credential does not open anything here", "WHY");
            let lines = text.lines().filter(|line| !line.starts_with("content-length:"));
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(without(&over), without(&unknown));
    }
}
