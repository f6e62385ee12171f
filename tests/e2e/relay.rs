//! The tunnel: bytes both ways untouched, each direction to its own end, and a Close of the gate's only between frames.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::support::frames::{Frame, close, masked, plain, plain_header, text};
use crate::support::wire::{Ending, Stream};
use crate::support::{Backend, Conn, Gate, KEY, Wire, alice, eventually, pause, route, small, stand, ws};

/// A tunnel with both ends in hand.
#[track_caller]
fn tunnel(gate: &Gate, backend: &Backend) -> (Wire, Conn) {
    let client = gate.send(alice());
    let mut up = backend.next();
    up.accept();
    (client.opened().0, up)
}

fn stand_with(fields: &str) -> (Backend, Gate) {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, fields));
    (backend, gate)
}

/// The same rules without Alice.
fn revoke(gate: &Gate) {
    gate.edit_config(&gate.yaml().replace("id: alice, secret: ", "id: bob, secret: not-"));
}

/// Bytes that do not repeat soon.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn digest_of(mut stream: Stream, length: usize) -> Vec<u8> {
    let (mut hash, mut left) = (Sha256::new(), length);
    let mut buffer = vec![0; 65536];
    while left > 0 {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0 && count <= left, "{count} bytes, {left} were left");
        hash.update(&buffer[..count]);
        left -= count;
    }
    hash.finalize().to_vec()
}

// ---- untouched

#[test]
fn ten_megabytes_pass_both_ways_at_once_and_unchanged() {
    const SIZE: usize = 10 << 20;
    let (backend, gate) = stand();
    let (client, up) = tunnel(&gate, &backend);
    let (to_up, to_down) = (masked(2, &noise(SIZE, 1)), plain(2, &noise(SIZE, 2)));
    thread::scope(|scope| {
        let reads_up = scope.spawn(|| digest_of(up.handle(), to_up.len()));
        let reads_down = scope.spawn(|| digest_of(client.handle(), to_down.len()));
        scope.spawn(|| client.handle().write_all(&to_up).unwrap());
        scope.spawn(|| up.handle().write_all(&to_down).unwrap());
        assert!(reads_up.join().unwrap() == Sha256::digest(&to_up).as_slice());
        assert!(reads_down.join().unwrap() == Sha256::digest(&to_down).as_slice());
    });
    drop((client, up));
    let line = gate.log_line(|line| line.is("tunnel closed"));
    assert_eq!(line.number("up_bytes"), to_up.len() as u64);
    assert_eq!(line.number("down_bytes"), to_down.len() as u64);
    assert_eq!((line.number("up_messages"), line.number("down_messages")), (1, 1));
}

#[test]
fn bytes_that_are_no_frames_pass_as_well() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    let junk = noise(200_000, 3);
    let (sender, received) = (client.handle(), junk.clone());
    let write = thread::spawn(move || { sender }.write_all(&received).unwrap());
    up.expect(&junk);
    write.join().unwrap();
    let mut sender = up.handle();
    let sent = junk.clone();
    let write = thread::spawn(move || sender.write_all(&sent).unwrap());
    client.expect(&junk);
    write.join().unwrap();
}

#[test]
fn every_kind_of_frame_passes_bit_by_bit() {
    let (backend, gate) = stand();
    let (client, mut up) = tunnel(&gate, &backend);
    let mut compressed = masked(1, b"not really deflated");
    compressed[0] |= 0x40;
    let mut fragment = masked(1, b"first ");
    fragment[0] &= 0x7f;
    let all = [
        text("hello"),
        masked(2, &[0, 255, 10, 13]),
        masked(9, b"ping"),
        masked(10, b"pong"),
        masked(1, b""),
        masked(2, &noise(125, 1)),
        masked(2, &noise(126, 2)),
        masked(2, &noise(65535, 3)),
        masked(2, &noise(65536, 4)),
        fragment,
        masked(9, b"in between"),
        masked(0, b"last"),
        compressed,
    ]
    .concat();
    let mut sender = client.handle();
    let sent = all.clone();
    let write = thread::spawn(move || sender.write_all(&sent).unwrap());
    up.expect(&all);
    write.join().unwrap();
}

