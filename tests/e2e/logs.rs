//! One line for a refusal, one when a tunnel opens, one when it closes; and no secret, ever, anywhere.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};

use crate::support::client::plain_get;
use crate::support::frames::{plain, text};
use crate::support::{Backend, Gate, Request, alice, config, eventually, stand, ws};

#[test]
fn a_tunnel_has_one_line_at_its_start_and_one_at_its_end() {
    let (backend, gate) = stand();
    let client = gate.send(alice().with("X-Request-Id", "tunnel-1").with("Origin", "https://a.example").offer("chat"));
    let mut up = backend.next();
    up.accept_with("Sec-WebSocket-Protocol: chat\r\n");
    let (mut client, _) = client.opened();
    client.send(text("hello"));
    up.expect(text("hello"));
    up.send(plain(1, b"hi"));
    client.expect(plain(1, b"hi"));
    drop(client);
    up.read_to_close();
    drop(up);
    gate.log_line(|line| line.is("tunnel closed"));
    let of_it = gate.log_lines(|line| line.get("id") == "tunnel-1");
    assert_eq!(of_it.len(), 2, "{of_it:?}");
    let [opened, closed] = &of_it[..] else { unreachable!() };
    assert!(opened.is("tunnel opened") && closed.is("tunnel closed"));
    for line in [opened, closed] {
        for (field, value) in [
            ("route", "default"),
            ("key", "alice"),
            ("caller", "127.0.0.1"),
            ("origin", "https://a.example"),
            ("subprotocol", "chat"),
        ] {
            assert_eq!(line.get(field), value, "{line:?}");
        }
        for field in ["timestamp", "level", "target"] {
            assert!(!line.get(field).is_empty(), "{field} in {line:?}");
        }
    }
    assert!(!opened.get("upstream").is_empty());
    assert_eq!(closed.get("cause"), "client");
    assert_eq!((closed.number("up_bytes"), closed.number("down_bytes")), (text("hello").len() as u64, 4));
    assert_eq!((closed.number("up_messages"), closed.number("down_messages")), (1, 1));
    assert!(closed.get("seconds").parse::<f64>().is_ok(), "{closed:?}");
}

