//! How many: per route, per key, per key on a route, per address, in the whole process, and how many wrong tries.

use crate::support::{Backend, Conn, Gate, KEY, Wire, alice, config, eventually, route, small, ws};

/// Another loopback address than clients usually have.
const OTHER: [u8; 4] = [127, 0, 0, 2];

/// Opens as many as there may be, is refused one more, and gets in again when one has left.
#[track_caller]
fn at_most(count: usize, (gate, backend): (&Gate, &Backend), limit: &str, status: u16, reason: &str) {
    let request = &alice();
    let mut open: Vec<Wire> = (0..count).map(|_| gate.open(request)).collect();
    for _ in 0..2 {
        let before = reached(gate, limit);
        let answer = gate.refuses_before(backend, request, status, reason);
        assert_eq!(reached(gate, limit), before + 1.0);
        let seconds = answer.head.get("Retry-After").and_then(|seconds| seconds.parse::<u32>().ok());
        assert!(seconds.is_some_and(|seconds| seconds > 0), "{:?}", answer.head);
        drop(open.pop());
        eventually("a place is free again", || gate.connections().len() == count - 1);
        open.push(gate.open(request));
    }
}

/// How often somebody was turned away by this limit.
#[track_caller]
fn reached(gate: &Gate, limit: &str) -> f64 {
    gate.metric("wsbouncer_limits_reached_total", &[("limit", limit)])
}

#[test]
fn a_route_has_room_for_so_many() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, "limits: { max_connections: 3 }"));
    at_most(3, (&gate, &backend), "route_max_connections", 429, "too_many_connections");
}

#[test]
fn a_key_opens_so_many_over_all_routes() {
    let backend = Backend::echo();
    let gate = Gate::start(&format!(
        "keys:\n  - {{ id: alice, secret: {KEY}, max_connections: 2 }}\n  - {{ id: bob, secret: bob-secret }}\n\
         routes:\n  - {{ path: /ws, upstream: \"{0}\" }}\n  - {{ path: /other, upstream: \"{0}\" }}\n",
        backend.url()
    ));
    let _one = gate.open(alice());
    let two = gate.open(ws("/other").with("X-Api-Key", KEY));
    for path in ["/ws", "/other"] {
        let request = ws(path).with("X-Api-Key", KEY);
        let answer = gate.refuses_before(&backend, request, 429, "too_many_connections");
        let line = gate.log_line(|line| line.get("id") == answer.field("request_id"));
        assert_eq!(line.get("key"), "alice");
    }
    assert_eq!(reached(&gate, "key_max_connections"), 2.0);
    gate.open(ws("/ws").with("X-Api-Key", "bob-secret"));
    drop(two);
    eventually("her place is free again", || gate.ask_status(alice()) == 101);
}

#[test]
fn a_key_opens_so_many_on_one_route() {
    let backend = Backend::echo();
    let gate = Gate::start(&format!(
        "keys:\n  - {{ id: alice, secret: {KEY} }}\n  - {{ id: bob, secret: bob-secret }}\n\
         routes:\n  - {{ path: /ws, upstream: \"{0}\", limits: {{ max_connections_per_key: 2 }} }}\n  - {{ path: /other, upstream: \"{0}\" }}\n",
        backend.url()
    ));
    let elsewhere: Vec<Wire> = (0..3).map(|_| gate.open(ws("/other").with("X-Api-Key", KEY))).collect();
    let open = [gate.open(alice()), gate.open(alice())];
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    let bob = ws("/ws").with("X-Api-Key", "bob-secret");
    let others = [gate.open(&bob), gate.open(&bob)];
    gate.refuses_before(&backend, bob, 429, "too_many_connections");
    assert_eq!(reached(&gate, "route_max_connections_per_key"), 2.0);
    drop((elsewhere, open, others));
    eventually("all places are free again", || gate.connections().is_empty());
    gate.open(alice());
}

#[test]
fn the_process_has_room_for_so_many() {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, "limits: { max_connections: 3 }\n"));
    at_most(3, (&gate, &backend), "max_connections", 503, "at_capacity");
}

