//! Spans, as OpenTelemetry has them: one for each request that is counted, from the accepted connection to the answer. Only
//! in a build with the feature `otlp`, and only where the file names a collector; elsewhere nothing here costs anything.
//!
//! A span is written into bytes by the worker that answers, and waits in a list of bounded length. [`export`] sends the list,
//! on the thread that also reloads: a collector that is slow or gone loses spans, and holds up nobody.

mod encode;
pub mod export;

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use http::HeaderMap;
use tokio::sync::Notify;

use self::encode::Message;
use crate::trace_context::TraceContext;

/// Whether this build can export them.
pub const BUILT_IN: bool = cfg!(feature = "otlp");

/// Spans that wait to be sent. At some hundred bytes each this is a few megabytes; those beyond it are dropped and counted.
const MOST_WAITING: usize = 8192;
/// With so many waiting they are sent at once.
const MANY: usize = 2048;

/// Where spans are sent to: the URL of the file, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Host and port as written.
    pub authority: Box<str>,
    /// A name or a literal address, without brackets.
    pub host: Box<str>,
    pub port: u16,
    /// Of its traces.
    pub path: Box<str>,
}

/// Spans that are done and not sent yet, and what became of all others.
#[derive(Debug, Default)]
pub struct Spans {
    /// Each an encoded span.
    waiting: Mutex<Vec<Vec<u8>>>,
    many: Notify,
    exported: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// A moment in the life of a request that its span shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The request's head is complete.
    Head,
    /// The credential is verified.
    Verify,
    /// The upstream has taken the connection.
    Dial,
    /// It has answered.
    Answer,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Head, Self::Verify, Self::Dial, Self::Answer];

    fn word(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Verify => "verify",
            Self::Dial => "dial",
            Self::Answer => "answer",
        }
    }
}

/// The span of one request, if it is recorded.
#[derive(Default)]
pub struct Span(Option<Box<Open>>);

struct Open {
    spans: Arc<Spans>,
    context: TraceContext,
    parent: Option<TraceContext>,
    since: Instant,
    /// [`Open::since`], in nanoseconds since 1970.
    began: u64,
    /// When each phase was over.
    phases: [Option<Instant>; Phase::ALL.len()],
    has_ended: AtomicBool,
}

/// How a request ended, in the words of log and metrics.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'e> {
    pub request_id: &'e str,
    pub caller: IpAddr,
    pub route: Option<&'e str>,
    pub key: Option<&'e str>,
    pub outcome: &'static str,
    /// Of a refusal.
    pub reason: Option<&'static str>,
    pub status: Option<u16>,
    /// Of the Close frame that said so, if one did.
    pub close_code: Option<u16>,
}

impl Spans {
    /// The span of a request that arrived then. What its client does not record is not recorded here either.
    pub fn begin(self: &Arc<Self>, headers: &HeaderMap, arrived: Instant) -> Span {
        let parent = TraceContext::of(headers);
        let context = parent.map_or_else(TraceContext::begin, |parent| parent.child());
        if !context.is_sampled() {
            return Span(None);
        }
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let began = since_1970.saturating_sub(arrived.elapsed());
        let open = Open {
            spans: self.clone(),
            context,
            parent,
            since: arrived,
            began: u64::try_from(began.as_nanos()).unwrap_or(u64::MAX),
            phases: [None; Phase::ALL.len()],
            has_ended: AtomicBool::new(false),
        };
        let mut span = Span(Some(Box::new(open)));
        span.reached(Phase::Head);
        span
    }

    fn add(&self, span: Vec<u8>) {
        let count = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() < MOST_WAITING {
                waiting.push(span);
                waiting.len()
            } else {
                self.dropped.fetch_add(1, Relaxed);
                0
            }
        };
        if count == MANY {
            self.many.notify_one();
        }
    }

    fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Since the start: by what became of them.
    pub fn numbers(&self) -> [(&'static str, u64); 3] {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        [("exported", read(&self.exported)), ("failed", read(&self.failed)), ("dropped", read(&self.dropped))]
    }
}

impl Span {
    pub fn reached(&mut self, phase: Phase) {
        if let Some(open) = &mut self.0 {
            open.phases[phase as usize] = Some(Instant::now());
        }
    }

