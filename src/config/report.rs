//! Faults as people read them: file, line, column, the field, what is wrong, the line itself, and a way out.

use std::collections::HashMap;
use std::fmt;
use std::path::Path as FilePath;

use zeroize::Zeroizing;

use super::chunks::Layout;
use super::locate::{self, Body, Extent, Tree};
use super::problem::{Fault, Faults, FileId, On, Place, Step, without_keys};
use super::snippet::{self, Snippet};
use super::source::Sources;

/// A file that was read.
#[derive(Default)]
pub struct Text {
    name: String,
    pub text: Zeroizing<String>,
    pub layout: Option<Layout>,
}

impl Text {
    pub fn new(path: &FilePath, text: Zeroizing<String>) -> Self {
        Self { name: path.display().to_string(), text, layout: None }
    }

    pub fn unreadable(path: &FilePath) -> Self {
        Self::new(path, Zeroizing::default())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Error,
    Warning,
}

/// All that is wrong with a configuration, ready to be printed. Holds nothing secret.
#[derive(Debug)]
pub struct Problems {
    level: Level,
    all: Vec<Problem>,
    dropped: usize,
    sources: Sources,
}

#[derive(Debug)]
struct Problem {
    at: Position,
    field: String,
    says: String,
    hint: Option<String>,
    note: Option<String>,
    snippet: Option<Snippet>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    /// By the order of reading, for sorting.
    file: FileId,
    /// From 1; 0 where it is not known.
    line: usize,
    column: usize,
    name: String,
}

impl Problems {
    pub fn new(level: Level, faults: Faults, texts: &[Text], sources: Sources) -> Self {
        let mut finder = Finder { texts, trees: HashMap::new() };
        let mut all: Vec<Problem> = faults.kept.into_iter().map(|fault| finder.problem(fault)).collect();
        all.sort_by(|a, b| a.at.cmp(&b.at));
        Self { level, all, dropped: faults.dropped, sources }
    }

    pub fn len(&self) -> usize {
        self.all.len() + self.dropped
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each as one line, without the text that it is about: for a log.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.all.iter().map(Problem::line)
    }

    /// Each as an object.
    pub fn as_json(&self) -> serde_json::Value {
        self.all.iter().map(Problem::as_json).collect()
    }

    /// What was read before it was given up: a change of these may mend it.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    pub fn into_sources(self) -> Sources {
        self.sources
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, many) = match self.level {
            Level::Error => ("problem", "problems"),
            Level::Warning => ("warning", "warnings"),
        };
        for problem in &self.all {
            problem.print(self.level, f)?;
            writeln!(f)?;
        }
        write!(f, "{} {}", self.len(), if self.len() == 1 { one } else { many })?;
        if self.dropped > 0 {
            write!(f, ", of which the first {} are shown", self.all.len())?;
        }
        Ok(())
    }
}

impl Problem {
    fn as_json(&self) -> serde_json::Value {
        let known = |number: usize| (number > 0).then_some(number);
        serde_json::json!({
            "file": self.at.name,
            "line": known(self.at.line),
            "column": known(self.at.column),
            "field": self.field,
            "says": self.says,
            "note": self.note,
            "help": self.hint,
        })
    }

    /// `file:line:column: field: sentence; help`.
    fn line(&self) -> String {
        let field = if self.field.is_empty() { String::new() } else { format!("{}: ", self.field) };
        let more = self.note.iter().chain(&self.hint).map(|more| format!("; {more}")).collect::<String>();
        format!("{}: {field}{}{more}", self.at, self.says)
    }

