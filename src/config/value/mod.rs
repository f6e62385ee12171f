//! Values as people write them: durations, dates, addresses, patterns. Text in, the domain's own values out.
//! A parser says what is wrong and what would be right; it never repeats the value.

mod proof;
mod quantity;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use http::HeaderName;
use http::uri::PathAndQuery;

pub use self::proof::{
    encoding, first_message_preset, json_pointer, message_format, message_size, preset, ticket_bind, ticket_ttl,
};
pub use self::quantity::{date, duration, duration_or_off, size, some_duration, some_size};
use super::problem::{Wrong, holds_key, nearest};
pub use crate::admit::Origin;
pub use crate::auth::credential::{Encoding, Place, Shape};
pub use crate::auth::first_message::{FirstMessage, Format};
pub use crate::clock::UnixTime;
use crate::fields;
pub use crate::limit::Limits;
pub use crate::route::{Cookie, HostPattern, Http, OnFailure, PathPattern, Timeouts};
pub use crate::rules::Drain;
pub use crate::secret::{Digest, Secret};
pub use crate::spans::Collector;
pub use crate::traffic::{Flow, Rate, Traffic};
pub use crate::upstream::Endpoint;
pub use ipnet::IpNet;

type Parsed<T> = Result<T, Wrong>;

/// What becomes of what is too much: whether it has to wait.
pub fn on_excess(text: &str) -> Parsed<bool> {
    match text {
        "close" => Ok(false),
        "delay" => Ok(true),
        _ => Err(Wrong::new("this must be close or delay")
            .hint("close ends the connection with 4429, delay reads on when there is room again")),
    }
}

/// `ip:port`, to listen on.
pub fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| {
        let wrong = Wrong::new("this is not an address to listen on");
        match text.rsplit_once(':') {
            Some(("localhost", port)) => {
                wrong.hint(format!("names are not looked up here; write 127.0.0.1:{}", number(port)))
            }
            Some(("" | "*", port)) => wrong.hint(format!("write 0.0.0.0:{0}, or 127.0.0.1:{0}", number(port))),
            _ => wrong.hint("write ip:port, such as 127.0.0.1:8080 or [::1]:8080"),
        }
    })
}

fn number(port: &str) -> u16 {
    port.parse().unwrap_or(8080)
}

/// `10.0.0.0/8`, or a single address.
pub fn network(text: &str) -> Parsed<IpNet> {
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| Wrong::new("this is not a network").hint("write 10.0.0.0/8, 2001:db8::/32 or a single address"))?;
    if net.trunc() != net {
        return Err(Wrong::new("the address has bits beyond its prefix").hint(format!("did you mean {}?", net.trunc())));
    }
    Ok(net)
}

/// Where an upstream listens, and what `host: upstream` sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub endpoint: Endpoint,
    pub authority: String,
}

/// Whether a route's `upstream` is meant as a URL rather than a name.
pub fn is_url(text: &str) -> bool {
    text.contains("://") || text.starts_with("unix:")
}

/// `ws://host:port` or `unix:/path`.
pub fn target(text: &str) -> Parsed<Target> {
    const FORMS: &str = "write ws://host:port or unix:/path";
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.starts_with("//") || path.len() > MAX_SOCKET_PATH || path.contains('\0') {
            return Err(Wrong::new("this is not the path of a socket")
                .hint("write unix: and an absolute path of at most 107 bytes, such as unix:/run/app.sock"));
        }
        return Ok(Target { endpoint: Endpoint::Unix(PathBuf::from(path)), authority: "localhost".into() });
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| Wrong::new("this is not a URL").hint(FORMS))?;
    match scheme {
        "ws" | "http" => {}
        "wss" | "https" => {
            return Err(Wrong::new("TLS to the upstream is not supported by this version")
                .hint("use ws:// over a network that you trust, or put a TLS client such as stunnel between"));
        }
        _ => return Err(Wrong::new("no upstream speaks this scheme").hint(FORMS)),
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('@') {
        return Err(Wrong::new("an upstream's URL has no user and password")
            .hint("send them with set_headers: { Authorization: \"Basic {env.NAME}\" }"));
    }
    if authority.contains(['/', '?', '#']) {
        return Err(Wrong::new("an upstream's URL has no path: the request's own is used").hint(FORMS));
    }
    let split = crate::peer::split_host(authority).filter(|(host, port)| !host.is_empty() && *port != Some(0));
    let (host, port) = split.ok_or_else(|| Wrong::new("this URL has no good host and port").hint(FORMS))?;
    let port = port.unwrap_or(80);
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let endpoint = match literal {
        Ok(ip) => Endpoint::Address(SocketAddr::new(ip, port)),
        Err(_) => Endpoint::Name { host: host.into(), port },
    };
    Ok(Target { endpoint, authority: authority.to_owned() })
}

