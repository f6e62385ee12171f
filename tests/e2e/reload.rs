//! Editing the file is how keys are rotated and revoked: what a reload changes, what it leaves alone, and what a bad file
//! does (nothing).

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::frames::{close, plain, text};
use crate::support::{Backend, Conn, Gate, Wire, alice, config, eventually, pause, route, small, stand, ws};

fn with(secret: &str) -> Vec<u8> {
    ws("/ws").with("X-Api-Key", secret).bytes()
}

/// Alice and Bob on one route named `main`.
fn two_keys(backend: &Backend, alice: &str, bob: &str) -> String {
    format!(
        "keys:\n  - {alice}\n  - {bob}\nroutes:\n  - name: main\n    upstream: {}\n  - name: side\n    path: /side\n    upstream: {}\n",
        backend.url(),
        backend.url()
    )
}

const ALICE: &str = "{ id: alice, secret: alice-secret }";
const BOB: &str = "{ id: bob, secret: bob-secret }";

#[track_caller]
fn tunnel(gate: &Gate, backend: &Backend, secret: &str) -> (Wire, Conn) {
    let client = gate.send(with(secret));
    let mut up = backend.next();
    up.accept();
    (client.opened().0, up)
}

#[track_caller]
fn still_open(tunnel: &mut (Wire, Conn)) {
    tunnel.0.send(text("still here"));
    tunnel.1.expect(text("still here"));
    tunnel.1.send(plain(1, b"me too"));
    tunnel.0.expect(plain(1, b"me too"));
}

/// A message goes to the upstream and comes back.
#[track_caller]
fn echoes(client: &mut Wire) {
    client.send(text("hello"));
    assert_eq!(client.read_frame().payload, b"hello");
}

/// After this edit Alice is closed with this code, at once, and Bob is not.
#[track_caller]
fn alice_loses(new_alice: &str, code: u16, cause: &str) {
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let mut bob = tunnel(&gate, &backend, "bob-secret");
    gate.edit_config(&two_keys(&backend, new_alice, BOB));
    let start = Instant::now();
    assert_eq!(alice.0.read_close(), (code, cause.into()));
    assert!(start.elapsed() < Duration::from_secs(1), "closed after {:?}", start.elapsed());
    let frame = alice.1.read_frame();
    assert!(frame.masked && frame.close().is_some_and(|(code, _)| code == 1001), "{frame:?}");
    // Both answer, as peers do, and the sockets are closed without waiting for more.
    alice.0.send(close(code));
    alice.1.send(plain(8, &1001_u16.to_be_bytes()));
    alice.0.read_to_end();
    alice.1.read_to_end();
    let line = gate.closed(cause);
    assert_eq!((line.get("key"), line.get("code")), ("alice".into(), code.to_string()));
    eventually("the metric says so too", || {
        gate.metric("wsbouncer_tunnels_closed_total", &[("cause", cause), ("route", "main")]) == 1.0
    });
    still_open(&mut bob);
    assert_eq!(gate.connections().len(), 1);
}

// ---- what a tunnel may lose

#[test]
fn a_key_that_is_removed_is_closed() {
    alice_loses("{ id: carol, secret: carol-secret }", 4401, "revoked");
}

#[test]
fn a_key_that_is_disabled_is_closed() {
    alice_loses("{ id: alice, secret: alice-secret, disabled: true }", 4401, "revoked");
}

#[test]
fn a_key_whose_secret_is_replaced_is_closed() {
    alice_loses("{ id: alice, secret: another-secret }", 4401, "revoked");
}

#[test]
fn a_key_that_may_no_longer_use_the_route_is_closed() {
    alice_loses("{ id: alice, secret: alice-secret, routes: [ side ] }", 4403, "not_allowed_on_route");
}

#[test]
fn a_key_that_expired_by_the_edit_is_closed() {
    alice_loses("{ id: alice, secret: alice-secret, expires_at: 2020-01-01 }", 4401, "expired");
}

#[test]
fn a_secret_that_goes_to_another_key_takes_its_tunnels_from_the_first() {
    alice_loses("{ id: carol, secret: alice-secret }", 4401, "revoked");
}

#[test]
fn only_the_tunnels_of_the_secret_that_is_gone_are_closed() {
    let backend = Backend::manual();
    let both = "{ id: alice, secrets: [ { plain: old-secret }, { plain: new-secret } ] }";
    let gate = Gate::start(&two_keys(&backend, both, BOB));
    let mut old = tunnel(&gate, &backend, "old-secret");
    let mut new = tunnel(&gate, &backend, "new-secret");
    gate.edit_config(&two_keys(&backend, "{ id: alice, secret: new-secret }", BOB));
    assert_eq!(old.0.read_close(), (4401, "revoked".into()));
    still_open(&mut new);
    gate.refuses_before(&backend, with("old-secret"), 401, "invalid_credential");
}

