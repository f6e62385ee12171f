//! What `/metrics` promises to those who read it: two formats, a bounded number of series, and names on which the
//! documents, the dashboard and the alerts agree with the binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use wsbouncer::cap::Cap;
use wsbouncer::denial::Reason;
use wsbouncer::end::Cause;

use crate::support::client::plain_get;
use crate::support::head::Answer;
use crate::support::metrics::Metrics;
use crate::support::{Backend, Gate, KEY, alice, config, eventually, stand_echo, ws};

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[track_caller]
fn accepting(gate: &Gate, kinds: &str) -> Answer {
    let request = plain_get("/metrics").host(&gate.admin.to_string()).with("Connection", "close");
    gate.ask_admin(&request.with("Accept", kinds))
}

/// Echoes on sockets, and has one page.
fn backend() -> Backend {
    Backend::serve(|mut conn| {
        if conn.head.has("Upgrade") {
            conn.accept();
            conn.echo();
        } else {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            conn.linger();
        }
    })
}

/// A gate that has counted something under every name.
fn gate_with_traffic(backend: &Backend) -> Gate {
    let yaml = format!(
        "keys: [{{ id: alice, secret: {KEY} }}]\nroutes: [{{ name: chat, upstream: \"{}\", http: forward }}]\n",
        backend.url()
    );
    let gate = Gate::start(&yaml);
    drop(gate.open(alice()));
    gate.wait_for_open(0);
    gate.refuses(ws("/ws"), 401, "missing_credential");
    assert_eq!(gate.ask_status(plain_get("/").with("X-Api-Key", KEY)), 200);
    eventually("a page is counted", || gate.metric("wsbouncer_forwards_ended_total", &[]) == 1.0);
    eventually("the end is counted", || gate.metric("wsbouncer_tunnels_closed_total", &[]) == 1.0);
    gate
}

#[test]
fn a_reader_gets_the_format_that_it_asks_for() {
    let backend = backend();
    let gate = gate_with_traffic(&backend);
    // As Prometheus asks.
    let modern = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, is_open_metrics) in [
        (modern, true),
        ("Application/OpenMetrics-Text", true),
        ("*/*", false),
        ("text/plain", false),
        ("application/openmetrics-text;q=0, text/plain", false),
        ("application/openmetrics-text-and-more", false),
    ] {
        let answer = accepting(&gate, accept);
        let kind = answer.head.get("Content-Type").unwrap();
        assert_eq!(
            kind.starts_with("application/openmetrics-text; version=1.0.0"),
            is_open_metrics,
            "{accept}: {kind}"
        );
        assert_eq!(answer.text().ends_with("# EOF\n"), is_open_metrics, "{accept}");
        if !is_open_metrics {
            assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        }
    }
    eventually("all is quiet", || gate.metric("wsbouncer_connections_open", &[]) == 0.0);
    let (new, old) = (accepting(&gate, modern).text(), accepting(&gate, "*/*").text());
    assert!(new.contains("# TYPE wsbouncer_requests counter\n"), "{new}");
    assert!(
        old.contains("# TYPE wsbouncer_requests_total counter\n") && old.contains("# HELP wsbouncer_requests_total ")
    );
    assert_eq!(Metrics::parse(&new).0, Metrics::parse(&old).0, "the same samples in both");
}

/// A thousand requests, each with something new in every place that a client fills in.
#[test]
fn labels_are_never_the_clients_choice() {
    const METHODS: [&str; 8] = ["GET", "POST", "PUT", "DELETE", "CONNECT", "TRACE", "BREW", "get"];
    let (_backend, gate) = stand_echo();
    let names = || -> BTreeSet<_> { gate.metrics().0.into_iter().map(|it| (it.name, it.labels)).collect() };
    let warm = |request: Vec<u8>| drop(gate.ask(request));
    // What can happen at all happens once before: each of these is a word from a closed list.
    warm(ws("/").bytes());
    warm(plain_get("/").bytes());
    warm(ws("/").with("X-Api-Key", "wrong").bytes());
    warm(ws("/").raw("no header").bytes());
    warm(ws("/").with("Content-Length", "5").bytes());
    let before = names();
    for n in 0..1000 {
        let method = METHODS[n % METHODS.len()];
        let request = ws("/")
            .first_line(&format!("{method} /path{n}?query{n}=x HTTP/1.1"))
            .host(&format!("host{n}.example"))
            .with("Origin", &format!("https://{n}.example"))
            .with("X-Api-Key", &format!("key{n}"))
            .with("X-Auth-Key-Id", &format!("id{n}"))
            .with("X-Forwarded-For", &format!("10.0.{}.{}", n / 250, n % 250))
            .with("User-Agent", &format!("agent{n}"))
            .offer(&format!("protocol{n}"));
        gate.ask(&request);
    }
    let after = names();
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.len() <= 4, "{} series became {}: {new:?}", before.len(), after.len());
    assert!(
        after.iter().flat_map(|(_, labels)| labels).all(|(_, value)| value.parse::<f64>().is_ok()
            || Reason::ALL.iter().any(|reason| reason.word() == value)
            || Cap::ALL.iter().any(|cap| cap.word() == value)
            || ["default", "none", "", "alice", "refused", "ok", "failed", "up", "down", "+Inf"].contains(&&**value)
            || value == env!("CARGO_PKG_VERSION")),
        "{after:?}"
    );
}

