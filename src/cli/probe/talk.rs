//! A conversation of one question over an open WebSocket: a Ping or a message, its answer, and a Close.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use super::line::Line;
use super::report::{Failure, Refusal};
use crate::frame::{self, Head, OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, OPCODE_TEXT};
use crate::random;

/// A frame or a message that is longer is none that was asked for, and is not kept.
const MAX_MESSAGE: usize = 1024 * 1024;
/// How long the other side may take to answer our Close. It decides nothing.
const GOODBYE: Duration = Duration::from_millis(500);
/// A Close that holds no code (RFC 6455 section 7.4.1).
const NO_CODE: u16 = 1005;

pub struct Talk {
    line: Line,
    /// What came, and was not looked at.
    bytes: Vec<u8>,
    /// What there is of a message in fragments.
    message: Vec<u8>,
    /// Whether a message is under way.
    is_open: bool,
}

/// What the other side says.
enum Said {
    Message(Vec<u8>),
    Pong(Vec<u8>),
}

impl Talk {
    /// With the bytes that came behind the handshake.
    pub fn new(line: Line, bytes: Vec<u8>) -> Self {
        Self { line, bytes, message: Vec::new(), is_open: false }
    }

    /// A Ping, and the Pong to it (RFC 6455 section 5.5.3). Whatever else comes is passed over.
    pub fn ping(&mut self) -> Result<(), Failure> {
        let payload = random::bytes::<8>();
        let is_answer = |said: &Said| matches!(said, Said::Pong(answer) if *answer == payload);
        self.ask(&frame::control(OPCODE_PING, &payload, Some(random::bytes())), is_answer)
    }

    /// A text message, and the same back.
    pub fn echo(&mut self, text: &str) -> Result<(), Failure> {
        let is_answer = |said: &Said| matches!(said, Said::Message(answer) if answer == text.as_bytes());
        self.ask(&frame::text(text, random::bytes()), is_answer)
    }

    fn ask(&mut self, question: &[u8], is_answer: impl Fn(&Said) -> bool) -> Result<(), Failure> {
        // Whoever refuses by a Close may have gone already: what it said before that counts.
        let sent = self.line.write_all(question);
        let mut others = 0_u64;
        loop {
            match self.next() {
                Ok(said) if is_answer(&said) => return Ok(()),
                Ok(_) => others += 1,
                Err(Failure::Late(_)) if others > 0 => {
                    return Err(Failure::Late(format!("no answer in time; {others} other messages came")));
                }
                Err(Failure::Broken(why)) => return Err(sent.err().map_or(Failure::Broken(why), Failure::from)),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The next message or Pong; a Ping is answered on the way.
    fn next(&mut self) -> Result<Said, Failure> {
        loop {
            let (head, payload) = self.frame()?;
            match head.opcode {
                OPCODE_CLOSE => return Err(self.closed(&payload)),
                OPCODE_PING => self.line.write_all(&frame::control(OPCODE_PONG, &payload, Some(random::bytes())))?,
                OPCODE_PONG => return Ok(Said::Pong(payload)),
                _ => {
                    if self.message.len() + payload.len() > MAX_MESSAGE {
                        return Err(Failure::Broken("a message of more than 1 MiB came".into()));
                    }
                    self.message.extend(payload);
                    self.is_open = !head.is_final;
                    if head.is_final {
                        return Ok(Said::Message(std::mem::take(&mut self.message)));
                    }
                }
            }
        }
    }

    fn frame(&mut self) -> Result<(Head, Vec<u8>), Failure> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(head) = Head::read(&self.bytes) {
                let length = self.check(&head).map_err(|why| Failure::Broken(why.into()))?;
                if self.bytes.len() - head.size >= length {
                    let rest = self.bytes.split_off(head.size + length);
                    let payload = std::mem::replace(&mut self.bytes, rest).split_off(head.size);
                    return Ok((head, payload));
                }
            }
            match self.line.read(&mut chunk)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                length => self.bytes.extend_from_slice(&chunk[..length]),
            }
        }
    }

    /// How long its payload is, if a server may send such a frame (RFC 6455 section 5).
    fn check(&self, head: &Head) -> Result<usize, &'static str> {
        let is_control = head.opcode >= OPCODE_CLOSE;
        let is_known = match head.opcode {
            0 => self.is_open,
            OPCODE_TEXT | 2 => !self.is_open,
            opcode => matches!(opcode, OPCODE_CLOSE | OPCODE_PING | OPCODE_PONG),
        };
        let is_odd = is_control && (!head.is_final || head.length > 125);
        if head.mask.is_some() || head.reserved || !is_known || is_odd {
            return Err("what came is no frame of a server");
        }
        let length = usize::try_from(head.length).ok().filter(|length| *length <= MAX_MESSAGE);
        length.ok_or("a frame of more than 1 MiB came")
    }

    /// Says goodbye as well, and what the Close said.
    fn closed(&mut self, payload: &[u8]) -> Failure {
        let (code, reason) = payload
            .split_first_chunk()
            .map_or((NO_CODE, payload), |(code, reason)| (u16::from_be_bytes(*code), reason));
        // The same back (section 5.5.1); nobody may be there to hear it.
        let _ = self.line.write_all(&frame::control(OPCODE_CLOSE, payload, Some(random::bytes())));
        let reason = String::from_utf8_lossy(reason).into_owned();
        Failure::Refused(Refusal { status: 101, close: Some(code), reason, detail: String::new() })
    }

    /// Closes, and waits a little for the other side to do so too, so that neither sees the connection torn off.
    pub fn close(mut self) {
        self.line.shorten(Instant::now() + GOODBYE);
        let goodbye = frame::close(1000, "", Some(random::bytes()));
        if self.line.write_all(&goodbye).is_ok() {
            while self.next().is_ok() {}
        }
    }
}