    fn print(&self, level: Level, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if level == Level::Warning {
            write!(f, "warning: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        writeln!(f, "{}", self.says)?;
        if let Some(snippet) = &self.snippet {
            let gutter = self.at.line.to_string().len().max(4);
            writeln!(f, "{:>gutter$} | {}", self.at.line, snippet.line)?;
            let caret = "^".repeat(snippet.length);
            writeln!(f, "{:>gutter$} | {:indent$}{caret}", "", "", indent = snippet.column)?;
        }
        if let Some(note) = &self.note {
            writeln!(f, "note: {note}")?;
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "help: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        Ok(())
    }
}

/// Finds places in texts. Texts are read once for all faults in them.
struct Finder<'t> {
    texts: &'t [Text],
    /// By file and chunk.
    trees: HashMap<(FileId, usize), Option<Tree>>,
}

/// A place that was found.
struct Found<'f> {
    extent: Extent,
    /// Lines before the part of the file that the tree was made of.
    lines_before: usize,
    part: &'f str,
    tree: &'f Tree,
    /// Whether the tree is a list of keys rather than a whole file.
    is_keys: bool,
}

impl Finder<'_> {
    fn problem(&mut self, fault: Fault) -> Problem {
        let note = fault.other.map(|(how, place)| format!("{how} {}", self.line_of(&place)));
        let name = self.name(fault.place.file);
        let mut at = Position { file: fault.place.file, line: 0, column: 0, name };
        let mut snippet = None;
        if let Some((line, column)) = fault.position {
            (at.line, at.column) = (line, column);
            let text = self.texts.get(fault.place.file.0);
            snippet = text.and_then(|text| snippet::of_text(&text.text, line, column));
        } else if let Some(found) = self.find(&fault.place, fault.on) {
            at.line = found.lines_before + found.extent.line;
            at.column = found.extent.column + 1;
            let section = snippet::Section::of(found.tree, fault.place.file, found.is_keys);
            snippet = snippet::of(found.part, found.tree, section, found.extent);
        }
        let field = fault.place.to_string();
        let (says, hint) = (without_keys(fault.wrong.says), fault.wrong.hint.map(without_keys));
        Problem { at, field, says, hint, note, snippet }
    }

    fn name(&self, file: FileId) -> String {
        self.texts.get(file.0).map(|text| without_keys(text.name.clone())).unwrap_or_default()
    }

    /// `wsbouncer.yaml:8`.
    fn line_of(&mut self, place: &Place) -> String {
        let name = self.name(place.file);
        match self.find(place, On::Value) {
            Some(found) => format!("{name}:{}", found.lines_before + found.extent.line),
            None => name,
        }
    }

    fn find(&mut self, place: &Place, on: On) -> Option<Found<'_>> {
        let text = self.texts.get(place.file.0)?;
        let mut steps = place.steps.clone();
        let mut part = (0, 0, text.text.len(), 0);
        if let Some(layout) = &text.layout {
            let at = usize::from(layout.under_keys);
            let Step::Item(index) = steps.get(at)? else { return None };
            let number = layout.chunks.partition_point(|chunk| chunk.first <= *index).checked_sub(1)?;
            let chunk = layout.chunks.get(number)?;
            part = (number, chunk.start, chunk.end, chunk.lines_before);
            let item = Step::Item(index - chunk.first);
            steps.splice(..=at, [item]);
        }
        let (number, start, end, lines_before) = part;
        let part = text.text.get(start..end)?;
        let tree = self.trees.entry((place.file, number)).or_insert_with(|| locate::tree(part)).as_ref()?;
        let is_keys = text.layout.is_some();
        Some(Found { extent: extent(tree, &steps, on), lines_before, part, tree, is_keys })
    }
}

/// Walks down as far as there is something.
fn extent(tree: &Tree, steps: &[Step], on: On) -> Extent {
    let mut found = tree.at;
    let mut at = tree;
    for (index, step) in steps.iter().enumerate() {
        let entry = match (&at.body, step) {
            (Body::Map(map), Step::Field(name)) => map.iter().find(|entry| *entry.name == **name),
            (Body::Map(map), Step::Again(_, nth)) => map.get(*nth),
            (Body::List(list), Step::Item(index)) => {
                let Some(item) = list.get(*index) else { break };
                (found, at) = (item.at, item);
                continue;
            }
            _ => break,
        };
        let Some(entry) = entry else { break };
        let is_last = index + 1 == steps.len();
        let is_empty = matches!(&entry.value.body, Body::Scalar(text) if text.is_empty());
        found = if is_last && (on == On::Name || is_empty) { entry.name_at } else { entry.value.at };
        at = &entry.value;
    }
    found
}