#[test]
fn what_changes_no_right_closes_nothing() {
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let mut bob = tunnel(&gate, &backend, "bob-secret");
    let elsewhere = Backend::manual();
    for yaml in [
        two_keys(&backend, BOB, ALICE),
        two_keys(
            &backend,
            "{ id: alice, secrets: [ { plain: alice-secret }, { plain: second } ], max_connections: 1 }",
            BOB,
        ),
        two_keys(&backend, "{ id: alice, secret: alice-secret, attributes: { tenant: x } }", BOB),
        two_keys(&backend, "{ id: alice, secret: alice-secret, expires_at: 2999-01-01, routes: [ main ] }", BOB),
        two_keys(&backend, ALICE, BOB) + "timeouts: { head: 5s }\n",
        two_keys(&backend, ALICE, BOB) + "limits: { max_connections: 1 }\n",
        two_keys(&backend, ALICE, BOB)
            .replace("    path: /side\n", "    path: /elsewhere\n    allowed_origins: [ \"https://a.example\" ]\n"),
        two_keys(&backend, ALICE, &format!("{BOB}\n  - {{ id: dora, secret: dora-secret }}")),
    ] {
        gate.edit_config(&yaml);
        still_open(&mut alice);
        still_open(&mut bob);
    }
    drop(elsewhere);
    assert_eq!(gate.log_lines(|line| line.is("tunnel closed")).len(), 0);
}

#[test]
fn others_do_not_lose_a_byte_through_many_reloads() {
    let backend = Backend::echo();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let busy: Vec<_> = (0..4)
            .map(|n| {
                let mut client = gate.open(with("bob-secret"));
                let stop = &stop;
                scope.spawn(move || {
                    let mut round = 0_u64;
                    while !stop.load(Ordering::SeqCst) {
                        let message = text(&format!("{n}/{round}").repeat(50));
                        client.send(&message);
                        client.expect(&message);
                        round += 1;
                    }
                    round
                })
            })
            .collect();
        for round in 0..10 {
            let mut victim = gate
                .open(with(&format!("alice-{}", if round == 0 { "secret".into() } else { (round - 1).to_string() })));
            gate.edit_config(&two_keys(&backend, &format!("{{ id: alice, secret: alice-{round} }}"), BOB));
            assert_eq!(victim.read_close().0, 4401);
        }
        stop.store(true, Ordering::SeqCst);
        for rounds in busy {
            assert!(rounds.join().unwrap() > 10);
        }
    });
}

// ---- many

/// Keys `k0` to `k3`, less those that are left out, each with the secret `s0` and so on, and one more that changes.
fn four_keys(without: usize, more: usize) -> String {
    let keys = (0..4).filter(|number| *number != without);
    let lines: String = keys.map(|number| format!("- id: k{number}\n  secret: s{number}\n")).collect();
    format!("{lines}- {{ id: more, secret: more-{more} }}\n")
}

/// Two hundred tunnels, of four keys in turn.
fn two_hundred(gate: &Gate) -> Vec<Wire> {
    (0..200).map(|number| gate.open(with(&format!("s{}", number % 4)))).collect()
}

fn many() -> (Backend, Gate, Vec<Wire>) {
    let backend = Backend::echo_messages();
    let yaml = format!("upstream: {}\nkey_files: [keys.yaml]\n", backend.url());
    let gate = config(&yaml).file("keys.yaml", &four_keys(4, 0)).start();
    let tunnels = two_hundred(&gate);
    (backend, gate, tunnels)
}

#[test]
fn many_tunnels_outlive_many_reloads() {
    let (_backend, gate, mut tunnels) = many();
    for round in 1..=10 {
        let line = gate.reloads(|| gate.replace("keys.yaml", &four_keys(4, round)));
        assert_eq!(line.number("tunnels_ended"), 0);
    }
    tunnels.iter_mut().for_each(echoes);
}

#[test]
fn of_many_tunnels_exactly_those_of_the_key_are_closed() {
    let (_backend, gate, mut tunnels) = many();
    gate.replace("keys.yaml", &four_keys(2, 0));
    for (number, tunnel) in tunnels.iter_mut().enumerate() {
        if number % 4 == 2 {
            assert_eq!(tunnel.read_close().0, 4401, "tunnel {number}");
        } else {
            echoes(tunnel);
        }
    }
}

// ---- rotation

