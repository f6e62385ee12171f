//! RFC 6455 frame headers, and nothing more: follow frames as they pass, write a Close between two of them.

/// Follows one direction of a tunnel through its frames (RFC 6455 section 5.2), without looking at payloads. It knows at
/// each byte whether a frame is under way, so that a Close of ours can never land inside one.
#[derive(Debug)]
pub struct Follower {
    state: State,
    /// Frames from the client are masked, those to it are not (section 5.1).
    masked: bool,
    /// Reserved bits mean something only if an extension was agreed on.
    extensions: bool,
    messages: u64,
    close: Close,
}

#[derive(Debug)]
enum State {
    /// In a header: so many bytes of it are there.
    Header { bytes: [u8; MAX_HEADER], have: u8 },
    /// In a payload: so many bytes of it are to come.
    Payload { left: u64 },
    /// What passes is not what we know as WebSocket: it goes on untouched, and nothing is put between.
    Lost,
}

#[derive(Debug)]
enum Close {
    None,
    /// In the payload of a Close frame: its mask, and what is there of the code.
    Reading {
        mask: [u8; 4],
        code: [u8; 2],
        have: u8,
    },
    Passed(Option<u16>),
}

/// Two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;
pub const OPCODE_CONTINUATION: u8 = 0;
pub const OPCODE_TEXT: u8 = 1;
pub const OPCODE_BINARY: u8 = 2;
pub const OPCODE_CLOSE: u8 = 8;
pub const OPCODE_PING: u8 = 9;
pub const OPCODE_PONG: u8 = 10;
const BETWEEN: State = State::Header { bytes: [0; MAX_HEADER], have: 0 };

impl Follower {
    /// For bytes that come from the client.
    pub fn from_client(extensions: bool) -> Self {
        Self { state: BETWEEN, masked: true, extensions, messages: 0, close: Close::None }
    }

    /// For bytes that come from the upstream.
    pub fn from_upstream(extensions: bool) -> Self {
        Self { masked: false, ..Self::from_client(extensions) }
    }

    /// Whole data messages so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether the last byte seen was the last of a frame (or none was seen).
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    pub fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost)
    }

    pub fn saw_close(&self) -> bool {
        matches!(self.close, Close::Passed(_))
    }

    /// The code in the Close frame that passed, if it had one.
    pub fn close_code(&self) -> Option<u16> {
        match self.close {
            Close::Passed(code) => code,
            Close::None | Close::Reading { .. } => None,
        }
    }

    /// Follows all these bytes.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = self.step(bytes);
            bytes = &bytes[used..];
        }
    }

    /// Follows to the end of the frame that is under way and not beyond; says how many bytes that took.
    pub fn follow_to_end_of_frame(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() && !self.is_between() {
            used += self.step(&bytes[used..]);
        }
        used
    }

    /// One header or one stretch of payload; says how many bytes it took, at least one.
    fn step(&mut self, input: &[u8]) -> usize {
        match &mut self.state {
            State::Lost => input.len(),
            State::Payload { left } => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= used as u64;
                let is_over = *left == 0;
                self.close.read(&input[..used], is_over);
                if is_over {
                    self.state = BETWEEN;
                }
                used
            }
            // Nearly always: the whole header at once.
            State::Header { have: 0, .. } if input.len() >= MAX_HEADER => {
                let mut header = [0; MAX_HEADER];
                header.copy_from_slice(&input[..MAX_HEADER]);
                self.state = self.begin(&header);
                header_length(header[1])
            }
            State::Header { bytes, have } => {
                let mut used = 0;
                while let Some(&byte) = input.get(used) {
                    bytes[usize::from(*have)] = byte;
                    *have += 1;
                    used += 1;
                    let wanted = if *have < 2 { 2 } else { header_length(bytes[1]) };
                    if usize::from(*have) >= wanted {
                        let header = *bytes;
                        self.state = self.begin(&header);
                        break;
                    }
                }
                used
            }
        }
    }

    /// What follows a complete header.
    fn begin(&mut self, header: &[u8; MAX_HEADER]) -> State {
        let (first, second) = (header[0], header[1]);
        let (is_final, reserved, opcode) = (first & 0x80 != 0, first & 0x70 != 0, first & 0x0f);
        let is_masked = second & 0x80 != 0;
        let short = second & 0x7f;
        let left = match short {
            126 => u64::from(u16::from_be_bytes([header[2], header[3]])),
            127 => header[2..10].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
            short => u64::from(short),
        };
        let is_control = opcode >= 8;
        let broken = is_masked != self.masked
            || (reserved && !self.extensions)
            || matches!(opcode, 3..=7 | 11..)
            || (is_control && (!is_final || left > 125))
            || left > u64::MAX >> 1
            || self.saw_close();
        if broken {
            return State::Lost;
        }
        if is_final && !is_control {
            self.messages += 1;
        }
        if opcode == OPCODE_CLOSE {
            let at = header_length(second).saturating_sub(4);
            let mask = if is_masked { [header[at], header[at + 1], header[at + 2], header[at + 3]] } else { [0; 4] };
            self.close = if left == 0 { Close::Passed(None) } else { Close::Reading { mask, code: [0; 2], have: 0 } };
        }
        if left == 0 { BETWEEN } else { State::Payload { left } }
    }
}

