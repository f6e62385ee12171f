//! Faults of either side, of the machine and of the operator, one after the other and many at once. After each the gate
//! holds nothing for anybody, has said what it was, and serves the next one. What needs two hosts, a full disk or another
//! time is in tests/faults.

use std::fs;
use std::io::{PipeReader, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::hostile::Dice;
use crate::support::frames::{masked, plain, plain_header, text};
use crate::support::{Backend, Conn, Gate, KEY, Request, Wire, alice, config, eventually, pause, small, ws};

/// Tunnels that fit at once.
const ROOM: usize = 8;
/// How often each fault happens, half of them at the same time.
const AT_ONCE: usize = 4;
const ROUNDS: usize = 2;

/// What the gate has to say about a fault.
#[derive(Debug, Clone, Copy)]
enum Says {
    Refused(&'static str),
    Closed(&'static str),
    Forwarded(&'static str),
    /// Nobody has asked for anything, or nobody is there to be told.
    Nothing,
}

use Says::{Closed, Forwarded, Nothing, Refused};

struct Stand {
    gate: Gate,
    /// Connections of upstreams that neither read nor close.
    held: Held,
    _backend: Backend,
    _dead: Socket,
}

type Held = Arc<Mutex<Vec<Conn>>>;

/// Every way in which an upstream can fail, by the path.
fn fail(mut conn: Conn, held: &Held) {
    let target = conn.head.target().to_owned();
    let half = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso";
    match &*target {
        "/up/resets" => return conn.reset(),
        "/up/is-mute" => return until_end(conn),
        "/up/half-an-answer" => return conn.send(half),
        "/up/half-an-answer-and-mute" => {
            conn.send(half);
            return until_end(conn);
        }
        "/up/half-a-refusal" => return conn.send("HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nnot a hundred"),
        "/up/half-a-refusal-and-mute" => {
            conn.send("HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nnot a hundred");
            return until_end(conn);
        }
        "/page/half" => return conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot a hundred"),
        "/page/resets" => {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
            return conn.reset();
        }
        "/page/mute" => return until_end(conn),
        _ => conn.accept(),
    }
    match &*target {
        "/up/dies-between-frames" => conn.send(plain(1, b"last")),
        "/up/dies-within-a-frame" => conn.send([plain_header(2, 1000), b"begun".to_vec()].concat()),
        "/up/resets-within-a-frame" => {
            conn.send([plain_header(2, 1000), b"begun".to_vec()].concat());
            // When it has arrived: a reset overtakes what it finds on the way.
            conn.expect(text("seen"));
            conn.reset();
        }
        "/quick/stops-within-a-frame" => {
            conn.send([plain_header(2, 1000), b"begun".to_vec()].concat());
            until_end(conn);
        }
        "/quick/ends-its-half" => {
            conn.shutdown_write();
            until_end(conn);
        }
        "/up/never-reads" | "/quick/never-reads" => held.lock().unwrap().push(conn),
        "/up/floods" => conn.flood(&plain(2, &[7; 50_000]), 20_000),
        _ => conn.echo(),
    }
}

fn until_end(mut conn: Conn) {
    while conn.read_some().is_ok_and(|bytes| !bytes.is_empty()) {}
}

fn stand() -> Stand {
    stand_with(ROOM)
}

fn stand_with(room: usize) -> Stand {
    let held = Held::default();
    let backend = {
        let held = held.clone();
        Backend::serve(move |conn| fail(conn, &held))
    };
    // A port that is taken, and on which nobody listens.
    let dead = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    dead.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let nobody = dead.local_addr().unwrap().as_socket().unwrap();
    let yaml = format!(
        "limits: {{ max_connections: {room} }}
timeouts: {{ head: 1s }}
keys: [{{ id: alice, secret: {KEY} }}]
routes:
  - {{ name: dead, path: /dead, upstream: \"ws://{nobody}\" }}
  - {{ name: strict, path: /strict, upstream: \"{url}\", strict_frames: true }}
  - {{ name: quick, path: /quick/*, upstream: \"{url}\", timeouts: {{ idle: 1s, half_close: 1s }} }}
  - {{ name: page, path: /page/*, upstream: \"{url}\", http: forward, timeouts: {{ handshake: 1s }} }}
  - {{ name: main, upstream: \"{url}\", timeouts: {{ handshake: 1s }} }}
",
        url = backend.url()
    );
    Stand { gate: Gate::start(&yaml), held, _backend: backend, _dead: dead }
}

impl Stand {
    /// The fault, often, and that nothing is left of it.
    #[track_caller]
    fn suffers(&self, name: &str, says: Says, fault: impl Fn(&Self, Request) + Sync) {
        let target = if name.starts_with('/') { name } else { "/ws" };
        let base = self.gate.base_line(ROOM);
        let id = |round: usize, n: usize| format!("{}-{round}-{n}", name.replace(['/', ' '], "-"));
        for round in 0..ROUNDS {
            let before = self.count(says);
            thread::scope(|scope| {
                for n in 0..AT_ONCE {
                    let request = ws(target).with("X-Api-Key", KEY).with("X-Request-Id", &id(round, n));
                    let fault = &fault;
                    scope.spawn(move || fault(self, request));
                }
            });
            for n in 0..AT_ONCE {
                self.check_log(&id(round, n), says);
            }
            let wanted = if matches!(says, Nothing) { 0 } else { AT_ONCE };
            eventually(&format!("{name}: the metric says so"), || self.count(says) - before >= wanted as f64);
            assert_eq!(self.count(says) - before, wanted as f64, "{name}: each is counted once");
            self.held.lock().unwrap().clear();
        }
        self.gate.returns_to(&base);
    }

    #[track_caller]
    fn check_log(&self, id: &str, says: Says) {
        let (message, field, word) = match says {
            Refused(reason) => ("refused", "reason", reason),
            Closed(cause) => ("tunnel closed", "cause", cause),
            Forwarded(cause) => ("forwarded", "cause", cause),
            Nothing => return,
        };
        let line = self.gate.log_line(|line| line.is(message) && line.get("id") == id);
        assert_eq!(line.get(field), word, "{line:?}");
        let all = self.gate.log_lines(|line| line.is(message) && line.get("id") == id);
        assert_eq!(all.len(), 1, "one line: {all:?}");
    }

    fn count(&self, says: Says) -> f64 {
        match says {
            Refused(reason) => self.gate.metric("wsbouncer_refusals_total", &[("reason", reason)]),
            Closed(cause) => self.gate.metric("wsbouncer_tunnels_closed_total", &[("cause", cause)]),
            Forwarded(cause) => self.gate.metric("wsbouncer_forwards_ended_total", &[("cause", cause)]),
            Nothing => 0.0,
        }
    }
}

/// Sends, and reads whatever comes of it.
fn to_the_end(stand: &Stand, request: Request) {
    stand.gate.send(request).read_to_close();
}

#[test]
fn an_upstream_that_fails_before_it_has_answered() {
    let stand = stand();
    for (path, status, reason) in [
        ("/dead", 502, "upstream_unreachable"),
        ("/up/resets", 502, "upstream_bad_handshake"),
        ("/up/is-mute", 504, "upstream_timeout"),
        ("/up/half-an-answer", 502, "upstream_bad_handshake"),
        ("/up/half-an-answer-and-mute", 504, "upstream_timeout"),
        ("/up/half-a-refusal", 502, "upstream_bad_handshake"),
        ("/up/half-a-refusal-and-mute", 504, "upstream_timeout"),
    ] {
        stand.suffers(path, Refused(reason), |stand, request| {
            let answer = stand.gate.ask(request);
            assert_eq!((answer.status(), &*answer.field("reason")), (status, reason), "{path}");
        });
    }
}

#[test]
fn an_upstream_that_fails_within_a_tunnel() {
    let stand = stand();
    for (path, cause) in [
        ("/up/dies-between-frames", "upstream_lost"),
        ("/up/dies-within-a-frame", "upstream_lost"),
        ("/quick/stops-within-a-frame", "idle_timeout"),
        ("/quick/ends-its-half", "upstream_lost"),
    ] {
        stand.suffers(path, Closed(cause), |stand, request| {
            let mut client = stand.gate.open(request);
            let (bytes, _) = client.read_to_close();
            let told = bytes.ends_with(cause.as_bytes());
            assert_eq!(told, !path.contains("within"), "{path}: a Close between frames, and only there: {bytes:?}");
        });
    }
    stand.suffers("/up/resets-within-a-frame", Closed("upstream_lost"), |stand, request| {
        let mut client = stand.gate.open(request);
        client.expect([plain_header(2, 1000), b"begun".to_vec()].concat());
        client.send(text("seen"));
        assert!(client.read_to_close().0.is_empty(), "a Close within a frame");
    });
}

#[test]
fn a_service_that_fails_within_a_page() {
    let stand = stand();
    let page = |stand: &Stand, request: Request| {
        let line = format!("GET {} HTTP/1.1", request_target(&request));
        let request = request.first_line(&line).without("Upgrade").without("Connection");
        to_the_end(stand, request.without("Sec-WebSocket-Key").without("Sec-WebSocket-Version"));
    };
    stand.suffers("/page/half", Forwarded("upstream_lost"), page);
    stand.suffers("/page/resets", Forwarded("upstream_lost"), page);
    stand.suffers("/page/mute", Refused("upstream_timeout"), page);
    stand.suffers("/page/mute", Nothing, |stand, request| {
        let request = request.first_line("GET /page/mute HTTP/1.1").without("Upgrade").without("Connection");
        stand.gate.send(request).reset();
    });
}

fn request_target(request: &Request) -> String {
    String::from_utf8(request.bytes()).unwrap().split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn a_client_that_fails_before_it_has_its_answer() {
    let stand = stand();
    stand.suffers("nothing at all", Nothing, |stand, _| drop(stand.gate.connect()));
    stand.suffers("nothing, and a reset", Nothing, |stand, _| stand.gate.connect().reset());
    for length in [1, 20, 100] {
        stand.suffers("half a head", Nothing, |stand, request| {
            stand.gate.send(&request.bytes()[..length]).reset();
        });
    }
    stand.suffers("half a head, and silence", Nothing, |stand, request| {
        let answer = stand.gate.send(&request.bytes()[..50]).read_answer();
        assert_eq!(answer.status(), 408);
    });
    stand.suffers("/up/is-mute", Nothing, |stand, request| {
        let client = stand.gate.send(request);
        pause(Duration::from_millis(20));
        client.reset();
    });
    stand.suffers("/up/is-mute", Nothing, |stand, request| drop(stand.gate.send(request)));
    // It hides its leaving behind bytes of its first frame.
    stand.suffers("/up/is-mute", Refused("upstream_timeout"), |stand, request| {
        drop(stand.gate.send(request.followed_by(text("early"))));
    });
    // At any moment, also that in which the tunnel begins.
    for delay in 0..10 {
        stand.suffers("a reset at any moment", Nothing, |stand, request| {
            let client = stand.gate.send(request);
            pause(Duration::from_micros(delay * 300));
            client.reset();
        });
    }
}

#[test]
fn a_client_that_fails_within_a_tunnel() {
    let stand = stand();
    stand.suffers("resets", Closed("client_lost"), |stand, request| stand.gate.open(request).reset());
    stand.suffers("resets within a frame", Closed("client_lost"), |stand, request| {
        let mut client = stand.gate.open(request);
        let frame = masked(2, &[1; 1000]);
        client.send(&frame[..500]);
        client.expect(&frame[..500]);
        client.reset();
    });
    stand.suffers("ends without a Close", Closed("client"), |stand, request| {
        let mut client = stand.gate.open(request);
        client.shutdown_write();
        client.read_to_close();
    });
    stand.suffers("ends within a frame", Closed("client"), |stand, request| {
        let mut client = stand.gate.open(request);
        client.send(&masked(2, &[1; 1000])[..500]);
        client.shutdown_write();
        client.read_to_close();
    });
    stand.suffers("/strict", Closed("protocol_error"), |stand, request| {
        let mut client = stand.gate.open(request);
        client.send([0xff; 100]);
        client.read_to_close();
    });
}

#[test]
fn a_reader_of_single_bytes_holds_up_nobody_and_costs_little() {
    let stand = stand();
    stand.suffers("/up/floods", Closed("client_lost"), |stand, request| {
        let slow = stand.gate.open(request);
        let mut bytes = [0; 1];
        let mut reader = slow.handle();
        for _ in 0..20 {
            reader.read_exact(&mut bytes).unwrap();
            pause(Duration::from_millis(10));
        }
        let mut other = stand.gate.open(alice());
        other.send(text("meanwhile"));
        other.expect(text("meanwhile"));
        drop(other);
        assert!(stand.gate.resident() < 200 << 20, "{} bytes", stand.gate.resident());
        slow.reset();
    });
}

/// What the upstream never takes waits in front of the gate, not in it; and when the client has gone, so has the tunnel.
#[test]
fn a_client_that_floods_an_upstream_that_never_reads() {
    let stand = stand();
    let before = stand.gate.resident();
    stand.suffers("/quick/never-reads", Closed("idle_timeout"), |stand, request| {
        let mut client = stand.gate.open(request);
        client.send_until_stuck(Duration::from_millis(200), 64 << 20);
        client.reset();
    });
    let grown = stand.gate.resident().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");
}

#[test]
fn an_upstream_that_comes_back_is_used_again() {
    let backend = Backend::echo();
    let address = backend.address();
    let gate = Gate::start(&small(&backend, &format!("limits: {{ max_connections: {ROOM} }}\n")));
    let base = gate.base_line(ROOM);
    let mut backend = Some(backend);
    for _ in 0..3 {
        let mut client = gate.open(alice());
        client.send(text("before"));
        client.expect(text("before"));
        drop(backend.take());
        // Its listener goes with the connection that tells it to.
        eventually("it is not there", || gate.ask_status(alice()) == 502);
        // What was open goes on: only the listener has gone.
        client.send(text("still"));
        client.expect(text("still"));
        backend = Some(Backend::echo_at(&address));
        let mut next = gate.open(alice());
        next.send(text("again"));
        next.expect(text("again"));
        drop((client, next));
        gate.returns_to(&base);
    }
}

/// A leak of a kilobyte is found only by doing it often.
#[test]
fn thousands_of_faults_leave_no_memory_behind() {
    // Whoever has reset a tunnel keeps a place for the moment in which the service is told.
    let stand = stand_with(1000);
    let gate = &stand.gate;
    let once = |n: usize| {
        let request = |target: &str| ws(target).with("X-Api-Key", KEY);
        match n % 8 {
            0 => gate.open(alice()).reset(),
            1 => drop(gate.open(request("/up/dies-within-a-frame")).read_to_close()),
            2 => drop(gate.open(request("/up/dies-between-frames")).read_to_close()),
            3 => drop(gate.ask(request("/up/half-an-answer"))),
            4 => drop(gate.ask(request("/dead"))),
            5 => gate.send(&alice().bytes()[..100]).reset(),
            6 => drop(gate.ask(ws("/ws").with("X-Api-Key", "wrong"))),
            _ => gate.send(request("/up/is-mute")).reset(),
        }
    };
    let often = |times: usize| {
        thread::scope(|scope| {
            for first in 0..AT_ONCE {
                scope.spawn(move || (first * times..(first + 1) * times).for_each(once));
            }
        });
        gate.is_empty();
        gate.resident()
    };
    let before = often(300);
    let grown = often(700).saturating_sub(before);
    println!("{grown} bytes more after 2800 faults");
    assert!(grown < 3 << 20, "{grown} bytes");
}

// ---- the machine

#[test]
fn without_descriptors_everybody_waits_and_nobody_is_lost() {
    let backend = Backend::echo();
    let yaml = small(&backend, &format!("limits: {{ max_connections: {ROOM} }}\ntimeouts: {{ head: 2s }}\n"));
    let mut gate = config(&yaml).after("ulimit -n 64").level("info").start();
    let base = gate.base_line(ROOM);
    for _ in 0..3 {
        let mut clients: Vec<Wire> = (0..200).map(|_| gate.send(alice())).collect();
        let admin: Vec<Wire> = (0..100).map(|_| Wire::connect(gate.admin)).collect();
        // Some have a tunnel, others are told that there is no room, once it is their turn.
        let mut open = 0;
        for client in &mut clients {
            let status = crate::support::head::status(&client.read_head());
            assert!([101, 503].contains(&status), "{status}");
            if status == 101 {
                client.send(text("here"));
                client.expect(text("here"));
                client.shutdown_write();
                client.read_to_close();
                open += 1;
            }
        }
        assert!(open >= 1, "somebody had a tunnel");
        drop((clients, admin));
        gate.returns_to(&base);
    }
    gate.is_well();
}

#[test]
fn a_reload_without_descriptors_is_a_failed_one_and_the_next_one_works() {
    let backend = Backend::echo();
    // Each file of keys wants a descriptor of its own, one at a time: it is the pattern that cannot be read.
    let yaml = small(&backend, "");
    let mut gate = config(&yaml).start();
    let limit = |most: u64| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(gate.pid()).unwrap());
        let limit = rustix::process::Rlimit { current: Some(most), maximum: Some(1 << 10) };
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
    };
    let mut client = gate.open(alice());
    gate.metrics();
    limit(4);
    let line = gate.fails_to_reload(|| gate.signal(Signal::HUP));
    assert!(line.get("error").contains("too many files are open"), "{line:?}");
    client.send(text("still"));
    client.expect(text("still"));
    limit(1 << 10);
    gate.log_line(|line| line.is("reloaded"));
    gate.open(alice());
    gate.is_well();
}

/// Standard error is full, closed, or a pipe that nobody reads.
fn a_gate_that_logs_to(place: impl Into<std::process::Stdio>) -> (Backend, Gate) {
    let backend = Backend::echo();
    let yaml = small(&backend, &format!("limits: {{ max_connections: {ROOM} }}\n"));
    let gate = config(&yaml).log_to(place).start();
    (backend, gate)
}

fn full() -> OwnedFd {
    fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn without_room_for_its_log_it_serves_and_reloads_and_ends_well() {
    let (_backend, mut gate) = a_gate_that_logs_to(full());
    serves_without_a_log(&mut gate);
    gate.signal(Signal::TERM);
    assert!(gate.exit().success());
}

#[test]
fn without_a_reader_of_its_log_it_serves_and_reloads_and_ends_well() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (_backend, mut gate) = a_gate_that_logs_to(writer);
    drop(reader);
    serves_without_a_log(&mut gate);
    gate.signal(Signal::TERM);
    assert!(gate.exit().success());
}

/// The worst of all: whoever writes to it waits for ever.
#[test]
fn with_a_reader_of_its_log_that_has_stopped_nobody_waits_for_that() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (_backend, mut gate) = a_gate_that_logs_to(writer);
    serves_without_a_log(&mut gate);
    let lost = gate.metric("wsbouncer_log_lines_lost_total", &[]);
    // It reads again: what fits was kept, every line is whole, and one says how many are missing.
    let lines = read_lines(&mut reader, &gate);
    assert!(lines.iter().any(|line| line.contains("lines of the log were lost")), "nothing said after {lost}");
    for line in &lines {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    gate.signal(Signal::TERM);
    let rest = thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    assert!(gate.exit().success());
    rest.join().unwrap().unwrap();
}

/// Reads until the log has told of what was lost, while the gate goes on.
fn read_lines(reader: &mut PipeReader, gate: &Gate) -> Vec<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&text).contains("lines of the log were lost\"") {
        assert!(text.len() < 4 << 20, "much is read, and nothing is said of what was lost");
        drop(gate.open(alice()));
        let count = reader.read(&mut buffer).unwrap();
        text.extend(&buffer[..count]);
    }
    let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap();
    String::from_utf8_lossy(&text[..whole]).lines().map(str::to_owned).collect()
}

/// More lines than a pipe has room for, and everything that writes one.
#[track_caller]
fn serves_without_a_log(gate: &mut Gate) {
    let base = gate.base_line(ROOM);
    for n in 0..300 {
        let mut client = gate.open(alice().with("Origin", &format!("https://{}.example", "long".repeat(50))));
        client.send(text("served"));
        client.expect(text("served"));
        assert_eq!(gate.ask_status(ws("/ws")), 401);
        if n % 50 == 0 {
            gate.signal(Signal::HUP);
            gate.replace("wsbouncer.yaml", &gate.yaml().replace("id: alice", "id: ["));
            eventually("the file is found to be bad", || !is_loaded(gate));
            gate.replace("wsbouncer.yaml", &gate.yaml().replace("id: [", "id: alice"));
            eventually("the file is good again", || is_loaded(gate));
        }
    }
    eventually("lost lines are counted", || gate.metric("wsbouncer_log_lines_lost_total", &[]) > 0.0);
    // The thread that says how many is idle: what spins burns a second of the processor in each second.
    let before = processor_time(gate);
    pause(Duration::from_millis(500));
    let used = processor_time(gate) - before;
    assert!(used < 20, "{used} hundredths of a second in half a second of nothing to do");
    gate.returns_to(&base);
    assert!(gate.is_running());
}

fn is_loaded(gate: &Gate) -> bool {
    gate.metric("wsbouncer_config_last_reload_success", &[]) == 1.0
}

/// In hundredths of a second (proc_pid_stat(5): utime and stime).
fn processor_time(gate: &Gate) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", gate.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

// ---- the operator

#[test]
fn a_directory_of_the_configuration_that_goes_and_comes_back() {
    let backend = Backend::echo();
    let home = tempfile::TempDir::new().unwrap();
    let (at, away) = (home.path().join("etc"), home.path().join("away"));
    fs::create_dir(&at).unwrap();
    let file = at.join("wsbouncer.yaml");
    let good = crate::support::setup::complete(&small(&backend, &format!("limits: {{ max_connections: {ROOM} }}\n")));
    fs::write(&file, &good).unwrap();
    let mut gate = config("").at(&file).start();
    let base = gate.base_line(ROOM);
    let mut client = gate.open(alice());
    let mut still = |gate: &Gate| {
        client.send(text("still"));
        client.expect(text("still"));
        drop(gate.open(alice()));
    };
    for round in 0..3 {
        let failed = || gate.log_lines(|line| line.is("reload failed")).len();
        let before = failed();
        gate.fails_to_reload(|| fs::rename(&at, &away).unwrap());
        still(&gate);
        assert_eq!(gate.metric("wsbouncer_config_last_reload_success", &[]), 0.0);
        if round > 0 {
            // Whoever asks is told again; nobody else is, each second.
            gate.fails_to_reload(|| gate.signal(Signal::HUP));
            pause(Duration::from_millis(2500));
            assert_eq!(failed(), before + 2, "one line for each that asked");
        }
        gate.reloads(|| fs::rename(&away, &at).unwrap());
        still(&gate);
        // It is watched again, and a change takes effect: the second key gets in.
        let secret = format!("bobs-secret-{round}-0123456789");
        let more = good.replace("keys:\n", &format!("keys:\n  - {{ id: bob, secret: {secret} }}\n"));
        gate.reloads(|| write_over(&file, &more));
        drop(gate.open(ws("/ws").with("X-Api-Key", &secret)));
        gate.reloads(|| write_over(&file, &good));
        gate.refuses(ws("/ws").with("X-Api-Key", &secret), 401, "invalid_credential");
    }
    drop(client);
    gate.returns_to(&base);
    gate.is_well();
}

fn write_over(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

#[test]
fn a_hangup_from_the_very_first_line_on_is_a_reload() {
    let backend = Backend::echo();
    for _ in 0..5 {
        let mut gate = Gate::start(&small(&backend, ""));
        gate.signal(Signal::HUP);
        gate.log_line(|line| line.is("reloaded"));
        gate.is_well();
    }
}

/// Clients that come, talk and go, until told to stop.
fn traffic<'s>(scope: &'s thread::Scope<'s, '_>, gate: &Gate, stop: &Arc<AtomicBool>) -> Arc<AtomicUsize> {
    let (addr, talked) = (gate.addr, Arc::new(AtomicUsize::new(0)));
    for _ in 0..6 {
        let (stop, talked) = (stop.clone(), talked.clone());
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                // Once the gate is told to end, anything may happen but silence.
                let Ok(stream) = std::net::TcpStream::connect(addr) else { continue };
                let mut wire = Wire::new(crate::support::wire::Stream::Tcp(stream));
                let mut last = 0;
                let _ = wire.try_send(alice().bytes());
                for n in 0..20 {
                    let message = text(&format!("message {n}"));
                    if wire.try_send(&message).is_err() || !wire.read_some().is_ok_and(|bytes| !bytes.is_empty()) {
                        break;
                    }
                    last = n;
                }
                if last > 0 {
                    talked.fetch_add(1, Ordering::SeqCst);
                }
                wire.read_until_quiet();
            }
        });
    }
    talked
}

#[test]
fn signals_in_any_order_under_load() {
    for seed in 0..6 {
        let mut dice = Dice(seed * 7919 + 1);
        let backend = Backend::echo();
        let mut gate = config(&small(&backend, "drain: { timeout: 3s, spread: 300ms }\n")).level("info").start();
        let address = gate.addr;
        let stop = Arc::new(AtomicBool::new(false));
        let ends_well = thread::scope(|scope| {
            let talked = traffic(scope, &gate, &stop);
            eventually("there is traffic", || talked.load(Ordering::SeqCst) > 5);
            for _ in 0..dice.roll(20) {
                gate.signal(Signal::HUP);
                pause(Duration::from_millis(dice.roll(40) as u64));
            }
            let kills = seed % 3 == 2;
            for _ in 0..dice.roll(4) {
                gate.try_signal(if dice.roll(2) == 0 { Signal::HUP } else { Signal::TERM });
                pause(Duration::from_millis(dice.roll(300) as u64));
            }
            gate.try_signal(if kills { Signal::KILL } else { Signal::TERM });
            let status = gate.exit();
            stop.store(true, Ordering::SeqCst);
            assert!(kills || status.success(), "{status}");
            status.success()
        });
        if ends_well {
            let (opened, closed) = (ids(&gate, "tunnel opened"), ids(&gate, "tunnel closed"));
            assert_eq!(opened, closed, "every tunnel that began has an end");
            assert!(!gate.raw_log().contains("panicked"));
        }
        // The next one takes its place at once, whatever the last one has left.
        let mut next = Gate::start(&format!("listen: {address}\n{}", small(&backend, "")));
        drop(next.open(alice()));
        next.is_well();
    }
}

fn ids(gate: &Gate, message: &str) -> Vec<String> {
    let mut ids: Vec<String> = gate.log_lines(|line| line.is(message)).iter().map(|line| line.get("id")).collect();
    ids.sort();
    ids
}

#[test]
fn a_killed_gate_takes_both_ends_with_it() {
    let backend = Backend::manual();
    let mut gate = Gate::start(&small(&backend, ""));
    let client = gate.send(alice());
    let mut up = backend.next();
    up.accept();
    let (mut client, _) = client.opened();
    gate.signal(Signal::KILL);
    gate.exit();
    client.read_to_close();
    up.read_to_close();
}
