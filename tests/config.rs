//! The configuration as an operator meets it: good files load, and a bad one gives exactly the text that stands beside it.
//! `UPDATE=1 cargo test --test config` writes these texts anew, for a person to read in the diff.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use wsbouncer::config::schema::{self, Below, Section};
use wsbouncer::config::{self, Config, Problems};

fn files(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    files.sort();
    files
}

fn problems(path: &Path) -> Problems {
    match config::load(path) {
        Ok(_) => panic!("{} is not a bad file", path.display()),
        Err(problems) => problems,
    }
}

fn good(path: &Path) -> Config {
    config::load(path).unwrap_or_else(|problems| panic!("{}\n{problems}", path.display()))
}

#[test]
fn every_good_file_loads() {
    let files = files("tests/data/good");
    for path in &files {
        good(path);
    }
    assert!(files.len() >= 10, "only {} good files seen", files.len());
}

#[test]
fn every_bad_file_says_what_is_wrong_with_it() {
    let files = files("tests/data/bad");
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for path in &files {
        // A build that can export has one thing less to say.
        if cfg!(feature = "otlp") && path.ends_with("telemetry.yaml") {
            continue;
        }
        let says = format!("{}\n", problems(path));
        let expected = path.with_extension("txt");
        if update {
            fs::write(&expected, &says).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != says {
            wrong.push(format!("{} is not what is said now:\n{says}", expected.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files.len() >= 60, "only {} bad files seen", files.len());
}

/// Everything in these files that could be a secret begins with `canary`; no message and no snippet holds it.
#[test]
fn no_message_holds_a_secret() {
    let (mut files, mut canaries) = (0, 0);
    for path in self::files("tests/data/bad") {
        files += 1;
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        canaries += text.matches("canary").count();
        let says = format!("{0}\n{0:?}", problems(&path));
        assert!(!says.contains("canary"), "{}:\n{says}", path.display());
    }
    assert!(files >= 60 && canaries >= 100, "only {canaries} canaries in {files} files");
}

/// A good file is broken in every place, in every way that a slip of the hand may break it.
#[test]
fn no_slip_shows_a_secret() {
    let scratch = tempfile::tempdir().unwrap();
    let (main, keys) = (scratch.path().join("main.yaml"), scratch.path().join("keys.yaml"));
    let main_text = "listen: 127.0.0.1:0\nkey_files: [keys.yaml]\nroutes:\n  - name: r\n    upstream: ws://127.0.0.1:9\n    set_headers: { X-Key: \"canary a\" }\nkeys:\n  - id: a\n    secrets:\n      - plain: canary-b\n        valid_until: 2099-01-01\n  - { id: b, secret: canary-c, routes: [r] }\n";
    let keys_text =
        "- id: c\n  secret: canary-d\n- { id: d, secrets: [{ plain: \"canary-e\" }, { plain: 'canary-f' }] }\n";
    let (mut seen, mut bad) = (0, 0);
    fs::write(&keys, keys_text).unwrap();
    for (path, text) in [(&main, main_text), (&keys, keys_text)] {
        fs::write(&main, main_text).unwrap();
        for at in 0..=text.len() {
            for slip in [
                "", " ", "\n", "\t", ":", ": ", "-", "- ", "\"", "'", "[", "}", "#", " #", ",", "&", "*", "!", "|",
                "x", "\u{7}", "\u{fc}",
            ] {
                // The empty slip takes a letter away, the others put one in.
                let rest = if slip.is_empty() { text.get(at + 1..).unwrap_or_default() } else { &text[at..] };
                fs::write(path, format!("{}{slip}{rest}", &text[..at])).unwrap();
                seen += 1;
                let says = match config::load(&main) {
                    Ok(config) => config.warnings.to_string(),
                    Err(problems) => {
                        bad += 1;
                        problems.to_string()
                    }
                };
                // Taking a letter away from the canary itself leaves enough of it to be seen.
                assert!(!says.contains("anary") && !says.contains("canar"), "{slip:?} at {at}:\n{says}");
            }
        }
    }
    assert!(seen > 7500 && bad > 3000, "{bad} of {seen} were bad");
}

/// What is read is bytes: any of them, and any beginning of a file, give an answer.
#[test]
fn nothing_panics() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("main.yaml");
    let text = fs::read("config/reference.yaml").unwrap();
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut bad = 0;
    for round in 0..400 {
        let mut text = text.clone();
        if round % 2 == 0 {
            text.truncate(random(text.len()));
        }
        for _ in 0..=random(4) {
            if !text.is_empty() {
                let (at, to) = (random(text.len()), u8::try_from(random(256)).unwrap());
                text[at] = to;
            }
        }
        fs::write(&path, text).unwrap();
        bad += usize::from(config::load(&path).map_err(|problems| problems.to_string()).is_err());
    }
    assert!(bad > 100, "only {bad} were bad");
}

/// Whoever deletes the last key revokes it, and does not have to know how YAML writes an empty list.
#[test]
fn where_nothing_is_left_there_are_no_keys() {
    let scratch = tempfile::tempdir().unwrap();
    let (path, keys) = (scratch.path().join("main.yaml"), scratch.path().join("keys.yaml"));
    let head = "listen: 127.0.0.1:0\nupstream: ws://127.0.0.1:9\n";
    for end in ["keys:\n", "keys: ~\n", "keys: []\n", "key_files:\n", "keys: # none\nkey_files: []\n"] {
        fs::write(&path, format!("{head}{end}")).unwrap();
        assert_eq!(good(&path).rules.keys.len(), 0, "{end}");
    }
    fs::write(&path, format!("{head}key_files: [keys.yaml]\n")).unwrap();
    for text in ["", "\n", "# none\n", "---\n", "[]\n", "keys:\n", "# of ours\nkeys:\n  # none\n"] {
        fs::write(&keys, text).unwrap();
        assert_eq!(good(&path).rules.keys.len(), 0, "{text:?}");
    }
}

#[test]
fn sizes_are_bounded() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("main.yaml");
    fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(problems(&path).to_string().contains("this file is larger than 1 MiB"));
    let missing = scratch.path().join("nowhere.yaml");
    assert!(problems(&missing).to_string().contains("there is no such file"));
}

#[test]
fn a_file_of_wrong_keys_is_not_a_book() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("main.yaml");
    let keys: String = (0..1000).map(|number| format!("  - {{ id: k{number}, secret: '' }}\n")).collect();
    fs::write(&path, format!("listen: 127.0.0.1:0\nupstream: ws://127.0.0.1:9\nkeys:\n{keys}")).unwrap();
    let problems = problems(&path);
    assert_eq!(problems.len(), 1000);
    assert!(problems.to_string().ends_with("1000 problems, of which the first 100 are shown"));
}

/// Key files are read in pieces; lines and neighbours are right all the same.
#[test]
fn faults_of_a_long_key_file_are_where_they_are() {
    let scratch = tempfile::tempdir().unwrap();
    let (path, keys) = (scratch.path().join("main.yaml"), scratch.path().join("keys.yaml"));
    fs::write(&path, "listen: 127.0.0.1:0\nupstream: ws://127.0.0.1:9\nkey_files: [keys.yaml]\n").unwrap();
    for (head, before) in [("", 0), ("keys:\n", 1)] {
        let mut text = String::from(head);
        for number in 0..6_000 {
            text += &format!("- id: key-{number}\n  secrets: [{{ plain: secret-{number} }}]\n");
        }
        fs::write(&keys, &text).unwrap();
        assert_eq!(good(&path).rules.keys.len(), 6_000);
        let text = text.replace("id: key-5000\n", "id: key-7\n").replace("secret-5900 ", "secret-3 ");
        fs::write(&keys, text).unwrap();
        let says = problems(&path).to_string();
        let file = keys.display();
        for expected in [
            format!("{file}:{}:7: keys[5000].id: two keys have the id \"key-7\"", before + 10_001),
            format!("the other one is at {file}:{}", before + 15),
            format!("{file}:{}:13: keys[5900].secrets[0]: the key \"key-3\" has this secret too", before + 11_802),
        ] {
            assert!(says.contains(&expected), "{expected}\n{says}");
        }
    }
}

#[test]
fn the_shipped_files_load() {
    let files = files("config");
    assert!(files.len() >= 2, "only {} shipped files seen", files.len());
    // What deploys it is no file of rules.
    for path in files.iter().filter(|path| !path.ends_with("compose.yaml")) {
        good(path);
    }
}

/// Every field of the table with its default, in its order.
fn table(section: &'static Section, path: &str, into: &mut Vec<(String, &'static str)>) {
    for field in section.fields {
        let path = format!("{path}{}", field.name);
        into.push((path.clone(), field.default));
        match field.below {
            Below::Section(below) => table(below, &format!("{path}."), into),
            Below::Named(Below::Section(below)) => table(below, &format!("{path}.NAME."), into),
            Below::Named(_) | Below::EachWay(_) | Below::Texts { .. } | Below::Value => {}
        }
    }
}

