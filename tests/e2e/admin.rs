//! The operator's listener: what it tells, what it does, and for whom.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::support::client::{Request, plain_get};
use crate::support::frames::{plain, text};
use crate::support::wait::eventually_some;
use crate::support::{Backend, Gate, KEY, Wire, alice, config, eventually, small, stand, stand_echo, ws};

#[test]
fn health_and_readiness() {
    let (_backend, gate) = stand();
    let health = gate.admin("GET", "/healthz");
    assert_eq!((health.status(), health.text().trim()), (200, "ok"));
    let ready = gate.ready();
    assert_eq!(ready.status(), 200);
    let body = ready.json();
    assert_eq!((body["ready"].as_bool(), body["draining"].as_bool()), (Some(true), Some(false)), "{body}");
    assert_eq!(body["reload"]["ok"], true);
    assert_eq!(body["restart_needed"].as_array().map(Vec::len), Some(0));
    assert_eq!(body["config_hash"].as_str().map(str::len), Some(64));
}

#[test]
fn every_path_has_its_method() {
    let (_backend, gate) = stand();
    for (method, path, status) in [
        ("GET", "/", 200),
        ("GET", "/index.html", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/healthz/x", 404),
        ("GET", "//healthz", 404),
        ("GET", "/config", 200),
        ("GET", "/version", 200),
        ("GET", "/status", 200),
        ("GET", "/keys", 200),
        ("GET", "/routes", 200),
        ("HEAD", "/keys", 200),
        ("POST", "/", 405),
        ("POST", "/healthz", 405),
        ("POST", "/metrics", 405),
        ("DELETE", "/keys", 405),
        ("HEAD", "/events", 405),
        ("POST", "/connections", 405),
        ("DELETE", "/connections", 400),
        ("GET", "/reload", 405),
        ("HEAD", "/healthz", 200),
    ] {
        assert_eq!(gate.admin(method, path).status(), status, "{method} {path}");
    }
}

#[test]
fn pages_in_a_browser_are_not_the_operator() {
    let (_backend, gate) = stand();
    let port = gate.admin.port();
    let host = format!("127.0.0.1:{port}");
    let post = || plain_get("/reload").first_line("POST /reload HTTP/1.1").host(&host).with("Content-Length", "0");
    assert_eq!(gate.ask_admin(&post()).status(), 200);
    for origin in ["http://evil.example", "null", &format!("http://{host}")] {
        assert_eq!(gate.ask_admin(&post().with("Origin", origin)).status(), 403, "{origin}");
    }
    for rebound in ["evil.example", "evil.example:80", &format!("127.0.0.1.evil.example:{port}"), "localhost.evil"] {
        for path in ["/connections", "/metrics", "/readyz"] {
            assert_eq!(gate.ask_admin(&plain_get(path).host(rebound)).status(), 403, "{rebound} {path}");
        }
        assert_eq!(gate.ask_admin(&post().host(rebound)).status(), 403, "{rebound}");
    }
    let own = format!("http://{host}");
    assert_eq!(gate.ask_admin(&post().with("Origin", &own).with("X-Wsbouncer", "1")).status(), 200, "our own page");
    for site in ["cross-site", "same-site"] {
        assert_eq!(
            gate.ask_admin(&plain_get("/keys").host(&host).with("Sec-Fetch-Site", site)).status(),
            403,
            "{site}"
        );
    }
    for own in [&*host, "127.0.0.1", "localhost", &format!("localhost:{port}"), "[::1]"] {
        assert_eq!(gate.ask_admin(&plain_get("/healthz").host(own)).status(), 200, "{own}");
    }
    let answer = gate.admin("GET", "/metrics");
    assert!(!answer.head.has("Access-Control-Allow-Origin"));
    let reloads = gate.metric("wsbouncer_config_reloads_total", &[]);
    assert_eq!(reloads, 2.0, "only the operator's own");
}

#[test]
fn the_data_port_has_no_such_paths() {
    let (backend, gate) = stand();
    for path in ["/healthz", "/readyz", "/metrics", "/connections"] {
        gate.refuses_before(&backend, plain_get(path), 426, "upgrade_required");
        gate.refuses_before(&backend, ws(path), 401, "missing_credential");
    }
}

#[test]
fn the_listener_can_be_left_out() {
    let backend = Backend::echo();
    let gate = Gate::start(&format!("admin: off\n{}", small(&backend, "")));
    assert_eq!(gate.log_line(|line| line.is("listening")).get("admin"), "off");
    assert_eq!(gate.ask_status(alice()), 101);
}

#[test]
fn connections_are_listed_as_they_are() {
    let (backend, gate) = stand();
    assert!(gate.connections().is_empty());
    let client = gate.send(alice().with("Origin", "https://a.example").offer("chat").with("X-Request-Id", "my-id"));
    let mut up = backend.next();
    // Not open before both sides have said yes.
    assert!(gate.connections().is_empty());
    up.accept_with("Sec-WebSocket-Protocol: chat\r\n");
    let (mut client, _) = client.opened();
    client.send(text("four"));
    up.expect(text("four"));
    up.send(plain(1, b"seven.."));
    client.expect(plain(1, b"seven.."));
    // What was delivered is counted a moment later.
    let down = plain(1, b"seven..").len();
    eventually("the bytes are counted", || gate.connections().iter().any(|one| one["down_bytes"] == down));
    let listed = gate.connections();
    assert_eq!(listed.len(), 1);
    let one = &listed[0];
    for (field, value) in [
        ("id", "my-id"),
        ("route", "default"),
        ("key", "alice"),
        ("caller", "127.0.0.1"),
        ("origin", "https://a.example"),
        ("subprotocol", "chat"),
    ] {
        assert_eq!(one[field], value, "{one}");
    }
    for field in ["upstream", "opened_at", "seconds"] {
        assert!(!one[field].is_null(), "{field} in {one}");
    }
    assert_eq!(one["up_bytes"], text("four").len());
    assert_eq!(one["down_bytes"], down);
    assert_eq!((&one["up_messages"], &one["down_messages"]), (&1.into(), &1.into()));
    drop((client, up));
    gate.wait_for_open(0);
}

#[test]
fn metrics_say_what_happened() {
    let backend = Backend::serve(|mut conn| {
        if conn.head.target() == "/refuse" {
            conn.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
            return conn.linger();
        }
        conn.accept();
        conn.echo();
    });
    let gate = Gate::start(&small(&backend, ""));
    let mut clients: Vec<_> = (0..3).map(|_| gate.open(alice())).collect();
    for client in &mut clients {
        client.send(text("hello"));
        client.expect(text("hello"));
    }
    assert_eq!(gate.ask(ws("/refuse").with("X-Api-Key", KEY)).status(), 403);
    gate.refuses(ws("/ws"), 401, "missing_credential");
    gate.refuses(ws("/ws"), 401, "missing_credential");
    gate.refuses(plain_get("/"), 426, "upgrade_required");
    clients.pop();
    gate.wait_for_open(2);

    let metrics = gate.metrics();
    let route = ("route", "default");
    for (name, labels, value) in [
        ("wsbouncer_requests_total", &[route, ("outcome", "opened")][..], 3.0),
        ("wsbouncer_requests_total", &[route, ("outcome", "refused")], 3.0),
        ("wsbouncer_requests_total", &[route, ("outcome", "passed_through")], 1.0),
        ("wsbouncer_refusals_total", &[route, ("reason", "missing_credential")], 2.0),
        ("wsbouncer_refusals_total", &[route, ("reason", "upgrade_required")], 1.0),
        ("wsbouncer_refusals_total", &[], 3.0),
        ("wsbouncer_tunnels_open", &[route], 2.0),
        ("wsbouncer_tunnels_opened_total", &[route], 3.0),
        ("wsbouncer_tunnels_closed_total", &[], 1.0),
        ("wsbouncer_bytes_total", &[route, ("direction", "up")], 3.0 * text("hello").len() as f64),
        ("wsbouncer_bytes_total", &[route, ("direction", "down")], 3.0 * text("hello").len() as f64),
        ("wsbouncer_handshake_seconds_count", &[route], 7.0),
        ("wsbouncer_key_tunnels_open", &[("key", "alice")], 2.0),
        ("wsbouncer_connections_open", &[], 2.0),
        ("wsbouncer_accept_errors_total", &[], 0.0),
        ("wsbouncer_config_last_reload_success", &[], 1.0),
        ("wsbouncer_config_restart_needed", &[], 0.0),
        ("wsbouncer_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
    ] {
        eventually_equal(&gate, name, labels, value);
    }
    let now = jiff::Timestamp::now().as_second() as f64;
    for (name, labels) in [
        ("wsbouncer_key_last_used_timestamp_seconds", &[("key", "alice")][..]),
        ("wsbouncer_config_last_reload_timestamp_seconds", &[]),
    ] {
        assert!((now - metrics.get(name, labels)).abs() < 60.0, "{name}");
    }
    assert!(!gate.admin("GET", "/metrics").text().contains(KEY));
}

#[track_caller]
fn eventually_equal(gate: &Gate, name: &str, labels: &[(&str, &str)], value: f64) {
    eventually(&format!("{name} {labels:?} is {value}, not {}", gate.metric(name, labels)), || {
        gate.metric(name, labels) == value
    });
}

#[test]
fn another_address_needs_a_word_about_it() {
    let backend = Backend::echo();
    let yaml = format!("admin: {{ address: 0.0.0.0:0, allow_remote: true }}\n{}", small(&backend, ""));
    let mut gate = config(&yaml).start();
    gate.admin.set_ip([127, 0, 0, 1].into());
    assert_eq!(gate.admin("GET", "/healthz").status(), 200);
}

// ---- closing

const NEW: &str = "alice-new-secret-0123456789";
const BOB: &str = "bob-secret-0123456789";
const CAROL: &str = "carol-secret-0123456789";

/// Two routes, a key with two secrets, one that is like any other, and one that is disabled.
fn rotation(backend: &Backend) -> String {
    format!(
        "keys:
  - {{ id: alice, secrets: [{{ plain: {KEY}, valid_until: 2099-01-01 }}, {{ plain: {NEW} }}] }}
  - {{ id: bob, secret: {BOB}, routes: [one], max_connections: 3 }}
  - {{ id: carol, secret: {CAROL}, disabled: true }}
routes:
  - {{ name: one, path: /one, upstream: {url} }}
  - {{ name: two, path: /two, upstream: {url} }}
",
        url = backend.url()
    )
}

fn with(path: &str, key: &str) -> Request {
    ws(path).with("X-Api-Key", key)
}

#[track_caller]
fn closed_by_operator(client: &mut Wire) {
    assert_eq!(client.read_close(), (4000, "closed_by_operator".to_owned()));
}

#[test]
fn an_operator_closes_exactly_what_was_named() {
    let backend = Backend::echo();
    let gate = Gate::start(&rotation(&backend));
    let mut a = gate.open(with("/one", KEY).with("X-Request-Id", "first"));
    let mut b = gate.open(with("/two", KEY).with("X-Request-Id", "second"));
    let mut c = gate.open(with("/one", BOB).with("X-Request-Id", "third"));
    let mut d = gate.open(with("/one", NEW).with("X-Request-Id", "fourth"));
    gate.wait_for_open(4);
    let ids = |query: &str| -> Vec<String> {
        let answer = gate.admin("GET", &format!("/connections{query}")).json();
        let listed = answer["connections"].as_array().unwrap();
        listed.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(""), ["fourth", "third", "second", "first"], "the latest first");
    assert_eq!(ids("?key=alice"), ["fourth", "second", "first"]);
    assert_eq!(ids("?key=alice&route=one"), ["fourth", "first"]);
    assert_eq!(ids("?key=alice&limit=1"), ["fourth"]);
    assert_eq!(gate.admin("GET", "/connections?key=alice&limit=1").json()["total"], 3);
    assert!(ids("?key=alic").is_empty());

    let close = |query: &str| gate.admin("DELETE", &format!("/connections?{query}")).json()["closed"].clone();
    assert_eq!(close("id=nobody"), 0);
    assert_eq!(close("key=bob&route=two"), 0);
    assert_eq!(close("id=second"), 1);
    closed_by_operator(&mut b);
    assert_eq!(close("route=one&key=alice"), 2);
    closed_by_operator(&mut a);
    closed_by_operator(&mut d);
    eventually("one is left", || ids("") == ["third"]);
    c.stays_silent();
    assert_eq!(close("route=one"), 1);
    closed_by_operator(&mut c);
    gate.wait_for_open(0);
    let line = gate.log_line(|line| line.is("tunnel closed") && line.get("id") == "second");
    assert_eq!((line.get("cause").as_str(), line.get("code").as_str()), ("closed_by_operator", "4000"));
    assert_eq!(gate.metric("wsbouncer_tunnels_closed_total", &[("cause", "closed_by_operator")]), 4.0);
}

#[test]
fn a_filter_that_is_misspelt_closes_nobody() {
    let (_backend, gate) = stand_echo();
    let mut client = gate.open(alice());
    gate.wait_for_open(1);
    for query in [
        "",
        "?",
        "?limit=1",
        "?keys=alice",
        "?key=",
        "?key",
        "?key=alice&key=bob",
        "?key=alice&x=1",
        "?key=%zz",
        "?KEY=a",
    ] {
        assert_eq!(gate.admin("DELETE", &format!("/connections{query}")).status(), 400, "{query}");
    }
    for query in ["?limit=0", "?limit=x", "?limit=10001", "?keys=alice", "?route="] {
        assert_eq!(gate.admin("GET", &format!("/connections{query}")).status(), 400, "{query}");
    }
    client.send(text("x"));
    client.expect(text("x"));
}

// ---- keys

#[track_caller]
fn key(gate: &Gate, id: &str, query: &str) -> Value {
    gate.admin("GET", &format!("/keys?id={id}{query}")).json()["keys"][0].clone()
}

/// The secrets of a key: open, opened, refused, whether it was ever used, and what is said of taking it away.
#[track_caller]
fn secrets(gate: &Gate, id: &str, query: &str) -> Vec<(i64, i64, i64, bool, String)> {
    let key = key(gate, id, query);
    let of = |one: &Value| {
        let number = |name: &str| one[name].as_i64().unwrap();
        let because = one["because"].as_str().unwrap().to_owned();
        assert_eq!(one["safe_to_remove"], because == "safe");
        (number("open"), number("opened"), number("refused"), one["last_used"].is_string(), because)
    };
    key["secrets"].as_array().unwrap().iter().map(of).collect()
}

fn said(open: i64, opened: i64, refused: i64, used: bool, because: &str) -> (i64, i64, i64, bool, String) {
    (open, opened, refused, used, because.to_owned())
}

#[test]
fn a_rotation_shows_which_secret_is_in_use_and_when_the_old_one_can_go() {
    let backend = Backend::echo();
    let gate = Gate::start(&rotation(&backend));
    let [long, none] = ["", "&quiet=0s"];
    assert_eq!(
        secrets(&gate, "alice", none),
        [said(0, 0, 0, false, "no_successor"), said(0, 0, 0, false, "no_successor")]
    );
    let old = gate.open(with("/one", KEY));
    gate.wait_for_open(1);
    assert_eq!(
        secrets(&gate, "alice", long),
        [said(1, 1, 0, true, "in_use"), said(0, 0, 0, false, "too_early_to_tell")]
    );
    assert_eq!(secrets(&gate, "alice", none), [said(1, 1, 0, true, "in_use"), said(0, 0, 0, false, "never_shown")]);
    drop(old);
    gate.wait_for_open(0);
    eventually("it is given back", || key(&gate, "alice", "")["open"] == 0);
    assert_eq!(secrets(&gate, "alice", none)[0], said(0, 1, 0, true, "no_successor"));
    let _new = gate.open(with("/two", NEW));
    gate.wait_for_open(1);
    assert_eq!(secrets(&gate, "alice", long), [said(0, 1, 0, true, "seen_lately"), said(1, 1, 0, true, "in_use")]);
    assert_eq!(secrets(&gate, "alice", none), [said(0, 1, 0, true, "safe"), said(1, 1, 0, true, "in_use")]);
    // What is known of them survives a reload, the removal of a secret, and its return.
    let with_two = rotation(&backend);
    let with_one = with_two.replace(&format!("{{ plain: {KEY}, valid_until: 2099-01-01 }}, "), "");
    gate.edit_config(&format!("{with_two}limits: {{ max_connections: 100 }}\n"));
    assert_eq!(secrets(&gate, "alice", none), [said(0, 1, 0, true, "safe"), said(1, 1, 0, true, "in_use")]);
    gate.edit_config(&with_one);
    assert_eq!(secrets(&gate, "alice", none), [said(1, 1, 0, true, "in_use")]);
    gate.edit_config(&with_two);
    assert_eq!(secrets(&gate, "alice", none), [said(0, 1, 0, true, "safe"), said(1, 1, 0, true, "in_use")]);
}

#[test]
fn refusals_are_counted_where_the_key_is_known() {
    let backend = Backend::echo();
    let gate = Gate::start(&rotation(&backend));
    gate.refuses(with("/one", CAROL), 401, "invalid_credential");
    gate.refuses(with("/two", BOB), 403, "not_allowed_on_route");
    let _three: Vec<_> = (0..3).map(|_| gate.open(with("/one", BOB))).collect();
    gate.refuses(with("/one", BOB), 429, "too_many_connections");
    gate.refuses(with("/one", "nobody-has-this"), 401, "invalid_credential");
    gate.refuses(plain_get("/one").with("X-Api-Key", BOB), 426, "upgrade_required");
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|id| key(&gate, id, ""));
    assert_eq!((&alice["refused"], &bob["refused"], &carol["refused"]), (&0.into(), &3.into(), &1.into()));
    assert_eq!((&bob["secrets"][0]["refused"], &carol["secrets"][0]["refused"]), (&3.into(), &1.into()));
    assert_eq!((&bob["open"], &bob["opened"], &bob["state"]), (&3.into(), &3.into(), &"valid".into()));
    assert_eq!((&carol["state"], &carol["last_used"]), (&"disabled".into(), &Value::Null));
    assert_eq!(carol["secrets"][0]["because"], "safe", "it opens nothing, whoever shows it");
    assert!(carol["last_refused"].is_string());
    assert_eq!((&bob["routes"], &bob["max_connections"]), (&serde_json::json!(["one"]), &3.into()));
    let seconds = key(&gate, "alice", "")["secrets"][0]["expires_in_seconds"].as_i64().unwrap();
    assert!(seconds > 86400, "{seconds}");
    // The metrics name only keys that opened something.
    assert_eq!(gate.metric("wsbouncer_key_tunnels_open", &[("key", "bob")]), 3.0);
    assert!(!gate.admin("GET", "/metrics").text().contains("carol"));
}

/// What was admitted, and refused by the service, was never open.
#[test]
fn an_upgrade_that_the_service_refuses_was_not_opened() {
    let backend = Backend::serve(|mut conn| {
        conn.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
        conn.linger();
    });
    let gate = Gate::start(&small(&backend, ""));
    assert_eq!(gate.ask(alice()).status(), 403);
    eventually("it is given back", || key(&gate, "alice", "")["open"] == 0);
    assert_eq!(secrets(&gate, "alice", "")[0], said(0, 0, 0, true, "seen_lately"));
}

#[test]
fn keys_come_page_by_page() {
    let backend = Backend::echo();
    let keys: String =
        (0..2500).map(|n| format!("- {{ id: key{n}, secrets: [{{ sha256: \"{n:064x}\" }}] }}\n")).collect();
    let yaml = format!(
        "upstream: {}\nkey_files: [keys.yaml]\n{}",
        backend.url(),
        "keys: [{ id: last, secrets: [{ plain: a-b-c-d-e-f }, { plain: g-h-i-j-k-l }] }]\n"
    );
    let gate = config(&yaml).file("keys.yaml", &keys).start();
    let page = |query: &str| gate.admin("GET", &format!("/keys{query}")).json();
    let first = page("");
    assert_eq!((first["keys"].as_array().unwrap().len(), &first["total"]), (100, &2501.into()));
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = page(&format!("?limit=1000{after}"));
        seen.extend(page["keys"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    let mut wanted = vec!["last".to_owned()];
    wanted.extend((0..2500).map(|n| format!("key{n}")));
    assert_eq!(seen, wanted);
    let rotating = page("?rotating=true");
    assert_eq!((rotating["keys"].as_array().unwrap().len(), &rotating["keys"][0]["id"]), (1, &"last".into()));
    assert_eq!(page("?id=nobody")["keys"], serde_json::json!([]));
    for bad in ["?limit=0", "?limit=1001", "?after=gone", "?rotating=yes", "?quiet=1", "?page=2"] {
        assert_eq!(gate.admin("GET", &format!("/keys{bad}")).status(), 400, "{bad}");
    }
}

// ---- rules

#[test]
fn routes_and_rules_are_shown_as_they_are_understood() {
    let backend = Backend::echo();
    let yaml = format!(
        "keys: [{{ id: alice, secret: {KEY} }}]
routes:
  - name: main
    host: \"*.example.com\"
    path: /chat/*
    upstream: {}
    auth: [api_key: {{ extract_from: [{{ header: X-Api-Key }}, bearer, {{ subprotocol: {{ pair: x-api-key }} }}, {{ query: key }}] }}, ticket: {{}}]
    tickets: {{ path: /ticket }}
    allowed_origins: [\"https://a.example\"]
    set_headers: {{ X-Upstream-Token: \"{{env.UPSTREAM_TOKEN}}\", X-Who: \"{{id}} of {{attributes.tenant}}\" }}
  - {{ name: open, path: /open, upstream: {}, auth: none }}
tickets: {{ secrets: [{{ env: TICKET_SECRET }}] }}
",
        backend.url(),
        backend.url()
    );
    let (upstream, ticket) = ("upstream-token-canary", "ticket-secret-canary-0123456789abcdef");
    let gate = config(&yaml).env("UPSTREAM_TOKEN", upstream).env("TICKET_SECRET", ticket).start();
    let _client = gate.open(ws("/open"));
    gate.refuses(ws("/chat/x").host("a.example.com"), 401, "missing_credential");
    let routes = gate.admin("GET", "/routes").json();
    let [main, open] = [&routes["routes"][0], &routes["routes"][1]];
    assert_eq!(
        (&main["name"], &main["host"], &main["path"]),
        (&"main".into(), &"*.example.com".into(), &"/chat/*".into())
    );
    assert_eq!(
        (&main["open"], &main["refused"], &main["refusals"]["missing_credential"]),
        (&0.into(), &1.into(), &1.into())
    );
    assert_eq!((&open["auth"], &open["open"], &open["opened"]), (&"none".into(), &1.into(), &1.into()));
    let keys = &main["auth"][0]["api_key"]["extract_from"];
    let pair = serde_json::json!({ "subprotocol": { "pair": "x-api-key", "encoding": "raw" } });
    assert_eq!(
        (&keys[0]["header"], &keys[1], &keys[2], &keys[3]["query"]),
        (&"x-api-key".into(), &"bearer".into(), &pair, &"key".into())
    );
    assert!(main["auth"][1]["ticket"].is_object());

    let shown = gate.admin("GET", "/config");
    let rules = shown.json();
    let headers = &rules["routes"][0]["headers"];
    assert_eq!(
        (&headers["x-upstream-token"], &headers["x-who"]),
        (&"***".into(), &"{id}***{attributes.tenant}".into())
    );
    assert_eq!(rules["routes"][0]["allowed_origins"], serde_json::json!(["https://a.example"]));
    assert_eq!((&rules["keys"]["count"], &rules["drain"]["timeout"]), (&1.into(), &60.0.into()));
    assert!(rules["files"][0].as_str().unwrap().ends_with("wsbouncer.yaml"));
    assert_eq!((&rules["listen"][0], &rules["admin"]["token"]), (&"127.0.0.1:0".into(), &Value::Null));
    assert_eq!(rules["config_hash"], gate.ready().json()["config_hash"]);
    for secret in [upstream, ticket, KEY] {
        assert!(!shown.text().contains(secret));
    }
}

#[test]
fn no_answer_holds_a_secret_or_its_digest() {
    let backend = Backend::echo();
    let token = "operator-token-0123456789";
    let admin = format!("admin: {{ address: 127.0.0.1:0, token: {{ plain: {token} }} }}\n");
    let gate = Gate::start(&format!("{admin}{}", rotation(&backend)));
    let _clients = [KEY, NEW, BOB].map(|key| gate.open(with("/one", key)));
    assert_eq!(gate.ask(with("/one", CAROL)).status(), 401);
    let mut seen = String::new();
    for path in ["/", "/readyz", "/metrics", "/version", "/status", "/connections", "/keys", "/routes", "/config"] {
        let request = plain_get(path).host(&gate.admin.to_string()).with("Authorization", &format!("Bearer {token}"));
        let answer = gate.ask_admin(&request);
        assert_eq!(answer.status(), 200, "{path}");
        seen += &answer.text();
    }
    seen += &gate.raw_log();
    for secret in [KEY, NEW, BOB, CAROL, token] {
        let digest: String = Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!seen.contains(secret), "{secret}");
        assert!(!seen.contains(&digest[..16]), "more than the first digits of {secret}");
        assert_eq!(seen.contains(&digest[..8]), secret != token, "{secret}");
    }
}

// ---- status and events

#[test]
fn the_history_of_loads_is_kept_with_the_last_error() {
    let (backend, gate) = stand_echo();
    let status = || gate.admin("GET", "/status").json();
    assert_eq!((&status()["history"][0]["ok"], status()["history"].as_array().unwrap().len()), (&true.into(), 1));
    gate.fails_to_reload(|| gate.replace("wsbouncer.yaml", &gate.complete(&small(&backend, "limit: {}\n"))));
    let failed = status();
    let error = failed["reload"]["error"].as_str().unwrap();
    assert!(error.contains("wsbouncer.yaml:") && error.contains("did you mean"), "{error}");
    assert_eq!((&failed["history"][0]["ok"], &failed["history"][0]["problems"]), (&false.into(), &1.into()));
    let _client = gate.open(alice());
    gate.wait_for_open(1);
    gate.edit_config(&small(&backend, "").replace("alice", "somebody").replace(KEY, BOB));
    eventually("its tunnel is gone", || status()["tunnels_open"] == 0);
    let mended = status();
    assert_eq!((&mended["reload"]["error"], &mended["history"][0]["tunnels_ended"]), (&Value::Null, &1.into()));
    for _ in 0..25 {
        assert_eq!(gate.admin("POST", "/reload").status(), 200);
    }
    let history = status()["history"].clone();
    assert_eq!((history.as_array().unwrap().len(), &history[0]["changed"]), (20, &false.into()));
}

#[test]
fn the_status_says_what_the_metrics_say() {
    let (_backend, gate) = stand_echo();
    let mut client = gate.open(alice());
    client.send(text("hello"));
    client.expect(text("hello"));
    gate.refuses(ws("/"), 401, "missing_credential");
    gate.refuses(ws("/").with("X-Api-Key", "wrong"), 401, "invalid_credential");
    let metric = |name: &str, labels: &[(&str, &str)]| gate.metric(name, labels);
    eventually("bytes are counted", || metric("wsbouncer_bytes_total", &[("direction", "down")]) > 0.0);
    let status = gate.admin("GET", "/status").json();
    for (shown, name, labels) in [
        (&status["tunnels_open"], "wsbouncer_tunnels_open", &[][..]),
        (&status["tunnels_opened"], "wsbouncer_tunnels_opened_total", &[]),
        (&status["refusals"]["missing_credential"], "wsbouncer_refusals_total", &[("reason", "missing_credential")]),
        (&status["refusals"]["invalid_credential"], "wsbouncer_refusals_total", &[("reason", "invalid_credential")]),
        (&status["bytes"]["up"], "wsbouncer_bytes_total", &[("direction", "up")]),
        (&status["bytes"]["down"], "wsbouncer_bytes_total", &[("direction", "down")]),
    ] {
        assert!(metric(name, labels) > 0.0, "{name}");
        assert_eq!(shown.as_f64(), Some(metric(name, labels)), "{name}");
    }
    let (bounds, counts) =
        (status["handshake"]["bounds"].as_array().unwrap(), status["handshake"]["counts"].as_array().unwrap());
    assert_eq!((bounds.len() + 1, counts.len()), (15, 15));
    let mut below = 0.0;
    for (bound, count) in bounds.iter().zip(counts) {
        below += count.as_f64().unwrap();
        assert_eq!(metric("wsbouncer_handshake_seconds_bucket", &[("le", &bound.to_string())]), below, "{bound}");
    }
    assert_eq!(metric("wsbouncer_handshake_seconds_bucket", &[("le", "+Inf")]), 3.0);
    assert!(metric("wsbouncer_handshake_seconds_sum", &[]) > 0.0);
}

/// Looks at events.
fn events(gate: &Gate) -> Wire {
    let mut wire = Wire::connect(gate.admin);
    wire.send(plain_get("/events").host(&gate.admin.to_string()).bytes());
    wire
}

#[test]
fn events_come_every_second_to_a_few_and_end_with_a_drain() {
    let (_backend, gate) = stand_echo();
    let mut all: Vec<Wire> = (0..8).map(|_| events(&gate)).collect();
    for wire in &mut all {
        let head = wire.read_head();
        assert_eq!((head.first.as_str(), head.get("Content-Type")), ("HTTP/1.1 200 OK", Some("text/event-stream")));
    }
    let status = |mut wire: Wire| crate::support::head::status(&wire.read_head());
    assert_eq!(status(events(&gate)), 503, "eight are enough");
    assert_eq!(gate.admin("GET", "/healthz").status(), 200);
    all.truncate(1);
    eventually("a place is free again", || status(events(&gate)) == 200);
    // The second of two is closed half a minute after the first: the process is still there to say that it drains.
    let _clients = [gate.open(alice()), gate.open(alice())];
    let mut first = all.remove(0);
    let mut seen = String::new();
    while !seen.contains("\"tunnels_open\":2") {
        seen += &String::from_utf8_lossy(&first.read_some().unwrap());
    }
    assert!(seen.contains("data: {"), "{seen}");
    gate.signal(Signal::TERM);
    let (rest, _) = first.read_to_close();
    assert!(String::from_utf8_lossy(&rest).contains("\"draining\":true"));
    assert_eq!(status(events(&gate)), 503, "nobody is kept from here on");
}

#[test]
fn the_page_has_a_policy_of_its_own() {
    let (_backend, gate) = stand();
    let page = gate.admin("GET", "/");
    let policy = page.head.get("Content-Security-Policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    assert!(!policy.contains("unsafe"));
    assert_eq!(page.head.get("X-Frame-Options"), Some("DENY"));
    assert!(page.text().starts_with("<!doctype html>"));
    let version = gate.admin("GET", "/version").json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

// ---- the token

fn bearer(gate: &Gate, path: &str, token: &str) -> Request {
    plain_get(path).host(&gate.admin.to_string()).with("Authorization", &format!("Bearer {token}"))
}

#[test]
fn a_token_guards_all_but_health() {
    let (backend, token) = (Backend::echo(), "operator-token-0123456789");
    let digest: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    for form in
        [format!("plain: {token}"), format!("sha256: {digest}"), "env: ADMIN_TOKEN".into(), "file: token.txt".into()]
    {
        let yaml = format!("admin: {{ address: 0.0.0.0:0, token: {{ {form} }} }}\n{}", small(&backend, ""));
        let mut gate = config(&yaml).env("ADMIN_TOKEN", token).file("token.txt", &format!("{token}\n")).start();
        gate.admin.set_ip([127, 0, 0, 1].into());
        for (method, path) in [
            ("GET", "/metrics"),
            ("GET", "/connections"),
            ("DELETE", "/connections?key=alice"),
            ("GET", "/keys"),
            ("GET", "/routes"),
            ("GET", "/config"),
            ("GET", "/status"),
            ("GET", "/events"),
            ("GET", "/version"),
            ("POST", "/reload"),
            ("GET", "/nothing"),
        ] {
            let answer = gate.admin(method, path);
            assert_eq!(answer.status(), 401, "{method} {path}");
            assert_eq!(answer.head.get("WWW-Authenticate"), Some("Bearer realm=\"wsbouncer\""));
        }
        for path in ["/healthz", "/readyz", "/"] {
            assert_eq!(gate.admin("GET", path).status(), 200, "{path}");
        }
        assert!(gate.ready().json()["config_hash"].is_null(), "a probe needs no more than a yes");
        assert!(gate.ask_admin(&bearer(&gate, "/readyz", token)).json()["config_hash"].is_string());
        assert_eq!(gate.ask_admin(&bearer(&gate, "/keys", token)).status(), 200, "{form}");
        for wrong in ["", "operator-token-012345678", "operator-token-01234567890", &digest] {
            assert_eq!(gate.ask_admin(&bearer(&gate, "/keys", wrong)).status(), 401, "{wrong}");
        }
    }
}

#[test]
fn a_token_follows_the_file() {
    let (backend, old, new) = (Backend::echo(), "old-operator-token-01", "new-operator-token-02");
    let yaml = |admin: &str| format!("admin: {admin}\n{}", small(&backend, ""));
    let guarded = |token: &str| yaml(&format!("{{ address: 127.0.0.1:0, token: {{ plain: {token} }} }}"));
    let gate = Gate::start(&guarded(old));
    let asks = |token: &str| gate.ask_admin(&bearer(&gate, "/keys", token)).status();
    assert_eq!((asks(old), asks(new)), (200, 401));
    gate.edit_config(&guarded(new));
    assert_eq!((asks(old), asks(new)), (401, 200));
    // The listener stays where it is, and with it its token.
    for moved in ["off", "127.0.0.1:1", "{ address: 127.0.0.1:1, token: { plain: third-operator-token-03 } }"] {
        gate.edit_config(&yaml(moved));
        assert_eq!((asks(new), gate.admin("GET", "/keys").status()), (200, 401), "{moved}");
        let body = gate.ask_admin(&bearer(&gate, "/readyz", new)).json();
        assert_eq!(body["restart_needed"], serde_json::json!(["admin"]), "{moved}");
    }
    fs::write(gate.dir().join("token.txt"), format!("{old}\n")).unwrap();
    gate.edit_config(&yaml("{ address: 127.0.0.1:0, token: { file: token.txt } }"));
    assert_eq!((asks(old), asks(new)), (200, 401));
    gate.reloads(|| gate.replace("token.txt", new));
    assert_eq!((asks(old), asks(new)), (401, 200));
    gate.edit_config(&yaml("127.0.0.1:0"));
    assert_eq!(gate.admin("GET", "/keys").status(), 200);
}

#[test]
fn probing_needs_no_token() {
    let backend = Backend::echo();
    let token = "admin: { address: 127.0.0.1:0, token: { plain: operator-token-0123456789 } }\n";
    let gate = Gate::start(&format!("{token}{}", small(&backend, "")));
    let url = format!("http://{}/readyz", gate.admin);
    let output = eventually_some("probe ends", || {
        std::process::Command::new(env!("CARGO_BIN_EXE_wsbouncer")).args(["probe", &url]).output().ok()
    });
    assert!(output.status.success(), "{output:?}");
}
