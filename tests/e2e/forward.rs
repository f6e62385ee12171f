//! Plain HTTP beside the socket, on routes that say `http: forward`: the same questions as for an upgrade, one request for
//! each connection on both sides, and bodies that neither hide a second request nor look whole when they are not.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::hostile::{Dice, answers_in, mutate};
use crate::support::client::{Request, plain_get};
use crate::support::head::{Answer, status, unchunked};
use crate::support::wire::{Ending, show};
use crate::support::{Backend, Conn, Gate, KEY, Wire, alice, config, eventually, route, small, ws};

/// A gate with one route that forwards, and these fields besides.
fn stand_with(fields: &str) -> (Backend, Gate) {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, &format!("http: forward\n{fields}")));
    (backend, gate)
}

fn stand() -> (Backend, Gate) {
    stand_with("")
}

fn get(target: &str) -> Request {
    plain_get(target).with("X-Api-Key", KEY)
}

fn request(method: &str, target: &str) -> Request {
    get(target).first_line(&format!("{method} {target} HTTP/1.1"))
}

fn post(body: &str) -> Request {
    request("POST", "/in").with("Content-Length", &body.len().to_string()).followed_by(body)
}

fn post_chunked(chunks: &str) -> Request {
    request("POST", "/in").with("Transfer-Encoding", "chunked").followed_by(chunks)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What the client gets for this answer of the upstream, which closes after it.
#[track_caller]
fn passes(request: Request, answer: &str) -> Answer {
    let backend = Backend::answers(answer);
    let gate = Gate::start(&route(&backend, "http: forward"));
    let mut client = gate.send(request);
    let head = client.read_head();
    let body = client.read_to_end();
    let body = if head.has("Transfer-Encoding") { unchunked(body) } else { body };
    assert_eq!(head.get("Connection"), Some("close"), "{head:?}");
    let line = gate.log_line(|line| line.is("forwarded"));
    assert_eq!((line.get("cause").as_str(), line.get("status")), ("complete", status(&head).to_string()), "{line:?}");
    assert_eq!(line.number("down_bytes"), body.len() as u64, "{line:?}");
    Answer { head, body }
}

/// A request that reached the upstream, which has begun an answer without end.
#[track_caller]
fn stream(gate: &Gate, backend: &Backend, request: Request) -> (Wire, Conn) {
    let mut client = gate.send(request);
    let mut up = backend.next();
    up.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    assert_eq!(status(&client.read_head()), 200);
    client.expect("9\r\ndata: 1\n\n\r\n");
    (client, up)
}

/// The client can tell that this is not all, and the upstream's connection is gone as well.
#[track_caller]
fn was_cut(gate: &Gate, mut client: Wire, mut up: Conn, cause: &str) {
    let (rest, _) = client.read_to_close();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks whole: {:?}", String::from_utf8_lossy(&rest));
    up.read_to_close();
    let line = gate.log_line(|line| line.is("forwarded"));
    assert_eq!(line.get("cause"), cause, "{line:?}");
    eventually("the seat is given back", || gate.connections().is_empty());
}

// ---- what passes

#[test]
fn answers_of_every_framing_arrive_whole() {
    let answer = passes(get("/json"), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Own: 1\r\n\r\nhello");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
    assert_eq!((answer.head.get("Content-Length"), answer.head.get("X-Own")), (Some("5"), Some("1")));
    assert!(answer.head.has("Date") && answer.head.has("X-Request-Id"));

    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n";
    let answer = passes(get("/"), chunked);
    assert_eq!((answer.text().as_str(), answer.head.get("Transfer-Encoding")), ("abcde", Some("chunked")));
    assert!(!answer.head.has("Trailer") && !answer.head.has("Content-Length"));

    let answer = passes(get("/"), "HTTP/1.0 404 Gone\r\nX-Own: 1\r\n\r\nuntil the end");
    assert_eq!((answer.status(), answer.text().as_str()), (404, "until the end"));
    assert_eq!(answer.head.first, "HTTP/1.1 404 Not Found");
}

#[test]
fn answers_without_a_body_have_none() {
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n";
    let answer = passes(request("HEAD", "/"), length);
    assert_eq!((answer.status(), answer.head.get("Content-Length"), answer.body.len()), (200, Some("1234"), 0));
    let answer = passes(request("HEAD", "/"), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!((answer.status(), answer.body.len()), (200, 0));
    for code in [204, 304] {
        let answer = passes(get("/"), &format!("HTTP/1.1 {code} X\r\nETag: \"a\"\r\n\r\n"));
        assert_eq!((answer.status(), answer.head.get("ETag"), answer.body.len()), (code, Some("\"a\""), 0));
        assert!(!answer.head.has("Transfer-Encoding"), "{:?}", answer.head);
    }
}

#[test]
fn what_concerns_one_connection_does_not_pass_back() {
    let answer = passes(
        get("/"),
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\
         Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Authenticate: x\r\n\
         Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: x\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         Content-Length: 0\r\n\r\n",
    );
    assert_eq!((answer.status(), answer.head.get("Location")), (302, Some("http://elsewhere/")), "not followed");
    assert_eq!(answer.head.all("Set-Cookie"), ["a=1", "b=2"]);
    for gone in
        ["X-Hop", "Keep-Alive", "Upgrade", "Proxy-Authenticate", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol"]
    {
        assert!(!answer.head.has(gone), "{gone}: {:?}", answer.head);
    }
}

#[test]
fn the_upstream_sees_a_request_made_anew() {
    let backend = Backend::answers(OK);
    let gate = Gate::start(&route(
        &backend,
        "http: forward\nauth: [{ api_key: { extract_from: [{ header: X-Api-Key }, { query: key }] } }]\n\
         identity_headers: { X-Auth-Key-Id: \"{id}\", X-Tenant: \"{attributes.tenant}\" }\n\
         set_headers: { X-Vendor: ours }",
    ));
    let spoofed = plain_get(&format!("/api/x?a=1&key={KEY}&b=2"))
        .with("Accept", "text/html")
        .with("Connection", "keep-alive, X-Nominated, X-Tenant, Content-Length, HTTP2-Settings")
        .with("X-Nominated", "gone")
        .with("Keep-Alive", "timeout=9")
        .with("HTTP2-Settings", "AAMAAABk")
        .with("TE", "trailers")
        .with("Trailer", "X-T")
        .with("Proxy-Authorization", "Basic x")
        .with("X-Auth-Key-Id", "root")
        .with("X_Auth_Key_Id", "root")
        .with("x.tenant", "evil")
        .with("X-Vendor", "theirs")
        .with("x_api_key", "another")
        .with("X-Forwarded-For", "6.6.6.6")
        .with("X_Forwarded_Host", "evil")
        .with("X-Real-IP", "6.6.6.6")
        .with("X-Original-URL", "/admin")
        .with("Sec-WebSocket-Protocol", "x")
        .with("Referer", "here");
    assert_eq!(gate.ask(spoofed).text(), "ok");
    let head = backend.last_head();
    assert_eq!(head.first, "GET /api/x?a=1&b=2 HTTP/1.1");
    for (name, value) in [
        ("Host", "gate.test"),
        ("Connection", "close"),
        ("Accept", "text/html"),
        ("Referer", "here"),
        ("X-Auth-Key-Id", "alice"),
        ("X-Tenant", "acme"),
        ("X-Vendor", "ours"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "gate.test"),
    ] {
        assert_eq!(head.get(name), Some(value), "{name} in {head:?}");
    }
    assert_eq!(head.headers.len(), 11, "the ten and X-Request-Id: {head:?}");
    assert!(!String::from_utf8_lossy(&head.raw).contains(KEY) && !gate.raw_log().contains(KEY));
    let line = gate.log_line(|line| line.is("forwarded"));
    let fields = ["route", "key", "caller", "method", "path", "status", "host"].map(|field| line.get(field));
    assert_eq!(fields, ["main", "alice", "127.0.0.1", "GET", "/api/x", "200", "gate.test"]);
    assert_eq!((line.number("up_bytes"), line.number("down_bytes")), (0, 2));
    assert_eq!(Some(&*line.get("id")), head.get("X-Request-Id"));
}

#[test]
fn request_bodies_arrive_in_the_framing_they_came_in() {
    let (backend, gate) = stand();
    let mut client = gate.send(post("hello"));
    let mut up = backend.next();
    assert_eq!((up.head.get("Content-Length"), up.head.has("Transfer-Encoding")), (Some("5"), false));
    up.expect("hello");
    up.send(OK);
    assert_eq!(client.read_answer().text(), "ok");
    up.read_to_end();

    let chunks = "3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Api-Key: trailer\r\nHost: evil\r\n\r\n";
    let mut client = gate.send(post_chunked(chunks));
    let mut up = backend.next();
    assert_eq!((up.head.get("Transfer-Encoding"), up.head.has("Content-Length")), (Some("chunked"), false));
    let mut got = Vec::new();
    while !got.ends_with(b"0\r\n\r\n") {
        got.extend(up.read_exact(1));
    }
    assert_eq!(String::from_utf8_lossy(&unchunked(got.clone())), "abcde");
    assert!(!String::from_utf8_lossy(&got).contains("trailer"));
    up.send(OK);
    assert_eq!(client.read_answer().text(), "ok");
    eventually("two lines", || gate.log_lines(|line| line.is("forwarded") && line.get("up_bytes") == "5").len() == 2);

    // Nothing, and nothing that says so, are two things.
    for (sent, length) in [(request("POST", "/"), None), (post(""), Some("0"))] {
        let mut client = gate.send(sent);
        let mut up = backend.next();
        assert_eq!((up.head.get("Content-Length"), up.head.has("Transfer-Encoding")), (length, false));
        up.send(OK);
        assert_eq!(client.read_answer().text(), "ok");
    }
}

#[test]
fn whoever_waits_for_100_gets_it_and_the_upstream_hears_nothing_of_it() {
    let (backend, gate) = stand();
    let head = request("PUT", "/in").with("Content-Length", "5").with("Expect", "100-continue");
    let mut client = gate.send(head);
    let mut up = backend.next();
    assert!(!up.head.has("Expect"), "{:?}", up.head);
    assert_eq!(status(&client.read_head()), 100);
    client.send("hello");
    up.expect("hello");
    up.send(OK);
    assert_eq!(client.read_answer().text(), "ok");
    gate.refuses_before(&backend, post("x").with("Expect", "a-cookie"), 400, "bad_handshake");
}

#[test]
fn large_bodies_stream_both_ways() {
    const SIZE: usize = 12 << 20;
    let byte = |at: usize| u8::try_from(at * 7 % 251).unwrap();
    let whole: Vec<u8> = (0..SIZE).map(byte).collect();
    let (backend, gate) = stand();
    let client = gate.send(request("POST", "/").with("Content-Length", &SIZE.to_string()));
    let (mut up, sent) = (backend.next(), whole.clone());
    let mut handle = client.handle();
    let writer = thread::spawn(move || handle.write_all(&sent).unwrap());
    assert!(up.read_exact(SIZE) == whole, "the upload differs");
    writer.join().unwrap();
    let mut client = client;
    let mut handle = up.handle();
    let answer = whole.clone();
    let writer = thread::spawn(move || {
        handle.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes()).unwrap();
        handle.write_all(&answer).unwrap();
    });
    assert_eq!(client.read_head().get("Content-Length"), Some(&*SIZE.to_string()));
    assert!(client.read_exact(SIZE) == whole, "the download differs");
    writer.join().unwrap();
    let line = gate.log_line(|line| line.is("forwarded"));
    assert_eq!((line.number("up_bytes"), line.number("down_bytes")), (SIZE as u64, SIZE as u64));
    assert_eq!(gate.metric("wsbouncer_bytes_total", &[("direction", "up")]), SIZE as f64);
}

#[test]
fn one_connection_is_one_request_on_both_sides() {
    let backend = Backend::serve(|mut conn| {
        // It would keep the connection, if it were let.
        let body: &[u8] = match (conn.head.has("Content-Length"), conn.head.has("Transfer-Encoding")) {
            (true, _) => b"x",
            (_, true) => b"1\r\nx\r\n0\r\n\r\n",
            _ => b"",
        };
        conn.expect(body);
        conn.send("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(conn.read_to_close().0, b"", "something was sent behind the one request");
    });
    let gate = Gate::start(&route(&backend, "http: forward"));
    for second in [get("/second"), alice()] {
        let first = [get("/first"), post("x"), post_chunked("1\r\nx\r\n0\r\n\r\n")];
        for first in first {
            let before = backend.accepted();
            let mut client = gate.send(first.followed_by(second.bytes()));
            let answer = client.read_answer();
            assert_eq!(answer.text(), "ok", "one answer and no second one");
            assert_eq!(backend.accepted(), before + 1);
        }
    }
    assert!(backend.heads().iter().all(|head| !head.first.contains("second") && !head.has("Upgrade")));
    eventually("six lines", || gate.log_lines(|line| line.is("forwarded")).len() == 6);
    assert!(gate.log_lines(|line| line.is("refused")).is_empty());
}

#[test]
fn a_second_request_that_comes_later_is_not_heard_either() {
    let (backend, gate) = stand();
    let mut client = gate.send(get("/first"));
    let mut up = backend.next();
    client.send(get("/second").bytes());
    up.send(OK);
    assert_eq!(client.read_answer().text(), "ok");
    assert_eq!(up.read_to_end(), b"");
    assert_eq!(backend.accepted(), 1);
}

#[test]
fn sockets_open_on_the_same_route_as_ever() {
    let (backend, gate) = stand();
    let client = gate.send(alice());
    backend.next().accept();
    client.opened();
    gate.refuses_before(&backend, alice().with("Transfer-Encoding", "chunked"), 400, "bad_handshake");
    gate.refuses_before(&backend, alice().with("Content-Length", "5"), 400, "bad_handshake");
    gate.refuses_before(&backend, ws("/ws"), 401, "missing_credential");
}

// ---- what does not pass

#[test]
fn the_questions_are_those_of_an_upgrade() {
    let backend = Backend::answers(OK);
    let gate = Gate::start(&format!(
        "keys:\n  - {{ id: alice, secret: {KEY}, routes: [main] }}\n  - {{ id: bob, secret: bob-secret, routes: [other] }}\n\
         \x20 - {{ id: old, secret: old-secret, expires_at: 2020-01-01 }}\n  - {{ id: off, secret: off-secret, disabled: true }}\n\
         routes:\n  - name: main\n    path: /main/*\n    upstream: {0}\n    http: forward\n    allowed_origins: [\"https://a.example\"]\n\
         \x20 - {{ name: other, path: /other, upstream: \"{0}\" }}\n",
        backend.url()
    ));
    let get = |secret: &str| plain_get("/main/x").with("X-Api-Key", secret);
    let refused = [
        (plain_get("/main/x"), 401, "missing_credential"),
        (get("wrong"), 401, "invalid_credential"),
        (get("off-secret"), 401, "invalid_credential"),
        (get("old-secret"), 401, "expired_credential"),
        (get("bob-secret"), 403, "not_allowed_on_route"),
        (get(KEY).with("Origin", "https://evil.example"), 403, "origin_not_allowed"),
        (get(KEY).with("X-Api-Key", KEY), 400, "conflicting_credentials"),
        (get(KEY).first_line("GET /main/../other HTTP/1.1"), 400, "ambiguous_path"),
        (get(KEY).first_line("GET /elsewhere HTTP/1.1"), 404, "no_route"),
        (get(KEY).first_line("GET /other HTTP/1.1"), 426, "upgrade_required"),
        // A credential in the list of subprotocols is none where nothing is offered.
        (plain_get("/main/x").with("Sec-WebSocket-Protocol", &format!("x-api-key, {KEY}")), 401, "missing_credential"),
    ];
    for (request, status, reason) in refused {
        let answer = gate.refuses_before(&backend, request, status, reason);
        assert_eq!(answer.head.has("WWW-Authenticate"), status == 401, "{:?}", answer.head);
    }
    assert_eq!(gate.ask(get(KEY)).status(), 200);
    assert_eq!(gate.ask(get(KEY).with("Origin", "https://a.example")).status(), 200);
    let mut client = gate.send(plain_get("/main/x").first_line("HEAD /main/x HTTP/1.1"));
    let head = client.read_head();
    assert_eq!((status(&head), head.has("WWW-Authenticate"), client.read_to_end()), (401, true, Vec::new()));
}

#[test]
fn a_key_in_a_cookie_counts_only_together_with_an_origin() {
    let backend = Backend::answers(OK);
    let fields = "http: forward\nallowed_origins: [\"https://a.example\"]\nauth: [{ api_key: { extract_from: [{ cookie: s }] } }]";
    let gate = Gate::start(&route(&backend, fields));
    let cookie = |more: &str| plain_get("/").with("Cookie", &format!("a=1; s={KEY}; b=2{more}"));
    gate.refuses_before(&backend, cookie(""), 403, "origin_not_allowed");
    gate.refuses_before(&backend, cookie("").with("Origin", "https://evil.example"), 403, "origin_not_allowed");
    assert_eq!(gate.ask(cookie("").with("Origin", "https://a.example")).text(), "ok");
    assert_eq!(backend.last_head().get("Cookie"), Some("a=1; b=2"));
}

#[test]
fn what_speaks_of_an_upgrade_is_never_forwarded() {
    let (backend, gate) = stand();
    let h2c = get("/").with("Connection", "Upgrade, HTTP2-Settings").with("HTTP2-Settings", "AAMAAABk");
    for (request, status, reason) in [
        (h2c.clone().with("Upgrade", "h2c"), 426, "upgrade_required"),
        (h2c.clone().with("Upgrade", "H2C, foo"), 426, "upgrade_required"),
        (get("/").with("Upgrade", "TLS/1.0").with("Connection", "Upgrade"), 426, "upgrade_required"),
        (get("/").with("Upgrade", ""), 426, "upgrade_required"),
        (get("/").with("Upgrade", "foo"), 426, "upgrade_required"),
        (h2c.clone().with("Upgrade", "websocket, h2c"), 400, "bad_handshake"),
        (h2c.with("Upgrade", "websocket").with("Upgrade", "h2c"), 400, "bad_handshake"),
        (post("x").with("Upgrade", "websocket").with("Connection", "Upgrade"), 400, "bad_handshake"),
        // Somebody in between has lost the Upgrade.
        (alice().without("Upgrade"), 426, "upgrade_required"),
        (request("TRACE", "/"), 405, "bad_handshake"),
        (get("/").first_line("CONNECT a:80 HTTP/1.1"), 405, "bad_handshake"),
        (get("/").first_line("PRI * HTTP/2.0"), 400, "bad_handshake"),
    ] {
        let answer = gate.refuses_before(&backend, request, status, reason);
        assert_eq!(answer.head.has("Allow"), status == 405);
    }
}

/// Each of them hides a second request from one of two readers.
#[test]
fn bodies_that_can_be_read_in_two_ways_are_refused() {
    let (backend, gate) = stand();
    let hidden = "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let coding = |value: &str| request("POST", "/").with("Transfer-Encoding", value).followed_by(hidden);
    let length = |value: &str| request("POST", "/").with("Content-Length", value).followed_by(hidden);
    let mut bad: Vec<Request> = [
        ",chunked",
        "chunked,",
        "chunked, chunked",
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "identity",
        "xchunked",
        "chunkedx",
        "chunked;a=b",
        "\"chunked\"",
        "",
        "\u{b}chunked",
    ]
    .map(coding)
    .into();
    bad.extend(["+5", "-5", "0x5", "5,5", "5, 5", "", "5 5", "99999999999999999999", "1e1"].map(length));
    bad.extend([
        coding("chunked").with("Content-Length", "5"),
        length("5").with("Transfer-Encoding", "chunked"),
        length("0").with("Transfer-Encoding", "Chunked"),
        length("5").with("Content-Length", "5"),
        length("5").with("content-length", "6"),
        coding("chunked").with("Transfer-Encoding", "chunked"),
        coding("chunked").with("transfer-encoding", "identity"),
        length("5").raw("Transfer-Encoding : chunked"),
        length("5").raw(" Transfer-Encoding: chunked"),
        length("5").raw("X: y\nTransfer-Encoding: chunked"),
        length("5").raw("X: y\rTransfer-Encoding: chunked"),
        length("5").raw("Transfer-Encoding:\r\n chunked"),
        length("5").raw("Transfer-Encoding: chunked\0"),
        length("5").first_line("POST / HTTP/1.0"),
        coding("chunked").first_line("POST / HTTP/1.0"),
        coding("chunked").first_line("POST http://other/ HTTP/1.1"),
    ]);
    for request in bad {
        gate.refuses_before(&backend, request, 400, "bad_handshake");
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn chunks_that_are_none_end_both_sides() {
    let backend = Backend::serve(|mut conn| {
        let got = conn.read_to_close().0;
        assert!(!got.ends_with(b"0\r\n\r\n"), "{:?} looks whole", String::from_utf8_lossy(&got));
    });
    let gate = Gate::start(&route(&backend, "http: forward"));
    for chunks in [
        "3\nabc\n0\n\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "x\r\n",
        "-1\r\n",
        "0x3\r\nabc\r\n",
        "3;a\nb\r\nabc\r\n",
    ] {
        // Good ones first, so that the request is on its way.
        let mut client = gate.send(post_chunked("2\r\nok\r\n"));
        eventually("it is on its way", || gate.connections().iter().any(|it| it["up_bytes"] == 2));
        client.send(chunks);
        let answer = client.read_answer();
        gate.check_refusal(&answer, 400, "bad_handshake");
        assert_eq!(answer.field("detail"), "the request body is malformed");
    }
}

#[test]
fn too_large_a_body_is_refused_before_or_cut_on_its_way() {
    let (backend, gate) = stand_with("limits: { max_request_body: 1KiB }");
    let over = "x".repeat(1025);
    let answer = gate.refuses_before(&backend, post(&over), 413, "body_too_large");
    assert_eq!(answer.head.first, "HTTP/1.1 413 Payload Too Large");
    gate.refuses_before(
        &backend,
        request("PUT", "/").with("Content-Length", "999999999999999999"),
        413,
        "body_too_large",
    );
    // Whoever has no key does not learn how much would be taken.
    gate.refuses_before(&backend, post(&over).without("X-Api-Key"), 401, "missing_credential");

    let mut client = gate.send(post_chunked(&format!("400\r\n{}\r\n", &over[..1024])));
    let mut up = backend.next();
    up.read_exact(1024);
    client.send("1\r\nx\r\n0\r\n\r\n");
    gate.check_refusal(&client.read_answer(), 413, "body_too_large");
    assert!(!up.read_to_close().0.ends_with(b"0\r\n\r\n"), "the upstream takes it for a whole one");

    // An answer that has begun cannot be taken back, and must not look whole.
    let mut client = gate.send(post_chunked(&format!("400\r\n{}\r\n", &over[..1024])));
    let mut up = backend.next();
    up.read_exact(1024);
    up.send("HTTP/1.1 200 OK\r\n\r\nhalf");
    client.read_head();
    client.expect("4\r\nhalf\r\n");
    client.send("1\r\nx\r\n0\r\n\r\n");
    was_cut(&gate, client, up, "body_too_large");

    let mut client = gate.send(post_chunked(&format!("400\r\n{}\r\n0\r\n\r\n", &over[..1024])));
    backend.next().send(OK);
    assert_eq!(client.read_answer().text(), "ok");
}

#[test]
fn a_route_that_does_not_forward_answers_as_ever() {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, ""));
    gate.refuses_before(&backend, get("/"), 426, "upgrade_required");
    gate.refuses_before(&backend, post("hello"), 426, "upgrade_required");
    gate.refuses_before(&backend, request("TRACE", "/"), 426, "upgrade_required");
    let answer = gate.refuses_before(&backend, post_chunked("0\r\n\r\n"), 400, "bad_handshake");
    assert_eq!(answer.field("detail"), "Transfer-Encoding is not served here");
    gate.refuses_before(&backend, alice().with("Transfer-Encoding", "chunked"), 400, "bad_handshake");
}

// ---- upstreams that fail

#[test]
fn no_valid_answer_is_a_502() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nleaked",
        "HTTP/1.1 099 X\r\n\r\n",
        "HTTP/1.1 700 X\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nX-A: b",
        "SSH-2.0-OpenSSH\r\n",
        "",
    ] {
        let backend = Backend::answers(answer);
        let gate = Gate::start(&route(&backend, "http: forward"));
        let refused = gate.refuses(get("/"), 502, "upstream_bad_handshake");
        assert!(!refused.text().contains("leaked"));
        gate.refuses(post("hello"), 502, "upstream_bad_handshake");
        assert_eq!(backend.accepted(), 2);
        eventually("the seats are given back", || gate.connections().is_empty());
        eventually("nothing is forwarded", || gate.metric("wsbouncer_forwards_open", &[]) == 0.0);
    }
}

#[test]
fn no_upstream_is_a_502_and_a_silent_one_a_504() {
    let gone = {
        let backend = Backend::manual();
        backend.url()
    };
    let gate = Gate::start(&format!(
        "keys: [{{ id: alice, secret: {KEY} }}]\nroutes: [{{ upstream: \"{gone}\", http: forward }}]\n"
    ));
    gate.refuses(get("/"), 502, "upstream_unreachable");
    gate.refuses(post("x"), 502, "upstream_unreachable");

    let (backend, gate) = stand_with("timeouts: { handshake: 300ms }");
    gate.refuses(get("/"), 504, "upstream_timeout");
    assert_eq!(backend.next().read_to_close().0, b"");
    // Interim answers are no answer.
    let mut client = gate.send(get("/"));
    let up = backend.next();
    up.flood(b"HTTP/1.1 100 Continue\r\n\r\n", usize::MAX);
    gate.check_refusal(&client.read_answer(), 504, "upstream_timeout");
}

#[test]
fn half_an_answer_never_looks_whole() {
    for (begin, rest) in [
        ("Content-Length: 10\r\n\r\nhello", false),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", false),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", false),
        ("\r\nhello", true),
    ] {
        let (backend, gate) = stand();
        let mut client = gate.send(get("/"));
        let mut up = backend.next();
        up.send(format!("HTTP/1.1 200 OK\r\n{begin}"));
        let head = client.read_head();
        if rest {
            client.expect("5\r\nhello\r\n");
            up.reset();
        } else {
            up.linger();
        }
        let (body, _) = client.read_to_close();
        match head.get("Content-Length") {
            Some(length) => assert!(body.len() < length.parse().unwrap()),
            None => assert!(!body.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&body)),
        }
        assert_eq!(gate.log_line(|line| line.is("forwarded")).get("cause"), "upstream_lost");
    }
}

