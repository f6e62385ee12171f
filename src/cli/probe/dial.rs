//! One handshake, as a client does it (RFC 6455 section 4.1), and a sign of life over what it opened.

use std::io::{self, Read, Write as _};
use std::time::Instant;

use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};

use super::answer::read_answer;
use super::line::{Line, left};
use super::offer::Offer;
use super::report::{Failure, Refusal, Report};
use super::talk::Talk;
use super::target::Target;
use crate::fields::{only, tokens};
use crate::handshake;

/// Of an answer's head, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// From the first to the last: a report comes of it in any case.
pub fn run(target: &Target, offer: &Offer, echo: Option<&str>, deadline: Instant) -> Report {
    let mut report = Report::new(offer.cleaner());
    report.end = dial(target, offer, echo, deadline, &mut report);
    report
}

fn dial(
    target: &Target,
    offer: &Offer,
    echo: Option<&str>,
    deadline: Instant,
    report: &mut Report,
) -> Result<(), Failure> {
    report.begin("connect");
    let mut line = Line::open(target, left(deadline)?, deadline)?;
    report.done();

    report.begin("handshake");
    // It may be refused before all of it was read; what was said counts.
    let sent = line.write_all(offer.bytes());
    let head = Head::read(&mut line).map_err(|failure| sent.err().map_or(failure, Failure::from))?;
    report.done();
    report.status = Some(head.status);
    report.request_id = head.text(&HeaderName::from_static("x-request-id"));
    if head.status != 101 {
        return Err(refused(head, line));
    }
    report.subprotocol = head.text(&SEC_WEBSOCKET_PROTOCOL);
    report.extensions = head.text(&SEC_WEBSOCKET_EXTENSIONS);
    head.check(offer).map_err(broken)?;

    let mut talk = Talk::new(line, head.rest);
    match echo {
        Some(text) => {
            report.begin("echo");
            talk.echo(text)?;
        }
        None => {
            report.begin("ping");
            talk.ping()?;
        }
    }
    report.done();
    talk.close();
    Ok(())
}

fn broken(why: &str) -> Failure {
    Failure::Broken(why.into())
}

/// A complete head, and the bytes that came with it.
struct Head {
    version: u8,
    status: u16,
    headers: HeaderMap,
    head: Vec<u8>,
    rest: Vec<u8>,
}

impl Head {
    fn read(input: &mut impl Read) -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let length = input.read(&mut chunk)?;
            if length == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            bytes.extend_from_slice(&chunk[..length]);
            if let Some(head) = Self::parse(&bytes)? {
                return Ok(head);
            }
            if bytes.len() > MAX_HEAD {
                return Err(broken("the head of the answer has no end"));
            }
        }
    }

    fn parse(bytes: &[u8]) -> Result<Option<Self>, Failure> {
        let invalid = || broken("the answer is not HTTP");
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = response.parse(bytes).map_err(|_| invalid())? else {
            return Ok(None);
        };
        let (version, status) = response.version.zip(response.code).ok_or_else(invalid)?;
        let mut headers = HeaderMap::new();
        for header in &*response.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| invalid())?;
            headers.append(name, HeaderValue::from_bytes(header.value).map_err(|_| invalid())?);
        }
        let (head, rest) = (bytes[..length].to_vec(), bytes[length..].to_vec());
        Ok(Some(Self { version, status, headers, head, rest }))
    }

    fn text(&self, name: &HeaderName) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// Whether this 101 answers what was offered.
    fn check(&self, offer: &Offer) -> Result<(), &'static str> {
        let says = |name, wanted| tokens(&self.headers, name).any(|token| token.eq_ignore_ascii_case(wanted));
        if self.version != 1 || !says(&UPGRADE, "websocket") || !says(&CONNECTION, "upgrade") {
            return Err("the 101 is no HTTP/1.1 upgrade to websocket");
        }
        match only(&self.headers, &SEC_WEBSOCKET_ACCEPT) {
            Ok(Some(answered)) if answered == handshake::accept(&offer.nonce) => {}
            _ => return Err("Sec-WebSocket-Accept is missing or wrong"),
        }
        match only(&self.headers, &SEC_WEBSOCKET_PROTOCOL) {
            Ok(None) => {}
            Ok(Some(chosen)) if offer.protocols.iter().any(|offered| offered == chosen) => {}
            _ => return Err("a subprotocol is selected that may not be"),
        }
        if self.headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
            return Err("an extension is selected, and none was offered");
        }
        Ok(())
    }
}

/// What the body says of it, where it is a problem (RFC 9457).
fn refused(head: Head, line: Line) -> Failure {
    let status = head.status;
    let bytes = [head.head, head.rest].concat();
    // A body that does not come whole takes nothing from the status.
    let Ok(answer) = read_answer(bytes.as_slice().chain(line)) else {
        return Failure::Refused(Refusal { status, close: None, reason: String::new(), detail: String::new() });
    };
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let field = |name: &str| problem.get(name).and_then(|text| text.as_str()).map(str::to_owned);
    Failure::Refused(Refusal {
        status,
        close: None,
        reason: field("reason").or_else(|| field("title")).unwrap_or(answer.reason),
        detail: field("detail").unwrap_or_default(),
    })
}
