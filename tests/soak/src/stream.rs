//! What one end of a tunnel sends: frames from a seed, so that the other end knows every byte of it without being told.

use crate::deflate::{Context, Deflate};

/// Numbers from a seed (splitmix64).
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// From 0 on, below this.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client: masked, with Pings.
    Up,
    /// To it: bare, with Pongs. The proxy sends Pings of its own there, so that there are no others.
    Down,
}

/// The frames of one direction, without end.
pub(crate) struct Stream {
    rng: Rng,
    direction: Direction,
    deflate: Deflate,
    context: Context,
    in_message: bool,
    /// The message under way, if it is a deflated one.
    deflated: Option<Deflated>,
}

struct Deflated {
    plain: Vec<u8>,
    payload: Vec<u8>,
    /// How much of the payload is in the frames so far.
    at: usize,
}

impl Stream {
    pub(crate) fn new(seed: u64, direction: Direction, deflate: Deflate) -> Self {
        let salt = if direction == Direction::Up { 1 } else { 2 };
        let rng = Rng::new(Rng::new(seed).next() ^ salt);
        Self { rng, direction, deflate, context: Context::new(deflate), in_message: false, deflated: None }
    }

    /// The next frame in the place of this one. Whether it ends a message.
    pub(crate) fn next(&mut self, frame: &mut Vec<u8>) -> bool {
        let is_up = self.direction == Direction::Up;
        if self.rng.chance(5) {
            // Not of 8 bytes, as those of the proxy are.
            let size = Some(self.rng.below(126)).filter(|size| *size != 8).unwrap_or(9);
            let mask = self.mask();
            header(frame, if is_up { 0x89 } else { 0x8a }, size, mask);
            self.fill(frame, size);
            return false;
        }
        let opcode = if self.in_message { 0 } else { self.begin() };
        let is_final = self.rng.chance(80);
        self.in_message = !is_final;
        let first = opcode | if is_final { 0x80 } else { 0 };
        let mask = self.mask();
        if let Some(deflated) = &mut self.deflated {
            let left = &deflated.payload[deflated.at..];
            let size = if is_final { left.len() } else { self.rng.below(left.len() as u64 + 1) as usize };
            header(frame, first, size as u64, mask);
            let key = mask.unwrap_or_default();
            frame.extend(left[..size].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
            deflated.at += size;
        } else {
            let size = self.size();
            header(frame, first, size, mask);
            self.fill(frame, size);
        }
        is_final
    }

    /// The opcode and the flags of the first frame of a message. What the message is to say, if it is deflated.
    fn begin(&mut self) -> u8 {
        let opcode = self.rng.between(1, 2) as u8;
        self.deflated = None;
        if self.deflate == Deflate::Off || self.rng.chance(50) {
            return opcode;
        }
        let size = self.size() as usize;
        let plain = plain(&mut self.rng, size);
        let payload = self.context.deflate(&plain);
        self.deflated = Some(Deflated { plain, payload, at: 0 });
        opcode | 0x40
    }

    /// What the message that has ended said, if it was a deflated one. It is kept until then.
    pub(crate) fn take_plain(&mut self) -> Option<Vec<u8>> {
        self.deflated.take().map(|deflated| deflated.plain)
    }

    fn mask(&mut self) -> Option<[u8; 4]> {
        (self.direction == Direction::Up).then(|| (self.rng.next() as u32).to_be_bytes())
    }

    /// What stands there is taken for masked already.
    fn fill(&mut self, frame: &mut Vec<u8>, size: u64) {
        let end = frame.len() + size as usize;
        while frame.len() < end {
            let word = self.rng.next().to_le_bytes();
            let left = (end - frame.len()).min(word.len());
            frame.extend_from_slice(&word[..left]);
        }
    }

    fn size(&mut self) -> u64 {
        match self.rng.below(1000) {
            0..600 => self.rng.below(126),
            600..930 => self.rng.between(126, 4096),
            930..995 => self.rng.between(4096, 65_535),
            _ => self.rng.between(65_536, 400_000),
        }
    }
}

/// A text that deflates to about half: some of it is like nothing before, most of it is.
pub(crate) fn plain(rng: &mut Rng, size: usize) -> Vec<u8> {
    const WORDS: [&[u8; 8]; 8] = [
        b"{\"type\":",
        b"\"price\",",
        b"\"value\":",
        b"null,   ",
        b"},{\"id\":",
        b"\0\0\0\0\0\0\0\0",
        b"\"tunnel\"",
        b"00000000",
    ];
    let mut text = Vec::with_capacity(size + 8);
    while text.len() < size {
        let word = rng.next();
        let known = WORDS[(word >> 32) as usize % WORDS.len()];
        text.extend(if word.is_multiple_of(3) { word.to_le_bytes() } else { *known });
    }
    text.truncate(size);
    text
}

fn header(frame: &mut Vec<u8>, first: u8, size: u64, mask: Option<[u8; 4]>) {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    frame.clear();
    frame.push(first);
    match size {
        0..126 => frame.push(bit | size as u8),
        126..65_536 => {
            frame.push(bit | 126);
            frame.extend((size as u16).to_be_bytes());
        }
        _ => {
            frame.push(bit | 127);
            frame.extend(size.to_be_bytes());
        }
    }
    frame.extend(mask.iter().flatten());
}

/// What a whole frame carries, unmasked.
fn payload(frame: &[u8]) -> impl Iterator<Item = u8> {
    let (is_masked, size) = (frame[1] & 0x80 != 0, frame[1] & 0x7f);
    let head = 2 + match size {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let (mask, from) = match is_masked {
        true => ([frame[head], frame[head + 1], frame[head + 2], frame[head + 3]], head + 4),
        false => ([0; 4], head),
    };
    frame[from..].iter().zip(mask.into_iter().cycle()).map(|(byte, key)| byte ^ key)
}

/// A short control frame with this payload.
pub(crate) fn control(first: u8, payload: &[u8], direction: Direction) -> Vec<u8> {
    let mask = (direction == Direction::Up).then_some([0x5a, 1, 2, 3]);
    let mut frame = Vec::new();
    header(&mut frame, first, payload.len() as u64, mask);
    let key = mask.unwrap_or_default();
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Our own reason in a Close, by which it is told from one of the proxy.
pub(crate) const OURS: &str = "soak";

pub(crate) fn close(code: u16, direction: Direction) -> Vec<u8> {
    control(0x88, &[&code.to_be_bytes()[..], OURS.as_bytes()].concat(), direction)
}

/// A Close that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

impl Close {
    pub(crate) fn is_ours(&self) -> bool {
        self.reason == OURS
    }
}

/// What deflated messages were, as they came and inflated.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Inflated {
    pub(crate) messages: u64,
    pub(crate) payload: u64,
    pub(crate) plain: u64,
}

/// Compares what comes with what the other end sends: each byte of the frames, and what deflated messages say.
pub(crate) struct Check {
    stream: Stream,
    context: Context,
    /// The payload of the deflated message under way.
    payload: Vec<u8>,
    pub(crate) inflated: Inflated,
    frame: Vec<u8>,
    at: usize,
    /// A frame that is not of the stream, as far as it has come.
    other: Vec<u8>,
    /// Bytes and messages of the other end, its Close included.
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    ends_message: bool,
    pub(crate) close: Option<Close>,
    /// Payloads of Pings of the proxy that want an answer.
    pub(crate) pings: Vec<Vec<u8>>,
    pub(crate) ping_count: u64,
}

impl Check {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            context: Context::new(stream.deflate),
            stream,
            payload: Vec::new(),
            inflated: Inflated::default(),
            frame: Vec::new(),
            at: 0,
            other: Vec::new(),
            bytes: 0,
            messages: 0,
            ends_message: false,
            close: None,
            pings: Vec::new(),
            ping_count: 0,
        }
    }

