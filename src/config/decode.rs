//! The main file: from the tree to [`schema::File`].

use std::net::SocketAddr;

use super::fields::{Fields, parsed};
use super::problem::{Faults, Path, Wrong, holds_key};
use super::schema::{self, File, KeySecret, Tickets, Upstream};
use super::value::{self, Drain, Limits};
use super::yaml::Node;
use super::{keys, routes};
use crate::spans::{BUILT_IN, Collector};

/// Decodes the main file. `None` only where it is no map at all.
pub fn file(node: &Node, root: &Path<'_>, faults: &mut Faults) -> Option<File> {
    let fields = Fields::open(node, &schema::FILE, root, faults)?;
    let listen = listen(&fields, faults);
    let (short, upstreams) = upstreams(&fields, faults);
    let (limits, (head_timeout, tcp_keepalive)) = process_bounds(&fields, faults);
    let (on_revoked, on_route_removed) = live_connections(&fields, faults);
    let (mut own_keys, mut index) = (Vec::new(), 0);
    fields.list("keys", faults, |item, path, faults| {
        own_keys.extend(keys::key(item, path, faults).map(|key| (index, key)));
        index += 1;
    });
    let mut routes = Vec::new();
    fields.list("routes", faults, |item, path, faults| routes.push(routes::route(item, path, faults)));
    if let Some(target) = short.filter(|_| !fields.has("routes")) {
        routes.push(Some(routes::of_everything(target, &root.field("upstream"), faults)));
    }
    let (admin, admin_token) = admin(&fields, &listen, faults);
    Some(File {
        admin,
        admin_token,
        listen,
        trusted_proxies: fields.texts("trusted_proxies", faults, value::network).unwrap_or_default(),
        upstreams,
        keys: own_keys,
        key_files: key_files(&fields, faults),
        routes,
        has_routes: fields.has("routes"),
        limits,
        tickets: tickets(&fields, faults),
        head_timeout,
        tcp_keepalive,
        on_revoked,
        on_route_removed,
        drain: drain(&fields, faults),
        collector: collector(&fields, faults),
    })
}

/// One address, a map with one, or a list of both.
fn listen(fields: &Fields<'_, '_>, faults: &mut Faults) -> Vec<SocketAddr> {
    let Some(node) = fields.required("listen", "write listen: 127.0.0.1:8080", faults) else { return Vec::new() };
    let path = fields.at.field("listen");
    let mut all = Vec::new();
    let mut add = |node: &Node, path: &Path<'_>, faults: &mut Faults| {
        let found = match node {
            Node::Map(_) => Fields::open(node, &schema::LISTEN, path, faults).and_then(|fields| {
                let node = fields.required("address", "write address: 127.0.0.1:8080", faults)?;
                parsed(node, &path.field("address"), value::address, faults)
            }),
            other => parsed(other, path, value::address, faults),
        };
        if let Some(address) = found {
            if address.port() != 0 && all.contains(&address) {
                faults.value(path, Wrong::new("this address stands twice"));
            }
            all.push(address);
        }
    };
    match node {
        Node::List(items) => {
            if items.is_empty() {
                faults.value(&path, Wrong::new("there is no address in this list").hint("write 127.0.0.1:8080"));
            }
            for (index, item) in items.iter().enumerate() {
                add(item, &path.item(index), faults);
            }
        }
        other => add(other, &path, faults),
    }
    all
}

