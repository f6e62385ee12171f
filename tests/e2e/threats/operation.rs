//! The file and the program itself.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use crate::support::{Backend, Gate, KEY, alice, eventually, pause, ws};

/// While a file is being written it may be valid and not yet all of it: whose key comes last must not be cut off.
#[test]
fn t128_half_a_file_is_no_file() {
    let backend = Backend::echo();
    let yaml = format!(
        "upstream: {}\nkeys:\n  - {{ id: alice, secret: {KEY} }}\n  - {{ id: bob, secret: bob-secret-0123456789 }}\n",
        backend.url()
    );
    let gate = Gate::start(&yaml);
    let bob = || ws("/ws").with("X-Api-Key", "bob-secret-0123456789");
    let mut client = gate.open(bob());
    let whole = gate.yaml();
    let cut = whole.find("  - { id: bob").unwrap();
    let (mut good, mut stalled) = (0, 0);
    while good < 5 && stalled < 50 {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(gate.file()).unwrap();
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        for piece in whole.as_bytes()[..cut].chunks(40).chain(whole.as_bytes()[cut..].chunks(40)) {
            file.write_all(piece).unwrap();
            pause(Duration::from_millis(10));
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        drop(file);
        if longest > Duration::from_millis(40) {
            // This machine was busy, and the file has rested for so long that half of it was taken for all of it.
            eventually("it is whole again", || gate.ask_status(bob()) == 101);
            client = gate.open(bob());
            stalled += 1;
        } else {
            client.send("still open");
            client.expect("still open");
            good += 1;
        }
    }
    eventually("it is whole", || gate.ask_status(bob()) == 101);
}

/// Whatever it is that nests, in the file and in a file of keys: old rules stay, and the process does.
#[test]
fn t125_nothing_nests_without_end() {
    const DEPTH: usize = 100_000;
    let backend = Backend::echo();
    let yaml = format!("upstream: {}\nkey_files: [ keys.yaml ]\n", backend.url());
    let keys = format!("- {{ id: alice, secret: {KEY} }}\n");
    let mut gate = crate::support::config(&yaml).file("keys.yaml", &keys).start();
    for (piece, end) in
        [("[", ""), ("{ a: ", ""), ("- ", "x"), ("? ", "x"), ("!a ", "x"), ("&a ", "x"), ("[{ \"a\": ", ""), ("[", "]")]
    {
        for name in ["wsbouncer.yaml", "keys.yaml"] {
            let before = fs::read(gate.dir().join(name)).unwrap();
            let deep = format!("{}{}\n", piece.repeat(DEPTH), end.repeat(DEPTH.min(end.len() * DEPTH)));
            gate.fails_to_reload(|| gate.replace(name, &deep));
            gate.reloads(|| fs::write(gate.dir().join(name), before).unwrap());
        }
    }
    gate.is_well();
}

/// No other spelling of a path that needs no token is one that does.
#[test]
fn t136_no_spelling_of_a_path_goes_without_the_token() {
    let backend = Backend::manual();
    let yaml = format!(
        "admin: {{ address: 127.0.0.1:0, token: {{ plain: operator-token-0123456789 }} }}\nupstream: {}\nkeys: [ {{ id: alice, secret: {KEY} }} ]\n",
        backend.url()
    );
    let gate = Gate::start(&yaml);
    for path in ["keys", "config", "connections", "metrics", "status", "events", "routes"] {
        for spelling in [
            format!("/{path}"),
            format!("//{path}"),
            format!("/{path}/"),
            format!("/healthz/../{path}"),
            format!("/healthz/%2e%2e/{path}"),
            format!("/healthz;/../{path}"),
            format!("/./{path}"),
            format!("/%{:02x}{}", path.as_bytes()[0], &path[1..]),
            format!("/{}", path.to_uppercase()),
            format!("/{path}?/healthz"),
            format!("/{path}%00/healthz"),
        ] {
            for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
                let status = gate.admin(method, &spelling).status();
                assert!(matches!(status, 400 | 401), "{method} {spelling}: {status}");
            }
        }
    }
}

/// A file that is none of ours, such as `/etc/shadow`, is refused, and nothing of it is said.
#[test]
fn t131_a_link_to_another_file_shows_nothing_of_it() {
    let backend = Backend::manual();
    let yaml = format!("upstream: {}\nkey_files: [ keys.yaml ]\n", backend.url());
    let keys = format!("- {{ id: alice, secret: {KEY} }}\n");
    let gate = crate::support::config(&yaml).file("keys.yaml", &keys).start();
    let shadow = gate.dir().join("shadow");
    fs::write(&shadow, "root:$6$canarysalt$canaryhash:19000:0:99999:7:::\ndaemon:*canaryhash:19000:0:99999:7:::\n")
        .unwrap();
    for name in ["keys.yaml", "wsbouncer.yaml"] {
        let before = fs::read(gate.dir().join(name)).unwrap();
        gate.fails_to_reload(|| {
            fs::remove_file(gate.dir().join(name)).unwrap();
            symlink(&shadow, gate.dir().join(name)).unwrap();
        });
        let error = gate.admin("POST", "/reload").text() + &gate.raw_log() + &gate.admin("GET", "/status").text();
        assert!(!error.contains("canary"), "{error}");
        gate.reloads(|| {
            fs::remove_file(gate.dir().join(name)).unwrap();
            fs::write(gate.dir().join(name), before).unwrap();
        });
    }
    let client = gate.send(alice());
    backend.next().accept();
    client.opened();
}

/// Crates that nobody looks after any more, or that must be at least so new: each had a hole that reaches a proxy.
const GONE: [&str; 4] = ["serde_yaml", "serde_yml", "yaml-rust", "rustls-pemfile"];
const AT_LEAST: [(&str, [u64; 3]); 8] = [
    ("hyper", [1, 12, 0]),
    ("h2", [0, 4, 18]),
    ("bytes", [1, 11, 1]),
    ("tokio", [1, 44, 2]),
    ("tracing-subscriber", [0, 3, 20]),
    ("rustls", [0, 23, 18]),
    ("rustls-webpki", [0, 103, 13]),
    ("jsonwebtoken", [10, 3, 0]),
];

#[test]
fn t126_t141_no_crate_is_known_to_be_bad() {
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let packages: Vec<(&str, [u64; 3])> = lock
        .split("[[package]]")
        .filter_map(|package| {
            let field = |name: &str| package.split(&format!("\n{name} = \"")).nth(1)?.split('"').next();
            let version = field("version")?.split(['-', '+']).next()?;
            let mut parts = version.split('.').map(|part| part.parse().unwrap());
            Some((field("name")?, [parts.next()?, parts.next()?, parts.next()?]))
        })
        .collect();
    assert!(packages.len() > 50 && packages.iter().any(|(name, _)| *name == "hyper"), "{packages:?}");
    for (name, version) in packages {
        assert!(!GONE.contains(&name), "{name} is looked after by nobody");
        let least = AT_LEAST.iter().find(|(other, _)| *other == name);
        assert!(least.is_none_or(|(_, least)| version >= *least), "{name} {version:?} has a known hole");
    }
}
