//! The raw request head: read under a deadline, vetted byte by byte, then parsed. Parsers are lenient in ways that matter
//! here (bare LF, several `Host`, absolute targets, fragments that vanish), so what reaches ours is known to have one
//! meaning.

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use memchr::memchr_iter;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::denial::{Denial, Reason};
use crate::fields::is_token_byte;
use crate::peer::is_host;

/// The largest head that is read. Handshakes of browsers with many cookies stay below a quarter of it.
pub const MAX_HEAD: usize = 16 * 1024;
/// Header lines in it.
pub const MAX_LINES: usize = 64;
const MAX_TARGET: usize = 4 * 1024;

/// Why there is no head.
#[derive(Debug)]
pub enum Fault {
    /// To be answered and logged.
    Denied(Denial),
    /// The peer went away, or never said anything: nobody to answer.
    Gone,
}

/// A vetted head and whatever came right behind it. It holds the credential, and so do the values that are parsed from it:
/// wiped when the last of them is dropped.
pub struct Head {
    bytes: Zeroizing<Vec<u8>>,
    length: usize,
}

/// Reads up to the end of the head. `bytes` is what is there already.
///
/// # Errors
/// [`Fault`]: 400, 405, 408, 414 or 431, or nothing where nobody would read an answer.
pub async fn read<S: AsyncRead + Unpin>(bytes: Vec<u8>, stream: &mut S, limit: Duration) -> Result<Head, Fault> {
    let mut bytes = Zeroizing::new(bytes);
    match timeout(limit, fill(stream, &mut bytes)).await {
        Ok(Ok(length)) => {
            vet(&bytes[..length]).map_err(Fault::Denied)?;
            Ok(Head { bytes, length })
        }
        Ok(Err(fault)) => Err(fault),
        Err(_) if bytes.is_empty() => Err(Fault::Gone),
        Err(_) => {
            let denial = Denial::new(Reason::RequestTimeout, "the request head did not arrive in time");
            Err(Fault::Denied(denial))
        }
    }
}

/// A whole head that is not read off a connection, such as one that a person has pasted.
///
/// # Errors
/// As [`read`], and 400 for one that is not whole.
pub fn whole(bytes: Vec<u8>) -> Result<Parts, Denial> {
    let length = scan(&bytes, 0)?.ok_or_else(|| Denial::bad_handshake("the request head is not complete"))?;
    if length > MAX_HEAD {
        return Err(too_large(&bytes));
    }
    vet(&bytes[..length])?;
    Head { bytes: Zeroizing::new(bytes), length }.parse().map(|(parts, _)| parts)
}

async fn fill<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut Zeroizing<Vec<u8>>) -> Result<usize, Fault> {
    let mut from = 0;
    loop {
        if from < bytes.len() {
            let complete = scan(bytes, from).map_err(Fault::Denied)?;
            if let Some(length) = complete.filter(|length| *length <= MAX_HEAD) {
                return Ok(length);
            }
            if bytes.len() > MAX_HEAD {
                return Err(Fault::Denied(too_large(bytes)));
            }
        }
        from = bytes.len();
        make_room(bytes, if from == 0 { 2048 } else { MAX_HEAD });
        match stream.read_buf(&mut **bytes).await {
            Ok(0) | Err(_) => return Err(Fault::Gone),
            Ok(_) => {}
        }
    }
}

/// Room for so many bytes more. A vector that grows by itself leaves its old place behind as it was.
fn make_room(bytes: &mut Zeroizing<Vec<u8>>, more: usize) {
    if bytes.capacity() - bytes.len() < more {
        let mut larger = Vec::with_capacity(bytes.len() + more);
        larger.extend_from_slice(bytes);
        *bytes = Zeroizing::new(larger);
    }
}

impl Head {
    /// The request, and what came right behind it.
    ///
    /// # Errors
    /// 400: never, as far as is known, for a head that was vetted.
    pub fn parse(mut self) -> Result<(Parts, Vec<u8>), Denial> {
        let early = if self.length < self.bytes.len() { self.bytes.split_off(self.length) } else { Vec::new() };
        let parts =
            parse(&Bytes::from_owner(self.bytes)).ok_or_else(|| Denial::bad_handshake("the request is not HTTP"))?;
        Ok((parts, early))
    }
}

