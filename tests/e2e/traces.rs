//! What a collector is sent: one span for each request that is counted, read here with the definitions that collectors use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use rustix::process::Signal;

use crate::support::client::plain_get;
use crate::support::wait::eventually_some;
use crate::support::{Backend, Gate, KEY, alice, config, eventually, route, small, ws};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Something that takes OTLP over HTTP, and keeps it.
struct Collector {
    http: Backend,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start() -> Self {
        Self::answering("HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
    }

    fn answering(answer: &'static str) -> Self {
        let bodies = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let kept = bodies.clone();
        let http = Backend::serve(move |mut conn| {
            assert_eq!(conn.head.first, "POST /v1/traces HTTP/1.1");
            assert_eq!(conn.head.get("Content-Type"), Some("application/x-protobuf"));
            let length = conn.head.get("Content-Length").unwrap().parse().unwrap();
            let body = conn.read_exact(length);
            kept.lock().unwrap().push(body);
            conn.send(answer);
            conn.linger();
        });
        Self { http, bodies }
    }

    /// For the file.
    fn yaml(&self) -> String {
        format!("telemetry: {{ otlp: {{ endpoint: \"http://{}\" }} }}\n", self.http.address())
    }

    /// All spans so far. What is around them is checked.
    #[track_caller]
    fn spans(&self) -> Vec<Span> {
        let mut all = Vec::new();
        for body in self.bodies.lock().unwrap().iter() {
            let request = ExportTraceServiceRequest::decode(&**body).unwrap();
            let [of_resource] = <[_; 1]>::try_from(request.resource_spans).unwrap();
            let about = texts(&of_resource.resource.unwrap().attributes);
            assert_eq!(about["service.name"], "wsbouncer");
            assert_eq!(about["service.version"], env!("CARGO_PKG_VERSION"));
            let [of_scope] = <[_; 1]>::try_from(of_resource.scope_spans).unwrap();
            assert_eq!(of_scope.scope.unwrap().name, "wsbouncer");
            assert!(!of_scope.spans.is_empty());
            all.extend(of_scope.spans);
        }
        all
    }

    /// The span of the request with this id.
    #[track_caller]
    fn span(&self, id: &str) -> Span {
        let is_it = |span: &Span| texts(&span.attributes)["wsbouncer.request_id"] == id;
        eventually_some("the span is exported", || self.spans().into_iter().find(is_it))
    }
}

/// Attributes, as they would be shown.
#[track_caller]
fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let all: BTreeMap<_, _> = attributes.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect();
    assert_eq!(all.len(), attributes.len(), "an attribute stands once");
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn expected(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// A gate before an upstream that echoes, and the collector of its spans.
fn stand() -> (Backend, Collector, Gate) {
    let (backend, collector) = (Backend::echo(), Collector::start());
    let gate = Gate::start(&(route(&backend, "") + "\n" + &collector.yaml()));
    (backend, collector, gate)
}

#[test]
fn a_handshake_is_one_span_and_the_parent_of_what_the_service_does() {
    let (backend, collector, gate) = stand();
    let request = alice()
        .with("traceparent", &format!("00-{TRACE}-{PARENT}-01"))
        .with("tracestate", "a=1")
        .with("X-Request-Id", "the-one");
    gate.open(request);
    let span = collector.span("the-one");
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!((&*span.name, span.kind), ("websocket handshake main", SpanKind::Server as i32));
    assert_eq!(span.flags, 0x301);
    let attributes = [
        ("client.address", "127.0.0.1"),
        ("http.response.status_code", "101"),
        ("wsbouncer.key", "alice"),
        ("wsbouncer.outcome", "opened"),
        ("wsbouncer.request_id", "the-one"),
        ("wsbouncer.route", "main"),
    ];
    assert_eq!(texts(&span.attributes), expected(&attributes));
    assert_eq!(span.status, None);
    let phases: Vec<&str> = span.events.iter().map(|event| &*event.name).collect();
    assert_eq!(phases, ["head", "verify", "dial", "answer"]);
    let moments = span.events.iter().map(|event| event.time_unix_nano);
    let moments: Vec<u64> =
        [span.start_time_unix_nano].into_iter().chain(moments).chain([span.end_time_unix_nano]).collect();
    assert!(moments.is_sorted(), "{moments:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(moments[0] / 1_000_000_000) < 120, "{moments:?}");
    let head = backend.last_head();
    assert_eq!(head.get("traceparent"), Some(&*format!("00-{TRACE}-{}-01", hex(&span.span_id))));
    assert_eq!(head.get("tracestate"), Some("a=1"));
    assert_eq!(collector.spans().len(), 1);
}

#[test]
fn whoever_brings_no_trace_begins_one() {
    let (backend, collector, gate) = stand();
    gate.open(alice().with("X-Request-Id", "new").with("traceparent", "00-nonsense").with("tracestate", "a=1"));
    let span = collector.span("new");
    assert!(span.parent_span_id.is_empty() && span.trace_id.len() == 16 && span.span_id.len() == 8);
    assert_eq!(span.flags, 1);
    let head = backend.last_head();
    assert_eq!(head.get("traceparent"), Some(&*format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))));
    assert!(!head.has("tracestate"));
}

#[test]
fn what_the_client_does_not_record_passes_as_it_came() {
    let (backend, collector, gate) = stand();
    let parent = format!("00-{TRACE}-{PARENT}-00");
    gate.open(alice().with("X-Request-Id", "unseen").with("traceparent", &parent).with("tracestate", "a=1"));
    let head = backend.last_head();
    assert_eq!((head.get("traceparent"), head.get("tracestate")), (Some(&*parent), Some("a=1")));
    gate.open(alice().with("X-Request-Id", "seen"));
    collector.span("seen");
    assert_eq!(collector.spans().len(), 1);
}

#[test]
fn a_refusal_has_the_word_of_the_log_and_never_what_was_shown() {
    let (_backend, collector, gate) = stand();
    let wrong = ws("/ws?secret=canary-1").with("X-Api-Key", "canary-2").with("Cookie", "canary-3");
    let id = gate.refuses(wrong, 401, "invalid_credential").field("request_id");
    let span = collector.span(&id);
    let attributes = [
        ("client.address", "127.0.0.1"),
        ("http.response.status_code", "401"),
        ("wsbouncer.outcome", "refused"),
        ("wsbouncer.reason", "invalid_credential"),
        ("wsbouncer.request_id", &id),
        ("wsbouncer.route", "main"),
    ];
    assert_eq!(texts(&span.attributes), expected(&attributes));
    // The client's mistakes are no errors of ours.
    assert_eq!(span.status, None);
    let phases: Vec<&str> = span.events.iter().map(|event| &*event.name).collect();
    assert_eq!(phases, ["head"]);
    gate.open(alice().with("X-Request-Id", "good"));
    collector.span("good");
    for body in collector.bodies.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(body);
        assert!(!text.contains("canary") && !text.contains(KEY), "{text}");
    }
}

