//! The attacker: what is no handshake at all, too much of everything, and never an end.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::show;
use crate::support::{Backend, Gate, KEY, Wire, alice, config, eventually, small, ws};

/// A small generator that gives the same bytes everywhere (Knuth's constants).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap()
    }
}

/// A keyless handshake, valid or nearly so.
fn template(dice: &mut Dice) -> Vec<u8> {
    let request = ws(["/ws", "/", "/a/../b", "/%2e", "/ws?x-api-key=1", "*", "http://x/"][dice.roll(7)]);
    let request = match dice.roll(8) {
        0 => request.with("X-Api-Key", "wrong"),
        1 => request.offer("x-api-key, wrong"),
        2 => request.with("Transfer-Encoding", "chunked"),
        3 => request.with("Content-Length", "10").followed_by("0123456789"),
        4 => request.set("Connection", "keep-alive, Upgrade, X-Api-Key"),
        5 => request.with("X_Api_Key", "wrong").with("x.api.key", "wrong"),
        6 => request.followed_by(ws("/second").bytes()),
        _ => request,
    };
    request.bytes()
}

const TOKENS: [&[u8]; 16] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b": ",
    b" ",
    b"\t",
    b"X-Api-Key: ",
    b"Host: evil\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"Upgrade: h2c\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"GET /x HTTP/1.1\r\n",
];

pub fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let at = dice.roll(bytes.len());
    match dice.roll(7) {
        0 => bytes[at] = dice.byte(),
        1 => bytes[at] ^= 1 << dice.roll(8),
        2 => drop(bytes.drain(at..(at + 1 + dice.roll(30)).min(bytes.len()))),
        3 => drop(bytes.splice(at..at, TOKENS[dice.roll(TOKENS.len())].iter().copied())),
        4 => {
            let piece = bytes[at..(at + dice.roll(60)).min(bytes.len())].to_vec();
            let to = dice.roll(bytes.len());
            drop(bytes.splice(to..to, piece));
        }
        5 => bytes.truncate(at.max(1)),
        _ => bytes.insert(at, dice.byte()),
    }
    if bytes.is_empty() {
        bytes.push(dice.byte());
    }
}

fn hostile_head(dice: &mut Dice) -> Vec<u8> {
    if dice.roll(5) == 0 {
        return (0..1 + dice.roll(300)).map(|_| dice.byte()).collect();
    }
    let mut bytes = template(dice);
    for _ in 0..dice.roll(6) {
        mutate(dice, &mut bytes);
    }
    bytes
}

/// Status lines in it; the word may stand in a body too.
pub fn answers_in(bytes: &[u8]) -> usize {
    String::from_utf8_lossy(bytes).lines().filter(|line| line.starts_with("HTTP/1.1 ")).count()
}

#[test]
fn of_ten_thousand_random_heads_none_gets_through() {
    const HEADS: usize = 10_000;
    const THREADS: usize = 4;
    let backend = Backend::echo();
    let mut gate = config(&small(&backend, "timeouts: { head: 2s }\n")).level("info").start();
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let gate = &gate;
            scope.spawn(move || {
                let mut dice = Dice(seed as u64 + 1);
                for round in 0..HEADS / THREADS {
                    let bytes = hostile_head(&mut dice);
                    let mut client = gate.connect();
                    let _ = client.try_send(&bytes);
                    client.shutdown_write();
                    let (answer, _) = client.read_to_close();
                    let shown = String::from_utf8_lossy(&answer);
                    let context = || format!("seed {seed}, round {round}: {:?}", String::from_utf8_lossy(&bytes));
                    assert!(answer.is_empty() || shown.starts_with("HTTP/1.1 4"), "{shown} for {}", context());
                    assert!(answers_in(&answer) <= 1, "{shown} for {}", context());
                }
            });
        }
    });
    assert_eq!(backend.accepted(), 0, "{:?}", backend.heads());
    assert_eq!(gate.metric("wsbouncer_tunnels_opened_total", &[]), 0.0);
    assert!(gate.metric("wsbouncer_refusals_total", &[]) > 1000.0);
    gate.is_well();
    let mut client = gate.open(alice());
    client.send("still serves");
    client.expect("still serves");
}

#[test]
fn mutations_of_a_valid_handshake_with_a_key_never_confuse_two_requests() {
    // With a valid key a mutation may well be a valid request; but one connection is one request, and what stands behind
    // it is never another.
    const ROUNDS: usize = 100;
    let backend = Backend::answers("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    let mut gate = Gate::start(&small(&backend, "timeouts: { head: 150ms }\n"));
    thread::scope(|scope| {
        for seed in 0..4 {
            let gate = &gate;
            scope.spawn(move || {
                let mut dice = Dice(seed + 99);
                for round in 0..ROUNDS {
                    let second = alice().with("X-Request-Id", "second").bytes();
                    let first = alice().with("X-Request-Id", &format!("first-{seed}-{round}"));
                    let mut bytes = first.followed_by(second).bytes();
                    mutate(&mut dice, &mut bytes);
                    let mut client = gate.connect();
                    let _ = client.try_send(&bytes);
                    let (answer, _) = client.read_to_close();
                    assert!(answers_in(&answer) <= 1, "{}", show(&answer));
                }
            });
        }
    });
    let heads = backend.heads();
    assert!(heads.len() > ROUNDS, "many mutations do no harm: {}", heads.len());
    let mut ids: Vec<&str> = heads.iter().filter_map(|head| head.get("X-Request-Id")).collect();
    ids.sort_unstable();
    assert!(!ids.contains(&"second"), "a second request was served");
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "a request went up twice");
    assert!(heads.iter().all(|head| !head.text().contains(KEY)));
    gate.is_well();
}