#[test]
fn frames_glued_to_the_101_arrive() {
    let (backend, gate) = stand();
    let client = gate.send(alice());
    let mut up = backend.next();
    let glued = [plain(1, b"welcome"), plain(2, &noise(20_000, 5))].concat();
    let yes = up.accept_bytes("", &glued);
    up.send(yes);
    let (mut client, _) = client.opened();
    client.expect(&glued);
    up.send(plain(1, b"more"));
    client.expect(plain(1, b"more"));
}

#[test]
fn single_bytes_are_not_held_back() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    for byte in text("one at a time") {
        client.send([byte]);
        up.expect([byte]);
        up.send([byte]);
        client.expect([byte]);
    }
}

#[test]
fn a_hundred_tunnels_do_not_mix() {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, ""));
    let mut clients: Vec<Wire> = (0..100).map(|_| gate.open(alice())).collect();
    for round in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(text(&format!("{n} in round {round}")));
        }
        for (n, client) in clients.iter_mut().enumerate() {
            client.expect(text(&format!("{n} in round {round}")));
        }
    }
    assert_eq!(gate.metric("wsbouncer_tunnels_open", &[("route", "default")]), 100.0);
    drop(clients);
    gate.wait_for_open(0);
    assert_eq!(gate.metric("wsbouncer_tunnels_closed_total", &[]), 100.0);
}

// ---- ends of their own

#[test]
fn a_conversation_that_the_client_closes_ends_with_its_code() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    client.send(close(1000));
    up.expect(close(1000));
    up.send(plain(8, &1000_u16.to_be_bytes()));
    assert_eq!(client.read_close(), (1000, String::new()));
    drop(up);
    assert_eq!(client.read_to_end(), b"");
    drop(client);
    let line = gate.closed("client");
    assert_eq!(line.get("code"), "1000");
}

#[test]
fn a_conversation_that_the_upstream_closes_ends_with_its_code() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    let goodbye = [&4000_u16.to_be_bytes()[..], b"over"].concat();
    up.send(plain(8, &goodbye));
    assert_eq!(client.read_close(), (4000, "over".into()));
    client.send(close(4000));
    up.expect(close(4000));
    drop(up);
    assert_eq!(client.read_to_end(), b"");
    drop(client);
    assert_eq!(gate.closed("upstream").get("code"), "4000");
}

#[test]
fn when_the_client_ends_its_direction_the_other_goes_on() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    client.send("the question");
    client.shutdown_write();
    assert_eq!(up.read_to_end(), b"the question");
    for n in 0..3 {
        up.send(format!("answer {n}"));
        client.expect(format!("answer {n}"));
    }
    drop(up);
    client.read_to_end();
    gate.closed("client");
}

#[test]
fn when_the_upstream_ends_its_direction_the_other_goes_on() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    up.send(plain(8, &1000_u16.to_be_bytes()));
    up.shutdown_write();
    assert_eq!(client.read_close().0, 1000);
    assert_eq!(client.read_to_end(), b"");
    for n in 0..3 {
        client.send(text(&format!("late {n}")));
        up.expect(text(&format!("late {n}")));
    }
    drop(client);
    assert_eq!(up.read_to_end(), b"");
    assert_eq!(gate.closed("upstream").get("code"), "1000");
}

#[test]
fn after_one_side_has_ended_a_silent_other_one_does_not_stay() {
    for client_first in [true, false] {
        let (backend, gate) = stand_with("timeouts: { half_close: 500ms }");
        let (mut client, mut up) = tunnel(&gate, &backend);
        let start = Instant::now();
        if client_first {
            client.shutdown_write();
            assert_eq!(up.read_to_end(), b"");
        } else {
            up.send(plain(8, &1000_u16.to_be_bytes()));
            up.shutdown_write();
            client.read_close();
        }
        client.read_to_close();
        up.read_to_close();
        assert!(start.elapsed() > Duration::from_millis(400), "{:?}", start.elapsed());
        gate.wait_for_open(0);
        gate.closed("half_close_timeout");
    }
}

