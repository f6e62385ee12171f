//! Text to tree. The only file that names the YAML crate.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

/// A YAML value. Maps keep the order of the file, and names that stand twice, so that both can be reported.
#[cfg_attr(test, derive(Debug, PartialEq))]
pub enum Node {
    Null,
    Bool(bool),
    Integer(i128),
    /// No field wants one, so its value is not kept.
    Fraction,
    Text(Zeroizing<String>),
    List(Vec<Self>),
    Map(Vec<(Box<str>, Self)>),
}

impl Node {
    /// "a list", "a number": for "must be ..., not ...".
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) => "a number",
            Self::Fraction => "a fraction",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Why a text is not YAML that this program takes. Lines and columns count from 1; 0 where they are not known.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub line: usize,
    pub column: usize,
    pub says: String,
    pub hint: Option<&'static str>,
    /// The line where what is wrong here may have begun, and what to say of it.
    pub begins: Option<(&'static str, usize)>,
}

/// Deeper than anything this file means; a bound for our own recursion.
const MAX_DEPTH: usize = 64;
/// libyaml takes time in the square of the depth of `[[[[`: such texts never reach it.
const MAX_OPEN_BRACKETS: usize = 1000;

/// Parses one document.
///
/// # Errors
/// The first thing that cannot be read. What the text holds is never part of the message.
pub fn parse(text: &str) -> Result<Node, Unreadable> {
    if let Some(line) = line_of_deep_brackets(text) {
        return Err(Unreadable { line, column: 1, says: TOO_DEEP.into(), hint: None, begins: None });
    }
    // Every node takes a byte of text; only aliases can make more nodes than that.
    let seed = Seed { depth: 0, budget: &Cell::new(text.len() + 1) };
    let deserializer = serde_yaml::Deserializer::from_str(text);
    seed.deserialize(deserializer).map_err(|error| unreadable(&error, text))
}

const TOO_DEEP: &str = "lists and maps are nested too deeply (more than 64 levels)";
const TOO_MANY: &str = "aliases make this file larger than it is";
const TAGGED: &str = "YAML tags (!name) have no meaning here";
const NAME_IS_NO_TEXT: &str = "a name on the left of a colon must be plain text";

/// Counts brackets as if there were no quotes: a bound, not a parse.
fn line_of_deep_brackets(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let deep = text.bytes().position(|byte| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_OPEN_BRACKETS
    })?;
    Some(1 + text.as_bytes()[..deep].iter().filter(|byte| **byte == b'\n').count())
}

fn unreadable(error: &serde_yaml::Error, text: &str) -> Unreadable {
    let raw = error.to_string();
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let found = |says: &str, hint| Unreadable { line, column, says: says.into(), hint, begins: None };
    if let Some(own) = [TOO_DEEP, TOO_MANY, TAGGED, NAME_IS_NO_TEXT].iter().find(|own| raw.contains(**own)) {
        let hint = (*own == NAME_IS_NO_TEXT).then_some("put it in quotes");
        return found(own, hint);
    }
    if raw.contains("recursion limit") {
        return found(TOO_DEEP, None);
    }
    if raw.contains("more than one document") {
        let line = text.lines().enumerate().filter(|(_, line)| line.starts_with("---")).last();
        let line = line.map_or(0, |(index, _)| index + 1);
        let says = "a second YAML document begins here; the file must be one document".into();
        return Unreadable { line, column: 1, says, hint: Some("remove the --- line"), begins: None };
    }
    if raw.contains("control characters") {
        return control_character(text);
    }
    let start = text.split('\n').nth(line.saturating_sub(1)).unwrap_or_default();
    let before: String = start.chars().take(column.saturating_sub(1)).collect();
    // Not at the beginning of a line: then the line says too much, not too far to the right.
    if raw.contains("did not find expected key") && !before.trim().is_empty() {
        let begins =
            opens_before(text, line, &before).map(|line| ("the quote that ends here may have opened in", line));
        return Unreadable { begins, ..found(INSIDE.0, Some(INSIDE.1)) };
    }
    let unclosed = raw.contains("end of stream") || raw.contains("document indicator");
    if let Some((line, column)) = context(&raw, "scanning a quoted scalar").filter(|_| unclosed) {
        return Unreadable { line, column, says: "the quote that opens here is not closed".into(), ..found("", None) };
    }
    let begins = [
        ("parsing a block mapping", "the fields beside it begin in"),
        ("parsing a block collection", "the list begins in"),
        ("parsing a flow mapping", "the { stands in"),
        ("parsing a flow sequence", "the [ stands in"),
    ];
    let begins = begins.iter().find_map(|(what, how)| Some((*how, context(&raw, what)?.0)));
    let known = SYNTAX.iter().find(|(part, _, _)| raw.contains(part));
    let found = known.map_or_else(|| found("this is not valid YAML", None), |(_, says, hint)| found(says, *hint));
    Unreadable { begins, ..found }
}

const INSIDE: (&str, &str) = (
    "nothing can follow here: a quote closed before, or a comma is missing",
    "write a quote inside of single quotes twice (''), and one inside of double quotes as \\\"",
);

/// What libyaml was at when it gave up, and where that began.
fn context(raw: &str, what: &str) -> Option<(usize, usize)> {
    let (_, at) = raw.split_once(what)?.1.split_once("at line ")?;
    let (line, column) = at.split_once(" column ")?;
    let digits = column.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(column.len());
    Some((line.parse().ok()?, column[..digits].parse().ok()?))
}

