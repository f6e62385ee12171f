//! Attacks on what there is a finite amount of, by their numbers in the list of known attacks: handshakes that never end,
//! readers that never read, connections that nobody needs any more, descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::client::plain_get;
use crate::support::frames::{close, masked_header, plain, plain_header, text};
use crate::support::{Backend, Conn, Gate, KEY, Wire, alice, config, eventually, pause, route, small, ws};

/// Another loopback address than clients usually have.
const OTHER: [u8; 4] = [127, 0, 0, 2];

/// A tunnel with both ends in hand.
#[track_caller]
fn tunnel(gate: &Gate, backend: &Backend) -> (Wire, Conn) {
    let client = gate.send(alice());
    let mut up = backend.next();
    up.accept();
    (client.opened().0, up)
}

/// All that was held for this tunnel is given back: the route has room for one, and takes the next.
#[track_caller]
fn is_given_back(gate: &Gate, backend: &Backend, cause: &str) {
    gate.wait_for_open(0);
    assert_eq!(gate.metric("wsbouncer_tunnels_closed_total", &[("cause", cause)]), 1.0);
    eventually("it holds nothing", || gate.metric("wsbouncer_connections_open", &[]) == 0.0);
    let (mut client, mut up) = tunnel(gate, backend);
    client.send(text("the next one"));
    up.expect(text("the next one"));
}

#[test]
fn t109_half_open_upgrades_take_no_more_than_the_share_of_one_address() {
    const SHARE: usize = 20;
    let backend = Backend::serve(|mut conn| match conn.head.target() {
        "/mute" => drop(conn.read_some()),
        _ => {
            conn.accept();
            conn.echo();
        }
    });
    let yaml = format!("limits: {{ max_pending_per_address: {SHARE} }}\n");
    let gate = Gate::start(&format!("{yaml}{}", route(&backend, "timeouts: { handshake: 1500ms }")));
    let mute = ws("/mute").with("X-Api-Key", KEY);
    let mut all: Vec<Wire> = (0..100).map(|_| gate.connect()).collect();
    // Whoever is one too many may be gone already.
    let sent: Vec<bool> = all.iter_mut().map(|wire| wire.try_send(mute.bytes()).is_ok()).collect();
    assert!(sent.iter().filter(|sent| **sent).count() >= SHARE);
    let mut other = gate.connect_from(OTHER);
    other.send(alice().bytes());
    let mut other = other.opened().0;
    other.send("x");
    other.expect("x");
    let answers: Vec<String> = all.iter_mut().map(|wire| String::from_utf8(wire.read_to_close().0).unwrap()).collect();
    let count = |status: &str| answers.iter().filter(|answer| answer.starts_with(status)).count();
    assert_eq!(count("HTTP/1.1 504"), SHARE);
    assert_eq!((backend.accepted(), count("HTTP/1.1 101")), (SHARE + 1, 0));
    assert!(count("HTTP/1.1 429") <= SHARE, "more were told than may stay for it");
    gate.wait_for_pending(0.0);
    gate.open(alice());
}

#[test]
fn t110_interim_answers_keep_nobody_beyond_the_handshake() {
    let piece = b"HTTP/1.1 100 Continue\r\n\r\n";
    // As fast as it can, a few in each second, and one that never ends.
    let fast = Backend::serve(move |conn| conn.flood(piece, usize::MAX));
    let slow = Backend::serve(move |mut conn| {
        while conn.try_send(piece).is_ok() {
            pause(Duration::from_millis(100));
        }
    });
    let long = Backend::serve(|mut conn| {
        let _ = conn.try_send("HTTP/1.1 103 Early Hints\r\nLink: ");
        conn.flood(b"aaaaaaaaaaaaaaaa", usize::MAX);
    });
    for (backend, status, reason) in
        [(fast, 502, "upstream_bad_handshake"), (slow, 504, "upstream_timeout"), (long, 502, "upstream_bad_handshake")]
    {
        let gate = Gate::start(&route(&backend, "limits: { max_connections: 1 }\ntimeouts: { handshake: 700ms }"));
        let before = gate.resident();
        for _ in 0..2 {
            let start = Instant::now();
            gate.refuses(alice(), status, reason);
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
            gate.wait_for_pending(0.0);
        }
        assert!(gate.resident().saturating_sub(before) < 8 << 20);
    }
}

