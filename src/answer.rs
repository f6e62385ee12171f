//! An answer as the bytes that a client gets: written once, in order, and nothing in it can end a line early.

use http::header::{DATE, HeaderMap, HeaderName};
use http::{HeaderValue, StatusCode};

use crate::clock::with_http_date;
use crate::fields::{is_end_to_end, push_value};

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    bytes: Vec<u8>,
    body: usize,
}

/// An answer whose header lines are being written.
#[derive(Debug)]
pub struct Draft {
    bytes: Vec<u8>,
    status: StatusCode,
    has_date: bool,
}

impl Answer {
    /// Begins with the status line.
    pub fn of(status: StatusCode) -> Draft {
        let mut bytes = Vec::with_capacity(768);
        bytes.extend_from_slice(b"HTTP/1.1 ");
        bytes.extend_from_slice(status.as_str().as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(status.canonical_reason().unwrap_or("Refused").as_bytes());
        bytes.extend_from_slice(b"\r\n");
        Draft { bytes, status, has_date: false }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What HEAD gets (RFC 9110 section 9.3.2).
    pub fn without_body(&self) -> &[u8] {
        &self.bytes[..self.body]
    }
}

impl Draft {
    pub fn line(&mut self, name: &str, value: &[u8]) {
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b": ");
        push_value(&mut self.bytes, value);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// What of an upstream's answer is for the client: neither framing nor anything about the connection to us, and nothing
    /// of the WebSocket handshake, which is answered by us.
    pub fn pass_on(&mut self, headers: &HeaderMap) {
        let is_end_to_end = is_end_to_end(headers);
        let mut pass = |(name, value): (&HeaderName, &HeaderValue)| {
            if is_end_to_end(name) {
                self.has_date |= name == DATE;
                self.line(name.as_str(), value.as_bytes());
            }
        };
        headers.iter().for_each(&mut pass);
    }

    /// For a 101: what follows is no body.
    pub fn switch(mut self) -> Vec<u8> {
        self.date();
        self.bytes.extend_from_slice(b"\r\n");
        self.bytes
    }

    pub fn with_body(mut self, body: &[u8]) -> Answer {
        self.date();
        if !matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            let length = body.len().to_string();
            self.line("content-length", length.as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
        let end = self.bytes.len();
        self.bytes.extend_from_slice(body);
        Answer { bytes: self.bytes, body: end }
    }

    fn date(&mut self) {
        if !self.has_date {
            with_http_date(|date| self.line("date", date.as_bytes()));
        }
    }
}
