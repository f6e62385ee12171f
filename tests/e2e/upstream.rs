//! What the upstream sees of a handshake (design, section 4), and what becomes of every answer it may give.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::support::client::WS_KEY;
use crate::support::frames::{plain, text};
use crate::support::{Backend, Gate, KEY, alice, config, eventually, route, small, stand, stand_echo, ws};

// ---- the request

#[test]
fn the_upstream_sees_the_request_line_and_host_as_sent_and_a_handshake_of_its_own() {
    let (backend, gate) = stand_echo();
    gate.open(ws("/ws/%C3%BC?a=%20&b").with("X-Api-Key", KEY).host("Chat.Example.com:8080"));
    let head = backend.last_head();
    assert_eq!(head.first, "GET /ws/%C3%BC?a=%20&b HTTP/1.1");
    for (name, value) in [
        ("Host", "Chat.Example.com:8080"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", WS_KEY),
        ("X-Auth-Key-Id", "alice"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "Chat.Example.com:8080"),
    ] {
        assert_eq!(head.get(name), Some(value), "{name}");
    }
    assert!(!head.has("Sec-WebSocket-Protocol") && !head.has("Sec-WebSocket-Extensions") && !head.has("X-Api-Key"));
}

#[test]
fn end_to_end_headers_pass_in_order_and_unchanged() {
    let (backend, gate) = stand_echo();
    let extensions = "permessage-deflate; client_max_window_bits, x-test; a=\"b c\"";
    let request = alice()
        .with("X-Custom", "one")
        .with("Cookie", "a=b; c=d")
        .with("X-Custom", "two")
        .with("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .with("User-Agent", "a/1 (b; c)")
        .with("Origin", "https://a.example")
        .with("Authorization", "Basic dXNlcjpwdw==")
        .with("Sec-WebSocket-Extensions", extensions);
    gate.open(request);
    let head = backend.last_head();
    assert_eq!(head.all("X-Custom"), ["one", "two"]);
    for (name, value) in [
        ("Cookie", "a=b; c=d"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("User-Agent", "a/1 (b; c)"),
        ("Origin", "https://a.example"),
        ("Authorization", "Basic dXNlcjpwdw=="),
        ("Sec-WebSocket-Extensions", extensions),
    ] {
        assert_eq!(head.get(name), Some(value), "{name}");
    }
}

/// W3C Trace Context, sections 3.2 and 4.3: what is no `traceparent` begins a new trace, and takes its `tracestate` along.
#[test]
fn a_trace_passes_whole_or_not_at_all() {
    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const NOT_RECORDED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    const LATER: &str = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-is-to-come";
    let (backend, gate) = stand_echo();
    for good in [GOOD, NOT_RECORDED, LATER] {
        gate.open(alice().with("tracestate", "a=1,b=2").with("traceparent", good).with("tracestate", "c=3"));
        let head = backend.last_head();
        assert_eq!((head.get("traceparent"), head.all("tracestate")), (Some(good), vec!["a=1,b=2", "c=3"]), "{good}");
        gate.open(alice().with("traceparent", good));
        assert!(!backend.last_head().has("tracestate"));
    }
    let upper = GOOD.to_ascii_uppercase();
    let none = ["", "00", &upper, &GOOD[..54], "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"];
    for bad in none {
        gate.open(alice().with("traceparent", bad).with("tracestate", "a=1"));
        let head = backend.last_head();
        assert!(!head.has("traceparent") && !head.has("tracestate"), "{bad}: {head:?}");
    }
    for request in [
        alice().with("tracestate", "a=1"),
        alice().with("traceparent", GOOD).with("traceparent", GOOD).with("tracestate", "a=1"),
        alice().set("Connection", "Upgrade, TraceParent").with("traceparent", GOOD).with("tracestate", "a=1"),
    ] {
        gate.open(request);
        let head = backend.last_head();
        assert!(!head.has("traceparent") && !head.has("tracestate"), "{head:?}");
    }
}

#[test]
fn what_concerns_one_connection_stays_on_it() {
    let (backend, gate) = stand_echo();
    let request = alice()
        .set("Connection", "Upgrade, X-Drop, keep-alive, HTTP2-Settings")
        .with("X-Drop", "1")
        .with("Keep-Alive", "timeout=5")
        .with("Proxy-Connection", "keep-alive")
        .with("Proxy-Authorization", "Basic x")
        .with("TE", "trailers")
        .with("HTTP2-Settings", "AAMAAABk");
    gate.open(request);
    let head = backend.last_head();
    for name in
        ["X-Drop", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "TE", "HTTP2-Settings", "Content-Length"]
    {
        assert!(!head.has(name), "{name}: {head:?}");
    }
    assert_eq!(head.get("Connection"), Some("Upgrade"));
}

#[test]
fn a_nomination_removes_no_header_of_ours_and_no_check() {
    let (backend, gate) = stand_echo();
    let everything = "Upgrade, X-Forwarded-For, x-forwarded-proto, X-Forwarded-Host, x-auth-key-id, X-Request-Id, Host, \
                      Sec-WebSocket-Key, sec-websocket-version, upgrade, connection, X-Api-Key";
    gate.open(alice().set("Connection", everything));
    let head = backend.last_head();
    for (name, value) in [
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "gate.test"),
        ("X-Auth-Key-Id", "alice"),
        ("Host", "gate.test"),
        ("Sec-WebSocket-Key", WS_KEY),
        ("Sec-WebSocket-Version", "13"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
    ] {
        assert_eq!(head.get(name), Some(value), "{name}");
    }
    assert!(head.has("X-Request-Id"));
    let wrong = ws("/ws").with("X-Api-Key", "wrong").set("Connection", "Upgrade, X-Api-Key");
    gate.refuses_before(&backend, wrong, 401, "invalid_credential");
    gate.refuses_before(&backend, ws("/ws").set("Connection", everything), 401, "missing_credential");
}

#[test]
fn the_credential_is_dropped_under_its_other_spellings_too() {
    let (backend, gate) = stand_echo();
    gate.open(alice().with("X_Api_Key", "x").with("X.Api.Key", "y").with("x-api_key", "z"));
    let head = backend.last_head();
    assert!(head.headers.iter().all(|(name, _)| !name.to_lowercase().starts_with("x_api")), "{head:?}");
    assert!(head.headers.iter().all(|(name, _)| name.to_lowercase().replace(['_', '.'], "-") != "x-api-key"));
}

// ---- identity

const FORGED: [&str; 9] = [
    "X-Auth-Key-Id",
    "x-auth-key-id",
    "X_Auth_Key_Id",
    "X.Auth.Key.Id",
    "X-Auth_Key-Id",
    "X-Tenant",
    "x_tenant",
    "X.Tenant",
    "X-TENANT",
];

#[test]
fn nobody_can_forge_who_they_are() {
    let backend = Backend::echo();
    let fields =
        "identity_headers: { X-Auth-Key-Id: \"{id}\", X-Tenant: \"{attributes.tenant}\", X-Door: \"{id}@{route}\" }";
    let gate = Gate::start(&route(&backend, fields));
    let request = FORGED.iter().fold(alice(), |request, name| request.with(name, "admin"));
    gate.open(request);
    let head = backend.last_head();
    assert!(!head.text().contains("admin"), "{}", head.text());
    assert_eq!(head.get("X-Auth-Key-Id"), Some("alice"));
    assert_eq!(head.get("X-Tenant"), Some("acme"));
    assert_eq!(head.get("X-Door"), Some("alice@main"));
}

#[test]
fn an_open_route_forwards_no_forged_identity_either() {
    let backend = Backend::echo();
    let fields = "auth: none\nidentity_headers: { X-Auth-Key-Id: \"{id}\", X-Tenant: \"{attributes.tenant}\" }";
    for fields in ["auth: none", fields] {
        let gate = Gate::start(&route(&backend, fields));
        let request = FORGED.iter().take(5).fold(ws("/ws"), |request, name| request.with(name, "admin"));
        gate.open(request.with("X-Tenant", if fields.contains("X-Tenant") { "admin" } else { "passes" }));
        let head = backend.last_head();
        assert!(!head.text().contains("admin"), "{}", head.text());
        assert!(head.all("X-Auth-Key-Id").iter().all(|value| value.is_empty()));
    }
}

#[test]
fn an_attribute_that_a_key_does_not_have_is_empty_and_not_the_clients() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, "identity_headers: { X-Plan: \"{attributes.plan}\" }"));
    gate.open(alice().with("X-Plan", "gold"));
    assert!(backend.last_head().all("X-Plan").iter().all(|value| value.is_empty()));
}

