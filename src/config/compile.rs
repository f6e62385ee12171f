//! From the file to the rules: names are looked up, environment variables read, and what does not fit together reported.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use super::problem::{Faults, Path, Place, Wrong, nearest};
use super::schema::{self, Auth, File, To};
use super::value::{self, HostPattern, PathPattern, Piece, Target};
use crate::admit::Conditions;
use crate::auth::{Kind, Verifier, Ways};
use crate::route::{Issue, Route, RouteTable};
use crate::template::{HeaderTemplate, Part};
use crate::upstream::Upstream;

/// Reads an environment variable.
pub type Env<'e> = &'e dyn Fn(&str) -> Option<OsString>;

/// Routes as keys see them.
#[derive(Default)]
pub struct Doors {
    pub all: Vec<Door>,
    by_name: HashMap<Arc<str>, usize>,
    /// Whether all names are known: otherwise one that is missing may belong to a route that could not be read.
    pub complete: bool,
}

pub struct Door {
    pub name: Arc<str>,
    pub wants_key: bool,
    pub place: Place,
}

impl Doors {
    pub fn find(&self, name: &str) -> Option<(usize, &Door)> {
        let index = *self.by_name.get(name)?;
        self.all.get(index).map(|door| (index, door))
    }

    pub fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.all.iter().map(|door| &*door.name))
    }

    fn add(&mut self, door: Door) -> Result<(), &Door> {
        match self.by_name.get(&door.name) {
            Some(index) => Err(&self.all[*index]),
            None => {
                self.by_name.insert(door.name.clone(), self.all.len());
                self.all.push(door);
                Ok(())
            }
        }
    }
}

/// Compiles the routes of the file, or the one that `upstream:` is short for.
pub fn routes(
    file: &mut File,
    root: &Path<'_>,
    env: Env<'_>,
    faults: &mut Faults,
) -> (RouteTable, HashSet<Arc<str>>, Doors) {
    let upstreams = upstreams(std::mem::take(&mut file.upstreams));
    let routes = all_routes(file, root, faults);
    let list = root.field(if file.has_routes { "routes" } else { "upstream" });
    let complete = routes.iter().all(|route| route.as_ref().is_some_and(|route| route.sound));
    let mut doors = Doors { complete, ..Doors::default() };
    let mut taken: HashMap<(HostPattern, PathPattern), Place> = HashMap::new();
    let mut desks: HashMap<(HostPattern, Box<str>), Place> = HashMap::new();
    let mut compiled = Vec::new();
    for (index, route) in routes.into_iter().enumerate() {
        let Some(route) = route else { continue };
        let path = if file.has_routes { list.item(index) } else { list };
        if let Some(door) = door(&route, &path, &mut taken, faults)
            && let Err(other) = doors.add(door)
        {
            let says = "two routes have the same name";
            faults.between(&path.field("name"), Wrong::new(says), "the other one is at", other.place.clone());
        }
        if let Some(issue) = &route.tickets
            && let Some(other) = desks.insert((route.host.clone(), issue.path.clone()), path.place())
        {
            let wrong = Wrong::new("two routes issue tickets at the same host and path");
            faults.between(&path.field("tickets").field("path"), wrong, "the other one is at", other);
        }
        compiled.extend(one_route(route, &path, &upstreams, env, file.tickets.ttl, faults));
    }
    let names = upstreams
        .keys()
        .map(|name| Arc::from(&**name))
        .chain(compiled.iter().map(|route| route.upstream.name.clone()))
        .collect();
    // Nothing of this is used when there are faults, so routes that clash never meet.
    let table = if faults.is_empty() { RouteTable::new(compiled).unwrap_or_default() } else { RouteTable::default() };
    (table, names, doors)
}

/// A route as keys see it; `None` where that cannot be said.
fn door(
    route: &schema::Route,
    path: &Path<'_>,
    taken: &mut HashMap<(HostPattern, PathPattern), Place>,
    faults: &mut Faults,
) -> Option<Door> {
    if route.sound {
        let target = (route.host.clone(), route.path.clone());
        if let Some(other) = taken.get(&target) {
            let says = "two routes take the same host and path";
            faults.between(path, Wrong::new(says), "the other one is at", other.clone());
            return None;
        }
        taken.insert(target, path.place());
    } else {
        // What it takes is not known, and so neither is a name that is made from it.
        route.name.as_ref()?;
    }
    let name = name_of(route).into();
    Some(Door { name, wants_key: matches!(route.auth, Auth::Some(_)), place: path.place() })
}

fn name_of(route: &schema::Route) -> Box<str> {
    route.name.clone().unwrap_or_else(|| default_name(&route.host, &route.path))
}

/// `chat.example.com/ws`: the host and path as they are written.
fn default_name(host: &HostPattern, path: &PathPattern) -> Box<str> {
    let host = match host {
        HostPattern::Any => String::new(),
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Below(suffix) => format!("*{suffix}"),
    };
    let path = match path {
        PathPattern::Any => String::new(),
        PathPattern::Exact(path) => path.to_string(),
        PathPattern::Prefix(prefix) => format!("{prefix}*"),
    };
    let name = host + &path;
    if name.is_empty() { "default".into() } else { name.into() }
}

fn all_routes(file: &mut File, root: &Path<'_>, faults: &mut Faults) -> Vec<Option<schema::Route>> {
    let all = std::mem::take(&mut file.routes);
    if file.has_routes {
        if all.is_empty() && faults.is_empty() {
            let wrong = Wrong::new("there is no route in this list: nobody could get in");
            faults.value(&root.field("routes"), wrong.hint("write routes: [{ upstream: ws://127.0.0.1:9000 }]"));
        }
    } else if all.is_empty() && faults.is_empty() {
        let wrong = Wrong::new("there is nothing to protect");
        faults.value(root, wrong.hint("write upstream: ws://127.0.0.1:9000, or routes:"));
    }
    all
}

