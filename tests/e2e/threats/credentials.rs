//! Credentials that are none, and names that a service could take for ours.

use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Trial, hidden, page};
use crate::support::client::plain_get;
use crate::support::{Backend, Gate, KEY, Request, alice, config, eventually, route, small, ws};

/// Alice's key beside one that nobody has.
const OTHER: &str = "bad-secret-0123456789";

/// A gate that looks everywhere, of sockets and of pages.
fn gate_of_all_places(backend: &Backend) -> Gate {
    let places = "{ header: X-Api-Key }, bearer, basic, { subprotocol: { pair: x-api-key } }, { query: api_key }, { cookie: session }";
    let auth = format!("auth: [ {{ api_key: {{ extract_from: [ {places} ] }} }} ]");
    Gate::start(&route(backend, &format!("http: forward\nallowed_origins: [ \"https://a.example\" ]\n{auth}")))
}

/// Requests that carry this key, one for each place.
fn in_each_place(key: &str) -> Vec<Request> {
    let password = STANDARD.encode(format!("alice:{key}"));
    let mut all = vec![ws("/ws").offer(&format!("chat, x-api-key, {key}"))];
    for of_kind in [ws, plain_get] {
        all.extend([
            of_kind("/ws").with("X-Api-Key", key),
            of_kind("/ws").with("Authorization", &format!("Bearer {key}")),
            of_kind("/ws").with("Authorization", &format!("Basic {password}")),
            of_kind(&format!("/ws?a=1&api_key={key}&b=2")),
            of_kind("/ws").with("Cookie", &format!("a=1; session={key}")).with("Origin", "https://a.example"),
        ]);
    }
    all
}

#[test]
fn t047_a_key_has_one_case() {
    let backend = Backend::manual();
    let gate = gate_of_all_places(&backend);
    let first_is_large = format!("A{}", &KEY[1..]);
    assert!(KEY.starts_with('a') && KEY.to_uppercase() != KEY);
    for request in [KEY.to_uppercase(), first_is_large].iter().flat_map(|key| in_each_place(key)) {
        gate.refuses_before(&backend, request.followed_by(hidden()), 401, "invalid_credential");
    }
}