#[test]
fn a_key_is_rotated_without_a_gap() {
    let backend = Backend::echo_messages();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let mut old = gate.open(with("alice-secret"));
    echoes(&mut old);
    let both = "{ id: alice, secrets: [ { plain: alice-secret }, { plain: new-secret } ] }";
    gate.edit_config(&two_keys(&backend, both, BOB));
    let mut new = gate.open(with("new-secret"));
    gate.open(with("alice-secret"));
    echoes(&mut old);
    gate.edit_config(&two_keys(&backend, "{ id: alice, secret: new-secret }", BOB));
    assert_eq!(old.read_close().0, 4401);
    echoes(&mut new);
    gate.refuses_before(&backend, with("alice-secret"), 401, "invalid_credential");
    gate.open(with("new-secret"));
}

fn in_seconds(seconds: i64) -> String {
    let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[test]
fn a_date_that_passes_needs_no_edit() {
    let soon = in_seconds(3);
    let alice =
        format!("{{ id: alice, secrets: [ {{ plain: alice-secret, valid_until: {soon} }}, {{ plain: long }} ] }}");
    let carol = format!("{{ id: carol, secret: carol-secret, expires_at: {soon} }}");
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, &alice, &carol));
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let mut carol = tunnel(&gate, &backend, "carol-secret");
    let mut long = tunnel(&gate, &backend, "long");
    for dated in [&mut alice, &mut carol] {
        assert_eq!(dated.0.read_close(), (4401, "expired".into()));
    }
    eventually("both are closed", || gate.log_lines(|line| line.get("cause") == "expired").len() == 2);
    still_open(&mut long);
    for secret in ["alice-secret", "carol-secret"] {
        gate.refuses_before(&backend, with(secret), 401, "expired_credential");
    }
    assert_eq!(gate.log_lines(|line| line.is("reloaded")).len(), 0);
}

#[test]
fn a_date_can_be_moved_for_tunnels_that_stand() {
    let dated = |seconds| format!("{{ id: alice, secret: alice-secret, expires_at: {} }}", in_seconds(seconds));
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, &dated(3), BOB));
    let mut later = tunnel(&gate, &backend, "alice-secret");
    gate.edit_config(&two_keys(&backend, ALICE, BOB));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3200) {
        still_open(&mut later);
        pause(Duration::from_millis(50));
    }
    gate.edit_config(&two_keys(&backend, &dated(1), BOB));
    assert_eq!(later.0.read_close(), (4401, "expired".into()));
}

#[test]
fn from_the_save_to_the_close_is_less_than_a_second() {
    let backend = Backend::manual();
    let keys = |n: usize| two_keys(&backend, &format!("{{ id: alice, secret: alice-{n} }}"), BOB);
    let gate = Gate::start(&keys(0));
    let mut took: Vec<Duration> = (0..5)
        .map(|n| {
            let mut alice = tunnel(&gate, &backend, &format!("alice-{n}"));
            let yaml = gate.complete(&keys(n + 1));
            let saved = Instant::now();
            gate.replace("wsbouncer.yaml", &yaml);
            assert_eq!(alice.0.read_close(), (4401, "revoked".into()));
            saved.elapsed()
        })
        .collect();
    took.sort();
    // The middle one: a machine that is busy with other tests may stall any single one.
    assert!(took[2] < Duration::from_secs(1), "{took:?}");
}

// ---- routes and upstreams

#[test]
fn tunnels_of_a_route_that_is_removed_end_after_their_time() {
    let backend = Backend::manual();
    let after = "live_connections: { on_route_removed: { after: 700ms } }\n";
    let both = two_keys(&backend, ALICE, BOB) + after;
    let gate = Gate::start(&both);
    let mut main = tunnel(&gate, &backend, "alice-secret");
    let client = gate.send(ws("/side").with("X-Api-Key", "alice-secret"));
    let mut up = backend.next();
    up.accept();
    let mut side = (client.opened().0, up);
    let start = Instant::now();
    let only_main = both.split("  - name: side").next().unwrap().to_owned() + after;
    gate.edit_config(&only_main);
    still_open(&mut side);
    assert_eq!(side.0.read_close(), (1012, "route_removed".into()));
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
    gate.closed("route_removed");
    still_open(&mut main);
}

#[test]
fn a_route_that_comes_back_in_time_keeps_its_tunnels() {
    let backend = Backend::manual();
    let after = "live_connections: { on_route_removed: { after: 1500ms } }\n";
    let both = two_keys(&backend, ALICE, BOB) + after;
    let gate = Gate::start(&both);
    let client = gate.send(ws("/side").with("X-Api-Key", "alice-secret"));
    let mut up = backend.next();
    up.accept();
    let mut side = (client.opened().0, up);
    gate.edit_config(&(both.split("  - name: side").next().unwrap().to_owned() + after));
    gate.edit_config(&both);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2000) {
        still_open(&mut side);
        pause(Duration::from_millis(50));
    }
}