/// Room for one tunnel that may be stuck for so long.
fn stand_with_stall(stall: &str) -> (Backend, Gate) {
    let backend = Backend::manual();
    let fields = format!("limits: {{ max_connections: 1 }}\ntimeouts: {{ write_stall: {stall} }}");
    let gate = Gate::start(&route(&backend, &fields));
    (backend, gate)
}

const MUCH: usize = 256 << 20;

#[test]
fn t111_a_client_that_does_not_read_is_closed() {
    let (backend, gate) = stand_with_stall("700ms");
    let (client, mut up) = tunnel(&gate, &backend);
    let before = gate.resident();
    let sent = up.send_until_stuck(Duration::from_millis(300), MUCH);
    assert!(sent < MUCH, "nothing pushes back");
    let line = gate.closed("write_stall");
    assert_eq!(line.get("direction"), "down");
    assert!(gate.resident().saturating_sub(before) < 4 << 20);
    up.read_to_close();
    drop((client, up));
    is_given_back(&gate, &backend, "write_stall");
}

#[test]
fn t112_an_upstream_that_does_not_read_is_closed_and_its_client_told() {
    let (backend, gate) = stand_with_stall("700ms");
    let (mut client, up) = tunnel(&gate, &backend);
    let sent = client.send_until_stuck(Duration::from_millis(300), MUCH);
    assert!(sent < MUCH, "nothing pushes back");
    assert_eq!(client.read_close(), (1001, "write_stall".into()));
    let line = gate.closed("write_stall");
    assert_eq!((line.get("direction"), line.get("code")), ("up".to_owned(), "1001".to_owned()));
    client.read_to_close();
    drop((client, up));
    is_given_back(&gate, &backend, "write_stall");
}

/// One who does not read may have the gate hold half a megabyte for each direction; all of them together no such thing.
#[test]
fn t111_many_who_do_not_read_hold_no_more_than_a_few() {
    const MANY: usize = 120;
    // Frames that are looked at are buffered in another way.
    for fields in ["", "limits: { max_message_bytes: 1GiB }"] {
        let backend = Backend::manual();
        let gate = Gate::start(&route(&backend, fields));
        let before = gate.resident();
        let mut all: Vec<(Wire, Conn)> = (0..MANY).map(|_| tunnel(&gate, &backend)).collect();
        thread::scope(|scope| {
            for (client, up) in &mut all {
                client.send(masked_header(2, MUCH));
                up.send(plain_header(2, MUCH));
                scope.spawn(|| client.send_until_stuck(Duration::from_millis(300), MUCH));
                scope.spawn(|| up.send_until_stuck(Duration::from_millis(300), MUCH));
            }
        });
        let grown = gate.resident().saturating_sub(before);
        let buffered = || gate.metric("wsbouncer_buffered_bytes", &[]);
        println!("{} kB for {MANY} tunnels, {} bytes of it buffered", grown >> 10, buffered());
        assert!(grown < 30 << 20, "{grown} bytes");
        assert!((1e6..24e6).contains(&buffered()));
        drop(all);
        eventually("it buffers nothing", || buffered() == 0.0);
    }
}

#[test]
fn t111_a_client_that_does_not_read_its_plain_answer_is_closed() {
    let backend = Backend::manual();
    let fields = "http: forward\nlimits: { max_connections: 1 }\ntimeouts: { write_stall: 700ms }";
    let gate = Gate::start(&route(&backend, fields));
    let client = gate.send(plain_get("/ws").with("X-Api-Key", KEY));
    let mut up = backend.next();
    up.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n"));
    let sent = up.send_until_stuck(Duration::from_millis(300), MUCH);
    assert!(sent < MUCH, "nothing pushes back");
    gate.log_line(|line| line.is("forwarded") && line.get("cause") == "write_stall");
    up.read_to_close();
    drop((client, up));
    assert_eq!(gate.metric("wsbouncer_forwards_ended_total", &[("cause", "write_stall")]), 1.0);
    gate.wait_for_open(0);
    tunnel(&gate, &backend);
}

