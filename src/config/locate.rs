//! Lines and columns. Only when something is wrong is the text read a second time, by a parser that says where things are.

use granit_parser::{Event, Marker, Parser, Span, StrInput};

/// A node of the text and where it stands.
#[derive(Debug)]
pub struct Tree {
    pub at: Extent,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    Scalar(String),
    List(Vec<Tree>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub name_at: Extent,
    pub value: Tree,
}

/// Lines count from 1, columns from 0, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub line: usize,
    pub column: usize,
    pub end_line: usize,
    pub end_column: usize,
}

impl Extent {
    fn of(span: Span) -> Self {
        let (start, end): (Marker, Marker) = (span.start, span.end);
        Self { line: start.line(), column: start.col(), end_line: end.line(), end_column: end.col() }
    }
}

/// Reads the whole text. `None` when it cannot be read to its end: then nothing is known for certain.
pub fn tree(text: &str) -> Option<Tree> {
    let mut events = Events(Parser::new_from_str(text));
    loop {
        match events.next()? {
            (Event::StreamStart | Event::DocumentStart(..), _) => {}
            first => return events.node(first),
        }
    }
}

struct Events<'t>(Parser<'t, StrInput<'t>>);

impl<'t> Events<'t> {
    fn next(&mut self) -> Option<(Event<'t>, Span)> {
        loop {
            match self.0.next_event()?.ok()? {
                (Event::Comment(..), _) => {}
                event => return Some(event),
            }
        }
    }

    /// The parser itself bounds how deep this goes.
    fn node(&mut self, (event, span): (Event<'t>, Span)) -> Option<Tree> {
        let mut at = Extent::of(span);
        let body = match event {
            Event::Scalar(text, ..) => Body::Scalar(text.into_owned()),
            Event::SequenceStart(..) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, end) => {
                            (at.end_line, at.end_column) = (end.end.line(), end.end.col());
                            break Body::List(list);
                        }
                        event => list.push(self.node(event)?),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut map = Vec::new();
                loop {
                    match self.next()? {
                        (Event::MappingEnd, end) => {
                            (at.end_line, at.end_column) = (end.end.line(), end.end.col());
                            break Body::Map(map);
                        }
                        event => {
                            let name = self.node(event)?;
                            let next = self.next()?;
                            let value = self.node(next)?;
                            let Body::Scalar(text) = name.body else { return None };
                            map.push(Entry { name: text, name_at: name.at, value });
                        }
                    }
                }
            }
            _ => return None,
        };
        Some(Tree { at, body })
    }
}

/// The first anchor or alias of the text: line, column, and what to say of it. A text that cannot be read is somebody
/// else's to complain about.
pub fn alias(text: &str) -> Option<(usize, usize, &'static str)> {
    if !text.contains(['&', '*']) {
        return None;
    }
    for event in Parser::new_from_str(text) {
        let (event, span) = event.ok()?;
        let says = match event {
            Event::Alias(_) => "YAML aliases (*name) are not supported",
            event if event.anchor_id().is_some() => "YAML anchors (&name) are not supported",
            _ => continue,
        };
        return Some((span.start.line(), span.start.col() + 1, says));
    }
    None
}
