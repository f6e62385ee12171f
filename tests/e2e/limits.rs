//! How many: per route, per key, per key on a route, per address, in the whole process, and how many wrong tries.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::support::wire::Stream;
use crate::support::{Backend, Conn, Gate, KEY, Request, Wire, alice, eventually, route, small, ws};

/// Opens as many as there may be, is refused one more, and gets in again when one has left.
#[track_caller]
fn at_most(count: usize, gate: &Gate, backend: &Backend, request: &Request, status: u16, reason: &str) {
    let mut open: Vec<Wire> = (0..count).map(|_| gate.open(request)).collect();
    for _ in 0..2 {
        let answer = gate.refuses_before(backend, request, status, reason);
        let seconds = answer.head.get("Retry-After").and_then(|seconds| seconds.parse::<u32>().ok());
        assert!(seconds.is_some_and(|seconds| seconds > 0), "{:?}", answer.head);
        drop(open.pop());
        eventually("a place is free again", || gate.connections().len() == count - 1);
        open.push(gate.open(request));
    }
}

#[test]
fn a_route_has_room_for_so_many() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, "limits: { max_connections: 3 }"));
    at_most(3, &gate, &backend, &alice(), 429, "too_many_connections");
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
    drop((elsewhere, open, others));
    eventually("all places are free again", || gate.connections().is_empty());
    gate.open(alice());
}

#[test]
fn the_process_has_room_for_so_many() {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, "limits: { max_connections: 3 }\n"));
    at_most(3, &gate, &backend, &alice(), 503, "at_capacity");
}

/// Connects from this loopback address.
fn connect_from(from: [u8; 4], to: SocketAddr) -> Wire {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::from(from), 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    Wire::new(Stream::Tcp(TcpStream::from(socket)))
}

#[test]
fn an_address_holds_so_many() {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, "limits: { max_connections_per_address: 2 }\n"));
    at_most(2, &gate, &backend, &alice(), 429, "too_many_connections");
    let mut other = connect_from([127, 0, 0, 2], gate.addr);
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
    let mut other = connect_from([127, 0, 0, 2], gate.addr);
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
