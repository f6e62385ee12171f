//! The commands: what they print where, and how they end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::support::frames::text;
use crate::support::head::status;
use crate::support::wait::eventually_some;
use crate::support::{Backend, Gate, KEY, Wire, alice, small, stand, ws};

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wsbouncer"));
    command.env_remove("WSBOUNCER_CONFIG").env_remove("WSBOUNCER_LOG").env_remove("WSBOUNCER_LOG_FORMAT");
    command
}

/// Runs to its end: exit code, stdout, stderr.
#[track_caller]
fn run(args: &[&str], stdin: &str) -> (i32, String, String) {
    let child = command().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

fn written(dir: &TempDir, yaml: &str) -> String {
    let path = dir.path().join("wsbouncer.yaml");
    std::fs::write(&path, yaml).unwrap();
    path.display().to_string()
}

// ---- help and usage

#[test]
fn help_explains_every_command() {
    for args in [
        &["--help"][..],
        &["serve", "--help"],
        &["check", "--help"],
        &["key", "--help"],
        &["key", "new", "--help"],
        &["key", "hash", "--help"],
        &["probe", "--help"],
        &["demo", "--help"],
    ] {
        let (code, out, err) = run(args, "");
        assert_eq!(code, 0, "{args:?}");
        assert!(out.len() > 200 && err.is_empty(), "{args:?}: {out}{err}");
    }
    let (code, out, _) = run(&["--version"], "");
    assert_eq!((code, out.trim()), (0, concat!("wsbouncer ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &[][..],
        &["frobnicate"],
        &["serve"],
        &["serve", "--confg", "x"],
        &["serve", "--config", "x", "--log-format", "xml"],
        &["check"],
        &["key"],
        &["key", "new"],
        &["probe", "https://127.0.0.1/"],
        &["demo", "--listen", "8080"],
    ] {
        let (code, out, err) = run(args, "");
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(out.is_empty() && !err.is_empty(), "{args:?}");
    }
}

// ---- serve

#[test]
fn serve_with_a_bad_file_is_2_and_says_everything() {
    let dir = TempDir::new().unwrap();
    let file = written(&dir, "listen: nowhere\nupstrem: ws://127.0.0.1:9\ntimeouts: { head: 10 }\n");
    let (code, out, err) = run(&["serve", "--config", &file], "");
    assert_eq!((code, &*out), (2, ""), "{err}");
    for part in ["wsbouncer.yaml:1:", "wsbouncer.yaml:2:", "wsbouncer.yaml:3:", "upstrem", "upstream", "timeouts"] {
        assert!(err.contains(part), "{part} in {err}");
    }
    let (code, _, err) = run(&["serve", "--config", "/nonexistent/wsbouncer.yaml"], "");
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("/nonexistent/wsbouncer.yaml"), "{err}");
}

#[test]
fn serve_on_a_port_that_is_taken_is_1() {
    let (_backend, gate) = stand();
    let dir = TempDir::new().unwrap();
    let file = written(
        &dir,
        &format!("listen: {}\nadmin: off\nupstream: ws://127.0.0.1:9\nkeys: [ {{ id: a, secret: s }} ]\n", gate.addr),
    );
    let (code, _, err) = run(&["serve", "--config", &file], "");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&gate.addr.to_string()), "{err}");
}

/// A port as a busy process leaves it behind: with connections that the system remembers for a minute. To get such a port
/// takes a moment. Not the address that clients connect from: a socket may be given the very port that it connects to.
fn busy_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let address = listener.local_addr().unwrap();
    for _ in 0..4000 {
        let mut client = TcpStream::connect(address).unwrap();
        drop(listener.accept().unwrap());
        client.read_to_end(&mut Vec::new()).unwrap();
    }
    address
}

