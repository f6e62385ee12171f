//! Instruction counts of the pure parts that every handshake or every message goes through. A count says little about
//! time, and does not depend on who else uses the machine: it is there to notice when one of these parts becomes more
//! expensive. `tests/bench/instructions` runs this and compares with what was accepted (`instructions.txt`).
//!
//! What the functions named `..._setup` do, and the dropping of what a benchmark gives back, is not counted.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]
#![expect(unused_qualifications, reason = "what the macros of gungraun make of this is full of them")]
#![expect(clippy::disallowed_methods, reason = "the main function that gungraun writes calls exit")]

use std::fmt::Write as _;
use std::hint::black_box;

use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use http::request::Parts;
use http::{HeaderName, Request};

use wsbouncer::auth::api_key::{Key, Keys};
use wsbouncer::auth::credential::{Encoding, Place, Shape, take};
use wsbouncer::auth::ticket::Signer;
use wsbouncer::auth::{Credential, Facts, Kind, Tickets, Verifier, verify};
use wsbouncer::clock::UnixTime;
use wsbouncer::config::{self, Config};
use wsbouncer::frame::Follower;
use wsbouncer::head;
use wsbouncer::secret::Digest;

const KEY: &str = "wsb_0123456789abcdefghijklmnopqrstuvwxyzABCDEF";
const NOW: UnixTime = UnixTime(1_800_000_000);

// Frames.

/// Masked binary frames with payloads of zeros, one behind the other.
fn frames(payload: u16, count: usize) -> Vec<u8> {
    let mut frame = vec![0x82];
    match u8::try_from(payload) {
        Ok(short) if short < 126 => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 126);
            frame.extend(payload.to_be_bytes());
        }
    }
    frame.extend([1, 2, 3, 4]);
    frame.resize(frame.len() + usize::from(payload), 0);
    frame.repeat(count)
}

fn small_frames_setup() -> (Follower, Vec<u8>) {
    (Follower::from_client(false), frames(32, 1000))
}

fn large_frames_setup() -> (Follower, Vec<u8>) {
    (Follower::from_client(false), frames(65_000, 16))
}

#[library_benchmark]
#[bench::thousand_of_32_bytes(small_frames_setup())]
#[bench::sixteen_of_65_kb(large_frames_setup())]
fn follow((mut follower, stream): (Follower, Vec<u8>)) -> (Follower, Vec<u8>) {
    follower.follow(black_box(&stream));
    assert!(follower.is_between());
    (follower, stream)
}

// As they come when nothing about the reads fits the frames.
#[library_benchmark]
#[bench::pieces_of_7_bytes(small_frames_setup(), 7)]
#[bench::pieces_of_1460_bytes(small_frames_setup(), 1460)]
fn follow_cut((mut follower, stream): (Follower, Vec<u8>), piece: usize) -> (Follower, Vec<u8>) {
    for piece in stream.chunks(piece) {
        follower.follow(black_box(piece));
    }
    assert!(follower.is_between());
    (follower, stream)
}

// Heads.

const BARE_HEAD: &str = "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-Api-Key: bench-key-1\r\n\r\n";

const BROWSER_HEAD: &str = "GET /chat/room?x=1 HTTP/1.1\r\nHost: chat.example.com\r\nConnection: Upgrade\r\nPragma: no-cache\r\n\
    Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/140.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: https://chat.example.com\r\nSec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\nCookie: theme=dark; consent=1\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
    Sec-WebSocket-Protocol: graphql-transport-ws, x-api-key, wsb_0123456789abcdefghijklmnopqrstuvwxyzABCDEF\r\n\r\n";

#[library_benchmark]
#[bench::bare(BARE_HEAD.as_bytes())]
#[bench::of_a_browser(BROWSER_HEAD.as_bytes())]
fn read_head(bytes: &[u8]) -> usize {
    let length = head::scan(black_box(bytes), 0).unwrap().unwrap();
    head::vet(&bytes[..length]).unwrap();
    length
}

// Credentials.

fn header_place() -> Place {
    Place::Header(HeaderName::from_static("x-api-key"))
}

fn pair_place() -> Place {
    Place::Subprotocol { shape: Shape::Pair { marker: "x-api-key".into(), any_case: false }, encoding: Encoding::Raw }
}

fn request(target: &str, name: &str, value: &str) -> Parts {
    let request = Request::get(target).header("host", "chat.example.com").header("user-agent", "bench");
    request.header(name, value).body(()).unwrap().into_parts().0
}

/// Where a route looks, the request, and the subprotocols that it offers.
type Shown = (Vec<(Place, Kind)>, Parts, Vec<Box<str>>);

/// The usual places of a route.
fn usual_setup(parts: Parts, offered: &[&str]) -> Shown {
    (
        vec![(header_place(), Kind::Key), (pair_place(), Kind::Key)],
        parts,
        offered.iter().map(|item| (*item).into()).collect(),
    )
}

fn header_setup() -> Shown {
    usual_setup(request("/chat", "x-api-key", KEY), &[])
}

fn subprotocol_setup() -> Shown {
    usual_setup(request("/chat", "accept", "*/*"), &["graphql-transport-ws", "x-api-key", KEY])
}

fn query_setup() -> Shown {
    let parts = request(&format!("/chat?room=7&api_key={KEY}&x=1"), "accept", "*/*");
    (vec![(Place::Query("api_key".into()), Kind::Key)], parts, vec![])
}