    /// # Errors
    /// What has come is not what was sent.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.close.is_some() {
                return Err(format!("{} bytes behind a Close", bytes.len()));
            }
            if self.at == self.frame.len() && self.other.is_empty() {
                self.ends_message = self.stream.next(&mut self.frame);
                self.at = 0;
            }
            let is_down = self.stream.direction == Direction::Down;
            let is_other = self.at == 0 && (bytes[0] == 0x88 || is_down && bytes[0] == 0x89);
            if is_other || !self.other.is_empty() {
                self.other.push(bytes[0]);
                bytes = &bytes[1..];
                self.take_other()?;
                continue;
            }
            let count = bytes.len().min(self.frame.len() - self.at);
            let expected = &self.frame[self.at..self.at + count];
            if let Some(wrong) = expected.iter().zip(bytes).position(|(one, other)| one != other) {
                return Err(format!("byte {} is another than was sent", self.bytes + wrong as u64));
            }
            self.at += count;
            self.bytes += count as u64;
            bytes = &bytes[count..];
            if self.at == self.frame.len() {
                self.messages += u64::from(self.ends_message);
                self.read_deflated()?;
                // Large frames are rare, and there are thousands of us.
                if self.frame.capacity() > 16 * 1024 {
                    (self.frame, self.at) = (Vec::new(), 0);
                }
            }
        }
        Ok(())
    }

    /// Inflates what has come, when a frame is complete that ends a deflated message.
    fn read_deflated(&mut self) -> Result<(), String> {
        // No control frame.
        if self.stream.deflated.is_none() || self.frame[0] & 8 != 0 {
            return Ok(());
        }
        self.payload.extend(payload(&self.frame));
        if !self.ends_message {
            return Ok(());
        }
        let came = std::mem::take(&mut self.payload);
        let plain = self.stream.take_plain().unwrap_or_default();
        self.inflated.messages += 1;
        self.inflated.payload += came.len() as u64;
        self.inflated.plain += plain.len() as u64;
        if self.context.inflate(came, plain.len())? != plain {
            return Err(format!("message {} inflates to another text than was sent", self.messages));
        }
        Ok(())
    }

    fn take_other(&mut self) -> Result<(), String> {
        let Some(&second) = self.other.get(1) else { return Ok(()) };
        let (masked, length) = (second & 0x80 != 0, usize::from(second & 0x7f));
        if masked != (self.stream.direction == Direction::Up) || length > 125 {
            return Err(format!("a control frame that is none: {:02x?}", self.other));
        }
        let head = if masked { 6 } else { 2 };
        if self.other.len() < head + length {
            return Ok(());
        }
        let frame = std::mem::take(&mut self.other);
        let mask = if masked { [frame[2], frame[3], frame[4], frame[5]] } else { [0; 4] };
        let payload: Vec<u8> = frame[head..].iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        if frame[0] == 0x89 {
            self.pings.push(payload);
            self.ping_count += 1;
            return self.repeat();
        }
        let (code, reason) = payload.split_at_checked(2).ok_or("a Close without a code")?;
        let code = u16::from_be_bytes([code[0], code[1]]);
        let close = Close { code, reason: String::from_utf8_lossy(reason).into_owned() };
        if close.is_ours() {
            self.bytes += frame.len() as u64;
        }
        self.close = Some(close);
        Ok(())
    }

    /// The frame that was made ready has not begun: it is the next one still.
    fn repeat(&mut self) -> Result<(), String> {
        if self.at == 0 { Ok(()) } else { Err("a frame inside of a frame".to_owned()) }
    }

    /// Whether a frame has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        self.at > 0 && self.at < self.frame.len() || !self.other.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(direction: Direction, deflate: Deflate) -> (Stream, Check) {
        let stream = || Stream::new(7, direction, deflate);
        (stream(), Check::new(stream()))
    }

    fn ways() -> impl Iterator<Item = (Direction, Deflate)> {
        let kinds = [Deflate::Off, Deflate::Alone, Deflate::Linked];
        [Direction::Up, Direction::Down].into_iter().flat_map(move |way| kinds.map(|deflate| (way, deflate)))
    }

    #[test]
    fn what_was_sent_is_known_however_it_is_cut() {
        for ((direction, deflate), cut) in ways().flat_map(|way| [1, 3, 1000, 1_000_000].map(|cut| (way, cut))) {
            let (mut stream, mut check) = both(direction, deflate);
            let (mut sent, mut frame, mut messages, mut pings) = (Vec::new(), Vec::new(), 0, 0);
            for number in 0..200 {
                messages += u64::from(stream.next(&mut frame));
                sent.extend_from_slice(&frame);
                if number % 50 == 0 && direction == Direction::Down {
                    sent.extend(control(0x89, b"of proxy", direction));
                    pings += 1;
                }
            }
            sent.extend(close(1000, direction));
            sent.chunks(cut).for_each(|piece| check.take(piece).unwrap());
            assert_eq!((check.messages, check.pings.len()), (messages, pings));
            assert!(check.close.as_ref().unwrap().is_ours());
            let inflated = check.inflated;
            assert_eq!(inflated.messages > 20, deflate != Deflate::Off, "{inflated:?}");
            assert!(inflated.payload <= inflated.plain, "{inflated:?}");
            assert!(check.take(b"x").is_err());
        }
    }

    #[test]
    fn a_byte_that_is_lost_or_doubled_or_changed_is_seen() {
        for (direction, deflate) in ways() {
            let (mut stream, _) = both(direction, deflate);
            let (mut sent, mut frame) = (Vec::new(), Vec::new());
            while sent.len() < 10_000 {
                stream.next(&mut frame);
                sent.extend_from_slice(&frame);
            }
            for at in [0, 1, 77, 5000] {
                let mut lost = sent.clone();
                lost.remove(at);
                let mut doubled = sent.clone();
                doubled.insert(at, sent[at]);
                let mut changed = sent.clone();
                changed[at] ^= 4;
                for wrong in [lost, doubled, changed] {
                    assert!(both(direction, deflate).1.take(&wrong).is_err(), "{at}");
                }
            }
        }
    }

    /// Both ends make the same frames, so that a fault of the encoder would be none of the comparison before it.
    #[test]
    fn a_message_that_says_something_else_is_seen() {
        for deflate in [Deflate::Alone, Deflate::Linked] {
            let (mut stream, mut check) = both(Direction::Up, deflate);
            let mut frame = Vec::new();
            let seen = (0..200).any(|_| {
                stream.next(&mut frame);
                check.take(&frame[..1]).unwrap();
                let plain = check.stream.deflated.as_mut().and_then(|deflated| deflated.plain.first_mut());
                plain.into_iter().for_each(|byte| *byte ^= 1);
                check.take(&frame[1..]).is_err_and(|why| why.contains("another text"))
            });
            assert!(seen, "{deflate:?}");
        }
    }
}
