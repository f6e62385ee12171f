//! One route: from the tree to [`schema::Route`].

use http::HeaderName;

use super::fields::{Fields, mismatch, parsed};
use super::problem::{Faults, Path, Wrong, nearest};
use super::schema::{self, Auth, Header, Route, To};
use super::traffic;
use super::value::{self, Encoding, HostPattern, PathPattern, Place, Shape, Target, Timeouts};
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
    let auth = auth(fields, faults);
    // A browser sends cookies along with whatever page asks for the connection.
    if let Auth::ApiKey(places) = &auth
        && places.iter().any(|place| matches!(place, Place::Cookie(_)))
        && allowed_origins.is_none()
    {
        let wrong = Wrong::new("a key in a cookie needs allowed_origins: any page could use it otherwise");
        let hint = "add allowed_origins: [\"https://your.site\"] to this route";
        faults.value(&fields.at.field("auth"), wrong.hint(hint));
    }
    let (max_connections, max_connections_per_key, traffic) =
        fields.below("limits", &schema::ROUTE_LIMITS, faults, |limits, faults| {
            let count = |name, faults: &mut Faults| limits.count(name, faults);
            (count("max_connections", faults), count("max_connections_per_key", faults), traffic::read(limits, faults))
        });
    Route {
        sound: false,
        name: fields.parsed("name", route_name, faults),
        host: fields.parsed("host", value::host_pattern, faults).unwrap_or(HostPattern::Any),
        path: fields.parsed("path", value::path_pattern, faults).unwrap_or(PathPattern::Any),
        upstream,
        auth,
        allowed_origins,
        hide_credentials: fields.flag("hide_credentials", faults),
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

fn timeouts(fields: &Fields<'_, '_>, faults: &mut Faults) -> Timeouts {
    Timeouts {
        connect: fields.some_duration("connect", faults),
        handshake: fields.some_duration("handshake", faults),
        idle: fields.duration_or_off("idle", faults),
        max_lifetime: fields.duration_or_off("max_lifetime", faults),
        half_close: fields.some_duration("half_close", faults),
        ping_interval: fields.duration_or_off("ping_interval", faults),
        ping_timeout: fields.some_duration("ping_timeout", faults),
    }
}

/// `none`, `api_key`, `{ api_key: ... }`, or a list of such.
fn auth(fields: &Fields<'_, '_>, faults: &mut Faults) -> Auth {
    let path = fields.at.field("auth");
    let mut found = None;
    match fields.get("auth") {
        None => {}
        Some(Node::Text(word)) if word.as_str() == "none" => return Auth::None,
        Some(Node::List(items)) => {
            if items.is_empty() {
                let wrong = Wrong::new("this list names no way to prove who is calling");
                faults.value(&path, wrong.hint("leave auth out for API keys, or write auth: none to let everybody in"));
            }
            for (index, item) in items.iter().enumerate() {
                let path = path.item(index);
                let places = kind(item, &path, faults);
                if found.is_some() && places.is_some() {
                    let wrong = Wrong::new("there can be only one api_key entry");
                    faults.value(&path, wrong.hint("list all places in its extract_from"));
                }
                found = found.or(places);
            }
        }
        Some(node) => found = kind(node, &path, faults),
    }
    // Without a word about it, or with a faulty one, a route wants keys.
    Auth::ApiKey(found.unwrap_or_else(default_places))
}

/// One entry of `auth`.
fn kind(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Option<Vec<Place>> {
    match node {
        Node::Text(word) if word.as_str() == "api_key" => Some(default_places()),
        Node::Text(word) => {
            faults.value(path, unknown_kind(word));
            None
        }
        node => {
            let fields = Fields::open(node, &schema::AUTH, path, faults)?;
            let node = fields.required("api_key", "write { api_key: { extract_from: [...] } }", faults)?;
            let path = path.field("api_key");
            let fields = Fields::open(node, &schema::API_KEY, &path, faults)?;
            Some(places(&fields, faults))
        }
    }
}

fn unknown_kind(word: &str) -> Wrong {
    if word == "none" {
        return Wrong::new("none stands alone: a route is open, or it is not").hint("write auth: none");
    }
    if schema::AUTH.later.contains(&word) {
        return Wrong::new("this is not supported by this version").hint("use api_key");
    }
    let wrong = Wrong::new("there is no such kind of auth");
    if schema::PLACE.words.contains(&word) {
        return wrong.hint(format!("write auth: [{{ api_key: {{ extract_from: [{word}] }} }}]"));
    }
    match nearest(word, ["none", "api_key"]) {
        Some(near) => wrong.hint(format!("did you mean \"{near}\"?")),
        None => wrong.hint("there are api_key and none"),
    }
}

fn default_places() -> Vec<Place> {
    let [(_, header), (_, marker)] = schema::DEFAULT_PLACES;
    let shape = Shape::Pair { marker: marker.into(), any_case: false };
    let header = value::credential_header(header).map(Place::Header);
    header.into_iter().chain([Place::Subprotocol { shape, encoding: Encoding::Raw }]).collect()
}

fn places(fields: &Fields<'_, '_>, faults: &mut Faults) -> Vec<Place> {
    let mut all = Vec::new();
    let mut add = |node: &Node, path: &Path<'_>, faults: &mut Faults| {
        let Some(place) = place(node, path, faults) else { return };
        if all.contains(&place) {
            faults.value(path, Wrong::new("this place stands twice").hint("keep one of them"));
        }
        all.push(place);
    };
    let path = fields.at.field("extract_from");
    match fields.get("extract_from") {
        None => return default_places(),
        Some(Node::List(items)) if items.is_empty() => {
            faults
                .value(&path, Wrong::new("this list names no place").hint("leave extract_from out for the usual ones"));
        }
        Some(Node::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                add(item, &path.item(index), faults);
            }
        }
        Some(node) => add(node, &path, faults),
    }
    all
}

