//! The rules in force, as they were understood. No secret stands in what is written here, nor what one may be part of.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::answers::{self, Answer};
use super::status::counts;
use crate::admit::Origin;
use crate::auth::credential::{Encoding, Shape};
use crate::auth::first_message::Format;
use crate::auth::{Kind, Place, Verifier};
use crate::limit::Limits;
use crate::metrics::Metrics;
use crate::reload::Status;
use crate::route::{HostPattern, Http, OnFailure, PathPattern, Route};
use crate::rules::{Rules, Settings};
use crate::template::{HeaderTemplate, Part};
use crate::traffic::{Flow, Rate};

/// Routes and what happened on them.
pub fn routes(rules: &Rules, metrics: &Metrics) -> Answer {
    let routes: Vec<Value> = rules
        .routes
        .all()
        .map(|route| {
            let numbers = metrics.of_route(&route.name);
            let refused: u64 = numbers.refusals.iter().map(|(_, count)| count).sum();
            json!({
                "name": &*route.name,
                "host": host(&route.host),
                "path": path(&route.path),
                "upstream": &*route.upstream.name,
                "auth": auth(&route.verifier),
                "open": numbers.open,
                "opened": numbers.opened,
                "refused": refused,
                "refusals": counts(&numbers.refusals),
            })
        })
        .collect();
    answers::json(StatusCode::OK, &json!({ "routes": routes }))
}

/// What is in force, all but the keys, which have a list of their own.
pub fn config(rules: &Rules, limits: &Limits, settings: &Settings, status: &Status) -> Answer {
    let files: Vec<String> = status.files.iter().map(|path| path.display().to_string()).collect();
    let routes: Vec<Value> = rules.routes.all().map(route).collect();
    answers::json(
        StatusCode::OK,
        &json!({
            "files": files,
            "config_hash": rules.fingerprint,
            "listen": settings.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "admin": { "address": settings.admin.map(|address| address.to_string()), "token": rules.admin_token.map(|_| HIDDEN) },
            "keys": { "count": rules.keys.len(), "listed_at": "/keys" },
            "routes": routes,
            "trusted_proxies": rules.trusted_proxies.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "limits": {
                "max_connections": limits.max_connections,
                "max_connections_per_address": limits.max_connections_per_address,
                "max_pending_per_address": limits.max_pending_per_address,
                "max_pending_per_key": limits.max_pending_per_key,
                "max_failed_attempts_per_minute": limits.max_failed_attempts_per_minute,
                "max_declined": limits.max_declined,
                "max_declined_per_address": limits.max_declined_per_address,
                "max_waiting": limits.max_waiting,
                "max_waiting_per_address": limits.max_waiting_per_address,
            },
            "timeouts": { "head": seconds(rules.head_timeout), "tcp_keepalive": rules.tcp_keepalive.map(seconds) },
            "live_connections": {
                "on_revoked": { "after": seconds(rules.on_revoked) },
                "on_route_removed": { "after": seconds(rules.on_route_removed) },
            },
            "telemetry": rules.collector.as_ref().map(|it| json!({
                "otlp": { "endpoint": format!("http://{}{}", it.authority, it.path) }
            })),
            "drain": { "timeout": seconds(rules.drain.timeout), "spread": seconds(rules.drain.spread) },
        }),
    )
}

const HIDDEN: &str = "***";

