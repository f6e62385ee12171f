//! The path of one connection: which route it takes, what is a WebSocket handshake, and what a head may look like.
//! Everything here is refused or routed before any credential or upstream matters.

use std::time::{Duration, Instant};

use crate::support::client::plain_get;
use crate::support::{
    Backend, Gate, KEY, Request, Wire, alice, eventually, pause, route, small, stand, stand_echo, ws,
};

// ---- what works

#[test]
fn a_key_in_its_header_opens_a_tunnel_that_carries_bytes_both_ways() {
    let (backend, gate) = stand();
    let client = gate.send(alice());
    let mut up = backend.next();
    assert_eq!(up.head.first, "GET /ws HTTP/1.1");
    up.accept();
    let (mut client, _) = client.opened();
    client.send("down to up");
    up.expect("down to up");
    up.send("up to down");
    client.expect("up to down");
}

#[test]
fn the_words_of_a_handshake_have_no_case_and_lists_may_hold_more() {
    let (_backend, gate) = stand_echo();
    for request in [
        alice().set("Upgrade", "WebSocket"),
        alice().set("Upgrade", "WEBSOCKET"),
        alice().set("Connection", "keep-alive, Upgrade"),
        alice().set("Connection", "upgrade"),
        alice().set("Connection", "keep-alive,UPGRADE"),
        alice().set("Connection", "keep-alive").with("Connection", "Upgrade"),
        alice().set("Connection", "close, Upgrade"),
        alice().without("Host").with("HOST", "gate.test"),
        alice().with("Content-Length", "0"),
        alice().host("GATE.test:8080"),
        alice().host("[::1]:8080"),
        alice().host("127.0.0.1"),
    ] {
        let mut client = gate.open(request);
        client.send("x");
        client.expect("x");
    }
}

#[test]
fn a_foreign_client_and_a_foreign_server_understand_each_other_through_it() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    use tokio_tungstenite::tungstenite::{Message, client};

    let backend = Backend::echo_messages();
    let gate = Gate::start(&small(&backend, ""));
    let mut request = format!("ws://{}/ws", gate.addr).into_client_request().unwrap();
    request.headers_mut().insert("x-api-key", KEY.parse().unwrap());
    let (mut socket, _) = client(request, std::net::TcpStream::connect(gate.addr).unwrap()).unwrap();
    let messages = [Message::text("grüße"), Message::binary(vec![7; 70_000]), Message::text("")];
    for message in messages {
        socket.send(message.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), message);
    }
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    let line = gate.log_line(|line| line.is("tunnel closed"));
    assert_eq!(
        (line.get("cause"), line.get("code")),
        ("client".into(), String::new()),
        "a Close without a code has none"
    );
}

#[test]
fn it_listens_where_the_file_says() {
    let backend = Backend::echo();
    let gate =
        Gate::start(&format!("listen: [ 127.0.0.1:0, {{ address: \"127.0.0.2:0\" }} ]\n{}", small(&backend, "")));
    let line = gate.log_line(|line| line.is("listening"));
    let addresses: Vec<std::net::SocketAddr> =
        line.get("listen").split(',').map(|address| address.parse().unwrap()).collect();
    assert_eq!(addresses.len(), 2, "{line:?}");
    assert_eq!(line.get("version"), env!("CARGO_PKG_VERSION"));
    for address in addresses {
        let mut client = Wire::connect(address);
        client.send(alice().bytes());
        client.opened();
    }
}

#[test]
fn a_head_request_is_refused_without_a_body() {
    let (backend, gate) = stand();
    let mut client = gate.send(alice().first_line("HEAD /ws HTTP/1.1"));
    let head = client.read_head();
    assert_eq!(head.first, "HTTP/1.1 400 Bad Request");
    assert_eq!(client.read_to_end(), b"");
    let id = head.get("X-Request-Id").unwrap();
    assert_eq!(gate.log_line(|line| line.get("id") == id).get("reason"), "bad_handshake");
    assert_eq!(backend.accepted(), 0);
}

// ---- routes

