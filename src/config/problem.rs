//! Faults as they are found: where, what is wrong, what would be right. [`super::report`] prints them.

/// One of the files of a configuration, by the order in which they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub usize);

/// Where in a file's tree. A list on the stack, so that a path costs nothing until something is wrong with it.
#[derive(Clone, Copy)]
pub enum Path<'p> {
    /// The whole file. `list` says that the file itself is the list `keys`, as key files may be.
    Root {
        file: FileId,
        list: bool,
    },
    Field(&'p Self, &'p str),
    /// The n-th entry of a map, for names that stand twice.
    Again(&'p Self, &'p str, usize),
    Item(&'p Self, usize),
}

impl<'p> Path<'p> {
    pub fn root(file: FileId) -> Self {
        Self::Root { file, list: false }
    }

    pub fn field(&'p self, name: &'p str) -> Self {
        Self::Field(self, name)
    }

    pub fn again(&'p self, name: &'p str, nth: usize) -> Self {
        Self::Again(self, name, nth)
    }

    pub fn item(&'p self, index: usize) -> Self {
        Self::Item(self, index)
    }

    /// The file, and whether the file itself is the list.
    pub fn origin(&self) -> (FileId, bool) {
        match self {
            Self::Root { file, list } => (*file, *list),
            Self::Field(up, _) | Self::Again(up, _, _) | Self::Item(up, _) => up.origin(),
        }
    }

    pub fn place(&self) -> Place {
        let mut steps = Vec::new();
        let mut at = self;
        loop {
            at = match at {
                Self::Root { file, list } => {
                    steps.reverse();
                    return Place { file: *file, list: *list, steps };
                }
                Self::Field(up, name) => {
                    steps.push(Step::Field((*name).into()));
                    up
                }
                Self::Again(up, name, nth) => {
                    steps.push(Step::Again((*name).into(), *nth));
                    up
                }
                Self::Item(up, index) => {
                    steps.push(Step::Item(*index));
                    up
                }
            }
        }
    }
}

/// A [`Path`] that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    pub file: FileId,
    pub list: bool,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    Field(Box<str>),
    Again(Box<str>, usize),
    Item(usize),
}

impl std::fmt::Display for Place {
    /// `routes[2].upstream`; empty for the whole file.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut between = "";
        if self.list && !self.steps.is_empty() {
            f.write_str("keys")?;
        }
        for step in &self.steps {
            match step {
                Step::Field(name) | Step::Again(name, _) => {
                    write!(f, "{between}{}", if is_name(name) { name } else { HIDDEN })?;
                }
                Step::Item(index) => write!(f, "[{index}]")?,
            }
            between = ".";
        }
        Ok(())
    }
}

/// Whether this looks like the name of something. What stands on the left of a colon may also be a value whose own colon
/// is missing, and that may be a secret.
pub fn is_name(text: &str) -> bool {
    text.len() <= 64
        && !holds_key(text)
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether a key as `wsbouncer key new` makes them stands somewhere in a text, whole or nearly so.
pub fn holds_key(text: &str) -> bool {
    key_in(text).is_some()
}

fn key_in(text: &str) -> Option<std::ops::Range<usize>> {
    text.match_indices("wsb_").find_map(|(at, prefix)| {
        let start = at + prefix.len();
        let random = text[start..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        (random >= 30).then_some(at..start + random)
    })
}

/// Takes out what looks like a key, whatever it was thought to be.
pub fn without_keys(mut text: String) -> String {
    while let Some(range) = key_in(&text) {
        text.replace_range(range, HIDDEN);
    }
    text
}

/// Stands for a name that is not shown.
pub const HIDDEN: &str = "(hidden)";

/// Which part of an entry a fault is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Name,
    Value,
}

/// What a value parser says about a value that it does not take. Never the value itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub says: String,
    pub hint: Option<String>,
}

