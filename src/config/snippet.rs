//! The line of a fault, with everything hidden that could be a secret. What is shown is on a list (the table of fields);
//! when a line holds anything that is not understood, none of it is.

use super::fields::may_be_shown;
use super::locate::{Body, Extent, Tree};
use super::problem::{FileId, holds_key, is_name};
use super::schema::{self, Below, Shown};

/// A line that may be shown, and what in it is meant.
#[derive(Debug, PartialEq, Eq)]
pub struct Snippet {
    pub line: String,
    /// From 0, in characters.
    pub column: usize,
    pub length: usize,
}

/// What is known of a node: what stands below it, and whether its text may be shown.
#[derive(Clone, Copy)]
pub struct Section {
    below: &'static Below,
    shown: Shown,
}

static FILE: Below = Below::Section(&schema::FILE);
static KEY_FILE: Below = Below::Section(&schema::KEY_FILE);
static KEYS: Below = Below::Section(&schema::KEY);
const NOTHING: Section = Section { below: &Below::Value, shown: Shown::No };

impl Section {
    /// What the root of a text is.
    pub fn of(tree: &Tree, file: FileId, is_keys: bool) -> Self {
        let below = if file == FileId(0) {
            &FILE
        } else if is_keys || matches!(tree.body, Body::List(_)) {
            &KEYS
        } else {
            &KEY_FILE
        };
        Self { below, shown: Shown::No }
    }
}

/// Longer lines say little, and are seldom written by people.
const MAX_LINE: usize = 200;
const HIDDEN: &str = "***";

/// The line on which `extent` begins.
pub fn of(text: &str, tree: &Tree, section: Section, extent: Extent) -> Option<Snippet> {
    let line: Vec<char> = text.split('\n').nth(extent.line.checked_sub(1)?)?.trim_end().chars().collect();
    if line.len() > MAX_LINE || line.iter().any(|letter| letter.is_control()) {
        return None;
    }
    let mut marks = Vec::new();
    if !collect(tree, section, extent.line, &mut marks) {
        return None;
    }
    marks.sort_by_key(|mark| mark.start);
    let end = if extent.end_line == extent.line { extent.end_column } else { extent.column + 1 };
    masked(&line, &marks, (extent.column, end.max(extent.column + 1)))
}

/// A scalar on the line.
#[derive(Debug, Clone, Copy)]
struct Mark {
    start: usize,
    end: usize,
    shown: bool,
}

/// Collects all scalars of a line. False if one of them is not on this line alone.
fn collect(tree: &Tree, section: Section, line: usize, marks: &mut Vec<Mark>) -> bool {
    if tree.at.line > line || tree.at.end_line < line {
        return true;
    }
    match &tree.body {
        Body::Scalar(text) => add(tree.at, is_shown(text, section.shown), line, marks),
        Body::List(list) => list.iter().all(|item| collect(item, section, line, marks)),
        Body::Map(map) => map.iter().all(|entry| {
            let (name_shown, below) = entry_of(&entry.name, section);
            add(entry.name_at, name_shown, line, marks) && collect(&entry.value, below, line, marks)
        }),
    }
}

fn add(at: Extent, shown: bool, line: usize, marks: &mut Vec<Mark>) -> bool {
    if at.line > line || at.end_line < line {
        return true;
    }
    marks.push(Mark { start: at.column, end: at.end_column, shown });
    at.line == at.end_line
}

/// Whether the name of an entry may be shown, and what stands below it.
fn entry_of(name: &str, above: Section) -> (bool, Section) {
    match above.below {
        Below::Value => (false, NOTHING),
        Below::Texts { names_shown } => (*names_shown && is_name(name), NOTHING),
        Below::Named(below) => (is_name(name), Section { below, shown: above.shown }),
        Below::Section(section) | Below::EachWay(section) => {
            match section.fields.iter().find(|field| field.name == name) {
                Some(field) => (true, Section { below: &field.below, shown: field.shown }),
                None => (may_be_shown(name, section), NOTHING),
            }
        }
    }
}

fn is_shown(text: &str, shown: Shown) -> bool {
    match shown {
        _ if holds_key(text) => false,
        // A URL may hold a password, or a token behind its question mark.
        Shown::Yes => text.chars().count() <= 100 && !text.contains(['@', '?']),
        Shown::IfName => is_name(text),
        Shown::IfNumber => {
            let usual = |byte: u8| byte.is_ascii_digit() || b"-:.+TZ ".contains(&byte);
            text.len() <= 32 && (text.bytes().all(usual) || matches!(text, "true" | "false"))
        }
        Shown::No => false,
    }
}

