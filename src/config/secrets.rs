//! Secrets that are no keys of clients: what tickets are signed with, and the token of the admin address.

use super::keyring::{Outside, from_env, from_file};
use super::problem::{Faults, Path, Wrong};
use super::schema::{From, KeySecret, Tickets};
use crate::auth::ticket::Signer;
use crate::secret::{Digest, Secret};

/// A key that signs for hours is worth more guesses than one of a client.
const MIN_TICKET_SECRET: usize = 32;

/// Who signs tickets. `issues`: whether some route does so.
pub fn signer(
    tickets: &Tickets,
    issues: bool,
    root: &Path<'_>,
    outside: &mut Outside<'_>,
    faults: &mut Faults,
    warnings: &mut Faults,
) -> Signer {
    let field = root.field("tickets");
    let list = field.field("secrets");
    let mut secrets = Vec::new();
    for secret in &tickets.secrets {
        let item = list.item(secret.index);
        let read = match &secret.from {
            From::Plain(plain) => {
                let wrong = Wrong::new("a secret that signs tickets stands here in plain text");
                warnings.value(&item.field("plain"), wrong.hint("write { env: NAME } or { file: PATH } instead"));
                Ok(Secret::new(plain.as_bytes()))
            }
            From::Env(name) => from_env(name, outside).map_err(|wrong| (item.field("env").place(), wrong)),
            From::File(name) => from_file(name, outside).map_err(|wrong| (item.field("file").place(), wrong)),
            // The schema has no such form here.
            From::Sha256(_) => continue,
        };
        match read {
            Ok(secret) if secret.as_bytes().len() < MIN_TICKET_SECRET => {
                let wrong = Wrong::new("a secret that signs tickets has at least 32 bytes");
                faults.value(&item, wrong.hint("openssl rand -base64 32 makes one"));
            }
            Ok(secret) => secrets.push(secret),
            Err((place, wrong)) => faults.place(place, wrong),
        }
    }
    if issues {
        let wrong = if tickets.secrets.is_empty() {
            Wrong::new("tickets are signed with a random secret of this process: no other replica takes them, and none does after a restart")
                .hint("with more than one, give all the same: tickets: { secrets: [{ env: NAME }] }")
        } else {
            Wrong::new("a ticket can be used once on each replica: they do not tell each other which were used")
                .hint("keep ttl short; with one process there is nothing to do")
        };
        warnings.value(if tickets.secrets.is_empty() { root } else { &list }, wrong);
    }
    Signer::new(&secrets)
}

/// Fewer could be guessed.
const MIN_TOKEN: usize = 16;

/// What operators have to show.
pub fn admin_token(
    token: Option<&KeySecret>,
    root: &Path<'_>,
    outside: &mut Outside<'_>,
    faults: &mut Faults,
    warnings: &mut Faults,
) -> Option<Digest> {
    let admin = root.field("admin");
    let item = admin.field("token");
    let read = match &token?.from {
        From::Sha256(digest) => return Some(*digest),
        From::Plain(plain) => {
            let wrong = Wrong::new("the token of the admin listener stands here in plain text");
            warnings.value(
                &item.field("plain"),
                wrong.hint("write { env: NAME }, { file: PATH } or { sha256: ... } instead"),
            );
            Ok(Secret::new(plain.as_bytes()))
        }
        From::Env(name) => from_env(name, outside).map_err(|wrong| (item.field("env").place(), wrong)),
        From::File(name) => from_file(name, outside).map_err(|wrong| (item.field("file").place(), wrong)),
    };
    match read {
        Ok(secret) if secret.as_bytes().len() < MIN_TOKEN => {
            let wrong = Wrong::new("a token of the admin listener has at least 16 bytes");
            faults.value(&item, wrong.hint("wsbouncer key new --id admin makes a good one"));
            None
        }
        Ok(secret) => Some(secret.digest()),
        Err((place, wrong)) => {
            faults.place(place, wrong);
            None
        }
    }
}
