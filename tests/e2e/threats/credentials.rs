//! Credentials that are none, and names that a service could take for ours.

use std::thread;

use super::{Trial, hidden, page};
use crate::support::client::plain_get;
use crate::support::{Backend, Gate, KEY, Request, alice, route, small, ws};

/// Alice's key beside one that nobody has.
const OTHER: &str = "bad-secret-0123456789";

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
