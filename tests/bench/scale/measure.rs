//! What `run` cannot measure from outside.
//!
//! `look-up KEYS` looks secrets up in that many keys, for callgrind, which counts the instructions of [`look_up`] alone.
//! `parse FILE` parses a key file with the YAML crate, a piece at a time (its tree of a million keys would be gigabytes),
//! and prints the seconds.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use wsbouncer::auth::api_key::{Key, Keys};
use wsbouncer::clock::UnixTime;
use wsbouncer::secret::Digest;

fn main() {
    let mut args = std::env::args().skip(1);
    let (what, of) = (args.next().unwrap(), args.next().unwrap());
    match &*what {
        "look-up" => {
            let (keys, digests) = keys(of.parse().unwrap());
            println!("{}", look_up(&keys, &digests));
        }
        "parse" => println!("{}", parse(&std::fs::read_to_string(of).unwrap()).as_secs_f64()),
        _ => panic!("there are look-up KEYS and parse FILE"),
    }
}

/// Keys, and ten thousand digests, half of which one of them has.
fn keys(count: usize) -> (Keys, Vec<Digest>) {
    let mut keys = Keys::default();
    keys.reserve(count);
    let mut key = Key {
        id: "".into(),
        routes: None,
        not_before: None,
        expires_at: None,
        disabled: false,
        max_connections: None,
        limits: None,
        attributes: Box::default(),
    };
    for number in 0..count {
        key.id = format!("key-{number}").into();
        keys.add(&key, &[(digest(number), None)]).unwrap();
    }
    let wanted = |n: usize| if n.is_multiple_of(2) { digest(n * 7919 % count) } else { digest(count + n) };
    (keys, (0..10_000).map(wanted).collect())
}

/// As uniform as a SHA-256, and made in no time.
fn digest(number: usize) -> Digest {
    let mut state = number as u64;
    let mut bytes = [0; 32];
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        state = mixed;
    }
    Digest::from(bytes)
}

#[inline(never)]
fn look_up(keys: &Keys, digests: &[Digest]) -> usize {
    digests.iter().filter(|digest| black_box(keys.find(digest, UnixTime(0))).is_ok()).count()
}

fn parse(text: &str) -> Duration {
    let mut rest = text;
    let mut taken = Duration::ZERO;
    while !rest.is_empty() {
        let most = rest.len().min(8 << 20);
        let end = if most == rest.len() { most } else { rest[..most].rfind("\n- ").unwrap() + 1 };
        let (piece, after) = rest.split_at(end);
        let start = Instant::now();
        let tree: serde_yaml::Value = serde_yaml::from_str(piece).unwrap();
        taken += start.elapsed();
        drop(black_box(tree));
        rest = after;
    }
    taken
}