/// `http://127.0.0.1:4318`: where the paths of OTLP begin.
pub fn collector(text: &str) -> Parsed<Collector> {
    const TRACES: &str = "/v1/traces";
    let bad = |says: &str| Wrong::new(says).hint("write http://127.0.0.1:4318");
    if text.starts_with("https://") {
        return Err(Wrong::new("TLS to a collector is not supported by this version")
            .hint("send to a collector on this machine, and let that one send on"));
    }
    let rest = text.strip_prefix("http://").ok_or_else(|| bad("this is not the URL of a collector"))?;
    let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let split = crate::peer::split_host(authority).filter(|(host, port)| !host.is_empty() && *port != Some(0));
    let (host, port) =
        split.filter(|_| !authority.contains('@')).ok_or_else(|| bad("this URL has no good host and port"))?;
    let base = base.trim_end_matches('/');
    let path = if base.ends_with(TRACES) { base.to_owned() } else { format!("{base}{TRACES}") };
    match path.parse::<PathAndQuery>() {
        Ok(good) if good.query().is_none() && good.as_str() == path => Ok(Collector {
            authority: authority.into(),
            host: host.trim_start_matches('[').trim_end_matches(']').into(),
            port: port.unwrap_or(80),
            path: path.into(),
        }),
        _ => Err(bad("this URL has no good path")),
    }
}

/// What `sun_path` holds on Linux, less its closing NUL.
const MAX_SOCKET_PATH: usize = 107;

/// `chat.example.com`, `*.example.com`, or `*`.
pub fn host_pattern(text: &str) -> Parsed<HostPattern> {
    const FORMS: &str = "write chat.example.com, or \"*.example.com\" for everything below it";
    if text == "*" {
        return Ok(HostPattern::Any);
    }
    if text.contains("://") || text.contains('/') {
        return Err(Wrong::new("this is a URL; a host is only a name").hint(FORMS));
    }
    if !text.is_ascii() {
        return Err(Wrong::new("this name is not ASCII").hint("write it as it is sent, in its xn-- form"));
    }
    let lower = text.to_ascii_lowercase();
    let (below, name) = lower.strip_prefix("*.").map_or((false, &*lower), |name| (true, name));
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.contains('*') {
        return Err(Wrong::new("a * stands only at the beginning, for all that is before the first dot").hint(FORMS));
    }
    match crate::peer::split_host(name) {
        Some((_, Some(_))) => Err(Wrong::new("a host has no port here: routes take every port").hint(FORMS)),
        Some(_) if name.starts_with('.') || name.contains("..") => {
            Err(Wrong::new("this is not a host name").hint(FORMS))
        }
        Some(_) if below => Ok(HostPattern::Below(format!(".{name}").into())),
        Some(_) => Ok(HostPattern::Exact(name.into())),
        None => Err(Wrong::new("this is not a host name").hint(FORMS)),
    }
}

/// `/ws`, or `/chat/*`.
pub fn path_pattern(text: &str) -> Parsed<PathPattern> {
    const FORMS: &str = "write /ws, or /chat/* for everything below /chat/";
    if !text.starts_with('/') {
        return Err(Wrong::new("a path begins with a slash").hint(FORMS));
    }
    let (below, path) = text.strip_suffix("/*").map_or((false, text), |path| (true, path));
    if path.contains('*') {
        return Err(Wrong::new("a * stands only at the end, after a slash").hint(FORMS));
    }
    if path.contains(['?', '#']) {
        return Err(Wrong::new("a route is found by its path alone, without ? and #").hint(FORMS));
    }
    let sendable = path.bytes().all(|byte| byte.is_ascii_graphic()) && text.parse::<PathAndQuery>().is_ok();
    if !sendable {
        return Err(
            Wrong::new("this holds characters that cannot stand in a request's path").hint("percent-encode them")
        );
    }
    let compared = if below { format!("{path}/") } else { path.to_owned() };
    // Such requests are refused before routes are compared with them.
    if crate::route::is_ambiguous(&compared) || (below && compared.contains(';')) {
        return Err(Wrong::new("no request can have this path: proxies and services read it in different ways")
            .hint("leave out //, dot segments, %2f, %5c, %25 and %00"));
    }
    let compared = compared.into();
    Ok(if below { PathPattern::Prefix(compared) } else { PathPattern::Exact(compared) })
}

/// `https://chat.example.com`, or `https://*.example.com`.
pub fn origin(text: &str) -> Parsed<Origin> {
    if text == "*" {
        return Err(Wrong::new("* is no origin").hint("leave allowed_origins out to let pages of every origin in"));
    }
    Origin::parse(text)
        .map_err(|says| Wrong::new(says).hint("write https://chat.example.com or \"https://*.example.com\""))
}