#[test]
fn t063_the_key_stays_here_wherever_it_was() {
    let backend = Backend::manual();
    let gate = gate_of_all_places(&backend);
    let password = STANDARD.encode(format!("alice:{KEY}"));
    for request in in_each_place(KEY) {
        let mut client = gate.send(&request);
        let mut up = backend.next();
        let seen = String::from_utf8_lossy(&up.head.raw).into_owned();
        assert!(!seen.contains(KEY) && !seen.contains(&password), "{seen}");
        assert_eq!(up.head.get("X-Auth-Key-Id"), Some("alice"));
        // An error of the service's is answered from here, and asks nobody else.
        up.send("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.read_answer().status(), 500);
        assert_eq!(up.read_to_close().0, b"");
    }
    assert_eq!(backend.accepted(), in_each_place(KEY).len());
}

/// Those by which others say who the client is.
const OF_THE_CLIENT: [&str; 10] = [
    "X-Forwarded-For",
    "x-forwarded-for",
    "X_Forwarded_For",
    "X-Real-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "X-Original-Forwarded-For",
    "Forwarded",
];

/// To name an address that is trusted, or private, makes nobody trusted.
#[test]
fn t053_nobody_becomes_another_by_saying_so() {
    let backend = Backend::echo();
    let limits = "trusted_proxies: [ 10.0.0.0/8 ]\nlimits: { max_connections_per_address: 1 }\n";
    let gate = Gate::start(&small(&backend, limits));
    let _open = gate.open(alice());
    for name in OF_THE_CLIENT {
        for value in ["10.6.6.6", "203.0.113.7, 10.6.6.6", "127.0.0.2", "for=10.6.6.6;host=evil"] {
            gate.refuses_before(&backend, alice().with(name, value), 429, "too_many_connections");
        }
    }
    let backend = Backend::answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let gate = Gate::start(&(route(&backend, "http: forward") + "trusted_proxies: [ 10.0.0.0/8 ]\n"));
    for name in OF_THE_CLIENT {
        for request in [alice(), page("GET", "/ws")] {
            assert_eq!(gate.ask_status(request.with(name, "10.6.6.6").with(name, "for=10.6.6.6;host=evil")), 200);
            let head = backend.last_head();
            assert_eq!(head.all("X-Forwarded-For"), ["127.0.0.1"]);
            assert!(!head.text().contains("10.6.6.6") && !head.text().contains("evil"), "{}", head.text());
        }
    }
}

/// From 0x80 on there are control codes of terminals, and ways to turn a line round. No head has such bytes.
#[test]
fn t065_no_byte_of_a_value_acts_on_who_reads_the_log() {
    let evil: [&[u8]; 8] = [
        b"\x9b31m",
        "\u{9b}31m".as_bytes(),
        "\u{2028}refused".as_bytes(),
        "\u{202e}x".as_bytes(),
        b"\xff\xfe\x85",
        b"\\x1b[31m",
        b"\",\"level\":\"ERROR\",\"a\":\"",
        &[0x9b; 5000],
    ];
    for human in [false, true] {
        let backend = Backend::manual();
        let setup = config(&small(&backend, ""));
        let gate = if human { setup.human().start() } else { setup.start() };
        for value in evil {
            gate.ask(ws("/ws").raw([b"Origin: ", value].concat()));
        }
        let refused = |log: &str| log.matches("missing_credential").count() + log.matches("bad_handshake").count();
        eventually("all are logged", || refused(&gate.raw_log()) == evil.len());
        let log = gate.raw_log();
        assert!(log.bytes().all(|byte| byte == b'\n' || (0x20..0x7f).contains(&byte)), "{log}");
        for line in log.lines() {
            assert!(line.len() < 2500, "{line}");
            assert!(human || serde_json::from_str::<serde_json::Value>(line).is_ok_and(|it| it["level"] != "ERROR"));
        }
    }
}

#[test]
fn t100_t101_an_origin_is_one_of_the_list_or_none() {
    let backend = Backend::manual();
    let origins = "allowed_origins: [ \"https://chat.example.com\", \"https://*.apps.example.com\" ]";
    let gate = Gate::start(&route(&backend, &format!("http: forward\n{origins}")));
    for origin in [
        "null",
        "NULL",
        "",
        "*",
        "file://",
        "https://",
        "chat.example.com",
        "//chat.example.com",
        "wss://chat.example.com",
        "http://chat.example.com",
        "https://chat.example.com.evil.example",
        "https://evilchat.example.com",
        "https://chatxexample.com",
        "https://chat.example.com@evil.example",
        "https://evil.example@chat.example.com",
        "https://chat.example.com:8443",
        "https://chat.example.com:",
        "https://chat.example.com:443:443",
        "https://chat.example.com/",
        "https://chat.example.com/x",
        "https://chat.example.com?x",
        "https://chat.example.com#x",
        "https://chat.example.com\\.evil.example",
        "https://chat.example.com%00.evil.example",
        "https://chat.example.com .evil.example",
        "https://chat.example.com, https://chat.example.com",
        "https://chat.example.com https://evil.example",
        "https://*.apps.example.com",
        "https://apps.example.com",
        "https://.apps.example.com",
        "https://a.b.apps.example.com",
        "https://a@b.apps.example.com",
        "https://a/.apps.example.com",
        "https://127.0.0.1",
        "https://[::1]",
        "https://2130706433",
        "http://localhost",
    ] {
        for request in [alice(), page("GET", "/ws")] {
            let request = request.with("Origin", origin).followed_by(hidden());
            gate.refuses_before(&backend, request, 403, "origin_not_allowed");
        }
    }
    let good = "https://chat.example.com";
    for (one, two) in [(good, good), (good, "https://evil.example"), ("https://evil.example", good), ("", good)] {
        for request in [alice(), page("GET", "/ws")] {
            let twice = request.with("Origin", one).with("origin", two);
            gate.refuses_before(&backend, twice.followed_by(hidden()), 403, "origin_not_allowed");
        }
    }
}

#[test]
fn t048_of_two_keys_none_counts() {
    let trial = Trial::of_pages();
    for (one, two) in [(OTHER, KEY), (KEY, OTHER), (KEY, KEY), ("", KEY), (KEY, "")] {
        for request in [ws("/ws"), plain_get("/ws")] {
            let lines = request.clone().with("X-Api-Key", one).with("x-api-key", two);
            trial.refuses(lines.followed_by(hidden()), 400, "conflicting_credentials");
            let list = request.with("X-Api-Key", &format!("{one}, {two}"));
            trial.refuses(list.followed_by(hidden()), 401, "invalid_credential");
        }
    }
    trial.still_serves();
}

#[test]
fn t049_a_name_that_looks_like_ours_is_another_one() {
    let trial = Trial::of_pages();
    for name in ["X_Api_Key", "X.Api.Key", "X-Api_Key", "x_api-key", "X-Api.Key", "XApiKey", "X-Api-Key-", "X|Api|Key"]
    {
        for request in [ws("/ws"), plain_get("/ws")] {
            trial.refuses(request.with(name, KEY).followed_by(hidden()), 401, "missing_credential");
        }
        // Beside the real one it does not go on, where a lenient service would take it for it.
        let client = trial.gate.send(page("GET", "/x").with(name, "another"));
        let mut up = trial.backend.next();
        let is_alias = !matches!(name, "XApiKey" | "X-Api-Key-");
        assert_eq!(up.head.has(name), !is_alias, "{name}: {:?}", up.head);
        up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let mut client = client;
        assert_eq!(client.read_answer().text(), "ok");
    }
    trial.still_serves();
}

#[test]
fn t050_t051_who_it_is_we_say_last_and_always() {
    let backend = Backend::manual();
    let fields = "http: forward\nidentity_headers: { X-Auth-Client: \"{id}\", X-Tenant: \"{attributes.nothing}\" }";
    let mut gate = Gate::start(&route(&backend, fields));
    let forged =
        ["X-Auth-Client", "x-auth-client", "X_Auth_Client", "X.Auth.Client", "X-Auth_Client", "X-Tenant", "x_tenant"];
    for connection in
        ["Upgrade", "Upgrade, X-Auth-Client, X-Tenant", "upgrade, x-auth-client, X_AUTH_CLIENT, x-forwarded-for"]
    {
        for request in [alice().set("Connection", connection), page("GET", "/ws").with("Connection", connection)] {
            let is_page = !String::from_utf8(request.bytes()).unwrap().contains("Sec-WebSocket-Key");
            let request = forged.iter().fold(request, |request, name| request.with(name, "admin"));
            let mut client = gate.send(request);
            let mut up = backend.next();
            assert_eq!((up.head.get("X-Auth-Client"), up.head.get("X-Tenant")), (Some("alice"), Some("")));
            assert_eq!(up.head.get("X-Forwarded-For"), Some("127.0.0.1"));
            assert!(!up.head.text().contains("admin"), "{:?}", up.head);
            if is_page {
                up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                assert_eq!(client.read_answer().text(), "ok");
            } else {
                up.accept();
                client.opened();
            }
        }
    }
    gate.is_well();
}

#[test]
fn t052_no_word_of_connection_takes_the_question_away() {
    let trial = Trial::of_pages();
    for connection in ["X-Api-Key", "x-api-key, close", "Authorization, X-Api-Key, Host, Cookie"] {
        let upgrade = format!("Upgrade, {connection}");
        for (key, reason) in [("", "missing_credential"), ("wrong", "invalid_credential")] {
            let with_key = |request: Request| if key.is_empty() { request } else { request.with("X-Api-Key", key) };
            let handshake = with_key(ws("/ws").set("Connection", &upgrade));
            let plain = with_key(plain_get("/ws").with("Connection", connection));
            trial.refuses_all([handshake, plain].map(|it| it.followed_by(hidden())), 401, reason);
        }
    }
    trial.still_serves();
}

#[test]
fn t055_no_visitor_is_let_in_for_its_name() {
    let trial = Trial::of_pages();
    let agents =
        ["GoogleHC/1.0", "kube-probe/1.31", "ELB-HealthChecker/2.0", "Envoy/HC", "Consul Health Check", "curl/8"];
    let paths = [
        "/healthz",
        "/ping",
        "/ready",
        "/health",
        "/status",
        "/metrics",
        "/.well-known/x",
        "/favicon.ico",
        "/robots.txt",
    ];
    for path in paths {
        for agent in agents {
            for request in [ws(path), plain_get(path)] {
                trial.refuses(request.with("User-Agent", agent).followed_by(hidden()), 401, "missing_credential");
            }
        }
    }
    trial.still_serves();
}

#[test]
fn t062_a_key_in_the_query_counts_only_where_it_is_wanted() {
    let trial = Trial::of_pages();
    for name in ["api_key", "key", "token", "access_token", "x-api-key", "ticket", "X-Api-Key"] {
        for target in [format!("/ws?{name}={KEY}"), format!("/ws?a=1&{name}={KEY}&b=2")] {
            for request in [ws(&target), plain_get(&target)] {
                trial.refuses(request.followed_by(hidden()), 401, "missing_credential");
            }
        }
    }
    assert!(!trial.gate.raw_log().contains(KEY), "a query is not logged");
    trial.still_serves();
}

#[test]
fn t066_no_answer_repeats_what_was_sent() {
    const CANARY: &str = "canary-4711";
    // A few are good plain requests with something odd in them, and go on.
    let backend = Backend::answers("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
    let gate = Gate::start(&route(&backend, "path: /ws/*\nhttp: forward\nallowed_origins: [ \"https://a.example\" ]"));
    let mut all: Vec<Request> = [ws("/ws/x"), plain_get("/ws/x"), alice(), page("GET", "/ws/x")]
        .into_iter()
        .flat_map(|request| {
            [
                request.clone().first_line(&format!("GET /{CANARY} HTTP/1.1")),
                request.clone().first_line(&format!("GET /ws/..{CANARY}%2f HTTP/1.1")),
                request.clone().first_line(&format!("{CANARY} /ws/x HTTP/1.1")),
                request.clone().first_line(&format!("GET /ws/x HTTP/{CANARY}")),
                request.clone().first_line(&format!("GET /ws/x#{CANARY} HTTP/1.1")),
                request.clone().host(&format!("{CANARY}@x")),
                request.clone().set("X-Api-Key", CANARY),
                request.clone().with("Origin", &format!("https://{CANARY}")),
                request.clone().with("Transfer-Encoding", CANARY),
                request.clone().with("Content-Length", CANARY),
                request.clone().with("Expect", CANARY),
                request.clone().with("Upgrade", CANARY),
                request.clone().with("Sec-WebSocket-Version", CANARY),
                request.clone().offer(&format!("{CANARY} x")),
                request.clone().raw(format!("{CANARY}(x): y")),
                request.clone().with("X-Request-Id", &format!("<{CANARY}>")).without("Host"),
                request.with("Connection", CANARY).with("Upgrade", "x"),
            ]
        })
        .collect();
    all.push(ws("/ws/x").with("X-Api-Key", CANARY).with("X-Api-Key", CANARY));
    all.push(ws("/ws/x").with("Authorization", &format!("Bearer {CANARY}")));
    for request in all {
        let mut client = gate.send(request.clone());
        let (answer, _) = client.read_to_close();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer} for {request:?}");
        assert!(!answer.contains(CANARY), "{answer} for {request:?}");
    }
}

#[test]
fn t069_what_is_no_list_of_tokens_is_refused() {
    let trial = Trial::of_sockets();
    for list in
        ["chat,,v2", "a b", "chat,", ",chat", ",", "", "chat;v2", "\"chat\"", "a/b", "a@b", "[a]", "a\tb", "a=b"]
    {
        trial.refuses(alice().offer(list).followed_by(hidden()), 400, "bad_handshake");
    }
    for evil in [&b"chat\x01"[..], b"ch\0at", b"chat\rX: y", b"chat\nX: y", b"ch\xc3\xa4t", b"chat\x7f"] {
        let line = [b"Sec-WebSocket-Protocol: ", evil].concat();
        trial.refuses(alice().raw(line).followed_by(hidden()), 400, "bad_handshake");
    }
    trial.still_serves();
}

#[test]
fn t079_of_a_hundred_who_show_one_ticket_one_gets_in() {
    const MANY: usize = 100;
    let backend = Backend::echo();
    let mut gate = Gate::start(&route(&backend, "tickets: { path: /ticket }"));
    let desk = plain_get("/ticket").first_line("POST /ticket HTTP/1.1").with("Content-Length", "0");
    let ticket = gate.ask(desk.with("X-Api-Key", KEY)).field("ticket");
    let request = ws(&format!("/ws?ticket={ticket}")).bytes();
    // All are connected before the first one speaks.
    let mut clients: Vec<_> = (0..MANY).map(|_| gate.connect()).collect();
    thread::scope(|scope| {
        for part in clients.chunks_mut(MANY / 4) {
            let request = &request;
            scope.spawn(move || part.iter_mut().for_each(|client| client.send(request)));
        }
    });
    let firsts: Vec<String> = clients.iter_mut().map(|client| client.read_head().first).collect();
    let count = |status: &str| firsts.iter().filter(|first| first.contains(status)).count();
    assert_eq!((count(" 101 "), count(" 401 ")), (1, MANY - 1), "{firsts:?}");
    assert_eq!(backend.accepted(), 1);
    gate.is_well();
}

/// Behind a proxy that is trusted, and that says in both forms who the caller is.
#[test]
fn t057_an_address_has_one_form() {
    let backend = Backend::echo();
    let limits = "trusted_proxies: [ 127.0.0.0/8, 10.0.0.0/8 ]\nlimits: { max_connections_per_address: 1 }\n";
    let gate = Gate::start(&small(&backend, limits));
    let from = |address: &str| alice().with("X-Forwarded-For", address);
    let _open = gate.open(from("203.0.113.7"));
    for other in
        ["::ffff:203.0.113.7", "::FFFF:203.0.113.7", "::ffff:cb00:7107", "[::ffff:203.0.113.7]:1234", "203.0.113.7:80"]
    {
        gate.refuses_before(&backend, from(other), 429, "too_many_connections");
    }
    // A trusted network is trusted in both forms as well.
    gate.refuses_before(&backend, from("203.0.113.7, ::ffff:10.0.0.1"), 429, "too_many_connections");
}
