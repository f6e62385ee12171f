//! One route: from the tree to [`schema::Route`].

use http::HeaderName;

use super::auth;
use super::fields::{Fields, mismatch, parsed};
use super::problem::{Faults, Path, Wrong};
use super::schema::{self, Auth, Header, Route, To};
use super::traffic;
use super::value::{self, HostPattern, Http, PathPattern, Place, Target, Timeouts};
use super::yaml::Node;

/// Decodes one item of `routes`. What cannot be read is left out, and the route is not sound then.
pub fn route(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Option<Route> {
    let before = faults.len();
    let fields = Fields::open(node, &schema::ROUTE, path, faults)?;
    let upstream = fields.required("upstream", "write upstream: NAME or upstream: ws://host:port", faults);
    let upstream = upstream.and_then(|node| parsed(node, &path.field("upstream"), to, faults));
    let mut route = read(&fields, upstream, faults);
    route.sound = faults.len() == before;
    Some(route)
}

/// What `upstream:` is short for: every host and path, and everything else as it is by default.
pub fn of_everything((target, written): (Target, Box<str>), path: &Path<'_>, faults: &mut Faults) -> Route {
    let mut route = read(&Fields::empty(&schema::ROUTE, path), None, faults);
    route.upstream = Some(To::Url(target, written));
    route.sound = true;
    route
}

fn read(fields: &Fields<'_, '_>, upstream: Option<To>, faults: &mut Faults) -> Route {
    let allowed_origins = fields.texts("allowed_origins", faults, value::origin);
    let (auth, tickets) = auth::read(fields, faults);
    // A browser sends cookies along with whatever page asks for the connection.
    if let Auth::Some(ways) = &auth
        && ways.key.iter().any(|place| matches!(place, Place::Cookie(_)))
        && allowed_origins.is_none()
    {
        let wrong = Wrong::new("a key in a cookie needs allowed_origins: any page could use it otherwise");
        let hint = "add allowed_origins: [\"https://your.site\"] to this route";
        faults.value(&fields.at.field("auth"), wrong.hint(hint));
    }
    let forwards = fields.parsed_or_default("http", forwards, faults);
    let (max_connections, max_connections_per_key, http, traffic) =
        fields.below("limits", &schema::ROUTE_LIMITS, faults, |limits, faults| {
            let http = http(limits, forwards, faults);
            let count = |name, faults: &mut Faults| limits.count(name, faults);
            let (all, per_key) = (count("max_connections", faults), count("max_connections_per_key", faults));
            (all, per_key, http, traffic::read(limits, faults))
        });
    Route {
        sound: false,
        name: fields.parsed("name", route_name, faults),
        host: fields.parsed("host", value::host_pattern, faults).unwrap_or(HostPattern::Any),
        path: fields.parsed("path", value::path_pattern, faults).unwrap_or(PathPattern::Any),
        upstream,
        auth,
        tickets,
        allowed_origins,
        hide_credentials: fields.flag("hide_credentials", faults),
        on_failure: fields.parsed_or_default("on_failure", value::on_failure, faults),
        http,
        headers: headers(fields, faults),
        max_connections,
        max_connections_per_key,
        traffic,
        strict_frames: fields.flag("strict_frames", faults),
        timeouts: fields.below("timeouts", &schema::ROUTE_TIMEOUTS, faults, timeouts),
    }
}

fn route_name(text: &str) -> Result<Box<str>, Wrong> {
    if text == "none" {
        return Err(Wrong::new("no route can be named none: metrics call it so when there was no route"));
    }
    value::name(text)
}

fn to(text: &str) -> Result<To, Wrong> {
    if text.is_empty() {
        return Err(Wrong::new("this is empty").hint("write upstream: NAME or upstream: ws://host:port"));
    }
    if value::is_url(text) { Ok(To::Url(value::target(text)?, text.into())) } else { Ok(To::Name(text.into())) }
}

/// `refuse` or `forward`: whether plain requests go to the upstream.
fn forwards(text: &str) -> Result<bool, Wrong> {
    match text {
        "refuse" => Ok(false),
        "forward" => Ok(true),
        _ => Err(Wrong::new("this is neither refuse nor forward")
            .hint("write forward to let plain HTTP requests through to the service, after the same checks")),
    }
}

fn http(limits: &Fields<'_, '_>, forwards: bool, faults: &mut Faults) -> Http {
    let max_request_body = limits.parsed_or_default("max_request_body", value::size, faults);
    if forwards {
        return Http::Forward { max_request_body };
    }
    if limits.has("max_request_body") {
        let wrong = Wrong::new("this route takes no request that could have a body");
        let hint = "write http: forward beside limits, or leave this out";
        faults.value(&limits.at.field("max_request_body"), wrong.hint(hint));
    }
    Http::Refuse
}

fn timeouts(fields: &Fields<'_, '_>, faults: &mut Faults) -> Timeouts {
    Timeouts {
        connect: fields.some_duration("connect", faults),
        handshake: fields.some_duration("handshake", faults),
        idle: fields.duration_or_off("idle", faults),
        max_lifetime: fields.duration_or_off("max_lifetime", faults),
        half_close: fields.some_duration("half_close", faults),
        write_stall: fields.duration_or_off("write_stall", faults),
        ping_interval: fields.duration_or_off("ping_interval", faults),
        ping_timeout: fields.some_duration("ping_timeout", faults),
    }
}

/// `identity_headers` and `set_headers`: names that mean one header to a service may stand only once in both.
fn headers(fields: &Fields<'_, '_>, faults: &mut Faults) -> Vec<Header> {
    let mut all: Vec<Header> = Vec::new();
    for field in ["identity_headers", "set_headers"] {
        let with_env = field == "set_headers";
        fields.named(field, faults, |written, node, path, faults| {
            let name = value::our_header(written).map_err(|wrong| faults.name(path, wrong)).ok();
            let template = match node {
                Node::Text(text) => value::template(text, with_env),
                other => Err(mismatch("text", other)),
            };
            let template = template.map_err(|wrong| faults.value(path, wrong)).ok();
            let (Some(name), Some(template)) = (name, template) else { return };
            if let Some(other) = all.iter().find(|other| is_one(&other.name, &name)) {
                let says = "this header is set already: case, - and _ make no difference to many services";
                let other = fields.at.field(other.field).field(&other.written).place();
                faults.between(path, Wrong::new(says), "it is set first at", other);
            }
            all.push(Header { field, written: written.into(), name, template });
        });
    }
    if fields.get("identity_headers").is_none() {
        all.extend(default_identity(&all));
    }
    all
}

fn is_one(a: &HeaderName, b: &HeaderName) -> bool {
    crate::fields::plain_name(a.as_str()) == crate::fields::plain_name(b.as_str())
}

/// Who it is, for the upstream - unless the route sets that header by itself.
fn default_identity(set: &[Header]) -> Option<Header> {
    let (written, template) = schema::DEFAULT_IDENTITY;
    let name = value::our_header(written).ok()?;
    let template = value::template(template, false).ok()?;
    let free = !set.iter().any(|other| is_one(&other.name, &name));
    free.then(|| Header { field: "identity_headers", written: written.into(), name, template })
}
