//! What is watched in one direction of a tunnel, where a route asks for it: sizes and rates, the rules of framing, and
//! the Ping of ours with its Pong.
//!
//! A direction that is watched passes on a header only when all of it is there, so that what must not pass has not begun
//! to, and a frame of ours always finds its place.

use std::time::Duration;

use tokio::time::Instant;

use crate::end::{Breach, Cause, Direction};
use crate::frame::{Ahead, Fault, Follower, Header, OPCODE_PING, OPCODE_PONG, PingPayload, ping};
use crate::random;
use crate::traffic::{Bucket, Flow, Traffic};

/// What a tunnel is watched for besides its bounds. By default nothing, and then it costs nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watch {
    pub ping: Option<Pinging>,
    pub traffic: Traffic,
    /// Whoever breaks a rule of framing is no longer listened to.
    pub strict: bool,
}

/// Asking a silent client for a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinging {
    /// After so much silence of the client.
    pub interval: Duration,
    /// How long it has to answer, with whatever it likes.
    pub timeout: Duration,
}

/// Why what was read must not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Excess {
    pub(super) cause: Cause,
    pub(super) breach: Breach,
}

/// A Ping of ours: two bytes, the payload.
pub(super) const OUR_PING: u64 = 10;
/// A Pong with a payload as long as that of our Ping: two bytes, a mask, the payload.
const OUR_PONG: usize = 14;
/// What is read at a time where it may have to wait: it is all that a tunnel ever holds back.
const DELAYED_READ: usize = 16 * 1024;

/// The watch over one direction.
#[derive(Debug)]
pub(super) struct Guard {
    direction: Direction,
    /// What cannot be followed cannot be counted either: whoever limits messages is strict about that.
    is_strict: bool,
    max_message: Option<u64>,
    /// The payloads of the message that is under way.
    message: u64,
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    /// The rest of a read that has to wait, from a header on.
    rest: Vec<u8>,
    /// Nothing is read until then.
    pub(super) until: Option<Instant>,
    pub(super) excess: Option<Excess>,
    /// All that is to pass has passed, up to the end of a frame.
    pub(super) cut: Option<Cut>,
    pub(super) pulse: Option<Box<Pulse>>,
    pub(super) question: Question,
}

/// How a direction was cut off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Whether a Close may stand there.
    pub(super) may_close: bool,
    /// Messages that passed before.
    pub(super) messages: u64,
}

/// Signs of life of the client, in the direction that comes from it.
#[derive(Debug)]
pub(super) struct Pulse {
    pub(super) ask: Pinging,
    /// Nobody else knows it, so that nobody else's Pong is taken for the answer. The same for all Pings of a tunnel: a
    /// client may answer late, and only the latest (section 5.5.3).
    payload: PingPayload,
    /// Pings without a Pong so far.
    pub(super) owed: u32,
    /// When the client was last heard of.
    pub(super) heard: Instant,
    /// What is there of a Pong that may be the answer.
    held: Vec<u8>,
    /// How many bytes the client had taken, and since when no more: a frame that is under way asks as well as a Ping.
    pub(super) taken: u64,
    pub(super) since: Instant,
}

/// Where a Ping stands, in the direction to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    None,
    /// It waits for the end of a frame.
    Waiting(PingPayload),
    /// It is on its way since then.
    Asked(Instant),
}

impl Pulse {
    pub(super) fn payload(&self) -> PingPayload {
        self.payload
    }

    /// Whether the Pong that is held is the answer to ours.
    fn is_answer(&self) -> bool {
        let (Some(mask), Some(payload)) = (self.held.get(2..6), self.held.get(6..)) else { return false };
        payload.len() == self.payload.len()
            && payload.iter().zip(mask.iter().cycle()).zip(&self.payload).all(|((byte, mask), own)| byte ^ mask == *own)
    }
}

