//! Heads that two readers take for two things. Each is tried as a handshake and as a plain request, and each has another
//! request behind it.

use super::{Trial, hidden, page};
use crate::support::client::plain_get;
use crate::support::{Request, alice, ws};

/// Refused as a handshake and as a plain request, on routes of both kinds.
#[track_caller]
fn refused(change: impl IntoIterator<Item = impl Fn(Request) -> Request>) {
    let trials = Trial::both();
    for change in change {
        for trial in &trials {
            for request in [alice(), ws("/ws"), page("POST", "/x").with("Content-Length", "0")] {
                trial.refuses(change(request).followed_by(hidden()), 400, "bad_handshake");
            }
        }
    }
    for trial in trials {
        trial.still_serves();
    }
}

#[track_caller]
fn refused_lines<const N: usize>(lines: [&[u8]; N]) {
    refused(lines.map(|line| move |request: Request| request.raw(line)));
}

#[test]
fn t035_a_bare_line_feed_ends_no_line() {
    refused_lines([b"X-A: y\nX-Api-Key: k", b"X-A: y\n", b"\nX-A: y", b"X-A: y\n\nGET / HTTP/1.1", b"X-A:\n y"]);
    let trials = Trial::both();
    for trial in &trials {
        for request in [alice(), page("GET", "/x")] {
            let text = String::from_utf8(request.bytes()).unwrap();
            // Each line end in turn, the empty line's too; then all of them.
            for (at, _) in text.match_indices("\r\n") {
                let mixed = format!("{}{}", &text[..at], &text[at + 1..]);
                trial.refuses([mixed.as_bytes(), &hidden()].concat(), 400, "bad_handshake");
            }
            trial.refuses(text.replace("\r\n", "\n"), 400, "bad_handshake");
        }
    }
    for trial in trials {
        trial.still_serves();
    }
}

#[test]
fn t036_a_bare_carriage_return_ends_no_line() {
    refused_lines([b"X-A: y\rX-B: z", b"X-A: y\r", b"X-A:\ry", b"X-A\r: y", b"\rX-A: y", b"X-A: y\r\rX-B: z"]);
}

#[test]
fn t037_no_control_byte_stands_in_a_head() {
    let controls = (0..=0x1f).chain([0x7f]).filter(|byte| !matches!(byte, b'\t' | b'\r' | b'\n'));
    refused(controls.map(|byte| move |request: Request| request.raw([b"X-A: y", &[byte][..], b"z"].concat())));
    let trial = Trial::of_sockets();
    for value in [&b"alice-secret-0123456789\0zz"[..], b"\0alice-secret-0123456789", b"alice-secret-0123456789\0"] {
        trial.refuses(ws("/ws").raw([b"X-Api-Key: ", value].concat()), 400, "bad_handshake");
    }
    trial.still_serves();
}

#[test]
fn t038_no_line_is_folded() {
    refused_lines([
        b"X-A: y\r\n z",
        b"X-A: y\r\n\tz",
        b"X-A:\r\n y",
        b"X-Api-Key:\r\n alice-secret-0123456789",
        b" X-A: y",
        b"\tX-A: y",
    ]);
    let trial = Trial::of_sockets();
    trial.refuses(ws("/ws").raw("X-Api-Key:\r\n alice-secret-0123456789"), 400, "bad_handshake");
    trial.still_serves();
}

#[test]
fn t039_no_blank_stands_before_a_colon() {
    refused_lines([
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b"X-Api-Key : k",
        b"Content-Length : 5",
        b"Host : gate.test",
        b"Upgrade : websocket",
    ]);
}

#[test]
fn t040_no_name_is_empty() {
    refused_lines([b": x", b":", b" : x", b":x: y"]);
}

#[test]
fn t041_a_name_is_a_token() {
    refused_lines([
        b"Garbage",
        b"X\x85A: b",
        b"X(A): b",
        b"X A: b",
        b"X\"A\": b",
        b"X/A: b",
        b"X[A]: b",
        b"X@A: b",
        b"X,A: b",
        b"X;A: b",
        b"\xefX: b",
        b"X\0A: b",
        b"GET / HTTP/1.1",
    ]);
    refused_lines([
        b"X-A: \xff",
        b"X-A: gr\xc3\xbcn",
        b"Upgrade: w\xc3\xa9bsocket",
        b"X-A: \x85",
        b"Cookie: a=\xc2\x85",
    ]);
}

