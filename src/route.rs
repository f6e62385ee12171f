//! Which route a request takes: pure look-up by host and path, the most specific match first whatever the order in the file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::admit::Conditions;
use crate::auth::Verifier;
use crate::fields::plain_name;
use crate::random;
use crate::relay::{Bounds, Pinging, Watch};
use crate::template::HeaderTemplate;
use crate::traffic::Traffic;
use crate::upstream::{Patience, Upstream};

/// One route, compiled: what it takes, who may use it, and where it leads.
#[derive(Debug)]
pub struct Route {
    pub name: Arc<str>,
    pub host: HostPattern,
    pub path: PathPattern,
    pub verifier: Verifier,
    pub conditions: Conditions,
    pub hide_credentials: bool,
    pub on_failure: OnFailure,
    pub tickets: Option<Issue>,
    pub http: Http,
    /// Identity and other headers that the upstream gets from us.
    pub headers: Vec<HeaderTemplate>,
    pub timeouts: Timeouts,
    pub traffic: Traffic,
    pub strict_frames: bool,
    pub upstream: Arc<Upstream>,
}

/// What becomes of a request that asks for no upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    Refuse,
    /// It goes to the upstream as well, after the same questions.
    Forward {
        /// Bytes.
        max_request_body: u64,
    },
}

impl Route {
    /// What a tunnel of this route is watched for, and by the limits of its key.
    pub fn watch(&self, of_key: Option<&Traffic>) -> Option<Box<Watch>> {
        let timeout = self.timeouts.ping_timeout;
        let watch = Watch {
            ping: self.timeouts.ping_interval.map(|interval| Pinging { interval, timeout }),
            traffic: of_key.map_or(self.traffic, |of_key| self.traffic.and(of_key)),
            strict: self.strict_frames,
        };
        (watch != Watch::default()).then(|| Box::new(watch))
    }
}

/// `None` means no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// From the dial to the upstream's complete answer.
    pub handshake: Duration,
    pub idle: Option<Duration>,
    pub max_lifetime: Option<Duration>,
    /// How long one direction may live without bytes after the other has ended.
    pub half_close: Duration,
    /// How long one side may take nothing of what there is for it.
    pub write_stall: Option<Duration>,
    /// How long a client may be silent before it is asked whether it is there, and how long it has to answer.
    pub ping_interval: Option<Duration>,
    pub ping_timeout: Duration,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = match &self.host {
            HostPattern::Any => "any host".to_owned(),
            HostPattern::Exact(host) => format!("host {host}"),
            HostPattern::Below(suffix) => format!("host *{suffix}"),
        };
        let path = match &self.path {
            PathPattern::Any => "any path".to_owned(),
            PathPattern::Exact(path) => format!("path {path}"),
            PathPattern::Prefix(prefix) => format!("path {prefix}*"),
        };
        write!(f, "{} ({host}, {path}), which leads to {}", self.name, self.upstream.name)
    }
}

impl Route {
    /// How long its upstream may take.
    pub fn patience(&self) -> Patience {
        Patience { connect: self.timeouts.connect, handshake: self.timeouts.handshake }
    }

    /// When a tunnel that begins now is to end. A lifetime is cut by up to a tenth, so that tunnels that were opened
    /// together do not end together.
    pub fn bounds(&self) -> Bounds {
        let [byte] = random::bytes();
        let cut = f64::from(byte) / 255.0 / 10.0;
        Bounds {
            idle: self.timeouts.idle,
            until: self.timeouts.max_lifetime.map(|lifetime| Instant::now() + lifetime.mul_f64(1.0 - cut)),
            half_close: self.timeouts.half_close,
            write_stall: self.timeouts.write_stall,
        }
    }
}

/// How a route issues tickets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// Where, on the route's hosts.
    pub path: Box<str>,
    pub ttl: Duration,
    pub cookie: Option<Cookie>,
    /// Whether a ticket is good only with the `Origin` of the request that got it.
    pub bind_origin: bool,
    /// ... and only for its address.
    pub bind_address: bool,
}

/// The cookie that a ticket comes in, besides the answer's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    pub name: Box<str>,
    /// To be sent over TLS only.
    pub secure: bool,
}

