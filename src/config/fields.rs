//! Reading the fields of one map: what is there, what is not, and what should not be. All faults, not only the first.

use std::time::Duration;

use super::problem::{Faults, HIDDEN, Path, Wrong, is_name, nearest};
use super::schema::{Below, Field, Section};
use super::value;
use super::yaml::Node;

/// A map of the file, together with its section of the table and its place.
pub struct Fields<'n, 'p> {
    map: &'n [(Box<str>, Node)],
    section: &'static Section,
    pub at: &'p Path<'p>,
    /// Whether all names in it are known: otherwise a missing field is probably the misspelt one.
    clean: bool,
}

impl<'n, 'p> Fields<'n, 'p> {
    /// Takes a node as a map with this section's fields.
    pub fn open(node: &'n Node, section: &'static Section, at: &'p Path<'p>, faults: &mut Faults) -> Option<Self> {
        let Node::Map(map) = node else {
            faults.value(at, mismatch("a map", node).hint(examples(section)));
            return None;
        };
        let found = faults.len();
        for (index, (name, value)) in map.iter().enumerate() {
            let again = map[..index].iter().any(|(earlier, _)| earlier == name);
            if !section.fields.iter().any(|field| *field.name == **name) {
                unknown(name, index, again, section, at, faults);
            } else if again {
                let path = at.again(name, index);
                faults.name(&path, Wrong::new("this field stands twice in one map").hint("keep one of them"));
            } else if matches!(value, Node::Null) && !section.may_be_empty.contains(&&**name) {
                let says = "this field has no value";
                faults.value(&at.field(name), Wrong::new(says).hint("give it one, or leave the field out"));
            }
        }
        Some(Self { map, section, at, clean: found == faults.len() })
    }

    /// A map that is not there: all its fields have their defaults.
    pub fn empty(section: &'static Section, at: &'p Path<'p>) -> Self {
        Self { map: &[], section, at, clean: true }
    }

    fn field(&self, name: &'static str) -> &'static Field {
        let found = self.section.fields.iter().find(|field| field.name == name);
        found.expect("the decoder asks only for fields of the table")
    }

    /// The value of a field, if it is there.
    pub fn get(&self, name: &'static str) -> Option<&'n Node> {
        let known = self.field(name).name;
        let found = self.map.iter().find(|(other, _)| **other == *known).map(|(_, node)| node);
        found.filter(|node| !matches!(node, Node::Null))
    }

    /// Whether the field stands there, even without a value.
    pub fn has(&self, name: &str) -> bool {
        self.map.iter().any(|(other, _)| **other == *name)
    }

    /// A field that must be there.
    pub fn required(&self, name: &'static str, says: &str, faults: &mut Faults) -> Option<&'n Node> {
        if self.clean && !self.has(name) {
            faults.value(self.at, Wrong::new(format!("{name} is missing")).hint(says));
        }
        self.get(name)
    }

    /// A text, read by a parser of [`value`].
    pub fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Wrong>,
        faults: &mut Faults,
    ) -> Option<T> {
        let node = self.get(name)?;
        let path = self.at.field(name);
        parsed(node, &path, parse, faults)
    }

    /// A text with a default, which the same parser reads.
    pub fn parsed_or_default<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Wrong>,
        faults: &mut Faults,
    ) -> T {
        let found = self.parsed(name, &parse, faults);
        found.unwrap_or_else(|| parse(self.field(name).default).expect("defaults of the table can be read"))
    }

    pub fn duration(&self, name: &'static str, faults: &mut Faults) -> Duration {
        self.parsed_or_default(name, value::duration, faults)
    }

    pub fn some_duration(&self, name: &'static str, faults: &mut Faults) -> Duration {
        self.parsed_or_default(name, value::some_duration, faults)
    }

    pub fn duration_or_off(&self, name: &'static str, faults: &mut Faults) -> Option<Duration> {
        match self.get(name) {
            Some(Node::Bool(_)) => {
                let says = "this must be a duration, or off";
                faults.value(&self.at.field(name), Wrong::new(says).hint("write off for no limit"));
                None
            }
            _ => self.parsed_or_default(name, value::duration_or_off, faults),
        }
    }

    pub fn flag(&self, name: &'static str, faults: &mut Faults) -> bool {
        match self.get(name) {
            Some(Node::Bool(flag)) => *flag,
            found => {
                if let Some(node) = found {
                    faults.value(&self.at.field(name), mismatch("true or false", node));
                }
                self.field(name).default == "true"
            }
        }
    }

    /// A number from 1 on.
    pub fn count(&self, name: &'static str, faults: &mut Faults) -> Option<u32> {
        let node = self.get(name)?;
        let count = match node {
            Node::Integer(number) => u32::try_from(*number).ok().filter(|number| *number > 0),
            _ => None,
        };
        if count.is_none() {
            let wrong = match node {
                Node::Integer(0) => Wrong::new("this must be at least 1").hint("leave it out for its default"),
                Node::Integer(_) => Wrong::new("this must be a number from 1 to 4294967295"),
                other => mismatch("a whole number", other),
            };
            faults.value(&self.at.field(name), wrong);
        }
        count
    }

    /// A number from 1 on, with a default.
    pub fn count_or_default(&self, name: &'static str, faults: &mut Faults) -> u32 {
        let found = self.count(name, faults);
        found.unwrap_or_else(|| self.field(name).default.parse().expect("defaults of the table can be read"))
    }

    /// One value for both directions, from the client and to it, or a map with `up` and `down`.
    pub fn each_way<T: Copy>(
        &self,
        name: &'static str,
        faults: &mut Faults,
        read: impl Fn(&Fields<'_, '_>, &'static str, &mut Faults) -> Option<T>,
    ) -> [Option<T>; 2] {
        let Below::EachWay(section) = self.field(name).below else { return [None; 2] };
        match self.get(name) {
            Some(node @ Node::Map(_)) => {
                let path = self.at.field(name);
                let Some(both) = Fields::open(node, section, &path, faults) else { return [None; 2] };
                if both.clean && both.map.is_empty() {
                    faults.value(&path, Wrong::new("this names no direction").hint("write { up: ..., down: ... }"));
                }
                [read(&both, "up", faults), read(&both, "down", faults)]
            }
            _ => [read(self, name, faults); 2],
        }
    }

    /// Whether such a field tells directions apart.
    pub fn is_each_way(&self, name: &'static str) -> bool {
        matches!(self.get(name), Some(Node::Map(_)))
    }

    /// A list; `each` sees every item with its path.
    pub fn list(
        &self,
        name: &'static str,
        faults: &mut Faults,
        mut each: impl FnMut(&'n Node, &Path<'_>, &mut Faults),
    ) {
        let Some(node) = self.get(name) else { return };
        let path = self.at.field(name);
        match node {
            Node::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    each(item, &path.item(index), faults);
                }
            }
            other => faults.value(&path, mismatch("a list", other).hint("write - before each item, or [a, b]")),
        }
    }

