//! Every counter and gauge by name. Labels are route names, key ids and words of closed lists: never anything that a
//! client can choose.

mod latency;
mod older_format;
mod outcome;
mod spans;
mod totals;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

pub use self::latency::BOUNDS;
use self::latency::Latency;
pub use self::older_format::in_older_format;
pub use self::outcome::Outcome;
use self::spans::SpanNumbers;
pub use self::totals::Sums;
use self::totals::Totals;
use crate::cap::Cap;
use crate::clock::UnixTime;
use crate::denial::Reason;
use crate::end::Cause;
use crate::limit::Counts;
use crate::log;
use crate::relay;
use crate::spans::Spans;
use crate::tunnels::{Live, Tunnels};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteOutcome {
    route: Arc<str>,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteReason {
    route: Arc<str>,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteCause {
    route: Arc<str>,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitName {
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

/// All metrics of the process, and the registry that prints them.
pub struct Metrics {
    registry: Registry,
    tunnels: Arc<Tunnels>,
    totals: Totals,
    requests: Family<RouteOutcome, Counter>,
    refusals: Family<RouteReason, Counter>,
    opened: Family<Route, Counter>,
    closed: Family<RouteCause, Counter>,
    open: Family<Route, Gauge>,
    forwards_open: Family<Route, Gauge>,
    forwards_ended: Family<RouteCause, Counter>,
    /// Of tunnels that are closed; the living count for themselves.
    bytes: Arc<Mutex<BytesByRoute>>,
    handshake: Family<Route, Latency>,
    reloads: Family<ReloadResult, Counter>,
    reload_success: Gauge,
    reload_time: Gauge<i64, AtomicI64>,
    restart_needed: Gauge,
    accept_errors: Counter,
    limits_reached: Family<LimitName, Counter>,
}

/// Keys with metrics of their own; more than that belong into a log.
const MAX_KEYS: usize = 10_000;

impl Metrics {
    pub fn new(tunnels: Arc<Tunnels>, counts: Arc<Counts>) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("wsbouncer"),
            tunnels: tunnels.clone(),
            totals: Totals::default(),
            requests: Family::default(),
            refusals: Family::default(),
            opened: Family::default(),
            closed: Family::default(),
            open: Family::default(),
            forwards_open: Family::default(),
            forwards_ended: Family::default(),
            bytes: Arc::default(),
            handshake: Family::default(),
            reloads: Family::default(),
            reload_success: Gauge::default(),
            reload_time: Gauge::default(),
            restart_needed: Gauge::default(),
            accept_errors: Counter::default(),
            limits_reached: Family::default(),
        };
        metrics.register();
        let live = LiveNumbers { tunnels, counts, bytes: metrics.bytes.clone() };
        metrics.registry.register_collector(Box::new(live));
        metrics
    }

    /// From now on what becomes of these is shown too.
    pub fn show_spans(&mut self, spans: Arc<Spans>) {
        self.registry.register_collector(Box::new(SpanNumbers(spans)));
    }

    fn register(&mut self) {
        let all = &mut self.registry;
        all.register("requests", "Requests with a complete head, by what became of them", self.requests.clone());
        all.register("refusals", "Refusals by reason", self.refusals.clone());
        all.register("tunnels_opened", "Tunnels opened", self.opened.clone());
        all.register("tunnels_open", "Tunnels open now", self.open.clone());
        all.register("tunnels_closed", "Tunnels closed, by cause", self.closed.clone());
        all.register(
            "forwards_open",
            "Forwarded requests that are not answered to the end",
            self.forwards_open.clone(),
        );
        all.register(
            "forwards_ended",
            "Forwarded requests that came to their end, by cause",
            self.forwards_ended.clone(),
        );
        let text = "From the accepted connection's request head to the answer";
        all.register("handshake_seconds", text, self.handshake.clone());
        all.register("config_reloads", "Reloads of the configuration, by result", self.reloads.clone());
        let text = "Whether the last reload of the configuration was successful";
        all.register("config_last_reload_success", text, self.reload_success.clone());
        let text = "When the configuration was last loaded successfully";
        all.register("config_last_reload_timestamp_seconds", text, self.reload_time.clone());
        let text = "Whether the file holds a change that only a restart brings into force";
        all.register("config_restart_needed", text, self.restart_needed.clone());
        all.register("accept_errors", "Connections that could not be accepted", self.accept_errors.clone());
        let text = "Times that somebody was turned away by a limit on numbers";
        all.register("limits_reached", text, self.limits_reached.clone());
        for cap in Cap::ALL {
            let _ = self.limits_reached.get_or_create(&LimitName { limit: cap.word() });
        }
        for result in ["ok", "failed"] {
            // There from the start, so that the first failure is an increase.
            let _ = self.reloads.get_or_create(&ReloadResult { result });
        }
        let build = Family::<Version, Gauge>::default();
        build.get_or_create(&Version { version: env!("CARGO_PKG_VERSION") }).set(1);
        all.register("build_info", "The version of this process", build);
    }

    pub fn answered(&self, route: &Arc<str>, outcome: Outcome, took: Duration) {
        let outcome = outcome.word();
        self.totals.answered(took);
        self.requests.get_or_create(&RouteOutcome { route: route.clone(), outcome }).inc();
        self.handshake.get_or_create(&Route { route: route.clone() }).observe(took);
    }

    pub fn refused(&self, route: &Arc<str>, reason: Reason) {
        self.totals.refused(reason);
        self.refusals.get_or_create(&RouteReason { route: route.clone(), reason: reason.word() }).inc();
    }

    pub fn opened(&self, live: &Live) {
        let label = Route { route: live.route.clone() };
        self.totals.opened();
        self.opened.get_or_create(&label).inc();
        self.open.get_or_create(&label).inc();
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).entry(live.route.clone()).or_default();
    }

    pub fn closed(&self, live: &Live, cause: Cause) {
        let route = live.route.clone();
        self.totals.closed();
        self.open.get_or_create(&Route { route: route.clone() }).dec();
        self.closed.get_or_create(&RouteCause { route, cause: cause.word() }).inc();
        self.count_bytes(live);
    }

    fn count_bytes(&self, live: &Live) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.entry(live.route.clone()).or_default().add(live);
        live.closed();
    }

    /// A plain request is on its way to the upstream.
    pub fn forwarding(&self, live: &Live) {
        self.forwards_open.get_or_create(&Route { route: live.route.clone() }).inc();
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).entry(live.route.clone()).or_default();
    }

    /// It has ended, for this cause, or with a refusal.
    pub fn forwarded(&self, live: &Live, cause: Option<Cause>) {
        let route = live.route.clone();
        self.forwards_open.get_or_create(&Route { route: route.clone() }).dec();
        if let Some(cause) = cause {
            self.forwards_ended.get_or_create(&RouteCause { route, cause: cause.word() }).inc();
        }
        self.count_bytes(live);
    }

    pub fn reloaded(&self, restart_needed: bool) {
        self.reloads.get_or_create(&ReloadResult { result: "ok" }).inc();
        self.loaded(restart_needed);
    }

    /// The first load is no reload.
    pub fn loaded(&self, restart_needed: bool) {
        self.reload_success.set(1);
        self.reload_time.set(UnixTime::now().0);
        self.restart_needed.set(i64::from(restart_needed));
    }

    pub fn reload_failed(&self) {
        self.reloads.get_or_create(&ReloadResult { result: "failed" }).inc();
        self.reload_success.set(0);
    }

    pub fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    /// Somebody was turned away by this limit.
    pub fn limit_reached(&self, cap: Cap) {
        self.limits_reached.get_or_create(&LimitName { limit: cap.word() }).inc();
    }

    /// The numbers of one route.
    pub fn of_route(&self, route: &Arc<str>) -> RouteNumbers {
        let label = Route { route: route.clone() };
        let refusals = Reason::ALL.into_iter().filter_map(|reason| {
            let label = RouteReason { route: route.clone(), reason: reason.word() };
            Some((reason.word(), self.refusals.get(&label)?.get()))
        });
        RouteNumbers {
            open: self.open.get(&label).map_or(0, |gauge| gauge.get()),
            opened: self.opened.get(&label).map_or(0, |counter| counter.get()),
            refusals: refusals.collect(),
        }
    }

    /// The numbers of all routes together.
    pub fn sums(&self) -> Sums {
        self.totals.read()
    }

    /// Bytes of all tunnels so far, up and down.
    pub fn bytes(&self) -> (u64, u64) {
        let all = bytes_by_route(&self.bytes, &self.tunnels);
        all.values().fold((0, 0), |(up, down), bytes| (up + bytes.up, down + bytes.down))
    }

    /// All of it in OpenMetrics 1.0.
    ///
    /// # Errors
    /// When a metric cannot be written, which would be a fault of this program.
    pub fn print(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What happened on one route since the start.
pub struct RouteNumbers {
    pub open: i64,
    pub opened: u64,
    /// By reason; those that happened.
    pub refusals: Vec<(&'static str, u64)>,
}

/// What is counted when it is asked for: living tunnels, keys in use.
struct LiveNumbers {
    tunnels: Arc<Tunnels>,
    counts: Arc<Counts>,
    bytes: Arc<Mutex<BytesByRoute>>,
}

impl fmt::Debug for LiveNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveNumbers")
    }
}

