//! What both ends and the log say of one tunnel has to be one story.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

use serde_json::Value;

use crate::world::{Plan, ROUTES, Side, Tunnel, World, lock};

/// How long a tunnel may live on after the log has said that its right is gone, until one of its ends sees it. All of
/// it is a moment on a machine that has nothing else to do.
const GRACE: u64 = 20_000;

/// What the log says about the end of a tunnel.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    cause: String,
    code: Option<u64>,
    bytes: [u64; 2],
    messages: [u64; 2],
}

/// The ends in the log, by number.
#[derive(Default)]
pub(crate) struct Journal(Mutex<HashMap<u64, Line>>);

impl Journal {
    pub(crate) fn note(&self, event: &Value) {
        let number = event["id"].as_str().and_then(|id| id.strip_prefix('t')?.parse().ok());
        let Some(number) = number else { return };
        let count = |name: &str| event[name].as_u64().unwrap_or(u64::MAX);
        let line = Line {
            cause: event["cause"].as_str().unwrap_or_default().to_owned(),
            code: event["code"].as_u64(),
            bytes: [count("up_bytes"), count("down_bytes")],
            messages: [count("up_messages"), count("down_messages")],
        };
        lock(&self.0).insert(number, line);
    }

    pub(crate) fn knows(&self, number: u64) -> bool {
        lock(&self.0).contains_key(&number)
    }

    pub(crate) fn forget(&self, number: u64) {
        lock(&self.0).remove(&number);
    }
}

pub(crate) fn judge(world: &World, journal: &Journal, tunnel: &Tunnel) {
    let (client, server) = (lock(&tunnel.client).clone(), lock(&tunnel.server).clone());
    let line = lock(&journal.0).get(&tunnel.number).cloned();
    let (Some(client), Some(server), Some(line)) = (client, server, line) else { return };
    let mut faults = Vec::new();
    bytes(world, tunnel, &client, &server, &line, &mut faults);
    cause(world, tunnel, &client, &server, &line, &mut faults);
    *lock(&world.total.ends).entry(line.cause.clone()).or_default() += 1;
    if !faults.is_empty() {
        let route = ROUTES[tunnel.route];
        world.fault(format!(
            "t{} seed {} on {route}: {}; {:?}, client {client:?}, upstream {server:?}, log {line:?}",
            tunnel.number,
            tunnel.seed,
            faults.join(", "),
            tunnel.plan,
        ));
    }
}

/// What one end has received is the beginning of what the other has sent - [`crate::stream::Check`] has compared each
/// byte -, the log counts what lies between, and where both have said Close it is all of it.
fn bytes(world: &World, tunnel: &Tunnel, client: &Side, server: &Side, line: &Line, faults: &mut Vec<String>) {
    let ways = [("up", client, server), ("down", server, client)];
    let is_ours = |side: &Side| side.close.as_ref().is_some_and(crate::stream::Close::is_ours);
    let complete = is_ours(client) && is_ours(server);
    for (at, (way, from, to)) in ways.into_iter().enumerate() {
        if let Some(wrong) = &to.wrong {
            faults.push(format!("{way}: {wrong}"));
        }
        if to.received > line.bytes[at] || line.bytes[at] > from.sent {
            faults.push(format!("{way}: {} sent, {} passed, {} received", from.sent, line.bytes[at], to.received));
        }
        // Its Close stands behind everything that it has passed on.
        if to.close.as_ref().is_some_and(|close| !close.is_ours()) && to.received != line.bytes[at] {
            faults.push(format!("{way}: {} passed, {} received before the Close", line.bytes[at], to.received));
        }
        if complete && (to.received != from.sent || line.bytes[at] != from.sent) {
            faults.push(format!("{way}: a clean end, and not all of it has come"));
        }
        let messages = [from.sent_messages, line.messages[at], to.received_messages];
        if complete && messages != [from.sent_messages; 3] {
            faults.push(format!("{way}: messages sent, passed, received: {messages:?}"));
        }
        if to.close.is_some() && to.inside {
            faults.push(format!("{way}: a Close inside of a frame"));
        }
        world.total.bytes[at].fetch_add(from.sent, SeqCst);
        world.total.received[at].fetch_add(to.received, SeqCst);
        world.total.messages[at].fetch_add(to.received_messages, SeqCst);
        let inflated = [to.inflated.messages, to.inflated.payload, to.inflated.plain];
        for (total, more) in world.total.inflated.iter().zip(inflated) {
            total.fetch_add(more, SeqCst);
        }
    }
    world.total.pings.fetch_add(client.pings, SeqCst);
    world.total.complete.fetch_add(u64::from(complete), SeqCst);
    let planned = matches!(tunnel.plan, Plan::ClientCloses | Plan::UpstreamCloses) && tunnel.planned.has_come();
    if planned && !complete && matches!(&*line.cause, "client" | "upstream") && !tunnel.killed.has_come() {
        faults.push("ended as planned, but not cleanly".to_owned());
    }
}