impl Guard {
    /// The guards of both directions, where there is something to do for them.
    pub(super) fn both(watch: &Watch) -> (Option<Box<Self>>, Option<Box<Self>>) {
        let now = Instant::now();
        let one = |direction, flow: &Flow| {
            let has_work = watch.strict || watch.ping.is_some() || *flow != Flow::default();
            has_work.then(|| Box::new(Self::new(direction, flow, watch.strict, now)))
        };
        let (mut up, down) = (one(Direction::Up, &watch.traffic.up), one(Direction::Down, &watch.traffic.down));
        if let (Some(up), Some(ask)) = (&mut up, watch.ping) {
            let payload = random::bytes();
            up.pulse =
                Some(Box::new(Pulse { ask, payload, owed: 0, heard: now, held: Vec::new(), taken: 0, since: now }));
        }
        (up, down)
    }

    fn new(direction: Direction, flow: &Flow, strict: bool, now: Instant) -> Self {
        Self {
            direction,
            is_strict: strict || flow.max_message.is_some() || flow.messages.is_some(),
            max_message: flow.max_message,
            message: 0,
            messages: flow.messages.map(|rate| Bucket::new(rate, now)),
            bytes: flow.bytes.map(|rate| Bucket::new(rate, now)),
            rest: Vec::new(),
            until: None,
            excess: None,
            cut: None,
            pulse: None,
            question: Question::None,
        }
    }

    /// Whether the writer stands between two frames although the reader may have read on.
    pub(super) fn is_between(&self, follower: &Follower) -> bool {
        self.cut.is_some() || follower.is_in_header() || self.holds_pong()
    }

    fn holds_pong(&self) -> bool {
        self.pulse.as_ref().is_some_and(|pulse| !pulse.held.is_empty())
    }

    pub(super) fn is_waiting_to_ask(&self) -> bool {
        matches!(self.question, Question::Waiting(_))
    }

