//! What is written about each request: one line for a refusal, one when a tunnel opens, one when it closes. Never a query,
//! a header that could hold a secret, or a byte that a terminal would act upon.

mod line;
mod stderr;

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use http::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::denial::Denial;
use crate::end::{Cause, End};
use crate::frame::Fault;
use crate::peer::Shown;
use crate::random;
use crate::secret::Digest;
use crate::spans::{Ending, Span};
use crate::trail::Trail;
use crate::tunnels::Live;

pub use self::stderr::lost;

/// Sends events of this level and above to standard error: lines for people, or one JSON object a line.
pub fn init(json: bool, level: tracing::Level) {
    JSON.store(json, Relaxed);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(|| Lines);
    if json {
        builder.event_format(line::Json).init();
    } else if io::stderr().is_terminal() {
        // For eyes, in colour.
        builder.with_target(false).init();
    } else {
        builder.event_format(line::Text).init();
    }
}

/// Whether events are JSON, and with them all that is written.
static JSON: AtomicBool = AtomicBool::new(false);

/// Lines that a worker has written in this turn of its loop. Together they cost one system call.
struct Waiting {
    bytes: Vec<u8>,
    since: Instant,
    first: Arc<Notify>,
}

thread_local! {
    static WAITING: RefCell<Option<Waiting>> = const { RefCell::new(None) };
}

/// More than this does not wait, and nothing waits longer while others come in.
const MOST_WAITING: usize = 16 * 1024;
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// From here on this thread keeps its lines until the task that is handed back has its turn, which is after all that were
/// ready when the first of them was written.
pub fn keep_lines_together() -> impl Future<Output = Infallible> {
    let first = Arc::new(Notify::new());
    let waiting = Waiting { bytes: Vec::with_capacity(MOST_WAITING), since: Instant::now(), first: first.clone() };
    WAITING.set(Some(waiting));
    async move {
        loop {
            first.notified().await;
            flush();
            let lines = stderr::lost_and_not_told();
            if lines > 0 {
                warn!(lines, "lines of the log were lost");
            }
        }
    }
}

/// Writes what waits.
pub fn flush() {
    WAITING.with_borrow_mut(|waiting| {
        if let Some(waiting) = waiting {
            waiting.write();
        }
    });
}

impl Waiting {
    fn write(&mut self) {
        if !self.bytes.is_empty() {
            stderr::write(&self.bytes);
            self.bytes.clear();
        }
    }
}

