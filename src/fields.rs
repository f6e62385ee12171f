//! Header fields by their kind: which are lists, which stand once, which concern one connection only, which only we write.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{CONNECTION, HeaderName};
use memchr::memchr3;

/// The items of a list header, over all its lines (RFC 9110 section 5.6.1). A line that is not ASCII has none.
pub fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|item| item.trim_matches([' ', '\t'])).filter(|item| !item.is_empty())
}

/// A header that must not stand twice does.
pub struct Twice;

/// The value of a header that may stand once. A value that is not ASCII reads as empty, which nothing accepts.
pub fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Twice> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(value.to_str().unwrap_or_default())),
        (Some(_), Some(_)) => Err(Twice),
    }
}

/// Whether a text can stand between quotes as it is.
pub fn is_plain(text: &str) -> bool {
    // All of it, whatever the first bytes are: that takes a few bytes in one step.
    text.bytes().fold(true, |good, byte| good & (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\'))
}

/// Writes a value without what could end its line. It can be in no value by now; this is the last place to be sure of it.
pub fn push_value(out: &mut Vec<u8>, value: &[u8]) {
    if memchr3(b'\r', b'\n', 0, value).is_some() {
        out.extend(value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
    } else {
        out.extend_from_slice(value);
    }
}

/// Writes a text as JSON has it, with its quotes.
pub fn push_json(out: &mut Vec<u8>, text: &str) {
    if is_plain(text) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // A text into memory: there is nothing in it that could fail.
        let _ = serde_json::to_writer(out, text);
    }
}

/// RFC 9110 section 5.6.2.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

pub const fn is_token_byte(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0_u8;
        while byte < 128 {
            table[byte as usize] = byte.is_ascii_alphanumeric()
                || matches!(
                    byte,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            byte += 1;
        }
        table
    };
    TOKEN[byte as usize]
}

/// A name as CGI-like backends read it, where every character that is no letter or digit is as good as `-`. Names are in
/// lower case here.
pub fn plain_name(name: &str) -> Cow<'_, str> {
    // Nearly all names are as they have to be, and most are short: looked at as a whole.
    let is_odd = |byte: u8| !byte.is_ascii_alphanumeric() & (byte != b'-');
    if name.bytes().fold(false, |any, byte| any | is_odd(byte)) {
        name.replace(|char: char| !char.is_ascii_alphanumeric(), "-").into()
    } else {
        name.into()
    }
}

/// Names that only we write to an upstream, or that only concern one connection (RFC 9110 section 7.6.1), or by which
/// backends of some kinds are told another path than the request's own.
pub fn is_ours(plain: &str) -> bool {
    is_hop_by_hop(plain)
        || plain.starts_with("sec-websocket-")
        || matches!(
            plain,
            "host"
                | "content-length"
                | "expect"
                | "http2-settings"
                | "proxy-authorization"
                | "traceparent"
                | "tracestate"
                | "x-auth-key-id"
                | "x-envoy-original-path"
                | "x-forwarded-for"
                | "x-forwarded-host"
                | "x-forwarded-proto"
                | "x-forwarded-uri"
                | "x-original-uri"
                | "x-original-url"
                | "x-request-id"
                | "x-rewrite-url"
        )
}

/// Names by which proxies say who the client is and what it asked for: passed on from a trusted one only.
pub fn is_claim(plain: &str) -> bool {
    plain.starts_with("x-forwarded")
        || matches!(
            plain,
            "cf-connecting-ip"
                | "forwarded"
                | "true-client-ip"
                | "x-client-ip"
                | "x-cluster-client-ip"
                | "x-host"
                | "x-original-forwarded-for"
                | "x-original-host"
                | "x-real-ip"
        )
}

fn is_hop_by_hop(plain: &str) -> bool {
    matches!(
        plain,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Tells the headers of a message that concern its last reader from those of one connection, of framing and of the
/// WebSocket handshake.
pub fn is_end_to_end(headers: &HeaderMap) -> impl Fn(&HeaderName) -> bool {
    let nominated: Vec<&str> = tokens(headers, &CONNECTION).collect();
    move |name| {
        let text = name.as_str();
        let is_nominated = nominated.iter().any(|token| token.eq_ignore_ascii_case(text));
        !is_nominated && !is_hop_by_hop(text) && text != "content-length" && !text.starts_with("sec-websocket-")
    }
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;

    #[test]
    fn lists_are_read_over_all_lines() {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.append(CONNECTION, HeaderValue::from_static(" , x"));
        assert_eq!(tokens(&headers, &CONNECTION).collect::<Vec<_>>(), ["keep-alive", "Upgrade", "x"]);
    }
}