#[test]
fn t111_whoever_reads_slowly_is_not_stuck() {
    let (backend, gate) = stand_with_stall("1s");
    let (mut client, up) = tunnel(&gate, &backend);
    let stop = Arc::new(AtomicBool::new(false));
    let (told, mut sender) = (stop.clone(), up.handle());
    let frame = plain(2, &[b'x'; 100_000]);
    let flood = thread::spawn(move || {
        use std::io::Write as _;
        while !told.load(Ordering::SeqCst) && sender.write_all(&frame).is_ok() {}
    });
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        assert!(!client.read_exact(1 << 20).is_empty());
        pause(Duration::from_millis(100));
    }
    assert_eq!(gate.connections().len(), 1);
    stop.store(true, Ordering::SeqCst);
    drop((client, up));
    flood.join().unwrap();
}

#[test]
fn t111_what_waits_for_nobody_is_not_stuck() {
    // Stuck for a moment, then silent for longer than that may last: nothing waits any more.
    let (backend, gate) = stand_with_stall("1s");
    let (mut client, mut up) = tunnel(&gate, &backend);
    let sent = up.send_until_stuck(Duration::from_millis(200), MUCH);
    client.read_exact(sent);
    pause(Duration::from_millis(1500));
    client.send(text("still here"));
    up.expect(text("still here"));
}

#[test]
fn t113_a_half_closed_tunnel_is_not_kept_for_a_side_that_says_nothing() {
    for client_first in [true, false] {
        let backend = Backend::manual();
        let fields = "limits: { max_connections: 1 }\ntimeouts: { half_close: 500ms }";
        let gate = Gate::start(&route(&backend, fields));
        let (mut client, mut up) = tunnel(&gate, &backend);
        if client_first {
            client.shutdown_write();
            up.read_to_end();
        } else {
            up.send(close(1000));
            up.shutdown_write();
            client.read_close();
        }
        // Neither of the two goes by itself.
        gate.closed("half_close_timeout");
        client.read_to_close();
        up.read_to_close();
        drop((client, up));
        is_given_back(&gate, &backend, "half_close_timeout");
    }
}

#[test]
fn t114_idle_tunnels_do_not_stay() {
    const MANY: usize = 100;
    let backend = Backend::manual();
    let fields = format!("limits: {{ max_connections: {MANY} }}\ntimeouts: {{ idle: 800ms }}");
    let gate = Gate::start(&route(&backend, &fields));
    let mut all: Vec<(Wire, Conn)> = (0..MANY).map(|_| tunnel(&gate, &backend)).collect();
    for (client, up) in &mut all {
        assert_eq!(client.read_close(), (1001, "idle_timeout".into()));
        up.read_to_close();
        client.read_to_close();
    }
    gate.wait_for_open(0);
    let closed = gate.metric("wsbouncer_tunnels_closed_total", &[("cause", "idle_timeout")]);
    assert_eq!(closed, f64::from(u32::try_from(MANY).unwrap()));
    eventually("nothing is left of them", || gate.metric("wsbouncer_connections_open", &[]) == 0.0);
    drop(all);
    tunnel(&gate, &backend);
}

#[test]
fn t115_with_few_descriptors_who_is_one_too_many_waits_and_gets_in() {
    let backend = Backend::echo();
    let mut gate = config(&small(&backend, "timeouts: { head: 30s }\n")).after("ulimit -n 64").start();
    let clients: Vec<Wire> = (0..200).map(|_| gate.send(alice())).collect();
    eventually("as many as fit are open", || gate.connections().len() >= 10);
    let reached = || gate.metric("wsbouncer_limits_reached_total", &[("limit", "open_files")]);
    assert!(reached() > 0.0);
    assert_eq!(gate.metric("wsbouncer_accept_errors_total", &[]), 0.0, "descriptors are kept for what is no tunnel");
    gate.edit_config(&small(&backend, "timeouts: { head: 29s }\n"));
    drop(clients);
    gate.wait_for_open(0);
    let mut client = gate.open(alice());
    client.send("back");
    client.expect("back");
    gate.is_well();
}

