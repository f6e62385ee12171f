//! Key files as machines write them, in a fraction of the time: a reader for the plain part of YAML in which nothing can
//! mean two things. What it is not sure of it leaves to [`super::yaml`], whole; what it takes it reads as that would.
//!
//! It knows lists and maps by indentation, lists and maps in brackets on one line, words, numbers, dates, and quoted text
//! without escapes, all in printable ASCII. No tabs, anchors, tags, block texts, text over several lines, empty values.

use zeroize::Zeroizing;

use super::yaml::Node;

/// Keys have four levels.
const MAX_DEPTH: usize = 8;
/// libyaml knows no name longer than 1024.
const MAX_NAME: usize = 256;

/// The items of a text that is one plain list. `None`: ask somebody who knows all of YAML.
pub fn list(text: &str) -> Option<Vec<Node>> {
    let bytes = text.as_bytes();
    let is_usual = |(at, byte): (usize, &u8)| match byte {
        b' '..=b'~' | b'\n' => true,
        b'\r' => bytes.get(at + 1) == Some(&b'\n'),
        _ => false,
    };
    if !bytes.iter().enumerate().all(is_usual) {
        return None;
    }
    let mut reader = Reader { text, bytes, at: 0, line: 0, depth: 0 };
    reader.next_line()?;
    let items = reader.items(reader.column())?;
    (reader.is_end() && !items.is_empty()).then_some(items)
}

