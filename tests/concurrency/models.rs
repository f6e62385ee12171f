//! What happens when threads meet, tried out in many orders of their steps: the program itself, on locks and counters that
//! stop at every step and let chance, or a search, choose who goes on (shuttle). An order in which something goes wrong is
//! printed, and can be run again with `shuttle::replay`.
//!
//! It is not tried out what a processor does that shows one thread the writes of another in another order. Nothing here
//! depends on that: what belongs together is changed under one lock, or is one counter.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::thread;

use crate::auth::ticket::{Bound, Burned, Signer, Unfit};
use crate::clock::UnixTime;
use crate::config::load_with;
use crate::denial::{Denial, Reason};
use crate::end::Cause;
use crate::head::whole;
use crate::limit::{Counts, Limits, Permit, Space, Wanted};
use crate::log::Entry;
use crate::peer::Peer;
use crate::proxy::{Proxy, Received};
use crate::reload::put_in_force;
use crate::rules::Rules;
use crate::secret::{Digest, Secret};
use crate::sync::atomic::AtomicUsize;
use crate::tunnels::Seat;

/// How many orders are tried where there are too many for all.
fn orders() -> usize {
    std::env::var("ORDERS").map_or(3000, |text| text.parse().unwrap())
}

/// Half of them by chance, half with few changes of thread at chosen places, which finds other things.
fn try_orders(model: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(model.clone(), orders() / 2);
    shuttle::check_pct(model, orders() / 2, 3);
}

/// Comes some steps later, since a handshake has many of them before it has its seat.
fn be_late() {
    for _ in 0..thread_rng().gen_range(0..50) {
        thread::yield_now();
    }
}

const SECRET: &str = "a-secret-of-alice";
const FILE: &str = "listen: 127.0.0.1:0\nadmin: off\nupstreams: { u: ws://127.0.0.1:9 }\n\
    routes:\n  - name: main\n    upstream: u\n    tickets: { path: /ticket }\n";

/// What the file says of keys.
fn rules(keys: &str) -> Rules {
    static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let path: PathBuf = DIRECTORY.path().join(format!("{}.yaml", NEXT.fetch_add(1, SeqCst)));
    std::fs::write(&path, format!("{FILE}{keys}")).unwrap();
    let loaded = load_with(&path, &|_| None, UnixTime::now());
    std::fs::remove_file(&path).unwrap();
    loaded.unwrap_or_else(|problems| panic!("{problems}")).rules
}

fn proxy(keys: &str) -> Arc<Proxy> {
    Arc::new(Proxy::new(rules(keys), Space::ENDLESS))
}

fn alice(more: &str) -> String {
    format!("keys: [{{ id: alice, secret: {SECRET}{more} }}]\n")
}

/// A handshake, from its head to its seat.
fn enter(proxy: &Proxy, target: &str, headers: &str) -> Result<Seat, Denial> {
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    let parts = whole(head.into_bytes())?;
    let peer = Peer::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let mut entry = Entry::new(peer.address.ip(), "/", &parts.headers);
    let received = proxy.receive(peer, parts, &mut entry, (&mut None, &mut None))?;
    let Received::Knock(knock, credential) = received else { panic!("it is a handshake") };
    proxy.let_in(&knock, credential.as_ref(), &mut entry).map(|(seat, _)| seat)
}

fn enter_as_alice(proxy: &Proxy) -> Result<Seat, Denial> {
    enter(proxy, "/", &format!("X-Api-Key: {SECRET}\r\n"))
}

