//! An answer to a plain request, read whole or as far as it came.

use std::io::{self, Read};

/// Head and body together. A status page is far smaller; what is longer is cut, and the status counts.
const MAX_ANSWER: u64 = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub reason: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn to_text(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        let end = if body.is_empty() || body.ends_with('\n') { "" } else { "\n" };
        format!("{} {}\n{body}{end}", self.status, self.reason)
    }
}

/// Reads until the answer is whole, the other side closes, or the limit is reached. What was cut short counts as far as
/// it came: the status is what matters.
pub fn read_answer(input: impl Read) -> io::Result<Answer> {
    let mut input = input.take(MAX_ANSWER);
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = input.read(&mut chunk)?;
        bytes.extend_from_slice(&chunk[..length]);
        match parse(&bytes)? {
            Some((answer, whole)) if whole || length == 0 => return Ok(answer),
            None if length == 0 => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the answer"));
            }
            _ => {}
        }
    }
}

/// The answer as far as it is there, and whether that is all of it; `None` while its head is not complete.
fn parse(bytes: &[u8]) -> io::Result<Option<(Answer, bool)>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_length) = head.parse(bytes).map_err(|_| invalid())? else {
        return Ok(None);
    };
    let value = |name: &str| {
        head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    let rest = &bytes[head_length..];
    let (body, whole) = if value("transfer-encoding").is_some() {
        dechunk(rest)
    } else if let Some(length) = value("content-length") {
        let length: usize = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
        (rest[..length.min(rest.len())].to_vec(), rest.len() >= length)
    } else {
        (rest.to_vec(), false)
    };
    let status = head.code.ok_or_else(invalid)?;
    Ok(Some((Answer { status, reason: head.reason.unwrap_or_default().into(), body }, whole)))
}

/// The chunks of a body put together, and whether the last one has been seen.
fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((start, length))) = httparse::parse_chunk_size(rest) {
        if length == 0 {
            return (body, true);
        }
        let chunk = &rest[start..];
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        body.extend_from_slice(&chunk[..length.min(chunk.len())]);
        // After a chunk stands a line end.
        let Some(next) = length.checked_add(2).and_then(|end| chunk.get(end..)) else { break };
        rest = next;
    }
    (body, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &str) -> Result<String, io::ErrorKind> {
        // One byte at a time where that is few, then the end of the connection.
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = if self.0.len() < 1000 { self.0.len().min(1) } else { buffer.len() };
                self.0.read(&mut buffer[..length])
            }
        }
        read_answer(Slow(answer.as_bytes())).map(|answer| answer.to_text()).map_err(|error| error.kind())
    }

    #[test]
    fn answers() {
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokMORE"), Ok("200 OK\nok\n".into()));
        assert_eq!(read("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"), Ok("204 No Content\n".into()));
        assert_eq!(read("HTTP/1.0 503 Busy\r\n\r\nwait\n"), Ok("503 Busy\nwait\n".into()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3;x=y\r\n ok\r\n0\r\n\r\nMORE";
        assert_eq!(read(chunked), Ok("200 OK\nok ok\n".into()));
    }

    #[test]
    fn answers_that_are_none() {
        assert_eq!(read(""), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-"), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(read("SSH-2.0-OpenSSH_9.2\r\n"), Err(io::ErrorKind::InvalidData));
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn cut_answers_keep_their_status() {
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"), Ok("200 OK\nok\n".into()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nok";
        assert_eq!(read(chunked), Ok("200 OK\nok\n".into()));
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(100_000));
        assert!(read(&endless).is_ok_and(|text| text.len() < 66_000));
        let head = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(100_000));
        assert_eq!(read(&head), Err(io::ErrorKind::UnexpectedEof));
    }
}