impl Wrong {
    pub fn new(says: impl Into<String>) -> Self {
        Self { says: says.into(), hint: None }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// One fault, or one warning.
#[derive(Debug)]
pub struct Fault {
    pub place: Place,
    pub on: On,
    pub wrong: Wrong,
    /// A second place that belongs to it, and how: "the other route is at", "the first one is at".
    pub other: Option<(&'static str, Place)>,
    /// Where the parser stopped, when there is no tree to look in.
    pub position: Option<(usize, usize)>,
}

/// A file of a million wrong keys is one mistake, not a million: no more than this many are kept.
const MAX_KEPT: usize = 100;

/// Faults in the order in which they were found.
#[derive(Debug, Default)]
pub struct Faults {
    pub kept: Vec<Fault>,
    /// How many more there were.
    pub dropped: usize,
}

impl Faults {
    pub fn len(&self) -> usize {
        self.kept.len() + self.dropped
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// A fault of a value.
    pub fn value(&mut self, path: &Path<'_>, wrong: Wrong) {
        self.add(|| Fault { place: path.place(), on: On::Value, wrong, other: None, position: None });
    }

    /// A fault of a value, by a place that was kept.
    pub fn place(&mut self, place: Place, wrong: Wrong) {
        self.add(|| Fault { place, on: On::Value, wrong, other: None, position: None });
    }

    /// A fault of the name on the left of the colon.
    pub fn name(&mut self, path: &Path<'_>, wrong: Wrong) {
        self.add(|| Fault { place: path.place(), on: On::Name, wrong, other: None, position: None });
    }

    /// A fault of a value that has to do with another place.
    pub fn between(&mut self, path: &Path<'_>, wrong: Wrong, how: &'static str, other: Place) {
        let other = Some((how, other));
        self.add(|| Fault { place: path.place(), on: On::Value, wrong, other, position: None });
    }

    /// A file that is no tree.
    pub fn at(&mut self, file: FileId, line: usize, column: usize, wrong: Wrong) {
        let place = Path::root(file).place();
        self.add(|| Fault { place, on: On::Value, wrong, other: None, position: Some((line, column)) });
    }

    fn add(&mut self, fault: impl FnOnce() -> Fault) {
        if self.kept.len() < MAX_KEPT {
            self.kept.push(fault());
        } else {
            self.dropped += 1;
        }
    }
}

/// The known word that was probably meant.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    // Half of a word may not be wrong; a name of hundreds of characters is no typo.
    let allowed = word.chars().count().min(24).div_ceil(3);
    let distances =
        known.into_iter().map(|known| (distance(&word, &known.to_ascii_lowercase().replace('-', "_")), known));
    let (found, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (found <= allowed && found < known.len()).then_some(known)
}

/// How many letters to add, remove, replace or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, to) in b.iter().enumerate() {
            row[j + 1] = (last[j] + usize::from(from != to)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_if_it_is_near() {
        let known = ["upstream", "upstreams", "host", "path", "auth"];
        assert_eq!(nearest("upstraem", known), Some("upstream"));
        assert_eq!(nearest("Host", known), Some("host"));
        assert_eq!(nearest("pahts", known), Some("path"));
        assert_eq!(nearest("on_failure", known), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("chta", ["chat"]), Some("chat"));
    }

    #[test]
    fn keys_are_no_names() {
        let random = "0123456789ABCDEFGHIJKLMNOPQRST1FQk5l";
        for text in [format!("wsb_{random}"), format!("x-wsb_{random}.y"), format!("wsb_wsb_{random}")] {
            assert!(holds_key(&text) && !is_name(&text) && !without_keys(text).contains(random));
        }
        for text in [random.to_owned(), format!("WSB_{random}"), "wsb_laptop".into(), format!("wsb_{random:.20}")] {
            assert!(!holds_key(&text) && is_name(&text), "{text}");
        }
    }

    #[test]
    fn paths_read_as_people_write_them() {
        let root = Path::root(FileId(0));
        let (routes, name) = (root.field("routes"), "upstream");
        let item = routes.item(2);
        assert_eq!(item.field(name).place().to_string(), "routes[2].upstream");
        let list = Path::Root { file: FileId(1), list: true };
        assert_eq!(list.item(3).field("id").place().to_string(), "keys[3].id");
    }
}