#[test]
fn traffic_keeps_a_half_closed_tunnel() {
    let (backend, gate) = stand_with("timeouts: { half_close: 600ms }");
    let (mut client, mut up) = tunnel(&gate, &backend);
    client.shutdown_write();
    up.read_to_end();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        up.send(plain(1, b"still here"));
        client.expect(plain(1, b"still here"));
        pause(Duration::from_millis(20));
    }
}

// ---- lost

#[test]
fn an_upstream_that_is_lost_is_told_as_1014() {
    for reset in [false, true] {
        let (backend, gate) = stand();
        let (mut client, mut up) = tunnel(&gate, &backend);
        up.send(plain(1, b"last words"));
        client.expect(plain(1, b"last words"));
        if reset {
            up.reset();
        } else {
            up.close();
        }
        assert_eq!(client.read_close(), (1014, "upstream_lost".into()));
        client.read_to_close();
        drop(client);
        let line = gate.closed("upstream_lost");
        assert_eq!(line.get("code"), "1014");
        assert_eq!(gate.metric("wsbouncer_tunnels_closed_total", &[("cause", "upstream_lost")]), 1.0);
    }
}

/// The word in the log is the one that the client was told, whatever happens until it has gone.
#[test]
fn who_was_told_of_a_lost_upstream_is_not_revoked_after_that() {
    let (backend, gate) = stand();
    let (mut client, up) = tunnel(&gate, &backend);
    up.close();
    assert_eq!(client.read_close(), (1014, "upstream_lost".into()));
    revoke(&gate);
    assert_eq!(gate.closed("upstream_lost").get("code"), "1014");
    client.read_to_close();
}

#[test]
fn an_upstream_that_is_lost_within_a_frame_is_not_told() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    let half = [plain_header(2, 1000), vec![b'x'; 400]].concat();
    up.send(&half);
    client.expect(&half);
    up.close();
    assert_eq!(client.read_to_close().0, b"", "a Close in the middle of a frame would be payload");
    drop(client);
    gate.closed("upstream_lost");
}

#[test]
fn between_fragments_is_between_frames() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    let mut fragment = plain(1, b"to be continued");
    fragment[0] &= 0x7f;
    up.send(&fragment);
    client.expect(&fragment);
    up.close();
    assert_eq!(client.read_close().0, 1014);
}

#[test]
fn a_client_that_is_lost_ends_the_tunnel() {
    let (backend, gate) = stand();
    let (client, mut up) = tunnel(&gate, &backend);
    client.reset();
    up.read_to_close();
    gate.closed("client_lost");
    gate.wait_for_open(0);
}

// ---- the gate's own Close

/// The Close that the upstream gets: masked, 1001.
#[track_caller]
fn expect_going_away(up: &mut Conn) {
    let frame = up.read_frame();
    assert!(frame.masked, "{frame:?}");
    assert_eq!(frame.close().map(|(code, _)| code), Some(1001), "{frame:?}");
}

#[test]
fn an_idle_tunnel_is_closed() {
    let (backend, gate) = stand_with("timeouts: { idle: 400ms }");
    let (mut client, mut up) = tunnel(&gate, &backend);
    assert_eq!(client.read_close(), (1001, "idle_timeout".into()));
    expect_going_away(&mut up);
    client.read_to_close();
    up.read_to_close();
    assert_eq!(gate.closed("idle_timeout").get("code"), "1001");
}

#[test]
fn traffic_in_either_direction_keeps_a_tunnel_from_being_idle() {
    let (backend, gate) = stand_with("timeouts: { idle: 700ms }");
    let (mut client, mut up) = tunnel(&gate, &backend);
    let start = Instant::now();
    let mut turn = 0;
    while start.elapsed() < Duration::from_secs(2) {
        turn += 1;
        if turn % 20 < 10 {
            client.send(text("up"));
            up.expect(text("up"));
        } else {
            up.send(plain(1, b"down"));
            client.expect(plain(1, b"down"));
        }
        pause(Duration::from_millis(20));
    }
    assert_eq!(client.read_close().1, "idle_timeout");
}