    pub(super) fn holds_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest)
    }

    /// How many bytes may be read now. 0: none before [`Guard::until`].
    pub(super) fn room(&mut self) -> usize {
        let most = if self.messages.as_ref().is_some_and(Bucket::delays) { DELAYED_READ } else { usize::MAX };
        let Some(bucket) = &mut self.bytes else { return most };
        let level = usize::try_from(bucket.level(Instant::now())).unwrap_or(usize::MAX);
        if !bucket.delays() {
            // One more than is allowed is enough to know that there is more.
            return most.min(level.saturating_add(1));
        }
        if level == 0 {
            self.until = Some(bucket.refilled_at());
        }
        most.min(level)
    }

    /// Counts what was read.
    pub(super) fn note_read(&mut self, count: usize) {
        if let Some(pulse) = &mut self.pulse {
            pulse.heard = Instant::now();
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(count);
        }
    }

    /// Passes on what may pass of these bytes, by `write`. What has to wait becomes the rest.
    ///
    /// # Errors
    /// What must not pass, and why. Everything before it has.
    pub(super) fn pass(
        &mut self,
        follower: &mut Follower,
        input: &[u8],
        write: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Excess> {
        let (mut from, mut at) = (0, 0);
        while at < input.len() {
            // RFC 6455 section 1.4: what comes after a Close is discarded. The end of it all is in sight, and whoever
            // asked for it gets the answer that it waits for.
            if self.is_strict && follower.saw_close() {
                write(&input[from..at]);
                return Ok(());
            }
            match follower.look_ahead(&input[at..]) {
                Ahead::Lost => at = input.len(),
                Ahead::Payload(count) => {
                    follower.follow(&input[at..at + count]);
                    at += count;
                    if self.holds_pong() {
                        self.hold(&input[at - count..at], follower, write);
                        from = at;
                    }
                }
                Ahead::PartOfHeader => {
                    write(&input[from..at]);
                    follower.follow(&input[at..]);
                    (from, at) = (input.len(), input.len());
                }
                Ahead::Header(header) => {
                    if self.question != Question::None {
                        write(&input[from..at]);
                        self.ask(follower, write);
                        from = at;
                    }
                    match self.admit(&header) {
                        Ok(true) => {}
                        Ok(false) => {
                            write(&input[from..at]);
                            self.rest = input[at..].to_vec();
                            return Ok(());
                        }
                        Err(excess) => {
                            write(&input[from..at]);
                            let may_close = !follower.saw_close() && !follower.is_lost();
                            self.cut = Some(Cut { may_close, messages: follower.messages() });
                            // For the answer to our Close, which may be among what does not pass.
                            follower.follow(&input[at..]);
                            return Err(excess);
                        }
                    }
                    follower.follow(&input[at..at + header.rest()]);
                    at += header.rest();
                    if self.may_be_answer(&header) {
                        write(&input[from..at - header.rest()]);
                        if let Some(pulse) = &mut self.pulse {
                            pulse.held.extend_from_slice(header.bytes());
                        }
                        from = at;
                    } else {
                        // What came before these bytes, if anything did, was held back for this moment.
                        write(header.first_part());
                    }
                }
            }
        }
        write(&input[from..at]);
        self.ask(follower, write);
        self.is_over_rate()
    }

    /// Whether a frame may begin, or has to wait.
    fn admit(&mut self, header: &Header) -> Result<bool, Excess> {
        if let Some(fault) = header.fault {
            return if self.is_strict { Err(self.excess(Cause::ProtocolError, Some(fault))) } else { Ok(true) };
        }
        let is_first = matches!(header.opcode, 1 | 2);
        if header.opcode <= 2 {
            let before = if is_first { 0 } else { self.message };
            let size = before.saturating_add(header.payload);
            if self.max_message.is_some_and(|most| size > most) {
                return Err(self.excess(Cause::MessageTooBig, None));
            }
            self.message = size;
        }
        // A Ping makes work for the other side as a message does. A Pong is only an answer to one.
        if (is_first || header.opcode == OPCODE_PING)
            && let Some(bucket) = &mut self.messages
        {
            if bucket.level(Instant::now()) == 0 {
                if !bucket.delays() {
                    return Err(self.excess(Cause::RateExceeded, None));
                }
                self.until = Some(bucket.refilled_at());
                return Ok(false);
            }
            bucket.take(1);
        }
        Ok(true)
    }

    fn is_over_rate(&mut self) -> Result<(), Excess> {
        match &mut self.bytes {
            Some(bucket) if !bucket.delays() && bucket.is_overdrawn() => Err(self.excess(Cause::RateExceeded, None)),
            _ => Ok(()),
        }
    }

    fn excess(&self, cause: Cause, fault: Option<Fault>) -> Excess {
        Excess { cause, breach: Breach { direction: self.direction, fault } }
    }

    fn may_be_answer(&self, header: &Header) -> bool {
        let Some(pulse) = &self.pulse else { return false };
        pulse.owed > 0
            && header.opcode == OPCODE_PONG
            && header.fault.is_none()
            && header.bytes().len() + pulse.payload.len() == OUR_PONG
            && header.payload == pulse.payload.len() as u64
    }

    /// Adds to the Pong that is held; when it is whole it goes on, or nowhere if it is the answer to our Ping.
    fn hold(&mut self, bytes: &[u8], follower: &Follower, write: &mut dyn FnMut(&[u8])) {
        let Some(pulse) = &mut self.pulse else { return };
        pulse.held.extend_from_slice(bytes);
        if !follower.is_between() {
            return;
        }
        if pulse.is_answer() {
            pulse.owed -= 1;
            if let Some(bucket) = &mut self.bytes {
                bucket.give_back(OUR_PONG);
            }
        } else {
            write(&pulse.held);
        }
        pulse.held = Vec::new();
    }

    /// Puts the Ping that waits here, between two frames - or nowhere, if this is not between two.
    pub(super) fn ask(&mut self, follower: &Follower, write: &mut dyn FnMut(&[u8])) {
        if let Question::Waiting(payload) = self.question
            && self.is_between(follower)
            && !follower.saw_close()
        {
            write(&ping(payload));
            self.question = Question::Asked(Instant::now());
        }
    }

    /// The reader has ended: what was held back is all that comes.
    pub(super) fn release(&mut self, follower: &Follower, write: &mut dyn FnMut(&[u8])) {
        if self.cut.is_none() {
            write(follower.part_of_header());
            if let Some(pulse) = &mut self.pulse {
                write(&std::mem::take(&mut pulse.held));
            }
        }
    }
}
