//! The file as types: what was written, each value read, and nothing looked up yet.

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderName;

use crate::config::value::{
    Collector, Cookie, Digest, Drain, FirstMessage, HostPattern, Http, IpNet, Limits, OnFailure, Origin, PathPattern,
    Piece, Place, Secret, Target, Timeouts, Traffic, UnixTime,
};

/// The main file.
pub struct File {
    pub listen: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub admin_token: Option<KeySecret>,
    pub trusted_proxies: Vec<IpNet>,
    pub upstreams: Vec<(Box<str>, Upstream)>,
    /// Each with its place in the list: entries that could not be read are left out.
    pub keys: Vec<(usize, Key)>,
    /// Each with its place in the list.
    pub key_files: Vec<(usize, Box<str>)>,
    /// `None` for those that could not be read at all. The one that `upstream:` is short for, where there is no list.
    pub routes: Vec<Option<Route>>,
    /// Whether the list stands in the file.
    pub has_routes: bool,
    pub limits: Limits,
    pub tickets: Tickets,
    pub head_timeout: Duration,
    pub tcp_keepalive: Option<Duration>,
    pub on_revoked: Duration,
    pub on_route_removed: Duration,
    pub drain: Drain,
    pub collector: Option<Collector>,
}

pub struct Upstream {
    /// `None` when it could not be read, which has been said.
    pub target: Option<Target>,
    pub rewrites_host: bool,
}

pub struct Route {
    /// Whether all of it could be read; the rest is only looked at for more faults then.
    pub sound: bool,
    pub name: Option<Box<str>>,
    pub host: HostPattern,
    pub path: PathPattern,
    pub upstream: Option<To>,
    pub auth: Auth,
    pub tickets: Option<Issue>,
    pub allowed_origins: Option<Vec<Origin>>,
    pub hide_credentials: bool,
    pub on_failure: OnFailure,
    pub http: Http,
    pub headers: Vec<Header>,
    pub max_connections: Option<u32>,
    pub max_connections_per_key: Option<u32>,
    pub traffic: Traffic,
    pub strict_frames: bool,
    pub timeouts: Timeouts,
}

pub enum To {
    Name(Box<str>),
    /// The URL and the text that it was read from.
    Url(Target, Box<str>),
}

pub enum Auth {
    None,
    Some(Ways),
}

/// What a route's `auth` says, or what holds where it says nothing.
pub struct Ways {
    pub key: Vec<Place>,
    pub first_message: Option<FirstMessage>,
    pub ticket: Vec<Place>,
}

/// Who signs tickets.
pub struct Tickets {
    pub secrets: Vec<KeySecret>,
    pub ttl: Duration,
}

/// How a route issues them.
pub struct Issue {
    pub path: Box<str>,
    pub ttl: Option<Duration>,
    pub cookie: Option<Cookie>,
    pub bind_origin: bool,
    pub bind_address: bool,
}

pub struct Header {
    /// `identity_headers` or `set_headers`.
    pub field: &'static str,
    pub written: Box<str>,
    pub name: HeaderName,
    pub template: Vec<Piece>,
}

pub struct Key {
    pub id: Box<str>,
    pub secrets: Vec<KeySecret>,
    /// `secret:` rather than `secrets:`.
    pub shorthand: bool,
    pub routes: Option<Vec<Box<str>>>,
    pub not_before: Option<UnixTime>,
    pub expires_at: Option<UnixTime>,
    pub disabled: bool,
    pub max_connections: Option<u32>,
    pub limits: Option<Box<Traffic>>,
    pub attributes: Vec<(Box<str>, Box<str>)>,
}

pub struct KeySecret {
    /// Its place in the list `secrets`.
    pub index: usize,
    pub from: From,
    pub valid_until: Option<UnixTime>,
}

pub enum From {
    Sha256(Digest),
    Plain(Secret),
    Env(Box<str>),
    File(Box<str>),
}