#[test]
fn tunnels_of_an_upstream_that_is_removed_end_after_their_time() {
    let (old, new) = (Backend::manual(), Backend::manual());
    let after = "live_connections: { on_route_removed: { after: 500ms } }\n";
    let yaml = |backend: &Backend| two_keys(backend, ALICE, BOB) + after;
    let gate = Gate::start(&yaml(&old));
    let mut before = tunnel(&gate, &old, "alice-secret");
    gate.edit_config(&yaml(&new));
    still_open(&mut before);
    let mut later = tunnel(&gate, &new, "alice-secret");
    assert_eq!(before.0.read_close(), (1012, "route_removed".into()));
    still_open(&mut later);
}

#[test]
fn a_route_that_is_closed_to_strangers_closes_theirs() {
    let backend = Backend::manual();
    let open = route(&backend, "auth: none");
    let gate = Gate::start(&open);
    let client = gate.send(ws("/ws"));
    let mut up = backend.next();
    up.accept();
    let mut stranger = (client.opened().0, up);
    gate.edit_config(&route(&backend, "auth: [ api_key ]"));
    assert_eq!(stranger.0.read_close(), (4401, "revoked".into()));
    let client = gate.send(alice());
    let mut up = backend.next();
    up.accept();
    let mut known = (client.opened().0, up);
    gate.edit_config(&open);
    still_open(&mut known);
}

#[test]
fn revocation_can_be_put_off() {
    let backend = Backend::manual();
    let later = "live_connections: { on_revoked: { after: 700ms } }\n";
    let gate = Gate::start(&(two_keys(&backend, ALICE, BOB) + later));
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let start = Instant::now();
    gate.edit_config(&(two_keys(&backend, "{ id: carol, secret: c }", BOB) + later));
    gate.refuses_before(&backend, with("alice-secret"), 401, "invalid_credential");
    assert_eq!(alice.0.read_close().0, 4401);
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
}

#[test]
fn new_connections_follow_the_new_rules_at_once() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let gate = Gate::start(&small(&one, ""));
    gate.open(alice());
    gate.edit_config(&small(&two, ""));
    gate.open(alice());
    assert_eq!((one.accepted(), two.accepted()), (1, 1));
    gate.edit_config(&route(&two, "host: only.example\nidentity_headers: { X-New: \"{id}\" }"));
    gate.refuses_before(&two, alice(), 404, "no_route");
    gate.open(alice().host("only.example"));
    assert_eq!(two.last_head().get("X-New"), Some("alice"));
}

#[test]
fn a_handshake_under_way_when_its_key_is_revoked_never_becomes_a_tunnel() {
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let mut client = gate.send(with("alice-secret"));
    let mut up = backend.next();
    gate.edit_config(&two_keys(&backend, "{ id: carol, secret: c }", BOB));
    // Refused at once, or when the upstream says yes: in no case a tunnel that stays.
    let yes = up.accept_bytes("", b"");
    let _ = up.try_send(yes);
    let head = client.read_head();
    if head.first.starts_with("HTTP/1.1 101") {
        assert_eq!(client.read_close().0, 4401);
    } else {
        assert!(head.first.starts_with("HTTP/1.1 401"), "{head:?}");
    }
    client.read_to_close();
    gate.wait_for_open(0);
}

#[test]
fn nobody_slips_in_beside_a_revocation() {
    let backend = Backend::serve(|mut conn| {
        conn.accept();
        drop(conn.read_to_close());
    });
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut open = Vec::new();
                while !stop.load(Ordering::SeqCst) && open.len() < 200 {
                    let mut client = gate.send(with("alice-secret"));
                    client.read_head();
                    open.push(client);
                }
                // Every one of them ends, whether it was let in before or refused after.
                for client in &mut open {
                    client.read_to_close();
                }
            });
        }
        eventually("the storm is on", || gate.metric("wsbouncer_tunnels_opened_total", &[]) > 20.0);
        gate.edit_config(&two_keys(&backend, "{ id: carol, secret: c }", BOB));
        assert_eq!(gate.ask_status(with("alice-secret")), 401);
        stop.store(true, Ordering::SeqCst);
    });
    gate.wait_for_open(0);
}

// ---- ways to reload

