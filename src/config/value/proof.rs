//! Where credentials stand, and what tickets and first messages are like.

use std::time::Duration;

use super::{Encoding, Format, MAX_NAME, Parsed, Shape, duration, size};
use crate::config::problem::{Wrong, nearest};

/// A well-known way to put a credential into the list of subprotocols.
pub fn preset(text: &str) -> Parsed<(Shape, Encoding)> {
    const KNOWN: [&str; 4] = ["kubernetes", "openai", "deepgram", "bearer"];
    Ok(match text {
        "kubernetes" => (Shape::Prefix("base64url.bearer.authorization.k8s.io.".into()), Encoding::Base64Url),
        "openai" => (Shape::Prefix("openai-insecure-api-key.".into()), Encoding::Raw),
        "deepgram" => (Shape::Pair { marker: "token".into(), any_case: false }, Encoding::Raw),
        "bearer" => (Shape::Pair { marker: "bearer".into(), any_case: true }, Encoding::Raw),
        _ => {
            let wrong = Wrong::new("there is no such preset");
            return Err(match nearest(text, KNOWN) {
                Some(near) => wrong.hint(format!("did you mean \"{near}\"?")),
                None => wrong.hint("there are kubernetes, openai, deepgram and bearer"),
            });
        }
    })
}

pub fn encoding(text: &str) -> Parsed<Encoding> {
    match text {
        "raw" => Ok(Encoding::Raw),
        "base64url" => Ok(Encoding::Base64Url),
        _ => Err(Wrong::new("there is no such encoding").hint("there are raw and base64url")),
    }
}

/// How long a ticket is good for.
pub fn ticket_ttl(text: &str) -> Parsed<Duration> {
    let ttl = duration(text)?;
    if ttl < Duration::from_secs(1) || ttl > Duration::from_secs(3600) {
        return Err(Wrong::new("a ticket is good for 1s to 1h").hint("30s is enough to dial"));
    }
    Ok(ttl)
}

/// What a ticket may be bound to.
pub fn ticket_bind(text: &str) -> Parsed<&'static str> {
    match text {
        "origin" => Ok("origin"),
        "address" => Ok("address"),
        _ => Err(Wrong::new("a ticket can be bound to origin and address").hint("write bind: [origin, address]")),
    }
}

/// A usual form of first messages: its subprotocol, and where the key is.
pub fn first_message_preset(text: &str) -> Parsed<(&'static str, Format)> {
    match text {
        "graphql-transport-ws" => Ok(("graphql-transport-ws", Format::Json("/payload/token".into()))),
        _ => Err(Wrong::new("there is no such preset").hint("there is graphql-transport-ws")),
    }
}

/// The whole message is the key.
pub fn message_format(text: &str) -> Parsed<Format> {
    match text {
        "text" => Ok(Format::Text),
        _ => Err(Wrong::new("this must be text").hint("for JSON write json: and a pointer, such as /payload/token")),
    }
}

/// RFC 6901.
pub fn json_pointer(text: &str) -> Parsed<Box<str>> {
    let is_escaped = |part: &str| part.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if text.starts_with('/') && text.len() <= MAX_NAME && is_escaped(text) {
        return Ok(text.into());
    }
    Err(Wrong::new("this is not a JSON pointer").hint("write /payload/token for the field token of the field payload"))
}

/// What a first message may have.
pub fn message_size(text: &str) -> Parsed<usize> {
    const MOST: u64 = 64 << 10;
    let wrong = || Wrong::new("a first message has 1B to 64KiB").hint("4KiB is enough for a key");
    usize::try_from(size(text)?).ok().filter(|size| (1..=MOST).contains(&(*size as u64))).ok_or_else(wrong)
}
