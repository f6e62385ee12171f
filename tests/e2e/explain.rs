//! `wsbouncer explain` says of a request what the proxy does with it, and `check --format json` what `check` says.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Backend, Gate, KEY, Request, ws};

const BINARY: &str = env!("CARGO_BIN_EXE_wsbouncer");
const PAGE: &str = "https://page.test";

/// What a command printed on stdout and stderr, and its exit code.
struct Told {
    out: String,
    err: String,
    code: i32,
}

#[track_caller]
fn run(args: &[&str], stdin: &[u8]) -> Told {
    let piped = || Stdio::piped();
    let mut child = Command::new(BINARY).args(args).stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
    // Whoever does not read it has ended already.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Told { out: text(output.stdout), err: text(output.stderr), code: output.status.code().unwrap() }
}

fn yaml(upstream: &str) -> String {
    format!(
        "listen: 127.0.0.1:0\nadmin: off\ntrusted_proxies: [10.0.0.0/8]\nroutes:\n\
         - {{ name: main, path: /ws, upstream: \"{upstream}\", allowed_origins: [\"{PAGE}\"], tickets: {{ path: /ticket }} }}\n\
         - {{ name: pages, path: /pages/*, upstream: \"{upstream}\", http: forward }}\n\
         - {{ name: later, path: /later, upstream: \"{upstream}\", auth: [api_key: {{ extract_from: {{ first_message: {{ format: text }} }} }}] }}\n\
         keys:\n\
         - {{ id: alice, secret: {KEY}, routes: [main, pages, later] }}\n\
         - {{ id: off, secret: disabled-secret-012345, disabled: true }}\n\
         - {{ id: old, secret: expired-secret-0123456, expires_at: 2020-01-01 }}\n\
         - {{ id: bob, secret: bob-secret-0123456789, routes: [pages] }}\n"
    )
}

/// The file, and its path.
fn file(yaml: &str) -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("wsbouncer.yaml");
    fs::write(&path, yaml).unwrap();
    let path = path.display().to_string();
    (dir, path)
}

/// Every refusal is explained as the proxy refuses it, word for word; and what is let in is.
#[test]
fn it_says_what_the_proxy_does() {
    let backend = Backend::echo();
    let yaml = yaml(&backend.url());
    let gate = Gate::start(&yaml.replace("admin: off", "admin: 127.0.0.1:0"));
    let (_dir, path) = file(&yaml);
    let mine = || ws("/ws").with("X-Api-Key", KEY);
    let requests: [Request; 14] = [
        mine(),
        mine().with("Origin", PAGE),
        mine().with("Origin", "https://evil.test"),
        ws("/ws"),
        ws("/ws").with("X-Api-Key", "wrong"),
        ws("/ws").with("X-Api-Key", "disabled-secret-012345"),
        ws("/ws").with("X-Api-Key", "expired-secret-0123456"),
        ws("/ws").with("X-Api-Key", "bob-secret-0123456789"),
        mine().offer(&format!("x-api-key, {KEY}")),
        ws("/ws").offer(&format!("chat, x-api-key, {KEY}")),
        ws("/nowhere").with("X-Api-Key", KEY),
        ws("/ws/../ws").with("X-Api-Key", KEY),
        mine().set("Sec-WebSocket-Version", "8"),
        mine().without("Upgrade").without("Connection"),
    ];
    for request in requests {
        let told = run(&["explain", "-c", &path, "--request", "-", "--format", "json"], &request.bytes());
        let says: Value = serde_json::from_str(&told.out).unwrap_or_else(|error| panic!("{error}: {}", told.err));
        let outcome = &says["outcome"];
        let mut wire = gate.send(&request);
        let head = wire.read_head();
        if outcome["let_in"] == true {
            assert!(head.first.contains(" 101 ") && told.code == 0, "{request:?}: {}", head.first);
            continue;
        }
        let answer = crate::support::head::Answer { body: wire.read_to_end(), head };
        assert_eq!(told.code, 1);
        assert_eq!(outcome["status"], answer.status(), "{request:?}");
        assert_eq!(outcome["reason"], answer.field("reason"));
        assert_eq!(outcome["detail"], answer.field("detail"));
        let line = gate.log_line(|line| line.is("refused") && line.get("id") == answer.field("request_id"));
        assert_eq!(outcome["cause"].as_str().unwrap_or_default(), line.get("cause"));
        assert_eq!(outcome["key"].as_str().unwrap_or_default(), line.get("key"));
        assert!(!outcome["to_let_it_in"].as_str().unwrap().is_empty());
    }
}

