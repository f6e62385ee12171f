//! The operator's listener: what it tells, what it does, and for whom.

use crate::support::client::plain_get;
use crate::support::frames::{plain, text};
use crate::support::{Backend, Gate, KEY, alice, config, eventually, small, stand, ws};

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
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/healthz/x", 404),
        ("GET", "//healthz", 404),
        ("GET", "/config", 404),
        ("POST", "/healthz", 405),
        ("POST", "/metrics", 405),
        ("DELETE", "/connections", 405),
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
    for own in [&*host, "127.0.0.1", "localhost", &format!("localhost:{port}"), "[::1]"] {
        assert_eq!(gate.ask_admin(&plain_get("/healthz").host(own)).status(), 200, "{own}");
    }
    let answer = gate.admin("GET", "/metrics");
    assert!(!answer.head.has("Access-Control-Allow-Origin"));
    let reloads = gate.metric("wsbouncer_config_reloads_total", &[]);
    assert_eq!(reloads, 1.0, "only the operator's own");
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