struct Reader<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    /// Where this line begins.
    line: usize,
    depth: usize,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(b'\n')
    }

    fn column(&self) -> usize {
        self.at - self.line
    }

    fn skip_spaces(&mut self) {
        while self.bytes.get(self.at) == Some(&b' ') {
            self.at += 1;
        }
    }

    fn is_line_end(&self) -> bool {
        matches!(self.peek(), b'\n' | b'\r')
    }

    /// From behind a value to the next line that holds something: between them are only comments.
    fn next_line(&mut self) -> Option<()> {
        loop {
            let before = self.at;
            self.skip_spaces();
            let is_comment = self.peek() == b'#' && (self.at > before || self.column() == 0);
            if !self.is_line_end() && !is_comment {
                // Behind a value nothing else can stand; at the beginning of a line it is what was looked for.
                return (before == self.line).then_some(());
            }
            match self.text[self.at..].find('\n') {
                Some(length) => self.at += length + 1,
                None => self.at = self.bytes.len(),
            }
            self.line = self.at;
            if self.at == self.bytes.len() {
                return Some(());
            }
        }
    }

    fn is_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn is_dash(&self) -> bool {
        self.peek() == b'-' && matches!(self.bytes.get(self.at + 1), Some(b' '))
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.depth += 1;
        let found = (self.depth <= MAX_DEPTH).then(|| read(self)).flatten();
        self.depth -= 1;
        found
    }

    /// All items of a list whose dashes stand in this column.
    fn items(&mut self, column: usize) -> Option<Vec<Node>> {
        let mut items = Vec::new();
        while !self.is_end() && self.column() == column && self.is_dash() {
            self.at += 1;
            self.skip_spaces();
            let item = self.deeper(Self::item)?;
            items.push(item);
        }
        self.has_ended(column).then_some(items)
    }

    /// Whether what comes next stands further left, or at most as far right.
    fn has_ended(&self, column: usize) -> bool {
        self.is_end() || self.column() <= column
    }

    /// What stands behind a dash.
    fn item(&mut self) -> Option<Node> {
        let column = self.column();
        match self.peek() {
            b'[' | b'{' => self.rest_of_line(Self::flow),
            _ => {
                let scalar = self.scalar()?;
                if self.peek() == b':' {
                    return self.map(column, scalar);
                }
                self.next_line()?;
                self.has_ended(column.checked_sub(1)?).then_some(scalar)
            }
        }
    }

    fn rest_of_line(&mut self, read: impl FnOnce(&mut Self) -> Option<Node>) -> Option<Node> {
        let found = read(self)?;
        self.next_line()?;
        Some(found)
    }

    /// A map whose names stand in this column, from behind its first name on.
    fn map(&mut self, column: usize, first: Node) -> Option<Node> {
        let mut entries = Vec::with_capacity(4);
        let mut name = name(first)?;
        loop {
            if self.peek() != b':' || !matches!(self.bytes.get(self.at + 1), Some(b' ' | b'\n' | b'\r')) {
                return None;
            }
            self.at += 1;
            let value = self.deeper(|reader| reader.value(column))?;
            entries.push((name, value));
            if self.is_end() || self.column() < column {
                return Some(Node::Map(entries));
            }
            if self.column() != column {
                return None;
            }
            name = self::name(self.scalar()?)?;
        }
    }

    /// What stands behind a name of a map in this column.
    fn value(&mut self, column: usize) -> Option<Node> {
        self.skip_spaces();
        match self.peek() {
            b'[' | b'{' => self.rest_of_line(Self::flow),
            b'\n' | b'\r' | b'#' => {
                self.next_line()?;
                let inside = self.column();
                if self.is_end() || inside < column {
                    return None;
                }
                if self.is_dash() {
                    return self.items(inside).map(Node::List);
                }
                if inside == column {
                    return None;
                }
                let first = self.scalar()?;
                self.map(inside, first)
            }
            _ => self.rest_of_line(Self::scalar),
        }
    }

    /// A list or a map in brackets, or what stands in one.
    fn flow(&mut self) -> Option<Node> {
        match self.peek() {
            b'[' => self.deeper(Self::flow_list),
            b'{' => self.deeper(Self::flow_map),
            _ => self.scalar(),
        }
    }

    fn flow_list(&mut self) -> Option<Node> {
        let mut items = Vec::new();
        self.at += 1;
        self.skip_spaces();
        if self.peek() == b']' {
            self.at += 1;
            return Some(Node::List(items));
        }
        loop {
            items.push(self.flow()?);
            if self.comma_or(b']')? {
                return Some(Node::List(items));
            }
        }
    }

    fn flow_map(&mut self) -> Option<Node> {
        let mut entries = Vec::with_capacity(4);
        self.at += 1;
        self.skip_spaces();
        loop {
            let is_quoted = matches!(self.peek(), b'"' | b'\'');
            let name = name(self.scalar()?)?;
            let is_colon = self.peek() == b':' && (is_quoted || self.bytes.get(self.at + 1) == Some(&b' '));
            if !is_colon {
                return None;
            }
            self.at += 1;
            self.skip_spaces();
            entries.push((name, self.flow()?));
            if self.comma_or(b'}')? {
                return Some(Node::Map(entries));
            }
        }
    }

    /// Whether the bracket is closed here; otherwise there is a comma, and something behind it.
    fn comma_or(&mut self, close: u8) -> Option<bool> {
        self.skip_spaces();
        let byte = self.peek();
        if byte != close && byte != b',' {
            return None;
        }
        self.at += 1;
        self.skip_spaces();
        Some(byte == close)
    }

    fn scalar(&mut self) -> Option<Node> {
        match self.peek() {
            quote @ (b'"' | b'\'') => self.quoted(quote),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'/' => self.word(),
            _ => None,
        }
    }

    fn quoted(&mut self, quote: u8) -> Option<Node> {
        let start = self.at + 1;
        let is_special = |byte: &u8| matches!(*byte, b'\\' | b'\n' | b'\r') || *byte == quote;
        let end = start + self.bytes[start..].iter().position(is_special)?;
        if self.bytes[end] != quote || (quote == b'\'' && self.bytes.get(end + 1) == Some(&b'\'')) {
            // In single quotes a backslash is one of the letters, but that is not plain any more.
            return None;
        }
        self.at = end + 1;
        Some(text(&self.text[start..end]))
    }

    fn word(&mut self) -> Option<Node> {
        let start = self.at;
        let mut end = start;
        loop {
            match self.peek() {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'/' | b'.' | b'+' | b'=' | b'@' | b'~' | b'-' => {
                    self.at += 1;
                    end = self.at;
                }
                b':' if self.bytes.get(self.at + 1).is_some_and(u8::is_ascii_alphanumeric) => self.at += 1,
                b' ' => self.skip_spaces(),
                _ => break,
            }
        }
        self.at = end;
        meaning(&self.text[start..end])
    }
}