#[test]
fn a_service_that_is_gone_is_an_error_with_its_word() {
    let collector = Collector::start();
    let gone = "upstream: ws://127.0.0.1:9\nkeys:\n  - { id: alice, secret: alice-secret-0123456789 }\n";
    let gate = Gate::start(&(gone.to_owned() + &collector.yaml()));
    let id = gate.refuses(alice(), 502, "upstream_unreachable").field("request_id");
    let span = collector.span(&id);
    let status = span.status.unwrap();
    assert_eq!((status.code, &*status.message), (StatusCode::Error as i32, "upstream_unreachable"));
    let phases: Vec<&str> = span.events.iter().map(|event| &*event.name).collect();
    assert_eq!(phases, ["head", "verify"]);
}

#[test]
fn whatever_else_is_answered_is_a_span_by_its_outcome() {
    let collector = Collector::start();
    let backend = Backend::serve(|mut conn| {
        if conn.head.has("Upgrade") {
            conn.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        } else {
            conn.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
        conn.linger();
    });
    let fields = "http: forward\non_failure: close\nauth: [api_key, ticket]\ntickets: { path: /ticket }";
    let gate = Gate::start(&(route(&backend, fields) + "\n" + &collector.yaml()));
    let asked = |id: &str, path: &str| plain_get(path).with("X-Api-Key", KEY).with("X-Request-Id", id);
    assert_eq!(gate.ask_status(asked("page", "/")), 404);
    assert_eq!(backend.last_head().get("traceparent").map(str::len), Some(55));
    let ticket = asked("ticket", "/ticket").first_line("POST /ticket HTTP/1.1").with("Content-Length", "0");
    assert_eq!(gate.ask_status(ticket), 200);
    assert_eq!(gate.ask_status(alice().with("X-Request-Id", "no")), 403);
    assert_eq!(gate.ask_status(ws("/ws").with("X-Request-Id", "told")), 101);
    for (id, name, outcome, status, code) in [
        ("page", "http request main", "forwarded", "404", None),
        ("ticket", "ticket main", "ticket", "200", None),
        ("no", "websocket handshake main", "passed_through", "403", None),
        ("told", "websocket handshake main", "refused", "401", Some("4401")),
    ] {
        let span = collector.span(id);
        let attributes = texts(&span.attributes);
        assert_eq!((&*span.name, &*attributes["wsbouncer.outcome"]), (name, outcome));
        assert_eq!(attributes["http.response.status_code"], status, "{id}");
        assert_eq!(attributes.get("wsbouncer.close_code").map(String::as_str), code, "{id}");
    }
    assert_eq!(collector.spans().len(), 4);
}

#[test]
fn a_client_that_goes_during_its_handshake_has_a_span_too() {
    let (backend, collector) = (Backend::manual(), Collector::start());
    let gate = Gate::start(&(small(&backend, "") + &collector.yaml()));
    let wire = gate.send(alice().with("X-Request-Id", "gone"));
    let _asked = backend.next();
    drop(wire);
    let attributes = texts(&collector.span("gone").attributes);
    assert_eq!(attributes["wsbouncer.outcome"], "client_lost");
    assert!(!attributes.contains_key("http.response.status_code"));
}

#[test]
fn the_last_spans_are_sent_before_the_process_ends() {
    let (_backend, collector, mut gate) = stand();
    gate.refuses(ws("/ws").with("X-Request-Id", "last"), 401, "missing_credential");
    gate.signal(Signal::TERM);
    assert!(gate.exit().success());
    assert_eq!(collector.spans().len(), 1);
}

/// It is counted, said once, and holds up nobody: neither the next handshake nor the next reload.
#[test]
fn a_collector_that_takes_nothing_costs_spans_and_nothing_else() {
    let backend = Backend::echo();
    let collector = Collector::answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    let gate = Gate::start(&(small(&backend, "") + &collector.yaml()));
    gate.open(alice());
    let failed = || gate.metric("wsbouncer_spans_total", &[("result", "failed")]);
    eventually("the span is given up", || failed() == 1.0);
    gate.log_line(|line| line.is("spans cannot be exported") && line.get("error") == "the collector answered 503");
    gate.open(alice());
    eventually("the next one is, too", || failed() == 2.0);
    assert_eq!(gate.log_lines(|line| line.is("spans cannot be exported")).len(), 1);
    // An edit sends them elsewhere, from the next request on.
    let other = Collector::start();
    gate.edit_config(&(small(&backend, "") + &other.yaml()));
    gate.open(alice().with("X-Request-Id", "elsewhere"));
    other.span("elsewhere");
    gate.log_line(|line| line.is("spans are exported again"));
    assert_eq!(gate.metric("wsbouncer_spans_total", &[("result", "exported")]), 1.0);
}

/// A collector that accepts and never answers is one of whom nobody hears.
#[test]
fn a_collector_that_says_nothing_holds_up_nobody() {
    let (backend, silent) = (Backend::echo(), Backend::manual());
    let yaml = format!("telemetry: {{ otlp: {{ endpoint: \"http://{}\" }} }}\n", silent.address());
    let gate = Gate::start(&(small(&backend, "") + &yaml));
    gate.open(alice());
    let _waits = silent.next();
    (0..50).for_each(|_| drop(gate.open(alice())));
    gate.edit_config(&(small(&backend, "drain: { timeout: 5s, spread: 0s }\n") + &yaml));
    assert_eq!(silent.accepted(), 1, "one batch at a time");
}

#[test]
fn nothing_is_sent_where_the_file_names_no_collector() {
    let backend = Backend::echo();
    let gate = config(&small(&backend, "")).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9").start();
    gate.open(alice());
    assert!(!backend.last_head().has("traceparent"));
    gate.wait_for_open(0);
    assert!(
        ["exported", "failed", "dropped"]
            .iter()
            .all(|it| gate.metric("wsbouncer_spans_total", &[("result", it)]) == 0.0)
    );
}