#[test]
fn an_edit_is_seen_however_the_file_is_written() {
    let backend = Backend::echo();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let yaml = |secret: &str| gate.complete(&two_keys(&backend, &format!("{{ id: alice, secret: {secret} }}"), BOB));
    // In place.
    fs::write(gate.file(), yaml("one")).unwrap();
    eventually("written in place", || gate.ask_status(with("one")) == 101);
    // By rename.
    gate.replace("wsbouncer.yaml", &yaml("two"));
    eventually("replaced", || gate.ask_status(with("two")) == 101);
    // Removed for a moment, as some editors do.
    fs::rename(gate.file(), gate.dir().join("backup~")).unwrap();
    fs::write(gate.file(), yaml("three")).unwrap();
    eventually("moved away and written anew", || gate.ask_status(with("three")) == 101);
    // In pieces, the last one much later.
    let whole = yaml("four");
    let (first, rest) = whole.split_at(whole.len() / 2);
    fs::write(gate.file(), first).unwrap();
    pause(Duration::from_millis(400));
    assert_eq!(gate.ask_status(with("three")), 101, "half a file changes nothing");
    fs::write(gate.file(), format!("{first}{rest}")).unwrap();
    eventually("completed", || gate.ask_status(with("four")) == 101);
}

#[test]
fn a_symlink_swap_as_in_a_configmap_is_seen() {
    let backend = Backend::echo_messages();
    let gate = config(&format!("upstream: {}\nkey_files: [ mounted/keys.yaml ]\nkeys: [ {BOB} ]\n", backend.url()))
        .file("mounted/..v1/keys.yaml", "- { id: alice, secret: one }\n")
        .file("mounted/keys.yaml", "- { id: alice, secret: one }\n")
        .start();
    let dir = gate.dir().join("mounted");
    symlink("..v1", dir.join("..data")).unwrap();
    symlink("..data/keys.yaml", dir.join("keys.new")).unwrap();
    fs::rename(dir.join("keys.new"), dir.join("keys.yaml")).unwrap();
    let mut bob = gate.open(with("bob-secret"));
    gate.open(with("one"));
    for (n, secret) in [(2, "two"), (3, "three")] {
        let version = format!("..v{n}");
        fs::create_dir(dir.join(&version)).unwrap();
        fs::write(dir.join(&version).join("keys.yaml"), format!("- {{ id: alice, secret: {secret} }}\n")).unwrap();
        symlink(&version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        fs::remove_dir_all(dir.join(format!("..v{}", n - 1))).unwrap();
        eventually("the swap is seen", || gate.ask_status(with(secret)) == 101);
        echoes(&mut bob);
    }
    gate.refuses(with("one"), 401, "invalid_credential");
}

#[test]
fn the_main_file_may_be_a_symlink_that_is_swapped() {
    let backend = Backend::echo();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let yaml = |secret: &str| gate.complete(&two_keys(&backend, &format!("{{ id: alice, secret: {secret} }}"), BOB));
    let elsewhere = tempfile::TempDir::new().unwrap();
    for secret in ["one", "two", "three"] {
        let target = elsewhere.path().join(secret);
        fs::write(&target, yaml(secret)).unwrap();
        symlink(&target, gate.dir().join("link")).unwrap();
        fs::rename(gate.dir().join("link"), gate.file()).unwrap();
        eventually("the new target is read", || gate.ask_status(with(secret)) == 101);
    }
    fs::write(elsewhere.path().join("three"), yaml("four")).unwrap();
    eventually("a change of the target is seen", || gate.ask_status(with("four")) == 101);
}

#[test]
fn a_symlink_swap_under_load_loses_nothing() {
    const SWAPS: usize = 10;
    let backend = Backend::echo();
    let gate = config(&format!("upstream: {}\nkey_files: [ mounted/..data/keys.yaml ]\n", backend.url()))
        .file("mounted/..data/keys.yaml", &format!("- {BOB}\n- {{ id: alice, secret: alice-0 }}\n"))
        .start();
    let dir = gate.dir().join("mounted");
    fs::rename(dir.join("..data"), dir.join("..v0")).unwrap();
    symlink("..v0", dir.join("..data")).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let busy: Vec<_> = (0..4)
            .map(|n| {
                let mut client = gate.open(with("bob-secret"));
                let stop = &stop;
                scope.spawn(move || {
                    let mut round = 0_u64;
                    while !stop.load(Ordering::SeqCst) {
                        let message = text(&format!("{n}/{round}").repeat(500));
                        client.send(&message);
                        client.expect(&message);
                        round += 1;
                    }
                    round
                })
            })
            .collect();
        for n in 1..=SWAPS {
            let mut victim = gate.open(with(&format!("alice-{}", n - 1)));
            let version = format!("..v{n}");
            fs::create_dir(dir.join(&version)).unwrap();
            let keys = format!("- {BOB}\n- {{ id: alice, secret: alice-{n} }}\n");
            fs::write(dir.join(&version).join("keys.yaml"), keys).unwrap();
            symlink(&version, dir.join("..data_tmp")).unwrap();
            fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
            fs::remove_dir_all(dir.join(format!("..v{}", n - 1))).unwrap();
            assert_eq!(victim.read_close(), (4401, "revoked".into()), "swap {n}");
        }
        stop.store(true, Ordering::SeqCst);
        for rounds in busy {
            assert!(rounds.join().unwrap() > SWAPS as u64);
        }
    });
    let closed = gate.log_lines(|line| line.is("tunnel closed"));
    assert!(closed.iter().all(|line| line.get("key") == "alice" || line.get("cause") == "client"), "{closed:?}");
}