    /// A list of texts, all read by the same parser.
    pub fn texts<T>(
        &self,
        name: &'static str,
        faults: &mut Faults,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<Vec<T>> {
        let mut all = Vec::new();
        self.list(name, faults, |item, path, faults| all.extend(parsed(item, path, &parse, faults)));
        self.get(name).map(|_| all)
    }

    /// A map from names of the operator's own to values.
    pub fn named(
        &self,
        name: &'static str,
        faults: &mut Faults,
        mut each: impl FnMut(&'n str, &'n Node, &Path<'_>, &mut Faults),
    ) {
        let Some(node) = self.get(name) else { return };
        let path = self.at.field(name);
        let Node::Map(map) = node else {
            faults.value(&path, mismatch("a map", node).hint("write name: value"));
            return;
        };
        for (index, (own, node)) in map.iter().enumerate() {
            if map[..index].iter().any(|(earlier, _)| earlier == own) {
                faults.name(&path.again(own, index), Wrong::new("this name stands twice").hint("keep one of them"));
            } else {
                each(own, node, &path.field(own), faults);
            }
        }
    }

    /// A section below this one; an empty one where it is left out, so that defaults are read in one way only.
    pub fn below<T>(
        &self,
        name: &'static str,
        section: &'static Section,
        faults: &mut Faults,
        read: impl FnOnce(&Fields<'_, '_>, &mut Faults) -> T,
    ) -> T {
        let path = self.at.field(name);
        let opened = self.get(name).and_then(|node| Fields::open(node, section, &path, faults));
        read(&opened.unwrap_or_else(|| Fields::empty(section, &path)), faults)
    }
}

/// A text, read by a parser.
pub fn parsed<T>(
    node: &Node,
    path: &Path<'_>,
    parse: impl Fn(&str) -> Result<T, Wrong>,
    faults: &mut Faults,
) -> Option<T> {
    let found = match node {
        Node::Text(text) => parse(text),
        // What the parser says of a bare number is often better: its unit is missing.
        Node::Integer(number) => Err(parse(&number.to_string()).err().unwrap_or_else(|| mismatch("text", node))),
        other => Err(mismatch("text", other)),
    };
    found.map_err(|wrong| faults.value(path, wrong)).ok()
}

pub fn mismatch(wanted: &str, node: &Node) -> Wrong {
    let wrong = Wrong::new(format!("this must be {wanted}, not {}", node.kind()));
    match node {
        Node::Bool(_) | Node::Integer(_) | Node::Fraction if wanted == "text" => wrong.hint("put it in quotes"),
        _ => wrong,
    }
}

fn unknown(name: &str, index: usize, again: bool, section: &Section, at: &Path<'_>, faults: &mut Faults) {
    let near = meant(name, section);
    let shown = if may_be_shown(name, section) { name } else { HIDDEN };
    let path = if again || shown == HIDDEN { at.again(shown, index) } else { at.field(shown) };
    let wrong = if section.later.contains(&name) {
        let hint = match name {
            "endpoints" | "balance" => "there is no load balancing yet: write url: with one address",
            "tls" => "there is no TLS yet: leave it out, and put something that speaks TLS in front",
            _ => "leave it out",
        };
        Wrong::new("this is not supported by this version").hint(hint)
    } else {
        let wrong = Wrong::new("there is no such field here");
        match near {
            Some(near) => wrong.hint(format!("did you mean \"{near}\"?")),
            None => wrong.hint(examples(section)),
        }
    };
    faults.name(&path, wrong);
}

/// The field of a section that was probably meant. Where no secret can be, a part of its name is enough.
fn meant(name: &str, section: &Section) -> Option<&'static str> {
    let known = || section.fields.iter().map(|field| field.name);
    let contained =
        |known: &&str| name.len() >= 4 && known.len() >= 4 && (known.contains(name) || name.contains(known));
    nearest(name, known()).or_else(|| known().find(contained).filter(|_| !section.private))
}

/// Whether a name that is not known may be shown: where secrets live, it may be one that slipped to the left of a colon.
pub fn may_be_shown(name: &str, section: &Section) -> bool {
    is_name(name) && (!section.private || meant(name, section).is_some())
}

fn examples(section: &Section) -> String {
    let names: Vec<&str> = section.fields.iter().map(|field| field.name).collect();
    format!("fields here: {}", names.join(", "))
}
