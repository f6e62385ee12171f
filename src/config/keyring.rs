//! The keys of all files, added one by one: secrets become digests at once, and what belongs to whom is checked.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path as FilePath;
use std::sync::Arc;

use hashbrown::HashTable;
use zeroize::Zeroize as _;

use super::compile::{Doors, Env, unset};
use super::problem::{Faults, FileId, Path, Place, Step, Wrong};
use super::schema::{From, Key, KeySecret};
use super::source::Reader;
use super::value::UnixTime;
use crate::auth::api_key::{self, Keys, Taken};
use crate::secret::{Digest, Secret};

/// A secret is a line, not a book.
const MAX_SECRET_FILE: u64 = 64 << 10;

/// What keys are compiled with.
pub struct Outside<'o> {
    pub reader: &'o mut Reader,
    pub env: Env<'o>,
    /// The directory that relative paths start from.
    pub base: &'o FilePath,
    pub now: UnixTime,
}

/// Collects keys.
pub struct Keyring<'d> {
    keys: Keys,
    /// The keys by their ids, and where each stands.
    ids: HashTable<u32>,
    hasher: RandomState,
    places: Vec<At>,
    /// Ids of keys that something is wrong with.
    faulty: HashMap<Box<str>, At>,
    doors: &'d Doors,
    /// Which of the doors some key opens.
    opened: Vec<bool>,
    opens_all: bool,
}

/// A place in a list of keys, small enough to be kept for a million of them.
#[derive(Clone, Copy)]
struct At {
    file: FileId,
    list: bool,
    index: usize,
}

impl At {
    fn place(self) -> Place {
        let item = Step::Item(self.index);
        let steps = if self.list { vec![item] } else { vec![Step::Field("keys".into()), item] };
        Place { file: self.file, list: self.list, steps }
    }
}

impl<'d> Keyring<'d> {
    pub fn new(doors: &'d Doors) -> Self {
        let opened = vec![false; doors.all.len()];
        Self {
            keys: Keys::default(),
            ids: HashTable::new(),
            hasher: RandomState::new(),
            places: Vec::new(),
            faulty: HashMap::new(),
            doors,
            opened,
            opens_all: false,
        }
    }

    /// Makes room for so many keys more.
    pub fn reserve(&mut self, more: usize) {
        self.keys.reserve(more);
        self.places.reserve(more);
        self.ids.reserve(more, |number| self.hasher.hash_one(self.keys.id(*number as usize)));
    }

    fn place_of(&self, id: &str, hash: u64) -> Option<At> {
        let known = self.ids.find(hash, |number| self.keys.id(*number as usize) == id);
        known.map(|number| self.places[*number as usize]).or_else(|| self.faulty.get(id).copied())
    }