/// The line before this one where the quote opens that ends here: the last one with an odd number of them.
fn opens_before(text: &str, line: usize, before: &str) -> Option<usize> {
    let quote = before.trim_end().chars().last().filter(|letter| matches!(letter, '"' | '\''))?;
    let lines: Vec<&str> = text.split('\n').take(line.checked_sub(1)?).collect();
    lines.iter().rposition(|line| line.matches(quote).count() % 2 == 1).map(|index| index + 1)
}

/// libyaml does not say where.
fn control_character(text: &str) -> Unreadable {
    let is_bad = |letter: char| letter.is_control() && !matches!(letter, '\t' | '\n' | '\r' | '\u{85}');
    let before = text.split(is_bad).next().unwrap_or_default();
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
    Unreadable { line, column, says: "a control character stands here".into(), hint: None, begins: None }
}

/// What libyaml says, and what a person can do about it. The first that is contained counts.
const SYNTAX: &[(&str, &str, Option<&str>)] = &[
    (
        "cannot start any token",
        "a tab or special character stands where a value should begin",
        Some("indent with spaces; put values that begin with @, ` or % in quotes"),
    ),
    (
        "mapping values are not allowed",
        "there is a second colon here, or the indentation is wrong",
        Some("put a value that holds \": \" in quotes, and indent fields of one map alike"),
    ),
    ("could not find expected ':'", "a field name without a colon after it", Some("write name: value")),
    (
        "did not find expected key",
        "the indentation is wrong here, or a quote or comma is missing before",
        Some("indent fields of one map, and items of one list, alike"),
    ),
    ("did not find expected '-' indicator", "the indentation is wrong here: a list item must begin with \"- \"", None),
    ("did not find expected ',' or ']'", "a list that began with [ is not closed, or a comma is missing", None),
    ("did not find expected ',' or '}'", "a map that began with { is not closed, or a comma is missing", None),
    ("found unexpected end of stream", "a quote is not closed", None),
    ("found unexpected document indicator", "a quote is not closed", None),
    (
        "unknown escape",
        "a backslash in double quotes begins an escape that YAML does not know",
        Some("use single quotes, or write \\\\"),
    ),
    (
        "found unknown anchor",
        "YAML aliases (*name) are not supported",
        Some("put a value that begins with * in quotes"),
    ),
    ("unknown anchor", "YAML aliases (*name) are not supported", Some("put a value that begins with * in quotes")),
    (
        "while scanning an alias",
        "YAML aliases (*name) are not supported",
        Some("put a value that begins with * in quotes"),
    ),
    (
        "while scanning an anchor",
        "YAML anchors (&name) are not supported",
        Some("put a value that begins with & in quotes"),
    ),
    ("block sequence entries are not allowed", "a list item cannot begin here", Some("begin it on a line of its own")),
    ("block mapping", "the indentation is wrong here", None),
    ("repetition limit", TOO_MANY, None),
];

#[derive(Clone, Copy)]
struct Seed<'b> {
    depth: usize,
    budget: &'b Cell<usize>,
}

impl Seed<'_> {
    fn spend<E: serde::de::Error>(self) -> Result<(), E> {
        let left = self.budget.get().checked_sub(1).ok_or_else(|| E::custom(TOO_MANY))?;
        self.budget.set(left);
        Ok(())
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(TOO_DEEP));
        }
        Ok(Self { depth: self.depth + 1, budget: self.budget })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.spend()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    /// An empty file.
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Ok(i128::try_from(value).map_or(Node::Fraction, Node::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Fraction)
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(Zeroizing::new(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(Zeroizing::new(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        let below = self.deeper()?;
        while let Some(item) = items.next_element_seed(below)? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        let below = self.deeper()?;
        while let Some(name) = entries.next_key_seed(Name)? {
            map.push((name, entries.next_value_seed(below)?));
        }
        Ok(Node::Map(map))
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(A::Error::custom(TAGGED))
    }
}

/// The left side of a colon. Text that YAML would read as a number or as `true` is refused rather than guessed at.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Box<str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Box<str>, D::Error> {
        match deserializer.deserialize_any(Seed { depth: MAX_DEPTH, budget: &Cell::new(1) }) {
            Ok(Node::Text(text)) => Ok(text.as_str().into()),
            _ => Err(D::Error::custom(NAME_IS_NO_TEXT)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> String {
        parse(text).err().map_or_else(String::new, |error| error.says)
    }

    #[test]
    fn names_that_stand_twice_are_both_kept() {
        let Ok(Node::Map(map)) = parse("a: 1\nb: x\na: 2\n") else { panic!("no map") };
        let names: Vec<&str> = map.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["a", "b", "a"]);
    }

    #[test]
    fn what_could_hurt_is_refused() {
        assert_eq!(says(&"[".repeat(100_000)), TOO_DEEP);
        assert_eq!(says(&"- ".repeat(100_000)), TOO_DEEP);
        assert_eq!(says(&format!("{}1", "a: {".repeat(70))), TOO_DEEP);
        assert_eq!(says("a: {b: 1"), SYNTAX[6].1);
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n";
        assert_eq!(says(bomb), TOO_MANY);
        assert_eq!(says("a: !foo bar"), TAGGED);
        assert_eq!(says("1: a"), NAME_IS_NO_TEXT);
        assert_eq!(says("true: a"), NAME_IS_NO_TEXT);
        assert_eq!(says("[a]: a"), NAME_IS_NO_TEXT);
        assert!(says("a: 1\n---\nb: 2\n").contains("second YAML document"));
    }

    #[test]
    fn messages_never_hold_the_text() {
        for text in ["canary: canary: x", "- canary\ncanary", "\"canary", "[canary", "*canary", "a: @canary", "{canary"]
        {
            let error = parse(text).err().map(|error| format!("{error:?}"));
            assert!(error.is_some_and(|error| !error.contains("canary")), "{text}");
        }
    }
}
