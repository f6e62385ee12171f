//! Vetted heads against a strict grammar, and what is accepted against hyper: one meaning for everybody.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use wsbouncer::head::{MAX_HEAD, MAX_LINES, scan, whole};

use crate::bytes::{bare, host_and_port, is_token};

pub fn run(data: &[u8]) {
    looks_do_not_matter(data);
    let grammar = head(data);
    match (whole(data.to_vec()), grammar) {
        (Ok(parts), Some(read)) => {
            is_what_was_sent(&parts, &read);
            hyper_agrees(&parts, &data[..read.length]);
        }
        (Ok(_), None) => panic!("accepted, and no head by the grammar"),
        (Err(denial), Some(_)) => panic!("a head by the grammar, and refused: {}", denial.detail),
        (Err(_), None) => {}
    }
}

/// However it arrives, the same is seen.
fn looks_do_not_matter(data: &[u8]) {
    let at_once = scan(data, 0);
    let step = data.first().map_or(1, |byte| usize::from(*byte)).max(1);
    let mut from = 0;
    for end in (step..data.len()).step_by(step).chain([data.len()]) {
        match scan(&data[..end], from) {
            Ok(None) => from = end,
            Ok(Some(length)) => return assert_eq!(at_once.unwrap(), Some(length)),
            Err(_) => return assert!(at_once.is_err()),
        }
    }
    assert_eq!(at_once.unwrap(), None);
}

/// A request head by the letter.
struct Sent<'d> {
    length: usize,
    method: &'d [u8],
    target: &'d [u8],
    lines: Vec<(&'d [u8], &'d [u8])>,
}

/// RFC 9112 sections 2 to 5 with everything optional left out.
fn head(data: &[u8]) -> Option<Sent<'_>> {
    let length = data.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    if length > MAX_HEAD {
        return None;
    }
    let mut rest = &data[..length - 2];
    let mut next = || -> Option<&[u8]> {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        Some(line)
    };
    let first = next()?;
    let method = &first[..first.iter().position(|byte| *byte == b' ')?];
    let target = first[method.len() + 1..].strip_suffix(b" HTTP/1.1")?;
    if !is_token(method) || method == b"CONNECT" || !is_origin_form(target) || target.len() > 4096 {
        return None;
    }
    let mut lines = Vec::new();
    while let Some(line) = next() {
        let name = &line[..line.iter().position(|byte| *byte == b':')?];
        let value = bare(&line[name.len() + 1..]);
        if !is_token(name) || !is_value(name, value) {
            return None;
        }
        lines.push((name, value));
    }
    (lines.len() <= MAX_LINES && has_one_host(&lines) && has_one_framing(&lines)).then_some(())?;
    Some(Sent { length, method, target, lines })
}

/// RFC 3986: path-absolute, perhaps a query. Browsers also send `|`, `[` and `]` as they are, and in a query braces,
/// `^`, backquote and backslash.
fn is_origin_form(target: &[u8]) -> bool {
    if target.first() != Some(&b'/') {
        return false;
    }
    let query = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let mut at = 0;
    while at < target.len() {
        let byte = target[at];
        let is_usual = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/|[]".contains(&byte);
        let is_of_query = at >= query && b"?{}^`\\".contains(&byte);
        if byte == b'%' {
            if !target.get(at + 1..at + 3).is_some_and(|two| two.iter().all(|byte| byte.is_ascii_hexdigit())) {
                return false;
            }
            at += 3;
        } else if is_usual || is_of_query {
            at += 1;
        } else {
            return false;
        }
    }
    true
}

/// Visible ASCII, spaces and tabs; cookies may be text of any language.
fn is_value(name: &[u8], value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let may_be_any = name.eq_ignore_ascii_case(b"cookie");
    text.chars().all(|letter| match letter {
        ' '..='~' => true,
        // In what is not ASCII no tab either.
        '\t' => text.is_ascii(),
        letter => may_be_any && u32::from(letter) >= 0xa0,
    })
}

fn values<'d>(lines: &[(&[u8], &'d [u8])], wanted: &str) -> Vec<&'d [u8]> {
    let is_it = |name: &[u8]| name.eq_ignore_ascii_case(wanted.as_bytes());
    lines.iter().filter(|(name, _)| is_it(name)).map(|(_, value)| *value).collect()
}

fn has_one_host(lines: &[(&[u8], &[u8])]) -> bool {
    matches!(values(lines, "host")[..], [host] if host_and_port(host).is_some())
}

fn has_one_framing(lines: &[(&[u8], &[u8])]) -> bool {
    match (&values(lines, "content-length")[..], &values(lines, "transfer-encoding")[..]) {
        ([], []) => true,
        ([length], []) => (1..=18).contains(&length.len()) && length.iter().all(u8::is_ascii_digit),
        ([], [coding]) => coding.eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

fn is_what_was_sent(parts: &Parts, read: &Sent<'_>) {
    assert_eq!(parts.method.as_str().as_bytes(), read.method);
    assert_eq!(parts.uri.to_string().as_bytes(), read.target);
    assert_eq!(parts.headers.len(), read.lines.len());
    for name in parts.headers.keys() {
        let ours: Vec<&[u8]> = parts.headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
        assert_eq!(ours, values(&read.lines, name.as_str()), "{name}");
    }
}

fn hyper_agrees(ours: &Parts, head: &[u8]) {
    let theirs = hyper_reads(head).expect("what is accepted hyper accepts");
    assert_eq!(ours.method, theirs.method);
    assert_eq!(ours.uri, theirs.uri);
    assert_eq!(ours.version, theirs.version);
    assert_eq!(ours.headers, theirs.headers);
}

fn hyper_reads(head: &[u8]) -> Option<Parts> {
    let seen = Rc::new(RefCell::new(None));
    let note = seen.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        *note.borrow_mut() = Some(request.into_parts().0);
        async { Ok::<_, Infallible>(Response::new(String::new())) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let mut connection = pin!(server.keep_alive(false).serve_connection(Wire(head), service));
    let _ = connection.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    seen.take()
}

/// A head, and nothing after it.
struct Wire<'d>(&'d [u8]);

impl Read for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