const ROUTES: [(&str, &str, &str); 9] = [
    ("any", "", ""),
    ("any-path", "", "/chat/*"),
    ("any-long", "", "/chat/rooms/*"),
    ("any-exact", "", "/chat/rooms/1"),
    ("wild", "*.example.com", ""),
    ("deep", "*.b.example.com", ""),
    ("exact", "a.example.com", ""),
    ("exact-path", "a.example.com", "/chat/*"),
    ("only-ws", "strict.example.com", "/ws"),
];

fn route_table(backend: &Backend, reverse: bool) -> String {
    let mut routes: Vec<String> = ROUTES
        .iter()
        .map(|(name, host, path)| {
            let field = |name: &str, value: &str| {
                if value.is_empty() { String::new() } else { format!("    {name}: \"{value}\"\n") }
            };
            let (host, path) = (field("host", host), field("path", path));
            format!("  - name: {name}\n{host}{path}    upstream: {}\n    auth: none\n    set_headers: {{ X-Route: \"{{route}}\" }}\n", backend.url())
        })
        .collect();
    if reverse {
        routes.reverse();
    }
    format!("routes:\n{}", routes.concat())
}

#[test]
fn the_most_specific_route_wins_whatever_the_order_in_the_file() {
    for reverse in [false, true] {
        let backend = Backend::echo();
        let gate = Gate::start(&route_table(&backend, reverse));
        for (host, target, wanted) in [
            ("other.test", "/", "any"),
            ("other.test", "/chat", "any"),
            ("other.test", "/chat/", "any-path"),
            ("other.test", "/chat/x", "any-path"),
            ("other.test", "/chat/rooms/2", "any-long"),
            ("other.test", "/chat/rooms/1", "any-exact"),
            ("other.test", "/chat/rooms/1/2", "any-long"),
            ("other.test", "/Chat/x", "any"),
            ("other.test", "/x?/chat/rooms/1", "any"),
            ("other.test", "/chat/rooms/1?q=1", "any-exact"),
            ("x.example.com", "/", "wild"),
            ("x.y.example.com", "/chat/x", "wild"),
            ("x.b.example.com", "/", "deep"),
            ("x.y.b.example.com", "/", "deep"),
            ("b.example.com", "/", "wild"),
            ("example.com", "/", "any"),
            ("notexample.com", "/", "any"),
            ("a.example.com", "/", "exact"),
            ("A.EXAMPLE.com:8080", "/", "exact"),
            ("a.example.com.", "/", "exact"),
            ("a.example.com", "/chat/x", "exact-path"),
            ("a.example.com", "/chat", "exact"),
            ("strict.example.com", "/ws", "only-ws"),
            ("strict.example.com", "/other", "wild"),
            ("strict.example.com", "/chat/x", "wild"),
        ] {
            gate.open(ws(target).host(host));
            let head = backend.last_head();
            assert_eq!(head.get("X-Route"), Some(wanted), "{host} {target}");
            assert_eq!(head.target(), target);
        }
    }
}

#[test]
fn where_nothing_matches_there_is_no_route() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, "host: chat.example.com\npath: /ws"));
    for request in [
        alice(),
        alice().host("evil.chat.example.com"),
        ws("/ws/").host("chat.example.com"),
        ws("/WS").host("chat.example.com"),
        ws("/").host("chat.example.com"),
        plain_get("/").host("chat.example.com"),
    ] {
        gate.refuses_before(&backend, request, 404, "no_route");
    }
    let line = gate.log_line(|line| line.is("refused"));
    assert_eq!((line.get("host"), line.get("path")), ("gate.test".into(), "/ws".into()));
    assert_eq!(gate.metric("wsbouncer_refusals_total", &[("route", "none"), ("reason", "no_route")]), 6.0);
}

#[test]
fn each_route_leads_to_its_own_upstream() {
    let (one, two) = (Backend::manual(), Backend::manual());
    let gate = Gate::start(&format!(
        "upstreams:\n  one: {}\n  two: {{ url: {} }}\nroutes:\n  - {{ path: /one, upstream: one, auth: none }}\n  - {{ path: /two, upstream: two, auth: none }}\n",
        one.url(),
        two.url()
    ));
    for (path, backend) in [("/one", &one), ("/two", &two)] {
        let client = gate.send(ws(path));
        backend.next().accept();
        client.opened();
    }
    assert_eq!((one.accepted(), two.accepted()), (1, 1));
    let line = gate.log_line(|line| line.is("tunnel opened"));
    assert_eq!(line.get("route"), "/one", "a route without a name is called by its host and path");
}

