//! Frames of ours.

use super::{OPCODE_CLOSE, OPCODE_PING};

/// A Close frame (RFC 6455 section 5.5.1). With a mask for an upstream, without for a client. The reason is a word of
/// ours and far below the 123 bytes that fit.
pub fn close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let payload: Vec<u8> = code.to_be_bytes().into_iter().chain(reason.bytes().take(123)).collect();
    let mut frame = Vec::with_capacity(payload.len() + 6);
    let length = u8::try_from(payload.len()).unwrap_or(125);
    frame.push(0x80 | OPCODE_CLOSE);
    match mask {
        None => {
            frame.push(length);
            frame.extend_from_slice(&payload);
        }
        Some(mask) => {
            frame.push(0x80 | length);
            frame.extend_from_slice(&mask);
            frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
    }
    frame
}

/// What a Ping of ours holds.
pub type PingPayload = [u8; 8];

/// A Ping for a client (RFC 6455 section 5.5.2).
pub fn ping(payload: PingPayload) -> [u8; 10] {
    let [a, b, c, d, e, f, g, h] = payload;
    [0x80 | OPCODE_PING, 8, a, b, c, d, e, f, g, h]
}
