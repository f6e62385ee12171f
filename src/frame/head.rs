//! A frame's header, for those who read whole frames.

use super::header_length;

/// A frame's header, read at once. What is wrong with it is for the reader to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub is_final: bool,
    /// Whether one of the reserved bits is set.
    pub reserved: bool,
    pub opcode: u8,
    /// Of the payload, in bytes.
    pub length: u64,
    pub mask: Option<[u8; 4]>,
    /// Bytes of the header itself.
    pub size: usize,
}

impl Head {
    /// `None` while it is not whole.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (&[first, second], _) = bytes.split_first_chunk()?;
        let size = header_length(second);
        let rest = bytes.get(2..size)?;
        let is_masked = second & 0x80 != 0;
        let (length, mask) = rest.split_at(rest.len() - if is_masked { 4 } else { 0 });
        Some(Self {
            is_final: first & 0x80 != 0,
            reserved: first & 0x70 != 0,
            opcode: first & 0x0f,
            length: match second & 0x7f {
                short @ 0..126 => u64::from(short),
                _ => length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
            },
            mask: mask.try_into().ok(),
            size,
        })
    }
}