pub fn token(text: &str) -> Parsed<Box<str>> {
    if fields::is_token(text) && text.len() <= MAX_NAME {
        return Ok(text.into());
    }
    Err(Wrong::new("this must be a token: letters, digits and !#$%&'*+-.^_`|~, without spaces"))
}

/// Names of query parameters are compared after decoding, so they may hold anything printable.
pub fn parameter(text: &str) -> Parsed<Box<str>> {
    if !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.into());
    }
    Err(Wrong::new("this must be the name of a query parameter, in printable ASCII"))
}

/// Names go into logs, metrics and headers.
const MAX_NAME: usize = 128;

/// An id or a name of our own: printable, and fit to stand in a header.
pub fn name(text: &str) -> Parsed<Box<str>> {
    if text.is_empty() {
        return Err(Wrong::new("this is empty"));
    }
    if holds_key(text) {
        return Err(Wrong::new("this looks like a key, not like the name of one")
            .hint("names stand in logs, metrics and headers; if anybody saw this file, make a new key"));
    }
    if text.len() > MAX_NAME || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Wrong::new("this must be at most 128 printable ASCII characters without spaces")
            .hint("it stands in logs, metrics and headers"));
    }
    Ok(text.into())
}

/// Text that can stand in a header.
pub fn header_text(text: &str) -> Parsed<Box<str>> {
    if text.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        return Ok(text.into());
    }
    Err(Wrong::new(
        "this cannot stand in a header: it holds a control character, a line break or a letter that is not ASCII",
    ))
}

fn header_name(text: &str) -> Parsed<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        Wrong::new("this is not the name of a header").hint("letters, digits and dashes, such as X-Api-Key")
    })
}

/// A header in which a client may send its credential.
pub fn credential_header(text: &str) -> Parsed<HeaderName> {
    let header = header_name(text)?;
    match header.as_str() {
        "sec-websocket-protocol" => Err(Wrong::new("subprotocols have a place of their own")
            .hint("write { subprotocol: { pair: x-api-key } } or { subprotocol: { preset: kubernetes } }")),
        "cookie" => Err(Wrong::new("cookies have a place of their own").hint("write { cookie: NAME }")),
        name if is_ours(name) => Err(Wrong::new("no credential can stand in a header that the handshake itself needs")),
        _ => Ok(header),
    }
}

/// A header that the upstream gets from us.
pub fn our_header(text: &str) -> Parsed<HeaderName> {
    let header = header_name(text)?;
    if is_ours(header.as_str()) {
        return Err(Wrong::new("this header is the proxy's own, and cannot be set")
            .hint("choose another name, such as X-Auth-Key-Id"));
    }
    Ok(header)
}

/// Headers that the proxy owns, and takes out of requests. The one that tells who it is may be written anew.
fn is_ours(name: &str) -> bool {
    let plain = fields::plain_name(name);
    fields::is_ours(&plain) && plain != "x-auth-key-id"
}

/// A piece of a header template, its `{env.NAME}` not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Text(Box<str>),
    Id,
    Route,
    Attribute(Box<str>),
    Env(Box<str>),
}

/// `Bearer {env.VENDOR_KEY}`, `{id}`, `{attributes.tenant}`.
pub fn template(text: &str, with_env: bool) -> Parsed<Vec<Piece>> {
    header_text(text)?;
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find(['{', '}']) {
        let (before, braces) = rest.split_at(open);
        let inside = braces.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let (inside, after) =
            inside.ok_or_else(|| Wrong::new("a { or } without its other half").hint(placeholders(with_env)))?;
        if !before.is_empty() {
            pieces.push(Piece::Text(before.into()));
        }
        pieces.push(placeholder(inside, with_env)?);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.into()));
    }
    Ok(pieces)
}

fn placeholder(inside: &str, with_env: bool) -> Parsed<Piece> {
    match inside.split_once('.') {
        None if inside == "id" => Ok(Piece::Id),
        None if inside == "route" => Ok(Piece::Route),
        Some(("attributes", name)) if !name.is_empty() => Ok(Piece::Attribute(name.into())),
        Some(("env", name)) if !name.is_empty() && with_env => Ok(Piece::Env(name.into())),
        Some(("env", _)) if !with_env => {
            Err(Wrong::new("{env.NAME} stands only in set_headers").hint(placeholders(false)))
        }
        _ => {
            let wrong = Wrong::new("there is no such placeholder");
            Err(match nearest(inside, ["id", "route"]) {
                Some(near) => wrong.hint(format!("did you mean {{{near}}}?")),
                None => wrong.hint(placeholders(with_env)),
            })
        }
    }
}

fn placeholders(with_env: bool) -> &'static str {
    if with_env {
        "there are {id}, {route}, {attributes.NAME} and {env.NAME}"
    } else {
        "there are {id}, {route} and {attributes.NAME}"
    }
}

