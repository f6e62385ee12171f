//! What stays of a secret in the memory of the process, and what would be written of it when the process crashes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use crate::support::frames::text;
use crate::support::{Backend, Gate, alice, config, eventually, small, stand_echo, ws};

/// Where threads are on their stacks. Those of ended ones are somewhere else, or given back.
fn stack_pointers(pid: u32) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let calls = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("syscall")).ok());
    // "232 0x3 ... 0x7ffd0a 0x7f21c4": of a thread that waits, the last but one.
    let pointer =
        |call: String| u64::from_str_radix(call.split_whitespace().rev().nth(1)?.strip_prefix("0x")?, 16).ok();
    calls.filter_map(pointer).collect()
}

/// Where in the memory that the process can write to this text stands. Stacks are left out: what was computed of it a moment
/// ago, such as its digest, leaves it there until something else is computed.
#[track_caller]
fn places(gate: &Gate, wanted: &str) -> Vec<String> {
    let pid = gate.pid();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let stacks = stack_pointers(pid);
    let (mut found, mut seen) = (Vec::new(), 0);
    for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        if stacks.iter().any(|pointer| (start..end).contains(pointer)) {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // What was mapped a moment ago may be gone.
        let Ok(length) = memory.read_at(&mut bytes, start) else { continue };
        seen += length;
        let content = String::from_utf8_lossy(&bytes[..length]);
        found.extend(content.find(wanted).map(|at| {
            let before: String = content[..at].chars().rev().take(80).collect::<Vec<_>>().into_iter().rev().collect();
            let after: String = content[at..].chars().take(wanted.len() + 80).collect();
            format!("{line}: {before}{after}").escape_debug().to_string()
        }));
    }
    assert!(seen > 1 << 20, "only {seen} bytes were read");
    found
}

fn sha256(secret: &str) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// In whatever place it came, and whether it was right: once the connection is over, nothing of it is left.
#[test]
fn a_credential_is_wiped_after_the_handshake() {
    let backend = Backend::echo();
    let of = |place: &str| format!("canary-by-{place}-5f3a9c17e2");
    let keys: String = ["header", "bearer", "query", "pair", "prefix", "message"]
        .map(|place| format!("  - {{ id: {place}, secrets: [{{ sha256: \"{}\" }}] }}\n", sha256(&of(place))))
        .concat();
    let yaml = format!(
        "keys:\n{keys}routes:\n  - name: main\n    upstream: {}\n    auth:\n      - api_key:\n          extract_from: [{{ header: X-Api-Key }}, \
         bearer, {{ query: key }}, {{ subprotocol: {{ pair: x-api-key }} }}, {{ subprotocol: {{ prefix: key. }} }}, \
         {{ first_message: {{ json: /token, subprotocol: chat }} }}]\n",
        backend.url()
    );
    let gate = Gate::start(&yaml);
    let long = "x".repeat(6000);
    for request in [
        ws("/ws").with("X-Api-Key", &of("header")),
        // Longer than what is read at first.
        ws("/ws").with("X-Long", &long).with("X-Api-Key", &of("header")),
        ws("/ws").with("Authorization", &format!("Bearer {}", of("bearer"))),
        ws(&format!("/ws?key={}&a=b", of("query"))),
        ws("/ws").offer(&format!("x-api-key, {}", of("pair"))),
        ws("/ws").offer(&format!("chat, key.{}", of("prefix"))),
    ] {
        drop(gate.open(request));
    }
    let mut wire = gate.open(ws("/ws").offer("chat"));
    wire.send(text(&format!("{{\"token\":\"{}\"}}", of("message"))));
    eventually("the message is taken", || gate.log_lines(|line| line.get("key") == "message").len() == 1);
    drop(wire);
    gate.refuses(ws("/ws").with("X-Api-Key", &of("nobody")), 401, "invalid_credential");
    gate.wait_for_open(0);
    eventually("the connections are over", || gate.metric("wsbouncer_connections_open", &[]) == 0.0);
    for place in ["header", "bearer", "query", "pair", "prefix", "message", "nobody"] {
        let found = places(&gate, &of(place));
        assert!(found.is_empty(), "{place}:\n{}", found.join("\n"));
    }
    // The search finds what is there.
    assert!(!places(&gate, "wsbouncer").is_empty());
}

/// All that is kept of the secrets of keys is their digests: of those in files of their own, and of those in the file.
#[test]
fn the_secrets_of_keys_are_wiped_after_the_load() {
    let backend = Backend::echo();
    let keys = "keys:\n  - { id: a, secrets: [{ file: a.txt }] }\n  - { id: b, secrets: [{ plain: canary-plain-81d4f60b3c }] }\n";
    let yaml = format!("upstream: {}\n{keys}key_files: [more.yaml]\n", backend.url());
    let more = "- id: c\n  secrets: [{ plain: canary-more-2e9b5a7740 }]\n";
    let gate = config(&yaml).file("a.txt", "canary-file-c63e1f9a05\n").file("more.yaml", more).start();
    for secret in ["canary-file-c63e1f9a05", "canary-plain-81d4f60b3c", "canary-more-2e9b5a7740"] {
        drop(gate.open(ws("/ws").with("X-Api-Key", secret)));
    }
    gate.edit_config(&(yaml.clone() + "limits: { max_connections: 100 }\n"));
    gate.wait_for_open(0);
    eventually("the connections are over", || gate.metric("wsbouncer_connections_open", &[]) == 0.0);
    for secret in ["canary-file-c63e1f9a05", "canary-plain-81d4f60b3c", "canary-more-2e9b5a7740"] {
        let found = places(&gate, secret);
        assert!(found.is_empty(), "{secret}:\n{}", found.join("\n"));
    }
}

#[test]
fn a_crash_writes_no_core() {
    let (_backend, gate) = stand_echo();
    let limits = fs::read_to_string(format!("/proc/{}/limits", gate.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let words: Vec<&str> = line.split_whitespace().skip(4).collect();
    assert_eq!(words[..2], ["0", "0"], "{line}");
    // Nor where the shell that started it allows one.
    let backend = Backend::echo();
    let gate = config(&small(&backend, "")).after("ulimit -c unlimited").start();
    assert!(fs::read_to_string(format!("/proc/{}/limits", gate.pid())).unwrap().contains(line));
    gate.open(alice());
}