#[test]
fn an_edit_that_no_event_tells_of_is_seen() {
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    // Written through another name elsewhere, the file changes and its directory has no event: as on a network mount.
    let elsewhere = tempfile::TempDir::new_in(gate.dir().parent().unwrap()).unwrap();
    let other_name = elsewhere.path().join("other-name");
    fs::hard_link(gate.file(), &other_name).unwrap();
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let mut bob = tunnel(&gate, &backend, "bob-secret");
    // Whatever the link itself may have caused has been looked at by then.
    pause(Duration::from_millis(500));
    let yaml = gate.complete(&two_keys(&backend, "{ id: carol, secret: carol-secret }", BOB));
    gate.reloads(|| fs::write(&other_name, &yaml).unwrap());
    assert_eq!(alice.0.read_close(), (4401, "revoked".into()));
    still_open(&mut bob);
}

#[test]
fn key_files_and_globs_are_watched() {
    let backend = Backend::manual();
    let yaml = format!("upstream: {}\nkey_files: [ keys.yaml, keys.d/*.yaml ]\n", backend.url());
    let gate = config(&yaml)
        .file("keys.yaml", "- { id: alice, secret: alice-secret }\n")
        .file("keys.d/bob.yaml", "- { id: bob, secret: bob-secret }\n")
        .start();
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let mut bob = tunnel(&gate, &backend, "bob-secret");
    gate.reloads(|| {
        fs::write(gate.dir().join("keys.d/carol.yaml"), "- { id: carol, secret: carol-secret }\n").unwrap();
    });
    let mut carol = tunnel(&gate, &backend, "carol-secret");
    fs::remove_file(gate.dir().join("keys.d/bob.yaml")).unwrap();
    assert_eq!(bob.0.read_close(), (4401, "revoked".into()));
    gate.replace("keys.yaml", "- { id: dora, secret: dora-secret }\n");
    assert_eq!(alice.0.read_close(), (4401, "revoked".into()));
    still_open(&mut carol);
}

#[test]
fn files_of_single_secrets_are_watched() {
    let backend = Backend::manual();
    let yaml = format!("upstream: {}\nkeys: [ {{ id: alice, secrets: [ {{ file: secret.txt }} ] }} ]\n", backend.url());
    let gate = config(&yaml).file("secret.txt", "first-secret\n").start();
    let mut alice = tunnel(&gate, &backend, "first-secret");
    gate.replace("secret.txt", "second-secret\n");
    assert_eq!(alice.0.read_close(), (4401, "revoked".into()));
    let mut alice = tunnel(&gate, &backend, "second-secret");
    still_open(&mut alice);
}

#[test]
fn a_signal_and_the_admin_listener_reload_at_once() {
    let backend = Backend::echo();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let before = gate.metric("wsbouncer_config_reloads_total", &[("result", "ok")]);
    gate.reloads(|| gate.signal(Signal::HUP));
    let answer = gate.admin("POST", "/reload");
    assert_eq!((answer.status(), answer.json()["ok"].as_bool()), (200, Some(true)), "{}", answer.text());
    gate.replace("wsbouncer.yaml", &gate.complete(&two_keys(&backend, "{ id: alice, secret: new }", BOB)));
    let answer = gate.admin("POST", "/reload");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    gate.open(with("new"));
    let line = gate.log_lines(|line| line.is("reloaded")).pop().unwrap();
    assert_eq!((line.number("routes"), line.number("keys")), (2, 2));
    assert!(gate.metric("wsbouncer_config_reloads_total", &[("result", "ok")]) >= before + 3.0);
}

#[test]
fn many_who_ask_for_a_reload_at_once_are_all_answered() {
    let (_backend, gate) = stand();
    thread::scope(|scope| {
        let asking: Vec<_> = (0..12).map(|_| scope.spawn(|| gate.admin("POST", "/reload").status())).collect();
        for answer in asking {
            assert_eq!(answer.join().unwrap(), 200);
        }
    });
}

