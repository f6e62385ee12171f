//! Named API keys: who a secret belongs to, and until when.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;

use crate::clock::UnixTime;
use crate::secret::Digest;
use crate::traffic::Traffic;

/// One key of the file. Its secrets are kept apart, in [`Keys`], because they are what is looked up.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: Arc<str>,
    /// Names of the routes that it opens; `None` means every route.
    pub routes: Option<Arc<[Arc<str>]>>,
    pub not_before: Option<UnixTime>,
    pub expires_at: Option<UnixTime>,
    pub disabled: bool,
    pub max_connections: Option<u32>,
    /// Of each tunnel that it opens.
    pub limits: Option<Arc<Traffic>>,
    pub attributes: Box<[(Box<str>, Box<str>)]>,
}

impl Key {
    pub fn opens(&self, route: &str) -> bool {
        opens(self.routes.as_deref(), route)
    }
}

fn opens(routes: Option<&[Arc<str>]>, route: &str) -> bool {
    routes.is_none_or(|routes| routes.iter().any(|name| **name == *route))
}

/// A secret that was found: its key, and the earliest moment at which it stops to work.
#[derive(Clone, Copy)]
pub struct Found<'k> {
    keys: &'k Keys,
    entry: &'k Entry,
    pub valid_until: Option<UnixTime>,
}

impl<'k> Found<'k> {
    pub fn id(&self) -> &'k str {
        self.keys.id_of(self.entry)
    }

    pub fn opens(&self, route: &str) -> bool {
        opens(self.keys.rest_of(self.entry).routes.map(|number| &*self.keys.scopes[number as usize]), route)
    }

    /// The key as a value of its own, which outlives these rules. All who ask share one.
    pub fn key(&self) -> &'k Arc<Key> {
        self.entry.made.get_or_init(|| Arc::new(self.keys.make(self.entry)))
    }
}

/// Why a secret that is presented does not open anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    Unknown,
    Disabled,
    NotYetValid,
    Expired,
}

/// A secret that another key has already.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// Which of the secrets that were to be added.
    pub secret: usize,
    /// The number of the key that has it; of the new one where it stands in that twice.
    pub owner: u32,
}

/// All secrets of the rules, by digest. Look-up takes the same steps for a secret that exists and one that does not.
///
/// A million keys are a few large pieces of memory and not millions of small ones: they are quick to make, small, and gone
/// in a moment when new rules replace them. A [`Key`] of its own has only who was used.
pub struct Keys {
    secrets: Vec<Secret>,
    /// Dates of their own that secrets have.
    dates: Vec<UnixTime>,
    by_digest: HashTable<u32>,
    seed: Seed,
    entries: Vec<Entry>,
    /// Ids and attributes, one after the other.
    texts: String,
    rests: Vec<Rest>,
    /// How long the names and values of attributes are.
    lengths: Vec<(u32, u32)>,
    /// Lists of routes, each once.
    scopes: Vec<Arc<[Arc<str>]>>,
    scope_numbers: HashMap<Arc<[Arc<str>]>, u32>,
    /// Limits of tunnels, each once.
    limits: Vec<Arc<Traffic>>,
    limit_numbers: HashMap<Arc<Traffic>, u32>,
}

struct Secret {
    digest: Digest,
    key: u32,
    /// In `dates`; most secrets have none.
    date: u32,
}

struct Entry {
    /// Where its texts begin, first of them the id.
    text: usize,
    id: u32,
    /// In `rests`.
    rest: u32,
    made: OnceLock<Arc<Key>>,
}

/// What most keys have in common with each other: that they have nothing of it, or the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rest {
    not_before: Option<UnixTime>,
    expires_at: Option<UnixTime>,
    routes: Option<u32>,
    max_connections: Option<u32>,
    disabled: bool,
    /// In `limits`, or none.
    limits: u32,
    /// In `lengths`: the first, and how many.
    attributes: (u32, u32),
}

