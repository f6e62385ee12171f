//! The configuration: YAML files in, [`Settings`] and [`Rules`] out, or all that is wrong with them.
//!
//! Text becomes a tree (`yaml`; `plain` for key files that are), the tree becomes the file as types (`decode`, `routes`, `keys`; the table of fields is in
//! `schema`), and these become rules (`compile`, `keyring`). Faults are collected on the way (`problem`); only when there
//! are some are they given lines and columns (`locate`) and printed (`report`).

mod auth;
mod chunks;
mod compile;
mod decode;
mod fields;
mod json_schema;
mod keyring;
mod keys;
mod locate;
mod plain;
mod problem;
mod report;
mod routes;
pub mod schema;
mod secrets;
mod snippet;
mod source;
mod traffic;
mod value;
mod yaml;

use std::ffi::OsString;
use std::path::Path as FilePath;
use std::sync::Arc;

use zeroize::{Zeroize as _, Zeroizing};

use self::chunks::Layout;
use self::compile::Doors;
use self::fields::{Fields, mismatch};
pub use self::json_schema::schema as json_schema;
use self::keyring::{Keyring, Outside};
use self::problem::{Faults, FileId, Path, Wrong};
pub use self::report::Problems;
use self::report::{Level, Text};
use self::source::Reader;
pub use self::source::Sources;
use self::yaml::Node;
use crate::auth::ticket::Signer;
use crate::clock::UnixTime;
use crate::peer::TrustedProxies;
use crate::route::RouteTable;
use crate::rules::{Rules, Settings};

/// A configuration that was found good.
pub struct Config {
    pub settings: Settings,
    pub rules: Rules,
    pub sources: Sources,
    /// What is allowed and probably not meant.
    pub warnings: Problems,
}

/// Rules are written by people.
const MAX_FILE: u64 = 1 << 20;
/// Keys are written by machines: a million of them are some hundred bytes each.
const MAX_KEY_FILE: u64 = 512 << 20;
/// A key file that is not simply a list cannot be read in pieces, and its tree is many times its size.
const MAX_WHOLE_KEY_FILE: usize = 16 << 20;

/// Reads the file and all that it names.
///
/// # Errors
/// Everything that is wrong with them, sorted by position.
pub fn load(path: &FilePath) -> Result<Config, Problems> {
    load_with(path, &|name| std::env::var_os(name), UnixTime::now())
}

/// [`load`] with the environment and the time as arguments.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &FilePath, env: &dyn Fn(&str) -> Option<OsString>, now: UnixTime) -> Result<Config, Problems> {
    let mut load = Load::default();
    let parts = load.all(path, env, now);
    let mut sources = load.reader.finish();
    match parts {
        Some((settings, mut rules)) if load.faults.is_empty() => {
            sources.digest().clone_into(&mut rules.fingerprint);
            let warnings = Problems::new(Level::Warning, load.warnings, &load.texts, Sources::default());
            Ok(Config { settings, rules, sources, warnings })
        }
        _ => Err(Problems::new(Level::Error, load.faults, &load.texts, std::mem::take(&mut sources))),
    }
}

/// One load: what was read, and what was found.
#[derive(Default)]
struct Load {
    reader: Reader,
    texts: Vec<Text>,
    faults: Faults,
    warnings: Faults,
}

impl Load {
    fn all(&mut self, path: &FilePath, env: compile::Env<'_>, now: UnixTime) -> Option<(Settings, Rules)> {
        let main = self.main(path)?;
        let node = self.tree(main)?;
        let root = Path::root(main);
        let mut file = decode::file(&node, &root, &mut self.faults)?;
        drop(node);
        let (table, upstreams, doors) = compile::routes(&mut file, &root, env, &mut self.faults);
        let base = path.parent().unwrap_or(FilePath::new(""));
        let around = Surroundings { base, env, now };
        let keys = self.keys(&mut file, &root, &doors, &around);
        let issues = table.has_desks();
        let signer = secrets::signer(
            &file.tickets,
            issues,
            &root,
            &mut around.with(&mut self.reader),
            &mut self.faults,
            &mut self.warnings,
        );
        let mut outside = around.with(&mut self.reader);
        let token = file.admin_token.take();
        let token = secrets::admin_token(token.as_ref(), &root, &mut outside, &mut self.faults, &mut self.warnings);
        self.warn_of_proxies(&file, &root);
        let settings = Settings { listen: file.listen.clone(), admin: file.admin };
        let rules = rules(file, table, upstreams, keys, signer);
        Some((settings, Rules { admin_token: token, ..rules }))
    }