/// Whoever comes while the key goes is refused, or is ended: never forgotten.
#[test]
fn a_key_goes_while_its_tunnel_comes() {
    static REFUSED: AtomicU32 = AtomicU32::new(0);
    static ENDED: AtomicU32 = AtomicU32::new(0);
    try_orders(|| {
        let proxy = proxy(&alice(""));
        let (reloaded, without) = (proxy.clone(), Arc::new(rules("")));
        let reload = thread::spawn(move || {
            be_late();
            drop(put_in_force(&reloaded, without));
        });
        let came = enter_as_alice(&proxy);
        reload.join().unwrap();
        match came {
            Ok(seat) => {
                assert_eq!(seat.live().control.stopped(), Some(Cause::Revoked), "forgotten");
                assert_eq!(seat.confirm().unwrap_err().reason, Reason::InvalidCredential);
                ENDED.fetch_add(1, SeqCst);
            }
            Err(denial) => {
                assert_eq!(denial.reason, Reason::InvalidCredential);
                REFUSED.fetch_add(1, SeqCst);
            }
        }
        assert!(proxy.tunnels.all().is_empty());
        assert_eq!(proxy.counts.keys(9).iter().map(|(_, open, _)| *open).sum::<u32>(), 0);
    });
    assert!(REFUSED.load(SeqCst) > 0 && ENDED.load(SeqCst) > 0, "both have happened");
}

/// Of two dates that reloads bring while a tunnel comes, the last one is the tunnel's.
#[test]
fn a_date_changes_while_its_tunnel_comes() {
    let date = |year: i32| alice(&format!(", expires_at: {year}-01-01"));
    try_orders(move || {
        let proxy = proxy(&date(2090));
        let (reloaded, sooner) = (proxy.clone(), Arc::new(rules(&date(2080))));
        let wanted = UnixTime(3_471_292_800);
        let reload = thread::spawn(move || {
            be_late();
            drop(put_in_force(&reloaded, sooner));
        });
        let seat = enter_as_alice(&proxy).unwrap();
        reload.join().unwrap();
        assert_eq!(seat.live().control.expires_at(), Some(wanted));
        assert_eq!(seat.live().control.stopped(), None);
    });
}

/// A drain ends everybody who has a seat, and nobody gets one after it.
#[test]
fn a_drain_begins_while_tunnels_come_and_go() {
    static REFUSED: AtomicU32 = AtomicU32::new(0);
    static ENDED: AtomicU32 = AtomicU32::new(0);
    try_orders(|| {
        let proxy = proxy(&alice(""));
        let comers = [(); 2].map(|()| {
            let proxy = proxy.clone();
            thread::spawn(move || match enter_as_alice(&proxy) {
                Ok(seat) => {
                    // Ended sooner or later; a relay looks at this whenever it is woken.
                    while seat.live().control.stopped().is_none() {
                        thread::yield_now();
                    }
                    assert_eq!(seat.live().control.stopped(), Some(Cause::Drain));
                    ENDED.fetch_add(1, SeqCst);
                }
                Err(denial) => {
                    assert_eq!(denial.reason, Reason::Draining);
                    REFUSED.fetch_add(1, SeqCst);
                }
            })
        });
        let waiting = proxy.clone();
        // As one that is waited for to send its first message.
        let idler = thread::spawn(move || block_on(waiting.tunnels.drain_begun()));
        be_late();
        block_on(async {
            proxy.tunnels.drain(Duration::ZERO).await;
            proxy.tunnels.empty().await;
        });
        assert_eq!(enter_as_alice(&proxy).unwrap_err().reason, Reason::Draining);
        comers.into_iter().for_each(|comer| comer.join().unwrap());
        idler.join().unwrap();
        assert!(proxy.tunnels.all().is_empty());
        assert_eq!(proxy.counts.keys(9).iter().map(|(_, open, _)| *open).sum::<u32>(), 0);
    });
    assert!(REFUSED.load(SeqCst) > 0 && ENDED.load(SeqCst) > 0, "both have happened");
}

fn ticket(signer: &Signer) -> String {
    let bound = Bound { route: "main", origin: None, address: None };
    signer.issue((&Digest::of(SECRET.as_bytes()), "alice"), &bound, UnixTime(UnixTime::now().0 + 60)).unwrap()
}

/// Of all who use a ticket up at the same time, one does.
#[test]
fn a_ticket_burns_once() {
    shuttle::check_dfs(
        || {
            let signer = Signer::new(&[Secret::new("s")]);
            let bound = Bound { route: "main", origin: None, address: None };
            let now = UnixTime::now();
            let ticket = Arc::new(signer.check(ticket(&signer).as_bytes(), &bound, now).unwrap());
            let burned = Arc::new(Burned::default());
            let threads = [(); 3].map(|()| {
                let (burned, ticket) = (burned.clone(), ticket.clone());
                thread::spawn(move || burned.burn(&ticket, now))
            });
            let outcomes = threads.map(|thread| thread.join().unwrap());
            assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
            assert_eq!(outcomes.iter().filter(|outcome| **outcome == Err(Unfit::Used)).count(), 2);
        },
        None,
    );
}

