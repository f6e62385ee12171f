//! The gate speaks WebSocket where a route asks for it: signs of life, sizes and rates of messages, the rules of framing.

use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::frames::{Frame, close, masked, plain, plain_header, text};
use crate::support::wire::Ending;
use crate::support::{Backend, Conn, Gate, KEY, Wire, alice, eventually, pause, route};

/// One route with these fields, and a tunnel over it with both ends in hand.
#[track_caller]
fn tunnel(fields: &str) -> (Gate, Wire, Conn) {
    tunnel_with(fields, "")
}

#[track_caller]
fn tunnel_with(fields: &str, glued: &str) -> (Gate, Wire, Conn) {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, fields));
    let (client, up) = open(&gate, &backend, glued);
    (gate, client, up)
}

#[track_caller]
fn open(gate: &Gate, backend: &Backend, lines: &str) -> (Wire, Conn) {
    let mut request = alice();
    if !lines.is_empty() {
        request = request.with("Sec-WebSocket-Extensions", "permessage-deflate");
    }
    let client = gate.send(request);
    let mut up = backend.next();
    up.accept_with(lines);
    (client.opened().0, up)
}

/// The same frame without its end.
fn unfinished(mut frame: Vec<u8>) -> Vec<u8> {
    frame[0] &= 0x7f;
    frame
}

/// What the gate says to an upstream whose tunnel it ends.
#[track_caller]
fn goes_away(up: &mut Conn, why: &str) {
    let frame = up.read_frame();
    assert!(frame.masked, "{frame:?}");
    assert_eq!(frame.close(), Some((1001, why.to_owned())), "{frame:?}");
}

/// The tunnel was ended so, for both sides and in the log.
#[track_caller]
fn ended(gate: &Gate, client: &mut Wire, up: &mut Conn, code: u16, cause: &str, direction: &str) {
    assert_eq!(client.read_close(), (code, cause.to_owned()));
    goes_away(up, cause);
    let line = gate.closed(cause);
    assert_eq!((line.get("code"), line.get("direction")), (code.to_string(), direction.to_owned()));
    assert_eq!(gate.metric("wsbouncer_tunnels_closed_total", &[("cause", cause)]), 1.0);
}

// ---- signs of life

const PINGS: &str = "timeouts: { ping_interval: 100ms, ping_timeout: 15s }";

#[track_caller]
fn read_ping(client: &mut Wire) -> Vec<u8> {
    let frame = client.read_frame();
    assert_eq!((frame.opcode, frame.masked, frame.payload.len()), (9, false, 8), "{frame:?}");
    frame.payload
}

#[test]
fn a_silent_client_is_asked_and_its_answer_goes_no_further() {
    let (gate, mut client, mut up) = tunnel(PINGS);
    for _ in 0..3 {
        let payload = read_ping(&mut client);
        client.send(masked(10, &payload));
    }
    client.send(text("after"));
    up.expect(text("after"));
    drop((client, up));
    let line = gate.log_line(|line| line.is("tunnel closed"));
    assert_eq!(line.number("up_bytes"), text("after").len() as u64);
    assert_eq!((line.number("down_bytes"), line.number("up_messages")), (0, 1));
}

#[test]
fn pings_and_pongs_of_others_pass() {
    let (_gate, mut client, mut up) = tunnel(PINGS);
    let payload = read_ping(&mut client);
    let mut almost = payload.clone();
    almost[7] ^= 1;
    let others =
        [masked(10, b"8 bytes."), masked(10, &almost), masked(10, b""), masked(9, &payload), masked(10, b"long")];
    client.send(others.concat());
    // Cut into bytes, the one that is ours is still found, and those around it are whole.
    for byte in [masked(10, &almost), masked(10, &payload), text("end")].concat() {
        client.send([byte]);
    }
    up.expect(others.concat());
    up.expect(masked(10, &almost));
    up.expect(text("end"));
    up.send(plain(9, &payload));
    let frame = loop {
        let frame = client.read_frame();
        if frame.opcode != 9 || frame.payload == payload {
            break frame;
        }
    };
    assert_eq!(frame.payload, payload);
}

