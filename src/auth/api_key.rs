//! Named API keys: who a secret belongs to, and until when.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::clock::UnixTime;
use crate::secret::Digest;

/// One key of the file. Its secrets are kept apart, in [`Keys`], because they are what is looked up.
#[derive(Debug)]
pub struct Key {
    pub id: Arc<str>,
    /// Names of the routes that it opens; `None` means every route.
    pub routes: Option<Box<[Arc<str>]>>,
    pub not_before: Option<UnixTime>,
    pub expires_at: Option<UnixTime>,
    pub disabled: bool,
    pub max_connections: Option<u32>,
    pub attributes: Box<[(Box<str>, Box<str>)]>,
}

impl Key {
    pub fn opens(&self, route: &str) -> bool {
        self.routes.as_ref().is_none_or(|routes| routes.iter().any(|name| **name == *route))
    }
}

/// A secret that was found: its key, and the earliest moment at which it stops to work.
#[derive(Debug, Clone)]
pub struct Found {
    pub key: Arc<Key>,
    pub valid_until: Option<UnixTime>,
}

/// Why a secret that is presented does not open anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    Unknown,
    Disabled,
    NotYetValid,
    Expired,
}

/// All secrets of the rules, by digest. Look-up takes the same steps for a secret that exists and one that does not.
#[derive(Default)]
pub struct Keys {
    by_digest: HashMap<Digest, Found, BuildHasherDefault<FirstBytes>>,
    count: usize,
}

impl Keys {
    /// Adds a key under each of its secrets (digest, `valid_until`).
    ///
    /// # Errors
    /// The index of the first secret that is taken already, and the key that has it. The key is not added then.
    pub fn add(&mut self, key: Key, secrets: &[(Digest, Option<UnixTime>)]) -> Result<(), (usize, Arc<Key>)> {
        let key = Arc::new(key);
        for (index, (digest, valid_until)) in secrets.iter().enumerate() {
            match self.by_digest.entry(*digest) {
                Entry::Occupied(taken) => {
                    let other = taken.get().key.clone();
                    for (digest, _) in &secrets[..index] {
                        self.by_digest.remove(digest);
                    }
                    return Err((index, other));
                }
                Entry::Vacant(free) => {
                    let valid_until = earliest(*valid_until, key.expires_at);
                    free.insert(Found { key: key.clone(), valid_until });
                }
            }
        }
        self.count += 1;
        Ok(())
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Every key, once for each of its secrets.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.by_digest.values().map(|found| &found.key)
    }

    /// The key of a secret, if it is good now.
    ///
    /// # Errors
    /// Why not, for the operator; the key too, where the secret belongs to one.
    pub fn find(&self, digest: &Digest, now: UnixTime) -> Result<&Found, (Rejected, Option<&Arc<Key>>)> {
        let Some(found) = self.by_digest.get(digest) else {
            return Err((Rejected::Unknown, None));
        };
        let why = if found.key.disabled {
            Rejected::Disabled
        } else if found.key.not_before.is_some_and(|start| now < start) {
            Rejected::NotYetValid
        } else if found.valid_until.is_some_and(|end| now >= end) {
            Rejected::Expired
        } else {
            return Ok(found);
        };
        Err((why, Some(&found.key)))
    }
}

fn earliest(a: Option<UnixTime>, b: Option<UnixTime>) -> Option<UnixTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}

/// Takes the eight bytes that [`Digest`] offers as they are.
#[derive(Default)]
pub struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key {
            id: id.into(),
            routes: None,
            not_before: None,
            expires_at: None,
            disabled: false,
            max_connections: None,
            attributes: Box::default(),
        }
    }

    #[test]
    fn dates_bound_a_secret_on_both_sides() {
        let mut keys = Keys::default();
        let dated = Key { not_before: Some(UnixTime(100)), expires_at: Some(UnixTime(300)), ..key("a") };
        let (long, short) = (Digest::of(b"long"), Digest::of(b"short"));
        keys.add(dated, &[(long, None), (short, Some(UnixTime(200)))]).unwrap();
        let why = |digest, now| keys.find(digest, UnixTime(now)).map(|_| ()).map_err(|(why, _)| why);
        assert_eq!(why(&long, 99), Err(Rejected::NotYetValid));
        assert_eq!(why(&long, 100), Ok(()));
        assert_eq!(why(&short, 199), Ok(()));
        assert_eq!(why(&short, 200), Err(Rejected::Expired));
        assert_eq!(why(&long, 299), Ok(()));
        assert_eq!(why(&long, 300), Err(Rejected::Expired));
        assert_eq!(why(&Digest::of(b"other"), 150), Err(Rejected::Unknown));
    }

    #[test]
    fn a_shared_secret_names_its_owner_and_adds_nothing() {
        let mut keys = Keys::default();
        keys.add(key("first"), &[(Digest::of(b"s"), None)]).unwrap();
        let clash = keys.add(key("second"), &[(Digest::of(b"fresh"), None), (Digest::of(b"s"), None)]);
        let (index, owner) = clash.unwrap_err();
        assert_eq!((index, &*owner.id), (1, "first"));
        assert!(keys.find(&Digest::of(b"fresh"), UnixTime(0)).is_err());
        assert_eq!(keys.len(), 1);
    }
}
