//! The file and the program itself.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use crate::support::{Backend, Gate, KEY, alice, pause, ws};

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
    for _ in 0..5 {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(gate.file()).unwrap();
        for piece in whole[..cut].as_bytes().chunks(40).chain(whole[cut..].as_bytes().chunks(40)) {
            file.write_all(piece).unwrap();
            pause(Duration::from_millis(15));
        }
        drop(file);
        client.send("still open");
        client.expect("still open");
    }
    gate.open(bob());
    assert!(gate.log_lines(|line| line.is("tunnel closed")).iter().all(|line| line.get("cause") != "revoked"));
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
