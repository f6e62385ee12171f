//! Believing in an upgrade that did not happen, as far as it is the upstream's doing.

use super::{Trial, hidden, page};
use crate::support::{Backend, Gate, Request, alice, route};

const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The right 101 with one thing changed.
#[track_caller]
fn but(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

/// Each of these is a 502, and nothing of what the client has sent ahead goes up, nor anything of the upstream's down.
#[track_caller]
fn never_a_tunnel(answers: impl IntoIterator<Item = String>) {
    let trial = Trial::of_sockets();
    for answer in answers {
        let mut client = trial.gate.send(alice().followed_by(hidden()));
        let mut up = trial.backend.next();
        let _ = up.try_send(format!("{answer}leaked"));
        let refusal = client.read_answer();
        let line = trial.gate.check_refusal(&refusal, 502, "upstream_bad_handshake");
        assert!(!line.get("cause").is_empty() && !refusal.text().contains("leaked"), "{answer}");
        assert_eq!(up.read_to_close().0, b"", "went up after {answer}");
    }
    trial.still_serves();
}

#[test]
fn t002_a_refusal_of_the_upstream_ends_both_sides() {
    for status in [400, 401, 403, 404, 405, 426, 429, 500, 502, 503] {
        for framing in ["Content-Length: 2\r\n\r\nno", "Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"] {
            let trial = Trial::of_sockets();
            let mut client = trial.gate.send(alice().followed_by(hidden()));
            let mut up = trial.backend.next();
            up.send(format!(
                "HTTP/1.1 {status} X\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n{framing}"
            ));
            let answer = client.read_answer();
            assert_eq!((answer.status(), answer.text().as_str()), (status, "no"));
            assert_eq!(answer.head.get("Connection"), Some("close"), "{:?}", answer.head);
            assert!(!answer.head.has("Upgrade") && !answer.head.has("Transfer-Encoding"));
            assert_eq!(up.read_to_close().0, b"", "the second request went up");
            assert_eq!(trial.backend.accepted(), 1);
            trial.still_serves();
        }
    }
}

#[test]
fn t003_a_200_is_no_upgrade() {
    for status in [200, 201, 202, 206, 299, 300, 399] {
        let trial = Trial::of_sockets();
        let mut client = trial.gate.send(alice().followed_by(hidden()));
        let mut up = trial.backend.next();
        up.send(but("101 Switching Protocols", &format!("{status} OK")) + "hello");
        up.shutdown_write();
        let answer = client.read_answer();
        assert_eq!((answer.status(), answer.text().as_str()), (status, "hello"));
        for gone in ["Upgrade", "Sec-WebSocket-Accept"] {
            assert!(!answer.head.has(gone), "{:?}", answer.head);
        }
        assert_eq!(answer.head.get("Connection"), Some("close"));
        assert_eq!(up.read_to_close().0, b"");
        trial.still_serves();
    }
}

#[test]
fn t005_the_accept_value_is_the_one_of_this_key() {
    const LINE: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    let value = |value: &str| but("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", value);
    let mut answers: Vec<String> =
        ["AAAA", "", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo", "S3PPLMBITXAQ9KYGZZHZRBK+XOO=", "dGhlIHNhbXBsZSBub25jZQ=="]
            .map(value)
            .into();
    answers.push(value("Kfh9QIsMVZcl6xEPYxPHzW8SZ8w=")); // of an empty key
    answers.push(value("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=, s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    answers.push(but(LINE, ""));
    answers.push(but(LINE, &LINE.repeat(2)));
    answers.push(but(LINE, &format!("{LINE}Sec-WebSocket-Accept: AAAA\r\n")));
    answers.push(but(LINE, &format!("Sec-WebSocket-Accept: AAAA\r\n{LINE}")));
    never_a_tunnel(answers);
}

#[test]
fn t006_a_101_to_another_protocol_is_none() {
    let to = |protocol: &str| but("Upgrade: websocket", &format!("Upgrade: {protocol}"));
    let others = ["h2c", "TLS/1.0", "websocket/13", "websocket, h2c", "h2c, websocket", "xwebsocket", "web socket", ""];
    let mut answers: Vec<String> = others.map(to).into();
    answers.push(to("websocket\r\nUpgrade: h2c"));
    answers.push(but("Upgrade: websocket\r\n", ""));
    answers.push(but("Connection: Upgrade\r\n", ""));
    answers.push(but("Connection: Upgrade", "Connection: no-upgrade, xupgrade"));
    answers.push("HTTP/1.1 101 X\r\nUpgrade: h2c\r\n\r\n".into());
    never_a_tunnel(answers);
}

#[test]
fn t007_a_101_in_another_version_is_none() {
    never_a_tunnel(
        ["HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/2", "http/1.1", "ICY"].map(|v| but("HTTP/1.1", v)),
    );
}

#[test]
fn t008_no_other_1xx_opens_anything() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, "http: forward\ntimeouts: { handshake: 700ms }"));
    for status in [100, 102, 103, 199] {
        let interim = but("101 Switching Protocols", &format!("{status} X"));
        // Alone it is no answer, and the time runs on.
        for request in [alice(), page("GET", "/x")] {
            let mut client = gate.send(request.followed_by(hidden()));
            let mut up = backend.next();
            up.send(&interim);
            up.send(&interim);
            gate.check_refusal(&client.read_answer(), 504, "upstream_timeout");
            assert_eq!(up.read_to_close().0, b"");
        }
        // Before an answer it is left out.
        let mut client = gate.send(page("GET", "/x").followed_by(hidden()));
        let mut up = backend.next();
        up.send(format!("{interim}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
        let answer = client.read_answer();
        assert_eq!((answer.text().as_str(), answer.head.has("Upgrade")), ("ok", false));
        let client = gate.send(alice().followed_by("early"));
        let mut up = backend.next();
        up.send(&interim);
        up.stays_silent();
        up.accept();
        client.opened();
        up.expect("early");
    }
    assert_eq!(gate.metric("wsbouncer_tunnels_opened_total", &[]), 4.0);
}

#[test]
fn t010_no_redirect_is_followed() {
    let trial = Trial::of_pages();
    let other = Backend::manual();
    for status in [301, 302, 303, 307, 308] {
        for scheme in ["http", "ws"] {
            let location = format!("{scheme}://{}/ws", other.address());
            for request in [alice(), page("GET", "/x")] {
                let mut client = trial.gate.send(request.followed_by(hidden()));
                let mut up = trial.backend.next();
                up.send(format!("HTTP/1.1 {status} X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"));
                let answer = client.read_answer();
                assert_eq!((answer.status(), answer.head.get("Location")), (status, Some(&*location)));
                assert_eq!(up.read_to_close().0, b"");
            }
        }
    }
    assert_eq!((other.accepted(), trial.backend.accepted()), (0, 20));
    trial.still_serves();
}

#[test]
fn t021_no_value_of_the_upstreams_ends_a_line() {
    let mut answers = Vec::new();
    for evil in ["a\rX-Evil: y", "a\nX-Evil: y", "a\r\r\nX-Evil: y", "a\0b", "a\x0bb", "a\r\n X-Evil: folded", "a\x7fb"]
    {
        answers.push(but("Upgrade: websocket", &format!("Upgrade: websocket{evil}")));
        for name in ["X-Own", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Set-Cookie"] {
            answers.push(but("\r\n\r\n", &format!("\r\n{name}: {evil}\r\n\r\n")));
        }
        answers.push(but("Switching Protocols", evil));
    }
    never_a_tunnel(answers);
}

/// On the way of plain requests a lenient reader sits between; whatever it takes, each line that we write is one.
#[test]
fn t021_an_answer_is_never_split() {
    let trial = Trial::of_pages();
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!";
    for head in [
        "X-Own: a\rX-Evil: y",
        "X-Own: a\nX-Evil: y",
        "X-Own: a\0b",
        "X-Own: a\r\n X-Evil: folded",
        "X-Own : a",
        ": a",
        "nothing",
        "X-Own: a",
    ] {
        let mut client = trial.gate.send(page("GET", "/x").followed_by(hidden()));
        let mut up = trial.backend.next();
        let _ = up.try_send(format!("HTTP/1.1 200 O\tK\r\n{head}\r\nContent-Length: 2\r\n\r\nok{second}"));
        let (answer, _) = client.read_to_close();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") || answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(!answer.contains("evil!") && answer.matches("HTTP/1.1 ").count() == 1, "{answer}");
        let (lines, _) = answer.split_once("\r\n\r\n").unwrap();
        assert!(lines.split("\r\n").all(|line| !line.contains(['\r', '\n', '\0'])), "{answer:?}");
        assert_eq!(up.read_to_close().0, b"");
    }
    trial.still_serves();
}

#[test]
fn t070_no_extension_is_forced_on_a_client() {
    let deflate = |line: &str| but("\r\n\r\n", &format!("\r\nSec-WebSocket-Extensions: {line}\r\n\r\n"));
    never_a_tunnel(["permessage-deflate", "x-webkit-deflate-frame", "permessage-deflate, foo"].map(deflate));
    let trial = Trial::of_sockets();
    let offering = |list: &str| -> Request { alice().with("Sec-WebSocket-Extensions", list) };
    for (offer, chosen) in [
        ("permessage-deflate", "foo"),
        ("permessage-deflate", "permessage-deflate, foo"),
        ("permessage-deflate; x=foo", "foo"),
        ("foo", "permessage-deflate"),
    ] {
        let mut client = trial.gate.send(offering(offer).followed_by(hidden()));
        let mut up = trial.backend.next();
        up.accept_with(&format!("Sec-WebSocket-Extensions: {chosen}\r\n"));
        trial.gate.check_refusal(&client.read_answer(), 502, "upstream_bad_handshake");
        assert_eq!(up.read_to_close().0, b"");
    }
    trial.still_serves();
}

/// Noise, a head without an end, one that breaks off, none at all: each is a 502 for its client and for nobody else.
#[test]
fn t122_garbage_of_the_upstreams_is_a_502() {
    let noise: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let long = [b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec(), vec![b'a'; 1 << 20]].concat();
    let many = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"X-A: b\r\n".repeat(1000), b"\r\n".to_vec()].concat();
    let answers: [&[u8]; 9] = [
        &noise,
        &long,
        &many,
        b"",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"\0\r\n\r\n",
        b"\xff",
    ];
    for (trial, requests) in
        [(Trial::of_sockets(), vec![alice()]), (Trial::of_pages(), vec![alice(), page("GET", "/x")])]
    {
        for answer in answers {
            for request in &requests {
                let mut client = trial.gate.send(request);
                let mut up = trial.backend.next();
                let _ = up.try_send(answer);
                up.close();
                trial.gate.check_refusal(&client.read_answer(), 502, "upstream_bad_handshake");
            }
        }
        let log = trial.gate.raw_log();
        assert!(log.bytes().all(|byte| byte == b'\n' || (0x20..0x7f).contains(&byte)), "{log}");
        trial.still_serves();
    }
}