/// A Pong that comes in two parts is held back, and goes on whole when it turns out to be somebody else's.
#[test]
fn half_a_pong_is_not_lost_at_the_end() {
    let (_gate, mut client, mut up) = tunnel(PINGS);
    read_ping(&mut client);
    let pong = masked(10, b"8 bytes.");
    client.send(&pong[..9]);
    up.stays_silent();
    client.shutdown_write();
    up.expect(&pong[..9]);
}

#[test]
fn a_client_that_answers_nothing_is_gone() {
    let (gate, mut client, mut up) = tunnel("timeouts: { ping_interval: 100ms, ping_timeout: 300ms }");
    let start = Instant::now();
    read_ping(&mut client);
    ended(&gate, &mut client, &mut up, 1001, "ping_timeout", "");
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
}

/// Any byte is a sign of life, even one of a frame that never ends.
#[test]
fn a_client_that_says_anything_is_there() {
    let (gate, mut client, mut up) = tunnel("timeouts: { ping_interval: 500ms, ping_timeout: 500ms }");
    let slow = masked(2, &[b'x'; 20]);
    for byte in &slow {
        client.send([*byte]);
        pause(Duration::from_millis(75));
    }
    up.expect(&slow);
    ended_after_pings(&gate, &mut client);
}

#[track_caller]
fn ended_after_pings(gate: &Gate, client: &mut Wire) {
    let frame = std::iter::repeat_with(|| client.read_frame()).find(|frame| frame.opcode != 9).unwrap();
    assert_eq!(frame.close(), Some((1001, "ping_timeout".into())));
    gate.closed("ping_timeout");
}

/// A Pong is a sign of life of the client, and no traffic: `idle` does not wait for it.
#[test]
fn answers_do_not_keep_an_idle_tunnel_open() {
    let (gate, mut client, mut up) = tunnel("timeouts: { ping_interval: 100ms, ping_timeout: 15s, idle: 1s }");
    let mut pings = 0;
    let frame = loop {
        let frame = client.read_frame();
        if frame.opcode != 9 {
            break frame;
        }
        client.send(masked(10, &frame.payload));
        pings += 1;
    };
    assert_eq!(frame.close(), Some((1001, "idle_timeout".into())));
    assert!(pings >= 2, "{pings}");
    goes_away(&mut up, "idle_timeout");
    gate.closed("idle_timeout");
}

/// Inside of a frame there is no room; between the fragments of a message there is.
#[test]
fn a_ping_stands_between_frames_only() {
    let (gate, mut client, mut up) = tunnel(PINGS);
    let first = unfinished(plain(2, &[b'a'; 1000]));
    up.send(&first[..500]);
    client.expect(&first[..500]);
    client.stays_silent();
    client.stays_silent();
    up.send(&first[500..]);
    client.expect(&first[500..]);
    let payload = read_ping(&mut client);
    client.send(masked(10, &payload));
    up.send(plain(0, b"b"));
    let frame = std::iter::repeat_with(|| client.read_frame()).find(|frame| frame.opcode != 9).unwrap();
    assert_eq!((frame.opcode, &*frame.payload), (0, &b"b"[..]));
    drop((client, up));
    let line = gate.log_line(|line| line.is("tunnel closed"));
    assert_eq!(line.number("down_bytes"), (first.len() + 3) as u64, "the Ping is not the upstream's");
}

/// The first bytes of a header are no reason to wait: they are held back until all of it is there.
#[test]
fn a_ping_goes_before_a_header_that_is_not_complete() {
    let (_gate, mut client, mut up) = tunnel(PINGS);
    let frame = plain(2, &[b'a'; 300]);
    up.send(&frame[..3]);
    read_ping(&mut client);
    client.send(text("here"));
    up.send(&frame[3..]);
    client.expect(&frame);
}

/// With a stream of frames that never leaves a gap, the Ping finds its place all the same.
#[test]
fn a_ping_finds_its_place_in_a_flood() {
    let (_gate, mut client, up) = tunnel(PINGS);
    let frame = plain(2, &[b'f'; 100_000]);
    let flood = thread::spawn(move || up.flood(&frame, 100_000));
    for _ in 0..2 {
        loop {
            let frame = client.read_frame();
            if frame.opcode == 9 {
                client.send(masked(10, &frame.payload));
                break;
            }
            assert!(frame.opcode == 2 && frame.payload.len() == 100_000 && frame.payload.iter().all(|b| *b == b'f'));
        }
    }
    client.reset();
    flood.join().unwrap();
}