#[test]
fn an_address_holds_so_many() {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, "limits: { max_connections_per_address: 2 }\n"));
    at_most(2, (&gate, &backend), "max_connections_per_address", 429, "too_many_connections");
    let mut other = gate.connect_from(OTHER);
    other.send(alice().bytes());
    other.opened();
    assert_eq!(backend.last_head().get("X-Forwarded-For"), Some("127.0.0.2"));
}

#[test]
fn behind_a_trusted_proxy_an_address_is_the_callers() {
    let backend = Backend::echo();
    let yaml = "trusted_proxies: [ 127.0.0.0/8 ]\nlimits: { max_connections_per_address: 1 }\n";
    let gate = Gate::start(&small(&backend, yaml));
    let from = |address: &str| alice().with("X-Forwarded-For", address);
    let _one = gate.open(from("203.0.113.7"));
    let _two = gate.open(from("203.0.113.8"));
    gate.refuses_before(&backend, from("203.0.113.7"), 429, "too_many_connections");
    let _v6 = gate.open(from("2001:db8::1"));
    gate.refuses_before(&backend, from("2001:db8::2"), 429, "too_many_connections");
    let _other = gate.open(from("2001:db8:0:1::1"));
}

#[test]
fn wrong_tries_are_counted_per_address() {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, "limits: { max_failed_attempts_per_minute: 3 }\n"));
    let wrong = || ws("/ws").with("X-Api-Key", "wrong");
    // What carries no key at all is no try.
    for _ in 0..5 {
        gate.refuses_before(&backend, ws("/ws"), 401, "missing_credential");
    }
    for _ in 0..3 {
        gate.refuses_before(&backend, wrong(), 401, "invalid_credential");
    }
    for request in [wrong(), alice()] {
        let answer = gate.refuses_before(&backend, request, 429, "too_many_attempts");
        assert!(answer.head.has("Retry-After"));
    }
    assert_eq!(reached(&gate, "max_failed_attempts_per_minute"), 2.0);
    let mut other = gate.connect_from(OTHER);
    other.send(alice().bytes());
    other.opened();
}

/// Ways to end before the tunnel began: the upstream refuses, breaks, is silent, or the client goes. And afterwards.
const ENDINGS: [fn(Wire, Conn); 6] = [
    |mut client, mut up| {
        up.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.read_answer().status(), 403);
    },
    |mut client, mut up| {
        up.send("garbage\r\n\r\n");
        assert_eq!(client.read_answer().status(), 502);
    },
    |mut client, _up| assert_eq!(client.read_answer().status(), 504),
    |client, mut up| {
        drop(client);
        up.read_to_close();
    },
    |client, mut up| {
        up.accept();
        drop(client.opened());
        up.read_to_close();
    },
    |client, mut up| {
        up.accept();
        let (mut client, _) = client.opened();
        up.reset();
        client.read_to_close();
    },
];

#[test]
fn places_come_back_however_a_tunnel_ends() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, "limits: { max_connections: 1 }\ntimeouts: { handshake: 300ms }"));
    for end in ENDINGS {
        let client = gate.send(alice());
        end(client, backend.next());
        eventually("the place is free", || gate.metric("wsbouncer_key_tunnels_open", &[("key", "alice")]) == 0.0);
    }
    let client = gate.send(alice());
    backend.next().accept();
    client.opened();
}

#[test]
fn handshakes_under_way_count_too() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, "limits: { max_connections: 2 }"));
    let pending: Vec<_> = (0..2).map(|_| (gate.send(alice()), backend.next())).collect();
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    drop(pending);
}

#[test]
fn a_reload_changes_the_limit_and_keeps_the_count() {
    let backend = Backend::echo();
    let limit = |count: u32| route(&backend, &format!("limits: {{ max_connections: {count} }}"));
    let gate = Gate::start(&limit(2));
    let mut open = vec![gate.open(alice()), gate.open(alice())];
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    gate.edit_config(&limit(3));
    open.push(gate.open(alice()));
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    gate.edit_config(&limit(1));
    assert_eq!(gate.connections().len(), 3, "a lower limit closes nobody");
    open.truncate(1);
    gate.wait_for_open(1);
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    open.clear();
    gate.wait_for_open(0);
    eventually("room again", || gate.ask_status(alice()) == 101);
}