// ---- what is not a handshake

#[test]
fn a_request_that_asks_for_no_websocket_is_told_to_upgrade() {
    let (backend, gate) = stand();
    let key = |request: Request| request.with("X-Api-Key", KEY);
    for request in [
        key(plain_get("/ws")),
        plain_get("/ws"),
        alice().without("Upgrade"),
        alice().set("Upgrade", "h2c"),
        alice().set("Upgrade", "h2c").set("Connection", "Upgrade, HTTP2-Settings").with("HTTP2-Settings", "AAMAAABk"),
        alice().set("Sec-WebSocket-Version", "777"),
        alice().set("Sec-WebSocket-Version", "8"),
    ] {
        let answer = gate.refuses_before(&backend, request, 426, "upgrade_required");
        assert_eq!(answer.head.get("Sec-WebSocket-Version"), Some("13"));
        assert_eq!(answer.head.get("Upgrade"), Some("websocket"));
    }
}

#[test]
fn half_a_handshake_is_none() {
    let (backend, gate) = stand();
    for request in [
        alice().without("Connection"),
        alice().set("Connection", "no-upgrade, xupgrade"),
        alice().set("Connection", "close"),
        alice().set("Upgrade", "websocket, h2c"),
        alice().set("Upgrade", "h2c, websocket"),
        alice().with("Upgrade", "h2c"),
        alice().with("Upgrade", "websocket"),
        alice().set("Upgrade", "xwebsocket"),
        alice().set("Upgrade", "websocket/13"),
        alice().without("Sec-WebSocket-Version"),
        alice().set("Sec-WebSocket-Version", "13, 8"),
        alice().with("Sec-WebSocket-Version", "13"),
        alice().first_line("GET /ws HTTP/1.0"),
    ] {
        let answer = gate.ask(&request);
        let (status, reason) = (answer.status(), answer.field("reason"));
        assert!(matches!((status, &*reason), (400, "bad_handshake") | (426, "upgrade_required")), "{request:?}");
        gate.check_refusal(&answer, status, &reason);
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a_malformed_handshake_is_refused_before_anything_else() {
    let (backend, gate) = stand();
    for request in [
        alice().without("Sec-WebSocket-Key"),
        alice().set("Sec-WebSocket-Key", ""),
        alice().set("Sec-WebSocket-Key", "c2hvcnQ="),
        alice().set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZSBpcyB0b28gbG9uZw=="),
        alice().set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZ!=="),
        alice().set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ"),
        alice().with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        alice().first_line("POST /ws HTTP/1.1"),
        alice().first_line("get /ws HTTP/1.1"),
        alice().first_line("OPTIONS /ws HTTP/1.1"),
        alice().with("Content-Length", "5").followed_by("12345"),
        alice().with("Content-Length", "50").followed_by("123"),
        alice().with("Content-Length", "0").with("Content-Length", "0"),
        alice().with("Content-Length", "5").with("Content-Length", "0"),
        alice().with("Content-Length", "0, 0"),
        alice().with("Content-Length", "+0"),
        alice().with("Content-Length", "-0"),
        alice().with("Content-Length", "0x0"),
        alice().with("Content-Length", ""),
        alice().with("Content-Length", "00"),
        alice().with("Content-Length", "99999999999999999999999"),
        alice().with("Transfer-Encoding", "chunked").followed_by("0\r\n\r\n"),
        alice().with("Transfer-Encoding", ",chunked"),
        alice().with("Transfer-Encoding", "identity"),
        alice().with("Transfer-Encoding", "xchunked"),
        alice().with("Transfer-Encoding", "identity").with("Transfer-Encoding", "chunked"),
        alice().with("Transfer-Encoding", "chunked").with("Content-Length", "0"),
        alice().with("Trailer", "X-Api-Key"),
        alice().with("Expect", "100-continue"),
    ] {
        let answer = gate.refuses_before(&backend, &request, 400, "bad_handshake");
        assert!(answer.field("detail").len() > 10, "the detail says which: {}", answer.text());
    }
}

#[test]
fn connect_is_refused_whatever_stands_around_it() {
    let (backend, gate) = stand();
    for request in [
        plain_get("/").first_line("CONNECT 169.254.169.254:80 HTTP/1.1"),
        alice().first_line("CONNECT /ws HTTP/1.1"),
        alice().first_line("CONNECT a:80 HTTP/1.1").followed_by("GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] {
        let answer = gate.refuses_before(&backend, request, 405, "bad_handshake");
        assert_eq!(answer.head.get("Allow"), Some("GET"));
    }
}

// ---- the raw head

#[test]
fn a_head_that_can_be_read_in_two_ways_is_refused() {
    let (backend, gate) = stand();
    let with_lf = String::from_utf8(alice().bytes()).unwrap();
    let mixed = with_lf.replacen("gate.test\r\n", "gate.test\nX-Api-Key: x\r\n", 1);
    let requests: Vec<Vec<u8>> = vec![
        with_lf.replace("\r\n", "\n").into(),
        mixed.into(),
        with_lf.replacen(" HTTP/1.1\r\n", " HTTP/1.1\n", 1).into(),
        alice().raw("X-A: y\rX-B: z").into(),
        alice().raw("X-A: y\r\r").into(),
        alice().raw(b"X-A: y\x00z").into(),
        alice().raw(b"X-A: y\x01z").into(),
        alice().raw(b"X-A: y\x7fz").into(),
        alice().raw(b"X-A: y\x1b[31m").into(),
        alice().raw("X-A: gr\u{fc}n").into(),
        alice().raw(b"X-A: \xff").into(),
        alice().raw("X-A: y\r\n folded").into(),
        alice().raw("X-A:\r\n\tfolded").into(),
        ws("/ws").raw(" X-Api-Key: folded-into-the-line-before").into(),
        alice().raw("X-A : y").into(),
        alice().raw("Transfer-Encoding : chunked").into(),
        alice().raw(": y").into(),
        alice().raw("Garbage").into(),
        alice().raw(b"X\x85A: b").into(),
        alice().raw("X(A): b").into(),
        alice().raw("X A: b").into(),
        [b"\r\n", &*alice().bytes()].concat(),
        [b"\xef\xbb\xbf", &*alice().bytes()].concat(),
    ];
    for request in requests {
        gate.refuses_before(&backend, request, 400, "bad_handshake");
    }
}

#[test]
fn the_request_line_has_one_form() {
    let (backend, gate) = stand();
    for line in [
        "GET /ws HTTP/1.2",
        "GET /ws HTTP/2.0",
        "GET /ws HTTP/3.0",
        "GET /ws http/1.1",
        "GET /ws HTTP/1.10",
        "GET /ws",
        "GET  /ws HTTP/1.1",
        "GET /ws  HTTP/1.1",
        "GET\t/ws HTTP/1.1",
        " GET /ws HTTP/1.1",
        "GET /ws HTTP/1.1 ",
        "GET /w s HTTP/1.1",
        "G@T /ws HTTP/1.1",
        "GET /ws#/../admin HTTP/1.1",
        "GET /ws# HTTP/1.1",
        "GET http://gate.test/ws HTTP/1.1",
        "GET http://evil/ws HTTP/1.1",
        "GET ws://user:pw@gate.test/ws HTTP/1.1",
        "GET 127.0.0.1:80 HTTP/1.1",
        "GET ws HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ?x HTTP/1.1",
        "GET /w\\s HTTP/1.1",
        "GET /w\"s HTTP/1.1",
        "GET /w<s HTTP/1.1",
        "GET /gr\u{fc}n HTTP/1.1",
        "GET /ws?gr\u{fc}n HTTP/1.1",
    ] {
        let answer = gate.refuses_before(&backend, alice().first_line(line), 400, "bad_handshake");
        assert_eq!(answer.field("reason"), "bad_handshake", "{line}");
    }
}

#[test]
fn there_is_one_host_and_it_is_nothing_but_a_host() {
    let (backend, gate) = stand();
    for request in [
        alice().without("Host"),
        alice().with("Host", "gate.test"),
        alice().with("Host", "evil.test"),
        alice().host(""),
        alice().host("a b"),
        alice().host("admin@gate.test"),
        alice().host("gate.test/../y"),
        alice().host("gate.test, evil.test"),
        alice().host("gate.test:99999"),
        alice().host("gate.test:"),
        alice().host("[::1"),
        alice().host("http://gate.test"),
        alice().host("*.example.com"),
    ] {
        gate.refuses_before(&backend, request, 400, "bad_handshake");
    }
}

#[test]
fn other_protocols_get_no_further_than_the_head() {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, "timeouts: { head: 300ms }\n"));
    let hellos: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c",
        b"P",
        b"",
    ];
    for hello in hellos {
        gate.send(hello).read_to_close();
    }
    let mut proxied = b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\n".to_vec();
    proxied.extend(alice().bytes());
    gate.refuses_before(&backend, proxied, 400, "bad_handshake");
    assert_eq!(backend.accepted(), 0);
}