#[test]
fn where_no_frames_are_nobody_is_asked() {
    let (_gate, mut client, mut up) = tunnel("timeouts: { ping_interval: 50ms, ping_timeout: 50ms }");
    up.send([0xff; 64]);
    client.expect([0xff; 64]);
    client.stays_silent();
    client.send(b"still there");
    up.expect(b"still there");
}

#[test]
fn after_a_close_nobody_is_asked() {
    let (_gate, mut client, mut up) = tunnel("timeouts: { ping_interval: 50ms, ping_timeout: 50ms }");
    client.send(close(1000));
    // A Ping may have come before; none comes after.
    up.expect(close(1000));
    pause(Duration::from_millis(10));
    up.send(plain(8, &1000_u16.to_be_bytes()));
    let frame = std::iter::repeat_with(|| client.read_frame()).find(|frame| frame.opcode != 9).unwrap();
    assert_eq!(frame.close(), Some((1000, String::new())));
    assert!(client.read_to_end().is_empty());
}

/// Where there is no place for a Ping because the client takes nothing of a frame, that is answer enough.
#[test]
fn a_client_that_takes_nothing_is_gone() {
    let (gate, _client, mut up) = tunnel("timeouts: { ping_interval: 200ms, ping_timeout: 400ms }");
    up.send(plain_header(2, 1 << 40));
    let mut pours = up.handle();
    let pour = thread::spawn(move || while pours.write_all(&[b'x'; 65_536]).is_ok() {});
    gate.closed("ping_timeout");
    pour.join().unwrap();
}

/// A client whose words nobody reads, because the upstream takes nothing, is not taken for dead.
#[test]
fn a_client_that_is_held_up_is_not_gone() {
    const MUCH: usize = 32 << 20;
    let frame = masked(2, &vec![b'x'; MUCH]);
    let (gate, mut client, mut up) = tunnel("timeouts: { ping_interval: 300ms, ping_timeout: 300ms }");
    let mut writer = client.handle();
    let pushes = thread::spawn(move || writer.write_all(&frame).unwrap());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        client.stays_silent_or_pings();
    }
    assert_eq!(gate.connections().len(), 1);
    let header = masked(2, &vec![b'x'; MUCH])[..14].to_vec();
    up.expect(header);
    assert_eq!(up.read_exact(MUCH).len(), MUCH);
    pushes.join().unwrap();
}

// ---- sizes

const SMALL: &str = "limits: { max_message_bytes: 1000B }";

#[test]
fn a_message_that_is_too_big_does_not_begin_to_pass() {
    let (gate, mut client, mut up) = tunnel(SMALL);
    let good = masked(2, &[b'x'; 1000]);
    client.send(&good);
    up.expect(&good);
    client.send(masked(2, &[b'x'; 1001]));
    ended(&gate, &mut client, &mut up, 1009, "message_too_big", "up");
    assert_eq!(up.read_to_close().0, b"", "nothing of it, not even its header");
    let line = gate.closed("message_too_big");
    assert_eq!((line.number("up_bytes"), line.number("up_messages")), (good.len() as u64, 1));
}

#[test]
fn a_message_from_the_upstream_can_be_too_big_as_well() {
    let (gate, mut client, mut up) = tunnel(SMALL);
    // An announcement is enough.
    up.send([plain(1, b"fine"), plain_header(2, 1 << 40)].concat());
    client.expect(plain(1, b"fine"));
    ended(&gate, &mut client, &mut up, 1009, "message_too_big", "down");
}

/// Fragments count together, whatever stands between them; a new message begins at nothing.
#[test]
fn fragments_count_together() {
    let (gate, mut client, mut up) = tunnel(SMALL);
    let whole = [unfinished(masked(1, &[b'a'; 600])), masked(9, b"ping"), masked(0, &[b'b'; 400])].concat();
    client.send([whole.clone(), whole.clone()].concat());
    up.expect([whole.clone(), whole].concat());
    let begun = [unfinished(masked(1, &[b'a'; 600])), unfinished(masked(0, &[b'b'; 400])), masked(9, b"ping")].concat();
    client.send([begun.clone(), masked(0, b"1")].concat());
    up.expect(&begun);
    ended(&gate, &mut client, &mut up, 1009, "message_too_big", "up");
}