#[test]
fn the_vendors_key_stays_inside() {
    let backend = Backend::echo();
    let yaml = route(
        &backend,
        "set_headers: { Authorization: \"Bearer {env.VENDOR_KEY}\", X-Fixed: \"{route}/{attributes.tenant}\" }",
    );
    let gate = config(&yaml).env("VENDOR_KEY", "vendor-secret").start();
    gate.open(alice().with("Authorization", "Bearer mine").with("x_fixed", "mine").with("X-Fixed", "mine"));
    let head = backend.last_head();
    assert_eq!(head.get("Authorization"), Some("Bearer vendor-secret"));
    assert_eq!(head.get("X-Fixed"), Some("main/acme"));
    assert!(!head.text().contains("mine"));
    assert!(!gate.raw_log().contains("vendor-secret"));
}

// ---- where it came from

const SPOOFED: [&str; 10] = [
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Uri",
    "X_Forwarded_For",
    "X-Real-IP",
    "X-Original-URL",
    "X-Envoy-Original-Path",
];

#[test]
fn a_stranger_speaks_for_nobody_else() {
    let (backend, gate) = stand_echo();
    let request = SPOOFED.iter().fold(alice(), |request, name| request.with(name, "6.6.6.6"));
    gate.open(request.with("Forwarded", "for=6.6.6.6;host=evil;proto=https"));
    let head = backend.last_head();
    assert!(!head.text().contains("6.6.6.6") && !head.text().contains("evil"), "{}", head.text());
    assert_eq!(head.get("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(gate.log_line(|line| line.is("tunnel opened")).get("caller"), "127.0.0.1");
}

#[test]
fn what_a_trusted_proxy_says_of_the_client_passes() {
    let backend = Backend::echo();
    let gate = Gate::start(&(small(&backend, "") + "trusted_proxies: [ 127.0.0.0/8 ]\n"));
    gate.open(alice().with("X-Real-IP", "203.0.113.7").with("X_Forwarded_For", "6.6.6.6"));
    let head = backend.last_head();
    assert_eq!(head.get("X-Real-IP"), Some("203.0.113.7"));
    assert!(!head.text().contains("6.6.6.6"), "{}", head.text());
}

#[test]
fn a_trusted_proxy_is_believed_up_to_the_first_stranger() {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, "trusted_proxies: [ 127.0.0.0/8, 10.0.0.0/8 ]\n"));
    let request = alice()
        .with("X-Forwarded-For", "6.6.6.6, 203.0.113.7")
        .with("X-Forwarded-For", "10.0.0.9")
        .with("X-Forwarded-Proto", "https")
        .with("X-Forwarded-Host", "outside.example");
    gate.open(request);
    let head = backend.last_head();
    assert_eq!(head.get("X-Forwarded-For"), Some("203.0.113.7, 10.0.0.9, 127.0.0.1"));
    assert_eq!(head.get("X-Forwarded-Proto"), Some("https"));
    assert_eq!(head.get("X-Forwarded-Host"), Some("outside.example"));
    let caller = gate.log_line(|line| line.is("tunnel opened")).get("caller");
    assert_eq!(caller, "203.0.113.7");
}