/// Values are slices of the one buffer: what is to outlive the handshake has to be copied.
fn parse(head: &Bytes) -> Option<Parts> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_LINES];
    let mut request = httparse::Request::new(&mut []);
    let complete = request.parse_with_uninit_headers(head, &mut lines).ok()?.is_complete();
    let (method, target) = (request.method.filter(|_| complete)?, request.path?);
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(method.as_bytes()).ok()?;
    parts.uri = Uri::from_maybe_shared(head.slice_ref(target.as_bytes())).ok()?;
    parts.headers.reserve(request.headers.len());
    for line in request.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(line.value)).ok()?;
        parts.headers.append(name, value);
    }
    Some(parts)
}

/// Looks at the bytes from `from` on: `Some(length)` when the head is complete.
///
/// # Errors
/// 400 at the first byte that no head has, so that neither other protocols nor line ends of another kind wait for a
/// deadline.
pub fn scan(bytes: &[u8], from: usize) -> Result<Option<usize>, Denial> {
    let bad = |detail| Err(Denial::bad_handshake(detail));
    let follows_cr = |at: usize| at > 0 && bytes[at - 1] == b'\r';
    let mut at = from;
    while let Some(&byte) = bytes.get(at) {
        if follows_cr(at) && byte != b'\n' {
            return bad("the request head holds a CR without LF");
        }
        match byte {
            b'\n' if !follows_cr(at) => return bad("the request head holds a line that ends in LF without CR"),
            b'\n' if at >= 3 && bytes[at - 2] == b'\n' => return Ok(Some(at + 1)),
            b'\r' | b'\n' => at += 1,
            byte if !is_text(byte) => return bad("the request head holds a control character"),
            // Nearly all of it.
            _ => at += text_length(&bytes[at..]),
        }
    }
    Ok(None)
}

/// What a line is made of.
const fn is_text(byte: u8) -> bool {
    (byte == b'\t') | ((byte >= b' ') & (byte != 0x7f))
}

/// How much text these bytes begin with. Looked at in blocks first, which takes a few bytes in one step.
fn text_length(bytes: &[u8]) -> usize {
    const BLOCK: usize = 16;
    let is_all_text = |block: &&[u8]| block.iter().fold(true, |good, byte| good & is_text(*byte));
    let blocks = bytes.chunks_exact(BLOCK).take_while(is_all_text).count() * BLOCK;
    blocks + bytes[blocks..].iter().take_while(|byte| is_text(**byte)).count()
}

fn too_large(bytes: &[u8]) -> Denial {
    if bytes.contains(&b'\n') {
        Denial::new(Reason::HeadTooLarge, "the request head is over 16 KiB")
    } else {
        target_too_long()
    }
}

fn target_too_long() -> Denial {
    Denial::new(Reason::TargetTooLong, "the request target is over 4 KiB")
}