#[test]
fn headers_may_come_byte_by_byte() {
    let (gate, mut client, mut up) = tunnel(SMALL);
    let good = masked(2, &[b'x'; 300]);
    for byte in &good {
        client.send([*byte]);
    }
    up.expect(&good);
    for byte in &masked(2, &[b'x'; 1001])[..8] {
        client.send([*byte]);
    }
    ended(&gate, &mut client, &mut up, 1009, "message_too_big", "up");
    assert_eq!(up.read_to_close().0, b"");
}

#[test]
fn directions_can_have_limits_of_their_own() {
    let (gate, mut client, mut up) = tunnel("limits: { max_message_bytes: { up: 10B, down: 1KiB } }");
    up.send(plain(2, &[b'x'; 1024]));
    client.expect(plain(2, &[b'x'; 1024]));
    client.send(masked(2, &[b'x'; 11]));
    ended(&gate, &mut client, &mut up, 1009, "message_too_big", "up");
    let (_gate, mut client, mut up) = tunnel("limits: { max_message_bytes: { down: 10B } }");
    client.send(masked(2, &[b'x'; 5000]));
    up.expect(masked(2, &[b'x'; 5000]));
}

/// Otherwise one odd frame would be the way around every limit.
#[test]
fn what_cannot_be_counted_does_not_pass() {
    let (gate, mut client, mut up) = tunnel(SMALL);
    client.send(plain(2, b"no mask"));
    ended(&gate, &mut client, &mut up, 1002, "protocol_error", "up");
}

/// The tunnel is ended by the gate in the middle of something that was held back: it is as if it had not come.
#[test]
fn a_close_goes_before_a_header_that_is_not_complete() {
    let (gate, mut client, mut up) = tunnel(SMALL);
    client.send([text("whole"), masked(2, &[b'x'; 300])[..3].to_vec()].concat());
    up.send([plain(1, b"whole"), plain(2, &[b'x'; 300])[..2].to_vec()].concat());
    up.expect(text("whole"));
    client.expect(plain(1, b"whole"));
    gate.edit_config(&gate.yaml().replace("id: alice, secret: ", "id: bob, secret: not-"));
    assert_eq!(client.read_close(), (4401, "revoked".into()));
    goes_away(&mut up, "revoked");
    assert_eq!(client.read_to_close(), (Vec::new(), Ending::Eof));
}

/// What was held back when its sender ends goes on: with no limit broken, bytes pass as they are.
#[test]
fn a_header_that_never_ends_passes_with_its_end() {
    let (_gate, mut client, mut up) = tunnel(SMALL);
    client.send([0x82]);
    up.stays_silent();
    client.shutdown_write();
    assert_eq!(up.read_to_end(), [0x82]);
}

#[test]
fn early_bytes_are_under_the_same_limits() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, SMALL));
    let client = gate.send(alice().followed_by([text("early"), masked(2, &[b'x'; 1001])].concat()));
    let mut up = backend.next();
    up.accept();
    let (mut client, _) = client.opened();
    up.expect(text("early"));
    ended(&gate, &mut client, &mut up, 1009, "message_too_big", "up");

    let gate = Gate::start(&route(&backend, SMALL));
    let client = gate.send(alice());
    let mut up = backend.next();
    let bytes = up.accept_bytes("", &plain_header(2, 1001));
    up.send(bytes);
    let (mut client, _) = client.opened();
    ended(&gate, &mut client, &mut up, 1009, "message_too_big", "down");
}

// ---- rates

#[test]
fn too_many_messages_end_the_tunnel() {
    let (gate, mut client, mut up) = tunnel("limits: { messages_per_second: 5, message_burst: 10 }");
    let burst = text("x").repeat(10);
    client.send(text("x").repeat(30));
    up.expect(burst);
    client_is_told_in_time(&mut client);
    gate.closed("rate_exceeded");
    let sent = up.read_to_close().0;
    let (last, _) = Frame::split(&sent[sent.len().saturating_sub(4 + 2 + 2 + "rate_exceeded".len())..]).unwrap();
    assert_eq!(last.close(), Some((1001, "rate_exceeded".into())));
}