// ---- bad files

const BAD: [(&str, &str); 9] = [
    ("empty", ""),
    ("a comment", "# nothing\n"),
    ("no YAML", "listen: [\n"),
    ("an unknown field", "listen: 127.0.0.1:0\nupstrem: ws://127.0.0.1:1\n"),
    ("a list", "- a\n- b\n"),
    ("binary", "\0\u{1}\u{2}"),
    ("an unknown upstream", "listen: 127.0.0.1:0\nroutes: [ { upstream: nowhere } ]\n"),
    ("a bare number", "listen: 127.0.0.1:0\nupstream: ws://127.0.0.1:1\ntimeouts: { head: 10 }\n"),
    ("a missing key file", "listen: 127.0.0.1:0\nupstream: ws://127.0.0.1:1\nkey_files: [ missing.yaml ]\n"),
];

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let backend = Backend::manual();
    let yaml = two_keys(&backend, ALICE, BOB);
    let gate = Gate::start(&yaml);
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let hash = gate.ready().field("config_hash");
    for (what, bad) in BAD {
        let line = gate.fails_to_reload(|| gate.replace("wsbouncer.yaml", bad));
        assert!(!line.get("error").is_empty() && line.number("problems") >= 1, "{what}: {line:?}");
        let ready = gate.ready();
        assert_eq!(ready.status(), 200, "{what}: the old rules still serve");
        let body = ready.json();
        assert_eq!(body["reload"]["ok"], false, "{what}: {body}");
        assert!(body["reload"]["error"].as_str().is_some_and(|error| !error.is_empty()), "{what}: {body}");
        assert_eq!(body["config_hash"], hash);
        assert_eq!(gate.metric("wsbouncer_config_last_reload_success", &[]), 0.0, "{what}");
        let answer = gate.admin("POST", "/reload");
        assert_eq!((answer.status(), answer.json()["ok"].as_bool()), (422, Some(false)), "{what}: {}", answer.text());
        assert!(!answer.field("error").is_empty());
        still_open(&mut alice);
        drop(tunnel(&gate, &backend, "bob-secret"));
    }
    assert!(gate.metric("wsbouncer_config_reloads_total", &[("result", "failed")]) >= BAD.len() as f64);
    gate.edit_config(&yaml);
    assert_eq!(gate.metric("wsbouncer_config_last_reload_success", &[]), 1.0);
    assert_eq!(gate.ready().json()["reload"]["ok"], true);
    still_open(&mut alice);
}

