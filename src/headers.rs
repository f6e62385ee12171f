//! What passes the gate besides bytes: the request that the upstream sees is built anew. End-to-end headers are copied in,
//! ours are set last, and nothing that a backend could mistake for ours is copied at all.

use http::Request;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;

use zeroize::Zeroizing;

use crate::auth::Principal;
use crate::fields::{is_claim, is_ours, plain_name, push_value, tokens};
use crate::handshake::Upgrade;
use crate::log::Entry;
use crate::peer::Caller;
use crate::route::{Route, RouteTable};
use crate::trace_context::{TRACEPARENT, TRACESTATE, TraceContext};

/// What nearly all heads fit into. All of it is wiped when the head is sent, so it should not be much larger.
const ROOM: usize = 1024;

/// The handshake as the upstream gets it. It may hold a secret: of `set_headers`, or the client's own where the route does
/// not hide it.
pub fn upstream_request(
    parts: &Parts,
    upgrade: &Upgrade,
    routes: &RouteTable,
    route: &Route,
    principal: &Principal,
    caller: &Caller,
    entry: &Entry,
) -> Zeroizing<Vec<u8>> {
    let mut head = Head(Zeroizing::new(Vec::with_capacity(ROOM)));
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    head.make_room(target.len() + b"GET  HTTP/1.1\r\n".len());
    head.0.extend_from_slice(b"GET ");
    head.0.extend_from_slice(target.as_bytes());
    head.0.extend_from_slice(b" HTTP/1.1\r\n");
    head.line("Host", host(parts, route));
    head.line("Upgrade", b"websocket");
    head.line("Connection", b"Upgrade");
    head.line("Sec-WebSocket-Version", b"13");
    head.line("Sec-WebSocket-Key", upgrade.key().as_bytes());
    if !upgrade.protocols.is_empty() {
        head.line("Sec-WebSocket-Protocol", upgrade.protocols.join(", ").as_bytes());
    }
    for line in &upgrade.extensions {
        head.line("Sec-WebSocket-Extensions", line.as_bytes());
    }
    write_fields(parts, routes, route, principal, caller, entry, |name, value| head.line(name, value));
    head.0.extend_from_slice(b"\r\n");
    head.0
}

/// A plain request as the upstream gets it; what frames its body is still to come. `None`: never, as far as is known, for
/// a request that was vetted.
pub fn plain_request(
    parts: &Parts,
    routes: &RouteTable,
    route: &Route,
    principal: &Principal,
    caller: &Caller,
    entry: &Entry,
) -> Option<Request<()>> {
    let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = target.into();
    let mut all_are_good = true;
    let mut line = |name: &str, value: &[u8]| match (name.parse::<HeaderName>(), HeaderValue::from_bytes(value)) {
        (Ok(name), Ok(value)) => drop(request.headers_mut().append(name, value)),
        _ => all_are_good = false,
    };
    line("host", host(parts, route));
    line("connection", b"close");
    write_fields(parts, routes, route, principal, caller, entry, line);
    all_are_good.then_some(request)
}

fn sent_host(parts: &Parts) -> &[u8] {
    parts.headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes)
}

fn host<'r>(parts: &'r Parts, route: &'r Route) -> &'r [u8] {
    route.upstream.host.as_deref().map_or_else(|| sent_host(parts), str::as_bytes)
}

/// What of a request's own headers is for the upstream, and then ours: all but `Host`, and those of the connection.
fn write_fields(
    parts: &Parts,
    routes: &RouteTable,
    route: &Route,
    principal: &Principal,
    caller: &Caller,
    entry: &Entry,
    mut line: impl FnMut(&str, &[u8]),
) {
    let nominated: Vec<&str> = tokens(&parts.headers, &CONNECTION).collect();
    for (name, value) in &parts.headers {
        let plain = plain_name(name.as_str());
        let is_nominated = nominated.iter().any(|token| token.eq_ignore_ascii_case(name.as_str()));
        let is_hearsay = is_claim(&plain) && !caller.by_proxy;
        let is_alias = route.hide_credentials && route.verifier.has_alias(name.as_str(), &plain);
        if !is_nominated && !is_alias && !is_hearsay && !is_ours(&plain) && !routes.sets_header(&plain) {
            line(name.as_str(), value.as_bytes());
        }
    }
    line("X-Forwarded-For", caller.forwarded_for.as_bytes());
    line("X-Forwarded-Proto", caller.forwarded_proto.as_bytes());
    line("X-Forwarded-Host", caller.forwarded_host.as_ref().map_or_else(|| sent_host(parts), |host| host.as_bytes()));
    line("X-Request-Id", entry.id.as_bytes());
    write_trace(parts, &nominated, entry, &mut line);
    for header in &route.headers {
        line(header.name.as_str(), header.value(principal, &route.name).as_bytes());
    }
}

/// The trace that the request belongs to. What is no `traceparent` is not passed on, and a `tracestate` only beside one
/// (W3C Trace Context, section 4.3). Where we record a span of our own, that is what the upstream's has for its parent.
fn write_trace(parts: &Parts, nominated: &[&str], entry: &Entry, line: &mut impl FnMut(&str, &[u8])) {
    let own = entry.span.context();
    if let Some(own) = own {
        line(TRACEPARENT.as_str(), own.to_string().as_bytes());
    }
    if TraceContext::of(&parts.headers).is_none() {
        return;
    }
    for name in [&TRACEPARENT, &TRACESTATE] {
        if own.is_some() && *name == TRACEPARENT {
            continue;
        }
        if nominated.iter().any(|token| token.eq_ignore_ascii_case(name.as_str())) {
            return;
        }
        for value in parts.headers.get_all(name) {
            line(name.as_str(), value.as_bytes());
        }
    }
}

/// A request head being written. Values come from a vetted head or from the configuration.
struct Head(Zeroizing<Vec<u8>>);

impl Head {
    /// Room for so many bytes more. A vector that grows by itself leaves its old place behind as it was.
    fn make_room(&mut self, more: usize) {
        if self.0.capacity() - self.0.len() < more {
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * self.0.capacity() + more));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
    }

    fn line(&mut self, name: &str, value: &[u8]) {
        self.make_room(name.len() + value.len() + b": \r\n\r\n".len());
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b": ");
        push_value(&mut self.0, value);
        self.0.extend_from_slice(b"\r\n");
    }
}