    /// The text of the main file.
    fn main(&mut self, path: &FilePath) -> Option<FileId> {
        let id = FileId(self.texts.len());
        match self.reader.read(path, MAX_FILE) {
            Ok(bytes) => self.text(path, bytes),
            Err(wrong) => {
                self.texts.push(Text::unreadable(path));
                self.faults.at(id, 0, 0, wrong);
                None
            }
        }
    }

    /// Takes bytes as the text of a file.
    fn text(&mut self, path: &FilePath, mut bytes: Zeroizing<Vec<u8>>) -> Option<FileId> {
        let id = FileId(self.texts.len());
        // Some editors begin a file with a byte order mark, which means nothing in UTF-8.
        if bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        match String::from_utf8(std::mem::take(&mut *bytes)) {
            Ok(text) => {
                self.texts.push(Text::new(path, Zeroizing::new(text)));
                Some(id)
            }
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let mut bytes = error.into_bytes();
                let line = 1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
                let wide = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
                bytes.zeroize();
                self.texts.push(Text::unreadable(path));
                let says = if wide { "this file is UTF-16, not UTF-8" } else { "this line is not UTF-8" };
                self.faults.at(id, line, 0, Wrong::new(says).hint("save the file as UTF-8"));
                None
            }
        }
    }

    /// The tree of the main file.
    fn tree(&mut self, id: FileId) -> Option<Node> {
        let text = &self.texts[id.0].text;
        match parsed(text, 0) {
            Ok(node) if !matches!(node, Node::Null) => Some(node),
            Ok(_) => {
                let wrong = Wrong::new("this file is empty");
                let hint = "the smallest useful one has listen:, upstream: and keys: (see config/example.yaml)";
                self.faults.at(id, 0, 0, wrong.hint(hint));
                None
            }
            Err((line, column, wrong)) => {
                self.faults.at(id, line, column, wrong);
                None
            }
        }
    }

    fn keys(
        &mut self,
        file: &mut schema::File,
        root: &Path<'_>,
        doors: &Doors,
        around: &Surroundings<'_>,
    ) -> crate::auth::api_key::Keys {
        let mut ring = Keyring::new(doors);
        let list = root.field("keys");
        for (index, key) in std::mem::take(&mut file.keys) {
            let mut outside = around.with(&mut self.reader);
            let at = (&list.item(index), index);
            ring.add(key, at, &mut outside, &mut self.faults, &mut self.warnings);
        }
        let list = root.field("key_files");
        for (index, written) in &file.key_files {
            let item = list.item(*index);
            for path in self.key_file_paths(&around.base.join(&**written), &item) {
                let bytes = match self.reader.read(&path, MAX_KEY_FILE) {
                    Ok(bytes) => bytes,
                    Err(wrong) => {
                        self.faults.value(&item, Wrong::new(format!("{}: {}", path.display(), wrong.says)));
                        continue;
                    }
                };
                if let Some(id) = self.text(&path, bytes) {
                    self.key_file(id, &mut ring, around);
                }
            }
        }
        ring.finish(&mut self.warnings)
    }

    fn key_file_paths(&mut self, path: &FilePath, item: &Path<'_>) -> Vec<std::path::PathBuf> {
        if !source::is_pattern(&path.to_string_lossy()) {
            return vec![path.to_owned()];
        }
        let found = self.reader.expand(path).and_then(|found| {
            if found.is_empty() { Err(Wrong::new("no file matches this pattern")) } else { Ok(found) }
        });
        found.unwrap_or_else(|wrong| {
            self.faults.value(item, wrong.hint(format!("it is looked for as {}", path.display())));
            Vec::new()
        })
    }

    /// Reads a key file piece by piece, key by key.
    fn key_file(&mut self, id: FileId, ring: &mut Keyring<'_>, around: &Surroundings<'_>) {
        let text = std::mem::take(&mut self.texts[id.0].text);
        let layout = chunks::split(&text);
        let whole = Path::root(id);
        let read = match &layout {
            Some(layout) => self.key_chunks(&text, layout, id, ring, around),
            None if text.len() > MAX_WHOLE_KEY_FILE => {
                let wrong = Wrong::new("a key file of this size must be one plain list of keys");
                self.faults.at(id, 1, 1, wrong.hint("begin every key with \"- \" on a line of its own"));
                Ok(())
            }
            None => parsed(&text, 0).map(|node| match node {
                Node::List(items) => {
                    self.key_items(items, 0, &Path::Root { file: id, list: true }, ring, around);
                }
                // All of its keys were deleted.
                Node::Null => {}
                Node::Map(_) => self.key_map(&node, &whole, ring, around),
                other => self.faults.value(&whole, mismatch("a list of keys", &other)),
            }),
        };
        if let Err((line, column, wrong)) = read {
            self.faults.at(id, line, column, wrong);
        }
        self.texts[id.0].text = text;
        self.texts[id.0].layout = layout;
    }

    /// A file with the field `keys` and nothing else.
    fn key_map(&mut self, node: &Node, whole: &Path<'_>, ring: &mut Keyring<'_>, around: &Surroundings<'_>) {
        let Some(fields) = Fields::open(node, &schema::KEY_FILE, whole, &mut self.faults) else { return };
        let _ = fields.required("keys", "write keys: [...], or make the file a list", &mut self.faults);
        let mut own = Vec::new();
        let mut index = 0;
        fields.list("keys", &mut self.faults, |item, path, faults| {
            own.extend(keys::key(item, path, faults).map(|key| (index, key)));
            index += 1;
        });
        let list = whole.field("keys");
        for (index, key) in own {
            let mut outside = around.with(&mut self.reader);
            ring.add(key, (&list.item(index), index), &mut outside, &mut self.faults, &mut self.warnings);
        }
    }

    fn key_chunks(
        &mut self,
        text: &str,
        layout: &Layout,
        id: FileId,
        ring: &mut Keyring<'_>,
        around: &Surroundings<'_>,
    ) -> Result<(), (usize, usize, Wrong)> {
        let whole = Path::Root { file: id, list: !layout.under_keys };
        let list = if layout.under_keys { whole.field("keys") } else { whole };
        ring.reserve(layout.items);
        for chunk in &layout.chunks {
            let part = &text[chunk.start..chunk.end];
            let items = match plain::list(part) {
                Some(items) => items,
                None => match parsed(part, chunk.lines_before)? {
                    Node::List(items) => items,
                    _ => continue,
                },
            };
            self.key_items(items, chunk.first, &list, ring, around);
        }
        Ok(())
    }

    fn key_items(
        &mut self,
        items: Vec<Node>,
        first: usize,
        list: &Path<'_>,
        ring: &mut Keyring<'_>,
        around: &Surroundings<'_>,
    ) {
        for (index, item) in items.into_iter().enumerate() {
            let path = list.item(first + index);
            if let Some(key) = keys::key(&item, &path, &mut self.faults) {
                let mut outside = around.with(&mut self.reader);
                ring.add(key, (&path, first + index), &mut outside, &mut self.faults, &mut self.warnings);
            }
        }
    }

    fn warn_of_proxies(&mut self, file: &schema::File, root: &Path<'_>) {
        let list = root.field("trusted_proxies");
        for (index, net) in file.trusted_proxies.iter().enumerate() {
            if net.prefix_len() == 0 {
                let wrong = Wrong::new("every client is trusted to say who it is");
                let hint = "name only the addresses of your own proxies";
                self.warnings.value(&list.item(index), wrong.hint(hint));
            }
        }
    }
}