/// How a refused handshake is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// As an HTTP answer.
    Http,
    /// As a WebSocket that is closed at once: the only thing that page code in a browser can read.
    Close,
    /// The second where the request has an `Origin`, which browsers send, else the first.
    Auto,
}

/// Which hosts a route takes. Texts are in lower case, without port and trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Any,
    Exact(Box<str>),
    /// `*.example.com`, kept as `.example.com`: any depth below, not the domain itself.
    Below(Box<str>),
}

/// Which paths a route takes, compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathPattern {
    Any,
    Exact(Box<str>),
    /// `/chat/*`, kept as `/chat/`: everything that starts so.
    Prefix(Box<str>),
}

/// Why a request has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    NoRoute,
    /// The path could be read in two ways, and a route here matches on paths.
    AmbiguousPath,
}

/// All routes, arranged for look-up.
#[derive(Default)]
pub struct RouteTable {
    doors: Hosts,
    /// Where tickets are issued: the exact path of each route that does so.
    desks: Hosts,
    has_desks: bool,
    by_name: HashMap<Arc<str>, Arc<Route>>,
    matches_on_path: bool,
    longest_handshake: Duration,
    /// Names of all headers that some route sets, as lenient backends read them.
    set_headers: HashSet<Box<str>>,
}

#[derive(Default)]
struct Hosts {
    exact: HashMap<Box<str>, Paths>,
    /// By suffix such as `.example.com`.
    below: HashMap<Box<str>, Paths>,
    any: Paths,
}

#[derive(Default)]
struct Paths {
    exact: HashMap<Box<str>, Arc<Route>>,
    /// The longest first.
    prefixes: Vec<(Box<str>, Arc<Route>)>,
    any: Option<Arc<Route>>,
}

impl RouteTable {
    /// Arranges the routes. Names are expected to be unique.
    ///
    /// # Errors
    /// Pairs of indices (earlier, later) of routes that take the same host and path.
    pub fn new(routes: Vec<Route>) -> Result<Self, Vec<(usize, usize)>> {
        let mut table = Self::default();
        let mut seen = HashMap::new();
        let mut clashes = Vec::new();
        for (index, route) in routes.into_iter().enumerate() {
            if let Some(earlier) = seen.insert((route.host.clone(), route.path.clone()), index) {
                clashes.push((earlier, index));
                continue;
            }
            table.longest_handshake = table.longest_handshake.max(route.timeouts.handshake);
            let names = route.headers.iter().map(|header| plain_name(header.name.as_str()).into());
            table.set_headers.extend(names);
            table.matches_on_path |= route.path != PathPattern::Any;
            let route = Arc::new(route);
            table.by_name.insert(route.name.clone(), route.clone());
            table.doors.paths(&route.host).add(&route.path, &route);
            if let Some(issue) = &route.tickets {
                table.has_desks = true;
                table.desks.paths(&route.host).add(&PathPattern::Exact(issue.path.clone()), &route);
            }
        }
        if clashes.is_empty() { Ok(table) } else { Err(clashes) }
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Whether some route sets a header that a backend could take this one for. Routes may share a backend, so a caller on
    /// one of them must not be able to write what another one vouches for.
    pub fn sets_header(&self, plain: &str) -> bool {
        self.set_headers.contains(plain)
    }

    /// The longest time that any route gives its upstream to answer.
    pub fn longest_handshake(&self) -> Duration {
        self.longest_handshake
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<Route>> {
        self.by_name.get(name)
    }

    /// The most specific route for a host (as sent, port and case included) and a raw path.
    ///
    /// # Errors
    /// [`NotFound`]: a path that could be read in two ways is refused before it is compared with anything.
    pub fn find(&self, host: &str, path: &str) -> Result<&Arc<Route>, NotFound> {
        if self.matches_on_path && is_ambiguous(path) {
            return Err(NotFound::AmbiguousPath);
        }
        self.doors.find(host, path).ok_or(NotFound::NoRoute)
    }

    /// Every route, in order of names.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        let mut all: Vec<_> = self.by_name.values().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.into_iter()
    }

    pub fn has_desks(&self) -> bool {
        self.has_desks
    }

    /// The route that issues tickets at this host and path.
    pub fn find_desk(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        self.desks.find(host, path)
    }
}

impl Hosts {
    fn paths(&mut self, host: &HostPattern) -> &mut Paths {
        match host {
            HostPattern::Any => &mut self.any,
            HostPattern::Exact(host) => self.exact.entry(host.clone()).or_default(),
            HostPattern::Below(suffix) => self.below.entry(suffix.clone()).or_default(),
        }
    }

    fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let host = normal_host(host);
        let found = self.exact.get(&*host).and_then(|paths| paths.find(path)).or_else(|| {
            let dots = host.match_indices('.').map(|(at, _)| &host[at..]);
            dots.filter_map(|suffix| self.below.get(suffix)).find_map(|paths| paths.find(path))
        });
        found.or_else(|| self.any.find(path))
    }
}

impl Paths {
    fn add(&mut self, path: &PathPattern, route: &Arc<Route>) {
        match path {
            PathPattern::Any => self.any = Some(route.clone()),
            PathPattern::Exact(path) => {
                self.exact.insert(path.clone(), route.clone());
            }
            PathPattern::Prefix(prefix) => {
                let at = self.prefixes.partition_point(|(other, _)| other.len() >= prefix.len());
                self.prefixes.insert(at, (prefix.clone(), route.clone()));
            }
        }
    }

    fn find(&self, path: &str) -> Option<&Arc<Route>> {
        self.exact
            .get(path)
            .or_else(|| self.prefixes.iter().find(|(prefix, _)| path.starts_with(&**prefix)).map(|(_, route)| route))
            .or(self.any.as_ref())
    }
}

/// Lower case, without port and trailing dot. Borrowed where nothing has to change.
fn normal_host(host: &str) -> std::borrow::Cow<'_, str> {
    let host = crate::peer::split_host(host).map_or(host, |(host, _)| host);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) { host.to_ascii_lowercase().into() } else { host.into() }
}

/// Whether a backend might read this path as another one: empty segments, dot segments, parameters (`;`, which some cut
/// off before they compare), and percent codes that are a second spelling of something or no text at all.
pub fn is_ambiguous(path: &str) -> bool {
    let has_odd_segment = |path: &str| {
        let mut segments = path.split('/').skip(1).peekable();
        std::iter::from_fn(|| segments.next().map(|segment| (segment, segments.peek().is_none())))
            // A trailing slash leaves one empty segment at the end, which is no ambiguity.
            .any(|(segment, is_last)| matches!(segment, "." | "..") || (segment.is_empty() && !is_last))
    };
    path.contains(';')
        || ((path.contains("//") || path.contains("/.")) && has_odd_segment(path))
        || (path.contains('%') && has_odd_code(path.as_bytes()))
}

/// Codes of separators, of controls, of `%` and `;`, and of characters that need none (RFC 3986 section 2.3) are odd; so
/// are those above ASCII that make no UTF-8.
fn has_odd_code(path: &[u8]) -> bool {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let hex = |at: usize| tail.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let Some(code) = hex(0).zip(hex(1)).and_then(|(high, low)| u8::try_from(high << 4 | low).ok()) else {
            return true;
        };
        let is_unreserved = code.is_ascii_alphanumeric() || b"-._~".contains(&code);
        if is_unreserved || code.is_ascii_control() || matches!(code, b'/' | b'\\' | b'%' | b';') {
            return true;
        }
        decoded.push(code);
        rest = &tail[2..];
    }
    std::str::from_utf8(&decoded).map_or(true, |text| text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_reading_or_none() {
        for good in ["/", "/ws", "/ws/", "/a%20b", "/caf%C3%A9", "/a%3Ab", "/.well-known/x", "/a..b", "/a.", "/x=1,2"] {
            assert!(!is_ambiguous(good), "{good}");
        }
        for bad in [
            "//ws",
            "/a//b",
            "/./a",
            "/a/..",
            "/a/../b",
            "/%2e%2e/a",
            "/%61dmin",
            "/a%2Fb",
            "/a%5cb",
            "/a%00",
            "/a%0a",
            "/a%252e",
            "/a;x",
            "/;x/a",
            "/a%3bx",
            "/%c0%ae",
            "/%ff",
            "/%c2%85",
            "/a%7f",
        ] {
            assert!(is_ambiguous(bad), "{bad}");
        }
    }
}
