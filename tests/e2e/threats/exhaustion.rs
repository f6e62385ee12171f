//! Too much of something, or too slowly. What is counted and bounded per address, key and process is in `limits`.

use std::time::{Duration, Instant};

use super::Trial;
use crate::support::client::plain_get;
use crate::support::frames::masked;
use crate::support::{Backend, Gate, Request, alice, pause, route, small, ws};

#[test]
fn t084_a_first_message_is_small_and_in_time() {
    let backend = Backend::manual();
    let yaml = "auth: [ { api_key: { extract_from: [ { first_message: { format: text, timeout: 400ms, max_bytes: 4096B } } ] } } ]";
    let mut gate = Gate::start(&route(&backend, yaml));
    let heard = |bytes: &[u8]| {
        let (mut wire, _) = gate.send(ws("/ws")).opened();
        wire.send(bytes);
        wire.read_close()
    };
    let frame = |first: u8, length: &[u8]| [&[first][..], length, &[1, 2, 3, 4]].concat();
    for length in [4097_u64, 1 << 30, 1 << 62, u64::MAX >> 1, u64::MAX] {
        let length = [&[0xff][..], &length.to_be_bytes()].concat();
        let (code, reason) = heard(&frame(0x81, &length));
        assert!(matches!(code, 1002 | 1009), "{length:?}: {code}");
        assert_eq!(reason, "bad_first_message");
    }
    // Not masked, not text, in fragments that make too much together, a ping first and then nothing.
    assert_eq!(heard(b"\x81\x05hello").0, 1002);
    assert_eq!(heard(&masked(2, b"binary")).0, 1003);
    let mut part = masked(1, &[b'x'; 4000]);
    part[0] &= 0x7f;
    assert_eq!(heard(&[part, masked(0, &[b'x'; 4000])].concat()).0, 1009);
    let (mut wire, _) = gate.send(ws("/ws")).opened();
    wire.send(masked(9, b"ping"));
    assert_eq!(wire.read_frame().opcode, 10);
    assert_eq!(wire.read_close(), (4408, "request_timeout".into()));
    // A byte at a time is late as well.
    let (mut wire, _) = gate.send(ws("/ws")).opened();
    for byte in masked(1, &[b'x'; 3000]).into_iter().take(2000) {
        if wire.try_send([byte]).is_err() {
            break;
        }
        pause(Duration::from_millis(1));
        if gate.log_lines(|line| line.get("reason") == "request_timeout").len() == 2 {
            break;
        }
    }
    assert_eq!(wire.read_close(), (4408, "request_timeout".into()));
    assert_eq!(backend.accepted(), 0);
    gate.is_well();
}

/// Each line is whole, and there is no last one.
#[test]
fn t105_a_head_line_by_line_has_one_deadline() {
    let backend = Backend::manual();
    let mut gate = Gate::start(&small(&backend, "timeouts: { head: 500ms }\n"));
    let mut client = gate.send(alice().bytes().strip_suffix(b"\r\n").unwrap());
    let start = Instant::now();
    while client.try_send("X-A: b\r\n").is_ok() && gate.log_lines(|line| line.is("refused")).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "it waits for ever");
        pause(Duration::from_millis(70));
    }
    gate.check_refusal(&client.read_answer(), 408, "request_timeout");
    assert_eq!(backend.accepted(), 0);
    gate.is_well();
}

/// Each step sets a deadline of its own, and none of them takes away another's.
#[test]
fn t108_whoever_stops_at_any_step_is_let_go() {
    let backend = Backend::manual();
    let gate = Gate::start(
        &(route(&backend, "http: forward\ntimeouts: { handshake: 300ms, idle: 300ms, half_close: 300ms }")
            + "timeouts: { head: 300ms }\n"),
    );
    let late = |mut client: crate::support::Wire, status: u16, reason: &str| {
        gate.check_refusal(&client.read_answer(), status, reason);
    };
    // In the head; on a plain request's body; while the upstream is silent, on both ways.
    late(gate.send("GET /ws HTTP/1.1\r\nHost: gate.test\r\nUpgrade: websocket\r\n"), 408, "request_timeout");
    let post = || super::page("POST", "/x").with("Content-Length", "9").followed_by("some");
    late(gate.send(post()), 408, "request_timeout");
    late(gate.send(alice()), 504, "upstream_timeout");
    late(gate.send(alice().followed_by("early")), 504, "upstream_timeout");
    late(gate.send(super::page("GET", "/x")), 504, "upstream_timeout");
    // In the middle of the upstream's answer.
    for _ in 0..4 {
        backend.next();
    }
    let client = gate.send(alice());
    let mut up = backend.next();
    up.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n");
    late(client, 504, "upstream_timeout");
    // In the tunnel: nobody says anything; one side has ended and the other is silent; within a frame.
    let tunnel = |bytes: &[u8]| {
        let client = gate.send(alice());
        let mut up = backend.next();
        up.accept();
        let (mut client, _) = client.opened();
        client.send(bytes);
        (client, up)
    };
    let (mut client, _up) = tunnel(b"");
    client.read_to_close();
    gate.log_line(|line| line.is("tunnel closed") && line.get("cause") == "idle_timeout");
    let (mut client, _up) = tunnel(b"\x82\xfe\xff");
    client.read_to_close();
    let (mut client, up) = tunnel(b"");
    up.shutdown_write();
    client.read_to_close();
    gate.wait_for_open(0);
    // In the middle of a plain answer.
    let mut client = gate.send(super::page("GET", "/x"));
    let mut up = backend.next();
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
    client.read_to_close();
    gate.log_line(|line| line.is("forwarded") && line.get("cause") == "idle_timeout");
    gate.wait_for_open(0);
}

#[test]
fn t106_a_beginning_of_anything_is_given_up() {
    let backend = Backend::manual();
    let mut gate = Gate::start(&small(&backend, "timeouts: { head: 300ms }\n"));
    let beginnings =
        ["", "P", "G", "PRI", "PRI * HTTP/2.0\r\n", "GET /ws HTTP/1.1", "GET /ws HTTP/1.1\r\n", "\u{16}\u{3}"];
    let mut clients = beginnings.map(|bytes| gate.send(bytes));
    for client in &mut clients {
        client.read_to_close();
    }
    assert_eq!(backend.accepted(), 0);
    gate.is_well();
}

#[test]
fn t117_a_head_has_a_size() {
    for trial in Trial::both() {
        let long = |length: usize| "a".repeat(length);
        let many = |count: usize| (0..count).fold(alice(), |request, n| request.with(&format!("X-{n}"), "y"));
        let target = |length: usize| alice().first_line(&format!("GET /{} HTTP/1.1", long(length)));
        let too_large: [Request; 5] = [
            alice().with("X-Long", &long(64 << 10)),
            alice().with("X-Long", &long(2 << 20)),
            alice().with(&long(64 << 10), "y"),
            many(1000),
            plain_get("/x").with("Cookie", &long(64 << 10)),
        ];
        let answer_of = |request: Request| {
            let mut client = trial.gate.connect();
            // It may stop to read before all of it was sent; the answer comes nevertheless.
            let _ = client.try_send(request.bytes());
            client.read_head().first
        };
        for request in too_large {
            assert_eq!(answer_of(request), "HTTP/1.1 431 Request Header Fields Too Large");
        }
        for length in [4097, 70 << 10, 1 << 20] {
            assert_eq!(answer_of(target(length)), "HTTP/1.1 414 URI Too Long");
        }
        trial.refuses(many(65), 431, "head_too_large");
        assert_eq!(trial.backend.accepted(), 0);
        trial.still_serves();
    }
}