/// It looks whether the port is free before it listens there; who connects meanwhile must not notice.
#[test]
fn the_first_connection_to_a_process_that_starts_is_served() {
    for _ in 0..6 {
        let address = busy_port();
        let first = move || {
            let connect = || (0..100_000).find_map(|_| TcpStream::connect(address).ok());
            let mut stream = eventually_some("somebody listens", connect);
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let client = std::thread::spawn(first);
        let gate = Gate::start(&format!("listen: {address}\n{}", small(&Backend::echo(), "")));
        let answer = client.join().unwrap().expect("whoever got in is not thrown out");
        assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
        drop(gate);
    }
}

#[test]
fn an_admin_listener_for_everybody_has_to_be_wanted() {
    let dir = TempDir::new().unwrap();
    let file = written(
        &dir,
        "listen: 127.0.0.1:0\nadmin: 0.0.0.0:0\nupstream: ws://127.0.0.1:9\nkeys: [ { id: a, secret: s } ]\n",
    );
    let (code, _, err) = run(&["serve", "--config", &file], "");
    assert_eq!(code, 2);
    assert!(err.contains("allow_remote"), "{err}");
}

#[test]
fn the_environment_can_stand_for_the_flags() {
    let backend = Backend::echo();
    let dir = TempDir::new().unwrap();
    let file = written(&dir, &format!("listen: 127.0.0.1:0\nadmin: off\n{}", small(&backend, "")));
    let child = command()
        .arg("serve")
        .envs([("WSBOUNCER_CONFIG", &*file), ("WSBOUNCER_LOG_FORMAT", "json"), ("WSBOUNCER_LOG", "info")])
        .stderr(Stdio::piped())
        .spawn();
    let mut child = Killed(child.unwrap());
    let lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let mut events = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    assert!(events.any(|event| event["message"] == "listening"));
}

/// Ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- check

#[test]
fn check_says_ok_in_one_line_or_everything_that_is_wrong() {
    let dir = TempDir::new().unwrap();
    let digest: String = Sha256::digest("x").iter().map(|byte| format!("{byte:02x}")).collect();
    let good = format!(
        "listen: 127.0.0.1:8080\nupstream: ws://127.0.0.1:9\nkeys: [ {{ id: a, secrets: [ {{ sha256: \"{digest}\" }} ] }} ]\n"
    );
    let file = written(&dir, &good);
    let (code, out, err) = run(&["check", &file], "");
    assert_eq!((code, &*err), (0, ""));
    assert!(out.starts_with(&format!("{file}: ok (")) && out.lines().count() == 1, "{out}");

    let file = written(
        &dir,
        "listen: 127.0.0.1:8080\nupstream: ws://127.0.0.1:9\nkeys: [ { id: a, secret: canary-plain } ]\n",
    );
    let (code, out, err) = run(&["check", &file], "");
    assert_eq!(code, 0, "a warning is no fault: {err}");
    assert!(out.contains(": ok (") && err.contains("plain") && !err.contains("canary-plain"), "{out}{err}");

    let file = written(
        &dir,
        "listen: 127.0.0.1:8080\nupstream: ws://127.0.0.1:9\nkeys: [ { id: a, secret: x, routs: [ b ] } ]\ndrain: { timeout: 5 }\n",
    );
    let (code, out, err) = run(&["check", &file], "");
    assert_eq!((code, &*out), (2, ""));
    for part in ["wsbouncer.yaml:3:", "routs", "routes", "wsbouncer.yaml:4:", "drain"] {
        assert!(err.contains(part), "{part} in {err}");
    }
    let (code, _, err) = run(&["check", "/nonexistent.yaml"], "");
    assert_eq!(code, 2);
    assert!(err.contains("/nonexistent.yaml"), "{err}");
}

/// `config/examples`: they name variables that whoever uses them has to set.
#[test]
fn the_shipped_examples_are_good_with_the_variables_that_they_name() {
    let files: Vec<_> = std::fs::read_dir("config/examples").unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files {
        let check = |variables: &[(&str, &str)]| {
            command()
                .arg("check")
                .arg(&file)
                .env_remove("OPENAI_API_KEY")
                .envs(variables.iter().copied())
                .output()
                .unwrap()
        };
        let good = check(&[("OPENAI_API_KEY", "vendor-key")]);
        let err = String::from_utf8(good.stderr).unwrap();
        assert_eq!((good.status.code(), &*err), (Some(0), ""), "{}", file.display());
        let without = check(&[]);
        let err = String::from_utf8(without.stderr).unwrap();
        assert!(without.status.code() == Some(2) && err.contains("OPENAI_API_KEY"), "{err}");
    }
}

#[test]
fn check_opens_no_port() {
    let (_backend, gate) = stand();
    let dir = TempDir::new().unwrap();
    let file = written(
        &dir,
        &format!("listen: {}\nupstream: ws://127.0.0.1:9\nkeys: [ {{ id: a, secret: s }} ]\n", gate.addr),
    );
    assert_eq!(run(&["check", &file], "").0, 0);
}

// ---- key

/// The first line is the key, the rest after an empty line goes into the file.
#[track_caller]
fn new_key(id: &str) -> (String, String) {
    let (code, out, err) = run(&["key", "new", "--id", id], "");
    assert_eq!(code, 0, "{err}");
    let (key, yaml) = out.split_once("\n\n").unwrap_or_else(|| panic!("{out}"));
    (key.to_owned(), yaml.to_owned())
}

#[test]
fn a_new_key_works_with_the_lines_that_come_with_it() {
    let (key, yaml) = new_key("dashboard");
    assert!(key.starts_with("wsb_") && key.len() >= 32, "{key}");
    assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{key}");
    assert!(!yaml.contains(&key) && yaml.contains("sha256"), "{yaml}");
    let backend = Backend::echo();
    let gate = Gate::start(&format!("upstream: {}\nkeys:\n{yaml}", backend.url()));
    gate.open(ws("/ws").with("X-Api-Key", &key));
    gate.open(ws("/ws").offer(&format!("x-api-key, {key}")));
    assert_eq!(backend.last_head().get("X-Auth-Key-Id"), Some("dashboard"));
    assert_ne!(new_key("dashboard").0, key);
}

#[test]
fn a_hash_is_the_line_for_the_file() {
    let digest: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    for stdin in [KEY.to_owned(), format!("{KEY}\n"), format!("{KEY}\r\n")] {
        let (code, out, err) = run(&["key", "hash"], &stdin);
        assert_eq!((code, out.trim()), (0, &*format!("sha256: \"{digest}\"")), "{err}");
        assert!(!err.contains(KEY));
    }
    for stdin in ["", "\n", "two\nlines\n"] {
        let (code, out, _) = run(&["key", "hash"], stdin);
        assert_eq!((code, &*out), (1, ""), "{stdin:?}");
    }
    let backend = Backend::echo();
    let gate = Gate::start(&format!(
        "upstream: {}\nkeys: [ {{ id: alice, secrets: [ {{ sha256: \"{digest}\" }} ] }} ]\n",
        backend.url()
    ));
    gate.open(alice());
}

// ---- probe

#[test]
fn probe_is_0_only_when_the_answer_is_200() {
    let (backend, gate) = stand();
    let url = |path: &str| format!("http://{}{path}", gate.admin);
    let (code, out, _) = run(&["probe", &url("/readyz")], "");
    assert_eq!(code, 0);
    assert!(out.contains("200"), "{out}");
    assert_eq!(run(&["probe", &url("/nothing")], "").0, 1);
    let client = gate.send(alice());
    backend.next().accept();
    let _tunnel = client.opened();
    gate.signal(Signal::TERM);
    gate.log_line(|line| line.is("draining"));
    let admin = gate.admin;
    drop(gate);
    let (code, out, err) = run(&["probe", &format!("http://{admin}/readyz")], "");
    assert_eq!((code, &*out), (1, ""));
    assert!(!err.is_empty());
}

#[test]
fn probe_is_1_while_it_drains() {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, "drain: { timeout: 20s, spread: 20s }\n"));
    let tunnels: Vec<_> = (0..2)
        .map(|_| {
            let client = gate.send(alice());
            let mut up = backend.next();
            up.accept();
            (client.opened().0, up)
        })
        .collect();
    gate.signal(Signal::TERM);
    gate.log_line(|line| line.is("draining"));
    crate::support::eventually("the probe fails", || {
        run(&["probe", &format!("http://{}/readyz", gate.admin)], "").0 == 1
    });
    drop(tunnels);
}