#[track_caller]
fn client_is_told_in_time(client: &mut Wire) {
    assert_eq!(client.read_close(), (4429, "rate_exceeded".into()));
}

#[test]
fn too_many_messages_from_the_upstream_end_the_tunnel() {
    let (gate, mut client, mut up) = tunnel("limits: { messages_per_second: { down: 3 } }");
    // In the other direction there is no limit. Fragments are one message, and Pongs are none.
    client.send(text("x").repeat(100));
    up.expect(text("x").repeat(100));
    let three = [
        plain(1, b"1"),
        plain(10, b"pong").repeat(20),
        unfinished(plain(1, b"2")),
        unfinished(plain(0, b"")).repeat(20),
        plain(0, b"."),
        plain(9, b"3"),
    ]
    .concat();
    up.send([three.clone(), plain(1, b"4").repeat(10)].concat());
    client.expect(&three);
    // One may have come back meanwhile.
    let frame = std::iter::repeat_with(|| client.read_frame()).find(|frame| frame.opcode == 8).unwrap();
    assert_eq!(frame.close(), Some((4429, "rate_exceeded".into())));
    let line = gate.closed("rate_exceeded");
    assert_eq!((line.get("direction"), line.get("code")), ("down".into(), "4429".into()));
}

#[test]
fn too_many_bytes_end_the_tunnel() {
    let (gate, mut client, mut up) = tunnel("limits: { bytes_per_second: 1KiB, byte_burst: 4KiB }");
    let good = masked(2, &[b'x'; 3000]);
    client.send(&good);
    up.expect(&good);
    client.send(masked(2, &[b'x'; 100]).repeat(100));
    client_is_told_in_time(&mut client);
    assert_eq!(gate.closed("rate_exceeded").get("direction"), "up");
    let mut rest = &*up.read_to_close().0;
    let mut last = None;
    while let Some((frame, after)) = Frame::split(rest) {
        (last, rest) = (Some(frame), after);
    }
    // Whole frames, and the Close behind them.
    assert!(rest.is_empty());
    assert_eq!(last.and_then(|frame| frame.close()), Some((1001, "rate_exceeded".into())));
}

#[test]
fn messages_that_have_to_wait_all_arrive() {
    let fields = "limits: { messages_per_second: 20, message_burst: 2, on_excess: delay }";
    let (_gate, mut client, mut up) = tunnel(fields);
    let start = Instant::now();
    let all: Vec<u8> = (0..12).flat_map(|n| [text(&format!("message {n}")), masked(10, b"pong")].concat()).collect();
    // All at once, so that they lie in one read.
    client.send(&all);
    up.expect(&all);
    let took = start.elapsed();
    // Two at once, and ten at 20 in a second.
    assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(5), "{took:?}");
    // The same the other way, which has a bucket of its own.
    let start = Instant::now();
    let all = plain(1, b"down").repeat(8);
    up.send(&all);
    client.expect(&all);
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
}

#[test]
fn bytes_that_have_to_wait_all_arrive_and_push_back() {
    let fields = "limits: { bytes_per_second: { up: 64KiB }, byte_burst: { up: 1KiB }, on_excess: delay }";
    let (gate, mut client, mut up) = tunnel(fields);
    let start = Instant::now();
    let all = masked(2, &[b'x'; 64 << 10]);
    let mut writer = client.handle();
    let sent = all.clone();
    let sends = thread::spawn(move || writer.write_all(&sent).unwrap());
    up.expect(&all);
    sends.join().unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(10), "{took:?}");
    // While it waits, it keeps nothing: what comes stays in the sockets.
    let before = gate.resident();
    let mut header = masked(2, &[]);
    header.splice(1..2, [0xff, 0, 0, 0, 0, 0x10, 0, 0, 0]);
    client.send(header);
    let taken = client.send_until_stuck(Duration::from_millis(400), 256 << 20);
    assert!(taken < 256 << 20, "nothing pushes back");
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes kept");
}

/// Waiting is no end: a revocation goes through at once, and the Close stands where frames end.
#[test]
fn what_waits_does_not_hold_up_an_end() {
    let fields = "limits: { messages_per_second: 1, on_excess: delay }";
    let (gate, mut client, mut up) = tunnel(fields);
    client.send(text("x").repeat(100));
    up.expect(text("x"));
    gate.edit_config(&gate.yaml().replace("id: alice, secret: ", "id: bob, secret: not-"));
    assert_eq!(client.read_close(), (4401, "revoked".into()));
    let frame = std::iter::repeat_with(|| up.read_frame()).find(|frame| frame.opcode != 1).unwrap();
    assert_eq!(frame.close(), Some((1001, "revoked".into())));
}