pub fn on_failure(text: &str) -> Parsed<OnFailure> {
    match text {
        "http" => Ok(OnFailure::Http),
        "close" => Ok(OnFailure::Close),
        "auto" => Ok(OnFailure::Auto),
        _ => Err(Wrong::new("this must be http, close or auto")
            .hint("close tells page code by a close code, auto does so for browsers only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_names_and_sockets() {
        let endpoint = |text: &str| target(text).map(|target| target.endpoint);
        let address = |text: &str| Ok(Endpoint::Address(text.parse().unwrap()));
        assert_eq!(endpoint("ws://127.0.0.1:9000"), address("127.0.0.1:9000"));
        assert_eq!(endpoint("ws://[::1]/"), address("[::1]:80"));
        assert_eq!(endpoint("http://a.internal:8000"), Ok(Endpoint::Name { host: "a.internal".into(), port: 8000 }));
        assert_eq!(endpoint("unix:/run/a.sock"), Ok(Endpoint::Unix("/run/a.sock".into())));
        assert_eq!(target("ws://a:8000").map(|target| target.authority), Ok("a:8000".into()));
        for text in
            ["", "a", "ws:a", "ws://", "ws:///", "ws://a b", "ws://a/b", "ws://u:p@a", "unix:a", "unix:", "wss://a"]
        {
            assert!(target(text).is_err(), "{text}");
        }
    }

    #[test]
    fn collectors_are_told_by_where_otlp_begins() {
        let parts = |text: &str| {
            collector(text)
                .map(|it| (it.authority.into_string(), it.host.into_string(), it.port, it.path.into_string()))
        };
        let good =
            |authority: &str, host: &str, port, path: &str| Ok((authority.into(), host.into(), port, path.into()));
        assert_eq!(parts("http://127.0.0.1:4318"), good("127.0.0.1:4318", "127.0.0.1", 4318, "/v1/traces"));
        assert_eq!(parts("http://[::1]:4318/"), good("[::1]:4318", "::1", 4318, "/v1/traces"));
        assert_eq!(parts("http://a.internal/otlp/"), good("a.internal", "a.internal", 80, "/otlp/v1/traces"));
        assert_eq!(parts("http://a:1/v1/traces"), good("a:1", "a", 1, "/v1/traces"));
        for text in [
            "",
            "a",
            "127.0.0.1:4318",
            "https://a",
            "ws://a",
            "http://",
            "http://a:0",
            "http://u:p@a",
            "http://a/?b",
            "http://a/b c",
            "http://a/#b",
        ] {
            assert!(collector(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_are_kept_as_they_are_compared() {
        assert_eq!(host_pattern("Chat.Example.Com."), Ok(HostPattern::Exact("chat.example.com".into())));
        assert_eq!(host_pattern("*.example.com"), Ok(HostPattern::Below(".example.com".into())));
        assert_eq!(host_pattern("[::1]"), Ok(HostPattern::Exact("[::1]".into())));
        assert_eq!(host_pattern("*"), Ok(HostPattern::Any));
        assert_eq!(path_pattern("/chat/*"), Ok(PathPattern::Prefix("/chat/".into())));
        assert_eq!(path_pattern("/*"), Ok(PathPattern::Prefix("/".into())));
        assert_eq!(path_pattern("/chat/"), Ok(PathPattern::Exact("/chat/".into())));
        assert_eq!(path_pattern("/a%20b"), Ok(PathPattern::Exact("/a%20b".into())));
    }

    #[test]
    fn templates_are_taken_apart() {
        let text = |text: &str| Piece::Text(text.into());
        let pieces = [text("k "), Piece::Id, text("/"), Piece::Attribute("a.b".into()), Piece::Env("E".into())];
        assert_eq!(template("k {id}/{attributes.a.b}{env.E}", true), Ok(pieces.into()));
        assert_eq!(template("", true), Ok(Vec::new()));
        for bad in ["{", "}", "{}", "{id", "id}", "{{id}}", "{env.}", "{attributes}", "a\nb"] {
            assert!(template(bad, true).is_err(), "{bad}");
        }
        assert!(template("{env.E}", false).is_err());
    }

    #[test]
    fn headers_of_the_proxy_are_its_own() {
        for name in ["Host", "x_forwarded_for", "Sec-WebSocket-Key", "Connection", "X-Request-Id", "a b", ""] {
            assert!(our_header(name).is_err(), "{name}");
        }
        for name in ["X-Auth-Key-Id", "Authorization", "X-Tenant", "Cookie"] {
            assert!(our_header(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn networks_have_no_bits_beyond_their_prefix() {
        assert!(network("10.0.0.0/8").is_ok() && network("10.0.0.1").is_ok() && network("::/0").is_ok());
        assert!(network("10.0.0.1/8").is_err() && network("10.0.0.0/33").is_err() && network("all").is_err());
    }
}
