//! Tickets: what stands in for a secret for some seconds, once, on one route. A page or a client with a cookie jar gets
//! one by a plain request, and shows it on the handshake that follows.
//!
//! A ticket names the very secret it was issued for, so that whoever loses that loses the ticket and what it opened. The
//! name is hidden, because a ticket travels in URLs: a digest that could be read off there could be guessed at.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{LazyLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::clock::UnixTime;
use crate::secret::{Digest, Secret};
use crate::sync::Mutex;

/// Who signs tickets. The first key signs, all of them check, so that a secret is rotated as a key's is.
pub struct Signer(Vec<SigningKey>);

/// Made from a secret; one half signs, the other one hides.
#[derive(Clone)]
struct SigningKey {
    sign: Zeroizing<[u8; 32]>,
    hide: Zeroizing<[u8; 32]>,
}

/// What a ticket is good for besides its time. Whatever is `None` it is not bound to.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'b> {
    pub route: &'b str,
    /// The `Origin` of the request, empty for one that has none.
    pub origin: Option<&'b [u8]>,
    pub address: Option<IpAddr>,
}

/// A ticket that is what it says, and was not looked for among the used ones yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Of the secret that it was issued for.
    pub secret: Digest,
    nonce: [u8; NONCE],
    holder: [u8; HOLDER],
    until: UnixTime,
}

/// Why a ticket opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    Malformed,
    /// Signed by nobody we know, or for another route, origin or address.
    Foreign,
    Expired,
    Used,
    /// So many are remembered as used that no more can be.
    Full,
}

// version, what it is bound to, until when, nonce, holder, hidden digest; then the signature.
const VERSION: u8 = 1;
const NONCE: usize = 16;
const HOLDER: usize = 16;
const SIGNED: usize = 1 + 1 + 8 + NONCE + HOLDER + 32;
const WHOLE: usize = SIGNED + 32;

const TO_ORIGIN: u8 = 1;
const TO_ADDRESS: u8 = 2;

impl Signer {
    /// One key for each secret. Without a secret, a random key that ends with this process.
    pub fn new(secrets: &[Secret]) -> Self {
        if secrets.is_empty() {
            return Self(OWN.iter().cloned().collect());
        }
        Self(secrets.iter().map(|secret| SigningKey::of(secret.as_bytes())).collect())
    }

    /// A ticket for whoever has shown this secret of the key `id`. `None` if the system has no randomness.
    pub fn issue(&self, (secret, id): (&Digest, &str), bound: &Bound<'_>, until: UnixTime) -> Option<String> {
        let key = self.0.first()?;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let mut bytes = Vec::with_capacity(WHOLE);
        bytes.extend([VERSION, bound.flags()]);
        bytes.extend(until.0.to_be_bytes());
        bytes.extend(nonce);
        bytes.extend(holder(id));
        bytes.extend(key.hidden(secret.as_bytes(), &nonce));
        let signature = key.signature(&bytes, bound).finalize().into_bytes();
        bytes.extend(signature);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a ticket. `bound` is what the request that shows it has: all of it, whatever the ticket is bound to.
    ///
    /// # Errors
    /// Why it opens nothing.
    pub fn check(&self, text: &[u8], bound: &Bound<'_>, now: UnixTime) -> Result<Ticket, Unfit> {
        let mut bytes = [0; WHOLE + 1];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| Unfit::Malformed)?;
        let (signed, signature) = bytes[..length].split_at_checked(SIGNED).ok_or(Unfit::Malformed)?;
        let parts = Parts::of(signed).filter(|_| length == WHOLE).ok_or(Unfit::Malformed)?;
        let bound = parts.restrict(bound);
        let is_ours = |key: &&SigningKey| key.signature(signed, &bound).verify_slice(signature).is_ok();
        let key = self.0.iter().find(is_ours).ok_or(Unfit::Foreign)?;
        if now >= parts.until {
            return Err(Unfit::Expired);
        }
        let secret = Digest::from(key.hidden(&parts.hidden, &parts.nonce));
        Ok(Ticket { secret, nonce: parts.nonce, holder: parts.holder, until: parts.until })
    }
}

/// Replicas that are told no secret have none in common.
static OWN: LazyLock<Option<SigningKey>> = LazyLock::new(|| {
    let mut random = Zeroizing::new([0; 32]);
    // Without randomness there is no key, and no ticket.
    getrandom::fill(random.as_mut()).ok()?;
    Some(SigningKey::of(random.as_ref()))
});

impl SigningKey {
    fn of(secret: &[u8]) -> Self {
        let half = |purpose: &[u8]| Zeroizing::new(mac(secret).chain_update(purpose).finalize().into_bytes().into());
        Self { sign: half(b"wsbouncer ticket: sign"), hide: half(b"wsbouncer ticket: hide") }
    }