// ---- keys

fn with_limits(backend: &Backend, key: &str, route: &str) -> String {
    format!(
        "keys:\n  - {{ id: alice, secret: {KEY}, limits: {key} }}\nroutes:\n  - {{ name: main, upstream: \"{}\", limits: {route} }}\n",
        backend.url()
    )
}

#[test]
fn the_stricter_of_key_and_route_counts() {
    let backend = Backend::manual();
    for (key, route) in [
        ("{ max_message_bytes: 10B }", "{ max_message_bytes: 1KiB }"),
        ("{ max_message_bytes: 1KiB }", "{ max_message_bytes: { up: 10B } }"),
        ("{ max_message_bytes: 10B }", "{ messages_per_second: 1000 }"),
    ] {
        let gate = Gate::start(&with_limits(&backend, key, route));
        let (mut client, mut up) = open(&gate, &backend, "");
        client.send(masked(2, &[b'x'; 10]));
        up.expect(masked(2, &[b'x'; 10]));
        client.send(masked(2, &[b'x'; 11]));
        ended(&gate, &mut client, &mut up, 1009, "message_too_big", "up");
    }
}

#[test]
fn close_beats_delay() {
    let backend = Backend::manual();
    let delay = "{ messages_per_second: 2, on_excess: delay }";
    let close = "{ messages_per_second: 1000 }";
    for (key, route) in [(delay, close), (close, delay)] {
        let gate = Gate::start(&with_limits(&backend, key, route));
        let (mut client, _up) = open(&gate, &backend, "");
        client.send(text("x").repeat(10));
        client_is_told_in_time(&mut client);
    }
    // A key that says nothing about rates says nothing about what becomes of too many.
    let gate = Gate::start(&with_limits(
        &backend,
        "{ max_message_bytes: 10B }",
        "{ messages_per_second: 50, message_burst: 1, on_excess: delay }",
    ));
    let (mut client, mut up) = open(&gate, &backend, "");
    client.send(text("x").repeat(10));
    up.expect(text("x").repeat(10));
}

#[test]
fn limits_are_those_of_the_moment_when_a_tunnel_opens() {
    let backend = Backend::manual();
    let gate = Gate::start(&with_limits(&backend, "{ max_message_bytes: 1KiB }", "{ max_connections: 100 }"));
    let (mut old, mut old_up) = open(&gate, &backend, "");
    gate.reloads(|| gate.edit_config(&gate.yaml().replace("1KiB", "10B")));
    let (mut new, mut new_up) = open(&gate, &backend, "");
    let message = masked(2, &[b'x'; 11]);
    old.send(&message);
    old_up.expect(&message);
    new.send(&message);
    ended(&gate, &mut new, &mut new_up, 1009, "message_too_big", "up");
}

// ---- strictness

const STRICT: &str = "strict_frames: true";

/// What breaks a rule, and the word for it.
fn faults_of_clients() -> Vec<(Vec<u8>, &'static str)> {
    let with = |mut frame: Vec<u8>, first: u8| {
        frame[0] = first;
        frame
    };
    let mut long = vec![0x82, 0xfe, 0, 5];
    long.extend([0; 9]);
    let mut longer = vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 1, 0];
    longer.extend([0; 260]);
    vec![
        (with(text("x"), 0xc1), "reserved_bits"),
        (with(text("x"), 0x91), "reserved_bits"),
        (with(text("x"), 0x83), "reserved_opcode"),
        (with(text("x"), 0x8f), "reserved_opcode"),
        (plain(1, b"x"), "not_masked"),
        (unfinished(masked(9, b"x")), "fragmented_control"),
        (masked(9, &[0; 126]), "control_length"),
        (masked(8, b"x"), "control_length"),
        (masked(0, b"x"), "unexpected_continuation"),
        ([unfinished(text("x")), text("y")].concat(), "expected_continuation"),
        (long, "bad_length"),
        (longer, "bad_length"),
        (vec![0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], "bad_length"),
    ]
}