// ---- handshakes under way

#[test]
fn an_address_has_so_many_handshakes_under_way() {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, "limits: { max_pending_per_address: 2 }\n"));
    let mut pending: Vec<_> = (0..2).map(|_| (gate.send(alice()), backend.next())).collect();
    let answer = gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    assert!(answer.head.has("Retry-After"));
    let line = gate.log_line(|line| line.get("id") == answer.field("request_id"));
    assert_eq!(line.get("cause"), "limits.max_pending_per_address is reached");
    assert_eq!(reached(&gate, "max_pending_per_address"), 1.0);
    let mut other = gate.connect_from(OTHER);
    other.send(alice().bytes());
    backend.next().accept();
    other.opened();
    // What has become a tunnel is none of them, and neither is what came to nothing.
    let (client, mut upstream) = pending.remove(0);
    upstream.accept();
    let _tunnel = (client.opened(), upstream);
    gate.wait_for_pending(1.0);
    let third = (gate.send(alice()), backend.next());
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    drop(pending);
    gate.wait_for_pending(1.0);
    let fourth = (gate.send(alice()), backend.next());
    drop((third, fourth));
    gate.wait_for_pending(0.0);
}

#[test]
fn an_address_with_far_too_many_is_not_even_told() {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, "limits: { max_pending_per_address: 2 }\n"));
    let _pending: Vec<_> = (0..2).map(|_| (gate.send(alice()), backend.next())).collect();
    // Two at a time may stay to read why.
    let mut flood: Vec<Wire> = (0..20).map(|_| gate.connect()).collect();
    let answers: Vec<Vec<u8>> = flood.iter_mut().map(|wire| wire.read_to_close().0).collect();
    let (told, untold): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.starts_with(b"HTTP/1.1 429"));
    assert!(told.len() >= 2 && !untold.is_empty() && untold.iter().all(Vec::is_empty), "{} were told", told.len());
    assert_eq!(reached(&gate, "max_pending_per_address"), 20.0);
    let refusals = gate.metric("wsbouncer_refusals_total", &[("reason", "too_many_connections")]);
    assert_eq!(refusals, f64::from(u32::try_from(told.len()).unwrap()));
    drop(flood);
    gate.wait_for_pending(2.0);
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
}

#[test]
fn behind_a_trusted_proxy_handshakes_under_way_are_the_callers() {
    let backend = Backend::manual();
    let yaml = "trusted_proxies: [ 127.0.0.0/8 ]\nlimits: { max_pending_per_address: 1 }\n";
    let gate = Gate::start(&small(&backend, yaml));
    let from = |address: &str| alice().with("X-Forwarded-For", address);
    let _silent: Vec<Wire> = (0..5).map(|_| gate.connect()).collect();
    let mut pending: Vec<_> = ["203.0.113.7", "203.0.113.8", "2001:db8::1", "2001:db8:0:1::1"]
        .map(|address| (gate.send(from(address)), backend.next()))
        .into();
    for address in ["203.0.113.7", "2001:db8::2"] {
        gate.refuses_before(&backend, from(address), 429, "too_many_connections");
    }
    let (client, mut upstream) = pending.remove(0);
    upstream.accept();
    client.opened();
    gate.wait_for_pending(3.0);
    let _again = (gate.send(from("203.0.113.7")), backend.next());
}

#[test]
fn a_key_has_so_many_handshakes_under_way() {
    let backend = Backend::manual();
    let gate =
        Gate::start(&small(&backend, "  - { id: bob, secret: bob-secret }\nlimits: { max_pending_per_key: 1 }\n"));
    let (client, mut upstream) = (gate.send(alice()), backend.next());
    let mut elsewhere = gate.connect_from(OTHER);
    elsewhere.send(alice().bytes());
    let answer = elsewhere.read_answer();
    let line = gate.check_refusal(&answer, 429, "too_many_connections");
    assert_eq!(
        (line.get("cause").as_str(), line.get("key").as_str()),
        ("limits.max_pending_per_key is reached", "alice")
    );
    assert_eq!(reached(&gate, "max_pending_per_key"), 1.0);
    let _bob = (gate.send(ws("/ws").with("X-Api-Key", "bob-secret")), backend.next());
    upstream.accept();
    let _tunnel = client.opened();
    let (client, upstream) = (gate.send(alice()), backend.next());
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    drop((client, upstream));
    gate.wait_for_pending(1.0);
    let _again = (gate.send(alice()), backend.next());
}