/// Standard error, by way of the lines that wait. It never fails: whoever formats the lines would panic over it.
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        WAITING.with_borrow_mut(|waiting| {
            let Some(waiting) = waiting else {
                stderr::write(line);
                return Ok(line.len());
            };
            if waiting.bytes.is_empty() {
                waiting.since = Instant::now();
                waiting.first.notify_one();
            }
            waiting.bytes.extend_from_slice(line);
            if waiting.bytes.len() >= MOST_WAITING || waiting.since.elapsed() > LONGEST_WAIT {
                waiting.write();
            }
            Ok(line.len())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that was not taken over, and why. People read the reasons as `check` shows them; machines want one line.
pub fn reload_failed(count: usize, problems: &str) {
    if JSON.load(Relaxed) {
        error!(problems = count, error = problems, "reload failed");
    } else {
        error!(problems = count, "reload failed");
        stderr::write(format!("{}\n", problems.trim_end()).as_bytes());
    }
}

/// What is known of a request, for its one line.
#[derive(Debug)]
pub struct Entry {
    pub id: Box<str>,
    pub since: Instant,
    pub caller: IpAddr,
    pub route: Option<Arc<str>>,
    pub upstream: Option<Arc<str>>,
    /// Whose credential it is, once that is known.
    pub key: Option<Arc<str>>,
    /// ... and which of its secrets it is. Never written.
    pub secret: Option<Digest>,
    pub host: Option<Box<str>>,
    /// Without the query.
    pub path: Option<Box<str>>,
    pub origin: Option<Box<str>>,
    pub trail: Trail,
    pub span: Span,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Entry {
    /// For a connection whose head could not be read.
    pub fn without_request(caller: IpAddr) -> Self {
        Self::empty(new_id(), caller)
    }

    fn empty(id: Box<str>, caller: IpAddr) -> Self {
        Self {
            id,
            since: Instant::now(),
            caller,
            route: None,
            upstream: None,
            key: None,
            secret: None,
            host: None,
            path: None,
            origin: None,
            trail: Trail::default(),
            span: Span::default(),
        }
    }

    pub fn new(caller: IpAddr, path: &str, headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).map(|value| printable(value.as_bytes()).into_boxed_str());
        let mut entry = Self::empty(request_id(headers), caller);
        entry.host = text(HOST);
        entry.path = Some(printable(path.as_bytes()).into());
        entry.origin = text(ORIGIN);
        entry
    }

    /// What became of it, for whoever records its trace.
    pub fn ended(&self, outcome: &'static str, status: Option<u16>) {
        self.span.end(&self.ending(outcome, status));
    }

    fn ending(&self, outcome: &'static str, status: Option<u16>) -> Ending<'_> {
        let (route, key) = (self.route.as_deref(), self.key.as_deref());
        let (request_id, caller) = (&*self.id, self.caller);
        Ending { request_id, caller, route, key, outcome, reason: None, status, close_code: None }
    }

    pub fn route_label(&self) -> &Arc<str> {
        static NONE: LazyLock<Arc<str>> = LazyLock::new(|| "none".into());
        self.route.as_ref().unwrap_or(&NONE)
    }

    /// `code`: of the Close frame that said so, if one did.
    pub fn refused(&self, denial: &Denial, code: Option<u16>) {
        info!(
            id = &*self.id,
            reason = denial.reason.word(),
            status = denial.status().as_u16(),
            code,
            route = self.route.as_deref(),
            upstream = self.upstream.as_deref(),
            key = denial.key.as_deref().or(self.key.as_deref()),
            caller = %Shown(self.caller),
            host = self.host.as_deref(),
            path = self.path.as_deref(),
            origin = self.origin.as_deref(),
            detail = &*denial.detail,
            cause = Some(&*denial.cause).filter(|cause| !cause.is_empty()),
            "refused"
        );
        if !self.span.has_ended() {
            let ending = self.ending("refused", Some(denial.status().as_u16()));
            let key = denial.key.as_deref().or(ending.key);
            self.span.end(&Ending { reason: Some(denial.reason.word()), key, close_code: code, ..ending });
        }
    }

    /// A ticket was handed out. Whatever it opens has an id of its own.
    pub fn issued(&self) {
        info!(
            id = &*self.id,
            route = self.route.as_deref(),
            key = self.key.as_deref(),
            caller = %self.caller,
            host = self.host.as_deref(),
            path = self.path.as_deref(),
            origin = self.origin.as_deref(),
            "ticket issued"
        );
    }

    /// The upstream said no, in its own words.
    pub fn passed_through(&self, status: u16) {
        info!(
            id = &*self.id,
            status,
            route = self.route.as_deref(),
            upstream = self.upstream.as_deref(),
            key = self.key.as_deref(),
            caller = %Shown(self.caller),
            host = self.host.as_deref(),
            path = self.path.as_deref(),
            origin = self.origin.as_deref(),
            "passed through"
        );
    }
}

/// A request that is counted nowhere: its client went before it was answered.
impl Drop for Entry {
    fn drop(&mut self) {
        if !self.span.has_ended() {
            self.ended(Cause::ClientLost.word(), None);
        }
    }
}

/// How a forwarded request ended.
pub struct Forwarded<'f> {
    pub method: &'f str,
    /// Of the answer, if one was begun.
    pub status: Option<u16>,
    pub cause: Cause,
}

pub fn forwarded(live: &Live, entry: &Entry, end: &Forwarded<'_>) {
    info!(
        id = &*live.id,
        route = &*live.route,
        key = live.key(),
        caller = %live.caller,
        host = entry.host.as_deref(),
        method = end.method,
        path = entry.path.as_deref(),
        origin = live.origin.as_deref(),
        upstream = &*live.upstream,
        status = end.status,
        cause = end.cause.word(),
        up_bytes = live.control.up_bytes.load(Relaxed),
        down_bytes = live.control.down_bytes.load(Relaxed),
        seconds = entry.since.elapsed().as_secs_f64(),
        "forwarded"
    );
}

pub fn opened(live: &Live) {
    info!(
        id = &*live.id,
        route = &*live.route,
        key = live.key(),
        caller = %Shown(live.caller),
        origin = live.origin.as_deref(),
        subprotocol = live.opening().and_then(|opening| opening.subprotocol.as_deref()),
        upstream = &*live.upstream,
        "tunnel opened"
    );
}

pub fn closed(live: &Live, end: End) {
    let opening = live.opening();
    info!(
        id = &*live.id,
        route = &*live.route,
        key = live.key(),
        caller = %Shown(live.caller),
        origin = live.origin.as_deref(),
        subprotocol = opening.and_then(|opening| opening.subprotocol.as_deref()),
        cause = end.cause.word(),
        code = end.code,
        direction = end.breach.map(|breach| breach.direction.word()),
        fault = end.breach.and_then(|breach| breach.fault).map(Fault::word),
        up_bytes = live.control.up_bytes.load(Relaxed),
        down_bytes = live.control.down_bytes.load(Relaxed),
        up_messages = live.control.up_messages.load(Relaxed),
        down_messages = live.control.down_messages.load(Relaxed),
        seconds = opening.map(|opening| opening.since.elapsed().as_secs_f64()),
        "tunnel closed"
    );
}

/// A handshake that was answered and whose client was gone before the tunnel began.
pub fn never_began(live: &Live, why: &str) {
    warn!(id = &*live.id, route = &*live.route, key = live.key(), caller = %Shown(live.caller), why, "tunnel never began");
}

/// The client's own id for the request if it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> Box<str> {
    let mut sent = headers.get_all(REQUEST_ID).iter();
    let is_sane = |text: &&str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=128).contains(&text.len()) && text.bytes().all(good)
    };
    match (sent.next(), sent.next()) {
        (Some(id), None) => id.to_str().ok().filter(is_sane).map_or_else(new_id, Into::into),
        _ => new_id(),
    }
}

/// UUIDv7 (RFC 9562): sorts by time.
fn new_id() -> Box<str> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    uuid::Builder::from_unix_timestamp_millis(millis, &random::bytes()).into_uuid().to_string().into()
}

/// Text of others for a log line: at most 256 bytes, and nothing but visible ASCII and spaces.
pub fn printable(bytes: &[u8]) -> String {
    if bytes.len() <= 256
        && bytes.iter().all(|byte| matches!(byte, b' '..=b'~'))
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return text.to_owned();
    }
    let mut text = String::with_capacity(bytes.len().min(256));
    for &byte in bytes.iter().take(256) {
        if byte == b' ' || byte.is_ascii_graphic() {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    if bytes.len() > 256 {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal() {
        assert_eq!(printable(b"a\x1b[31m\r\n\xff"), "a\\x1b[31m\\x0d\\x0a\\xff");
        assert_eq!(printable(&[b'a'; 300]).len(), 259);
    }
}
