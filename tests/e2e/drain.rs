//! SIGTERM: nobody new, everybody told, nobody left, exit 0.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::frames::{close, plain, text};
use crate::support::{Backend, Conn, Gate, Wire, alice, eventually, small};

#[track_caller]
fn tunnel(gate: &Gate, backend: &Backend) -> (Wire, Conn) {
    let client = gate.send(alice());
    let mut up = backend.next();
    up.accept();
    (client.opened().0, up)
}

fn stand_with(drain: &str) -> (Backend, Gate) {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, &format!("drain: {{ {drain} }}\n")));
    (backend, gate)
}

#[test]
fn without_tunnels_it_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let (_backend, mut gate) = stand_with("timeout: 60s, spread: 30s");
        let start = Instant::now();
        gate.signal(signal);
        assert_eq!(gate.exit().code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        gate.log_line(|line| line.is("draining"));
        gate.log_line(|line| line.is("drained"));
    }
}

#[test]
fn tunnels_are_told_1012_and_the_process_ends_with_0() {
    let (backend, mut gate) = stand_with("timeout: 20s, spread: 0s");
    let mut tunnels: Vec<_> = (0..5).map(|_| tunnel(&gate, &backend)).collect();
    gate.signal(Signal::TERM);
    for (client, up) in &mut tunnels {
        assert_eq!(client.read_close(), (1012, "drain".into()));
        client.send(close(1012));
        let frame = up.read_frame();
        assert!(frame.masked && frame.close().is_some_and(|(code, _)| code == 1001), "{frame:?}");
        up.send(plain(8, &1001_u16.to_be_bytes()));
        client.read_to_close();
        up.read_to_close();
    }
    assert_eq!(gate.exit().code(), Some(0));
    eventually("five lines", || gate.log_lines(|line| line.is("tunnel closed")).len() == 5);
    let closed = gate.log_lines(|line| line.is("tunnel closed"));
    assert!(closed.iter().all(|line| line.get("cause") == "drain" && line.get("code") == "1012"), "{closed:?}");
}