/// ... and one gets in.
#[test]
fn a_ticket_lets_one_in() {
    try_orders(|| {
        let proxy = proxy(&alice(""));
        let target = format!("/?ticket={}", ticket(&proxy.rules.load().tickets));
        let threads = [(); 2].map(|()| {
            let (proxy, target) = (proxy.clone(), target.clone());
            thread::spawn(move || enter(&proxy, &target, ""))
        });
        let outcomes = threads.map(|thread| thread.join().unwrap());
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        let denied = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        assert!(denied.into_iter().all(|denial| denial.reason == Reason::InvalidCredential));
    });
}

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn admit(counts: &Arc<Counts>, key: &str) -> Result<Permit, Denial> {
    let (route, key): (Arc<str>, Arc<str>) = ("main".into(), key.into());
    counts.admit(&Wanted {
        route: &route,
        max_of_route: None,
        key: Some(&key),
        secret: None,
        max_of_key: Some(1),
        max_of_key_on_route: None,
        address: ADDRESS,
    })
}

/// Never more than there may be, and all of them back in the end.
#[test]
fn permits_are_counted() {
    const MOST: u32 = 2;
    try_orders(|| {
        let counts = Arc::new(Counts::default());
        counts.set_limits(&Limits { max_connections: Some(MOST), ..Limits::default() });
        let held = Arc::new(AtomicUsize::new(0));
        let threads = ["a", "a", "b", "c"].map(|key| {
            let (counts, held) = (counts.clone(), held.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    if let Ok(permit) = admit(&counts, key) {
                        assert!(held.fetch_add(1, SeqCst) < 2);
                        permit.opened();
                        held.fetch_sub(1, SeqCst);
                        drop(permit);
                    }
                }
            })
        });
        // Limits that come while they are taken.
        counts.set_limits(&Limits { max_connections: Some(MOST), ..Limits::default() });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(counts.keys(9).iter().all(|(_, open, _)| *open == 0));
        let again = ["a", "b", "c"].map(|key| admit(&counts, key));
        assert_eq!(again.iter().filter(|permit| permit.is_ok()).count(), 2, "as much room as before");
    });
}

/// The places of those who have no tunnel.
#[test]
fn guests_are_counted() {
    shuttle::check_dfs(
        || {
            let counts = Arc::new(Counts::default());
            counts.set_limits(&Limits { max_declined: Some(1), ..Limits::default() });
            let held = Arc::new(AtomicUsize::new(0));
            let threads = [(); 3].map(|()| {
                let (counts, held) = (counts.clone(), held.clone());
                thread::spawn(move || {
                    let guest = counts.decline(ADDRESS).ok()?;
                    assert_eq!(held.fetch_add(1, SeqCst), 0, "one at a time");
                    held.fetch_sub(1, SeqCst);
                    drop(guest);
                    Some(())
                })
            });
            let came = threads.map(|thread| thread.join().unwrap());
            assert!(came.iter().any(Option::is_some));
            assert!(counts.decline(ADDRESS).is_ok(), "as much room as before");
        },
        Some(20_000),
    );
}

/// Who waits for a place gets it when somebody leaves. Each of those who accept looks before it takes one, so together
/// they may take as many more as there are of them, less one: descriptors are kept for that.
#[test]
fn room_is_given_to_whoever_waits() {
    try_orders(|| {
        let counts = Arc::new(Counts::within(Space { files: 1, ..Space::ENDLESS }));
        let threads = [(); 3].map(|()| {
            let counts = counts.clone();
            thread::spawn(move || {
                block_on(counts.room().wait_for_place());
                counts.room().enter();
                assert!(counts.room().open() <= 3);
                counts.room().leave();
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(counts.room().open(), 0);
        assert!(counts.room().has_place());
    });
}