#[test]
fn it_is_for_people_and_shows_no_secret() {
    let (_dir, path) = file(&yaml("ws://127.0.0.1:1"));
    let explain = |args: &[&str]| {
        let told = run(&[&["explain", "-c", &path], args].concat(), b"");
        assert!(!told.out.contains(KEY) && !told.err.contains(KEY), "{}", told.out);
        told
    };
    let header = format!("X-Api-Key: {KEY}");
    let told = explain(&["--url", "ws://gate.test/ws?token=canary-1", "-H", &header, "--origin", PAGE]);
    assert_eq!(told.code, 0, "{}", told.out);
    assert!(told.out.starts_with("GET /ws\n  1 caller      127.0.0.1"), "{}", told.out);
    assert!(
        told.out.contains("  5 principal   the key alice\n") && told.out.contains("let in: ws://127.0.0.1:1 would be")
    );
    assert!(!told.out.contains("canary"), "{}", told.out);

    let told = explain(&["--url", "wss://gate.test/ws", "--subprotocol", "x-api-key", "--subprotocol", KEY]);
    assert!(told.out.contains("as new WebSocket(url, [\"x-api-key\", \"<key>\"])"), "{}", told.out);

    let told = explain(&["--url", "ws://gate.test/ws", "-H", "X-Forwarded-For: 203.0.113.7", "--from", "10.1.2.3"]);
    assert!(told.code == 1 && told.out.contains("203.0.113.7, as a trusted proxy says"), "{}", told.out);
    assert!(told.out.contains("refused: 401 missing_credential") && told.out.contains("to let it in"), "{}", told.out);

    let curl = format!("curl -s http://gate.test/pages/a?b=1 -H 'X-Api-Key: {KEY}'");
    assert!(explain(&["--curl", &curl]).out.contains("it would be forwarded"));
    let curl = format!("curl -X POST http://gate.test/ticket -H 'X-Api-Key: {KEY}'");
    assert!(explain(&["--curl", &curl]).out.contains("the counter for tickets would answer HTTP/1.1 200 OK"));
    assert!(explain(&["--url", "ws://gate.test/later"]).out.contains("the first message"));
    let told = explain(&["--url", "http://gate.test/ws", "--plain", "-H", &header]);
    assert!(told.code == 1 && told.out.contains("426 upgrade_required"), "{}", told.out);
}

/// Whoever does what `explain` says is let in.
#[test]
fn what_would_let_it_in_does() {
    let yaml = yaml("ws://127.0.0.1:1");
    let header = |key: &str| format!("X-Api-Key: {key}");
    let (mine, off, bobs) = (header(KEY), header("disabled-secret-012345"), header("bob-secret-0123456789"));
    let allowed = format!("allowed_origins: [\"{PAGE}\"]");
    for (args, says, from, to) in [
        (
            &["-H", &*bobs] as &[&str],
            "add the route to routes of the key bob",
            "routes: [pages]",
            "routes: [pages, main]",
        ),
        (&["-H", &off], "take disabled: true away from the key off", ", disabled: true", ""),
        (
            &["-H", &mine, "--origin", "https://evil.test"],
            "allowed_origins of the route",
            &*allowed,
            "allowed_origins: [\"https://evil.test\"]",
        ),
    ] {
        let explain = |yaml: &str| {
            let (_dir, path) = file(yaml);
            run(&[&["explain", "-c", &path, "--url", "ws://gate.test/ws"], args].concat(), b"")
        };
        let refused = explain(&yaml);
        assert!(refused.code == 1 && refused.out.contains(says), "{}", refused.out);
        let let_in = explain(&yaml.replace(from, to));
        assert_eq!(let_in.code, 0, "{}", let_in.out);
    }
}

#[test]
fn what_is_no_request_or_no_file_is_exit_code_2() {
    let (_dir, path) = file(&yaml("ws://127.0.0.1:1"));
    for args in [
        &["explain", "-c", &path] as &[&str],
        &["explain", "-c", &path, "--url", "ftp://x"],
        &["explain", "-c", &path, "--url", "ws://x", "-H", "no header"],
        &["explain", "-c", &path, "--curl", "curl 'x"],
        &["explain", "-c", &path, "--request", "/nowhere/at/all"],
        &["explain", "-c", "/nowhere/at/all", "--url", "ws://x"],
    ] {
        let told = run(args, b"");
        assert!(told.code == 2 && told.out.is_empty() && !told.err.is_empty(), "{args:?}: {}", told.err);
    }
    let told = run(&["explain", "-c", &path, "--request", "-"], b"GET / HTTP/1.1\nHost: a\nX: \x00\n");
    assert!(told.code == 1 && told.out.contains("400 bad_handshake"), "{}", told.out);
}