#[test]
fn while_it_drains_it_is_not_ready_and_takes_nobody() {
    let (backend, mut gate) = stand_with("timeout: 20s, spread: 3s");
    let (mut first, _up1) = tunnel(&gate, &backend);
    let (second, mut up2) = tunnel(&gate, &backend);
    let mut waiting = gate.connect();
    gate.wait_for_open(2);
    eventually("the waiting connection was accepted", || gate.metric("wsbouncer_connections_open", &[]) == 3.0);
    gate.signal(Signal::TERM);
    gate.log_line(|line| line.is("draining"));
    eventually("not ready", || gate.ready().status() == 503);
    let body = gate.ready().json();
    assert_eq!((body["ready"].as_bool(), body["draining"].as_bool()), (Some(false), Some(true)), "{body}");
    assert_eq!(gate.admin("GET", "/healthz").status(), 200);

    // A connection that was there already is refused with a reason, a new one may find the door closed.
    waiting.send(alice().bytes());
    let answer = waiting.read_answer();
    gate.check_refusal(&answer, 503, "draining");
    eventually("it is counted", || gate.metric("wsbouncer_refusals_total", &[("reason", "draining")]) == 1.0);
    assert!(answer.head.has("Retry-After"));
    if let Ok(stream) = TcpStream::connect(gate.addr) {
        let mut late = Wire::new(crate::support::wire::Stream::Tcp(stream));
        let _ = late.try_send(alice().bytes());
        let (bytes, _) = late.read_to_close();
        assert!(bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 503"), "{:?}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(backend.accepted(), 2);

    // The order of closing is free; whoever has not been told yet still works.
    let told_first = first.read_frame();
    assert_eq!(told_first.close().map(|(code, _)| code), Some(1012));
    let mut second = second;
    second.send(text("still here"));
    let _ = up2.read_some();
    drop((first, second, up2));
    assert_eq!(gate.exit().code(), Some(0));
}

/// The system has let them in: to be thrown out without a word would be no answer. More than are accepted in one turn.
#[test]
fn whoever_waits_to_be_accepted_is_answered() {
    let backend = Backend::echo();
    let mut gate = Gate::start(&small(&backend, "drain: { timeout: 20s, spread: 0s }\n"));
    gate.signal(Signal::STOP);
    let mut clients: Vec<Wire> = (0..400).map(|_| gate.send(alice())).collect();
    gate.signal(Signal::TERM);
    gate.signal(Signal::CONT);
    let heads = clients.iter_mut().map(|client| crate::support::head::status(&client.read_head()));
    let (served, refused): (Vec<u16>, Vec<u16>) = heads.partition(|status| *status == 101);
    assert!(refused.iter().all(|status| *status == 503), "{} were served, and {refused:?}", served.len());
    drop(clients);
    assert_eq!(gate.exit().code(), Some(0));
}

#[test]
fn closing_is_spread_so_that_not_all_come_back_at_once() {
    let (backend, mut gate) = stand_with("timeout: 30s, spread: 2s");
    let tunnels: Vec<_> = (0..8).map(|_| tunnel(&gate, &backend)).collect();
    let start = Instant::now();
    gate.signal(Signal::TERM);
    let readers: Vec<_> = tunnels
        .into_iter()
        .map(|(mut client, up)| {
            std::thread::spawn(move || {
                assert_eq!(client.read_close().0, 1012);
                let told = start.elapsed();
                drop((client, up));
                told
            })
        })
        .collect();
    let mut told: Vec<Duration> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    told.sort();
    let spread = told[7] - told[0];
    assert!(spread > Duration::from_millis(1000), "{told:?}");
    assert!(told.windows(2).all(|pair| pair[1] - pair[0] < Duration::from_millis(1500)), "{told:?}");
    assert_eq!(gate.exit().code(), Some(0));
}

#[test]
fn whoever_does_not_go_is_gone_at_the_timeout() {
    let (backend, mut gate) = stand_with("timeout: 1500ms, spread: 0s");
    let (client, mut up) = tunnel(&gate, &backend);
    // Neither side reads, answers or goes.
    up.send_until_stuck(Duration::from_millis(300), 64 << 20);
    let start = Instant::now();
    gate.signal(Signal::TERM);
    assert_eq!(gate.exit().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop((client, up));
}

#[test]
fn a_silent_connection_does_not_hold_up_the_drain_beyond_its_timeout() {
    let (_backend, mut gate) = stand_with("timeout: 2s, spread: 0s");
    let silent = gate.connect();
    eventually("it was accepted", || gate.metric("wsbouncer_connections_open", &[]) == 1.0);
    let start = Instant::now();
    gate.signal(Signal::TERM);
    assert_eq!(gate.exit().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    drop(silent);
}

#[test]
fn a_handshake_under_way_is_refused_or_told() {
    let (backend, mut gate) = stand_with("timeout: 10s, spread: 0s");
    let mut client = gate.send(alice());
    let mut up = backend.next();
    gate.signal(Signal::TERM);
    gate.log_line(|line| line.is("draining"));
    let yes = up.accept_bytes("", b"");
    let _ = up.try_send(yes);
    let head = client.read_head();
    if head.first.starts_with("HTTP/1.1 101") {
        assert_eq!(client.read_close().0, 1012);
    } else {
        assert!(head.first.starts_with("HTTP/1.1 503"), "{head:?}");
    }
    drop((client, up));
    assert_eq!(gate.exit().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (backend, mut gate) = stand_with("timeout: 60s, spread: 60s");
    let tunnels: Vec<_> = (0..3).map(|_| tunnel(&gate, &backend)).collect();
    gate.signal(Signal::TERM);
    gate.log_line(|line| line.is("draining"));
    let start = Instant::now();
    gate.signal(Signal::TERM);
    assert_eq!(gate.exit().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    for (mut client, _up) in tunnels {
        client.read_to_close();
    }
    let closed = gate.log_lines(|line| line.is("tunnel closed"));
    assert_eq!(closed.len(), 3, "everybody gets a line");
    assert!(closed.iter().any(|line| line.get("cause") == "shutdown"));
}

#[test]
fn a_reload_during_the_drain_brings_nobody_back() {
    let (backend, mut gate) = stand_with("timeout: 10s, spread: 2s");
    let one = tunnel(&gate, &backend);
    let two = tunnel(&gate, &backend);
    gate.signal(Signal::TERM);
    gate.log_line(|line| line.is("draining"));
    gate.signal(Signal::HUP);
    eventually("still not ready", || gate.ready().status() == 503);
    drop((one, two));
    assert_eq!(gate.exit().code(), Some(0));
}