#[test]
fn an_answer_before_the_whole_request_is_passed_on() {
    let (backend, gate) = stand();
    let mut client = gate.send(request("POST", "/").with("Content-Length", "1000000").followed_by("begin"));
    let mut up = backend.next();
    up.send("HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
    let head = client.read_head();
    assert_eq!(status(&head), 413);
    client.expect("no");
    client.read_to_close();
    up.read_to_close();
    assert_eq!(gate.log_line(|line| line.is("forwarded")).get("cause"), "complete");
}

// ---- who goes away takes the other side along

#[test]
fn a_client_that_is_gone_frees_the_upstream_at_once() {
    let (backend, gate) = stand();
    let lost = |count: usize| {
        eventually("the loss is noted", || {
            gate.log_lines(|line| line.is("forwarded") && line.get("cause") == "client_lost").len() == count
        });
    };
    // While the answer is waited for; in the middle of it; with something behind the request.
    let client = gate.send(get("/"));
    let mut up = backend.next();
    drop(client);
    up.read_to_close();
    lost(1);
    let (client, mut up) = stream(&gate, &backend, get("/"));
    drop(client);
    up.read_to_close();
    lost(2);
    let (client, mut up) = stream(&gate, &backend, get("/").followed_by(get("/second").bytes()));
    drop(client);
    up.read_to_close();
    lost(3);
    let (client, mut up) = stream(&gate, &backend, post("hello").followed_by("junk"));
    client.reset();
    up.expect("hello");
    up.read_to_close();
    lost(4);
    // In the middle of its body, which must not look whole.
    for begin in [post_chunked("5\r\nhello\r\n"), request("POST", "/").with("Content-Length", "9").followed_by("hello")]
    {
        let client = gate.send(begin);
        let mut up = backend.next();
        let chunked = up.head.has("Transfer-Encoding");
        up.expect(if chunked { "5\r\nhello\r\n" } else { "hello" });
        drop(client);
        assert_eq!(up.read_to_close().0, b"");
    }
    lost(6);
    eventually("nothing is forwarded", || gate.metric("wsbouncer_forwards_open", &[]) == 0.0);
    assert_eq!(gate.metric("wsbouncer_forwards_ended_total", &[("cause", "client_lost")]), 6.0);
    assert_eq!(gate.metric("wsbouncer_requests_total", &[("outcome", "forwarded")]), 6.0);
}

#[test]
fn revocation_expiry_and_removal_end_a_running_answer() {
    let backend = Backend::manual();
    let keys = |alice: &str| {
        format!(
            "keys: [{alice}{{ id: bob, secret: bob-secret }}]\nlive_connections: {{ on_route_removed: {{ after: 0s }} }}\n\
             routes:\n  - {{ name: main, path: /main, upstream: \"{0}\", http: forward }}\n  - {{ name: other, path: /other, upstream: \"{0}\" }}\n",
            backend.url()
        )
    };
    let alice = |more: &str| format!("{{ id: alice, secret: {KEY}{more} }}, ");
    let all = keys(&alice(""));
    for (changed, cause) in [
        (keys(""), "revoked"),
        (keys(&alice(", disabled: true")), "revoked"),
        (keys(&alice(", expires_at: 2020-01-01")), "expired"),
        (keys(&alice(", routes: [other]")), "not_allowed_on_route"),
        (
            all.replace("path: /main,", "path: /main, auth: none,").replace("name: main,", "name: renamed,"),
            "route_removed",
        ),
    ] {
        let gate = Gate::start(&all);
        let (client, up) = stream(&gate, &backend, get("/main"));
        let (mut other, mut other_up) = stream(&gate, &backend, plain_get("/main").with("X-Api-Key", "bob-secret"));
        gate.edit_config(&changed);
        if cause != "route_removed" {
            was_cut_of_two(&gate, client, up, cause);
            other_up.send("data: 2\n\n");
            other.expect("9\r\ndata: 2\n\n\r\n");
        } else {
            eventually("both are cut", || gate.log_lines(|line| line.get("cause") == cause).len() == 2);
        }
    }
}

#[track_caller]
fn was_cut_of_two(gate: &Gate, mut client: Wire, mut up: Conn, cause: &str) {
    let (rest, _) = client.read_to_close();
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    up.read_to_close();
    let line = gate.log_line(|line| line.is("forwarded"));
    assert_eq!((line.get("cause").as_str(), line.get("key").as_str()), (cause, "alice"), "{line:?}");
    eventually("the seat is given back", || gate.connections().len() == 1);
}

#[test]
fn revocation_before_the_answer_is_a_refusal() {
    let (backend, gate) = stand();
    let mut client = gate.send(get("/"));
    let mut up = backend.next();
    gate.edit_config(&gate.yaml().replace(KEY, "another-secret-0123"));
    gate.check_refusal(&client.read_answer(), 401, "invalid_credential");
    up.read_to_close();
}

#[test]
fn a_date_that_passes_ends_a_running_answer() {
    let backend = Backend::manual();
    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 2;
    let soon = i64::try_from(soon).unwrap();
    let date = jiff::Timestamp::from_second(soon).unwrap();
    let gate = Gate::start(&format!(
        "keys: [{{ id: alice, secret: {KEY}, expires_at: {date} }}]\nroutes: [{{ upstream: \"{}\", http: forward }}]\n",
        backend.url()
    ));
    let (client, up) = stream(&gate, &backend, get("/"));
    was_cut(&gate, client, up, "expired");
}

#[test]
fn a_drain_ends_what_runs() {
    let backend = Backend::manual();
    let mut gate = Gate::start(&(route(&backend, "http: forward") + "drain: { timeout: 20s, spread: 0s }\n"));
    let (mut running, mut up) = stream(&gate, &backend, get("/"));
    let mut waiting = gate.send(get("/"));
    let mut asked = backend.next();
    gate.signal(Signal::TERM);
    let (rest, _) = running.read_to_close();
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    up.read_to_close();
    let answer = waiting.read_answer();
    assert_eq!((answer.status(), &*answer.field("reason")), (503, "draining"));
    asked.read_to_close();
    assert_eq!(gate.exit().code(), Some(0));
    gate.log_line(|line| line.is("forwarded") && line.get("cause") == "drain");
    gate.log_line(|line| line.is("drained"));
}

#[test]
fn silence_and_a_lifetime_have_an_end() {
    let (backend, gate) = stand_with("timeouts: { idle: 300ms }");
    let (client, up) = stream(&gate, &backend, get("/"));
    was_cut(&gate, client, up, "idle_timeout");
    // Before the answer it is the request's body that is missing, and that can be said.
    let mut client = gate.send(request("POST", "/").with("Content-Length", "5"));
    let mut up = backend.next();
    gate.check_refusal(&client.read_answer(), 408, "request_timeout");
    assert_eq!(up.read_to_close().0, b"");

    let (backend, gate) = stand_with("timeouts: { max_lifetime: 300ms }");
    let (client, up) = stream(&gate, &backend, get("/"));
    was_cut(&gate, client, up, "max_lifetime");
}

// ---- bounds

#[test]
fn a_request_that_runs_counts_like_a_tunnel() {
    for limits in ["max_connections: 1", "max_connections_per_key: 1"] {
        let (backend, gate) = stand_with(&format!("limits: {{ {limits} }}"));
        let (client, up) = stream(&gate, &backend, get("/events"));
        let listed = gate.connections();
        assert_eq!(
            (listed.len(), listed[0]["kind"].as_str(), listed[0]["key"].as_str()),
            (1, Some("http"), Some("alice"))
        );
        gate.refuses_before(&backend, get("/"), 429, "too_many_connections");
        gate.refuses_before(&backend, alice(), 429, "too_many_connections");
        assert_eq!(gate.metric("wsbouncer_forwards_open", &[("route", "main")]), 1.0);
        assert_eq!(gate.metric("wsbouncer_tunnels_open", &[]), 0.0);
        assert_eq!(gate.metric("wsbouncer_bytes_total", &[("direction", "down")]), 9.0);
        drop((client, up));
        eventually("the place is free", || gate.connections().is_empty());
        let tunnel = gate.send(alice());
        backend.next().accept();
        let _tunnel = tunnel.opened();
        gate.wait_for_open(1);
        assert_eq!(gate.connections()[0]["kind"], "tunnel");
        gate.refuses_before(&backend, get("/"), 429, "too_many_connections");
    }
}

#[test]
fn wrong_keys_are_counted_like_those_of_an_upgrade() {
    let backend = Backend::answers(OK);
    let gate = Gate::start(&(route(&backend, "http: forward") + "limits: { max_failed_attempts_per_minute: 2 }\n"));
    for _ in 0..2 {
        gate.refuses_before(&backend, plain_get("/").with("X-Api-Key", "wrong"), 401, "invalid_credential");
    }
    gate.refuses_before(&backend, get("/"), 429, "too_many_attempts");
}

#[test]
fn a_slow_reader_slows_its_writer_down() {
    const MOST: usize = 64 << 20;
    let (backend, gate) = stand();
    // Down: the client does not read.
    let mut client = gate.send(get("/"));
    let mut up = backend.next();
    up.send("HTTP/1.1 200 OK\r\n\r\n");
    client.read_head();
    let before = gate.resident();
    let sent = up.send_until_stuck(Duration::from_millis(300), MOST);
    assert!(sent < MOST, "the gate took {sent} bytes that nobody reads");
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    // And goes on where it stopped.
    let mut rest = client.handle();
    let reader = thread::spawn(move || {
        let (mut buffer, mut count) = (vec![0; 65536], 0);
        while count < sent {
            match rest.read(&mut buffer).unwrap() {
                0 => break,
                read => count += read,
            }
        }
        count
    });
    assert!(reader.join().unwrap() >= sent);
    drop((client, up));
    // Up: the upstream does not read.
    let mut client = gate.send(request("POST", "/").with("Content-Length", "16000000"));
    let up = backend.next();
    let sent = client.send_until_stuck(Duration::from_millis(300), 15_000_000);
    assert!(sent < 15_000_000, "the gate took {sent} bytes that nobody reads");
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    drop(up);
}

#[test]
fn a_stalled_reader_is_cut_in_the_end() {
    let (backend, gate) = stand_with("timeouts: { idle: 500ms }");
    let mut client = gate.send(get("/"));
    let mut up = backend.next();
    up.send("HTTP/1.1 200 OK\r\n\r\n");
    client.read_head();
    up.flood(&[b'x'; 65536], usize::MAX);
    assert_eq!(gate.log_line(|line| line.is("forwarded")).get("cause"), "idle_timeout");
}

#[test]
fn a_unix_socket_is_an_upstream_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::unix(&dir.path().join("app.sock"));
    let gate = Gate::start(&route(&backend, "http: forward"));
    let mut client = gate.send(post("hello"));
    let mut up = backend.next();
    up.expect("hello");
    up.send(OK);
    assert_eq!(client.read_answer().text(), "ok");
}

