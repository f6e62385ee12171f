//! RFC 6455 frame headers, and nothing more: follow frames as they pass, write a Close or a Ping between two of them.

mod fault;
mod head;
mod write;

pub use self::fault::Fault;
pub use self::head::Head;
pub use self::write::{PingPayload, close, control, ping, text};

/// Follows one direction of a tunnel through its frames (RFC 6455 section 5.2), without looking at payloads. It knows at
/// each byte whether a frame is under way, so that a Close of ours can never land inside one.
#[derive(Debug)]
pub struct Follower {
    state: State,
    /// Frames from the client are masked, those to it are not (section 5.1).
    masked: bool,
    /// Reserved bits mean something only if an extension was agreed on.
    extensions: bool,
    /// Faults that hide no boundary count as well.
    strict: bool,
    /// A message has begun, and its last fragment has not come.
    in_message: bool,
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

/// What the next bytes of a direction are.
#[derive(Debug)]
pub enum Ahead {
    /// So many of them belong to the payload of the frame that is under way.
    Payload(usize),
    /// A header that they do not complete.
    PartOfHeader,
    Header(Header),
    /// Nobody knows.
    Lost,
}

/// A complete header.
#[derive(Debug)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    length: usize,
    /// So many of its bytes came before those that were asked about.
    before: usize,
    pub opcode: u8,
    pub is_final: bool,
    pub payload: u64,
    /// Why it is none. Nothing else in it means anything then.
    pub fault: Option<Fault>,
}

impl Header {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Those that came before.
    pub fn first_part(&self) -> &[u8] {
        &self.bytes[..self.before]
    }

    /// How many of the bytes that were asked about belong to it.
    pub fn rest(&self) -> usize {
        self.length - self.before
    }
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
pub const OPCODE_TEXT: u8 = 1;
pub const OPCODE_CLOSE: u8 = 8;
pub const OPCODE_PING: u8 = 9;
pub const OPCODE_PONG: u8 = 10;
/// Control frames have short payloads (section 5.5).
const MAX_CONTROL: u64 = 125;
const BETWEEN: State = State::Header { bytes: [0; MAX_HEADER], have: 0 };

impl Follower {
    /// For bytes that come from the client.
    pub fn from_client(extensions: bool) -> Self {
        Self {
            state: BETWEEN,
            masked: true,
            extensions,
            strict: false,
            in_message: false,
            messages: 0,
            close: Close::None,
        }
    }

    /// For bytes that come from the upstream.
    pub fn from_upstream(extensions: bool) -> Self {
        Self { masked: false, ..Self::from_client(extensions) }
    }

    /// Takes for a fault what breaks a rule and hides no boundary, too.
    #[must_use]
    pub fn strict(self, strict: bool) -> Self {
        Self { strict, ..self }
    }

    /// Whole data messages so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether the last byte seen was the last of a frame (or none was seen).
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    /// Whether the next byte belongs to a header, be it the first of it or not.
    pub fn is_in_header(&self) -> bool {
        matches!(self.state, State::Header { .. })
    }

