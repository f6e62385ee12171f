//! The house rules that a compiler does not check: who may know whom, how long a file may be, what is never written.
//! The rules are the tables at the top; what reads them is below. A table names files by module path (`auth::api_key`
//! is `src/auth/api_key.rs`, `auth` is `src/auth/mod.rs`); a name ending in `::*` is a whole directory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Non-test lines of one file. Longer: it holds two things, split it.
const LONGEST_FILE: usize = 400;

/// Who starts, runs and ends the process. Nobody else may import one of these.
const PROCESS: &[&str] =
    &["main", "server", "worker", "listener", "desk", "connection", "reload", "admin", "admin::*", "cli", "cli::*"];

/// (importer, imported, reason): imports that must not be.
const MUST_NOT_IMPORT: &[(&str, &str, &str)] = &[
    ("config::schema", "*", "the schema is the file as types: it knows nobody but config::value"),
    ("config::schema::*", "*", "the schema is the file as types: it knows nobody but config::value"),
    ("relay", "*", "the relay knows two byte streams and bounds, not HTTP, TLS or routes"),
    ("relay::*", "*", "the relay knows two byte streams and bounds, not HTTP, TLS or routes"),
    ("frame", "*", "RFC 6455 frame headers and nothing more"),
];

/// Exceptions from the table above, and from "the domain never imports config".
const BUT_MAY_IMPORT: &[(&str, &[&str])] = &[
    ("config::schema", &["config::schema::*"]),
    ("config::schema::*", &["config::value"]),
    ("frame", &["frame::*"]),
    ("relay", &["relay::*", "frame", "traffic", "end", "clock", "random", "sync", "write_last"]),
    ("relay::*", &["relay::*", "frame", "traffic", "end", "clock", "random", "sync", "write_last"]),
];

/// (crate, who may name it, reason).
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("serde_yaml", &["config::yaml"], "the YAML crate can be changed in one file"),
    ("granit_parser", &["config::locate"], "only positions come from it"),
    ("hyper", HTTP, "hyper stays where HTTP is spoken"),
    ("hyper_util", HTTP, "hyper stays where HTTP is spoken"),
    ("clap", &["main", "cli", "cli::*"], "only the command line knows its flags"),
    ("prometheus_client", &["metrics", "metrics::*"], "one file names every metric"),
];
/// The operator's own listener; plain requests, whose bodies it frames anew; what collectors are sent. Handshakes are read
/// and written by hand.
const HTTP: &[&str] = &["admin", "admin::*", "forward", "forward::*", "spans::export"];

/// Tasks that outlive the function that starts them are counted here; elsewhere they could not be drained.
const MAY_SPAWN: &[&str] = &["server", "desk", "reload", "admin"];

/// (what, reason): never in any text file of the project.
fn banned_words() -> Vec<(String, &'static str)> {
    // Put together here, so that this file does not contain them.
    let join = |parts: &[&str]| parts.concat();
    vec![
        (join(&["/wor", "k/"]), "a path of somebody's machine"),
        (join(&["/far", "m/"]), "a path of somebody's machine"),
        (join(&["/tmp/", "bash_jobs"]), "a path of somebody's machine"),
        (join(&["/tmp/", "team"]), "a path of somebody's machine"),
        (join(&["/home/", "user"]), "a path of somebody's machine"),
        (join(&["todo", "!("]), "left unfinished"),
        (join(&["unimplemented", "!("]), "left unfinished"),
        (join(&["dbg", "!("]), "left from debugging"),
        (join(&["FIX", "ME"]), "fix it, or write an issue"),
        (join(&["<<<<", "<<<"]), "a merge conflict"),
        (join(&[">>>>", ">>>"]), "a merge conflict"),
        (join(&["BEGIN ", "PRIVATE KEY"]), "a secret"),
    ]
}

