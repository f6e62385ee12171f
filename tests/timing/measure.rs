//! How long it takes to refuse a credential, by what is wrong with it; see `run`, which builds and explains this.
//!
//! `verify SAMPLES` times the library's own `verify`; `socket SAMPLES ADDRESS` the refusals of a gate that runs there, with
//! these keys, which `keys` prints as a file has them. Prints a table and never fails over a figure.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Instant;

use wsbouncer::auth::api_key::{Key, Keys};
use wsbouncer::auth::credential::Carrier;
use wsbouncer::auth::ticket::Signer;
use wsbouncer::auth::{Credential, Facts, Place, Tickets, Verifier, verify};
use wsbouncer::clock::UnixTime;
use wsbouncer::secret::{Digest, Secret};

/// Keys, of which every second one is disabled. Many, because each digest has a place of its own in the table, where others
/// are near or not: what a few of them take says something about these few.
const KEYS: usize = 2000;
const LENGTH: usize = 44;
const LETTERS: &[u8] = b"0123456789abcdef";

/// What may be wrong with a credential. The first two differ from a real key, and only in where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    FirstByte,
    LastByte,
    Unknown,
    UnknownAgain,
    Malformed,
    Disabled,
}

const CLASSES: [(Class, &str); 6] = [
    (Class::Unknown, "unknown, as long as a key"),
    (Class::UnknownAgain, "the same once more"),
    (Class::FirstByte, "a key with its first letter wrong"),
    (Class::LastByte, "a key with its last letter wrong"),
    (Class::Malformed, "malformed: a few letters"),
    (Class::Disabled, "a disabled key's own secret"),
];

/// A generator that gives the same numbers everywhere (Knuth's constants).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    /// Another letter than this one.
    fn other(&mut self, than: u8) -> u8 {
        loop {
            let letter = LETTERS[self.roll(LETTERS.len())];
            if letter != than {
                return letter;
            }
        }
    }

    /// Made by the same steps for every class, so that neither caches nor allocations depend on it.
    fn secret(&mut self, class: Class) -> Vec<u8> {
        let mut random = [0; LENGTH];
        random.fill_with(|| LETTERS[self.roll(LETTERS.len())]);
        let pair = self.roll(KEYS / 2) * 2;
        let (good, disabled) = (black_box(real_secret(pair)), black_box(real_secret(pair + 1)));
        let (at, length) = match class {
            Class::FirstByte => (0, LENGTH),
            Class::Malformed => (0, 8),
            _ => (LENGTH - 1, LENGTH),
        };
        let mut secret = black_box(match class {
            Class::FirstByte | Class::LastByte => good,
            Class::Disabled => disabled,
            Class::Unknown | Class::UnknownAgain | Class::Malformed => random,
        });
        let changed = self.other(secret[at]);
        secret[at] = if class == Class::Disabled { secret[at] } else { changed };
        black_box(&secret[..length]).to_vec()
    }
}

/// The secret of the key of this number.
fn real_secret(number: usize) -> [u8; LENGTH] {
    let mut dice = Dice(number as u64 * 7919 + 1);
    let mut secret = [0; LENGTH];
    secret.fill_with(|| LETTERS[dice.roll(LETTERS.len())]);
    secret
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let measured = match &*args[0] {
        "keys" => return print_keys(),
        "verify" => time_verify(args[1].parse().unwrap()),
        "socket" => time_socket(args[1].parse().unwrap(), &args[2]),
        other => panic!("there are keys, verify and socket, and no {other}"),
    };
    print(&measured);
}

/// Which class is next: all in turn, each turn in an order of its own.
fn turns(samples: usize, dice: &mut Dice) -> Vec<Class> {
    let mut order = Vec::with_capacity(samples * CLASSES.len());
    for _ in 0..samples {
        let mut turn = CLASSES.map(|(class, _)| class);
        for at in (1..turn.len()).rev() {
            turn.swap(at, dice.roll(at + 1));
        }
        order.extend(turn);
    }
    order
}

type Measured = Vec<(Class, f64)>;

fn keys() -> Keys {
    let key = |id: &str, disabled| Key {
        id: id.into(),
        routes: None,
        not_before: None,
        expires_at: None,
        disabled,
        max_connections: None,
        limits: None,
        attributes: Box::default(),
    };
    let mut keys = Keys::default();
    for number in 0..KEYS {
        let secret = Digest::of(&real_secret(number));
        keys.add(&key(&format!("key-{number}"), number % 2 == 1), &[(secret, None)]).unwrap();
    }
    keys
}

fn print_keys() {
    for number in 0..KEYS {
        let (secret, disabled) = (Digest::of(&real_secret(number)).to_hex(), number % 2 == 1);
        println!("- {{ id: key-{number}, secrets: [{{ sha256: \"{secret}\" }}], disabled: {disabled} }}");
    }
}

