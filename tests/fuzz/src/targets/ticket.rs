//! Tickets: nothing opens but what was issued, for what it was issued. The input: what a ticket is bound to, what it is
//! shown with, and then what becomes of it on the way; or a text that nobody issued.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use wsbouncer::auth::ticket::{Bound, Signer, Unfit};
use wsbouncer::clock::UnixTime;
use wsbouncer::secret::{Digest, Secret};

use crate::bytes::Input;

const NOW: UnixTime = UnixTime(1_000_000);

static SIGNERS: LazyLock<[Signer; 2]> = LazyLock::new(|| {
    let key = |name: &str| Secret::new(name.repeat(32));
    [Signer::new(&[key("a")]), Signer::new(&[key("b"), key("a")])]
});

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (how, issued, shown) = (input.byte(), input.byte(), input.byte());
    let until = UnixTime(NOW.0 + i64::from(input.byte()) - 20);
    let signer = &SIGNERS[usize::from(how & 1)];
    if how & 2 != 0 {
        assert!(signer.check(input.0, &of_request(shown), NOW).is_err(), "nobody has issued this");
        return;
    }
    let digest = Digest::of(&[issued]);
    let text = signer.issue((&digest, "alice"), &of_ticket(issued), until).expect("there is randomness");
    let changed = change(text.as_bytes(), &mut input);
    let checked = signer.check(&changed, &of_request(shown), NOW);
    let is_changed = changed != text.as_bytes();
    match checked {
        Ok(ticket) => {
            assert!(!is_changed, "a ticket that was changed");
            assert!(fits(issued, shown) && NOW < until);
            assert!(ticket.secret == digest && ticket.is_of("alice") && !ticket.is_of("bob"));
        }
        Err(Unfit::Expired) => assert!(!is_changed && fits(issued, shown) && NOW >= until),
        Err(Unfit::Foreign) => assert!(is_changed || !fits(issued, shown)),
        Err(Unfit::Malformed) => assert!(is_changed),
        Err(other) => panic!("{other:?}"),
    }
}

const ROUTES: [&str; 2] = ["chat", "chatt"];
const ORIGINS: [&[u8]; 4] = [b"https://a", b"https://b", b"", b"ttps://a"];

fn address(which: u8) -> IpAddr {
    let v4 = Ipv4Addr::new(10, 0, 0, which >> 3 & 1);
    // The same one, written in another way.
    if which & 16 == 0 { IpAddr::V4(v4) } else { IpAddr::V6(v4.to_ipv6_mapped()) }
}

fn of_request(which: u8) -> Bound<'static> {
    let origin = ORIGINS[usize::from(which >> 1 & 3)];
    Bound { route: ROUTES[usize::from(which & 1)], origin: Some(origin), address: Some(address(which)) }
}

fn of_ticket(which: u8) -> Bound<'static> {
    let all = of_request(which);
    let (to_origin, to_address) = (which & 32 != 0, which & 64 != 0);
    Bound { origin: all.origin.filter(|_| to_origin), address: all.address.filter(|_| to_address), ..all }
}

fn fits(issued: u8, shown: u8) -> bool {
    issued & 1 == shown & 1
        && (issued & 32 == 0 || issued & 6 == shown & 6)
        && (issued & 64 == 0 || issued & 8 == shown & 8)
}

fn change(text: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut text = text.to_vec();
    while !input.0.is_empty() {
        let (what, at, byte) = (input.byte(), usize::from(input.byte()), input.byte());
        let length = text.len();
        let at = at % (length + 1);
        match what % 6 {
            0 => text.insert(at, byte),
            1 if at < length => _ = text.remove(at),
            2 if at < length => text[at] = byte,
            3 if at < length => text[at] ^= 1 << (byte & 7),
            4 => text.truncate(at),
            5 if at < length => text.rotate_left(at),
            _ => {}
        }
    }
    text
}