impl Collector for LiveNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_bytes(&mut encoder)?;
        let keys = self.counts.keys(MAX_KEYS);
        gauge(&mut encoder, "key_tunnels_open", "Tunnels open now, by key", |add| {
            keys.iter().try_for_each(|(key, open, _)| add(&[("key", key)], i64::from(*open)))
        })?;
        let text = "When a tunnel of the key was last opened or closed";
        gauge(&mut encoder, "key_last_used_timestamp_seconds", text, |add| {
            keys.iter().try_for_each(|(key, _, last_used)| add(&[("key", key)], last_used.0))
        })?;
        let room = self.counts.room();
        let text = "Connections of the data port, tunnels included";
        number(&mut encoder, "connections_open", text, room.open())?;
        let text = "Connections of the data port that are no tunnel yet, or never will be";
        number(&mut encoder, "connections_pending", text, self.counts.pending() as usize)?;
        let text = "Connections of the data port that there are open files and memory for";
        number(&mut encoder, "connections_limit", text, room.most())?;
        let text = "Memory for what one side has sent and the other does not take yet, of all tunnels";
        number(&mut encoder, "buffered_bytes", text, relay::held())?;
        let lost = ConstCounter::new(log::lost());
        let text = "Lines of the log that could not be written";
        lost.encode(encoder.encode_descriptor("log_lines_lost", text, None, lost.metric_type())?)
    }
}