#[test]
fn check_says_the_same_in_json() {
    let bad = yaml("ws://127.0.0.1:1").replace("name: main", "nmae: main").replace("[pages]", "[pagse]");
    let (_dir, path) = file(&bad);
    let people = run(&["check", &path], b"");
    let machines = run(&["check", "--format", "json", &path], b"");
    assert_eq!((people.code, machines.code), (2, 2));
    let json: Value = serde_json::from_str(&machines.out).unwrap();
    assert_eq!(json["ok"], false);
    let problems = json["problems"].as_array().unwrap();
    assert!(!problems.is_empty());
    for problem in problems {
        let place = format!("{}:{}:{}: ", problem["file"].as_str().unwrap(), problem["line"], problem["column"]);
        let line = people.err.lines().find(|line| line.starts_with(&place)).unwrap_or_else(|| panic!("{place}"));
        assert!(line.ends_with(problem["says"].as_str().unwrap()), "{line}");
        assert!(problem["help"].is_null() || people.err.contains(problem["help"].as_str().unwrap()));
    }
    let (_dir, path) = file(&yaml("ws://127.0.0.1:1"));
    let good: Value = serde_json::from_str(&run(&["check", "--format", "json", &path], b"").out).unwrap();
    assert_eq!((&good["ok"], &good["routes"], &good["keys"]), (&true.into(), &3.into(), &4.into()));
    assert!(good["warnings"].as_array().unwrap().len() >= 4 && !good.to_string().contains(KEY));
}

#[test]
fn check_warns_of_what_is_probably_not_meant() {
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 5 + 1)).strftime("%Y-%m-%d").to_string();
    let digest = |byte: &str| byte.repeat(32);
    let yaml = format!(
        "listen: 127.0.0.1:0\nadmin: off\ntrusted_proxies: [0.0.0.0/0]\nroutes:\n\
         - {{ name: main, path: /ws, upstream: \"ws://127.0.0.1:1\", tickets: {{ path: /ticket }} }}\n\
         - {{ name: open, path: /open, upstream: \"ws://127.0.0.1:1\", auth: none }}\n\
         - {{ name: shut, path: /shut, upstream: \"ws://127.0.0.1:1\" }}\n\
         keys:\n\
         - {{ id: weak, routes: [main], secrets: [{{ plain: letmein }}] }}\n\
         - {{ id: same, routes: [main], secrets: [{{ plain: aaaaaaaaaaaaaaaaaaaaaaaa }}] }}\n\
         - {{ id: late, routes: [main], expires_at: {soon}, secrets: [{{ sha256: \"{}\" }}] }}\n\
         - {{ id: both, routes: [main], secrets: [{{ sha256: \"{}\" }}, {{ sha256: \"{}\" }}] }}\n\
         - {{ id: lost, routes: [open], secrets: [{{ sha256: \"{}\" }}] }}\n\
         - {{ id: gone, routes: [main], expires_at: 2020-01-01, secrets: [{{ sha256: \"{}\" }}] }}\n\
         - {{ id: left, routes: [main], secrets: [{{ sha256: \"{}\" }}, {{ sha256: \"{}\", valid_until: 2020-01-01 }}] }}\n",
        digest("11"),
        digest("22"),
        digest("33"),
        digest("44"),
        digest("55"),
        digest("66"),
        digest("77"),
    );
    let (_dir, path) = file(&yaml);
    let told = run(&["check", &path], b"");
    assert_eq!(told.code, 0, "{}", told.err);
    for says in [
        "every client is trusted to say who it is",
        "no key opens the route \"shut\"",
        "the route \"open\" is open to everybody",
        "the key \"weak\" has its secret in plain text",
        "this secret of the key \"weak\" is short enough to be guessed",
        "this secret of the key \"same\" is short enough to be guessed",
        "the key \"both\" has two secrets without an end",
        "the key \"lost\" opens no route",
        "the key \"gone\" has expired",
        "this secret of the key \"left\" has expired",
        "tickets are signed with a random secret of this process",
    ] {
        assert!(told.err.contains(says), "{says}: {}", told.err);
    }
    assert!(
        told.err.contains("the key \"late\" expires in 4 days")
            || told.err.contains("the key \"late\" expires in 5 days")
    );
    assert!(!told.err.contains("letmein"));
    let signed = yaml.replace("routes:\n-", &format!("tickets: {{ secrets: [{{ plain: {KEY}{KEY} }}] }}\nroutes:\n-"));
    let (_dir, path) = file(&signed);
    assert!(run(&["check", &path], b"").err.contains("a ticket can be used once on each replica"));
}