#[test]
fn garbage_from_the_upstream_hurts_nobody() {
    let backend = Backend::serve(|mut conn| {
        let mut dice = Dice(conn.head.target().len() as u64);
        let mut bytes = conn.accept_bytes("X-Own: value\r\n", b"");
        for _ in 0..=dice.roll(5) {
            mutate(&mut dice, &mut bytes);
        }
        let _ = conn.try_send(&bytes);
        conn.linger();
    });
    let mut gate = config(&crate::support::route(&backend, "timeouts: { handshake: 2s }")).level("info").start();
    for n in 1..300 {
        let target = format!("/{}", "a".repeat(n));
        let mut client = gate.send(ws(&target).with("X-Api-Key", KEY));
        client.read_to_close();
    }
    gate.is_well();
    gate.wait_for_open(0);
}

#[test]
fn headers_without_end_are_cut_off() {
    let backend = Backend::manual();
    let mut gate = Gate::start(&small(&backend, ""));
    let before = gate.resident();
    let endless: [&[u8]; 3] = [b"X-A: y\r\n", b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b"\r\n"];
    for piece in endless {
        let mut client = gate.send("GET /ws HTTP/1.1\r\nHost: gate.test\r\nX-Start: ");
        let start = Instant::now();
        let mut sent = 0;
        while client.try_send(piece.repeat(64)).is_ok() {
            sent += piece.len() * 64;
            assert!(sent < 64 << 20 && start.elapsed() < Duration::from_secs(10), "it takes and takes");
        }
    }
    assert!(gate.resident().saturating_sub(before) < 8 << 20);
    assert_eq!(backend.accepted(), 0);
    gate.is_well();
}

#[test]
fn many_half_open_connections_do_not_keep_others_out() {
    const MANY: usize = 200;
    let backend = Backend::echo();
    let mut gate = Gate::start(&small(&backend, "timeouts: { head: 2s }\n"));
    let halves = ["", "G", "GET /ws HTTP/1.1\r\n", "GET /ws HTTP/1.1\r\nHost: gate.test\r\nX-Api-Key: "];
    let mut open: Vec<Wire> = (0..MANY).map(|n| gate.send(halves[n % halves.len()])).collect();
    let mut client = gate.open(alice());
    client.send("x");
    client.expect("x");
    for half in &mut open {
        half.read_to_close();
    }
    eventually("they are gone", || gate.metric("wsbouncer_connections_open", &[]) == 1.0);
    client.send("y");
    client.expect("y");
    gate.is_well();
}

#[test]
fn a_mute_upstream_ties_up_nothing_but_its_own() {
    let backend = Backend::serve(|mut conn| match conn.head.target() {
        "/mute" => drop(conn.read_some()),
        _ => {
            conn.accept();
            conn.echo();
        }
    });
    let mut gate = Gate::start(&crate::support::route(&backend, "timeouts: { handshake: 1s }"));
    let mut waiting: Vec<Wire> = (0..100).map(|_| gate.send(ws("/mute").with("X-Api-Key", KEY))).collect();
    let mut client = gate.open(alice());
    client.send("x");
    client.expect("x");
    for pending in &mut waiting {
        assert_eq!(pending.read_answer().status(), 504);
    }
    gate.wait_for_open(1);
    gate.is_well();
}

#[test]
fn without_descriptors_it_waits_and_goes_on_by_itself() {
    let backend = Backend::echo();
    let mut gate = config(&small(&backend, "timeouts: { head: 30s }\n")).after("ulimit -n 64").start();
    for _ in 0..2 {
        let clients: Vec<Wire> = (0..150).map(|_| gate.send(alice())).collect();
        eventually("as many as fit are open", || gate.connections().len() >= 10);
        assert_eq!(gate.admin("GET", "/readyz").status(), 200, "the operator still gets in");
        drop(clients);
        eventually("they are gone", || gate.connections().is_empty());
        let mut client = gate.open(alice());
        client.send("back");
        client.expect("back");
    }
    gate.is_well();
}

#[test]
fn without_descriptors_silent_clients_are_thrown_out_in_time() {
    let backend = Backend::echo();
    let mut gate = config(&small(&backend, "timeouts: { head: 300ms }\n")).after("ulimit -n 64").start();
    let silent: Vec<Wire> = (0..100).map(|_| gate.connect()).collect();
    let mut client = gate.send(alice()).opened().0;
    client.send("in");
    client.expect("in");
    drop(silent);
    gate.is_well();
}

#[test]
fn connections_that_end_before_they_are_accepted_are_no_trouble() {
    let backend = Backend::echo();
    let mut gate = config(&small(&backend, "")).level("info").start();
    for _ in 0..200 {
        gate.connect().reset();
    }
    gate.open(alice());
    gate.is_well();
}