#[test]
fn t042_a_long_name_is_whole_or_refused() {
    let trial = Trial::of_sockets();
    let lengths = [255, 256, 257, 270, 511, 512, 1000, 4096, 15_000];
    for length in lengths {
        let name = "n".repeat(length);
        let client = trial.gate.send(alice().with(&name, "y").with("Content-Length", "0"));
        let mut up = trial.backend.next();
        assert_eq!(up.head.get(&name), Some("y"), "{length}");
        assert!(!up.head.has("Content-Length"), "{length}");
        up.accept();
        client.opened();
    }
    trial.refuses(alice().with(&"n".repeat(17_000), "y"), 431, "head_too_large");
    trial.still_serves_after(lengths.len());
}

#[test]
fn t043_there_is_one_host() {
    let values = [
        "",
        "a b",
        "a\tb",
        "admin@x",
        "admin:pw@gate.test",
        "x/../y",
        "a, b",
        "gate.test,gate.test",
        ":99999",
        ":80",
        "gate.test:99999",
        "gate.test:",
        "gate.test:-1",
        "gate.test:0x50",
        "gate.test:80:80",
        "gate.test?x",
        "gate.test#x",
        "gate.test\\x",
        "http://gate.test",
        "[::1",
        "::1",
        "[zz]",
        "*",
        "a..b%00",
        "g\u{e4}te.test",
    ];
    refused(values.map(|value| move |request: Request| request.host(value)));
    let twice = ["gate.test", "evil.test", ""];
    refused(twice.map(|second| move |request: Request| request.with("Host", second)));
    refused(
        twice.map(|second| {
            move |request: Request| request.without("Host").with("host", second).with("HOST", "gate.test")
        }),
    );
    refused([|request: Request| request.without("Host")]);
}

#[test]
fn t044_there_is_one_version() {
    let trials = Trial::both();
    for version in [
        "HTTP/1.2",
        "HTTP/3.0",
        "HTTP/2.0",
        "HTTP/2",
        "http/1.1",
        "Http/1.1",
        "HTTP/1.10",
        "HTTP/01.1",
        "HTTP/1.1x",
        "HTTP/1",
        "HTTPS/1.1",
        "RTSP/1.0",
        "1.1",
    ] {
        for trial in &trials {
            for request in [alice(), page("GET", "/ws"), plain_get("/ws")] {
                let request = request.first_line(&format!("GET /ws {version}")).followed_by(hidden());
                trial.refuses(request, 400, "bad_handshake");
            }
        }
    }
    for line in [
        "GET /ws",
        "GET",
        "",
        " ",
        "GET /ws HTTP/1.1 x",
        "GET  /ws HTTP/1.1",
        "GET /ws\tHTTP/1.1",
        "\tGET /ws HTTP/1.1",
    ] {
        for trial in &trials {
            trial.refuses(alice().first_line(line).followed_by(hidden()), 400, "bad_handshake");
        }
    }
    for trial in trials {
        trial.still_serves();
    }
}

#[test]
fn t045_other_protocols_are_not_answered_by_the_upstream() {
    for trial in Trial::both() {
        let hellos: [&[u8]; 7] = [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00",
            b"\x80\x2e\x01\x03\x01",
            b"SSH-2.0-OpenSSH_9.0\n",
            b"\x00\x00\x00\x2a\xffSMBr",
            b"*1\r\n$4\r\nPING\r\n",
            b"EHLO a\n",
            b"\x05\x01\x00",
        ];
        for hello in hellos {
            let mut client = trial.gate.send(hello);
            client.shutdown_write();
            let (answer, _) = client.read_to_close();
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{hello:?}");
        }
        assert_eq!(trial.backend.accepted(), 0);
        trial.still_serves();
    }
}

#[test]
fn t056_nobody_introduces_a_client() {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x06\x06\x06\x06\x7f\0\0\x01\x01\x01\0\x50";
    let prefixes: [&[u8]; 5] = [
        b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\n",
        b"PROXY TCP6 ::1 ::2 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
        v2,
    ];
    for trial in Trial::both() {
        for prefix in prefixes {
            for request in [alice(), page("GET", "/x")] {
                trial.refuses([prefix, &*request.bytes()].concat(), 400, "bad_handshake");
            }
        }
        trial.still_serves();
    }
}