    /// What the upstream is to name as its parent.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|open| open.context)
    }

    pub fn has_ended(&self) -> bool {
        self.0.as_ref().is_none_or(|open| open.has_ended.load(Relaxed))
    }

    /// Nothing is recorded of it.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    /// It is done, and waits to be sent. Only the first end counts.
    pub fn end(&self, ending: &Ending<'_>) {
        if let Some(open) = &self.0
            && !open.has_ended.swap(true, Relaxed)
        {
            open.spans.add(open.encode(ending).into_bytes());
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.context()).finish()
    }
}

/// `Span.SpanKind` and `Status.StatusCode` of OTLP.
const KIND_SERVER: u64 = 2;
const STATUS_ERROR: u64 = 2;
/// Of `Span.flags`: it is known whether the parent is of another process, and it is.
const PARENT_IS_REMOTE: u32 = 0x300;

impl Open {
    /// A `Span` of opentelemetry/proto/trace/v1/trace.proto.
    fn encode(&self, ending: &Ending<'_>) -> Message {
        let at = |moment: Instant| {
            let since = moment.saturating_duration_since(self.since).as_nanos();
            self.began.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
        };
        let mut span = Message::default();
        span.bytes(1, self.context.trace());
        span.bytes(2, self.context.span());
        if let Some(parent) = &self.parent {
            span.bytes(4, parent.span());
        }
        span.text(5, &name(ending));
        span.number(6, KIND_SERVER);
        span.fixed64(7, self.began);
        span.fixed64(8, at(Instant::now()));
        attributes(&mut span, ending);
        for phase in Phase::ALL {
            let Some(moment) = self.phases[phase as usize] else { continue };
            let mut event = Message::default();
            event.fixed64(1, at(moment));
            event.text(2, phase.word());
            span.message(11, &event);
        }
        if ending.status.is_some_and(|status| status >= 500) {
            let mut status = Message::default();
            status.text(2, ending.reason.unwrap_or(ending.outcome));
            status.number(3, STATUS_ERROR);
            span.message(15, &status);
        }
        let remote = if self.parent.is_some() { PARENT_IS_REMOTE } else { 0 };
        span.fixed32(16, u32::from(self.context.flags()) | remote);
        span
    }
}

fn name(ending: &Ending<'_>) -> String {
    let what = match ending.outcome {
        "ticket" => "ticket",
        "forwarded" => "http request",
        _ => "websocket handshake",
    };
    ending.route.map_or_else(|| what.to_owned(), |route| format!("{what} {route}"))
}

fn attributes(span: &mut Message, ending: &Ending<'_>) {
    let caller = ending.caller.to_string();
    let texts = [
        ("client.address", Some(&*caller)),
        ("wsbouncer.route", ending.route),
        ("wsbouncer.key", ending.key),
        ("wsbouncer.outcome", Some(ending.outcome)),
        ("wsbouncer.reason", ending.reason),
        ("wsbouncer.request_id", Some(ending.request_id)),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            span.message(9, &encode::attribute(name, |value| value.text(1, text)));
        }
    }
    let numbers = [("http.response.status_code", ending.status), ("wsbouncer.close_code", ending.close_code)];
    for (name, number) in numbers {
        if let Some(number) = number {
            span.message(9, &encode::attribute(name, |value| value.number(3, number.into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDING: Ending<'static> = Ending {
        request_id: "id",
        caller: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        route: None,
        key: None,
        outcome: "opened",
        reason: None,
        status: Some(101),
        close_code: None,
    };

    #[test]
    fn a_span_ends_once_and_is_sent_once() {
        let spans = Arc::new(Spans::default());
        let span = spans.begin(&HeaderMap::new(), Instant::now());
        assert!(!span.has_ended());
        span.end(&ENDING);
        span.end(&ENDING);
        assert!(span.has_ended());
        assert_eq!((spans.take().len(), spans.take().len()), (1, 0));
    }

    #[test]
    fn what_the_client_does_not_record_is_not_recorded() {
        let spans = Arc::new(Spans::default());
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse().unwrap();
        let headers = HeaderMap::from_iter([(crate::trace_context::TRACEPARENT, parent)]);
        let span = spans.begin(&headers, Instant::now());
        assert_eq!(span.context(), None);
        span.end(&ENDING);
        assert!(spans.take().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let spans = Spans::default();
        (0..MOST_WAITING + 3).for_each(|_| spans.add(Vec::new()));
        assert_eq!(spans.take().len(), MOST_WAITING);
        assert_eq!(spans.numbers()[2], ("dropped", 3));
    }
}
