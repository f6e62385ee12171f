//! RFC 6455 frames, written by hand so that tests can place every byte.

/// A frame with a fixed mask, as clients send it.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
    let mut frame = header(0x80 | opcode, payload.len(), 0x80);
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A frame without a mask, as servers send it.
pub fn plain(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(0x80 | opcode, payload.len(), 0);
    frame.extend(payload);
    frame
}

/// Only the header of a frame from a server, for a payload that comes later.
pub fn plain_header(opcode: u8, length: usize) -> Vec<u8> {
    header(0x80 | opcode, length, 0)
}

/// Of a frame whose mask changes nothing.
pub fn masked_header(opcode: u8, length: usize) -> Vec<u8> {
    [header(0x80 | opcode, length, 0x80), vec![0; 4]].concat()
}

pub fn text(payload: &str) -> Vec<u8> {
    masked(1, payload.as_bytes())
}

pub fn close(code: u16) -> Vec<u8> {
    masked(8, &code.to_be_bytes())
}

fn header(first: u8, length: usize, mask: u8) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..126 => header.push(mask | u8::try_from(length).unwrap()),
        126..65536 => {
            header.push(mask | 126);
            header.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            header.push(mask | 127);
            header.extend((length as u64).to_be_bytes());
        }
    }
    header
}

/// One frame, unmasked.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub masked: bool,
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame out of whatever gives bytes; `None` where it gives too few.
    pub fn read(mut take: impl FnMut(usize) -> Option<Vec<u8>>) -> Option<Self> {
        let start = take(2)?;
        let masked = start[1] & 0x80 != 0;
        let length = match start[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes(take(2)?.try_into().unwrap())),
            127 => u64::from_be_bytes(take(8)?.try_into().unwrap()),
            short => u64::from(short),
        };
        let mask = if masked { take(4)? } else { vec![0; 4] };
        let payload = take(usize::try_from(length).unwrap())?;
        let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        Some(Self { opcode: start[0] & 0x0f, masked, payload })
    }

    /// The first frame in these bytes, and what follows it.
    pub fn split(mut bytes: &[u8]) -> Option<(Self, &[u8])> {
        let frame = Self::read(|count| {
            let (taken, rest) = bytes.split_at_checked(count)?;
            bytes = rest;
            Some(taken.to_vec())
        })?;
        Some((frame, bytes))
    }

    /// Code and reason, if it is a Close.
    pub fn close(&self) -> Option<(u16, String)> {
        let (code, reason) = self.payload.split_first_chunk::<2>()?;
        (self.opcode == 8).then(|| (u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned()))
    }
}
