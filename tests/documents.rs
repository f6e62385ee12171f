//! What the documents say is true: their YAML loads, their links lead somewhere, and every refusal is explained.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use wsbouncer::denial::Reason;

const DOCUMENTS: [&str; 19] = [
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs/admin.md",
    "docs/browsers.md",
    "docs/configuration.md",
    "docs/deploy.md",
    "docs/devtools.md",
    "docs/first-message.md",
    "docs/graphql.md",
    "docs/metrics.md",
    "docs/migrating.md",
    "docs/mqtt.md",
    "docs/ocpp.md",
    "docs/performance.md",
    "docs/refusals.md",
    "docs/strategies.md",
    "docs/tickets.md",
    "docs/traces.md",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The fenced blocks of one language, without the indentation that they have in a list.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start() == format!("```{language}") {
            let indent = line.len() - line.trim_start().len();
            let inside = lines.by_ref().take_while(|line| line.trim() != "```");
            blocks.push(inside.map(|line| line.get(indent..).unwrap_or("").to_owned() + "\n").collect());
        }
    }
    blocks
}

/// A part of a file becomes a file by what it leaves out.
fn completed(yaml: &str) -> String {
    let has = |field: &str| yaml.lines().any(|line| line.starts_with(field));
    let mut whole = yaml.to_owned();
    if !has("listen:") {
        whole.push_str("listen: 127.0.0.1:0\n");
    }
    if !has("upstream:") && !has("routes:") {
        whole.push_str("upstream: ws://127.0.0.1:9000\n");
    }
    if !has("keys:") {
        let digest = "52".repeat(32);
        whole.push_str(&format!("keys: [{{ id: any, secrets: [{{ sha256: \"{digest}\" }}] }}]\n"));
    }
    whole
}

#[test]
fn the_yaml_of_every_document_loads() {
    let of = |name: &&'static str| {
        blocks(&read(name), "yaml").into_iter().map(move |yaml| (*name, yaml)).collect::<Vec<_>>()
    };
    let examples: Vec<(&str, String)> = DOCUMENTS.iter().flat_map(of).collect();
    assert!(examples.len() >= 14, "only {} YAML blocks seen", examples.len());
    let scratch = tempfile::tempdir().unwrap();
    for (name, example) in examples {
        let file = scratch.path().join("wsbouncer.yaml");
        fs::write(&file, completed(&example)).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_wsbouncer")).arg("check").arg(&file).output().unwrap();
        let says = String::from_utf8(output.stderr).unwrap();
        // Guides have keys in plain text, so that their commands work as they stand; nothing else is warned of there.
        let is_fine = |line: &str| name != "README.md" && (line.contains("plain text") || line.contains("ticket"));
        let is_quiet = says.lines().filter(|line| line.contains(": warning: ")).all(is_fine);
        assert!(output.status.success() && is_quiet, "{name}:\n{example}\n{says}");
    }
}

/// The file that the first screen explains is the example that is shipped.
#[test]
fn the_first_file_of_the_readme_is_the_example() {
    let first = blocks(&read("README.md"), "yaml").remove(0);
    let example = read("config/example.yaml");
    let without_comments = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_end().to_owned());
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    };
    assert_eq!(without_comments(&first), without_comments(&example));
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for document in DOCUMENTS {
        let text = read(document);
        let folder = Path::new(document).parent().unwrap().to_owned();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.starts_with("https://") {
                continue;
            }
            seen += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { root().join(document) } else { root().join(&folder).join(file) };
            assert!(path.exists(), "{document}: {target}: no such file");
            if !anchor.is_empty() {
                assert!(anchors(&path).contains(anchor), "{document}: {target}: no such heading");
            }
        }
    }
    assert!(seen >= 20, "only {seen} links seen");
}

/// Headings as they are linked to: lower case, blanks as dashes, punctuation gone.
fn anchors(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
            kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
        })
        .collect()
}