#[test]
fn the_lines_for_people_say_the_same() {
    let backend = Backend::manual();
    let gate = config(&crate::support::small(&backend, "")).human().start();
    let client = gate.send(alice().with("X-Request-Id", "tunnel-1").offer("chat"));
    let mut up = backend.next();
    up.accept_with("Sec-WebSocket-Protocol: chat\r\n");
    let (mut client, _) = client.opened();
    client.send(text("hello"));
    up.expect(text("hello"));
    drop((client, up));
    gate.ask(ws("/ws").with("X-Request-Id", "refused-1"));
    let line = |with: &str| {
        eventually(with, || gate.raw_log().contains(with));
        let log = gate.raw_log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(with)).map(str::to_owned).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    let (opened, closed) = (line(" tunnel opened "), line(" tunnel closed "));
    for part in ["id=\"tunnel-1\"", "route=\"default\"", "key=\"alice\"", "caller=127.0.0.1", "subprotocol=\"chat\""] {
        assert!(opened.contains(part) && closed.contains(part), "{part} in {opened} and {closed}");
    }
    let up_bytes = format!("up_bytes={}", text("hello").len());
    for part in [&*up_bytes, "up_messages=1", "cause=", "seconds="] {
        assert!(closed.contains(part), "{part} in {closed}");
    }
    let refused = line(" refused ");
    for part in ["id=\"refused-1\"", "reason=\"missing_credential\"", "status=401"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
}

#[test]
fn a_refusal_has_one_line_with_all_that_is_known() {
    let (backend, gate) = stand();
    let request = ws("/ws?secret=canary").with("X-Api-Key", "wrong").with("Origin", "https://a.example");
    let answer = gate.refuses_before(&backend, request, 401, "invalid_credential");
    let line = gate.log_line(|line| line.get("id") == answer.field("request_id"));
    for (field, value) in [
        ("reason", "invalid_credential"),
        ("status", "401"),
        ("route", "default"),
        ("caller", "127.0.0.1"),
        ("host", "gate.test"),
        ("path", "/ws"),
        ("origin", "https://a.example"),
    ] {
        assert_eq!(line.get(field), value, "{line:?}");
    }
    assert_eq!(line.get("detail"), answer.field("detail"));
    assert!(!line.get("cause").is_empty() && !gate.raw_log().contains("canary"));
    assert!(!answer.text().contains(&line.get("cause")), "the cause is the operator's");
}

#[test]
fn an_answer_of_the_upstreams_is_one_line_and_no_refusal() {
    let backend = Backend::answers("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    let gate = Gate::start(&crate::support::small(&backend, ""));
    gate.ask(alice().with("X-Request-Id", "passed"));
    eventually("its line", || gate.log_lines(|line| line.get("id") == "passed").len() == 1);
    assert!(gate.log_lines(|line| line.is("refused") || line.is("tunnel opened")).is_empty());
}

#[test]
fn what_others_send_cannot_act_on_a_terminal_or_forge_a_line() {
    let backend = Backend::manual();
    let gate = config(&crate::support::small(&backend, "")).human().start();
    let evil = "https://a.example/\"} refused id=forged [31m";
    gate.ask(ws("/%1b%5b31m%0a").with("Origin", evil).with("X-Request-Id", "a=b c"));
    gate.ask(ws("/ws").with("Origin", &"x".repeat(10_000)));
    drop(gate.send(b"GET /\x1b[31m HTTP/1.1\r\nHost: \x1b[31m\n\n".as_slice()).read_to_close());
    eventually("refusals are logged", || gate.raw_log().matches("refused").count() >= 3);
    let log = gate.raw_log();
    assert!(log.bytes().all(|byte| byte == b'\n' || (0x20..0x7f).contains(&byte)), "{log}");
    assert!(log.lines().all(|line| line.len() < 2000), "a line has a length that one can read");
    assert!(!log.lines().any(|line| line.trim_start().starts_with("refused id=forged")));
}

// ---- canaries

const VALID: &str = "canary-valid-7QxK2mPd9w";
const WRONG: &str = "canary-wrong-5LrT8vBn3z";
const VENDOR: &str = "canary-vendor-1WjH6sYc4e";
const FROM_ENV: &str = "canary-env-9UgF3kXo7a";
const FROM_FILE: &str = "canary-file-2NbV5iMq8t";
const EXPIRED: &str = "canary-expired-6DzS4yRl1h";
const FROM_KEYS: &str = "canary-keys-8TpE1jZw5f";
const CANARIES: [&str; 7] = [VALID, WRONG, VENDOR, FROM_ENV, FROM_FILE, FROM_KEYS, EXPIRED];

/// Every way in which a secret might be spelt.
fn spellings(secret: &str) -> Vec<String> {
    let mut all = vec![
        secret.to_owned(),
        secret.to_uppercase(),
        secret.chars().rev().collect(),
        secret.bytes().map(|byte| format!("%{byte:02x}")).collect(),
        secret.bytes().map(|byte| format!("%{byte:02X}")).collect(),
        secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
        format!("{:?}", secret.as_bytes()),
    ];
    // Base64 at each of its three alignments, without the ends that depend on what stands beside.
    for shift in 0..3 {
        let padded = format!("{}{secret}", "x".repeat(shift));
        for text in [STANDARD.encode(&padded), URL_SAFE.encode(&padded)] {
            all.push(text[4..text.len() - 4].to_owned());
        }
    }
    all
}

fn carriers(secret: &str) -> Vec<Request> {
    let origin = |request: Request| request.with("Origin", "https://a.example");
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let k8s = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(secret));
    vec![
        ws("/ws").with("X-Api-Key", secret),
        ws("/ws").with("Authorization", &format!("Bearer {secret}")),
        ws("/ws").with("Authorization", &format!("Basic {}", STANDARD.encode(format!("alice:{secret}")))),
        ws("/ws").offer(&format!("x-api-key, {secret}")),
        ws("/ws").offer(&format!("x-api-key, {secret}, chat")),
        ws("/ws").offer(&format!("{k8s}, chat")),
        ws("/ws").offer(&k8s),
        ws("/ws").offer(&format!("chat, openai-insecure-api-key.{secret}")),
        ws("/ws").offer(&format!("token, {secret}")),
        ws("/ws").offer(&format!("Bearer, {secret}, chat")),
        ws("/ws").offer(&format!("chat, raw.{secret}")),
        ws("/ws").offer(&format!("packed, {}", URL_SAFE_NO_PAD.encode(secret))),
        ws(&format!("/ws?api_key={secret}")),
        ws(&format!("/ws?api_key={percent}&x=1")),
        origin(ws("/ws").with("Cookie", &format!("a=b; session={secret}"))),
    ]
}

/// Requests that are refused at every stage, with the secret in them.
fn refused(secret: &str) -> Vec<Vec<u8>> {
    let with = |request: Request| request.with("X-Api-Key", secret);
    let mut all: Vec<Vec<u8>> = vec![
        with(plain_get("/ws")).into(),
        with(plain_get(&format!("/ws?api_key={secret}"))).into(),
        with(ws("/ws").first_line("CONNECT a:80 HTTP/1.1")).into(),
        with(ws("/ws").set("Sec-WebSocket-Version", "777")).into(),
        with(ws("/ws")).with("X-Api-Key", secret).into(),
        with(ws(&format!("/ws?api_key={secret}"))).into(),
        with(ws("/none").host("elsewhere.test")).into(),
        with(ws("/ws")).with("Origin", "https://evil.example").into(),
        with(ws("/ws")).raw("Garbage").into(),
        with(ws("/ws")).raw(format!("{secret}\0")).into(),
        with(ws("/ws")).raw(format!("X-A: {secret}\n{secret}: b")).into(),
        with(ws("/ws")).with("Content-Length", "500").followed_by(secret).into(),
        with(ws("/ws")).offer(&format!("x-api-key, ({secret})")).into(),
        with(ws("/ws")).with("X-Long", &secret.repeat(1000)).into(),
        with(ws("/ws")).with("X-Request-Id", &format!("\"{secret}\"")).without("Host").into(),
        ws("/ws").with("Authorization", &format!("Basic {secret}")).into(),
        ws("/ws").offer(&format!("{secret}, x-api-key")).into(),
        ws("/ws").offer(&format!("base64url.bearer.authorization.k8s.io.{secret}, chat")).into(),
        ws(&format!("/ws?api_key={secret}&api_key={secret}")).into(),
        ws(&format!("/ws?api_key={secret}#x")).into(),
        ws(&format!("/ws?other={secret}")).into(),
        ws(&format!("http://gate.test/ws?api_key={secret}")).into(),
    ];
    let whole = ws("/ws").with("X-Api-Key", secret).bytes();
    all.push(whole[..whole.len() - 2].to_vec());
    all
}

fn canary_gate(backend: &Backend, human: bool) -> Gate {
    let places = "{ header: X-Api-Key }, bearer, basic, { subprotocol: { pair: x-api-key } }, { subprotocol: { preset: kubernetes } }, \
                  { subprotocol: { preset: openai } }, { subprotocol: { preset: deepgram } }, { subprotocol: { preset: bearer } }, \
                  { subprotocol: { prefix: raw. } }, { subprotocol: { pair: packed, encoding: base64url } }, { query: api_key }, { cookie: session }";
    let yaml = format!(
        "keys:\n  - {{ id: alice, secret: {VALID} }}\n  - {{ id: env, secrets: [ {{ env: CANARY_ENV }} ] }}\n\
        \x20 - {{ id: file, secrets: [ {{ file: secret.txt }}, {{ plain: {EXPIRED}, valid_until: 2020-01-01 }} ] }}\n\
         key_files: [ more/*.yaml ]\n\
         timeouts: {{ head: 500ms }}\n\
         routes:\n  - name: main\n    host: gate.test\n    upstream: {}\n    allowed_origins: [ \"https://a.example\" ]\n\
        \x20   set_headers: {{ X-Vendor: \"Bearer {{env.CANARY_VENDOR}}\" }}\n\
        \x20   auth: [ {{ api_key: {{ extract_from: [ {places} ] }} }} ]\n",
        backend.url()
    );
    let setup = config(&yaml).env("CANARY_ENV", FROM_ENV).env("CANARY_VENDOR", VENDOR).file("secret.txt", FROM_FILE);
    let setup = setup.file("more/keys.yaml", &format!("- {{ id: more, secret: {FROM_KEYS} }}\n"));
    let setup = setup.level("trace");
    if human { setup.human().start() } else { setup.start() }
}

#[test]
fn no_secret_leaves_the_process_in_any_spelling() {
    for human in [false, true] {
        let backend = Backend::serve(|mut conn| match conn.head.get("X-Refuse") {
            Some(_) => {
                conn.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
                conn.linger();
            }
            None => {
                conn.accept();
                conn.echo();
            }
        });
        let gate = canary_gate(&backend, human);
        let mut answers = String::new();
        let mut ask = |bytes: Vec<u8>| {
            let mut client = gate.connect();
            let _ = client.try_send(bytes);
            client.shutdown_write();
            answers += &String::from_utf8_lossy(&client.read_to_close().0);
        };
        for secret in [VALID, FROM_ENV, FROM_FILE, FROM_KEYS, WRONG, EXPIRED] {
            for request in carriers(secret) {
                ask(request.clone().into());
                ask(request.with("X-Refuse", "1").into());
            }
        }
        for secret in [VALID, WRONG] {
            refused(secret).into_iter().for_each(&mut ask);
        }
        let mut slow = gate.send(&ws("/ws").with("X-Api-Key", VALID).bytes()[..150]);
        answers += &String::from_utf8_lossy(&slow.read_to_close().0);
        let _live = gate.open(ws("/ws").with("X-Api-Key", VALID));
        for path in ["/metrics", "/connections", "/readyz"] {
            answers += &gate.admin("GET", path).text();
        }
        answers += &gate.admin("POST", "/reload").text();
        let bad = gate.yaml().replace("id: alice, secret:", "id: alice, sekret: x, secret:");
        gate.replace("wsbouncer.yaml", &bad);
        answers += &gate.admin("POST", "/reload").text();
        answers += &gate.ready().text();

        assert!(gate.raw_log().contains("refused") && gate.raw_log().contains("tunnel opened"));
        let seen: String = backend.heads().iter().map(|head| head.text().replace(VENDOR, "")).collect();
        let outputs = [
            ("stderr", gate.raw_log()),
            ("stdout", gate.out_lines().join("\n")),
            ("answers", answers),
            ("the upstream", seen),
        ];
        for canary in CANARIES {
            for spelling in spellings(canary) {
                for (what, text) in &outputs {
                    let at = text.find(&spelling);
                    let around = at.map(|at| &text[at.saturating_sub(200)..(at + 100).min(text.len())]);
                    assert!(at.is_none(), "{canary} as {spelling} in {what}: {around:?}");
                }
            }
        }
    }
}

/// What `check` would warn of is in the log too: once, and again only when something else is to be said.
#[test]
fn warnings_of_the_configuration_are_told_once() {
    let backend = Backend::manual();
    let gate =
        Gate::start(&format!("keys: [{{ id: a, secret: canary-of-many-letters }}]\nupstream: {}\n", backend.url()));
    let warnings = || gate.log_lines(|line| line.is("warning"));
    gate.log_line(|line| line.is("warning"));
    assert_eq!(warnings().len(), 1, "{:?}", warnings());
    let says = warnings()[0].get("warning");
    assert!(says.contains("keys[0].secret: the key \"a\" has its secret in plain text; "), "{says}");
    assert_eq!(warnings()[0].get("level"), "WARN");
    let edited = gate.yaml().replace("}]", "}] # edited");
    gate.reloads(|| fs::write(gate.file(), edited).unwrap());
    assert_eq!(warnings().len(), 1, "{:?}", warnings());
    let edited = gate.yaml().replace("}]", "}, { id: b, secret: canary-of-other-letters }]");
    gate.reloads(|| fs::write(gate.file(), edited).unwrap());
    assert_eq!(warnings().len(), 2, "{:?}", warnings());
    assert!(!gate.raw_log().contains("canary"));
}