/// Each cause has something that it is the effect of, and each loss of a right has its effect.
fn cause(world: &World, tunnel: &Tunnel, client: &Side, server: &Side, line: &Line, faults: &mut Vec<String>) {
    let planned = |plans: &[fn(Plan) -> bool]| tunnel.planned.has_come() && plans.iter().any(|is| is(tunnel.plan));
    let killed = tunnel.killed.has_come();
    let is_narrowed = tunnel.key.narrowed.begun.has_come() && tunnel.route != 0;
    let (code, why) = match &*line.cause {
        "client" => (None, planned(&[Plan::is_of_client])),
        "client_lost" => (None, planned(&[|plan| matches!(plan, Plan::ClientGoes(_))])),
        "upstream" => (None, planned(&[|plan| plan == Plan::UpstreamCloses])),
        "upstream_lost" => (Some(1014), killed || planned(&[|plan| matches!(plan, Plan::UpstreamGoes(_))])),
        "revoked" => (Some(4401), tunnel.key.revoked.begun.has_come()),
        "not_allowed_on_route" => (Some(4403), is_narrowed),
        "max_lifetime" => (Some(1001), ROUTES[tunnel.route] == "short"),
        "route_removed" => (Some(1012), ROUTES[tunnel.route] == "guest" && tunnel.guest.removed.begun.has_come()),
        "drain" => (Some(1012), tunnel.life.told_to_stop.has_come()),
        _ => (None, false),
    };
    if !why {
        faults.push(format!("nothing explains {}", line.cause));
    }
    if let (Some(code), Some(close)) = (code, &client.close)
        && !close.is_ours()
        && (close.code, &close.reason) != (code, &line.cause)
    {
        faults.push(format!("the client is told {close:?}"));
    }
    if line.code.is_some() && client.close.is_none() {
        world.total.no_word.fetch_add(1, SeqCst);
    }
    let upstream_told = server.close.as_ref().filter(|close| !close.is_ours());
    if let Some(close) = upstream_told
        && (close.code, &close.reason) != (1001, &line.cause)
    {
        faults.push(format!("the upstream is told {close:?}"));
    }
    let is_guest = ROUTES[tunnel.route] == "guest";
    let lost = [
        ("its key", tunnel.key.revoked.done.when()),
        ("its key's route", tunnel.key.narrowed.done.when().filter(|_| is_narrowed)),
        // Which may have come back while the handshake was under way.
        ("its route", tunnel.guest.removed.done.when().filter(|when| is_guest && *when > tunnel.begin)),
    ];
    let seen = client.at.min(server.at);
    for (what, when) in lost {
        if let Some(when) = when
            && seen > when + GRACE
        {
            faults.push(format!("it lived {} ms longer than {what}", seen - when));
        }
    }
}