#[test]
fn curl_understands_it() {
    let echo = Backend::serve(|mut conn| {
        let body = match conn.head.get("Content-Length").map(|length| length.parse().unwrap()) {
            Some(length) => conn.read_exact(length),
            None => Vec::new(),
        };
        conn.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len().max(1)));
        conn.send(if body.is_empty() { b"-".to_vec() } else { body });
        conn.send("\r\n0\r\n\r\n");
        conn.linger();
    });
    let gate = Gate::start(&route(&echo, "http: forward"));
    let url = format!("http://{}/x", gate.addr);
    let curl = |more: &[&str]| {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--noproxy", "*", "-H", &format!("X-Api-Key: {KEY}")])
            .args(more)
            .output();
        output.ok().map(|output| (output.status.code(), String::from_utf8(output.stdout).unwrap()))
    };
    // Where there is no curl, the raw tests have to do.
    let Some(plain) = curl(&[&url]) else { return };
    assert_eq!(plain, (Some(0), "-".into()));
    let large = gate.dir().join("large");
    std::fs::write(&large, "0123456789abcdef".repeat(200_000)).unwrap();
    let data = format!("@{}", large.display());
    // Over a megabyte curl asks first.
    let (code, got) = curl(&["--data-binary", &data, "-H", "Expect: 100-continue", &url]).unwrap();
    assert_eq!((code, got.len()), (Some(0), 3_200_000));
    assert_eq!(curl(&["-I", &url]).unwrap().0, Some(0));
    let two = curl(&[&url, &url]).unwrap();
    assert_eq!(two, (Some(0), "--".into()), "two requests are two connections");
}

