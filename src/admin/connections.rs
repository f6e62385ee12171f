//! Who is connected, and how to end it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::StatusCode;
use serde_json::{Value, json};
use tracing::info;

use super::answers::{self, Answer};
use super::query::Query;
use crate::clock::UnixTime;
use crate::end::Cause;
use crate::log::printable;
use crate::tunnels::{Live, Tunnels};

const FILTERS: [&str; 3] = ["id", "key", "route"];
/// More than a person reads, and less than what would be felt.
const MAX_LISTED: usize = 10_000;
const LISTED: usize = 1000;

/// The open tunnels that fit, the latest first.
pub fn list(tunnels: &Tunnels, query: Option<&str>) -> Answer {
    let known = [&FILTERS[..], &["limit"]].concat();
    let read = Query::parse(query, &known).and_then(|query| Ok((query.count("limit", LISTED, MAX_LISTED)?, query)));
    let (limit, query) = match read {
        Ok(read) => read,
        Err(why) => return answers::bad_request(why),
    };
    let mut found = find(tunnels, &query);
    let total = found.len();
    found.sort_unstable_by_key(|live| std::cmp::Reverse(live.number()));
    found.truncate(limit);
    let listed: Vec<Value> = found.iter().map(|live| shown(live)).collect();
    answers::json(StatusCode::OK, &json!({ "connections": listed, "total": total }))
}

/// Ends the open tunnels that fit. Without a filter it would be all of them, which is what a drain is for.
pub fn close(tunnels: &Tunnels, query: Option<&str>) -> Answer {
    let query = match Query::parse(query, &FILTERS) {
        Ok(query) if query.is_empty() => return answers::bad_request("say which: ?id=, ?key= or ?route=\n"),
        Ok(query) => query,
        Err(why) => return answers::bad_request(why),
    };
    let mut found = find(tunnels, &query);
    found.retain(|live| live.control.stopped().is_none());
    for live in &found {
        live.control.stop(Cause::ClosedByOperator);
    }
    let [id, key, route] = FILTERS.map(|name| query.get(name).map(|text| printable(text.as_bytes())));
    info!(tunnels = found.len(), id, key, route, "closed by the operator");
    answers::json(StatusCode::OK, &json!({ "closed": found.len() }))
}

fn find(tunnels: &Tunnels, query: &Query) -> Vec<Arc<Live>> {
    let [id, key, route] = FILTERS.map(|name| query.get(name));
    let is = |wanted: Option<&str>, text: &str| wanted.is_none_or(|wanted| wanted == text);
    let fits = |live: &Arc<Live>| live.is_open() && is(id, &live.id) && is(key, live.key()) && is(route, &live.route);
    tunnels.all().into_iter().filter(fits).collect()
}

fn shown(live: &Live) -> Value {
    let opening = live.opening();
    let opened_at = opening.and_then(|opening| opening.at.duration_since(std::time::UNIX_EPOCH).ok());
    json!({
        "id": live.id,
        "kind": live.kind.word(),
        "route": &*live.route,
        "key": live.key(),
        "secret": live.principal.secret().map(|digest| digest.short()),
        "caller": live.caller.to_string(),
        "origin": live.origin,
        "subprotocol": opening.and_then(|opening| opening.subprotocol.as_deref()),
        "upstream": &*live.upstream,
        "opened_at": opened_at.and_then(|at| i64::try_from(at.as_secs()).ok()).map(|at| UnixTime(at).text()),
        "seconds": opening.map(|opening| opening.since.elapsed().as_secs_f64()),
        "up_bytes": live.control.up_bytes.load(Relaxed),
        "down_bytes": live.control.down_bytes.load(Relaxed),
        "up_messages": live.control.up_messages.load(Relaxed),
        "down_messages": live.control.down_messages.load(Relaxed),
        "expires_at": live.control.expires_at().map(UnixTime::text),
    })
}