/// What keys are read with, besides the reader.
struct Surroundings<'s> {
    base: &'s FilePath,
    env: compile::Env<'s>,
    now: UnixTime,
}

impl Surroundings<'_> {
    fn with<'o>(&'o self, reader: &'o mut Reader) -> Outside<'o> {
        Outside { reader, env: self.env, base: self.base, now: self.now }
    }
}

/// Parses a text in which nothing stands for anything else, part of a file with so many lines before it.
fn parsed(text: &str, lines_before: usize) -> Result<Node, (usize, usize, Wrong)> {
    let line_of = |line: usize| if line == 0 { 0 } else { line + lines_before };
    if let Some((line, column, says)) = locate::alias(text) {
        return Err((
            line_of(line),
            column,
            Wrong::new(says).hint("write it out; put a value that begins with & or * in quotes"),
        ));
    }
    yaml::parse(text).map_err(|error| {
        let begins = error.begins.map(|(how, line)| format!("{how} line {}", line_of(line)));
        let hints: Vec<String> = error.hint.map(Into::into).into_iter().chain(begins).collect();
        let hint = (!hints.is_empty()).then(|| hints.join("; "));
        (line_of(error.line), error.column, Wrong { says: error.says, hint })
    })
}

fn rules(
    file: schema::File,
    routes: RouteTable,
    upstreams: std::collections::HashSet<Arc<str>>,
    keys: crate::auth::api_key::Keys,
    tickets: Signer,
) -> Rules {
    Rules {
        routes,
        upstreams,
        keys,
        trusted_proxies: TrustedProxies(file.trusted_proxies),
        limits: file.limits,
        tickets,
        head_timeout: file.head_timeout,
        tcp_keepalive: file.tcp_keepalive,
        on_revoked: file.on_revoked,
        on_route_removed: file.on_route_removed,
        drain: file.drain,
        admin_token: None,
        collector: file.collector.map(Arc::new),
        fingerprint: String::new(),
    }
}