const NOTHING: Rest = Rest {
    not_before: None,
    expires_at: None,
    routes: None,
    max_connections: None,
    disabled: false,
    limits: NONE,
    attributes: (0, 0),
};

impl Default for Keys {
    fn default() -> Self {
        Self {
            secrets: Vec::new(),
            dates: Vec::new(),
            by_digest: HashTable::new(),
            seed: Seed::new(),
            entries: Vec::new(),
            texts: String::new(),
            rests: vec![NOTHING],
            lengths: Vec::new(),
            scopes: Vec::new(),
            scope_numbers: HashMap::new(),
            limits: Vec::new(),
            limit_numbers: HashMap::new(),
        }
    }
}

/// In place of a number: there is none.
const NONE: u32 = u32::MAX;

/// Numbers are half as large as addresses. What is counted here takes so many bytes that it never comes near their end.
fn number(count: usize) -> u32 {
    u32::try_from(count).ok().filter(|number| *number != NONE).expect("four billion of these do not fit in memory")
}

impl Keys {
    /// Makes room for so many keys more, of which each will probably have one secret.
    pub fn reserve(&mut self, more: usize) {
        self.entries.reserve(more);
        self.secrets.reserve(more);
        let (secrets, seed) = (&self.secrets, &self.seed);
        self.by_digest.reserve(more, |at| seed.hash(&secrets[*at as usize].digest));
    }

    /// Adds a key under each of its secrets (digest, `valid_until`), and says its number, from 0.
    ///
    /// # Errors
    /// The first secret that is taken already. The key is not added then.
    pub fn add(&mut self, key: &Key, secrets: &[(Digest, Option<UnixTime>)]) -> Result<u32, Taken> {
        let (owner, before) = (number(self.entries.len()), self.secrets.len());
        for (index, (digest, valid_until)) in secrets.iter().enumerate() {
            if let Some(taken) = self.secret(digest) {
                let taken = Taken { secret: index, owner: taken.key };
                self.take_back(before);
                return Err(taken);
            }
            let date = valid_until.map_or(NONE, |date| {
                self.dates.push(date);
                number(self.dates.len() - 1)
            });
            self.secrets.push(Secret { digest: *digest, key: owner, date });
            let (secrets, seed) = (&self.secrets, &self.seed);
            let hash_of = |at: &u32| seed.hash(&secrets[*at as usize].digest);
            self.by_digest.insert_unique(seed.hash(digest), number(before + index), hash_of);
        }
        let text = self.texts.len();
        self.texts.push_str(&key.id);
        let rest = self.rest(key);
        self.entries.push(Entry { text, id: number(key.id.len()), rest, made: OnceLock::new() });
        Ok(owner)
    }

    /// Forgets the secrets from this one on.
    fn take_back(&mut self, from: usize) {
        for at in from..self.secrets.len() {
            let hash = self.seed.hash(&self.secrets[at].digest);
            if let Ok(found) = self.by_digest.find_entry(hash, |other| *other as usize == at) {
                found.remove();
            }
        }
        self.secrets.truncate(from);
    }

    /// Keeps what a key has besides its id and secrets.
    fn rest(&mut self, key: &Key) -> u32 {
        let first = number(self.lengths.len());
        for (name, value) in &key.attributes {
            self.texts.push_str(name);
            self.texts.push_str(value);
            self.lengths.push((number(name.len()), number(value.len())));
        }
        let rest = Rest {
            not_before: key.not_before,
            expires_at: key.expires_at,
            routes: key.routes.as_ref().map(|routes| self.scope(routes)),
            max_connections: key.max_connections,
            disabled: key.disabled,
            limits: key.limits.as_ref().map_or(NONE, |limits| self.limits(limits)),
            attributes: if key.attributes.is_empty() { (0, 0) } else { (first, number(key.attributes.len())) },
        };
        if rest == NOTHING {
            return 0;
        }
        if self.rests.last() != Some(&rest) {
            self.rests.push(rest);
        }
        number(self.rests.len() - 1)
    }