// ---- paths

const AMBIGUOUS: [&str; 16] = [
    "/chat/../admin",
    "/chat/./x",
    "/chat/..",
    "/chat/%2e%2e/admin",
    "/chat/.%2e/admin",
    "/chat/%2E./admin",
    "/chat/..%2fadmin",
    "/chat/a%2Fb",
    "/chat/a%5cb",
    "/chat/a%5Cb",
    "/chat/%00",
    "/chat/%252e%252e/admin",
    "//chat/x",
    "/chat//x",
    "/chat/..;/admin",
    "/chat/%zz",
];

#[test]
fn where_paths_decide_a_path_has_one_meaning() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, "path: /chat/*"));
    for path in AMBIGUOUS {
        let request = ws(path).with("X-Api-Key", KEY);
        let answer = gate.ask(&request);
        assert!(matches!(&*answer.field("reason"), "ambiguous_path" | "bad_handshake"), "{path}: {}", answer.text());
        gate.check_refusal(&answer, 400, &answer.field("reason"));
    }
    for path in ["/chat/a%2fb", "/chat//x", "/chat/../x", "/chat/%2e/x", "/chat/x;y=1"] {
        gate.refuses_before(&backend, ws(path), 400, "ambiguous_path");
    }
}

#[test]
fn where_paths_decide_nothing_they_pass_as_they_are() {
    let (backend, gate) = stand_echo();
    for target in ["/a//b", "/a/../b", "/a%2fb", "/%C3%BC?x=%20y&z", "/a;b=c", "/a?b=/../c", "/?", "/a?b?c={x}"] {
        let answered = gate.send(ws(target).with("X-Api-Key", KEY));
        answered.opened();
        assert_eq!(backend.last_head().target(), target);
    }
}

