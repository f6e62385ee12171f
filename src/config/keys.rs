//! One key: from the tree to [`schema::Key`]. Nothing here repeats a value: any of them may be a secret that slipped.

use super::fields::{Fields, mismatch, parsed};
use super::problem::{Faults, HIDDEN, Path, Wrong, holds_key};
use super::schema::{self, From, Key, KeySecret};
use super::traffic;
use super::value::{self, Digest, Secret, Traffic};
use super::yaml::Node;

/// Decodes one item of `keys`. `None` when something in it is wrong, which has been said.
pub fn key(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Option<Key> {
    let before = faults.len();
    let fields = Fields::open(node, &schema::KEY, path, faults)?;
    let id = fields.required("id", "every key has an id: logs, metrics and the upstream see it", faults);
    let id = id.and_then(|node| parsed(node, &path.field("id"), value::name, faults));
    let shorthand = fields.has("secret");
    let secrets = if shorthand { only_secret(&fields, faults) } else { secrets(&fields, faults) };
    let key = Key {
        id: id.unwrap_or_default(),
        secrets,
        shorthand,
        routes: fields.texts("routes", faults, |text| Ok(text.into())),
        not_before: fields.parsed("not_before", value::date, faults),
        expires_at: fields.parsed("expires_at", value::date, faults),
        disabled: fields.flag("disabled", faults),
        max_connections: fields.count("max_connections", faults),
        limits: limits(&fields, faults),
        attributes: attributes(&fields, faults),
    };
    if let (Some(start), Some(end)) = (key.not_before, key.expires_at)
        && start >= end
    {
        faults.value(&path.field("expires_at"), Wrong::new("this is not after not_before: the key would never work"));
    }
    (faults.len() == before).then_some(key)
}

fn limits(fields: &Fields<'_, '_>, faults: &mut Faults) -> Option<Box<Traffic>> {
    // Of a million keys few have any.
    fields.has("limits").then(|| Box::new(fields.below("limits", &schema::KEY_LIMITS, faults, traffic::read)))
}

fn only_secret(fields: &Fields<'_, '_>, faults: &mut Faults) -> Vec<KeySecret> {
    if fields.has("secrets") {
        let wrong = Wrong::new("secret and secrets cannot stand together");
        faults.name(&fields.at.field("secret"), wrong.hint("move it into the list: secrets: [{ plain: ... }]"));
    }
    let plain = fields.parsed("secret", plain, faults);
    plain.into_iter().map(|from| KeySecret { index: 0, from, valid_until: None }).collect()
}

fn secrets(fields: &Fields<'_, '_>, faults: &mut Faults) -> Vec<KeySecret> {
    let path = fields.at.field("secrets");
    let missing = "without a secret nobody can use this key";
    let hint = "add secrets: [{ sha256: ... }]; wsbouncer key new makes one";
    let mut all = Vec::new();
    match fields.required("secrets", hint, faults) {
        None => {}
        Some(Node::List(items)) => {
            if items.is_empty() {
                faults.value(&path, Wrong::new(missing).hint(hint));
            }
            for (index, item) in items.iter().enumerate() {
                all.extend(secret(item, index, &path.item(index), faults));
            }
        }
        Some(other) => faults.value(&path, mismatch("a list", other).hint("write secrets: [{ sha256: ... }]")),
    }
    all
}

/// What tickets are signed with: a digest is not enough.
pub fn ticket_secrets(fields: &Fields<'_, '_>, faults: &mut Faults) -> Vec<KeySecret> {
    let (mut all, mut index) = (Vec::new(), 0);
    fields.list("secrets", faults, |node, path, faults| {
        let before = faults.len();
        let found = Fields::open(node, &schema::TICKET_SECRET, path, faults).map(|fields| {
            let forms = [
                fields.parsed("plain", plain, faults),
                fields.parsed("env", env, faults),
                fields.parsed("file", file, faults),
            ];
            forms.into_iter().flatten().collect::<Vec<_>>()
        });
        let mut found = found.unwrap_or_default();
        if found.len() != 1 && faults.len() == before {
            faults.value(path, Wrong::new("an entry of secrets is one secret").hint("there are plain, env and file"));
        }
        all.extend(found.pop().map(|from| KeySecret { index, from, valid_until: None }));
        index += 1;
    });
    all
}

/// One entry of `secrets`.
fn secret(node: &Node, index: usize, path: &Path<'_>, faults: &mut Faults) -> Option<KeySecret> {
    const FORMS: &str = "there are sha256, plain, env and file";
    let before = faults.len();
    if let Node::Text(_) = node {
        let wrong = Wrong::new("this must say what it is");
        faults.value(path, wrong.hint("write { sha256: ... }, or { plain: ... } for the secret itself"));
        return None;
    }
    let fields = Fields::open(node, &schema::SECRET, path, faults)?;
    let found: Vec<From> = [
        fields.parsed("sha256", sha256, faults),
        fields.parsed("plain", plain, faults),
        fields.parsed("env", env, faults),
        fields.parsed("file", file, faults),
    ]
    .into_iter()
    .flatten()
    .collect();
    if found.len() != 1 && faults.len() == before {
        faults.value(path, Wrong::new("an entry of secrets is one secret").hint(FORMS));
    }
    let valid_until = fields.parsed("valid_until", value::date, faults);
    found.into_iter().next().map(|from| KeySecret { index, from, valid_until })
}

fn sha256(text: &str) -> Result<From, Wrong> {
    let digest = Digest::from_hex(text).ok_or_else(|| {
        let says = match text.len() {
            64 => "this holds letters that are not hexadecimal digits".into(),
            length => format!("this must be 64 hexadecimal digits, not {length} characters"),
        };
        Wrong::new(says).hint("wsbouncer key hash makes it from a secret")
    })?;
    if digest == Digest::of(b"") {
        return Err(
            Wrong::new("this is the SHA-256 of nothing: an empty secret").hint("wsbouncer key new makes a good one")
        );
    }
    Ok(From::Sha256(digest))
}

fn plain(text: &str) -> Result<From, Wrong> {
    if text.is_empty() {
        return Err(Wrong::new("this secret is empty").hint("wsbouncer key new makes a good one"));
    }
    Ok(From::Plain(Secret::new(text)))
}

fn env(text: &str) -> Result<From, Wrong> {
    if text.is_empty() || text.contains(['=', '\0']) {
        return Err(Wrong::new("this is not the name of an environment variable"));
    }
    Ok(From::Env(text.into()))
}

fn file(text: &str) -> Result<From, Wrong> {
    if holds_key(text) {
        let wrong = Wrong::new("this looks like a key, not like the path of a file that holds one");
        return Err(wrong.hint("write plain: for the secret itself"));
    }
    if text.is_empty() || text.ends_with('/') || text.contains('\0') {
        return Err(Wrong::new("this is not the path of a file"));
    }
    Ok(From::File(text.into()))
}

fn attributes(fields: &Fields<'_, '_>, faults: &mut Faults) -> Vec<(Box<str>, Box<str>)> {
    let mut all = Vec::new();
    let path = fields.at.field("attributes");
    let Some(node) = fields.get("attributes") else { return all };
    let Node::Map(map) = node else {
        faults.value(&path, mismatch("a map", node).hint("write attributes: { tenant: acme }"));
        return all;
    };
    for (index, (name, node)) in map.iter().enumerate() {
        // The names are the operator's own, and so not shown: one may be a secret in the wrong place.
        let path = path.again(HIDDEN, index);
        if map[..index].iter().any(|(earlier, _)| earlier == name) {
            faults.name(&path, Wrong::new("this attribute stands twice").hint("keep one of them"));
        }
        if value::name(name).is_err() || name.contains(['{', '}']) {
            faults.name(&path, Wrong::new("an attribute's name is printable ASCII without spaces and braces"));
        }
        all.extend(parsed(node, &path, value::header_text, faults).map(|value| (name.clone(), value)));
    }
    all
}
