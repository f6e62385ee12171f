//! The whole at one moment: what the page is made of.

use serde_json::{Map, Value, json};

use crate::metrics::BOUNDS;
use crate::proxy::Proxy;
use crate::reload::{Attempt, Status};

/// Counters from the start on; whoever wants a rate takes two of these.
pub fn now(proxy: &Proxy, reload: &Status) -> Value {
    let (sums, (up, down)) = (proxy.metrics.sums(), proxy.metrics.bytes());
    let rules = proxy.rules.load();
    let since = proxy.counts.since();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "time": milliseconds(),
        "started_at": since.text(),
        "draining": proxy.tunnels.is_draining(),
        "config_hash": rules.fingerprint,
        "files": reload.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "routes": rules.routes.len(),
        "keys": rules.keys.len(),
        "connections_open": proxy.counts.room().open(),
        "tunnels_open": sums.open,
        "tunnels_opened": sums.opened,
        "refusals": counts(&sums.refusals),
        "bytes": { "up": up, "down": down },
        "handshake": { "bounds": BOUNDS, "counts": sums.handshake },
        "reload": last_reload(reload),
        "history": reload.history.iter().map(attempt).collect::<Vec<_>>(),
    })
}

fn milliseconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub fn last_reload(status: &Status) -> Value {
    json!({ "ok": status.ok, "at": status.at.text(), "error": status.error, "restart_needed": status.restart_needed })
}

fn attempt(attempt: &Attempt) -> Value {
    json!({
        "at": attempt.at.text(),
        "ok": attempt.problems == 0,
        "problems": attempt.problems,
        "routes": attempt.routes,
        "keys": attempt.keys,
        "tunnels_ended": attempt.tunnels_ended,
        "changed": attempt.changed,
    })
}

/// By word.
pub fn counts(all: &[(&'static str, u64)]) -> Value {
    all.iter().map(|(word, count)| ((*word).to_owned(), json!(count))).collect::<Map<_, _>>().into()
}