#[test]
fn whoever_breaks_framing_is_told_so() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, STRICT));
    for (number, (bytes, word)) in faults_of_clients().into_iter().enumerate() {
        let (mut client, mut up) = open(&gate, &backend, "");
        client.send(text("before"));
        up.expect(text("before"));
        if number % 2 == 0 {
            client.send(&bytes);
        } else {
            bytes.iter().for_each(|byte| drop(client.try_send([*byte])));
        }
        assert_eq!(client.read_close(), (1002, "protocol_error".into()), "{word}");
        if word == "expected_continuation" {
            up.expect(unfinished(text("x")));
        }
        goes_away(&mut up, "protocol_error");
        assert_eq!(up.read_to_close().0, b"", "{word}: nothing of the frame has passed");
        eventually("the line of this tunnel", || gate.log_lines(|line| line.is("tunnel closed")).len() > number);
        let line = gate.log_lines(|line| line.is("tunnel closed")).pop().unwrap();
        assert_eq!((line.get("cause"), line.get("fault")), ("protocol_error".into(), word.into()));
        assert_eq!((line.get("direction"), line.get("code")), ("up".into(), "1002".into()));
    }
}

#[test]
fn an_upstream_that_breaks_framing_is_cut_off() {
    let (gate, mut client, mut up) = tunnel(STRICT);
    up.send([plain(1, b"before"), masked(1, b"masked")].concat());
    client.expect(plain(1, b"before"));
    ended(&gate, &mut client, &mut up, 1002, "protocol_error", "down");
    assert_eq!(gate.closed("protocol_error").get("fault"), "masked");
    assert_eq!(client.read_to_close().0, b"");
}

/// RFC 6455 section 1.4: it is discarded, and the one who said Close gets the answer to that.
#[test]
fn behind_a_close_comes_nothing() {
    for watched in [STRICT, "limits: { messages_per_second: 1000 }"] {
        let (gate, mut client, mut up) = tunnel(watched);
        client.send([close(1000), text("one thing more")].concat());
        up.expect(close(1000));
        client.send([&text("and another")[..], &[0x81]].concat());
        up.send([plain(8, &1000_u16.to_be_bytes()), plain(1, b"late")].concat());
        assert_eq!(client.read_close(), (1000, String::new()));
        drop(client);
        assert_eq!(up.read_to_close().0, b"", "nothing behind the client's own Close");
        let line = gate.closed("client");
        assert_eq!((line.number("up_bytes"), line.number("down_bytes")), (8, 4), "what was dropped is not counted");
    }
}

/// With an extension agreed on, reserved bits mean something.
#[test]
fn strictness_knows_extensions() {
    let (_gate, mut client, mut up) = tunnel_with(STRICT, "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let mut compressed = masked(1, b"not really deflated");
    compressed[0] |= 0x40;
    client.send(&compressed);
    up.expect(&compressed);
}

#[test]
fn strictness_lets_everything_right_pass() {
    let (gate, mut client, mut up) = tunnel(STRICT);
    let right = [
        text(""),
        unfinished(masked(1, b"")),
        masked(9, &[0; 125]),
        unfinished(masked(0, &[1; 126])),
        masked(10, b""),
        masked(0, &[2; 65_536]),
        masked(2, &[3; 65_535]),
    ]
    .concat();
    let (sender, sent) = (client.handle(), right.clone());
    let sends = thread::spawn(move || { sender }.write_all(&sent).unwrap());
    up.expect(&right);
    sends.join().unwrap();
    client.send(close(1000));
    up.expect(close(1000));
    up.send(plain(8, &1000_u16.to_be_bytes()));
    client.read_close();
    drop(up);
    drop(client);
    let line = gate.closed("client");
    assert_eq!((line.number("up_messages"), line.number("up_bytes")), (3, (right.len() + 8) as u64));
}

/// As it always was: bytes pass untouched, and nothing is put between what cannot be followed.
#[test]
fn without_strictness_everything_passes() {
    for (bytes, word) in faults_of_clients() {
        let (_gate, mut client, mut up) = tunnel("");
        client.send(&bytes);
        up.expect(&bytes);
        client.send(b"and more");
        up.expect(b"and more");
        drop((client, word));
    }
}
