//! The first message of a client, before there is anybody to relay it to: RFC 6455 frames read into one text, under a
//! bound of bytes. Pure: bytes in, what to do out.

use zeroize::Zeroizing;

use crate::frame::{self, Head, OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, OPCODE_TEXT};

const OPCODE_CONTINUATION: u8 = 0;
const OPCODE_BINARY: u8 = 2;

/// Takes bytes until a message is whole.
pub struct Intake {
    bytes: Zeroizing<Vec<u8>>,
    /// What of `bytes` has been looked at: whole frames.
    used: usize,
    message: Zeroizing<Vec<u8>>,
    /// In a message that is sent in fragments.
    is_under_way: bool,
    max_bytes: usize,
    control_frames: usize,
    answers: Vec<u8>,
}

/// What a client sent instead of its first message, as the Close frame for it says (RFC 6455 section 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not as section 5 has it: not masked, reserved bits, control frames too long or in pieces.
    Protocol,
    NotText,
    NotUtf8,
    TooBig,
    /// A Close.
    Closed,
}

impl Fault {
    pub fn close_code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::NotText => 1003,
            Self::NotUtf8 => 1007,
            Self::TooBig => 1009,
            Self::Closed => 1000,
        }
    }

    pub fn says(self) -> &'static str {
        match self {
            Self::Protocol => "the first message breaks the framing of WebSockets",
            Self::NotText => "the first message is not text",
            Self::NotUtf8 => "the first message is not UTF-8",
            Self::TooBig => "the first message is too big",
            Self::Closed => "the client closed before its first message",
        }
    }
}

/// The first message, and the bytes behind it.
#[derive(Debug, PartialEq, Eq)]
pub struct First {
    pub text: Zeroizing<String>,
    pub rest: Vec<u8>,
}

/// Pings and pongs before the first message: each is answered, so there is an end to it.
const MAX_CONTROL_FRAMES: usize = 16;

impl Intake {
    pub fn new(max_bytes: usize) -> Self {
        Self {
            bytes: Zeroizing::default(),
            used: 0,
            message: Zeroizing::default(),
            is_under_way: false,
            max_bytes,
            control_frames: 0,
            answers: Vec::new(),
        }
    }

