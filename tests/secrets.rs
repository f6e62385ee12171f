//! Nothing about a secret depends on where it differs from another one. What can be seen in the sources and by the compiler
//! is held here; what a clock sees is measured by `tests/timing/run`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::{Debug, Display};
use std::fs;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use wsbouncer::auth::credential::Credential;
use wsbouncer::auth::ticket::Signer;
use wsbouncer::secret::{Digest, Secret};

/// Asks the compiler whether a type can do something: the method of the type itself is taken before that of [`Cannot`].
struct Type<T>(PhantomData<T>);

trait Cannot {
    fn compares(&self) -> bool {
        false
    }
    fn orders(&self) -> bool {
        false
    }
    fn hashes(&self) -> bool {
        false
    }
    fn displays(&self) -> bool {
        false
    }
    fn clones(&self) -> bool {
        false
    }
}

impl<T> Cannot for Type<T> {}

impl<T: PartialEq> Type<T> {
    fn compares(&self) -> bool {
        true
    }
}

impl<T: PartialOrd> Type<T> {
    fn orders(&self) -> bool {
        true
    }
}

impl<T: std::hash::Hash> Type<T> {
    fn hashes(&self) -> bool {
        true
    }
}

impl<T: Display> Type<T> {
    fn displays(&self) -> bool {
        true
    }
}

impl<T: Clone> Type<T> {
    fn clones(&self) -> bool {
        true
    }
}

#[test]
fn secrets_cannot_be_compared_ordered_hashed_shown_or_copied() {
    let secret = Type::<Secret>(PhantomData);
    assert!(!secret.compares() && !secret.orders() && !secret.hashes() && !secret.displays() && !secret.clones());
    let credential = Type::<Credential>(PhantomData);
    assert!(!credential.compares() && !credential.orders() && !credential.hashes());
    assert!(!credential.displays() && !credential.clones());
    let signer = Type::<Signer>(PhantomData);
    assert!(!signer.compares() && !signer.orders() && !signer.hashes() && !signer.displays());
    // The digest is what is compared. A hash table of the standard library would take its first bytes for a number.
    let digest = Type::<Digest>(PhantomData);
    assert!(digest.compares() && !digest.orders() && !digest.hashes() && !digest.displays());
    // The question can be answered with yes.
    let text = Type::<String>(PhantomData);
    assert!(text.compares() && text.orders() && text.hashes() && text.displays() && text.clones());
}

fn prints<T: Debug>(it: &T, what: &str) {
    let shown = format!("{it:?}");
    assert!(!shown.contains(what) && !shown.contains("[99") && shown.len() < 200, "{shown}");
}

#[test]
fn what_is_printed_of_a_secret_is_not_the_secret() {
    use wsbouncer::auth::credential::Carrier;
    prints(&Secret::new("canary"), "canary");
    prints(&Digest::of(b"canary"), &Digest::of(b"canary").to_hex());
    prints(&Credential::new(Secret::new("canary"), Carrier::Request), "canary");
}

/// Files of `src` with their code, without comments and the tests at their feet.
fn sources() -> Vec<(String, String)> {
    fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else {
                files.push(path);
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    let code = |text: String| {
        let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    };
    let named = |path: PathBuf| {
        let name = path.strip_prefix(&src).unwrap().display().to_string();
        (name, code(fs::read_to_string(path).unwrap()))
    };
    let sources: Vec<_> = files.into_iter().map(named).collect();
    assert!(sources.len() > 50, "only {} files seen", sources.len());
    sources
}

#[track_caller]
fn source(name: &str) -> String {
    sources().into_iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("no {name}")).1
}

/// One place compares, with `subtle`; everybody else compares digests with `==`, which is that place.
#[test]
fn digests_are_compared_in_constant_time() {
    let secret = source("secret.rs");
    let equality = secret.split_once("impl PartialEq for Digest {").expect("its own equality").1;
    let equality = equality.split_once("\n}").unwrap().0;
    // Every word of both, whatever the ones before it were.
    let all_words = "both.fold(Choice::from(1), |same, (a, b)| same & ";
    assert!(equality.contains(all_words) && equality.contains(".ct_eq(&"), "{equality}");
    for shortcut in ["==", "!=", "&&", "||", "if ", "return", ".all(", ".any("] {
        assert!(!equality.contains(shortcut), "{shortcut}: {equality}");
    }
    assert_eq!(secret.matches("PartialEq").count(), 1, "and no derived one");
}

/// Who takes the bytes of a secret or of a digest out, how often, and what for.
const TAKE_BYTES: [(&str, usize, &str); 4] = [
    ("auth/ticket.rs", 2, "makes the key of a signature of one, and hides one in a ticket"),
    ("auth/api_key.rs", 1, "makes a seeded number of a digest, for the table"),
    ("config/keyring.rs", 2, "warns of a secret of the file that is weak"),
    ("config/secrets.rs", 2, "refuses a secret of the file that is short"),
];

#[test]
fn no_bytes_of_secrets_are_compared() {
    let taken = |code: &str| {
        ["secret.as_bytes()", "secret().as_bytes()", "digest.as_bytes()", "digest().as_bytes()"]
            .iter()
            .map(|call| code.matches(call).count())
            .sum::<usize>()
    };
    for (name, code) in sources() {
        let allowed = TAKE_BYTES.iter().find(|(file, ..)| *file == name).map_or(0, |(_, count, _)| *count);
        let count = taken(&code) - code.matches("check(credential.secret().as_bytes()").count();
        assert_eq!(count, allowed, "{name} takes bytes out of secrets so often: say in the table why");
        for line in code.lines().filter(|line| taken(line) > 0) {
            assert!(!line.contains("==") && !line.contains("!=") && !line.contains("starts_with"), "{name}: {line}");
        }
        for early in ["to_hex() ==", "to_hex() !=", "short() ==", "short() !="] {
            assert!(!code.contains(early), "{name} compares a digest as text");
        }
    }
}

/// The look-up knows digests only, and the table it looks in is seeded anew by every process.
#[test]
fn a_key_is_looked_up_by_the_digest_of_its_secret() {
    let keys = source("auth/api_key.rs");
    assert!(keys.contains("pub fn find(&self, digest: &Digest"));
    assert!(keys.contains("by_digest: HashTable<u32>") && keys.contains("RandomState::new()"));
    assert!(!keys.contains("HashMap<Digest") && !keys.contains("HashMap<Secret"));
    assert!(keys.contains("use crate::secret::Digest;"), "and no secret");
    let verify = source("auth/mod.rs");
    assert_eq!(verify.matches("credential.digest()").count(), 1, "every key is hashed once, known or not");
    // A signature is checked by what checks it in constant time.
    assert!(source("auth/ticket.rs").contains(".verify_slice(signature)"));
    // The operator's token as well.
    assert!(source("admin/guard.rs").contains("Secret::new(token).digest() == *wanted"));
}