#[test]
fn a_sane_request_id_is_kept_and_any_other_is_made() {
    let (backend, gate) = stand_echo();
    gate.open(alice().with("X-Request-Id", "abc-123_X"));
    assert_eq!(backend.last_head().get("X-Request-Id"), Some("abc-123_X"));
    gate.log_line(|line| line.is("tunnel opened") && line.get("id") == "abc-123_X");
    let long = "a".repeat(500);
    for sent in ["", "a b", "a\"b", "<script>", "a;b", &long] {
        gate.open(alice().with("X-Request-Id", sent));
        let id = backend.last_head().get("X-Request-Id").unwrap().to_owned();
        let uuid = uuid::Uuid::parse_str(&id).unwrap_or_else(|error| panic!("{error}: {id} for {sent:?}"));
        assert_eq!(uuid.get_version_num(), 7);
    }
    gate.open(alice().with("X-Request-Id", "one").with("X-Request-Id", "two"));
    assert_eq!(backend.last_head().all("X-Request-Id").len(), 1);
    let answer = gate.refuses_before(&backend, ws("/ws").with("X-Request-Id", "abc-456"), 401, "missing_credential");
    assert_eq!(answer.field("request_id"), "abc-456");
}

// ---- where it goes

#[test]
fn the_host_can_be_the_upstreams_own() {
    let backend = Backend::echo();
    let gate = Gate::start(&format!(
        "upstreams:\n  app: {{ url: \"{}\", host: upstream }}\nroutes:\n  - {{ upstream: app, auth: none }}\n",
        backend.url()
    ));
    gate.open(ws("/ws").host("outside.example"));
    let head = backend.last_head();
    assert_eq!(head.get("Host"), Some(&*backend.address()));
    assert_eq!(head.get("X-Forwarded-Host"), Some("outside.example"));
}