#[test]
fn every_fault_is_reported_at_once_with_its_place() {
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let bad = two_keys(&backend, "{ id: alice, secert: x }", "{ id: bob, sha256: zz }")
        + "timeouts: { head: 10 }\ndrain: { timeout: soon }\n";
    let line = gate.fails_to_reload(|| gate.replace("wsbouncer.yaml", &gate.complete(&bad)));
    assert!(line.number("problems") >= 4, "{line:?}");
    let error = gate.admin("POST", "/reload").field("error");
    for part in ["wsbouncer.yaml:4:", "secert", "secret", "timeouts", "drain"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_file_that_is_removed_changes_nothing() {
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let yaml = gate.yaml();
    gate.fails_to_reload(|| fs::remove_file(gate.file()).unwrap());
    still_open(&mut alice);
    gate.reloads(|| fs::write(gate.file(), &yaml).unwrap());
    still_open(&mut alice);
}

#[test]
fn hostile_files_are_refused_quickly_while_traffic_goes_on() {
    let backend = Backend::echo_messages();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let before = gate.resident();
    let mut client = gate.open(with("alice-secret"));
    let mut bomb = "a0: &a0 [ x, x, x, x, x, x, x, x, x, x ]\n".to_owned();
    for n in 1..10 {
        let alias = format!("*a{}", n - 1);
        bomb += &format!("a{n}: &a{n} [ {} ]\n", [&*alias; 10].join(", "));
    }
    let deep = "[".repeat(100_000);
    let huge = format!("# {}\n", "x".repeat(20 << 20));
    let long = format!("{}{}", gate.yaml(), "- x\n".repeat(1_000_000));
    for bad in [bomb, deep, huge, long] {
        let start = Instant::now();
        gate.fails_to_reload(|| gate.replace("wsbouncer.yaml", &bad));
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        echoes(&mut client);
        gate.edit_config(&two_keys(&backend, ALICE, BOB));
    }
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown}");
    gate.edit_config(&two_keys(&backend, BOB, "{ id: carol, secret: c }"));
    assert_eq!(client.read_close().0, 4401);
}

#[test]
fn an_error_never_shows_a_secret() {
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    let bad = two_keys(
        &backend,
        "{ id: alice, secret: canary-one, secrets: [ canary-two ] }",
        "{ id: bob, secret: [ canary-three ], sekret: canary-four }",
    ) + "keys_: canary-five\n";
    gate.fails_to_reload(|| gate.replace("wsbouncer.yaml", &gate.complete(&bad)));
    let error = gate.admin("POST", "/reload").text();
    for canary in ["canary-one", "canary-two", "canary-three", "canary-four"] {
        assert!(!error.contains(canary), "{canary} in {error}");
        assert!(!gate.raw_log().contains(canary), "{canary} in the log");
    }
}

#[test]
fn a_changed_listener_waits_for_a_restart_and_holds_nothing_back() {
    let backend = Backend::manual();
    let gate = Gate::start(&two_keys(&backend, ALICE, BOB));
    assert_eq!(gate.metric("wsbouncer_config_restart_needed", &[]), 0.0);
    let mut alice = tunnel(&gate, &backend, "alice-secret");
    let without_alice = two_keys(&backend, "{ id: carol, secret: carol-secret }", BOB);
    gate.edit_config(&format!("listen: [ 127.0.0.1:0, 127.0.0.1:1 ]\n{without_alice}"));
    assert_eq!(alice.0.read_close(), (4401, "revoked".into()));
    drop(tunnel(&gate, &backend, "carol-secret"));
    let needed = gate.ready().json()["restart_needed"].to_string();
    assert!(needed.contains("listen"), "{needed}");
    assert_eq!(gate.metric("wsbouncer_config_restart_needed", &[]), 1.0);
    assert!(gate.raw_log().contains("restart needed"));
    gate.edit_config(&without_alice);
    assert_eq!(gate.ready().json()["restart_needed"].as_array().map(Vec::len), Some(0));
    assert_eq!(gate.metric("wsbouncer_config_restart_needed", &[]), 0.0);
}

#[test]
fn touching_the_file_again_and_again_is_no_reload() {
    let (backend, gate) = stand();
    let before = gate.log_lines(|line| line.is("reloaded")).len();
    let yaml = gate.yaml();
    for _ in 0..300 {
        fs::write(gate.dir().join("copy"), &yaml).unwrap();
        fs::rename(gate.dir().join("copy"), gate.file()).unwrap();
    }
    let client = gate.send(alice());
    backend.next().accept();
    client.opened();
    pause(Duration::from_millis(700));
    let after = gate.log_lines(|line| line.is("reloaded")).len();
    assert!(after - before <= 3, "{} reloads of the same content", after - before);
}

#[test]
fn the_hash_of_the_configuration_follows_its_content() {
    let backend = Backend::manual();
    let (one, two) = (two_keys(&backend, ALICE, BOB), two_keys(&backend, BOB, "{ id: carol, secret: c }"));
    let gate = Gate::start(&one);
    let first = gate.ready().field("config_hash");
    gate.edit_config(&two);
    let second = gate.ready().field("config_hash");
    gate.edit_config(&one);
    assert_eq!(gate.ready().field("config_hash"), first);
    assert_ne!(first, second);
}

#[test]
fn a_key_that_goes_together_with_its_route_is_closed_at_once() {
    let backend = Backend::manual();
    let other = Backend::manual();
    let yaml = |key: &str, name: &str, backend: &Backend| {
        format!("keys:\n  - {key}\n  - {BOB}\nroutes:\n  - {{ name: {name}, upstream: {} }}\n", backend.url())
    };
    let disabled = "{ id: alice, secret: alice-secret, disabled: true }";
    let expired = "{ id: alice, secret: alice-secret, expires_at: 2020-01-01 }";
    let elsewhere = "{ id: carol, secret: another-secret }";
    for (edit, cause) in [
        (yaml(disabled, "second", &backend), "revoked"),
        (yaml(disabled, "first", &other), "revoked"),
        (yaml(elsewhere, "second", &backend), "revoked"),
        (yaml(expired, "second", &backend), "expired"),
    ] {
        let gate = Gate::start(&yaml(ALICE, "first", &backend));
        let mut alice = tunnel(&gate, &backend, "alice-secret");
        let mut bob = tunnel(&gate, &backend, "bob-secret");
        gate.edit_config(&edit);
        let start = Instant::now();
        assert_eq!(alice.0.read_close(), (4401, cause.into()));
        assert!(start.elapsed() < Duration::from_secs(1), "closed after {:?}", start.elapsed());
        gate.closed(cause);
        // Who lost only the route has its time.
        still_open(&mut bob);
    }
}