#[test]
fn no_tunnel_lives_longer_than_its_route_says() {
    let (backend, gate) = stand_with("timeouts: { max_lifetime: 500ms }");
    let (mut client, mut up) = tunnel(&gate, &backend);
    let start = Instant::now();
    let mut writer = up.handle();
    let traffic = thread::spawn(move || {
        while writer.write_all(&plain(1, b"busy")).is_ok() {
            pause(Duration::from_millis(5));
        }
    });
    loop {
        let frame = client.read_frame();
        if let Some(close) = frame.close() {
            assert_eq!(close, (1001, "max_lifetime".into()));
            break;
        }
        assert_eq!(frame.payload, b"busy");
    }
    assert!(start.elapsed() > Duration::from_millis(400) && start.elapsed() < Duration::from_secs(5));
    expect_going_away(&mut up);
    drop(client);
    traffic.join().unwrap();
    gate.closed("max_lifetime");
}

#[test]
fn a_close_of_ours_waits_for_the_end_of_the_frame_under_way() {
    let (backend, gate) = stand_with("");
    let (mut client, mut up) = tunnel(&gate, &backend);
    let big = plain(2, &noise(300_000, 7));
    let (first, rest) = big.split_at(100_000);
    up.send(first);
    client.expect(first);
    let upload = masked(2, &noise(50_000, 8));
    client.send(&upload[..20_000]);
    up.expect(&upload[..20_000]);
    // The rest of both frames comes right after the order to close.
    gate.replace("wsbouncer.yaml", &gate.yaml().replace("id: alice, secret: ", "id: bob, secret: not-"));
    gate.log_line(|line| line.is("reloaded"));
    up.send(rest);
    client.send(&upload[20_000..]);
    client.expect(rest);
    assert_eq!(client.read_close(), (4401, "revoked".into()));
    up.expect(&upload[20_000..]);
    expect_going_away(&mut up);
    client.read_to_close();
    assert_eq!(gate.closed("revoked").get("code"), "4401");
}

#[test]
fn a_frame_that_never_ends_is_cut_off_without_a_close() {
    let (backend, gate) = stand_with("");
    let (mut client, mut up) = tunnel(&gate, &backend);
    let half = [plain_header(2, 1 << 20), vec![b'x'; 1000]].concat();
    up.send(&half);
    client.expect(&half);
    let half = &masked(2, &[b'y'; 1000])[..500];
    client.send(half);
    up.expect(half);
    let start = Instant::now();
    revoke(&gate);
    assert_eq!(client.read_to_close().0, b"");
    assert_eq!(up.read_to_close().0, b"");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    gate.closed("revoked");
}

#[test]
fn a_peer_that_answers_the_close_is_let_go_at_once_and_in_order() {
    let (backend, gate) = stand_with("");
    let (mut client, mut up) = tunnel(&gate, &backend);
    revoke(&gate);
    assert_eq!(client.read_close().0, 4401);
    client.send(close(4401));
    expect_going_away(&mut up);
    up.send(plain(8, &1001_u16.to_be_bytes()));
    assert_eq!(client.read_to_close(), (Vec::new(), Ending::Eof));
    assert_eq!(up.read_to_close(), (Vec::new(), Ending::Eof));
}

#[test]
fn a_peer_that_is_already_closing_gets_no_second_close() {
    let (backend, gate) = stand_with("");
    let (mut client, mut up) = tunnel(&gate, &backend);
    up.send(plain(8, &1000_u16.to_be_bytes()));
    assert_eq!(client.read_close().0, 1000);
    revoke(&gate);
    assert_eq!(client.read_to_close().0, b"");
}

#[test]
fn bytes_that_are_no_frames_are_never_followed_by_a_close() {
    let (backend, gate) = stand_with("");
    let (mut client, mut up) = tunnel(&gate, &backend);
    // Reserved opcodes and bits: whatever this is, a frame boundary in it is a guess.
    let junk = [0xff; 64];
    up.send(junk);
    client.expect(junk);
    revoke(&gate);
    assert_eq!(client.read_to_close().0, b"");
    gate.closed("revoked");
}

// ---- TCP keepalive