#[test]
fn nobody_imports_what_the_tables_forbid() {
    let mut wrong = Vec::new();
    for (module, source) in sources() {
        for import in imports(&module, &source) {
            for (who, whom, why) in MUST_NOT_IMPORT {
                if is(&module, who) && is(&import, whom) && !excepted(&module, &import) {
                    wrong.push(format!("{module} imports {import}: {why}"));
                }
            }
            if any(&import, PROCESS) && !any(&module, PROCESS) {
                wrong.push(format!("{module} imports {import}: only the process layer knows the process layer"));
            }
            let config = is(&import, "config") || is(&import, "config::*");
            if config && !is(&module, "config::*") && module != "config" && !any(&module, PROCESS) {
                wrong.push(format!("{module} imports {import}: the domain has never heard of the file it comes from"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_are_named_only_where_they_belong() {
    let mut wrong = Vec::new();
    for (module, source) in sources() {
        for (krate, allowed, why) in ONLY_IN {
            if names_crate(&source, krate) && !any(&module, allowed) {
                wrong.push(format!("{module} names {krate}: {why}"));
            }
        }
        for spawn in ["tokio::spawn(", "tokio::task::spawn(", "task::spawn("] {
            if source.contains(spawn) && !any(&module, MAY_SPAWN) {
                wrong.push(format!("{module} calls {spawn}): a task that nobody counts cannot be drained"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_two_files_import_each_other_in_a_circle() {
    let sources = sources();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, source) in &sources {
        graph.insert(module.clone(), imports(module, source));
    }
    // Files that nobody who is left imports, or that import nobody who is left, are taken away until nothing changes;
    // what stays is in a circle, or between two.
    loop {
        let imported: BTreeSet<String> = graph.values().flatten().cloned().collect();
        let before = graph.len();
        let alive: BTreeSet<String> = graph.keys().cloned().collect();
        graph.retain(|at, to| imported.contains(at) && to.iter().any(|to| alive.contains(to)));
        if graph.len() == before {
            break;
        }
    }
    let circle: Vec<String> = graph
        .iter()
        .map(|(at, to)| {
            let stuck: Vec<&str> = to.iter().filter(|to| graph.contains_key(*to)).map(String::as_str).collect();
            format!("{at} -> {}", stuck.join(", "))
        })
        .collect();
    assert!(circle.is_empty(), "files in a circle:\n{}", circle.join("\n"));
}

/// What one step of a request hands to the next as proof that it was taken: where each is made, and nowhere else.
const PROOFS: [(&str, &str); 7] = [
    ("auth::credential", "Credential"),
    ("auth", "Principal"),
    ("limit", "Permit"),
    ("admit", "Admission"),
    ("tunnels", "Claim"),
    ("tunnels", "Seat"),
    ("handshake", "Switched"),
];

#[test]
fn a_proof_can_be_made_only_where_it_is_earned() {
    for (home, proof) in PROOFS {
        let source = sources().into_iter().find(|(module, _)| *module == home).map(|(_, source)| source);
        let source = source.unwrap_or_else(|| panic!("no module {home}"));
        let (before, after) = source.split_once(&format!("pub struct {proof}")).unwrap_or_else(|| panic!("no {proof}"));
        let body = match after.as_bytes()[0] {
            b'(' => after.split_once(");").unwrap().0,
            _ => after.split_once("\n}").unwrap().0,
        };
        assert!(body.len() > 3 && !body.contains("pub "), "{proof}: who can write its fields can forge it");
        let derives = before.lines().rev().take_while(|line| !line.is_empty() && *line != "}");
        let derives: String = derives.filter(|line| line.starts_with("#[derive")).collect();
        assert!(!derives.contains("Default"), "{proof} can be had for nothing");
        let is_permission = matches!(proof, "Permit" | "Admission" | "Seat");
        assert!(!is_permission || !derives.contains("Clone"), "one {proof} is for one tunnel");
    }
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<String> = sources()
        .iter()
        .map(|(module, source)| (module, source.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .map(|(module, lines)| format!("{module}: {lines} lines without its tests, {LONGEST_FILE} are allowed"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn nothing_is_written_that_must_not_be() {
    let banned = banned_words();
    let mut seen = 0;
    let mut wrong = Vec::new();
    for path in project_files() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        seen += 1;
        for (at, line) in text.lines().enumerate() {
            for (word, why) in &banned {
                if line.contains(word.as_str()) {
                    wrong.push(format!("{}:{}: `{word}`: {why}", path.display(), at + 1));
                }
            }
        }
    }
    assert!(seen >= 30, "only {seen} text files seen: the walk is broken");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

// What reads the tables.

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Module path and code of every file under `src`, without its comments and its tests at the foot.
fn sources() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    let mut sources = Vec::new();
    for path in files {
        let inside = path.strip_prefix(&src).unwrap().with_extension("");
        let mut names: Vec<&str> = inside.iter().map(|name| name.to_str().unwrap()).collect();
        if names.len() > 1 && names.last() == Some(&"mod") {
            names.pop();
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
        let lines: Vec<&str> =
            code.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
        sources.push((names.join("::"), lines.join("\n")));
    }
    assert!(sources.len() >= 12, "only {} source files seen: the walk is broken", sources.len());
    sources
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

/// Everything that belongs to the project: what a build or an installation leaves behind is not.
fn project_files() -> Vec<PathBuf> {
    const NOT_OURS: [&str; 4] = [".git", "target", ".cache", "node_modules"];
    let mut files = Vec::new();
    let mut open = vec![root()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if NOT_OURS.iter().any(|not_ours| name == *not_ours) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files
}

/// The modules of this crate that a file names: `use crate::{a, b::c}`, `super::d`, `crate::e::f()`. `pub use self::` is
/// how a directory shows its files; that is no import.
fn imports(module: &str, source: &str) -> BTreeSet<String> {
    let known: BTreeSet<String> = module_names();
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let is_directory = root().join("src").join(module.replace("::", "/")).is_dir();
    let own = if is_directory { module } else { parent };
    let mut found = BTreeSet::new();
    for statement in source.split(';') {
        let reexport = statement.contains("pub use self::") || statement.contains("pub(crate) use self::");
        for (start, base) in
            [("crate::", ""), ("wsbouncer::", ""), ("super::", own_parent(own, is_directory)), ("self::", own)]
        {
            for (at, _) in statement.match_indices(start) {
                let inside_word =
                    statement[..at].ends_with(|before: char| before.is_alphanumeric() || "_:".contains(before));
                if inside_word || (start == "self::" && reexport) {
                    continue;
                }
                for path in expand(&statement[at + start.len()..]) {
                    let full = if base.is_empty() { path } else { format!("{base}::{path}") };
                    found.extend(resolve(&full, &known));
                }
            }
        }
    }
    found.remove(module);
    found
}

fn own_parent(own: &str, is_directory: bool) -> &str {
    if is_directory { own.rsplit_once("::").map_or("", |(parent, _)| parent) } else { own }
}

/// The file that a path leads into: its longest beginning that is one.
fn resolve(path: &str, known: &BTreeSet<String>) -> Option<String> {
    let mut path = path;
    loop {
        if known.contains(path) {
            return Some(path.to_owned());
        }
        path = path.rsplit_once("::")?.0;
    }
}

fn module_names() -> BTreeSet<String> {
    sources().into_iter().map(|(module, _)| module).filter(|module| module != "lib" && module != "main").collect()
}

/// `a::{b, c::{d, e}}` becomes `a::b`, `a::c::d`, `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let end = tree.find(|at: char| !(at.is_alphanumeric() || at == '_' || at == ':')).unwrap_or(tree.len());
    let (path, rest) = tree.split_at(end);
    if !rest.starts_with('{') || !(path.is_empty() || path.ends_with("::")) {
        return vec![path.trim_end_matches(':').to_owned()];
    }
    let mut depth = 0;
    let mut items = vec![String::new()];
    for letter in rest.chars() {
        match letter {
            '{' if depth == 0 => depth = 1,
            '}' if depth == 1 => break,
            ',' if depth == 1 => items.push(String::new()),
            _ => {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                items.last_mut().unwrap().push(letter);
            }
        }
    }
    let items = items.iter().map(|item| item.trim()).filter(|item| !item.is_empty());
    items.flat_map(expand).map(|item| format!("{path}{item}")).collect()
}

fn names_crate(source: &str, krate: &str) -> bool {
    source.match_indices(krate).any(|(at, _)| {
        let before = source[..at].chars().next_back().unwrap_or(' ');
        let after = &source[at + krate.len()..];
        !(before.is_alphanumeric() || before == '_' || before == ':' || before == '"') && after.starts_with("::")
    })
}

fn is(module: &str, pattern: &str) -> bool {
    match pattern.strip_suffix("::*") {
        Some(directory) => module.strip_prefix(directory).is_some_and(|rest| rest.starts_with("::")),
        None => pattern == "*" || pattern == module,
    }
}

fn any(module: &str, patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| is(module, pattern))
}

fn excepted(module: &str, import: &str) -> bool {
    BUT_MAY_IMPORT.iter().any(|(who, whom)| is(module, who) && any(import, whom))
}

#[test]
fn the_reading_of_imports_is_right() {
    let paths = |tree: &str| expand(tree);
    assert_eq!(paths("a::b::C"), ["a::b::C"]);
    assert_eq!(paths("a::{b, c::{d, e}, F}"), ["a::b", "a::c::d", "a::c::e", "a::F"]);
    assert_eq!(paths("{a, b::C}"), ["a", "b::C"]);
    assert_eq!(paths("denial::Denial)"), ["denial::Denial"]);
    let found =
        imports("admit", "use crate::{auth::credential::Carrier, denial};\nlet x = crate::peer::split_host(h);");
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), ["auth::credential", "denial", "peer"]);
    assert!(imports("auth::api_key", "use super::credential::Place;").contains("auth::credential"));
    assert!(names_crate("use hyper::body", "hyper") && !names_crate("use hyper_util::rt", "hyper"));
    assert!(is("cli::key", "cli::*") && !is("client", "cli::*") && !is("cli", "cli::*"));
}