    fn signature(&self, signed: &[u8], bound: &Bound<'_>) -> Hmac<Sha256> {
        let mut mac = mac(&*self.sign).chain_update(signed);
        for text in [Some(bound.route.as_bytes()), bound.origin].into_iter().flatten() {
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text);
        }
        if let Some(address) = bound.address {
            mac.update(&sixteen(address));
        }
        mac
    }

    /// Hides what is plain and shows what is hidden. A nonce serves once.
    fn hidden(&self, bytes: &[u8; 32], nonce: &[u8; NONCE]) -> [u8; 32] {
        let mask = mac(&*self.hide).chain_update(nonce).finalize().into_bytes();
        let mut result = *bytes;
        result.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        result
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("a key of any length is one (RFC 2104 section 2)")
}

fn sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn holder(id: &str) -> [u8; HOLDER] {
    let hash: [u8; 32] = Sha256::digest(id).into();
    let (start, _) = hash.split_first_chunk().expect("a half of the hash");
    *start
}

impl Bound<'_> {
    fn flags(&self) -> u8 {
        u8::from(self.origin.is_some()) * TO_ORIGIN + u8::from(self.address.is_some()) * TO_ADDRESS
    }
}

/// The signed half of a ticket, taken apart.
struct Parts {
    flags: u8,
    until: UnixTime,
    nonce: [u8; NONCE],
    holder: [u8; HOLDER],
    hidden: [u8; 32],
}

impl Parts {
    fn of(signed: &[u8]) -> Option<Self> {
        let ([version, flags], rest) = signed.split_first_chunk()?;
        let (until, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (holder, hidden) = rest.split_first_chunk()?;
        (*version == VERSION && flags & !(TO_ORIGIN | TO_ADDRESS) == 0).then_some(())?;
        let until = UnixTime(i64::from_be_bytes(*until));
        Some(Self { flags: *flags, until, nonce: *nonce, holder: *holder, hidden: hidden.try_into().ok()? })
    }

    /// What of a request the ticket is bound to.
    fn restrict<'b>(&self, all: &Bound<'b>) -> Bound<'b> {
        let to = |flag| self.flags & flag != 0;
        Bound {
            route: all.route,
            origin: to(TO_ORIGIN).then(|| all.origin.unwrap_or_default()),
            address: all.address.filter(|_| to(TO_ADDRESS)),
        }
    }
}

impl Ticket {
    /// Whether it was issued to the key of this id: a secret may have changed hands since.
    pub fn is_of(&self, id: &str) -> bool {
        self.holder == holder(id)
    }
}

/// Tickets that were used, until they expire. Of this process alone.
#[derive(Default)]
pub struct Burned(Mutex<HashMap<[u8; NONCE], Kept>>);

/// How long a used ticket is remembered: until both have passed. A clock that is set ahead and back again gives none back.
struct Kept {
    until: UnixTime,
    at_least: Instant,
}

/// Only good tickets get here, and they are gone with their time: more than this many at once is no use but abuse.
const MOST_BURNED: usize = 1 << 18;
/// How many are there before those that are over are looked for.
const SWEEP: usize = 1024;

impl Burned {
    /// Uses a ticket up. Of two who do so at the same time, one does it.
    ///
    /// # Errors
    /// [`Unfit::Used`], or [`Unfit::Full`].
    pub fn burn(&self, ticket: &Ticket, now: UnixTime) -> Result<(), Unfit> {
        self.burn_at(ticket, now, Instant::now())
    }