#[test]
fn one_address_does_not_take_all_places_of_those_who_are_waited_for() {
    let backend = Backend::manual();
    let first = "auth: [{ api_key: { extract_from: { first_message: { format: text } } } }]";
    let gate = Gate::start(&format!("limits: {{ max_waiting_per_address: 1 }}\n{}", route(&backend, first)));
    let waiting = gate.open(ws("/ws"));
    gate.refuses_before(&backend, ws("/ws"), 429, "too_many_connections");
    assert_eq!(reached(&gate, "max_waiting_per_address"), 1.0);
    let mut other = gate.connect_from(OTHER);
    other.send(ws("/ws").bytes());
    other.opened();
    drop(waiting);
    eventually("its place is free again", || gate.ask_status(ws("/ws")) == 101);
}

#[test]
fn one_address_does_not_take_all_places_of_those_who_read_a_refusal() {
    let backend = Backend::manual();
    let yaml = "limits: { max_declined_per_address: 1 }\n";
    let gate = Gate::start(&format!("{yaml}{}", route(&backend, "on_failure: close")));
    let mut reading = gate.send(ws("/ws"));
    assert_eq!(reading.read_head().first, "HTTP/1.1 101 Switching Protocols");
    gate.refuses(ws("/ws"), 401, "missing_credential");
    assert_eq!(reached(&gate, "max_declined_per_address"), 1.0);
    let mut other = gate.connect_from(OTHER);
    other.send(ws("/ws").bytes());
    assert_eq!(other.read_head().first, "HTTP/1.1 101 Switching Protocols");
    drop(reading);
    eventually("its place is free again", || gate.ask_status(ws("/ws")) == 101);
}

// ---- what holds where the file says nothing

#[test]
fn by_default_there_are_fewer_tunnels_than_descriptors_and_the_next_one_is_told() {
    let backend = Backend::echo();
    let gate = config(&small(&backend, "")).level("info").after("ulimit -n 400").start();
    let limits = gate.admin("GET", "/config").json()["limits"].clone();
    let count = |name: &str| usize::try_from(limits[name].as_u64().unwrap()).unwrap();
    let (most, of_one) = (count("max_connections"), count("max_connections_per_address"));
    let room = gate.metric("wsbouncer_connections_limit", &[]);
    assert!(of_one < most && (most as f64) < room && room < 200.0, "{limits}, room for {room}");
    let first: Vec<Wire> = (0..of_one).map(|_| gate.open(alice())).collect();
    gate.refuses_before(&backend, alice(), 429, "too_many_connections");
    assert_eq!(reached(&gate, "max_connections_per_address"), 1.0);
    let from_other = || {
        let mut other = gate.connect_from(OTHER);
        other.send(alice().bytes());
        other
    };
    let others: Vec<_> = (of_one..most).map(|_| from_other().opened()).collect();
    let answer = from_other().read_answer();
    gate.check_refusal(&answer, 503, "at_capacity");
    assert_eq!(reached(&gate, "max_connections"), 1.0);
    assert_eq!(reached(&gate, "open_files"), 0.0, "nobody had to wait to be accepted");
    drop((first, others));
    gate.wait_for_open(0);
    gate.open(alice());
}

#[test]
fn a_number_that_is_too_high_for_the_descriptors_counts_for_nothing() {
    let backend = Backend::echo();
    let gate = config(&small(&backend, "limits: { max_connections: 1000 }\n")).after("ulimit -n 400").start();
    let limits = gate.admin("GET", "/config").json()["limits"].clone();
    assert!(limits["max_connections"].as_u64().unwrap() < 200, "{limits}");
    gate.log_line(|line| line.is("more connections are allowed than there is room for"));
}