    /// Adds the key that stands at `path`, item `index` of its list.
    pub fn add(
        &mut self,
        key: Key,
        (path, index): (&Path<'_>, usize),
        outside: &mut Outside<'_>,
        faults: &mut Faults,
        warnings: &mut Faults,
    ) {
        let id = &*key.id;
        let (file, list) = path.origin();
        let at = At { file, list, index };
        let hash = self.hasher.hash_one(id);
        if let Some(other) = self.place_of(id, hash) {
            let wrong = Wrong::new(format!("two keys have the id \"{id}\""));
            let wrong = wrong.hint("give one key two entries in secrets to rotate it");
            faults.between(&path.field("id"), wrong, "the other one is at", other.place());
            return;
        }
        let routes = self.routes(&key, path, faults, warnings);
        let digests = digests(&key, path, outside, faults, warnings);
        if let Some(says) = key.expires_at.and_then(|end| of_end(end, outside.now)) {
            warnings.value(&path.field("expires_at"), Wrong::new(format!("the key \"{id}\" {says}")));
        }
        if key.secrets.iter().filter(|secret| secret.valid_until.is_none()).count() > 1 {
            let wrong = Wrong::new(format!("the key \"{id}\" has two secrets without an end"));
            let hint = "give the old one valid_until, or delete it once nobody uses it any more";
            warnings.value(&path.field("secrets"), wrong.hint(hint));
        }
        if digests.len() < key.secrets.len() {
            self.faulty.insert(key.id, at);
            return;
        }
        let compiled = api_key::Key {
            id: id.into(),
            routes,
            not_before: key.not_before,
            expires_at: key.expires_at,
            disabled: key.disabled,
            max_connections: key.max_connections,
            limits: key.limits.map(Arc::from),
            attributes: key.attributes.into(),
        };
        match self.keys.add(&compiled, &digests) {
            Ok(number) => {
                self.places.push(at);
                let hash_of = |number: &u32| self.hasher.hash_one(self.keys.id(*number as usize));
                self.ids.insert_unique(hash, number, hash_of);
            }
            Err(Taken { secret, owner }) => {
                at_secret(path, key.shorthand, &key.secrets[secret], |path| match self.places.get(owner as usize) {
                    None => {
                        let wrong = Wrong::new("this secret stands twice in this key");
                        faults.value(path, wrong.hint("keep one of them"));
                    }
                    Some(other) => {
                        let wrong =
                            Wrong::new(format!("the key \"{}\" has this secret too", self.keys.id(owner as usize)));
                        let wrong = wrong.hint("every key needs a secret of its own; wsbouncer key new makes one");
                        faults.between(path, wrong, "the other one is at", other.place());
                    }
                });
                self.faulty.insert(key.id, at);
            }
        }
    }

    fn routes(
        &mut self,
        key: &Key,
        path: &Path<'_>,
        faults: &mut Faults,
        warnings: &mut Faults,
    ) -> Option<Arc<[Arc<str>]>> {
        let Some(names) = &key.routes else {
            self.opens_all |= !key.disabled;
            return None;
        };
        let list = path.field("routes");
        let mut found = Vec::new();
        let mut opens = false;
        for (index, name) in names.iter().enumerate() {
            match self.doors.find(name) {
                Some((door, known)) => {
                    found.push(known.name.clone());
                    opens |= known.wants_key;
                    self.opened[door] |= !key.disabled;
                }
                None if self.doors.complete => faults.value(&list.item(index), self.no_route(name)),
                None => {}
            }
        }
        if !opens && self.doors.complete && found.len() == names.len() {
            let says = format!("the key \"{}\" opens no route: none of those it names wants a key", key.id);
            warnings.value(&list, Wrong::new(says));
        }
        Some(found.into())
    }

    /// Does not repeat the name: whatever stands near a secret may be one.
    fn no_route(&self, name: &str) -> Wrong {
        let wrong = Wrong::new("no route has this name");
        match self.doors.nearest(name) {
            Some(near) => wrong.hint(format!("did you mean \"{near}\"?")),
            None => {
                let known: Vec<&str> = self.doors.all.iter().take(10).map(|door| &*door.name).collect();
                wrong.hint(format!("routes are named: {}", known.join(", ")))
            }
        }
    }

    /// All keys, and warnings about routes that none of them opens.
    pub fn finish(self, warnings: &mut Faults) -> Keys {
        for (door, opened) in self.doors.all.iter().zip(&self.opened) {
            let name = &door.name;
            if !door.wants_key {
                let says = format!("the route \"{name}\" is open to everybody (auth: none)");
                warnings.place(door.place.clone(), Wrong::new(says));
            } else if !opened && !self.opens_all {
                let wrong = Wrong::new(format!("no key opens the route \"{name}\": nobody can get in"));
                let hint = "wsbouncer key new makes a key and the lines to paste";
                warnings.place(door.place.clone(), wrong.hint(hint));
            }
        }
        self.keys
    }
}

/// Calls back with the path of a secret, whether it is written in the short form or in the list.
fn at_secret(path: &Path<'_>, shorthand: bool, secret: &KeySecret, then: impl FnOnce(&Path<'_>)) {
    if shorthand {
        then(&path.field("secret"));
    } else {
        then(&path.field("secrets").item(secret.index));
    }
}

type Digests = Vec<(Digest, Option<UnixTime>)>;

