//! Headers that the configuration adds, made from who the caller is.

use http::header::HeaderName;

use crate::auth::Principal;

/// A header that the upstream gets from us, its value perhaps made from who the caller is.
#[derive(Debug, Clone)]
pub struct HeaderTemplate {
    pub name: HeaderName,
    pub parts: Vec<Part>,
}

/// A piece of a template. `{env.NAME}` is read when the file is loaded and arrives here as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(Box<str>),
    Id,
    Route,
    Attribute(Box<str>),
}

impl HeaderTemplate {
    /// The value for this principal; empty where it has nothing to say, so that no client's own value can stand there.
    pub fn value(&self, principal: &Principal, route: &str) -> String {
        let mut value = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => value.push_str(text),
                Part::Route => value.push_str(route),
                Part::Id => value.push_str(principal.key().map_or("", |key| &key.id)),
                Part::Attribute(name) => {
                    let attributes = principal.key().map_or(&[][..], |key| &key.attributes);
                    let found = attributes.iter().find(|(other, _)| other == name);
                    value.push_str(found.map_or("", |(_, value)| value));
                }
            }
        }
        value
    }
}