// ---- demo

#[test]
fn the_demo_prints_lines_that_work_and_cleans_up() {
    let child =
        command().args(["demo", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Killed(child.unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut field = |name: &str| -> String {
        let line = lines.find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let (proxy, key, file) = (field("proxy"), field("key"), field("file"));
    let address = proxy.trim_start_matches("ws://").trim_end_matches('/').parse().unwrap();
    let mut client = Wire::connect(address);
    client.send(ws("/").offer(&format!("x-api-key, {key}")).bytes());
    let (mut client, head) = client.opened();
    assert_eq!(head.get("Sec-WebSocket-Protocol"), Some("x-api-key"));
    client.send(text("hello"));
    assert_eq!(client.read_frame().payload, b"hello");
    let mut stranger = Wire::connect(address);
    stranger.send(ws("/").bytes());
    assert_eq!(stranger.read_answer().status(), 401);

    // As it says: take the key out of the file, and the connection is closed.
    let yaml = std::fs::read_to_string(&file).unwrap();
    assert!(!yaml.contains(&key));
    std::fs::write(&file, yaml.replace("id: demo", "id: other").replace("sha256: \"", "plain: \"x")).unwrap();
    assert_eq!(client.read_close().0, 4401);

    let pid = Pid::from_raw(i32::try_from(child.0.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let mut rest = String::new();
    for line in lines {
        rest += &line;
    }
    assert!(rest.contains("new WebSocket(") && rest.contains("curl"), "{rest}");
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    assert!(!Path::new(&file).exists());
}

/// The two lines of "try this" are pasted as they stand.
#[test]
fn the_demo_shows_how_to_revoke_its_key_and_how_to_undo_that() {
    let child = command()
        .args(["demo", "--listen", "127.0.0.1:0", "--log-level", "trace"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = Killed(child.unwrap());
    let mut stderr = child.0.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text).unwrap()
    });
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut line =
        |start: &str| lines.find_map(|line| Some(line.trim().to_owned()).filter(|line| line.starts_with(start)));
    let (proxy, key) = (line("proxy").unwrap(), line("key").unwrap());
    let (revoke, undo) = (line("sed ").unwrap(), line("mv ").unwrap());
    let address = proxy.split_once("ws://").unwrap().1.trim_end_matches('/').parse().unwrap();
    let key = key.split_whitespace().nth(1).unwrap();
    let paste = |line: &str| assert!(Command::new("sh").args(["-c", line]).status().unwrap().success(), "{line}");
    let dial = || {
        let mut client = Wire::connect(address);
        client.send(ws("/").with("X-Api-Key", key).bytes());
        client
    };

    let (mut client, _) = dial().opened();
    paste(&revoke);
    assert_eq!(client.read_close().0, 4401);
    assert_eq!(dial().read_answer().status(), 401);
    paste(&undo);
    crate::support::eventually("the key works again", || status(&dial().read_head()) == 101);

    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    let log = log.join().unwrap();
    assert!(log.contains("tunnel opened") && !log.contains(key), "{log}");
}

#[test]
fn the_demo_on_a_port_that_is_taken_is_1_and_says_what_to_do() {
    let (_backend, gate) = stand();
    let (code, _, err) = run(&["demo", "--listen", &gate.addr.to_string()], "");
    assert_eq!(code, 1);
    assert!(err.contains("--listen"), "{err}");
}

#[test]
fn output_into_a_closed_pipe_is_no_panic() {
    for args in [&["--help"][..], &["key", "new", "--id", "x"], &["demo", "--listen", "127.0.0.1:0"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command().args(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let err = String::from_utf8(stderr).unwrap();
        assert!(!err.contains("panicked"), "{err}");
        assert!(args.contains(&"--help") || status.code() == Some(1), "{args:?}: {err}");
    }
}