/// Puts the line together again.
fn masked(line: &[char], marks: &[Mark], (start, end): (usize, usize)) -> Option<Snippet> {
    let mut shown = String::new();
    let (mut column, mut length) = (None, 0);
    let mut width = 0;
    let mut at = 0;
    let mut marks = marks.iter().peekable();
    while at < line.len() {
        let mark = marks.next_if(|mark| mark.start <= at);
        let (next, piece) = match mark {
            // A scalar without text, such as a value that is left out.
            Some(mark) if mark.end <= at => continue,
            Some(mark) if mark.shown => (mark.end, line.get(at..mark.end)?.iter().collect()),
            Some(mark) => (mark.end.min(line.len()), HIDDEN.to_owned()),
            // A comment may tell anything.
            None if line[at] == '#' => break,
            None if is_structure(line[at]) => (at + 1, line[at].to_string()),
            None => return None,
        };
        let wide = piece.chars().count();
        if start < next && at < end {
            // The caret covers a hidden piece whole, and of a shown one what is meant.
            let whole = mark.is_none_or(|mark| !mark.shown);
            let from = if whole { width } else { width + start.saturating_sub(at) };
            let to = if whole { width + wide } else { width + end.min(next) - at };
            column = column.or(Some(from));
            length = to - column.unwrap_or(from);
        }
        shown.push_str(&piece);
        width += wide;
        at = next;
    }
    Some(Snippet { line: shown.trim_end().to_owned(), column: column?, length })
}

/// What holds scalars together, and can be no part of a secret.
fn is_structure(letter: char) -> bool {
    letter == ' ' || "[]{},:-\"'".contains(letter)
}

/// A line of a text that is no tree: its indentation, its dashes, and its first name if that is one of a field. Columns
/// count from 1.
pub fn of_text(text: &str, line: usize, column: usize) -> Option<Snippet> {
    let line = text.split('\n').nth(line.checked_sub(1)?)?.trim_end_matches([' ', '\r']);
    let column = column.checked_sub(1)?;
    let structure = structure_of(line);
    let (shown, rest) = line.split_at(structure);
    // A tab is as wide as a terminal likes.
    let width = |text: &str| text.chars().map(|letter| if letter == '\t' { TAB.len() } else { 1 }).sum::<usize>();
    let known = shown.chars().count();
    let (column, length) = if column < known {
        let before: String = shown.chars().take(column).collect();
        (width(&before), 1)
    } else {
        (width(shown), if rest.is_empty() { 1 } else { HIDDEN.len() })
    };
    let shown = shown.replace('\t', TAB);
    let rest = if rest.is_empty() { "" } else { HIDDEN };
    (shown.len() <= MAX_LINE).then(|| Snippet { line: format!("{shown}{rest}"), column, length })
}

const TAB: &str = "\\t";

/// How much of a line, in bytes, is nothing but structure.
fn structure_of(line: &str) -> usize {
    let blank = |text: &str| text.len() - text.trim_start_matches([' ', '\t']).len();
    let mut at = blank(line);
    while line[at..].starts_with("- ") {
        at += 1 + blank(&line[at + 1..]);
    }
    let Some((name, rest)) = line[at..].split_once(':') else { return at };
    if !(rest.is_empty() || rest.starts_with(' ')) || !(is_field(name, &FILE) || is_field(name, &KEY_FILE)) {
        return at;
    }
    at + name.len() + 1 + blank(rest)
}

/// Whether some map of the file has a field of this name.
fn is_field(name: &str, below: &Below) -> bool {
    match below {
        Below::Section(section) | Below::EachWay(section) => {
            section.fields.iter().any(|field| field.name == name || is_field(name, &field.below))
        }
        Below::Named(below) => is_field(name, below),
        Below::Texts { .. } | Below::Value => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_text_only_its_structure_is_shown() {
        for (line, column, expected) in [
            ("  - secret: \"abc", 13, ("  - secret: ***", 12, 3)),
            ("  - secret: \"abc", 3, ("  - secret: ***", 2, 1)),
            ("\t- id: a", 1, ("\\t- id: ***", 0, 1)),
            ("\t- id: a", 2, ("\\t- id: ***", 2, 1)),
            ("abc: 1", 4, ("***", 0, 3)),
            ("keys:", 6, ("keys:", 5, 1)),
            ("id:abc", 1, ("***", 0, 3)),
            ("", 1, ("", 0, 1)),
        ] {
            let (line_shown, column_shown, length) = expected;
            let expected = Snippet { line: line_shown.into(), column: column_shown, length };
            assert_eq!(of_text(line, 1, column), Some(expected), "{line}");
        }
        assert_eq!(of_text("a", 2, 1), None);
        assert_eq!(of_text("a", 1, 0), None);
    }
}