impl LiveNumbers {
    fn encode_bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let routes = bytes_by_route(&self.bytes, &self.tunnels);
        let kind = ConstCounter::new(0u64).metric_type();
        let text = "Bytes relayed: up is from the client to the upstream";
        let mut family = encoder.encode_descriptor("bytes", text, None, kind)?;
        for (route, bytes) in &routes {
            for (direction, count) in [("up", bytes.up), ("down", bytes.down)] {
                let labels = [("route", &**route), ("direction", direction)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn bytes_by_route(closed: &Mutex<BytesByRoute>, tunnels: &Tunnels) -> BytesByRoute {
    // Under this lock a tunnel is either alive or counted among the closed, never both.
    let closed = closed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut routes = closed.clone();
    for live in tunnels.all().iter().filter(|live| live.is_open()) {
        routes.entry(live.route.clone()).or_default().add(live);
    }
    routes
}

type BytesByRoute = BTreeMap<Arc<str>, Bytes>;

#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    up: u64,
    down: u64,
}

impl Bytes {
    fn add(&mut self, live: &Live) {
        self.up += live.control.up_bytes.load(Ordering::Relaxed);
        self.down += live.control.down_bytes.load(Ordering::Relaxed);
    }
}

fn number(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> Result<(), fmt::Error> {
    let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

/// Adds one line to a family: labels and a value.
type Add<'a> = dyn FnMut(&[(&str, &str)], i64) -> Result<(), fmt::Error> + 'a;

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    fill: impl FnOnce(&mut Add<'_>) -> Result<(), fmt::Error>,
) -> Result<(), fmt::Error> {
    let kind = ConstGauge::new(0i64).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    fill(&mut |labels, value| ConstGauge::new(value).encode(family.encode_family(&labels)?))
}