/// `off`, an address of this machine, or any address where a token is asked for, or by one who says so. And the token.
fn admin(
    fields: &Fields<'_, '_>,
    listen: &[SocketAddr],
    faults: &mut Faults,
) -> (Option<SocketAddr>, Option<KeySecret>) {
    let path = fields.at.field("admin");
    let (address, token, is_guarded) = match fields.get("admin") {
        Some(Node::Text(text)) if text.as_str() == "off" => return (None, None),
        Some(Node::Bool(_)) => {
            faults.value(&path, Wrong::new("this must be an address, or off").hint("write admin: off"));
            return (None, None);
        }
        Some(node @ Node::Map(_)) => {
            let Some(below) = Fields::open(node, &schema::ADMIN, &path, faults) else { return (None, None) };
            let node = below.required("address", "write address: 127.0.0.1:9901", faults);
            let address = node.and_then(|node| parsed(node, &path.field("address"), value::address, faults));
            let token = keys::admin_token(&below, faults);
            (address, token, below.flag("allow_remote", faults) || below.has("token"))
        }
        _ => (Some(fields.parsed_or_default("admin", value::address, faults)), None, false),
    };
    let Some(address) = address else { return (None, token) };
    if !address.ip().is_loopback() && !is_guarded {
        let wrong = Wrong::new("whoever reaches the admin listener can read, reload and close: it has no token");
        faults.value(
            &path,
            wrong.hint(
                "use 127.0.0.1, or write { address: ..., token: { env: NAME } }; allow_remote: true does without",
            ),
        );
    }
    if address.port() != 0 && listen.contains(&address) {
        faults.value(&path, Wrong::new("the admin listener cannot have an address of listen").hint("change the port"));
    }
    (Some(address), token)
}

type Upstreams = Vec<(Box<str>, Upstream)>;

fn upstreams(fields: &Fields<'_, '_>, faults: &mut Faults) -> (Option<(value::Target, Box<str>)>, Upstreams) {
    let url = |text: &str| Ok((value::target(text)?, text.into()));
    let short = fields.parsed("upstream", url, faults);
    let others = ["routes", "upstreams"];
    if let Some(other) = others.iter().find(|other| fields.has("upstream") && fields.has(other)) {
        let wrong = Wrong::new(format!("upstream and {other} cannot stand together"));
        let hint = "upstream is short for one route that takes everything: write it into a route instead";
        faults.name(&fields.at.field("upstream"), wrong.hint(hint));
    }
    let mut named = Vec::new();
    fields.named("upstreams", faults, |name, node, path, faults| {
        if value::is_url(name) {
            faults.name(path, Wrong::new("an upstream's name cannot be a URL").hint("write name: ws://host:port"));
        }
        if holds_key(name) {
            faults.name(path, Wrong::new("this looks like a key, not like the name of an upstream"));
        }
        named.push((name.into(), upstream(node, path, faults)));
    });
    (short, named)
}