#[test]
fn an_upstream_may_be_a_name_or_an_ipv6_address() {
    let backend = Backend::echo();
    let port = backend.address().rsplit(':').next().unwrap().to_owned();
    let gate = Gate::start(&format!("routes:\n  - {{ upstream: \"ws://localhost:{port}\", auth: none }}\n"));
    let mut client = gate.open(ws("/ws"));
    client.send("x");
    client.expect("x");

    let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else {
        // A machine without IPv6.
        return;
    };
    let address = listener.local_addr().unwrap();
    let gate = Gate::start(&format!("routes:\n  - {{ upstream: \"ws://{address}\", auth: none }}\n"));
    let _client = gate.send(ws("/ws"));
    let mut up = crate::support::Wire::new(crate::support::wire::Stream::Tcp(listener.accept().unwrap().0));
    assert_eq!(up.read_head().get("Host"), Some("gate.test"));
}

#[test]
fn an_upstream_may_be_a_unix_socket() {
    let dir = tempfile::TempDir::new().unwrap();
    let backend = Backend::unix(&dir.path().join("app.sock"));
    for yaml in [
        small(&backend, ""),
        format!(
            "upstreams: {{ sock: \"{}\" }}\nkeys: [ {{ id: alice, secret: {KEY} }} ]\nroutes: [ {{ upstream: sock }} ]\n",
            backend.url()
        ),
    ] {
        let gate = Gate::start(&yaml);
        let client = gate.send(alice());
        let mut up = backend.next();
        assert_eq!((up.head.get("Host"), up.head.get("X-Forwarded-For")), (Some("gate.test"), Some("127.0.0.1")));
        up.accept();
        let (mut client, _) = client.opened();
        client.send(text("ping"));
        up.expect(text("ping"));
        up.send(plain(1, b"pong"));
        up.shutdown_write();
        client.expect(plain(1, b"pong"));
        assert_eq!(client.read_frame().close(), Some((1014, "upstream_lost".into())));
    }
}

#[test]
fn every_tunnel_has_an_upstream_connection_of_its_own() {
    let (backend, gate) = stand();
    let mut tunnels = Vec::new();
    for n in 0..3 {
        let client = gate.send(alice());
        let mut up = backend.next();
        up.accept();
        let (mut client, _) = client.opened();
        client.send(format!("hello {n}"));
        up.expect(format!("hello {n}"));
        tunnels.push((client, up));
    }
    assert_eq!(backend.accepted(), 3);
    for (n, (client, up)) in tunnels.iter_mut().enumerate() {
        up.send(format!("answer {n}"));
        client.expect(format!("answer {n}"));
    }
}

#[test]
fn an_ipv4_caller_is_one_on_a_listener_for_both_kinds_too() {
    if std::net::TcpListener::bind("[::]:0").is_err() {
        // A machine without IPv6 has no such listener.
        return;
    }
    let backend = Backend::echo();
    let yaml = small(&backend, "trusted_proxies: [ 127.0.0.0/8 ]\n");
    let mut gate = Gate::start(&format!("listen: \"[::]:0\"\n{yaml}"));
    gate.addr.set_ip(Ipv4Addr::LOCALHOST.into());
    gate.open(alice().with("X-Forwarded-For", "203.0.113.7"));
    assert_eq!(backend.last_head().get("X-Forwarded-For"), Some("203.0.113.7, 127.0.0.1"));
}

// ---- an answer that is no 101