/// One entry of `extract_from`.
fn place(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Option<Place> {
    match node {
        Node::Text(word) if word.as_str() == "bearer" => return Some(Place::Bearer),
        Node::Text(word) if word.as_str() == "basic" => return Some(Place::Basic),
        Node::Text(_) => {
            let wrong = Wrong::new("there is no such place");
            faults.value(path, wrong.hint(PLACES));
            return None;
        }
        _ => {}
    }
    let before = faults.len();
    let fields = Fields::open(node, &schema::PLACE, path, faults)?;
    let found: Vec<Place> = [
        fields.parsed("header", value::credential_header, faults).map(Place::Header),
        fields.parsed("query", value::parameter, faults).map(Place::Query),
        fields.parsed("cookie", value::token, faults).map(Place::Cookie),
        fields.get("subprotocol").and_then(|node| subprotocol(node, &path.field("subprotocol"), faults)),
    ]
    .into_iter()
    .flatten()
    .collect();
    only(found, "one entry is one place", PLACES, path, before, faults)
}

const PLACES: &str =
    "there are bearer, basic, { header: NAME }, { subprotocol: ... }, { query: NAME } and { cookie: NAME }";

fn subprotocol(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Option<Place> {
    const FORMS: &str = "there are { pair: x-api-key }, { prefix: \"key.\" } and { preset: kubernetes }";
    let before = faults.len();
    let fields = Fields::open(node, &schema::SUBPROTOCOL, path, faults)?;
    let encoding = fields.parsed_or_default("encoding", value::encoding, faults);
    let preset = fields.parsed("preset", value::preset, faults);
    if preset.is_some() && fields.has("encoding") {
        let wrong = Wrong::new("a preset has its own encoding");
        faults.value(&path.field("encoding"), wrong.hint("leave encoding out"));
    }
    let pair = fields.parsed("pair", value::token, faults);
    let prefix = fields.parsed("prefix", value::token, faults);
    let shapes = [
        pair.map(|marker| (Shape::Pair { marker, any_case: false }, encoding)),
        prefix.map(|prefix| (Shape::Prefix(prefix), encoding)),
        preset,
    ];
    let found = only(shapes.into_iter().flatten().collect(), "give one of them", FORMS, path, before, faults);
    found.map(|(shape, encoding)| Place::Subprotocol { shape, encoding })
}

/// The only one of the alternatives that a map may hold.
fn only<T>(
    mut found: Vec<T>,
    says: &'static str,
    hint: &'static str,
    path: &Path<'_>,
    before: usize,
    faults: &mut Faults,
) -> Option<T> {
    if found.len() != 1 && faults.len() == before {
        faults.value(path, Wrong::new(says).hint(hint));
    }
    if found.is_empty() { None } else { Some(found.swap_remove(0)) }
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