fn route(route: &Arc<Route>) -> Value {
    let headers: Map<String, Value> =
        route.headers.iter().map(|header| (header.name.to_string(), template(header).into())).collect();
    let (timeouts, conditions) = (&route.timeouts, &route.conditions);
    json!({
        "name": &*route.name,
        "host": host(&route.host),
        "path": path(&route.path),
        "upstream": &*route.upstream.name,
        "upstream_host": route.upstream.host,
        "auth": auth(&route.verifier),
        "tickets": route.tickets.as_ref().map(|issue| json!({
            "path": issue.path,
            "ttl": seconds(issue.ttl),
            "cookie": issue.cookie.as_ref().map(|cookie| json!({ "name": cookie.name, "secure": cookie.secure })),
            "bind_origin": issue.bind_origin,
            "bind_address": issue.bind_address,
        })),
        "allowed_origins": conditions.origins.as_ref().map(|all| all.iter().map(origin).collect::<Vec<_>>()),
        "http": match route.http {
            Http::Refuse => json!("refuse"),
            Http::Forward { max_request_body } => json!({ "forward": { "max_request_body": max_request_body } }),
        },
        "hide_credentials": route.hide_credentials,
        "strict_frames": route.strict_frames,
        "on_failure": match route.on_failure {
            OnFailure::Http => "http",
            OnFailure::Close => "close",
            OnFailure::Auto => "auto",
        },
        "headers": headers,
        "limits": {
            "max_connections": conditions.max_connections,
            "max_connections_per_key": conditions.max_connections_per_key,
            "up": flow(&route.traffic.up),
            "down": flow(&route.traffic.down),
        },
        "timeouts": {
            "connect": seconds(timeouts.connect),
            "handshake": seconds(timeouts.handshake),
            "idle": timeouts.idle.map(seconds),
            "max_lifetime": timeouts.max_lifetime.map(seconds),
            "half_close": seconds(timeouts.half_close),
            "write_stall": timeouts.write_stall.map(seconds),
            "ping_interval": timeouts.ping_interval.map(seconds),
            "ping_timeout": seconds(timeouts.ping_timeout),
        },
    })
}

fn flow(flow: &Flow) -> Value {
    let rate = |rate: Rate| json!({ "per_second": rate.per_second, "burst": rate.burst, "delays": rate.delays });
    json!({
        "max_message_bytes": flow.max_message,
        "messages": flow.messages.map(rate),
        "bytes": flow.bytes.map(rate),
    })
}

fn auth(verifier: &Verifier) -> Value {
    let Verifier::Closed(ways) = verifier else { return json!("none") };
    let of = |kind: Kind| -> Vec<Value> {
        ways.places.iter().filter(|(_, one)| *one == kind).map(|(one, _)| place(one)).collect()
    };
    let mut keys = of(Kind::Key);
    keys.extend(ways.first_message.as_ref().map(|first| {
        let format = match &first.format {
            Format::Text => json!({ "format": "text" }),
            Format::Json(pointer) => json!({ "json": pointer }),
        };
        json!({ "first_message": format })
    }));
    let all = [("api_key", keys), ("ticket", of(Kind::Ticket))];
    let some = all.into_iter().filter(|(_, places)| !places.is_empty());
    some.map(|(kind, places)| json!({ kind: { "extract_from": places } })).collect()
}

/// As it would stand in the file.
fn place(place: &Place) -> Value {
    match place {
        Place::Bearer => json!("bearer"),
        Place::Basic => json!("basic"),
        Place::Header(name) => json!({ "header": name.as_str() }),
        Place::Query(name) => json!({ "query": name }),
        Place::Cookie(name) => json!({ "cookie": name }),
        Place::Subprotocol { shape, encoding } => {
            let (form, text) = match shape {
                Shape::Pair { marker, .. } => ("pair", marker),
                Shape::Prefix(prefix) => ("prefix", prefix),
            };
            let encoding = match encoding {
                Encoding::Raw => "raw",
                Encoding::Base64Url => "base64url",
            };
            json!({ "subprotocol": { form: text, "encoding": encoding } })
        }
    }
}

/// Text is hidden: it may come from the environment, or be a credential for the upstream.
fn template(header: &HeaderTemplate) -> String {
    let part = |part: &Part| match part {
        Part::Text(_) => HIDDEN.to_owned(),
        Part::Id => "{id}".to_owned(),
        Part::Route => "{route}".to_owned(),
        Part::Attribute(name) => format!("{{attributes.{name}}}"),
    };
    header.parts.iter().map(part).collect()
}

fn host(host: &HostPattern) -> String {
    match host {
        HostPattern::Any => "*".to_owned(),
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Below(suffix) => format!("*{suffix}"),
    }
}

fn path(path: &PathPattern) -> String {
    match path {
        PathPattern::Any => "/*".to_owned(),
        PathPattern::Exact(path) => path.to_string(),
        PathPattern::Prefix(prefix) => format!("{prefix}*"),
    }
}

fn origin(origin: &Origin) -> String {
    let port = |port: &Option<u16>| port.map_or_else(String::new, |port| format!(":{port}"));
    match origin {
        Origin::Null => "null".to_owned(),
        Origin::Exact { scheme, host, port: number } => format!("{scheme}://{host}{}", port(number)),
        Origin::OneBelow { scheme, suffix, port: number } => format!("{scheme}://*{suffix}{}", port(number)),
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
