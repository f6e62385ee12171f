//! Frames of ours.

use super::{MAX_HEADER, OPCODE_CLOSE, OPCODE_PING, OPCODE_TEXT};

/// A Close frame (RFC 6455 section 5.5.1). With a mask for an upstream, without for a client. The reason is a word of
/// ours and far below the 123 bytes that fit.
pub fn close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let payload: Vec<u8> = code.to_be_bytes().into_iter().chain(reason.bytes().take(123)).collect();
    control(OPCODE_CLOSE, &payload, mask)
}

/// A control frame: at most 125 bytes of payload.
pub fn control(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    write(opcode, &payload[..payload.len().min(125)], mask)
}

/// A text message in one frame, as a client sends it.
pub fn text(text: &str, mask: [u8; 4]) -> Vec<u8> {
    write(OPCODE_TEXT, text.as_bytes(), Some(mask))
}

fn write(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + MAX_HEADER);
    let bit = if mask.is_some() { 0x80 } else { 0 };
    frame.push(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length), _) if length < 126 => frame.push(bit | length),
        (_, Ok(length)) => {
            frame.push(bit | 126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            frame.push(bit | 127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    match mask {
        None => frame.extend_from_slice(payload),
        Some(mask) => {
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
