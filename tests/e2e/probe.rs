//! `probe` with a ws:// URL: a client of its own, from the handshake to the service and back.

use std::process::Command;
use std::sync::mpsc;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::frames::{plain, plain_header};
use crate::support::wait::DEADLINE;
use crate::support::{Backend, Gate, KEY, route, small};

/// What became of one run. That the key is nowhere in it is looked at each time.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {}{}", self.out, self.err))
    }

    #[track_caller]
    fn is_well(&self) -> &Self {
        assert!(self.code == 0 && self.err.is_empty() && self.out.contains(": well\n"), "{}{}", self.out, self.err);
        self
    }

    /// Exit code 1, nothing on stdout, and each of these on stderr.
    #[track_caller]
    fn says(&self, parts: &[&str]) {
        assert_eq!((self.code, &*self.out), (1, ""), "{}", self.err);
        for part in parts {
            assert!(self.err.contains(part), "{part} in {}", self.err);
        }
    }
}

/// With `KEY` in the variable `PROBE_KEY` and another one in `PROBE_WRONG`.
#[track_caller]
fn probe(address: &str, args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_wsbouncer"))
        .args(["probe", &format!("ws://{address}/ws")])
        .args(args)
        .envs([("PROBE_KEY", KEY), ("PROBE_WRONG", "wrong-canary")])
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let ran = Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) };
    for key in [KEY, "wrong-canary"] {
        assert!(!ran.out.contains(key) && !ran.err.contains(key), "the key is printed: {}{}", ran.out, ran.err);
    }
    ran
}

fn through(gate: &Gate, args: &[&str]) -> Ran {
    probe(&gate.addr.to_string(), args)
}

const GOOD: [&str; 2] = ["--key-env", "PROBE_KEY"];
const WRONG: [&str; 2] = ["--key-env", "PROBE_WRONG"];

/// A gate before a service that answers Pings and echoes messages.
fn stand() -> (Backend, Gate) {
    let backend = Backend::echo_messages();
    let gate = Gate::start(&small(&backend, ""));
    (backend, gate)
}

/// Asked without a gate between: what a server may do wrong.
fn server(lines: &'static str, glued: impl Into<Vec<u8>>) -> Backend {
    let glued = glued.into();
    Backend::serve(move |mut conn| {
        let bytes = conn.accept_bytes(lines, &glued);
        conn.send(bytes);
        conn.linger();
    })
}

#[test]
fn a_good_key_gets_a_pong() {
    let (backend, gate) = stand();
    let ran = through(&gate, &GOOD);
    let out = &ran.is_well().out;
    for part in ["status        101", "subprotocol   none", "extensions    none", "X-Request-Id  "] {
        assert!(out.contains(part), "{part} in {out}");
    }
    for phase in ["connect ", "handshake ", "ping "] {
        assert!(out.lines().any(|line| line.trim().starts_with(phase) && line.ends_with(" ms")), "{phase} in {out}");
    }
    assert_eq!(backend.last_head().get("X-Auth-Key-Id"), Some("alice"));
    let closed = gate.log_line(|line| line.is("tunnel closed"));
    assert_eq!(closed.get("code"), "1000", "it says goodbye");
}

#[test]
fn the_key_comes_from_a_file_too() {
    let (_backend, gate) = stand();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key.txt");
    for end in ["", "\n", "\r\n"] {
        std::fs::write(&path, format!("{KEY}{end}")).unwrap();
        through(&gate, &["--key-file", path.to_str().unwrap()]).is_well();
    }
}

#[test]
fn the_key_goes_where_it_is_told_to() {
    let backend = Backend::echo_messages();
    let fields = "allowed_origins: [\"https://page.test\"]\nhost: a.test\nauth:\n  - api_key:\n      extract_from: \
                  [ bearer, { header: X-Other }, { subprotocol: { pair: x-api-key } } ]";
    let gate = Gate::start(&route(&backend, fields));
    let page = ["--origin", "https://page.test", "--host", "a.test"];
    through(&gate, &[&GOOD[..], &page, &["--header", "Authorization"]].concat()).is_well();
    through(&gate, &[&GOOD[..], &page, &["--header", "x-other"]].concat()).is_well();
    through(&gate, &[&GOOD[..], &page].concat()).says(&["401 missing_credential"]);
    through(&gate, &[&GOOD[..], &page[..2]].concat()).says(&["404 no_route"]);
    through(&gate, &[&GOOD[..], &page[2..], &["--origin", "https://x.test", "--header", "x-other"]].concat())
        .says(&["403 origin_not_allowed"]);
    let pair = ["--subprotocol-pair", "x-api-key", "--subprotocol", "chat", "--subprotocol", "talk"];
    let ran = through(&gate, &[&GOOD[..], &page, &pair].concat());
    assert!(ran.is_well().out.contains("subprotocol   x-api-key"), "{}", ran.out);
    assert_eq!(backend.last_head().get("Sec-WebSocket-Protocol"), Some("chat, talk"));
}

