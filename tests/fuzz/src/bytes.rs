//! An input taken apart, and the words of grammars that more than one oracle needs. Written down anew from the RFCs: a
//! helper of the program itself would agree with the program.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

/// The rest of an input.
pub struct Input<'d>(pub &'d [u8]);

impl Input<'_> {
    /// The next byte, 0 at the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn short(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }
}

/// RFC 9110 section 5.6.2: token.
pub fn is_token(text: &[u8]) -> bool {
    const MARKS: &[u8] = b"!#$%&'*+-.^_`|~";
    let is_in = |byte: &u8| {
        byte.is_ascii_digit() || byte.is_ascii_lowercase() || byte.is_ascii_uppercase() || MARKS.contains(byte)
    };
    !text.is_empty() && text.iter().all(is_in)
}

/// Without the optional white space around it (RFC 9110 section 5.6.3).
pub fn bare(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The items of a list, all lines taken together.
pub fn list<'t>(lines: &[&'t [u8]]) -> Vec<&'t [u8]> {
    lines.iter().flat_map(|line| line.split(|byte| *byte == b',')).map(bare).collect()
}

/// Base64 of either alphabet (RFC 4648), with all of its padding, a part of it or none: `None` for anything else. Bits that
/// are left over have to be zero.
pub fn base64(text: &[u8], is_url_safe: bool) -> Option<Vec<u8>> {
    let (last, before) = if is_url_safe { (b'_', b'-') } else { (b'/', b'+') };
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let text = &text[..text.len() - padding];
    if text.len() % 4 == 1 || padding > (4 - text.len() % 4) % 4 {
        return None;
    }
    let mut bits: u32 = 0;
    let mut count = 0;
    let mut bytes = Vec::new();
    for byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            byte if *byte == before => 62,
            byte if *byte == last => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

/// Host and port of `Host` and of origins, as text: a name of letters, digits, `-`, `.` and `_`, or an IPv6 address in
/// brackets; a port of 0 to 65535.
pub fn host_and_port(text: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let end = if text.first() == Some(&b'[') {
        let end = text.iter().position(|byte| *byte == b']')? + 1;
        let inside = std::str::from_utf8(&text[1..end - 1]).ok()?;
        inside.parse::<std::net::Ipv6Addr>().ok()?;
        end
    } else {
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
        text.iter().position(|byte| !is_name(byte)).unwrap_or(text.len())
    };
    let (host, rest) = text.split_at(end);
    if host.is_empty() || (host[0] != b'[' && host.len() > 255) {
        return None;
    }
    match rest {
        [] => Some((host, None)),
        [b':', digits @ ..] if !digits.is_empty() => {
            let mut port: u32 = 0;
            for digit in digits {
                port = port.checked_mul(10)? + u32::from(digit.is_ascii_digit().then(|| digit - b'0')?);
            }
            Some((host, Some(u16::try_from(port).ok()?)))
        }
        _ => None,
    }
}

/// Bytes that come in pieces, and then the end.
pub struct Pieces<'d> {
    pub bytes: &'d [u8],
    /// At most so many at once.
    pub most: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let count = self.bytes.len().min(self.most).min(buffer.remaining());
        let (now, later) = self.bytes.split_at(count);
        buffer.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

/// The outcome of what has nothing to wait for.
pub fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits for something that never comes"),
    }
}