/// The limit of open files of a running process.
fn set_open_files(gate: &Gate, soft: u64) {
    let hard = getrlimit(Resource::Nofile).maximum;
    let pid = Pid::from_raw(i32::try_from(gate.pid()).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(soft), maximum: hard }).unwrap();
}

#[test]
fn t115_out_of_descriptors_it_neither_spins_nor_stops() {
    let backend = Backend::echo();
    let mut gate = Gate::start(&small(&backend, ""));
    let mut before = gate.open(alice());
    // Fewer than it has already: the next one cannot be accepted, whatever was reckoned at the start.
    set_open_files(&gate, 8);
    let mut waiting: Vec<Wire> = (0..20).map(|_| gate.send(alice())).collect();
    gate.log_line(|line| line.is("cannot accept connections, trying again"));
    let ticks = gate.cpu_ticks();
    pause(Duration::from_secs(2));
    let spent = gate.cpu_ticks() - ticks;
    before.send("on");
    before.expect("on");
    set_open_files(&gate, 20_000);
    for client in waiting.drain(..) {
        let mut client = client.opened().0;
        client.send("in");
        client.expect("in");
    }
    // A hundred of them are a second.
    assert!(spent < 50, "{spent} hundredths of a second to do nothing for two seconds");
    let errors = gate.metric("wsbouncer_accept_errors_total", &[]);
    assert!((1.0..2000.0).contains(&errors), "{errors}");
    gate.is_well();
}

#[test]
fn t106_a_connection_without_a_word_costs_nothing_at_first() {
    let backend = Backend::echo();
    let gate = config(&small(&backend, "timeouts: { head: 1s }\n")).start();
    let start = Instant::now();
    let mut silent = gate.connect();
    let mut other = gate.connect();
    other.send(b"G");
    gate.wait_for_pending(1.0);
    // Kernels count such seconds by their own timers: not before, and not long after.
    if start.elapsed() < Duration::from_millis(800) {
        assert_eq!(gate.metric("wsbouncer_connections_open", &[]), 1.0);
    }
    assert_eq!(silent.read_to_end(), b"");
    assert!(start.elapsed() > Duration::from_millis(1800), "{:?}", start.elapsed());
    assert!(other.read_head().first.starts_with("HTTP/1.1 408"));
}

#[test]
fn t116_one_address_leaves_room_for_others() {
    let backend = Backend::echo();
    let gate = config(&small(&backend, "timeouts: { head: 30s }\n")).level("info").after("ulimit -n 400").start();
    let share = gate.admin("GET", "/config").json()["limits"]["max_pending_per_address"].as_u64().unwrap();
    let room = gate.metric("wsbouncer_connections_limit", &[]);
    assert!((2 * share) < 180 && room > 2.0 * 64.0, "{share} of {room}");
    // More than there is room for at all, and none of them says a word.
    let silent: Vec<Wire> = (0..300).map(|_| gate.connect()).collect();
    let mut other = gate.connect_from(OTHER);
    other.send(alice().bytes());
    let mut other = other.opened().0;
    other.send("x");
    other.expect("x");
    // The system keeps them for a second. What it hands over then is more than the share of one address.
    let turned_away = || gate.metric("wsbouncer_limits_reached_total", &[("limit", "max_pending_per_address")]);
    eventually("most of them are turned away", || turned_away() >= 300.0 - 2.0 * 64.0);
    let mut another = gate.connect_from(OTHER);
    another.send(alice().bytes());
    another.opened();
    drop(silent);
    gate.wait_for_pending(0.0);
    gate.open(alice());
}