#[test]
fn a_refusal_of_the_upstream_is_passed_on_as_an_ordinary_answer() {
    let (backend, gate) = stand();
    for (sent, status, body) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nX-Why: banned\r\n\r\nnope", 403, "nope"),
        ("HTTP/1.1 403 Forbidden\r\nX-Why: banned\r\n\r\nuntil the end", 403, "until the end"),
        (
            "HTTP/1.1 503 Busy\r\nX-Why: banned\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n6;x=y\r\n, sir.\r\n0\r\nX-T: 1\r\n\r\n",
            503,
            "busy, sir.",
        ),
        ("HTTP/1.1 401 No\r\nX-Why: banned\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", 401, ""),
        ("HTTP/1.1 204 No Content\r\nX-Why: banned\r\n\r\n", 204, ""),
        (
            "HTTP/1.1 426 Upgrade Required\r\nX-Why: banned\r\nSec-WebSocket-Version: 8\r\nContent-Length: 0\r\n\r\n",
            426,
            "",
        ),
    ] {
        let mut client = gate.send(alice());
        let mut up = backend.next();
        up.send(sent);
        up.linger();
        let answer = client.read_answer();
        assert_eq!((answer.status(), &*answer.text()), (status, body), "{sent}");
        assert_eq!(answer.head.get("X-Why"), Some("banned"));
        assert!(!answer.head.has("Transfer-Encoding"));
        assert!(answer.head.get("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close")));
    }
    assert_eq!(gate.metric("wsbouncer_requests_total", &[("outcome", "passed_through")]), 6.0);
    assert_eq!(gate.metric("wsbouncer_refusals_total", &[]), 0.0);
    gate.wait_for_open(0);
}