/// All of them, by path.
fn known() -> BTreeMap<String, &'static str> {
    let mut all = Vec::new();
    table(&schema::FILE, "", &mut all);
    let (count, known) = (all.len(), all.into_iter().collect::<BTreeMap<_, _>>());
    assert_eq!(count, known.len(), "no field stands twice");
    known
}

/// `## path`, and what is said below it.
fn reference() -> BTreeMap<String, String> {
    let text = fs::read_to_string("config/reference.yaml").unwrap();
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut open = None;
    for line in text.lines().map(str::trim) {
        match (line.strip_prefix("## "), line.strip_prefix("# "), &open) {
            (Some(path), ..) if path != "path.of.the.field" => {
                assert!(found.insert(path.to_owned(), String::new()).is_none(), "{path} is explained twice");
                open = Some(path.to_owned());
            }
            // Examples in YAML are indented further.
            (_, Some(more), Some(path)) if !more.starts_with(' ') => {
                *found.get_mut(path).unwrap() += &format!("{more} ");
            }
            (_, Some(_), Some(_)) => {}
            _ => open = None,
        }
    }
    found
}

#[test]
fn the_reference_explains_every_field_and_no_other() {
    let known = known();
    assert!(known.len() >= 60, "only {} fields seen", known.len());
    let reference = reference();
    let (known, explained): (BTreeSet<_>, BTreeSet<_>) = (known.keys().collect(), reference.keys().collect());
    assert_eq!(known.difference(&explained).collect::<Vec<_>>(), Vec::<&&String>::new(), "not explained");
    assert_eq!(explained.difference(&known).collect::<Vec<_>>(), Vec::<&&String>::new(), "there is no such field");
}