fn cookie_setup() -> Shown {
    let parts = request("/chat", "cookie", &format!("theme=dark; session={KEY}; consent=1"));
    (vec![(Place::Cookie("session".into()), Kind::Key)], parts, vec![])
}

#[library_benchmark]
#[bench::header(header_setup())]
#[bench::subprotocol(subprotocol_setup())]
#[bench::query(query_setup())]
#[bench::cookie(cookie_setup())]
fn take_credential((places, mut parts, mut offered): Shown) -> (Shown, Credential) {
    let credential = take(black_box(&places), &mut parts, &mut offered, true).unwrap().unwrap();
    ((places, parts, offered), credential)
}

// Keys.

/// Made up, as hashing for a million keys would take longer than everything that is counted.
fn digest(at: u32) -> Digest {
    let bits = u64::from(at).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Digest::from_hex(&format!("{:016x}", bits ^ bits >> 29).repeat(4)).unwrap()
}

fn key(id: &str) -> Key {
    Key {
        id: id.into(),
        routes: None,
        not_before: None,
        expires_at: None,
        disabled: false,
        max_connections: None,
        limits: None,
        attributes: Box::default(),
    }
}

fn keys(count: u32) -> Keys {
    let mut keys = Keys::default();
    for at in 0..count {
        keys.add(&key("any"), &[(digest(at), None)]).unwrap();
    }
    keys
}

/// So many keys, never dropped, and digests to look for: a thousand of theirs, or a thousand of nobody's.
fn keys_setup(count: u32, are_known: bool) -> (&'static Keys, Vec<Digest>) {
    let step = (count / 1000).max(1);
    let wanted = |at: u32| if are_known { digest(at * step % count) } else { digest(u32::MAX - at) };
    (Box::leak(Box::new(keys(count))), (0..1000).map(wanted).collect())
}

// A thousand look-ups.
#[library_benchmark]
#[bench::of_10(keys_setup(10, true))]
#[bench::of_1000000(keys_setup(1_000_000, true))]
#[bench::unknown_of_10(keys_setup(10, false))]
fn find_key((keys, wanted): (&'static Keys, Vec<Digest>)) -> (Vec<Digest>, usize) {
    let found = wanted.iter().filter(|digest| keys.find(black_box(digest), NOW).is_ok()).count();
    (wanted, found)
}

/// A verifier, what is shown to it, and what that is judged by.
type Case = (Verifier, Credential, Keys, Signer);

fn verify_setup() -> Case {
    let mut keys = keys(10);
    keys.add(&key("mine"), &[(Digest::of(KEY.as_bytes()), None)]).unwrap();
    let (places, mut parts, mut offered) = header_setup();
    let credential = take(&places, &mut parts, &mut offered, true).unwrap().unwrap();
    (Verifier::of_keys(places.into_iter().map(|(place, _)| place)), credential, keys, Signer::new(&[]))
}

// From a credential to a principal: the digest (by code without special instructions, as valgrind knows none), and one
// look-up.
#[library_benchmark]
#[bench::good(verify_setup())]
fn verify_key((verifier, credential, keys, signer): Case) -> impl Sized {
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    let tickets = Tickets { signer: &signer, burned: None, route: "main", origin: b"", address };
    let facts = Facts { keys: &keys, now: NOW, tickets };
    let principal = verify(&verifier, Some(black_box(&credential)), &facts).unwrap();
    (principal, verifier, credential, keys, signer)
}

// Routes.

fn routes_setup(count: usize) -> Config {
    let mut yaml = "listen: 127.0.0.1:0\nroutes:\n".to_owned();
    for at in 0..count {
        let path = if at % 2 == 0 { format!("/room-{at}") } else { format!("/room-{at}/*") };
        let host = if at % 10 == 9 { format!("\"*.zone-{at}.example.com\"") } else { "chat.example.com".to_owned() };
        let route = format!("  - {{ host: {host}, path: {path}, upstream: \"ws://127.0.0.1:9000\", auth: none }}");
        writeln!(yaml, "{route}").unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wsbouncer.yaml");
    std::fs::write(&file, yaml).unwrap();
    config::load_with(&file, &|_| None, NOW).unwrap_or_else(|problems| panic!("{problems}"))
}

#[library_benchmark]
#[bench::first_of_3(routes_setup(3), "chat.example.com", "/room-0")]
#[bench::exact_of_1000(routes_setup(1000), "chat.example.com", "/room-998")]
#[bench::prefix_of_1000(routes_setup(1000), "chat.example.com:443", "/room-501/kitchen")]
#[bench::wildcard_host_of_1000(routes_setup(1000), "a.b.zone-999.example.com", "/room-999/kitchen")]
fn find_route(config: Config, host: &str, path: &str) -> Config {
    let route = config.rules.routes.find(black_box(host), black_box(path)).unwrap();
    black_box(route);
    config
}

library_benchmark_group!(name = frames_group, benchmarks = [follow, follow_cut]);
library_benchmark_group!(name = heads_group, benchmarks = [read_head]);
library_benchmark_group!(name = credentials_group, benchmarks = [take_credential, verify_key, find_key]);
library_benchmark_group!(name = routes_group, benchmarks = [find_route]);

main!(
    // Without a model of caches, which nobody reads here, it takes half the time.
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [frames_group, heads_group, credentials_group, routes_group]
);