    fn burn_at(&self, ticket: &Ticket, now: UnixTime, instant: Instant) -> Result<(), Unfit> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= SWEEP && used.len() == used.capacity() {
            used.retain(|_, kept| kept.until > now || kept.at_least > instant);
        }
        if used.contains_key(&ticket.nonce) {
            return Err(Unfit::Used);
        }
        if used.len() >= MOST_BURNED {
            return Err(Unfit::Full);
        }
        let left = u64::try_from(ticket.until.0.saturating_sub(now.0)).unwrap_or(0);
        let at_least = instant.checked_add(Duration::from_secs(left)).unwrap_or(instant);
        used.insert(ticket.nonce, Kept { until: ticket.until, at_least });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_000);
    const UNTIL: UnixTime = UnixTime(1_030);

    fn signer(secrets: &[&str]) -> Signer {
        Signer::new(&secrets.iter().map(|secret| Secret::new(*secret)).collect::<Vec<_>>())
    }

    fn bound(route: &str) -> Bound<'_> {
        Bound { route, origin: None, address: None }
    }

    fn all<'b>(route: &'b str, origin: &'b str, address: &str) -> Bound<'b> {
        Bound { route, origin: Some(origin.as_bytes()), address: Some(address.parse().unwrap()) }
    }

    #[test]
    fn a_ticket_names_its_secret_and_its_holder() {
        let (signer, digest) = (signer(&["a"]), Digest::of(b"secret"));
        let text = signer.issue((&digest, "alice"), &bound("chat"), UNTIL).unwrap();
        let ticket = signer.check(text.as_bytes(), &all("chat", "o", "::1"), NOW).unwrap();
        assert!(ticket.secret == digest && ticket.is_of("alice") && !ticket.is_of("bob"));
        let raw = URL_SAFE_NO_PAD.decode(&text).unwrap();
        assert!(!raw.windows(8).any(|part| digest.as_bytes().windows(8).any(|other| other == part)), "hidden");
        let again = signer.issue((&digest, "alice"), &bound("chat"), UNTIL).unwrap();
        assert_ne!(text, again);
    }

    #[test]
    fn any_of_the_secrets_checks_and_the_first_one_signs() {
        let digest = Digest::of(b"secret");
        let issue = |signer: &Signer| signer.issue((&digest, "a"), &bound("r"), UNTIL).unwrap();
        let (old, both, new) = (signer(&["old"]), signer(&["new", "old"]), signer(&["new"]));
        let takes = |signer: &Signer, text: &str| signer.check(text.as_bytes(), &bound("r"), NOW).is_ok();
        assert!(takes(&both, &issue(&old)) && takes(&new, &issue(&both)));
        assert!(!takes(&new, &issue(&old)) && !takes(&old, &issue(&both)));
        assert!(takes(&signer(&[]), &issue(&signer(&[]))), "one of this process's own");
    }

    #[test]
    fn what_it_is_bound_to_has_to_be_there() {
        let (signer, digest) = (signer(&["a"]), Digest::of(b"secret"));
        let mine = all("chat", "https://a", "10.0.0.1");
        let text = signer.issue((&digest, "alice"), &mine, UNTIL).unwrap();
        let check = |bound: Bound<'_>, now| signer.check(text.as_bytes(), &bound, now).map(|_| ());
        assert_eq!(check(mine, NOW), Ok(()));
        assert_eq!(check(mine, UNTIL), Err(Unfit::Expired));
        for other in [
            all("feed", "https://a", "10.0.0.1"),
            all("chat", "https://b", "10.0.0.1"),
            all("chat", "", "10.0.0.1"),
            all("chat", "https://a", "10.0.0.2"),
        ] {
            assert_eq!(check(other, NOW), Err(Unfit::Foreign), "{other:?}");
        }
    }

    #[test]
    fn every_byte_counts() {
        let (signer, digest) = (signer(&["a"]), Digest::of(b"secret"));
        let text = signer.issue((&digest, "alice"), &bound("chat"), UNTIL).unwrap();
        let raw = URL_SAFE_NO_PAD.decode(&text).unwrap();
        let mut mine = bound("chat");
        (mine.origin, mine.address) = (Some(&b""[..]), Some("::1".parse().unwrap()));
        for at in 0..raw.len() {
            for bit in 0..8 {
                let mut bad = raw.clone();
                bad[at] ^= 1 << bit;
                assert!(signer.check(URL_SAFE_NO_PAD.encode(bad).as_bytes(), &mine, NOW).is_err(), "{at}.{bit}");
            }
        }
        for bad in ["", "AA", &text[1..], &format!("{text}A"), &format!("{text}AAAA"), &text.to_lowercase()] {
            assert!(signer.check(bad.as_bytes(), &mine, NOW).is_err(), "{bad}");
        }
    }

    fn ticket(until: UnixTime) -> Ticket {
        let signer = signer(&["a"]);
        let text = signer.issue((&Digest::of(b"secret"), "a"), &bound("r"), until).unwrap();
        signer.check(text.as_bytes(), &bound("r"), NOW).unwrap()
    }

    #[test]
    fn a_clock_that_is_set_ahead_and_back_gives_no_used_ticket_back() {
        let (burned, start) = (Burned::default(), Instant::now());
        let one = ticket(UNTIL);
        assert_eq!(burned.burn_at(&one, NOW, start), Ok(()));
        let ahead = UnixTime(UNTIL.0 + 3600);
        for _ in 0..20_000 {
            let _ = burned.burn_at(&ticket(UnixTime(ahead.0 + 1)), ahead, start + Duration::from_secs(1));
        }
        assert_eq!(burned.burn_at(&one, NOW, start + Duration::from_secs(2)), Err(Unfit::Used));
    }

    #[test]
    fn a_ticket_burns_once_and_is_forgotten_with_its_time() {
        let burned = Burned::default();
        let (start, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let one = ticket(UNTIL);
        assert_eq!(burned.burn_at(&one, NOW, start), Ok(()));
        assert_eq!(burned.burn_at(&one, NOW, start), Err(Unfit::Used));
        for _ in 0..20_000 {
            assert_eq!(burned.burn_at(&ticket(UnixTime(NOW.0 + 1)), UNTIL, later), Ok(()));
        }
        assert!(burned.0.lock().unwrap().len() < 5_000, "those that are over are forgotten");
    }
}