// ---- sizes and time

#[test]
fn a_target_over_4_kib_is_too_long() {
    let (backend, gate) = stand_echo();
    let target = |length: usize| format!("/{}", "a".repeat(length - 1));
    gate.open(ws(&target(4000)).with("X-Api-Key", KEY));
    assert_eq!(backend.last_head().target().len(), 4000);
    gate.refuses_before(&backend, ws(&target(4200)), 414, "target_too_long");
    gate.refuses_before(&backend, ws(&target(15_000)), 414, "target_too_long");
}

#[test]
fn a_head_over_16_kib_or_64_lines_is_too_large() {
    let (backend, gate) = stand_echo();
    let line = |length: usize| "a".repeat(length);
    gate.open(alice().with("X-Long", &line(15_000)));
    assert_eq!(backend.last_head().get("X-Long").map(str::len), Some(15_000));
    let many = |count: usize| (0..count).fold(alice(), |request, n| request.with(&format!("X-{n}"), "y"));
    gate.open(many(50));
    for request in [
        alice().with("X-Long", &line(16_400)),
        alice().with("X-Long", &line(64_000)),
        alice().with("X-Long", &line(2_000_000)),
        alice().with(&line(17_000), "y"),
        many(70),
        many(1000),
        plain_get("/").with("X-Long", &line(17_000)),
    ] {
        let mut client = gate.connect();
        // The gate may stop reading before all of it was sent; the answer comes nevertheless.
        let _ = client.try_send(request.bytes());
        let head = client.read_head();
        assert_eq!(head.first, "HTTP/1.1 431 Request Header Fields Too Large");
    }
    gate.refuses_before(&backend, many(70), 431, "head_too_large");
}