#[test]
fn what_concerns_the_upstreams_connection_is_not_passed_on() {
    let backend = Backend::answers(
        "HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade, X-Drop\r\nX-Drop: 1\r\nKeep-Alive: timeout=5\r\n\
         Sec-WebSocket-Accept: x\r\nX-Keep: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok",
    );
    let gate = Gate::start(&small(&backend, ""));
    let answer = gate.ask(alice().followed_by("GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!((answer.status(), &*answer.text()), (200, "ok"));
    for name in ["Upgrade", "X-Drop", "Keep-Alive", "Sec-WebSocket-Accept"] {
        assert!(!answer.head.has(name), "{name}: {:?}", answer.head);
    }
    assert_eq!(answer.head.all("Set-Cookie"), ["a=1", "b=2"]);
    assert_eq!(answer.head.get("X-Keep"), Some("1"));
    assert_eq!(backend.accepted(), 1);
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Backend::echo();
    let location = format!("http://{}/", elsewhere.address());
    let backend = Backend::answers(format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"));
    let gate = Gate::start(&small(&backend, ""));
    let answer = gate.ask(alice());
    assert_eq!((answer.status(), answer.head.get("Location")), (302, Some(&*location)));
    assert_eq!((backend.accepted(), elsewhere.accepted()), (1, 0));
}

#[test]
fn of_a_long_refusal_no_more_than_64_kib_is_passed_on() {
    let backend = Backend::serve(|mut conn| {
        conn.send("HTTP/1.1 500 Oops\r\n\r\n");
        conn.flood(&[b'x'; 16384], 1000);
        conn.linger();
    });
    let gate = Gate::start(&small(&backend, ""));
    let mut client = gate.send(alice());
    let head = client.read_head();
    let (body, _) = client.read_to_close();
    assert!(body.len() <= 64 * 1024, "{}", body.len());
    assert!(matches!(&head.first[..12], "HTTP/1.1 500" | "HTTP/1.1 502"), "{head:?}");
}

// ---- an answer that is wrong

const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn only_a_right_101_makes_a_tunnel() {
    let (backend, gate) = stand();
    let with = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replacen(from, to, 1)
    };
    let adding = |line: &str| with("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"));
    let answers = [
        with("s3pP", "AAAA"),
        with("s3pP", "S3PP"),
        with("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", ""),
        adding("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        adding("Sec-WebSocket-Accept: AAAA"),
        with("Upgrade: websocket", "Upgrade: h2c"),
        with("Upgrade: websocket", "Upgrade: websocket, h2c"),
        with("Upgrade: websocket\r\n", ""),
        with("Connection: Upgrade\r\n", ""),
        with("Connection: Upgrade", "Connection: no-upgrade"),
        with("HTTP/1.1", "HTTP/1.0"),
        with("HTTP/1.1", "HTTP/2.0"),
        with("HTTP/1.1", "http/1.1"),
        with("HTTP/1.1 101 Switching Protocols", "HTTP/1.1 1O1 X"),
        with("HTTP/1.1 101 Switching Protocols", "HTTP/1.1 099 X"),
        with("HTTP/1.1 101 Switching Protocols", "HTTP/1.1  101 X"),
        adding("Content-Length: 5"),
        adding("Content-Length: 0"),
        adding("Transfer-Encoding: chunked"),
        adding("Sec-WebSocket-Protocol: chat"),
        adding("Sec-WebSocket-Extensions: permessage-deflate"),
        adding("X-A : b"),
        adding("X-A: b\r\n folded"),
        adding("Garbage"),
        adding(": b"),
        adding("X-A: b\0c"),
        GOOD.replace("\r\n", "\n"),
        GOOD.replacen("\r\n", "\n", 1),
        "SSH-2.0-OpenSSH_9.0\r\n\r\n".into(),
        "\0\0\0\0\r\n\r\n".into(),
        format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "a".repeat(200_000)),
        (0..500).fold("HTTP/1.1 200 OK\r\n".to_owned(), |head, n| head + &format!("X-{n}: y\r\n")) + "\r\n",
    ];
    for answer in &answers {
        let mut client = gate.send(alice().followed_by("early"));
        let mut up = backend.next();
        let _ = up.try_send(answer);
        let refusal = client.read_answer();
        let context = &answer[..answer.len().min(200)];
        assert_eq!(refusal.status(), 502, "{context}");
        let line = gate.check_refusal(&refusal, 502, "upstream_bad_handshake");
        assert!(!line.get("cause").is_empty(), "the log says what is wrong with {context}");
        assert_eq!(up.read_to_close().0, b"", "nothing of the client's went up: {context}");
    }
    assert_eq!(gate.metric("wsbouncer_refusals_total", &[("reason", "upstream_bad_handshake")]), answers.len() as f64);
    assert_eq!(gate.metric("wsbouncer_tunnels_opened_total", &[]), 0.0);
}

#[test]
fn an_upstream_that_ends_without_an_answer_has_given_a_bad_one() {
    let (backend, gate) = stand();
    for half in
        ["", "H", "HTTP/1.1 101 Switch", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso", &GOOD[..GOOD.len() - 2]]
    {
        for reset in [false, true] {
            let mut client = gate.send(alice());
            let mut up = backend.next();
            up.send(half);
            if reset {
                up.reset();
            } else {
                up.close();
            }
            gate.check_refusal(&client.read_answer(), 502, "upstream_bad_handshake");
        }
    }
}

#[test]
fn an_extension_that_was_offered_may_be_chosen() {
    let (backend, gate) = stand();
    let client = gate.send(alice().with("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"));
    backend.next().accept_with("Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n");
    let (_, head) = client.opened();
    assert_eq!(head.get("Sec-WebSocket-Extensions"), Some("permessage-deflate; server_no_context_takeover"));
}

#[test]
fn the_101_is_ours_with_the_upstreams_own_headers() {
    let (backend, gate) = stand();
    let client = gate.send(alice());
    backend.next().accept_with("X-Own: 1\r\nSet-Cookie: a=b\r\nServer: app\r\nKeep-Alive: x\r\n");
    let (_, head) = client.opened();
    assert_eq!(head.first, "HTTP/1.1 101 Switching Protocols");
    assert_eq!((head.get("X-Own"), head.get("Set-Cookie")), (Some("1"), Some("a=b")));
    assert!(!head.has("Keep-Alive") && !head.has("Content-Length") && !head.has("Transfer-Encoding"));
}

#[test]
fn interim_answers_are_no_answer() {
    let (backend, gate) = stand();
    let client = gate.send(alice().followed_by("early"));
    let mut up = backend.next();
    up.send(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    );
    up.stays_silent();
    up.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
    up.accept();
    let (_client, head) = client.opened();
    assert!(!head.has("Link"));
    up.expect("early");
}

#[test]
fn interim_answers_without_end_are_given_up() {
    let backend = Backend::serve(|conn| conn.flood(b"HTTP/1.1 100 Continue\r\n\r\n", usize::MAX));
    let gate = Gate::start(&route(&backend, "timeouts: { handshake: 500ms }"));
    let start = Instant::now();
    let answer = gate.ask(alice());
    assert!(matches!(answer.status(), 502 | 504), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(gate.resident() < 64 << 20);
}

// ---- no answer

#[test]
fn an_upstream_that_is_not_there_is_unreachable() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("ws://{closed}"), "unix:/nonexistent/app.sock".into(), "ws://nowhere.invalid:80".into()] {
        let yaml = format!("upstream: \"{url}\"\nkeys: [ {{ id: alice, secret: {KEY} }} ]\n");
        let gate = Gate::start(&yaml);
        let answer = gate.refuses(alice(), 502, "upstream_unreachable");
        let line = gate.log_line(|line| line.get("id") == answer.field("request_id"));
        assert_eq!(line.get("key"), "alice");
        assert!(!line.get("cause").is_empty(), "the log says why: {line:?}");
        assert!(!answer.text().contains(&closed.to_string()), "the client does not learn where: {}", answer.text());
    }
}

#[test]
fn a_client_that_hides_its_leaving_behind_early_bytes_is_given_up_in_time() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, "timeouts: { handshake: 500ms }\nlimits: { max_connections: 1 }"));
    let client = gate.send(alice().followed_by("x"));
    let mut up = backend.next();
    drop(client);
    assert_eq!(up.read_to_close().0, b"");
    drop(up);
    eventually("the place is free", || gate.metric("wsbouncer_key_tunnels_open", &[("key", "alice")]) == 0.0);
}