#[test]
fn a_wrong_key_is_told_why() {
    let (backend, gate) = stand();
    let id = |ran: &Ran| {
        let line = ran.err.lines().find_map(|line| line.trim().strip_prefix("X-Request-Id"));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let ran = through(&gate, &WRONG);
    ran.says(&[": refused: 401 invalid_credential", "detail  ", "status        401"]);
    assert_eq!(gate.log_line(|line| line.is("refused")).get("id"), id(&ran));
    through(&gate, &[]).says(&[": refused: 401 missing_credential"]);
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a_close_instead_of_an_answer_is_a_refusal() {
    let backend = Backend::echo_messages();
    let gate = Gate::start(&route(&backend, "on_failure: close"));
    let codes = ["101", "closed with 4401 invalid_credential"];
    through(&gate, &WRONG).says(&codes);
    through(&gate, &[&WRONG[..], &["--echo"]].concat()).says(&codes);
    let json = through(&gate, &[&WRONG[..], &["--format", "json"]].concat()).json();
    assert_eq!((&json["close"], &json["reason"]), (&4401.into(), &"invalid_credential".into()));
    let silent = server("", [0x88, 0]);
    probe(&silent.address(), &[]).says(&["closed with 1005"]);
}

#[test]
fn a_message_comes_back() {
    let (_backend, gate) = stand();
    let long = format!("--echo={}", "long ".repeat(20_000));
    for echo in ["--echo", "--echo=", "--echo=h\u{e9}llo", &long] {
        let ran = through(&gate, &[&GOOD[..], &[echo]].concat());
        assert!(ran.is_well().out.contains("  echo  ") && !ran.out.contains("  ping  "), "{}", ran.out);
    }
}

#[test]
fn what_comes_besides_is_passed_over() {
    let (done, is_done) = mpsc::channel();
    let backend = Backend::serve(move |mut conn| {
        let greeting = [plain(1, b"welcome"), plain(9, b"there?"), vec![0x01, 1, b'a', 0x80, 1, b'b']].concat();
        let bytes = conn.accept_bytes("", &greeting);
        conn.send(bytes);
        let question = conn.read_frame();
        let pong = conn.read_frame();
        assert!(question.masked && pong.masked && pong.opcode == 10 && pong.payload == b"there?");
        // In two pieces, and a Pong that nobody asked for between them.
        let (start, end) = question.payload.split_at(3);
        let mut first = plain(1, start);
        first[0] = 0x01;
        conn.send([first, plain(10, b"x"), plain(0, end)].concat());
        assert_eq!(conn.read_close().0, 1000);
        conn.send(plain(8, &1000_u16.to_be_bytes()));
        done.send(()).unwrap();
    });
    probe(&backend.address(), &["--echo=hello"]).is_well();
    is_done.recv_timeout(DEADLINE).expect("the service saw the question, a Pong and a Close");
}

#[test]
fn a_service_that_says_nothing_is_late() {
    let backend = Backend::serve(|mut conn| {
        conn.accept();
        let _ = conn.read_to_end();
    });
    let gate = Gate::start(&small(&backend, ""));
    let short = ["--timeout", "300ms"];
    through(&gate, &[&GOOD[..], &short].concat()).says(&[": late: ping: ", "status        101"]);
    through(&gate, &[&GOOD[..], &short, &["--echo"]].concat()).says(&[": late: echo: "]);
    let json = through(&gate, &[&GOOD[..], &short, &["--format", "json"]].concat()).json();
    assert_eq!((&json["outcome"], &json["during"]), (&"late".into(), &"ping".into()));
    let mute = Backend::manual();
    probe(&mute.address(), &short).says(&[": late: handshake: "]);
    // Bytes that trickle do not prolong it.
    let slow = Backend::serve(|mut conn| {
        conn.accept();
        while conn.try_send(plain(1, b"still here")).is_ok() {
            crate::support::pause(std::time::Duration::from_millis(20));
        }
    });
    probe(&slow.address(), &short).says(&[": late: ping: ", "other messages came"]);
}

#[test]
fn nobody_there_is_a_failure() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    probe(&address.to_string(), &[]).says(&[": failed: connect: "]);
}

#[test]
fn a_server_that_breaks_the_rules_is_a_failure() {
    let fails =
        |backend: &Backend, args: &[&str], why: &str| probe(&backend.address(), args).says(&[": failed: ", why]);
    fails(&Backend::answers("SSH-2.0-OpenSSH_9.2\r\n"), &[], "not HTTP");
    fails(&Backend::answers(""), &[], "ended before");
    let lines = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    fails(&Backend::answers(format!("HTTP/1.1 101 OK\r\n{lines}\r\n\r\n")), &[], "Sec-WebSocket-Accept");
    fails(&server("Sec-WebSocket-Extensions: permessage-deflate\r\n", ""), &[], "extension");
    fails(&server("Sec-WebSocket-Protocol: other\r\n", ""), &["--subprotocol", "chat"], "subprotocol");
    fails(&server("", plain_header(1, 2 << 20)), &[], "1 MiB");
    fails(&server("", [0x81, 0x81, 0, 0, 0, 0, 0]), &[], "no frame of a server");
    fails(&server("", [0xc1, 0x00]), &[], "no frame of a server");
    fails(&server("", [0x80, 0x00]), &[], "no frame of a server");
    fails(&server("", ""), &[], "ended before");
}

/// `probe` looks for the key in what is printed each time.
#[test]
fn a_server_that_says_the_key_does_not_get_it_printed() {
    let echo =
        server("Sec-WebSocket-Protocol: alice-secret-0123456789\r\nX-Request-Id: alice-secret-0123456789\r\n", "");
    let pair = [&GOOD[..], &["--subprotocol-pair", "x-api-key"]].concat();
    probe(&echo.address(), &pair).says(&["(the key)", "a subprotocol is selected that may not be"]);
    let body = format!("{{\"reason\":\"{KEY}\",\"detail\":\"no {KEY}\\u001b\"}}");
    let answer = format!("HTTP/1.1 401 {KEY}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let refusing = Backend::answers(answer);
    probe(&refusing.address(), &GOOD).says(&["401 (the key)", "no (the key)?"]);
    assert_eq!(probe(&refusing.address(), &[&GOOD[..], &["--format", "json"]].concat()).code, 1);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, format!("Bearer {KEY}")).unwrap();
    let with_scheme = ["--header", "Authorization", "--key-file", path.to_str().unwrap()];
    probe(&refusing.address(), &with_scheme).says(&["401 (the key)"]);
    assert_eq!(refusing.last_head().get("Authorization"), Some(&*format!("Bearer {KEY}")));
    let closing = server("", plain(8, &[&4401_u16.to_be_bytes()[..], KEY.as_bytes()].concat()));
    probe(&closing.address(), &GOOD).says(&["closed with 4401 (the key)"]);
}

#[test]
fn machines_read_json() {
    let (_backend, gate) = stand();
    let json = through(&gate, &[&GOOD[..], &["--format", "json"]].concat()).json();
    assert_eq!((&json["outcome"], &json["status"]), (&"well".into(), &101.into()));
    assert!(json["subprotocol"].is_null() && json["extensions"].is_null());
    for phase in ["connect", "handshake", "ping"] {
        assert!(json["took_ms"][phase].as_f64().is_some_and(|millis| millis >= 0.0), "{json}");
    }
    let ran = through(&gate, &[&WRONG[..], &["--format", "json"]].concat());
    let json = ran.json();
    assert_eq!((ran.code, &json["outcome"], &json["status"]), (1, &"refused".into(), &401.into()));
    assert_eq!(json["reason"], "invalid_credential");
    assert!(json["request_id"].as_str().is_some_and(|id| id.len() > 20), "{json}");
    assert!(json["close"].is_null() && json["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{json}");
}

#[test]
fn an_answer_of_another_kind_is_a_refusal_too() {
    let plain = Backend::answers("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n");
    probe(&plain.address(), &[]).says(&["refused: 404 Not Found"]);
}

#[test]
fn wrong_usage_is_2() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_wsbouncer")).arg("probe").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let url = "ws://127.0.0.1:9/";
    assert!(run(&["wss://127.0.0.1:9/"]).contains("TLS"));
    assert!(run(&["http://127.0.0.1:9/", "--echo"]).contains("ws://"));
    assert!(run(&["--timeout", "1s"]).contains("ws://"));
    let unset = run(&[url, "--key-env", "canary_it_is_the_key_itself"]);
    assert!(unset.contains("not set") && !unset.contains("canary"), "{unset}");
    assert!(run(&[url, "--key-file", "/nonexistent/key"]).contains("/nonexistent/key"));
    assert!(run(&[url, "--header", "X-Other"]).contains("no key"));
    assert!(run(&[url, "--subprotocol-pair", "x-api-key"]).contains("no key"));
    run(&[url, "--key", "x"]);
    run(&[url, "--key-env", "PATH", "--key-file", "x"]);
    run(&[url, "--timeout", "5"]);
    run(&[url, "--header", "Host"]);
    run(&[url, "--subprotocol", "a b"]);
    run(&[url, "--origin", "https://a\r\nX: y"]);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key");
    for bad in [&b""[..], b"\n", b"canary\nX: y\n", b"canary\x00", &[b'k'; 9000]] {
        std::fs::write(&path, bad).unwrap();
        let says = run(&[url, "--key-file", path.to_str().unwrap()]);
        assert!(says.contains("one line") && !says.contains("canary"), "{says}");
    }
    std::fs::write(&path, "not a token").unwrap();
    assert!(run(&[url, "--key-file", path.to_str().unwrap(), "--subprotocol-pair", "x"]).contains("subprotocol"));
}