/// Names, kinds and labels of every family that there is.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut all: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), (kind.to_owned(), BTreeSet::new())))
        .collect();
    for sample in Metrics::parse(text).0 {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.name.strip_suffix(end));
        let name = base.filter(|base| all.contains_key(*base)).unwrap_or(&sample.name).to_owned();
        let family = all.get_mut(&name).unwrap_or_else(|| panic!("{name} has no type"));
        family.1.extend(sample.labels.into_iter().map(|(label, _)| label).filter(|label| label != "le"));
    }
    all
}

/// `| `name` | kind | `label`, `label` | meaning |`
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `wsbouncer_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        assert!(!cells[3].is_empty(), "{row}");
        (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels))
    })
    .collect()
}

#[test]
fn the_page_has_every_metric_and_no_other() {
    let backend = backend();
    let gate = gate_with_traffic(&backend);
    assert_eq!(documented(), families(&accepting(&gate, "*/*").text()));
}

/// Every `wsbouncer_...` in a text that could be the name of a series.
fn named(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("wsbouncer_").map(|(at, _)| at);
    let starts = starts.filter(|at| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
    starts
        .map(|at| text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>())
        .map(|name| name.trim_end_matches('_').to_owned())
        .collect()
}

#[test]
fn dashboard_alerts_and_manifests_use_what_exists() {
    let backend = backend();
    let gate = gate_with_traffic(&backend);
    let exist: BTreeSet<String> = gate.metrics().0.into_iter().map(|sample| sample.name).collect();
    let mut seen = BTreeSet::new();
    for (file, least) in [
        ("config/grafana/wsbouncer.json", 14),
        ("config/prometheus/alerts.yaml", 8),
        ("tests/deploy/alerts.test.yaml", 5),
        ("config/kubernetes/gateway.yaml", 1),
        ("config/helm/wsbouncer/templates/horizontalpodautoscaler.yaml", 1),
        ("docs/deploy.md", 1),
        ("README.md", 6),
    ] {
        let mut names = named(&read(file));
        // The cookie of a ticket is no metric, and a family is named without its suffixes in a text.
        names.remove("wsbouncer_ticket");
        let family = |name: &String| exist.contains(&format!("{name}_count"));
        let wrong: Vec<_> = names.iter().filter(|name| !exist.contains(*name) && !family(name)).collect();
        assert!(wrong.is_empty(), "{file}: no such metric: {wrong:?}");
        assert!(names.len() >= least, "{file}: only {names:?}");
        seen.extend(names);
    }
    let base = |name: &String| ["_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end));
    let unseen: Vec<_> = exist.iter().filter(|name| !seen.contains(*name) && !base(name)).collect();
    assert!(unseen.is_empty(), "nothing shows {unseen:?}");
}

/// Alerts that wait for a word that nobody says are never raised.
#[test]
fn alerts_name_reasons_and_causes_that_exist() {
    let alerts = read("config/prometheus/alerts.yaml");
    let words = |label: &str| -> Vec<String> {
        let after = alerts.split(label).skip(1).map(|rest| rest.trim_start_matches(['=', '~', '"']));
        after
            .flat_map(|rest| rest.split('"').next().unwrap().split('|').map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    let reasons = words("{reason=");
    assert!(reasons.len() >= 8, "{reasons:?}");
    assert!(reasons.iter().all(|word| Reason::ALL.iter().any(|reason| reason.word() == word)), "{reasons:?}");
    let causes = words("{cause=");
    assert!(!causes.is_empty());
    assert!(causes.iter().all(|word| Cause::ALL.iter().any(|cause| cause.word() == word)), "{causes:?}");
    let page = read("docs/metrics.md");
    assert!(
        Cause::ALL.iter().all(|cause| page.contains(&format!("`{}`", cause.word()))),
        "docs/metrics.md has every cause"
    );
    assert!(Cap::ALL.iter().all(|cap| page.contains(&format!("`{}`", cap.word()))), "docs/metrics.md has every limit");
}

#[test]
fn the_room_for_connections_is_told() {
    let backend = Backend::echo();
    let gate = config(&crate::support::small(&backend, "")).after("ulimit -n 200").start();
    let limit = gate.metric("wsbouncer_connections_limit", &[]);
    assert!((50.0..100.0).contains(&limit), "{limit}: two descriptors each of 200, less what is kept");
}