/// Whether a complete head is one that every reader understands alike (RFC 9112 sections 2 to 5, at their strictest).
///
/// # Errors
/// 400 `bad_handshake` with the first fault, 405 for CONNECT, 414, 431.
pub fn vet(head: &[u8]) -> Result<(), Denial> {
    let text = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    let mut from = 0;
    let ends = memchr_iter(b'\n', text).chain([text.len()]);
    let mut lines = ends.map(|end| {
        let line = &text[from..end];
        from = end + 1;
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    vet_request_line(lines.next().unwrap_or_default())?;
    let mut fields = Fields::default();
    let mut count = 0;
    for line in lines {
        count += 1;
        if count > MAX_LINES {
            return Err(Denial::new(Reason::HeadTooLarge, "the request has over 64 header lines"));
        }
        fields.vet(line).map_err(Denial::bad_handshake)?;
    }
    fields.finish().map_err(Denial::bad_handshake)
}

fn vet_request_line(line: &[u8]) -> Result<(), Denial> {
    let bad = |detail| Err(Denial::bad_handshake(detail));
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return bad("the request line is not method, target and version");
    };
    if method.is_empty() || !method.iter().all(|byte| is_token_byte(*byte)) {
        return bad("the request method is not a token");
    }
    if method == b"CONNECT" {
        return Err(Denial::connect_method());
    }
    if version != b"HTTP/1.1" {
        return bad("only HTTP/1.1 is served here");
    }
    if target.len() > MAX_TARGET {
        return Err(target_too_long());
    }
    if !target.starts_with(b"/") {
        return bad("the request target does not begin with a slash");
    }
    vet_target(target).map_or(Ok(()), bad)
}

/// Characters of a path and a query (RFC 3986 section 3.3, 3.4), and those that browsers leave as they are.
fn vet_target(target: &[u8]) -> Option<&'static str> {
    let mut in_query = false;
    for (at, byte) in target.iter().enumerate() {
        let good = match byte {
            b'%' => {
                let code = target.get(at + 1..at + 3);
                if !code.is_some_and(|code| code.iter().all(u8::is_ascii_hexdigit)) {
                    return Some("the request target holds a % that is no code");
                }
                true
            }
            b'#' => return Some("the request target holds a fragment"),
            b'\\' if !in_query => return Some("the request target holds a backslash"),
            b'?' => {
                in_query = true;
                true
            }
            b'"' | b'<' | b'>' => false,
            b'{' | b'}' | b'^' | b'`' | b'\\' => in_query,
            byte => byte.is_ascii_graphic(),
        };
        if !good {
            return Some("the request target holds a character that has to be encoded");
        }
    }
    None
}

/// What the header lines have shown so far.
#[derive(Default)]
struct Fields {
    hosts: u32,
    lengths: u32,
    codings: u32,
}

impl Fields {
    fn vet(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
            return Err("a header line begins with white space");
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or("a header line has no colon")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|byte| is_token_byte(*byte)) {
            return Err("a header name is not a token");
        }
        let may_be_text = name.eq_ignore_ascii_case(b"cookie") && is_plain_text(value);
        if !value.is_ascii() && !may_be_text {
            return Err("a header value is not ASCII");
        }
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            if !std::str::from_utf8(value).is_ok_and(is_host) {
                return Err("the Host header is not a host, perhaps with a port");
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
                return Err("Content-Length is not a number");
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("Transfer-Encoding is something else than chunked");
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), &'static str> {
        match (self.hosts, self.lengths, self.codings) {
            (0, ..) => Err("the Host header is missing"),
            (2.., ..) => Err("the request has two Host headers"),
            (_, 2.., _) => Err("the request has two Content-Length headers"),
            (.., 2..) => Err("the request has two Transfer-Encoding headers"),
            (_, 1, 1) => Err("the request has both Content-Length and Transfer-Encoding"),
            _ => Ok(()),
        }
    }
}

/// Browsers send cookies as pages have set them, in any language. Bytes that some backends take for a line end (NEL, 0x85)
/// or another control character are not among them.
fn is_plain_text(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(head: &str) -> Result<(), String> {
        let length = scan(head.as_bytes(), 0).map_err(|denial| denial.detail.into_owned())?;
        assert_eq!(length, Some(head.len()), "{head:?}");
        vet(head.as_bytes()).map_err(|denial| denial.detail.into_owned())
    }

    #[test]
    fn one_meaning_or_none() {
        for good in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a%20b?q={\"x\":1}".replace('"', "%22").as_str(),
            "POST /x?a=^ HTTP/1.1\r\nhost: [::1]:80\r\nCookie: caf\u{e9}=1\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\t Chunked \r\n\r\n",
        ] {
            let head =
                if good.contains("\r\n") { good.to_owned() } else { format!("{good} HTTP/1.1\r\nHost: a\r\n\r\n") };
            assert_eq!(verdict(&head), Ok(()), "{head:?}");
        }
        for bad in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: caf\u{e9}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nCookie: a=\u{85}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;x=y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert!(verdict(bad).is_err(), "{bad:?}");
        }
    }
}