type Upstreams = HashMap<Box<str>, Option<Arc<Upstream>>>;

fn upstreams(named: Vec<(Box<str>, schema::Upstream)>) -> Upstreams {
    let compile = |(name, upstream): (Box<str>, schema::Upstream)| {
        let rewrites_host = upstream.rewrites_host;
        let compiled = upstream.target.map(|target| compiled_upstream(&name, target, rewrites_host));
        (name, compiled)
    };
    named.into_iter().map(compile).collect()
}

fn compiled_upstream(name: &str, target: Target, rewrites_host: bool) -> Arc<Upstream> {
    let host = rewrites_host.then(|| target.authority.into());
    Arc::new(Upstream { name: name.into(), endpoint: target.endpoint, host })
}

fn one_route(
    route: schema::Route,
    path: &Path<'_>,
    upstreams: &Upstreams,
    env: Env<'_>,
    ttl: Duration,
    faults: &mut Faults,
) -> Option<Route> {
    let name = name_of(&route).into();
    let headers = route.headers.into_iter().map(|header| compiled_header(header, path, env, faults)).collect();
    let upstream = match route.upstream? {
        To::Url(target, written) => compiled_upstream(&written, target, false),
        To::Name(name) => match upstreams.get(&name) {
            // `None` has been reported where it is defined.
            Some(upstream) => upstream.clone()?,
            None => {
                faults.value(&path.field("upstream"), no_upstream(&name, upstreams));
                return None;
            }
        },
    };
    Some(Route {
        name,
        host: route.host,
        path: route.path,
        verifier: match route.auth {
            Auth::None => Verifier::Open,
            Auth::Some(ways) => Verifier::Closed(compiled_ways(ways, route.tickets.as_ref())),
        },
        conditions: Conditions {
            origins: route.allowed_origins,
            max_connections: route.max_connections,
            max_connections_per_key: route.max_connections_per_key,
        },
        hide_credentials: route.hide_credentials,
        on_failure: route.on_failure,
        tickets: route.tickets.map(|issue| compiled_issue(issue, ttl)),
        http: route.http,
        headers,
        timeouts: route.timeouts,
        traffic: route.traffic,
        strict_frames: route.strict_frames,
        upstream,
    })
}

fn compiled_ways(ways: schema::Ways, issue: Option<&schema::Issue>) -> Ways {
    let keys = ways.key.into_iter().map(|place| (place, Kind::Key));
    let tickets = ways.ticket.into_iter().map(|place| (place, Kind::Ticket));
    Ways {
        places: keys.chain(tickets).collect(),
        first_message: ways.first_message,
        ticket_path: issue.map(|issue| issue.path.clone()),
    }
}

fn compiled_issue(issue: schema::Issue, ttl: Duration) -> Issue {
    Issue {
        path: issue.path,
        ttl: issue.ttl.unwrap_or(ttl),
        cookie: issue.cookie,
        bind_origin: issue.bind_origin,
        bind_address: issue.bind_address,
    }
}

fn no_upstream(name: &str, upstreams: &Upstreams) -> Wrong {
    // A name is short and plain; anything else is not repeated.
    let says = match value::name(name) {
        Ok(name) => format!("no upstream is named \"{name}\""),
        Err(_) => "no upstream has this name".into(),
    };
    let mut known: Vec<&str> = upstreams.keys().map(|name| &**name).collect();
    known.sort_unstable();
    let wrong = Wrong::new(says);
    match nearest(name, known.iter().copied()) {
        Some(near) => wrong.hint(format!("did you mean \"{near}\"?")),
        None if known.is_empty() => wrong.hint("write a URL such as ws://127.0.0.1:9000, or add it to upstreams:"),
        None => wrong.hint(format!("there are {}, or write a URL such as ws://127.0.0.1:9000", known.join(", "))),
    }
}

/// Reads the environment into a template.
fn compiled_header(header: schema::Header, path: &Path<'_>, env: Env<'_>, faults: &mut Faults) -> HeaderTemplate {
    let mut parts = Vec::new();
    for piece in header.template {
        parts.push(match piece {
            Piece::Text(text) => Part::Text(text),
            Piece::Id => Part::Id,
            Piece::Route => Part::Route,
            Piece::Attribute(name) => Part::Attribute(name),
            Piece::Env(name) => match from_env(&name, env) {
                Ok(text) => Part::Text(text),
                Err(wrong) => {
                    faults.value(&path.field(header.field).field(&header.written), wrong);
                    continue;
                }
            },
        });
    }
    HeaderTemplate { name: header.name, parts }
}

fn from_env(name: &str, env: Env<'_>) -> Result<Box<str>, Wrong> {
    let value = env(name).filter(|value| !value.is_empty()).ok_or_else(|| unset(name))?;
    let text = value.to_str().filter(|text| value::header_text(text).is_ok());
    text.map(Into::into).ok_or_else(|| Wrong::new("this environment variable holds what cannot stand in a header"))
}

/// A name that looks like one is shown: it is what the operator has to set. A secret that slipped is not.
pub fn unset(name: &str) -> Wrong {
    let usual = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    let hint = "set it where wsbouncer is started";
    if name.len() <= 64 && name.bytes().all(usual) {
        return Wrong::new(format!("the environment variable {name} is not set, or empty")).hint(hint);
    }
    Wrong::new("the environment variable of this name is not set, or empty").hint(hint)
}