    fn scope(&mut self, routes: &Arc<[Arc<str>]>) -> u32 {
        if let Some(known) = self.scope_numbers.get(routes) {
            return *known;
        }
        let new = number(self.scopes.len());
        self.scopes.push(routes.clone());
        self.scope_numbers.insert(routes.clone(), new);
        new
    }

    fn limits(&mut self, limits: &Arc<Traffic>) -> u32 {
        if let Some(known) = self.limit_numbers.get(limits) {
            return *known;
        }
        let new = number(self.limits.len());
        self.limits.push(limits.clone());
        self.limit_numbers.insert(limits.clone(), new);
        new
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The id of the key of a number.
    pub fn id(&self, number: usize) -> &str {
        self.entries.get(number).map_or("", |entry| self.id_of(entry))
    }

    /// The ids of all keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| self.id_of(entry))
    }

    /// The key of a secret, if it is good now.
    ///
    /// # Errors
    /// Why not, for the operator; the key too, where the secret belongs to one.
    pub fn find(&self, digest: &Digest, now: UnixTime) -> Result<Found<'_>, (Rejected, Option<Found<'_>>)> {
        let Some(secret) = self.secret(digest) else {
            return Err((Rejected::Unknown, None));
        };
        let entry = &self.entries[secret.key as usize];
        let rest = self.rest_of(entry);
        let own = self.dates.get(secret.date as usize).copied();
        let found = Found { keys: self, entry, valid_until: earliest(own, rest.expires_at) };
        let why = if rest.disabled {
            Rejected::Disabled
        } else if rest.not_before.is_some_and(|start| now < start) {
            Rejected::NotYetValid
        } else if found.valid_until.is_some_and(|end| now >= end) {
            Rejected::Expired
        } else {
            return Ok(found);
        };
        Err((why, Some(found)))
    }

    fn secret(&self, digest: &Digest) -> Option<&Secret> {
        let is_it = |at: &u32| self.secrets[*at as usize].digest == *digest;
        self.by_digest.find(self.seed.hash(digest), is_it).map(|at| &self.secrets[*at as usize])
    }

    fn id_of(&self, entry: &Entry) -> &str {
        &self.texts[entry.text..][..entry.id as usize]
    }

    fn rest_of(&self, entry: &Entry) -> &Rest {
        &self.rests[entry.rest as usize]
    }

    fn make(&self, entry: &Entry) -> Key {
        let rest = self.rest_of(entry);
        let (first, count) = (rest.attributes.0 as usize, rest.attributes.1 as usize);
        let mut at = entry.text + entry.id as usize;
        let mut text = |length: u32| {
            at += length as usize;
            Box::from(&self.texts[at - length as usize..at])
        };
        let lengths = &self.lengths[first..][..count];
        Key {
            id: self.id_of(entry).into(),
            routes: rest.routes.map(|number| self.scopes[number as usize].clone()),
            not_before: rest.not_before,
            expires_at: rest.expires_at,
            disabled: rest.disabled,
            max_connections: rest.max_connections,
            limits: self.limits.get(rest.limits as usize).cloned(),
            attributes: lengths.iter().map(|(name, value)| (text(*name), text(*value))).collect(),
        }
    }
}

fn earliest(a: Option<UnixTime>, b: Option<UnixTime>) -> Option<UnixTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}

/// Makes numbers of digests that nobody outside of this process can foresee: whoever may choose a digest (an operator takes
/// hashes from users) cannot make them collide. A digest is uniform already, so that two products of sums are enough (the
/// NH of UMAC, RFC 4418).
struct Seed([u64; 4]);

impl Seed {
    fn new() -> Self {
        let random = RandomState::new();
        Self([0_u8, 1, 2, 3].map(|part| random.hash_one(part)))
    }