/// Every reason has a heading; README's table has it too, and leads there; both say its status.
#[test]
fn every_reason_is_explained() {
    let (readme, text) = (read("README.md"), read("docs/refusals.md"));
    let headings: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert!(Reason::ALL.len() >= 20);
    for reason in Reason::ALL {
        let (word, status) = (reason.word(), reason.status().as_u16());
        let section = text.split_once(&format!("\n## {word}\n")).map(|(_, section)| section.trim_start());
        assert!(
            section.is_some_and(|it| it.starts_with(&format!("**{status}**"))),
            "docs/refusals.md: {word} {status}"
        );
        let row = format!("| {status} | [`{word}`](docs/refusals.md#{word}) |");
        assert!(readme.contains(&row), "README.md has no row {row}");
    }
    let known: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.word()).collect();
    let stale: Vec<_> = headings.difference(&known).collect();
    assert!(stale.is_empty(), "docs/refusals.md explains what does not exist: {stale:?}");
}

// ---- threats

/// Rows of the table of attacks: number, attack, where it is shown.
fn threats() -> Vec<(usize, String, String)> {
    let text = read("tests/e2e/threats.md");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let number = cells.first()?.parse().ok()?;
        assert_eq!(cells.len(), 3, "{line}");
        Some((number, cells[1].to_owned(), cells[2].to_owned()))
    });
    rows.collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Whether there is a test of this name: `module::name` of the end-to-end tests, of another test file, or of a source.
fn is_test(name: &str) -> bool {
    let Some((module, function)) = name.rsplit_once("::") else { return root().join(name).exists() };
    let file = module.replace("::", "/");
    let places = ["tests/e2e", "tests/e2e/threats", "tests", "src"];
    let files = places.iter().flat_map(|place| [format!("{place}/{file}.rs"), format!("{place}/{file}/mod.rs")]);
    let texts = files.filter_map(|path| fs::read_to_string(root().join(path)).ok());
    texts.into_iter().any(|text| {
        text.contains(&format!("#[test]\nfn {function}(")) || text.contains(&format!("    #[test]\n    fn {function}("))
    })
}

#[test]
fn every_threat_stands_in_the_table_once() {
    const COUNT: usize = 141;
    let rows = threats();
    let numbers: Vec<usize> = rows.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=COUNT).collect::<Vec<_>>(), "each once, in order");
    for (number, attack, shown) in &rows {
        assert!(attack.len() > 10, "{number} has no words");
        let excused = shown.starts_with("open: ") || shown.starts_with("not here: ");
        let tests = quoted(shown);
        assert!(excused || !tests.is_empty(), "{number}: neither shown nor excused: {shown}");
        assert!(shown.len() > 15, "{number}: {shown}");
        for test in tests {
            assert!(is_test(test), "{number}: there is no {test}");
        }
    }
}

/// A test that is named for an attack stands in its row.
#[test]
fn every_test_of_a_threat_is_in_its_row() {
    let rows = threats();
    let mut seen = 0;
    let attacks = fs::read_dir(root().join("tests/e2e/threats")).unwrap().map(|entry| entry.unwrap().path());
    for path in attacks.chain([root().join("tests/e2e/exhaustion.rs")]) {
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        for line in fs::read_to_string(&path).unwrap().lines() {
            let Some(name) = line.strip_prefix("fn t").and_then(|rest| rest.split('(').next()) else { continue };
            let numbers = name.split("_t").filter_map(|part| part.get(..3)?.parse::<usize>().ok());
            for number in numbers {
                seen += 1;
                let shown = &rows[number - 1].2;
                assert!(quoted(shown).contains(&&*format!("{module}::t{name}")), "{number} does not name t{name}");
            }
        }
    }
    assert!(seen >= 100, "only {seen} tests seen");
}

/// A profile is for one compiler, to the letter; with any other the image would be built without it, and nobody would see.
#[test]
fn the_profile_is_for_the_compiler_of_the_image() {
    let compiler = read("tests/bench/pgo/compiler");
    let release = compiler.lines().find_map(|line| line.strip_prefix("release: ")).unwrap();
    let minor = release.rsplit_once('.').unwrap().0;
    let image = format!("docker.io/library/rust:{minor}-");
    assert!(read("Dockerfile").contains(&image), "made with {release}; tests/bench/pgo/train makes it anew");
}