#[test]
fn a_head_has_to_be_complete_in_time() {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, "timeouts: { head: 300ms }\n"));
    let start = Instant::now();
    let bytes = alice().bytes();
    gate.refuses_before(&backend, &bytes[..bytes.len() - 2], 408, "request_timeout");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn dripping_bytes_do_not_move_the_deadline() {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, "timeouts: { head: 400ms }\n"));
    let mut client = gate.connect();
    let mut writer = client.handle();
    let start = Instant::now();
    let drip = std::thread::spawn(move || {
        use std::io::Write as _;
        let endless = b"GET /ws HTTP/1.1\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'a'));
        for byte in endless.take(2000) {
            if writer.write_all(&[*byte]).is_err() {
                return;
            }
            pause(Duration::from_millis(20));
        }
    });
    let head = client.read_head();
    assert_eq!(head.first, "HTTP/1.1 408 Request Timeout");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    drop(client);
    drip.join().unwrap();
}

#[test]
fn a_head_in_many_small_pieces_is_a_head() {
    let (backend, gate) = stand();
    let mut client = gate.connect();
    for byte in alice().bytes() {
        client.send([byte]);
    }
    backend.next().accept();
    client.opened();
}

// ---- what stands behind the head

#[test]
fn early_frames_wait_for_the_upstreams_yes_and_arrive_in_order() {
    let (backend, gate) = stand();
    let mut client = gate.send(alice().followed_by("one "));
    client.send("two ");
    let mut up = backend.next();
    client.send("three ");
    up.stays_silent();
    up.accept();
    let (mut client, _) = client.opened();
    client.send("four");
    up.expect("one two three four");
}

#[test]
fn early_bytes_never_reach_an_upstream_that_refuses() {
    let smuggled = "GET /admin HTTP/1.1\r\nHost: x\r\n\r\n";
    let (backend, gate) = stand();
    let mut client = gate.send(alice().followed_by(smuggled));
    let mut up = backend.next();
    up.stays_silent();
    up.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(up.read_to_close().0, b"");
    let (answer, _) = client.read_to_close();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n") && answer.ends_with("\r\n\r\nno"), "{answer}");
    assert_eq!(backend.accepted(), 1);
}

#[test]
fn early_bytes_are_not_gathered_without_end() {
    let (backend, gate) = stand();
    let mut client = gate.send(alice());
    let mut up = backend.next();
    let most = 64 << 20;
    let before = gate.resident();
    let taken = client.send_until_stuck(Duration::from_millis(500), most);
    assert!(taken < most, "the gate reads on while the upstream is mute");
    assert!(gate.resident() < before + (4 << 20));
    up.accept();
    client.opened();
    let got = up.read_exact(taken);
    assert!(got.iter().all(|byte| *byte == b'x'));
}

#[test]
fn a_second_request_on_the_connection_is_never_answered() {
    let (backend, gate) = stand();
    let second = alice().bytes();
    for first in [plain_get("/ws"), ws("/ws"), alice().set("Sec-WebSocket-Version", "777"), alice().without("Host")] {
        let mut client = gate.send(first.followed_by(&second));
        let (bytes, _) = client.read_to_close();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    }
    assert_eq!(backend.accepted(), 0);
    eventually("each first request has its line", || gate.log_lines(|line| line.is("refused")).len() == 4);
}

#[test]
fn a_client_that_hangs_up_early_takes_its_upstream_connection_with_it() {
    let (backend, gate) = stand();
    let client = gate.send(alice());
    let mut up = backend.next();
    drop(client);
    assert_eq!(up.read_to_close().0, b"");
    gate.wait_for_open(0);
}

/// A socket that is closed with unread bytes in it is reset, and the answer may be lost with it.
#[test]
fn an_answer_survives_what_came_while_the_upstream_was_asked() {
    let (backend, gate) = stand();
    let mut client = gate.send(alice());
    let mut up = backend.next();
    client.send([b'x'; 4096]);
    up.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
    let (bytes, end) = client.read_to_close();
    assert!(bytes.starts_with(b"HTTP/1.1 403 ") && bytes.ends_with(b"no"), "{}", String::from_utf8_lossy(&bytes));
    assert_eq!(format!("{end:?}"), "Eof", "closed, not reset");
}