fn text(text: &str) -> Node {
    Node::Text(Zeroizing::new(text.to_owned()))
}

/// A name is text, and short.
fn name(node: Node) -> Option<Box<str>> {
    match node {
        Node::Text(text) if text.len() <= MAX_NAME => Some(text.as_str().into()),
        _ => None,
    }
}

/// What a word without quotes is.
fn meaning(word: &str) -> Option<Node> {
    let rest = word.as_bytes().get(1..)?;
    match word {
        "true" | "True" | "TRUE" => return Some(Node::Bool(true)),
        "false" | "False" | "FALSE" => return Some(Node::Bool(false)),
        "null" | "Null" | "NULL" => return None,
        _ if !word.starts_with(|first: char| first.is_ascii_digit()) => return Some(text(word)),
        _ => {}
    }
    if rest.iter().all(u8::is_ascii_digit) {
        let is_usual = word.len() <= 18 && !(word.starts_with('0') && word.len() > 1);
        return is_usual.then(|| word.parse().ok().map(Node::Integer)).flatten();
    }
    // No number in base ten holds one of these; other bases have a letter of their own.
    let is_text = |byte: &u8| matches!(byte, b':' | b' ' | b'/' | b'@' | b'=' | b'~') || is_letter(*byte);
    let is_date = rest.contains(&b'-') && !rest.iter().any(|byte| matches!(byte, b'e' | b'E'));
    let has_base = word.starts_with("0x")
        || word.starts_with("0o")
        || word.strip_prefix("0b").is_some_and(|bits| bits.bytes().all(|bit| matches!(bit, b'0' | b'1')));
    (!has_base && (is_date || rest.iter().any(is_text))).then(|| text(word))
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() && !matches!(byte, b'e' | b'E')
}

#[cfg(test)]
mod tests {
    use super::super::yaml::parse;
    use super::*;

    /// Whether a text is plain; if so, both readers have to agree.
    fn is_plain(text: &str) -> bool {
        let Some(items) = list(text) else { return false };
        match parse(text) {
            Ok(Node::List(others)) => assert_eq!(items, others, "{text}"),
            Ok(other) => panic!("{text}\nis {other:?}"),
            Err(error) => panic!("{text}\nis not YAML: {error:?}"),
        }
        true
    }

