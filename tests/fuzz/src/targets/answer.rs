//! Answers of upstreams: none passes for a yes but a 101 by the letter of RFC 6455 section 4.1. The input: how it is cut,
//! and then the answer.

use wsbouncer::handshake::{Upgrade, parse};
use wsbouncer::head::whole;
use wsbouncer::upstream::{Heard, hear};

use crate::bytes::{Input, Pieces, bare, is_token, list, now};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: chat, v2\r\nSec-WebSocket-Extensions: permessage-deflate; x, foo\r\n\r\n";
/// RFC 6455 section 1.3.
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn upgrade() -> Upgrade {
    parse(&whole(REQUEST.to_vec()).unwrap()).unwrap()
}

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let most = usize::from(input.byte()) + 1;
    let bytes = input.0;
    let heard = now(hear(&mut Pieces { bytes, most }, &upgrade()));
    let wanted = strict(bytes);
    match (heard, &wanted) {
        (Ok(Heard::Yes(_, early)), Some(end)) => assert!(bytes[*end..].starts_with(&early)),
        (Ok(Heard::Yes(..)), None) => panic!("a yes, and no 101 by the letter"),
        (Ok(Heard::No(refusal)), None) => {
            assert!((200..600).contains(&refusal.status.as_u16()) && refusal.body.len() <= 64 * 1024);
        }
        (Err(_), None) => {}
        (other, Some(_)) => panic!("a 101 by the letter, and no yes: {:?}", other.map(|_| ())),
    }
}

/// Where a 101 ends that is one, behind any number of interim answers.
fn strict(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    for _ in 0..16 {
        let length = bytes[at..].windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let (status, lines) = answer(&bytes[at..at + length])?;
        // How long an interim answer may be is not for the letter to say.
        if length > 16 * 1024 {
            return None;
        }
        at += length;
        match &status {
            b"101" => return is_yes(&lines).then_some(at),
            [b'1', _, _] => {}
            _ => return None,
        }
    }
    None
}

type Lines<'b> = Vec<(&'b [u8], &'b [u8])>;

/// Status and header lines of an answer in HTTP/1.1 (RFC 9112 section 4).
fn answer(head: &[u8]) -> Option<([u8; 3], Lines<'_>)> {
    let text = head.strip_suffix(b"\r\n\r\n")?;
    let mut lines = Vec::new();
    let mut rest = text;
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").unwrap_or(rest.len());
        lines.push(&rest[..end]);
        match rest.get(end + 2..) {
            Some(more) => rest = more,
            None => break,
        }
    }
    let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    if !lines.iter().all(|line| line.iter().all(is_text)) {
        return None;
    }
    let status = lines.remove(0).strip_prefix(b"HTTP/1.1 ")?;
    let (digits, reason) = status.split_first_chunk::<3>()?;
    let has_reason = reason.is_empty() || reason[0] == b' ';
    if !digits.iter().all(u8::is_ascii_digit) || !has_reason || lines.len() > 64 {
        return None;
    }
    let mut fields = Vec::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        is_token(&line[..colon]).then_some(())?;
        fields.push((&line[..colon], bare(&line[colon + 1..])));
    }
    Some((*digits, fields))
}

fn is_yes(lines: &Lines<'_>) -> bool {
    let values = |name: &str| -> Vec<&[u8]> {
        lines.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value).collect()
    };
    let is = |item: &[u8], word: &str| item.eq_ignore_ascii_case(word.as_bytes());
    // What cannot be read as text names nothing.
    let items = |name: &str| -> Vec<Vec<u8>> {
        let lines: Vec<&[u8]> = values(name).into_iter().filter(|line| line.is_ascii()).collect();
        list(&lines).into_iter().filter(|item| !item.is_empty()).map(<[u8]>::to_vec).collect()
    };
    let names = |line: &[u8]| -> Vec<Vec<u8>> {
        let items = line.split(|byte| *byte == b',');
        items.map(|item| bare(item.split(|byte| *byte == b';').next().unwrap_or_default()).to_vec()).collect()
    };
    matches!(&items("upgrade")[..], [one] if is(one, "websocket"))
        && items("connection").iter().any(|item| is(item, "upgrade"))
        && values("sec-websocket-accept") == [ACCEPT]
        && values("content-length").is_empty()
        && values("transfer-encoding").is_empty()
        && matches!(values("sec-websocket-protocol")[..], [] | [b"chat" | b"v2"])
        && match values("sec-websocket-extensions")[..] {
            [] => true,
            // Tokens, all of it (section 9.1).
            [line] => {
                line.is_ascii() && names(line).iter().all(|name| is(name, "permessage-deflate") || is(name, "foo"))
            }
            _ => false,
        }
}