/// Which timer the kernel runs for a connection of the gate's, as /proc/net/tcp has it: 2 is keepalive.
fn timer_of(local: Option<u16>, remote: u16) -> u8 {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = |address: &str| u16::from_str_radix(address.split(':').nth(1).unwrap(), 16).unwrap();
    let found = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        const ESTABLISHED: &str = "01";
        let is_it =
            fields[3] == ESTABLISHED && port(fields[2]) == remote && local.is_none_or(|local| port(fields[1]) == local);
        is_it.then(|| fields[5].split(':').next().unwrap().parse().unwrap())
    });
    found.unwrap_or_else(|| panic!("no connection from {local:?} to {remote} in {table}"))
}

/// A service on this machine is not asked after: it cannot vanish without its kernel saying so.
#[test]
fn tcp_asks_after_silent_clients() {
    let backend = Backend::manual();
    let config = |after| small(&backend, &format!("timeouts: {{ tcp_keepalive: {after} }}\n"));
    let gate = Gate::start(&config("off"));
    for (after, timer) in [("45s", 2), ("off", 0)] {
        gate.reloads(|| gate.edit_config(&config(after)));
        let (client, _up) = tunnel(&gate, &backend);
        let Stream::Tcp(socket) = client.handle() else { unreachable!() };
        let callers = socket.local_addr().unwrap().port();
        let services = backend.address().rsplit(':').next().unwrap().parse().unwrap();
        eventually("what was sent is acknowledged, and the timer is the one that is wanted", || {
            timer_of(Some(gate.addr.port()), callers) == timer && timer_of(None, services) == 0
        });
    }
}

// ---- back-pressure

const PATIENCE: Duration = Duration::from_millis(400);
const MUCH: usize = 256 << 20;

#[test]
fn a_client_that_stops_reading_stops_the_upstream() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    let before = gate.resident();
    up.send(plain_header(2, MUCH));
    let sent = up.send_until_stuck(PATIENCE, MUCH);
    assert!(sent < MUCH, "nothing pushes back");
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes for one slow reader");
    // It still works in the other direction, and nothing is lost when the reader wakes up.
    client.send(text("still here"));
    up.expect(text("still here"));
    client.expect(plain_header(2, MUCH));
    assert!(client.read_exact(sent).iter().all(|byte| *byte == b'x'));
}

#[test]
fn an_upstream_that_stops_reading_stops_the_client() {
    let (backend, gate) = stand();
    let (mut client, mut up) = tunnel(&gate, &backend);
    let before = gate.resident();
    let sent = client.send_until_stuck(PATIENCE, MUCH);
    assert!(sent < MUCH, "nothing pushes back");
    assert!(gate.resident().saturating_sub(before) < 4 << 20);
    up.send(plain(1, b"still here"));
    client.expect(plain(1, b"still here"));
    assert!(up.read_exact(sent).iter().all(|byte| *byte == b'x'));
}

#[test]
fn a_reader_that_never_reads_again_can_still_be_revoked() {
    let (backend, gate) = stand_with("");
    let (client, mut up) = tunnel(&gate, &backend);
    up.send_until_stuck(PATIENCE, MUCH);
    let start = Instant::now();
    revoke(&gate);
    gate.closed("revoked");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    gate.wait_for_open(0);
    drop(client);
}

#[test]
fn what_a_lost_upstream_had_sent_arrives_before_the_word_about_it() {
    let (backend, gate) = stand();
    let (mut client, up) = tunnel(&gate, &backend);
    let messages: Vec<u8> = (0..40).flat_map(|n| plain(2, &noise(50_000, n))).collect();
    let mut sender = up.handle();
    let sent = messages.clone();
    // It sends all it has and is gone, while the client has not begun to read.
    let upstream = thread::spawn(move || {
        sender.write_all(&sent).unwrap();
        up.close();
    });
    pause(Duration::from_millis(300));
    client.expect(&messages);
    assert_eq!(client.read_close(), (1014, "upstream_lost".into()));
    upstream.join().unwrap();
}