/// The decoder parses the defaults of the table; so what the reference says is what holds.
#[test]
fn the_reference_states_the_real_defaults() {
    let known = known();
    let [(_, header), (_, pair)] = schema::DEFAULT_PLACES;
    let places = format!("header {header}, subprotocol pair {pair}");
    let identity = format!("{}: \"{}\"", schema::DEFAULT_IDENTITY.0, schema::DEFAULT_IDENTITY.1);
    for (path, text) in reference() {
        let (_, stated) = text.split_once("Default: ").unwrap_or_else(|| panic!("{path} states no default"));
        let stated = stated.trim_end();
        let table = match &*path {
            "routes.auth.api_key.extract_from" => &places,
            "routes.identity_headers" => &identity,
            _ => known[&path],
        };
        if table.is_empty() {
            let words =
                ["none", "required", "each its own", "api_key", "the usual places", "host and path", "by the room"];
            assert!(words.iter().any(|word| stated.starts_with(word)), "{path} has no default, {stated} is stated");
        } else {
            let end = stated.strip_prefix(table).unwrap_or_else(|| panic!("{path}: {table}, stated is {stated}"));
            assert!(end.is_empty() || end.starts_with([' ', '.']), "{path}: {table}, stated is {stated}");
        }
    }
}

/// `docs/configuration.md`: for each field a row, in the words of the reference.
fn page() -> String {
    let text = fs::read_to_string("config/reference.yaml").unwrap();
    let (_, rules) = text.split_once("# Rules that hold everywhere:\n").unwrap();
    let rules = rules.lines().map_while(|line| line.strip_prefix("#   "));
    let mut page = "# Every field of the file\n\nMade of [`config/reference.yaml`](../config/reference.yaml), which has them as a \
                    file with examples; a test\nkeeps both alike. `NAME` is a name that you choose. \
                    `wsbouncer schema` says the same to an editor.\n\n"
        .to_owned();
    rules.for_each(|line| page += &format!("{line}\n"));
    let mut all = Vec::new();
    table(&schema::FILE, "", &mut all);
    let said = reference();
    for (path, _) in all {
        if !path.contains('.') {
            page += &format!("\n## {path}\n\n| field | default | meaning |\n| --- | --- | --- |\n");
        }
        let (meaning, default) = said[&path].split_once("Default: ").unwrap();
        let default = default.trim_end().trim_end_matches('.');
        page += &format!("| `{path}` | {} | {} |\n", cell(default), cell(meaning.trim_end()));
    }
    page
}

/// Text as it stands in a table, with links to the pages of docs/.
fn cell(text: &str) -> String {
    // Every other piece is code, in which nothing else than a bar means anything.
    let pieces = text.split('`').enumerate();
    let pieces =
        pieces.map(|(n, piece)| if n % 2 == 1 { piece.into() } else { piece.replace('<', "&lt;").replace('*', "\\*") });
    let mut text = pieces.collect::<Vec<String>>().join("`").replace('|', "\\|");
    for file in fs::read_dir("docs").unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        text = text.replace(&format!("docs/{name}"), &format!("[{name}]({name})"));
    }
    text
}

#[test]
fn the_page_of_fields_is_the_reference() {
    let (name, page) = ("docs/configuration.md", page());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(name, &page).unwrap();
    }
    let written = fs::read_to_string(name).unwrap();
    assert!(written == page, "{name} is not what the reference says: UPDATE=1 cargo test --test config");
}