impl Close {
    fn read(&mut self, payload: &[u8], is_over: bool) {
        let Self::Reading { mask, code, have } = self else { return };
        for byte in payload {
            let at = usize::from(*have);
            if at == code.len() {
                break;
            }
            code[at] = byte ^ mask[at];
            *have += 1;
        }
        if is_over {
            *self = Self::Passed((usize::from(*have) == code.len()).then(|| u16::from_be_bytes(*code)));
        }
    }
}

fn header_length(second: u8) -> usize {
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + if second & 0x80 != 0 { 4 } else { 0 }
}

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

/// A frame's header, read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub is_final: bool,
    /// Whether one of the reserved bits is set.
    pub reserved: bool,
    pub opcode: u8,
    pub length: u64,
    pub mask: Option<[u8; 4]>,
    /// Bytes of the header itself.
    pub size: usize,
}

impl Header {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with a payload of zeros.
    fn frame(first: u8, length: usize, mask: bool) -> Vec<u8> {
        let bit = if mask { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match u16::try_from(length) {
            Ok(short) if short < 126 => bytes.push(bit | short.to_be_bytes()[1]),
            Ok(short) => {
                bytes.push(bit | 126);
                bytes.extend(short.to_be_bytes());
            }
            Err(_) => {
                bytes.push(bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if mask {
            bytes.extend([1, 2, 3, 4]);
        }
        bytes.resize(bytes.len() + length, 0);
        bytes
    }

    #[test]
    fn boundaries_are_found_however_the_stream_is_cut() {
        let frames = [frame(0x81, 5, true), frame(0x02, 126, true), frame(0x89, 0, true), frame(0x80, 70_000, true)];
        let stream = frames.concat();
        let ends: Vec<usize> = frames
            .iter()
            .scan(0, |at, frame| {
                *at += frame.len();
                Some(*at)
            })
            .collect();
        for cut in [1, 2, 3, 7, 64, 1000, stream.len()] {
            let mut follower = Follower::from_client(false);
            let mut at = 0;
            for piece in stream.chunks(cut) {
                follower.follow(piece);
                at += piece.len();
                assert_eq!(follower.is_between(), ends.contains(&at), "cut {cut} at {at}");
            }
            assert_eq!(follower.messages(), 2, "a text, and a binary in two fragments");
        }
    }

    #[test]
    fn the_end_of_a_frame_is_not_passed() {
        let stream = [frame(0x82, 300, false), frame(0x81, 1, false)].concat();
        let mut follower = Follower::from_upstream(false);
        assert_eq!(follower.follow_to_end_of_frame(&stream), 0, "nothing is under way");
        follower.follow(&stream[..10]);
        assert_eq!(follower.follow_to_end_of_frame(&stream[10..]), 304 - 10);
        assert!(follower.is_between());
    }

    #[test]
    fn close_codes_are_read_through_the_mask() {
        for (mask, mut follower) in
            [(None, Follower::from_upstream(false)), (Some([9, 8, 7, 6]), Follower::from_client(false))]
        {
            for byte in close(4401, "revoked", mask) {
                assert!(!follower.saw_close());
                follower.follow(&[byte]);
            }
            assert_eq!((follower.saw_close(), follower.close_code()), (true, Some(4401)));
        }
        let mut follower = Follower::from_upstream(false);
        follower.follow(&[0x88, 0]);
        assert_eq!((follower.saw_close(), follower.close_code()), (true, None));
    }

    #[test]
    fn what_is_no_websocket_is_never_trusted_again() {
        let long_control = frame(0x89, 126, true);
        let bad: [&[u8]; 6] =
            [b"GET / HTTP/1.1\r\n", &[0x81, 0x01, 0], &long_control, &[0xc1, 0x80], &[0x83, 0x80], &[0x09, 0x80]];
        for bytes in bad {
            let mut follower = Follower::from_client(false);
            follower.follow(bytes);
            follower.follow(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
            assert!(follower.is_lost() && !follower.is_between(), "{bytes:?}");
        }
        let mut compressed = Follower::from_client(true);
        compressed.follow(&[0xc1, 0x80, 1, 2, 3, 4]);
        assert!(compressed.is_between());
    }
}
