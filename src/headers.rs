//! What passes the gate besides bytes: the request that the upstream sees is built anew. End-to-end headers are copied in,
//! ours are set last, and nothing that a backend could mistake for ours is copied at all.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use http::request::Parts;

use crate::auth::Principal;
use crate::handshake::{Upgrade, tokens};
use crate::peer::Caller;
use crate::route::Route;

/// A header that the upstream gets from us, its value perhaps made from who the caller is.
#[derive(Debug, Clone)]
pub struct HeaderTemplate {
    pub name: HeaderName,
    pub parts: Vec<Part>,
}

/// A piece of a template. `{env.NAME}` is read when the file is loaded and arrives here as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(Box<str>),
    Id,
    Route,
    Attribute(Box<str>),
}

impl HeaderTemplate {
    /// The value for this principal; empty where it has nothing to say, so that no client's own value can stand there.
    fn value(&self, principal: &Principal, route: &str) -> String {
        let mut value = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => value.push_str(text),
                Part::Route => value.push_str(route),
                Part::Id => value.push_str(principal.key().map_or("", |key| &key.id)),
                Part::Attribute(name) => {
                    let attributes = principal.key().map_or(&[][..], |key| &key.attributes);
                    let found = attributes.iter().find(|(other, _)| other == name);
                    value.push_str(found.map_or("", |(_, value)| value));
                }
            }
        }
        value
    }
}

/// The handshake as the upstream gets it.
pub fn upstream_request(
    parts: &Parts,
    upgrade: &Upgrade,
    route: &Route,
    principal: &Principal,
    caller: &Caller,
    request_id: &str,
) -> Vec<u8> {
    let sent_host = parts.headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let mut head = Head(Vec::with_capacity(1024));
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    head.0.extend_from_slice(b"GET ");
    head.0.extend_from_slice(target.as_bytes());
    head.0.extend_from_slice(b" HTTP/1.1\r\n");
    head.line("Host", route.upstream.host.as_deref().map_or(sent_host, str::as_bytes));
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
    let nominated: Vec<&str> = tokens(&parts.headers, &CONNECTION).collect();
    for (name, value) in &parts.headers {
        let plain = plain_name(name.as_str());
        let is_nominated = nominated.iter().any(|token| token.eq_ignore_ascii_case(name.as_str()));
        if !is_nominated && !is_ours(&plain) && !route.headers.iter().any(|header| *header.name.as_str() == *plain) {
            head.line(name.as_str(), value.as_bytes());
        }
    }
    head.line("X-Forwarded-For", caller.forwarded_for.as_bytes());
    head.line("X-Forwarded-Proto", caller.forwarded_proto.as_bytes());
    head.line("X-Forwarded-Host", caller.forwarded_host.as_ref().map_or(sent_host, |host| host.as_bytes()));
    head.line("X-Request-Id", request_id.as_bytes());
    for header in &route.headers {
        head.line(header.name.as_str(), header.value(principal, &route.name).as_bytes());
    }
    head.0.extend_from_slice(b"\r\n");
    head.0
}

/// A request head being written. Values come from a vetted head or from the configuration.
struct Head(Vec<u8>);

impl Head {
    fn line(&mut self, name: &str, value: &[u8]) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b": ");
        // A line end can be in neither by now; this is the last place to be sure of it.
        self.0.extend(value.iter().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
        self.0.extend_from_slice(b"\r\n");
    }
}

/// A name as CGI-like backends read it, where `_` and `.` are as good as `-`. Names are in lower case here.
pub fn plain_name(name: &str) -> Cow<'_, str> {
    if name.contains(['_', '.']) { name.replace(['_', '.'], "-").into() } else { name.into() }
}

/// Names that only we write to an upstream, or that only concern one connection (RFC 9110 section 7.6.1), or by which
/// backends of some kinds are told another path, address or identity than the request's own.
pub fn is_ours(plain: &str) -> bool {
    is_hop_by_hop(plain)
        || plain.starts_with("x-forwarded-")
        || plain.starts_with("sec-websocket-")
        || matches!(
            plain,
            "host"
                | "content-length"
                | "expect"
                | "forwarded"
                | "http2-settings"
                | "proxy-authorization"
                | "x-auth-key-id"
                | "x-envoy-original-path"
                | "x-original-uri"
                | "x-original-url"
                | "x-real-ip"
                | "x-request-id"
                | "x-rewrite-url"
        )
}

fn is_hop_by_hop(plain: &str) -> bool {
    matches!(
        plain,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// What of an upstream's answer is for the client: neither framing nor anything about the connection to us, and nothing
/// of the WebSocket handshake, which is answered by us.
pub fn end_to_end_of_response(headers: &HeaderMap) -> HeaderMap {
    let nominated: Vec<&str> = tokens(headers, &CONNECTION).collect();
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let text = name.as_str();
        let is_nominated = nominated.iter().any(|token| token.eq_ignore_ascii_case(text));
        if !is_nominated && !is_hop_by_hop(text) && text != "content-length" && !text.starts_with("sec-websocket-") {
            kept.append(name, value.clone());
        }
    }
    kept
}
