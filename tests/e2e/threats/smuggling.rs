//! Bytes behind the head, and bodies around an upgrade.

use std::time::Duration;

use super::{Trial, hidden, page};
use crate::forward::answer_one_request;
use crate::support::client::plain_get;
use crate::support::frames::text;
use crate::support::{Backend, Conn, Gate, KEY, Request, alice, eventually, route, ws};

/// Ways to say no, or nothing, and how the client hears of it.
const REFUSALS: [(fn(Conn), u16); 6] = [
    (|mut up| up.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"), 403),
    (|mut up| up.send("HTTP/1.1 401 No\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"), 401),
    (|mut up| up.send("garbage\r\n\r\n"), 502),
    (Conn::reset, 502),
    (Conn::close, 502),
    (|mut up| assert_eq!(up.read_to_close().0, b""), 504),
];

#[test]
fn t012_bytes_after_the_head_wait_for_the_101() {
    let backend = Backend::manual();
    let mut gate = Gate::start(&route(&backend, "timeouts: { handshake: 500ms }"));
    let early = [hidden(), text("a frame"), vec![b'x'; 9000], b"\r\n\r\n".to_vec(), vec![0]];
    for bytes in &early {
        for (refuse, status) in REFUSALS {
            let mut client = gate.send(alice().followed_by(bytes));
            let mut up = backend.next();
            up.stays_silent();
            refuse(up);
            assert_eq!(client.read_answer().status(), status);
        }
        let client = gate.send(alice().followed_by(bytes));
        let mut up = backend.next();
        up.stays_silent();
        up.accept();
        let (mut client, _) = client.opened();
        client.send("then");
        up.expect([bytes, &b"then"[..]].concat());
    }
    assert_eq!(gate.metric("wsbouncer_tunnels_opened_total", &[]), early.len() as f64);
    assert!(backend.heads().iter().all(|head| head.target() == "/ws"));
    gate.is_well();
}

/// The counter for tickets reads no body, and nothing behind it.
#[test]
fn t012_nothing_behind_a_request_for_a_ticket_is_heard() {
    let backend = Backend::manual();
    let mut gate = Gate::start(&route(&backend, "http: forward\ntickets: { path: /ticket }"));
    let behind = hidden();
    let length = behind.len().to_string();
    for (line, status) in [
        ("Content-Length: 0", 200),
        ("Content-Length: 5", 200),
        (&*format!("Content-Length: {length}"), 200),
        ("X-No: length", 200),
        ("Transfer-Encoding: chunked", 200),
        ("Transfer-Encoding: ,chunked", 400),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked", 400),
        ("Content-Length: 5, 5", 400),
    ] {
        let mut client = gate.send(page("POST", "/ticket").raw(line).followed_by(&behind));
        assert_eq!(client.read_answer().status(), status, "{line}");
    }
    assert_eq!(backend.accepted(), 0);
    gate.is_well();
}

#[test]
fn t014_early_bytes_without_end_are_not_gathered() {
    const MOST: usize = 64 << 20;
    let backend = Backend::manual();
    let mut gate = Gate::start(&route(&backend, "timeouts: { handshake: 2s }"));
    let before = gate.resident();
    let mut client = gate.send(alice().followed_by(hidden()));
    let mut up = backend.next();
    let taken = client.send_until_stuck(Duration::from_millis(300), MOST);
    assert!(taken < MOST && gate.resident() < before + (4 << 20), "{taken} bytes were taken");
    assert_eq!(gate.log_line(|line| line.is("refused")).get("reason"), "upstream_timeout");
    assert_eq!(up.read_to_close().0, b"");
    gate.is_well();
}

#[test]
fn t016_t017_an_upgrade_has_no_length() {
    for trial in Trial::both() {
        let behind = hidden();
        let whole = behind.len().to_string();
        let with = |length: &str| alice().with("Content-Length", length).followed_by(&behind);
        trial.refuses_all(
            [&*whole, "1", "5", "50", "99999", "00", "000000000000000001"].map(with),
            400,
            "bad_handshake",
        );
        // Declared, and not there.
        let short = |sent: &str| alice().with("Content-Length", "50").followed_by(sent);
        trial.refuses_all(["", "abc", "\r\n"].map(short), 400, "bad_handshake");
        // Keyless: what frames a request is looked at before whose it is.
        trial.refuses(ws("/ws").with("Content-Length", &whole).followed_by(&behind), 400, "bad_handshake");
        trial.still_serves();
    }
}

#[test]
fn t018_an_upgrade_has_no_chunks() {
    for trial in Trial::both() {
        for body in
            ["0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "", "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: gate.test\r\n\r\n"]
        {
            for request in [alice(), ws("/ws")] {
                let request = request.with("Transfer-Encoding", "chunked").followed_by(body).followed_by(hidden());
                trial.refuses(request, 400, "bad_handshake");
            }
        }
        trial.still_serves();
    }
}

#[test]
fn t019_a_trailer_is_no_header() {
    let chunks = format!("1\r\nx\r\n0\r\nX-Api-Key: {KEY}\r\nHost: evil\r\nContent-Length: 5\r\n\r\n");
    for trial in Trial::both() {
        for announced in [true, false] {
            let trailer = |request: Request| if announced { request.with("Trailer", "X-Api-Key") } else { request };
            let request = trailer(ws("/ws").with("Transfer-Encoding", "chunked")).followed_by(&chunks);
            trial.refuses(request, 400, "bad_handshake");
        }
        trial.refuses(alice().with("Trailer", "X-Api-Key"), 400, "bad_handshake");
        trial.still_serves();
    }
    let trial = Trial::of_pages();
    let keyless = plain_get("/").first_line("POST / HTTP/1.1").with("Transfer-Encoding", "chunked");
    trial.refuses(keyless.with("Trailer", "X-Api-Key").followed_by(chunks), 401, "missing_credential");
    // With a key it goes on, and leaves its trailer behind.
    let mut client = trial.gate.send(
        page("POST", "/x")
            .with("Transfer-Encoding", "chunked")
            .with("Trailer", "X-Auth-Key-Id")
            .followed_by("1\r\nx\r\n0\r\nX-Auth-Key-Id: root\r\nTransfer-Encoding: gzip\r\n\r\n")
            .followed_by(hidden()),
    );
    let mut up = trial.backend.next();
    assert!(!up.head.has("Trailer"));
    up.expect("1\r\nx\r\n0\r\n\r\n");
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(client.read_answer().text(), "ok");
    assert_eq!(up.read_to_close().0, b"");
    trial.still_serves();
}

#[test]
fn t020_nobody_is_told_to_continue_an_upgrade() {
    for trial in Trial::both() {
        for value in ["100-continue", "100-Continue", "", "200-ok", "100-continue, x", "x=y"] {
            for length in ["0", "5"] {
                let request = alice().with("Expect", value).with("Content-Length", length).followed_by("hello");
                trial.refuses(request.followed_by(hidden()), 400, "bad_handshake");
            }
            trial.refuses(alice().with("Expect", value).followed_by(hidden()), 400, "bad_handshake");
        }
        trial.still_serves();
    }
    // A plain request may wait for it, and hears it from us; nothing else can be expected of us.
    let trial = Trial::of_pages();
    let post = || page("POST", "/x").with("Content-Length", "5").followed_by("hello");
    for value in ["", "200-ok", "100-continue, x", "100-continue;q=1"] {
        trial.refuses(post().with("Expect", value).followed_by(hidden()), 400, "bad_handshake");
    }
    let twice = post().with("Expect", "100-continue").with("Expect", "100-continue");
    trial.refuses(twice.followed_by(hidden()), 400, "bad_handshake");
    let mut client = trial.gate.send(post().with("Expect", "100-continue").followed_by(hidden()));
    let mut up = trial.backend.next();
    assert!(!up.head.has("Expect"));
    up.expect("hello");
    up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (answer, _) = client.read_to_close();
    let answer = String::from_utf8(answer).unwrap();
    let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&answer);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    assert_eq!(up.read_to_close().0, b"");
    trial.still_serves();
}

/// Each of these has two readings: a proxy that takes the one before a service that takes the other lets a request in.
#[test]
fn t030_a_length_and_chunks_together_are_refused() {
    let framings: [&[(&str, &str)]; 6] = [
        &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        &[("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
        &[("Content-Length", "0"), ("Transfer-Encoding", "chunked")],
        &[("transfer-encoding", "Chunked"), ("content-length", "0")],
        &[("Content-Length", "5"), ("Transfer-Encoding", "identity")],
        &[("Transfer-Encoding", "chunked"), ("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
    ];
    refused_in_every_kind(framings.iter().map(|lines| lines.to_vec()));
}

#[test]
fn t031_an_odd_length_is_refused() {
    let values =
        ["0, 5", "5, 5", "5,5", "+5", "-5", "0x5", "", "5 5", "5;a", "5.0", "1e1", "18446744073709551621", "\"5\""];
    let alone = values.iter().map(|value| vec![("Content-Length", *value)]);
    let twice = [("5", "0"), ("0", "5"), ("5", "5"), ("0", "0"), ("5", "")];
    let twice = twice.iter().map(|(one, two)| vec![("Content-Length", *one), ("content-length", *two)]);
    refused_in_every_kind(alone.chain(twice));
}

#[test]
fn t032_a_disguised_coding_is_refused() {
    let values = [
        "xchunked",
        ",chunked",
        "chunked,",
        "chunked, identity",
        "identity, chunked",
        "chunked, chunked",
        "gzip, chunked",
        "identity",
        "chunked;a=b",
        "\"chunked\"",
        "chunked x",
        "chunke",
        "\u{b}chunked",
        "chunked\u{b}",
        "\u{c}chunked",
        "",
    ];
    let alone = values.iter().map(|value| vec![("Transfer-Encoding", *value)]);
    let twice = [("chunked", "chunked"), ("identity", "chunked"), ("chunked", "identity"), ("chunked", "")];
    let twice = twice.iter().map(|(one, two)| vec![("Transfer-Encoding", *one), ("transfer-encoding", *two)]);
    refused_in_every_kind(alone.chain(twice));
    for trial in Trial::both() {
        for line in ["Transfer-Encoding : chunked", "Transfer-Encoding\t: chunked", " Transfer-Encoding: chunked"] {
            for request in [alice(), page("POST", "/x").with("Content-Length", "5")] {
                trial.refuses(request.raw(line).followed_by("0\r\n\r\n").followed_by(hidden()), 400, "bad_handshake");
            }
        }
        trial.still_serves();
    }
}

#[test]
fn t033_chunks_in_http_1_0_are_refused() {
    for trial in Trial::both() {
        for method in ["POST", "GET"] {
            let request = page(method, "/x").with("Transfer-Encoding", "chunked").followed_by("0\r\n\r\n");
            let line = format!("{method} /x HTTP/1.0");
            trial.refuses(request.first_line(&line).followed_by(hidden()), 400, "bad_handshake");
        }
        trial.still_serves();
    }
}

/// Refused as a handshake, as a plain request that is not served, and as one that would be forwarded.
#[track_caller]
fn refused_in_every_kind(framings: impl IntoIterator<Item = Vec<(&'static str, &'static str)>>) {
    let trials = Trial::both();
    for lines in framings {
        for trial in &trials {
            for request in [alice(), page("POST", "/x"), page("GET", "/x")] {
                let request = lines.iter().fold(request, |request, (name, value)| request.with(name, value));
                trial.refuses(request.followed_by("0\r\n\r\n").followed_by(hidden()), 400, "bad_handshake");
            }
        }
    }
    for trial in trials {
        trial.still_serves();
    }
}

#[test]
fn t034_a_trick_with_chunks_ends_the_request() {
    let trial = Trial::of_pages();
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(20_000));
    for chunks in [
        "3\nabc\n0\n\n",
        "3\r\nabc\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3\rX\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabcXX0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nabc",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3_0\r\nabc\r\n0\r\n\r\n",
        "\r\n3\r\nabc\r\n0\r\n\r\n",
        "g\r\n",
        &*long,
    ] {
        let chunked = page("POST", "/x").with("Transfer-Encoding", "chunked");
        let mut client = trial.gate.send(chunked.followed_by(chunks).followed_by(hidden()));
        let answer = client.read_answer();
        trial.gate.check_refusal(&answer, 400, "bad_handshake");
    }
    eventually("all seats are given back", || trial.gate.connections().is_empty());
    assert!(trial.backend.heads().iter().all(|head| head.first == "POST /x HTTP/1.1"), "a second request was sent");
}

/// Methods that are said to have no body may have one, and an answer to HEAD has none whatever it says.
#[test]
fn t031_a_body_belongs_to_its_request_whatever_the_method() {
    let trial = Trial::of_pages();
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PRI", "get", "X-OWN"] {
        let sent = page(method, "/x").with("Content-Length", "5").followed_by("GET /").followed_by(hidden());
        let mut client = trial.gate.send(sent);
        let mut up = trial.backend.next();
        assert_eq!(
            (up.head.first.as_str(), up.head.get("Content-Length")),
            (&*format!("{method} /x HTTP/1.1"), Some("5"))
        );
        up.expect("GET /");
        up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let (answer, _) = client.read_to_close();
        let answer = String::from_utf8(answer).unwrap();
        let body = if method == "HEAD" { "" } else { "ok" };
        assert_eq!(answer.split_once("\r\n\r\n").map(|(_, body)| body), Some(body), "{answer}");
        assert_eq!(up.read_to_close().0, b"", "{method}");
    }
    trial.still_serves();
}

/// What a lenient reader of chunks takes is made anew: the upstream reads one body and one request, whatever was hidden.
#[test]
fn t034_what_is_taken_is_framed_anew() {
    let backend = Backend::serve(answer_one_request);
    let mut gate = Gate::start(&route(&backend, "http: forward\ntimeouts: { idle: 500ms, handshake: 1s }"));
    for chunks in [
        "3;a=b\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "0003\r\nabc\r\n0000\r\n\r\n",
        "3;a=\"\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
        "3\r\nabc\r\n0;a=b\r\n\r\n",
        "1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\nContent-Length: 99\r\n\r\n",
    ] {
        let before = backend.accepted();
        let chunked = page("POST", "/x").with("Transfer-Encoding", "chunked");
        let mut client = gate.send(chunked.followed_by(chunks).followed_by(hidden()));
        let answer = client.read_answer();
        assert!(matches!(answer.status(), 200 | 400), "{chunks:?}: {}", answer.text());
        assert!(backend.accepted() <= before + 1, "{chunks:?}");
    }
    gate.is_well();
}