    fn hash(&self, digest: &Digest) -> u64 {
        let (words, _) = digest.as_bytes().as_chunks::<8>();
        let part = |at: usize| u128::from(u64::from_le_bytes(words[at]).wrapping_add(self.0[at]));
        let sum = (part(0) * part(1)).wrapping_add(part(2) * part(3));
        #[expect(clippy::cast_possible_truncation, reason = "its halves are put together")]
        let folded = (sum >> 64) as u64 ^ sum as u64;
        folded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Flow;

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

    fn at_most(bytes: u64) -> Option<Arc<Traffic>> {
        let flow = Flow { max_message: Some(bytes), ..Flow::default() };
        Some(Arc::new(Traffic { up: flow, down: flow }))
    }

    #[test]
    fn dates_bound_a_secret_on_both_sides() {
        let mut keys = Keys::default();
        let dated = Key { not_before: Some(UnixTime(100)), expires_at: Some(UnixTime(300)), ..key("a") };
        let (long, short) = (Digest::of(b"long"), Digest::of(b"short"));
        keys.add(&dated, &[(long, None), (short, Some(UnixTime(200)))]).unwrap();
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
        keys.add(&key("first"), &[(Digest::of(b"s"), None)]).unwrap();
        let clash = keys.add(&key("second"), &[(Digest::of(b"fresh"), None), (Digest::of(b"s"), None)]);
        assert_eq!(clash, Err(Taken { secret: 1, owner: 0 }));
        assert!(keys.find(&Digest::of(b"fresh"), UnixTime(0)).is_err());
        assert_eq!(keys.len(), 1);
        let twice = keys.add(&key("third"), &[(Digest::of(b"t"), None), (Digest::of(b"t"), None)]);
        assert_eq!(twice, Err(Taken { secret: 1, owner: 1 }));
        assert_eq!(keys.add(&key("fourth"), &[(Digest::of(b"fresh"), None)]), Ok(1));
    }

    /// Keys are kept in pieces, and come back whole.
    #[test]
    fn what_is_found_is_what_was_added() {
        let mut keys = Keys::default();
        let scope = |names: &[&str]| Some(names.iter().map(|name| Arc::from(*name)).collect());
        let attributes = |all: &[(&str, &str)]| all.iter().map(|(a, b)| (Box::from(*a), Box::from(*b))).collect();
        let all = [
            key("plain"),
            Key { routes: scope(&["a", "b"]), ..key("scoped") },
            Key { routes: scope(&[]), ..key("nowhere") },
            Key { attributes: attributes(&[("tenant", "acme"), ("plan", ""), ("x", "y z")]), ..key("described") },
            Key { routes: scope(&["a", "b"]), max_connections: Some(7), ..key("limited") },
            Key { expires_at: Some(UnixTime(9)), attributes: attributes(&[("a", "b")]), ..key("dated") },
            key("another"),
            Key { limits: at_most(1), ..key("narrow") },
            Key { limits: at_most(2), ..key("wider") },
            Key { limits: at_most(1), ..key("narrow too") },
            Key { disabled: true, not_before: Some(UnixTime(1)), ..key("off") },
        ];
        let digest = |key: &Key| Digest::of(key.id.as_bytes());
        for key in &all {
            keys.add(key, &[(digest(key), None)]).unwrap();
        }
        for wanted in &all {
            let (Ok(found) | Err((_, Some(found)))) = keys.find(&digest(wanted), UnixTime(5)) else {
                panic!("{} is not found", wanted.id)
            };
            assert_eq!(format!("{:?}", found.key()), format!("{wanted:?}"));
            assert_eq!((found.id(), found.opens("a")), (&*wanted.id, wanted.opens("a")));
            assert!(Arc::ptr_eq(found.key(), found.key()), "one for all who ask");
        }
        assert_eq!(keys.ids().collect::<Vec<_>>(), all.iter().map(|key| &*key.id).collect::<Vec<_>>());
        assert_eq!((keys.scopes.len(), keys.limits.len()), (2, 2));
        assert_eq!(size_of::<Rest>(), 64, "there may be a million of them");
    }
}