/// Both at a time, as a stream of questions and answers.
#[test]
fn both_bodies_may_run_at_once() {
    let (backend, gate) = stand();
    let mut client = gate.send(post_chunked(""));
    let mut up = backend.next();
    up.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(status(&client.read_head()), 200);
    for round in 0..50 {
        let chunk = format!("{:x}\r\n{}\r\n", round + 1, "x".repeat(round + 1));
        client.send(&chunk);
        // Sizes are written anew.
        let anew = chunk.to_ascii_uppercase().replace('X', "x");
        up.expect(&anew);
        up.send(&chunk);
        client.expect(&anew);
    }
    client.send("0\r\n\r\n");
    up.expect("0\r\n\r\n");
    up.send("0\r\n\r\n");
    assert_eq!(client.read_to_end(), b"0\r\n\r\n");
    assert_eq!(gate.log_line(|line| line.is("forwarded")).get("cause"), "complete");
}

/// Reads the body as its head says and answers; nothing may come behind it. Half a body is none.
pub fn answer_one_request(mut conn: Conn) {
    let mut rest = Vec::new();
    let is_whole = match (conn.head.get("Content-Length"), conn.head.get("Transfer-Encoding")) {
        (Some(_), Some(_)) => panic!("two framings in {:?}", conn.head),
        (Some(length), None) => {
            let length: usize = length.parse().unwrap();
            while rest.len() < length {
                match conn.read_some() {
                    Ok(more) if !more.is_empty() => rest.extend(more),
                    _ => break,
                }
            }
            rest.len() == length
        }
        (None, Some("chunked")) => {
            while !rest.ends_with(b"0\r\n\r\n") {
                match conn.read_some() {
                    Ok(more) if !more.is_empty() => rest.extend(more),
                    _ => break,
                }
            }
            rest.ends_with(b"0\r\n\r\n")
        }
        (None, Some(other)) => panic!("{other} in {:?}", conn.head),
        (None, None) => true,
    };
    if is_whole {
        let _ = conn.try_send("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(conn.read_to_close().0, b"", "behind {:?}", conn.head);
    }
}

#[test]
fn mutations_of_a_request_never_become_two() {
    const ROUNDS: usize = 250;
    let backend = Backend::serve(answer_one_request);
    let fields = "http: forward\ntimeouts: { idle: 200ms, handshake: 1s }";
    let yaml = route(&backend, fields) + "timeouts: { head: 150ms }\n";
    let mut gate = config(&yaml).level("info").start();
    thread::scope(|scope| {
        for seed in 0..4 {
            let gate = &gate;
            scope.spawn(move || {
                let mut dice = Dice(seed + 4242);
                for round in 0..ROUNDS {
                    let first = match dice.roll(3) {
                        0 => get("/first"),
                        1 => post("hello"),
                        _ => post_chunked("5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX-T: 1\r\n\r\n"),
                    };
                    let second = [get("/second"), alice()][dice.roll(2)].bytes();
                    let mut bytes = first.followed_by(second).bytes();
                    for _ in 0..=dice.roll(3) {
                        mutate(&mut dice, &mut bytes);
                    }
                    let mut client = gate.connect();
                    let _ = client.try_send(&bytes);
                    if dice.roll(2) == 0 {
                        client.shutdown_write();
                    }
                    let (answer, _) = client.read_to_close();
                    assert!(answers_in(&answer) <= 1, "seed {seed}, round {round}: {}", show(&answer));
                }
            });
        }
    });
    assert!(backend.accepted() > 50 && backend.accepted() <= 4 * ROUNDS, "{}", backend.accepted());
    eventually("all seats are given back", || gate.connections().is_empty());
    gate.is_well();
}

/// Every ending of every kind leaves nothing behind.
#[test]
fn nothing_is_left_of_many() {
    let backend = Backend::serve(|mut conn| match conn.head.first.as_str() {
        "GET /whole HTTP/1.1" => conn.send(OK),
        "GET /half HTTP/1.1" => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nno"),
        "GET /reset HTTP/1.1" => conn.reset(),
        _ => {
            let _ = conn.read_to_close();
        }
    });
    let mut gate = config(&route(&backend, "http: forward")).level("info").start();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..100 {
                    let target = ["/whole", "/half", "/reset", "/stay"][round % 4];
                    let mut client = gate.send(get(target));
                    if target != "/stay" {
                        let (_, ending) = client.read_to_close();
                        assert!(target == "/half" || ending == Ending::Eof);
                    }
                }
            });
        }
    });
    eventually("all seats are given back", || gate.connections().is_empty());
    // The last one may not be accepted yet when there seems to be nobody any more.
    for gauge in ["wsbouncer_connections_open", "wsbouncer_forwards_open"] {
        eventually("nothing is left", || gate.metric(gauge, &[]) == 0.0);
    }
    gate.is_well();
}
