//! As much of RFC 6455 as a load generator and an echo server need: headers of frames, masks, `Sec-WebSocket-Accept`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
/// Any mask does: what counts is that the other side has to undo one.
pub(crate) const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

pub(crate) fn accept(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// One frame, masked as clients send them or bare as servers do.
pub(crate) fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 14);
    put_header(&mut frame, first, payload.len(), mask.is_some());
    frame.extend(mask.iter().flatten());
    let at = frame.len();
    frame.extend_from_slice(payload);
    if let Some(mask) = mask {
        unmask(&mut frame[at..], mask);
    }
    frame
}

/// The header up to the mask.
pub(crate) fn put_header(out: &mut Vec<u8>, first: u8, length: usize, is_masked: bool) {
    let bit = if is_masked { 0x80 } else { 0 };
    out.push(first);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.push(bit | short),
        (_, Ok(length)) => {
            out.push(bit | 126);
            out.extend(length.to_be_bytes());
        }
        _ => {
            out.push(bit | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
}

/// A frame's header that was read.
pub(crate) struct Header {
    pub(crate) first: u8,
    /// Bytes of the header itself, mask included.
    pub(crate) length: usize,
    pub(crate) payload: usize,
    pub(crate) mask: Option<[u8; 4]>,
}

/// `None`: more bytes are needed.
pub(crate) fn header(bytes: &[u8]) -> Option<Header> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (length, payload) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        short => (2, u64::from(short)),
    };
    let payload = usize::try_from(payload).unwrap_or(usize::MAX);
    if second & 0x80 == 0 {
        return Some(Header { first, length, payload, mask: None });
    }
    let mask = *bytes.get(length..)?.first_chunk()?;
    Some(Header { first, length: length + 4, payload, mask: Some(mask) })
}

/// Puts a mask on, or takes it off.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask, mask].concat().try_into().unwrap_or_default());
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Bytes that are not all alike, so that a mix-up shows.
pub(crate) fn payload(size: usize) -> Vec<u8> {
    (0u8..=255).map(|at| at.wrapping_mul(7).wrapping_add(13)).cycle().take(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for size in [0, 1, 7, 125, 126, 65_535, 65_536] {
            for mask in [None, Some(MASK)] {
                let payload = payload(size);
                let mut frame = frame(BINARY, &payload, mask);
                let header = header(&frame).unwrap();
                assert_eq!((header.first, header.payload, header.mask), (BINARY, size, mask));
                assert_eq!(header.length + size, frame.len());
                if let Some(mask) = header.mask {
                    unmask(&mut frame[header.length..], mask);
                }
                assert_eq!(frame[header.length..], payload);
            }
        }
        assert!(header(&[0x82, 126, 1]).is_none());
    }

    /// The example of RFC 6455 section 1.3.
    #[test]
    fn accept_is_that_of_the_standard() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