#[test]
fn an_upstream_that_says_yes_and_is_gone_is_a_tunnel_that_ended() {
    let (backend, gate) = stand();
    let client = gate.send(alice());
    let mut up = backend.next();
    let yes = up.accept_bytes("", &plain(1, b"only this"));
    up.send(yes);
    up.close();
    let (mut client, _) = client.opened();
    client.expect(plain(1, b"only this"));
    assert_eq!(client.read_close().0, 1014);
    drop(client);
    gate.closed("upstream_lost");
}

/// Whole frames, then perhaps a Close of the gate's, then nothing: or whole frames and a piece of one, and no Close.
#[track_caller]
fn check_frames(bytes: &[u8], sent: &Frame) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some((frame, after)) = Frame::split(rest) else {
            assert!(plain(sent.opcode, &sent.payload).starts_with(rest), "a Close within a frame");
            return;
        };
        rest = after;
        match frame.close() {
            Some((code, _)) => assert_eq!((code, rest.len()), (4401, 0), "the Close is the last word"),
            None => assert!(frame == *sent, "a frame was damaged"),
        }
    }
}

#[test]
fn a_slow_reader_is_never_given_a_close_within_a_frame() {
    for size in [10, 1000, 100_000] {
        let (backend, gate) = stand_with("");
        let (mut client, up) = tunnel(&gate, &backend);
        let payload = noise(size, 11);
        let frame = plain(2, &payload);
        let mut sender = up.handle();
        let flood = thread::spawn(move || while sender.write_all(&frame).is_ok() {});
        // Behind: the gate holds what the client has not taken yet.
        pause(Duration::from_millis(200));
        gate.replace("wsbouncer.yaml", &gate.yaml().replace("id: alice, secret: ", "id: bob, secret: not-"));
        gate.log_line(|line| line.is("reloaded"));
        let (bytes, _) = client.read_to_close();
        check_frames(&bytes, &Frame { opcode: 2, masked: false, payload });
        drop((client, up));
        flood.join().unwrap();
    }
}

#[test]
fn idle_tunnels_keep_no_buffer() {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, ""));
    let message = masked(2, &noise(50_000, 12));
    let used = || {
        let mut client = gate.open(alice());
        client.send(&message);
        client.expect(&message);
        client
    };
    let warm: Vec<Wire> = (0..50).map(|_| used()).collect();
    let before = gate.resident();
    let count = 200;
    let idle: Vec<Wire> = (0..count).map(|_| used()).collect();
    let each = gate.resident().saturating_sub(before) / count;
    // One buffer of the usual 8 KiB for each direction would be twice this.
    assert!(each < 8 * 1024, "{each} bytes for a tunnel that has become idle");
    drop((warm, idle));
}

#[test]
fn frames_of_this_file_are_frames() {
    // The helpers against a foreign implementation, so that the tests above mean what they say.
    use tokio_tungstenite::tungstenite::Message;
    let backend = Backend::echo_messages();
    let gate = Gate::start(&small(&backend, ""));
    let mut client = gate.open(ws("/ws").with("X-Api-Key", KEY));
    client.send(text("hello"));
    assert_eq!(client.read_frame(), Frame { opcode: 1, masked: false, payload: b"hello".to_vec() });
    client.send(masked(2, &noise(70_000, 9)));
    assert_eq!(client.read_frame().payload, noise(70_000, 9));
    let mut socket = client.into_websocket(tokio_tungstenite::tungstenite::protocol::Role::Client);
    socket.send(Message::text("foreign")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("foreign"));
}

/// Whoever has ended its own direction is thrown out all the same, and the log and the Close say so.
#[test]
fn what_is_ordered_is_the_cause_even_after_one_side_has_ended() {
    for with_close in [false, true] {
        let (backend, gate) = stand_with("");
        let (mut client, mut up) = tunnel(&gate, &backend);
        if with_close {
            client.send(close(1000));
            up.expect(close(1000));
        } else {
            client.shutdown_write();
            up.read_to_end();
        }
        up.send(plain(1, b"it goes on"));
        client.expect(plain(1, b"it goes on"));
        revoke(&gate);
        assert_eq!(client.read_close(), (4401, "revoked".into()), "after a Close: {with_close}");
        assert_eq!(gate.closed("revoked").get("code"), "4401");
    }
}