    /// Pongs that are due by now.
    pub fn take_answers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.answers)
    }

    /// Takes more bytes; the first message once it is whole.
    ///
    /// # Errors
    /// The first [`Fault`], at the earliest byte that shows it.
    pub fn take(&mut self, more: &[u8]) -> Result<Option<First>, Fault> {
        self.bytes.extend_from_slice(more);
        while let Some(header) = Head::read(&self.bytes[self.used..]) {
            self.check(&header)?;
            // Below the bounds that were just checked.
            let length = usize::try_from(header.length).map_err(|_| Fault::TooBig)?;
            let start = self.used + header.size;
            let Some(payload) = self.bytes.get(start..start + length) else { return Ok(None) };
            let mask = header.mask.ok_or(Fault::Protocol)?;
            let payload: Zeroizing<Vec<u8>> =
                payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect::<Vec<u8>>().into();
            self.used = start + length;
            if self.frame(&header, &payload)? {
                let text = std::str::from_utf8(&self.message).map_err(|_| Fault::NotUtf8)?;
                let text = Zeroizing::new(text.to_owned());
                return Ok(Some(First { text, rest: self.bytes.split_off(self.used) }));
            }
        }
        Ok(None)
    }

    fn check(&self, header: &Head) -> Result<(), Fault> {
        let is_control = header.opcode >= 8;
        if header.mask.is_none() || header.reserved || (is_control && (!header.is_final || header.length > 125)) {
            return Err(Fault::Protocol);
        }
        match header.opcode {
            OPCODE_CLOSE | OPCODE_PING | OPCODE_PONG => Ok(()),
            OPCODE_TEXT if self.is_under_way => Err(Fault::Protocol),
            OPCODE_CONTINUATION if !self.is_under_way => Err(Fault::Protocol),
            OPCODE_TEXT | OPCODE_CONTINUATION => {
                let room = (self.max_bytes - self.message.len()) as u64;
                if header.length > room { Err(Fault::TooBig) } else { Ok(()) }
            }
            OPCODE_BINARY => Err(Fault::NotText),
            _ => Err(Fault::Protocol),
        }
    }

    /// Whether the message is whole with it.
    fn frame(&mut self, header: &Head, payload: &[u8]) -> Result<bool, Fault> {
        match header.opcode {
            OPCODE_CLOSE => return Err(Fault::Closed),
            OPCODE_PING | OPCODE_PONG => {
                self.control_frames += 1;
                if self.control_frames > MAX_CONTROL_FRAMES {
                    return Err(Fault::TooBig);
                }
                if header.opcode == OPCODE_PING {
                    self.answers.extend(frame::control(OPCODE_PONG, payload, None));
                }
                return Ok(false);
            }
            _ => {
                if self.message.is_empty() {
                    // All the room that it may need: a vector that grows leaves copies behind that nobody wipes.
                    self.message.reserve_exact(if header.is_final { payload.len() } else { self.max_bytes });
                }
                self.message.extend_from_slice(payload);
            }
        }
        // Fragments of nothing are without end too.
        self.control_frames += usize::from(header.length == 0);
        if self.control_frames > MAX_CONTROL_FRAMES {
            return Err(Fault::TooBig);
        }
        self.is_under_way = !header.is_final;
        Ok(header.is_final)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match u8::try_from(payload.len()) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn taken(max_bytes: usize, stream: &[u8], cut: usize) -> (Result<Option<First>, Fault>, Vec<u8>) {
        let mut intake = Intake::new(max_bytes);
        let mut result = Ok(None);
        let mut at = 0;
        while at < stream.len() && result == Ok(None) {
            let end = (at + cut).min(stream.len());
            result = intake.take(&stream[at..end]);
            at = end;
        }
        if let Ok(Some(first)) = &mut result {
            first.rest.extend_from_slice(&stream[at..]);
        }
        (result, intake.take_answers())
    }

    #[test]
    fn a_message_is_put_together_however_it_comes() {
        let stream = [
            masked(0x01, b"he"),
            masked(0x89, b"are you there"),
            masked(0x00, b"ll"),
            masked(0x8a, b""),
            masked(0x80, b"o"),
            masked(0x82, b"later"),
        ]
        .concat();
        for cut in [1, 2, 3, 5, 1000] {
            let (first, answers) = taken(5, &stream, cut);
            let wanted = First { text: Zeroizing::new("hello".to_owned()), rest: masked(0x82, b"later") };
            assert_eq!(first, Ok(Some(wanted)), "cut {cut}");
            assert_eq!(answers, [&[0x8a, 13][..], b"are you there"].concat());
        }
    }

    #[test]
    fn whatever_else_comes_has_a_code() {
        let long = masked(0x81, &[b'a'; 6]);
        let pings: Vec<u8> = (0..20).flat_map(|_| masked(0x89, b"")).collect();
        let nothings: Vec<u8> =
            [masked(0x01, b"")].into_iter().chain((0..20).map(|_| masked(0x00, b""))).flatten().collect();
        for (stream, fault) in [
            (&long[..6], Fault::TooBig),
            (&[masked(0x01, b"abc"), masked(0x80, b"abc")].concat(), Fault::TooBig),
            (&pings, Fault::TooBig),
            (&nothings, Fault::TooBig),
            (&[0x81, 1, b'a'], Fault::Protocol),
            (&masked(0xc1, b"a"), Fault::Protocol),
            (&masked(0x80, b"a"), Fault::Protocol),
            (&masked(0x83, b"a"), Fault::Protocol),
            (&masked(0x09, b"a"), Fault::Protocol),
            (&[masked(0x01, b"a"), masked(0x81, b"b")].concat(), Fault::Protocol),
            (&masked(0x82, b"a"), Fault::NotText),
            (&masked(0x81, &[0xff]), Fault::NotUtf8),
            (&masked(0x88, &[3, 232]), Fault::Closed),
            (&[0x81, 0x80 | 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4], Fault::TooBig),
        ] {
            for cut in [1, 1000] {
                assert_eq!(taken(5, stream, cut).0, Err(fault), "{stream:?}");
            }
        }
    }
}