fn digests(
    key: &Key,
    path: &Path<'_>,
    outside: &mut Outside<'_>,
    faults: &mut Faults,
    warnings: &mut Faults,
) -> Digests {
    let mut all = Vec::new();
    let list = path.field("secrets");
    for secret in &key.secrets {
        let item = list.item(secret.index);
        let digest = match &secret.from {
            From::Sha256(digest) => Ok(*digest),
            From::Plain(plain) => {
                let wrong = Wrong::new(format!("the key \"{}\" has its secret in plain text", key.id));
                let wrong = wrong.hint("write its sha256 instead; wsbouncer key hash makes it");
                let place = if key.shorthand { path.field("secret") } else { item.field("plain") };
                warnings.value(&place, wrong);
                warn_of_weak(Some(plain), key, &place, warnings);
                Ok(plain.digest())
            }
            From::Env(name) => {
                let secret = from_env(name, outside);
                warn_of_weak(secret.as_ref().ok(), key, &item.field("env"), warnings);
                secret.map(|secret| secret.digest()).map_err(|wrong| (item.field("env").place(), wrong))
            }
            From::File(name) => {
                let secret = from_file(name, outside);
                warn_of_weak(secret.as_ref().ok(), key, &item.field("file"), warnings);
                secret.map(|secret| secret.digest()).map_err(|wrong| (item.field("file").place(), wrong))
            }
        };
        match digest {
            Ok(digest) => all.push((digest, secret.valid_until)),
            Err((place, wrong)) => faults.place(place, wrong),
        }
        if let Some(says) = secret.valid_until.and_then(|end| of_end(end, outside.now)) {
            let wrong = Wrong::new(format!("this secret of the key \"{}\" {says}", key.id));
            warnings.value(&item.field("valid_until"), wrong.hint("remove it when nobody uses it any more"));
        }
    }
    all
}

/// What is said of a date that has passed, or soon will have.
fn of_end(end: UnixTime, now: UnixTime) -> Option<String> {
    const DAY: i64 = 86_400;
    match end.0.saturating_sub(now.0) {
        left if left <= 0 => Some("has expired".into()),
        left if left < DAY => Some("expires within a day".into()),
        left if left < 14 * DAY => Some(format!("expires in {} days", left / DAY)),
        _ => None,
    }
}

/// Fewer characters than this, or so few different ones, can be found by trying.
const MIN_SECRET: usize = 16;
const MIN_DIFFERENT: usize = 6;

fn warn_of_weak(secret: Option<&Secret>, key: &Key, path: &Path<'_>, warnings: &mut Faults) {
    let Some(secret) = secret else { return };
    let mut letters = secret.as_bytes().to_vec();
    letters.sort_unstable();
    letters.dedup();
    let is_weak = secret.as_bytes().len() < MIN_SECRET || letters.len() < MIN_DIFFERENT;
    letters.zeroize();
    if is_weak {
        let wrong = Wrong::new(format!("this secret of the key \"{}\" is short enough to be guessed", key.id));
        warnings.value(path, wrong.hint("wsbouncer key new makes a good one"));
    }
}

pub fn from_env(name: &str, outside: &mut Outside<'_>) -> Result<Secret, Wrong> {
    let value = (outside.env)(name).filter(|value| !value.is_empty()).ok_or_else(|| unset(name))?;
    let bytes = zeroize::Zeroizing::new(value.into_encoded_bytes());
    outside.reader.note(&bytes);
    Ok(Secret::new(bytes.as_slice()))
}

pub fn from_file(name: &str, outside: &mut Outside<'_>) -> Result<Secret, Wrong> {
    let path = outside.base.join(name);
    let bytes = outside.reader.read(&path, MAX_SECRET_FILE).map_err(|wrong| {
        let base = if outside.base.as_os_str().is_empty() { FilePath::new(".") } else { outside.base };
        let hint = format!("relative paths start at the directory of the main file, {}", base.display());
        let relative = FilePath::new(name).is_relative();
        if relative && !path.exists() { wrong.hint(hint) } else { wrong }
    })?;
    // Editors and echo end a file with a line break that nobody means.
    let secret = bytes.strip_suffix(b"\n").map_or(&bytes[..], |line| line.strip_suffix(b"\r").unwrap_or(line));
    if secret.is_empty() {
        return Err(Wrong::new("this file is empty: an empty secret would open the door to everybody"));
    }
    Ok(Secret::new(secret))
}