fn upstream(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Upstream {
    if !matches!(node, Node::Map(_)) {
        return Upstream { target: parsed(node, path, value::target, faults), rewrites_host: false };
    }
    let Some(fields) = Fields::open(node, &schema::UPSTREAM, path, faults) else {
        return Upstream { target: None, rewrites_host: false };
    };
    let url = fields.required("url", "write url: ws://host:port", faults);
    let rewrites_host = fields.parsed_or_default("host", rewrites_host, faults);
    Upstream { target: url.and_then(|node| parsed(node, &path.field("url"), value::target, faults)), rewrites_host }
}

fn rewrites_host(text: &str) -> Result<bool, Wrong> {
    match text {
        "keep" => Ok(false),
        "upstream" => Ok(true),
        _ => Err(Wrong::new("this must be keep or upstream")
            .hint("keep sends the client's Host, upstream the one of the URL")),
    }
}

fn process_bounds(
    fields: &Fields<'_, '_>,
    faults: &mut Faults,
) -> (Limits, (std::time::Duration, Option<std::time::Duration>)) {
    let limits = fields.below("limits", &schema::LIMITS, faults, |limits, faults| Limits {
        max_connections: limits.count("max_connections", faults),
        max_connections_per_address: limits.count("max_connections_per_address", faults),
        max_pending_per_address: limits.count("max_pending_per_address", faults),
        max_pending_per_key: limits.count("max_pending_per_key", faults),
        max_failed_attempts_per_minute: limits.count("max_failed_attempts_per_minute", faults),
        max_declined: Some(limits.count_or_default("max_declined", faults)),
        max_declined_per_address: Some(limits.count_or_default("max_declined_per_address", faults)),
        max_waiting: Some(limits.count_or_default("max_waiting", faults)),
        max_waiting_per_address: Some(limits.count_or_default("max_waiting_per_address", faults)),
    });
    let timeouts = fields.below("timeouts", &schema::TIMEOUTS, faults, |timeouts, faults| {
        (timeouts.some_duration("head", faults), timeouts.duration_or_off("tcp_keepalive", faults))
    });
    (limits, timeouts)
}

/// Who signs tickets.
fn tickets(fields: &Fields<'_, '_>, faults: &mut Faults) -> Tickets {
    fields.below("tickets", &schema::TICKETS, faults, |tickets, faults| Tickets {
        secrets: keys::ticket_secrets(tickets, faults),
        ttl: tickets.parsed_or_default("ttl", value::ticket_ttl, faults),
    })
}

fn live_connections(fields: &Fields<'_, '_>, faults: &mut Faults) -> (std::time::Duration, std::time::Duration) {
    fields.below("live_connections", &schema::LIVE_CONNECTIONS, faults, |live, faults| {
        let after = |fields: &Fields<'_, '_>, faults: &mut Faults| fields.duration("after", faults);
        (
            live.below("on_revoked", &schema::ON_REVOKED, faults, after),
            live.below("on_route_removed", &schema::ON_ROUTE_REMOVED, faults, after),
        )
    })
}

fn drain(fields: &Fields<'_, '_>, faults: &mut Faults) -> Drain {
    fields.below("drain", &schema::DRAIN, faults, |fields, faults| {
        let drain = Drain { timeout: fields.duration("timeout", faults), spread: fields.duration("spread", faults) };
        if drain.spread > drain.timeout {
            let wrong = Wrong::new("spread is longer than timeout: some tunnels would never be told");
            let at = if fields.has("spread") { fields.at.field("spread") } else { fields.at.field("timeout") };
            faults.value(&at, wrong.hint("make spread at most as long as timeout"));
        }
        drain
    })
}

/// Where spans are sent to. A build that makes none says so, rather than to send nothing without a word.
fn collector(fields: &Fields<'_, '_>, faults: &mut Faults) -> Option<Collector> {
    fields.below("telemetry", &schema::TELEMETRY, faults, |telemetry, faults| {
        if !telemetry.has("otlp") {
            return None;
        }
        if !BUILT_IN {
            let wrong = Wrong::new("this build of wsbouncer cannot export spans");
            let hint = "build it with: cargo build --release --locked --features otlp";
            faults.name(&telemetry.at.field("otlp"), wrong.hint(hint));
        }
        telemetry.below("otlp", &schema::OTLP, faults, |otlp, faults| {
            let _ = otlp.required("endpoint", "write endpoint: http://127.0.0.1:4318", faults);
            otlp.parsed("endpoint", value::collector, faults)
        })
    })
}

fn key_files(fields: &Fields<'_, '_>, faults: &mut Faults) -> Vec<(usize, Box<str>)> {
    let (mut all, mut index) = (Vec::new(), 0);
    fields.list("key_files", faults, |item, path, faults| {
        all.extend(parsed(item, path, file_pattern, faults).map(|pattern| (index, pattern)));
        index += 1;
    });
    all
}

fn file_pattern(text: &str) -> Result<Box<str>, Wrong> {
    let directory = text.rsplit_once('/').map_or("", |(directory, _)| directory);
    if holds_key(text) {
        return Err(Wrong::new("this looks like a key, not like the path of a file with keys"));
    }
    if text.is_empty() || text.ends_with('/') || text.contains('\0') {
        return Err(Wrong::new("this is not the path of a file").hint("write keys.yaml or keys.d/*.yaml"));
    }
    if directory.contains('*') {
        return Err(Wrong::new("a * stands only in the last part of a path").hint("write keys.d/*.yaml"));
    }
    Ok(text.into())
}