    /// The bytes of a header that is not complete.
    pub fn part_of_header(&self) -> &[u8] {
        match &self.state {
            State::Header { bytes, have } => &bytes[..usize::from(*have)],
            State::Payload { .. } | State::Lost => &[],
        }
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

    /// What these bytes begin with, without following them.
    pub fn look_ahead(&self, input: &[u8]) -> Ahead {
        let (mut bytes, before) = match &self.state {
            State::Lost => return Ahead::Lost,
            State::Payload { left } => {
                return Ahead::Payload(usize::try_from(*left).unwrap_or(usize::MAX).min(input.len()));
            }
            State::Header { bytes, have } => (*bytes, usize::from(*have)),
        };
        let there = (before + input.len()).min(MAX_HEADER);
        bytes[before..there].copy_from_slice(&input[..there - before]);
        let length = header_length(bytes[1]);
        if there < 2 || there < length {
            return Ahead::PartOfHeader;
        }
        let payload = payload_length(&bytes);
        let fault = self.is_broken(&bytes, payload).then(|| self.fault(&bytes, payload));
        let (opcode, is_final) = (bytes[0] & 0x0f, bytes[0] & 0x80 != 0);
        Ahead::Header(Header { bytes, length, before, opcode, is_final, payload, fault })
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
        let (is_final, opcode) = (first & 0x80 != 0, first & 0x0f);
        let left = payload_length(header);
        if self.is_broken(header, left) {
            return State::Lost;
        }
        if opcode < OPCODE_CLOSE {
            self.in_message = !is_final;
            self.messages += u64::from(is_final);
        } else if opcode == OPCODE_CLOSE {
            let at = header_length(second).saturating_sub(4);
            let mask = if self.masked { [header[at], header[at + 1], header[at + 2], header[at + 3]] } else { [0; 4] };
            self.close = if left == 0 { Close::Passed(None) } else { Close::Reading { mask, code: [0; 2], have: 0 } };
        }
        if left == 0 { BETWEEN } else { State::Payload { left } }
    }

    fn is_broken(&self, header: &[u8; MAX_HEADER], left: u64) -> bool {
        let (first, second) = (header[0], header[1]);
        let (is_final, reserved, opcode) = (first & 0x80 != 0, first & 0x70 != 0, first & 0x0f);
        let is_out_of_place = if opcode < OPCODE_CLOSE {
            opcode > 2 || (opcode == 0) != self.in_message
        } else {
            opcode > OPCODE_PONG || !is_final || left > MAX_CONTROL
        };
        (second & 0x80 != 0) != self.masked
            || (reserved && !self.extensions)
            || is_out_of_place
            || left > u64::MAX >> 1
            || self.saw_close()
            || (self.strict && is_odd(header, left))
    }

    /// What is wrong with a header that is broken.
    #[cold]
    fn fault(&self, header: &[u8; MAX_HEADER], left: u64) -> Fault {
        let (first, second) = (header[0], header[1]);
        let (is_final, reserved, opcode) = (first & 0x80 != 0, first & 0x70 != 0, first & 0x0f);
        let is_masked = second & 0x80 != 0;
        if self.saw_close() {
            Fault::AfterClose
        } else if reserved && !self.extensions {
            Fault::ReservedBits
        } else if matches!(opcode, 3..=7 | 11..) {
            Fault::ReservedOpcode
        } else if is_masked != self.masked {
            if is_masked { Fault::Masked } else { Fault::NotMasked }
        } else if opcode >= OPCODE_CLOSE && !is_final {
            Fault::FragmentedControl
        } else if opcode >= OPCODE_CLOSE && left > MAX_CONTROL || opcode == OPCODE_CLOSE && left == 1 {
            Fault::ControlLength
        } else if opcode == 0 && !self.in_message {
            Fault::UnexpectedContinuation
        } else if matches!(opcode, 1 | 2) && self.in_message {
            Fault::ExpectedContinuation
        } else {
            Fault::BadLength
        }
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

pub fn header_length(second: u8) -> usize {
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + if second & 0x80 != 0 { 4 } else { 0 }
}

fn payload_length(header: &[u8; MAX_HEADER]) -> u64 {
    match header[1] & 0x7f {
        126 => u64::from(u16::from_be_bytes([header[2], header[3]])),
        127 => header[2..10].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        short => u64::from(short),
    }
}

/// Rules that may be broken without hiding where a frame ends: lengths are written in the fewest bytes, and a Close says
/// nothing or a whole code.
fn is_odd(header: &[u8; MAX_HEADER], left: u64) -> bool {
    let is_long_winded = match header[1] & 0x7f {
        126 => left < 126,
        127 => u16::try_from(left).is_ok(),
        _ => false,
    };
    is_long_winded || header[0] & 0x0f == OPCODE_CLOSE && left == 1
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
        let mid_message = [frame(0x01, 1, true), frame(0x81, 1, true)].concat();
        let bad: [&[u8]; 8] = [
            b"GET / HTTP/1.1\r\n",
            &[0x81, 0x01, 0],
            &long_control,
            &[0xc1, 0x80],
            &[0x83, 0x80],
            &[0x09, 0x80],
            &[0x80, 0x80],
            &mid_message,
        ];
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

    /// Where the bytes of a header came from makes no difference to what is said of it.
    #[test]
    fn every_fault_has_its_word() {
        let start = frame(0x02, 0, true);
        let goodbye = close(1000, "", Some([1; 4]));
        let cases: [(&[u8], &[u8], Fault); 15] = [
            (&[], &[0xc2, 0x80, 0, 0, 0, 0], Fault::ReservedBits),
            (&[], &[0x83, 0x80, 0, 0, 0, 0], Fault::ReservedOpcode),
            (&[], &[0x8b, 0x80, 0, 0, 0, 0], Fault::ReservedOpcode),
            (&[], &[0x82, 0x00], Fault::NotMasked),
            (&[], &[0x09, 0x80, 0, 0, 0, 0], Fault::FragmentedControl),
            (&[], &[0x89, 0xfe, 0, 126, 0, 0, 0, 0], Fault::ControlLength),
            (&[], &[0x88, 0x81, 0, 0, 0, 0], Fault::ControlLength),
            (&[], &[0x80, 0x80, 0, 0, 0, 0], Fault::UnexpectedContinuation),
            (&start, &[0x82, 0x80, 0, 0, 0, 0], Fault::ExpectedContinuation),
            (&[], &[0x82, 0xfe, 0, 125, 0, 0, 0, 0], Fault::BadLength),
            (&[], &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0], Fault::BadLength),
            (&[], &[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Fault::BadLength),
            (&goodbye, &[0x82, 0x80, 0, 0, 0, 0], Fault::AfterClose),
            (&goodbye, &[0x82, 0x00], Fault::AfterClose),
            (&[], &[0x03, 0x00], Fault::ReservedOpcode),
        ];
        for (before, header, wanted) in cases {
            for cut in 0..header.len() {
                let mut follower = Follower::from_client(false).strict(true);
                follower.follow(before);
                follower.follow(&header[..cut]);
                assert_eq!(follower.part_of_header(), &header[..cut]);
                let Ahead::Header(found) = follower.look_ahead(&header[cut..]) else { panic!("{header:?} at {cut}") };
                assert_eq!((found.fault, found.bytes()), (Some(wanted), header));
                assert_eq!((found.first_part().len(), found.rest()), (cut, header.len() - cut));
            }
        }
        let Ahead::Header(found) = Follower::from_upstream(false).look_ahead(&[0x82, 0x80, 0, 0, 0, 0]) else {
            panic!("a whole header")
        };
        assert_eq!(found.fault, Some(Fault::Masked));
        let words: std::collections::HashSet<&str> = Fault::ALL.into_iter().map(Fault::word).collect();
        assert_eq!(words.len(), Fault::ALL.len());
    }

    /// As it was before anybody asked for strictness.
    #[test]
    fn what_hides_no_boundary_is_followed() {
        let mut follower = Follower::from_client(false);
        follower.follow(&[0x82, 0xfe, 0, 1, 0, 0, 0, 0, b'x', 0x88, 0x81, 0, 0, 0, 0, b'x']);
        assert_eq!((follower.is_between(), follower.messages(), follower.saw_close()), (true, 1, true));
        assert_eq!(follower.close_code(), None);
    }
}