#[test]
fn an_upstream_that_does_not_take_the_connection_times_out() {
    // A listener whose queue is full: the kernel drops further attempts.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut filling = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        filling.push(stream);
    }
    let gate = Gate::start(&format!(
        "keys: [ {{ id: alice, secret: {KEY} }} ]\nroutes: [ {{ upstream: \"ws://{address}\", timeouts: {{ connect: 300ms }} }} ]\n"
    ));
    let start = Instant::now();
    gate.refuses(alice(), 504, "upstream_timeout");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_upstream_that_says_nothing_times_out() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, "timeouts: { handshake: 300ms }"));
    let start = Instant::now();
    let answer = gate.refuses(alice(), 504, "upstream_timeout");
    assert!(start.elapsed() < Duration::from_secs(5), "{answer:?}");
    drop(backend.next());
    // The same when it drips, and when the client has sent early bytes.
    for half in ["HTTP/1.1 101 Switch", "HTTP/1.1 200 OK\r\n"] {
        let mut client = gate.send(alice().followed_by("early"));
        let mut up = backend.next();
        up.send(half);
        gate.check_refusal(&client.read_answer(), 504, "upstream_timeout");
        assert_eq!(up.read_to_close().0, b"");
    }
}

/// Two routes lead to one upstream: what one of them tells it cannot be told by clients of the other.
#[test]
fn an_identity_of_another_route_cannot_be_forged_either() {
    let backend = Backend::echo();
    let url = backend.url();
    let gate = Gate::start(&format!(
        "keys:\n  - {{ id: alice, secret: {KEY} }}\nroutes:\n  - name: main\n    upstream: {url}\n    identity_headers: {{ \
         X-Auth-Tenant: \"{{attributes.tenant}}\" }}\n    set_headers: {{ X-Gate: \"1\" }}\n  - {{ name: open, path: /open, auth: none, upstream: {url} }}\n"
    ));
    for name in ["X-Auth-Tenant", "x_auth_tenant", "X-Gate"] {
        gate.open(ws("/open").with(name, "forged"));
        let head = backend.last_head();
        assert!(!head.text().contains("forged"), "{name}: {}", head.text());
    }
}

/// CGI and its kin turn every character that is no letter and no digit into `_`.
#[test]
fn no_punctuation_makes_another_name_of_ours() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, ""));
    for mark in ["!", "~", "^", "|", "'", "*", "$", "%"] {
        let name = ["X", "Auth", "Key", "Id"].join(mark);
        gate.open(alice().with(&name, "forged"));
        let head = backend.last_head();
        assert!(!head.text().contains("forged"), "{name}: {}", head.text());
    }
}