    #[test]
    fn what_machines_write_is_plain() {
        for text in [
            "- id: a\n  secrets:\n    - sha256: \"5b11\"\n",
            "- id: a\n  secrets:\n  - sha256: 5b11618c2e44027877d0cd09\n    valid_until: 2099-10-01T00:00:00Z\n  disabled: true\n",
            "- id: a\r\n  secret: 'b c'\r\n\r\n# more\r\n- id: b\r\n  secret: c d # e",
            "  - { id: a, secrets: [{ sha256: \"5b\" }, { env: A_B }], routes: [chat, a/b*] }\n"
                .replace('*', "")
                .as_str(),
            "- {\"id\":\"a\",\"secrets\":[{\"sha256\":\"5b\"}],\"max_connections\":10}\n",
            "-   secret: x\n    attributes:\n        tenant: Acme Corp\n        'plan': \"3\"\n    id: a\n    routes: []\n",
            "- id: 2027-01-01\n  expires_at: '2027-01-01'\n  not_before: 2027-01-01\n",
        ] {
            assert!(is_plain(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_is_left_to_others() {
        for text in [
            "",
            "[]",
            "a: b",
            "-",
            "- ",
            "- a:",
            "- a:\n  b: c",
            "- a: b\n   c",
            "- a\n  b",
            "- &a b",
            "- *a",
            "- !a b",
            "- |\n  a",
            "- a: b: c",
            "- a: 'b\n  c'",
            "- \"\\x41\"",
            "- 'a''b'",
            "- \ta",
            "- \u{fc}",
            "- ~",
            "- null",
            "- a: null",
            "- -1",
            "- 0x10",
            "- 0123",
            "- 1.5",
            "- 1e5",
            "- .5",
            "- 12e3",
            "- 1_0",
            "- 0b1",
            "- [a",
            "- [a,]",
            "- {a: b,}",
            "- {a:b}",
            "- {a}",
            "- [a: b]",
            "- {a: }",
            "- 1: a",
            "- true: a",
            "- a\n---\n- b",
            "- a #b\nc: d",
            "- a: b\n- c: d\n e: f",
            "- - a",
            "- a: \"b\"c",
            "- \"a\"#b",
            "- a\u{7}",
            "- a\r- b",
            "- ? a",
            "- <<: a",
            "- [[[[[[[[[a]]]]]]]]]",
        ] {
            assert!(!is_plain(text), "{text:?}");
        }
    }

    /// Words, marks and indentation in any order: what is taken is taken as YAML takes it.
    #[test]
    fn both_readers_agree_on_what_is_plain() {
        const PIECES: &[&str] = &[
            "- ",
            "- ",
            "- ",
            "- ",
            "a: ",
            "b: ",
            "a:",
            ":",
            ": ",
            "\n",
            "\n",
            "\n  ",
            "\n  ",
            "\n    ",
            "\n   ",
            "\n- ",
            "\n  - ",
            " ",
            " ",
            "id: ",
            "\"q\"",
            "'q'",
            "\"q\": ",
            "\"",
            "'",
            "[",
            "]",
            "{",
            "}",
            "[x, y]",
            "{ k: v }",
            "{\"k\":1}",
            ", ",
            ",",
            "#",
            " # c",
            "\n# c\n",
            "w",
            "two words",
            "true",
            "null",
            "~",
            "1",
            "007",
            "1e5",
            "5e",
            "0x1f",
            "2027-01-01",
            "12:30",
            "1-e",
            "1.5",
            "1 2",
            "-",
            "--",
            "---",
            "...",
            "=",
            "@x",
            "/x",
            ".x",
            "\r\n",
            "\r",
            "\t",
            "&a ",
            "*a",
            "!t ",
            "|\n",
            ">",
            "%",
            "?",
            "? ",
        ];
        let mut state = 7_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        let mut plain = 0;
        for _ in 0..200_000 {
            let mut text = String::from(["- ", "  - ", "- a: ", "- {"][random(4)]);
            for _ in 0..=random(9) {
                text.push_str(PIECES[random(PIECES.len())]);
            }
            plain += usize::from(is_plain(&text));
        }
        assert!(plain > 5_000, "only {plain} were plain");
    }

    /// Nothing is read into a text that is broken in one place.
    #[test]
    fn both_readers_agree_on_slips() {
        let text = "- id: a-1\n  secrets:\n  - sha256: \"5b1e\"\n    valid_until: 2099-10-01\n  routes: [r, s]\n- { id: b, secret: 'c d', disabled: true }\n- {\"id\":\"c\",\"max_connections\":10}\n";
        let mut plain = 0;
        for at in 0..=text.len() {
            for slip in [
                "", " ", "  ", "\n", "\t", ":", ": ", "-", "- ", "\"", "'", "[", "}", "#", " #", ",", "&", "*", "!",
                "|", "x", "1", "e", "\\",
            ] {
                let rest = if slip.is_empty() { text.get(at + 1..).unwrap_or_default() } else { &text[at..] };
                plain += usize::from(is_plain(&format!("{}{slip}{rest}", &text[..at])));
            }
        }
        assert!(plain > 500, "only {plain} were plain");
    }
}