fn time_verify(samples: usize) -> Measured {
    let (keys, signer) = (keys(), Signer::new(&[]));
    let verifier = Verifier::of_keys([Place::Bearer]);
    let mut dice = Dice(1);
    let facts = || Facts {
        keys: &keys,
        now: UnixTime(1_800_000_000),
        tickets: Tickets {
            signer: &signer,
            burned: None,
            route: "main",
            origin: b"",
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        },
    };
    let once = |class: Class, dice: &mut Dice| {
        let credential = Credential::new(Secret::new(dice.secret(class)), Carrier::Request);
        let (facts, begin) = (facts(), Instant::now());
        let denied = black_box(verify(black_box(&verifier), Some(black_box(&credential)), &facts)).is_err();
        let took = begin.elapsed();
        assert!(denied, "{class:?} was let in");
        (class, took.as_nanos() as f64)
    };
    for class in turns(1000, &mut dice) {
        once(class, &mut dice); // for the caches
    }
    turns(samples, &mut dice).into_iter().map(|class| once(class, &mut dice)).collect()
}

fn time_socket(samples: usize, address: &str) -> Measured {
    let mut dice = Dice(2);
    let once = |class: Class, dice: &mut Dice| {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: gate.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Api-Key: {}\r\n\r\n",
            String::from_utf8(dice.secret(class)).unwrap()
        );
        let mut client = TcpStream::connect(address).unwrap();
        client.set_nodelay(true).unwrap();
        let mut first = [0; 12];
        let begin = Instant::now();
        client.write_all(request.as_bytes()).unwrap();
        client.read_exact(&mut first).unwrap();
        let took = begin.elapsed();
        assert_eq!(&first, b"HTTP/1.1 401", "{class:?}");
        client.read_to_end(&mut Vec::new()).unwrap();
        (class, took.as_nanos() as f64)
    };
    for class in turns(100, &mut dice) {
        once(class, &mut dice);
    }
    turns(samples, &mut dice).into_iter().map(|class| once(class, &mut dice)).collect()
}

/// Sorted figures of one class.
struct Sample(Vec<f64>);

impl Sample {
    fn of(measured: &Measured, class: Class) -> Self {
        let mut figures: Vec<f64> =
            measured.iter().filter(|(other, _)| *other == class).map(|(_, figure)| *figure).collect();
        figures.sort_by(f64::total_cmp);
        Self(figures)
    }

    fn quantile(&self, of: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into what is there")]
        let at = ((self.0.len() - 1) as f64 * of) as usize;
        self.0[at]
    }

    /// Without what is above this: interruptions say nothing about what was interrupted.
    fn below(&self, limit: f64) -> Self {
        Self(self.0.iter().copied().filter(|figure| *figure <= limit).collect())
    }

    fn mean_and_variance(&self) -> (f64, f64) {
        let count = self.0.len() as f64;
        let mean = self.0.iter().sum::<f64>() / count;
        (mean, self.0.iter().map(|figure| (figure - mean).powi(2)).sum::<f64>() / (count - 1.0))
    }

    /// Fewer say nothing.
    fn is_enough(&self) -> bool {
        self.0.len() > 100
    }

    /// Welch's t: by how many of its own uncertainties the difference of the means is away from nothing.
    fn t(&self, other: &Self) -> f64 {
        let ((mine, my_variance), (theirs, their_variance)) = (self.mean_and_variance(), other.mean_and_variance());
        (mine - theirs) / (my_variance / self.0.len() as f64 + their_variance / other.0.len() as f64).sqrt()
    }
}

fn print(measured: &Measured) {
    let base = Sample::of(measured, CLASSES[0].0);
    let mut all: Vec<f64> = measured.iter().map(|(_, figure)| *figure).collect();
    all.sort_by(f64::total_cmp);
    let crop = |share: f64| Sample(all.clone()).quantile(share);
    println!("| {:34} | samples | p10 | median | p90 | p99 | mean | t, all | t, p90 | t, p50 |", "ns to refuse");
    println!("| {} | --: | --: | --: | --: | --: | --: | --: | --: | --: |", "-".repeat(34));
    for (class, name) in CLASSES {
        let sample = Sample::of(measured, class);
        let t = |limit: f64| {
            let (sample, base) = (sample.below(limit), base.below(limit));
            if sample.is_enough() && base.is_enough() { format!("{:.1}", sample.t(&base)) } else { "-".into() }
        };
        println!(
            "| {name:34} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} | {} |",
            sample.0.len(),
            sample.quantile(0.1),
            sample.quantile(0.5),
            sample.quantile(0.9),
            sample.quantile(0.99),
            sample.mean_and_variance().0,
            t(f64::INFINITY),
            t(crop(0.9)),
            t(crop(0.5)),
        );
    }
}
