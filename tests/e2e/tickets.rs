//! Tickets: an authenticated plain request first, then a handshake that shows what it got.

use serde_json::Value;

use crate::support::client::plain_get;
use crate::support::head::Answer;
use crate::support::{Backend, Conn, Gate, KEY, Request, Wire, alice, config, eventually, route, ws};

const DESK: &str = "/.wsbouncer/ticket";
const SECRET_A: &str = "ticket-secret-a-0123456789-0123456789";
const SECRET_B: &str = "ticket-secret-b-0123456789-0123456789";
const PAGE: &str = "https://page.test";

fn post(path: &str) -> Request {
    plain_get(path).first_line(&format!("POST {path} HTTP/1.1")).with("Content-Length", "0")
}

fn with_key(request: Request) -> Request {
    request.with("X-Api-Key", KEY)
}

/// A ticket for Alice.
#[track_caller]
fn ticket(gate: &Gate) -> String {
    issued(&gate.ask(with_key(post(DESK))))
}

#[track_caller]
fn issued(answer: &Answer) -> String {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.head.get("Cache-Control"), Some("no-store"));
    assert_eq!(answer.head.get("Content-Type"), Some("application/json"));
    assert!(answer.json()["expires_in"].as_u64().is_some_and(|seconds| seconds > 0), "{}", answer.text());
    answer.field("ticket")
}

fn by_query(ticket: &str) -> Request {
    ws(&format!("/ws?ticket={ticket}"))
}

#[track_caller]
fn opens(gate: &Gate, backend: &Backend, request: Request) -> (Wire, Conn) {
    let wire = gate.send(request);
    let mut upstream = backend.next();
    upstream.accept();
    (wire.opened().0, upstream)
}

#[track_caller]
fn rewrite(gate: &Gate, yaml: &str) {
    gate.reloads(|| gate.edit_config(yaml));
}

fn tickets(more: &str) -> String {
    format!("tickets: {{ path: {DESK}{more} }}")
}

#[test]
fn a_ticket_opens_one_handshake_in_each_place() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, &tickets(", cookie: wsbouncer_ticket")));
    let carry: [fn(&str) -> Request; 3] = [
        by_query,
        |ticket| ws("/ws?a=1").offer(&format!("ticket, {ticket}")),
        |ticket| ws("/ws").with("Cookie", &format!("other=1; wsbouncer_ticket={ticket}")),
    ];
    for carry in carry {
        let ticket = ticket(&gate);
        let (mut client, mut upstream) = opens(&gate, &backend, carry(&ticket));
        let head = backend.last_head();
        assert!(!head.text().contains(&ticket), "{}", head.text());
        assert_eq!(head.get("X-Auth-Key-Id"), Some("alice"));
        client.send("up");
        upstream.expect("up");
        gate.refuses_before(&backend, carry(&ticket), 401, "invalid_credential");
        let line = gate.log_lines(|line| line.is("refused")).pop().unwrap();
        assert_eq!((line.get("cause").as_str(), line.get("key").as_str()), ("the ticket was used already", "alice"));
        assert!(!gate.raw_log().contains(&ticket), "a ticket in the log");
    }
}

#[test]
fn of_two_at_once_one_gets_in() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, &tickets("")));
    for _ in 0..5 {
        let ticket = ticket(&gate);
        let wires: Vec<Wire> = (0..20).map(|_| gate.send(by_query(&ticket))).collect();
        let opened = wires.into_iter().map(|mut wire| wire.read_head().first.contains(" 101 "));
        assert_eq!(opened.filter(|opened| *opened).count(), 1);
    }
}

#[test]
fn the_counter_asks_as_the_route_does() {
    let backend = Backend::manual();
    let origins = format!("allowed_origins: [\"{PAGE}\"]");
    let yaml = format!(
        "{}\n  - {{ name: other, path: /other, upstream: {} }}\n",
        route(&backend, &format!("path: /ws\n{origins}\n{}", tickets(""))),
        backend.url()
    );
    let yaml = yaml.replace("keys:\n", "keys:\n  - { id: bob, secret: bobs-own-secret-0123, routes: [other] }\n");
    let gate = Gate::start(&yaml);
    gate.refuses(post(DESK), 401, "missing_credential");
    gate.refuses(post(DESK).with("X-Api-Key", "wrong"), 401, "invalid_credential");
    gate.refuses(post(DESK).with("X-Api-Key", "bobs-own-secret-0123"), 403, "not_allowed_on_route");
    gate.refuses(with_key(post(DESK)).with("Origin", "https://evil.test"), 403, "origin_not_allowed");
    gate.refuses(with_key(post(DESK)).with("X-Api-Key", KEY), 400, "conflicting_credentials");
    let put = with_key(post(DESK)).first_line(&format!("PUT {DESK} HTTP/1.1"));
    assert_eq!(gate.refuses(put, 405, "bad_handshake").head.get("Allow"), Some("GET, POST, OPTIONS"));
    let one = ticket(&gate);
    let again = gate.refuses(post(&format!("{DESK}?ticket={one}")), 401, "invalid_credential");
    assert!(again.field("detail").contains("a ticket gets no ticket"), "{}", again.text());
    gate.refuses(alice().first_line("GET /elsewhere HTTP/1.1"), 404, "no_route");
    assert_eq!(backend.accepted(), 0, "the upstream has nothing to do with it");
    assert_eq!(gate.metric("wsbouncer_requests_total", &[("outcome", "ticket"), ("route", "main")]), 1.0);
    let line = gate.log_line(|line| line.is("ticket issued"));
    assert_eq!((line.get("key").as_str(), line.get("route").as_str()), ("alice", "main"));
    assert!(!gate.raw_log().contains(&one));
}

#[test]
fn a_ticket_is_good_on_its_own_route_only() {
    let backend = Backend::manual();
    let two = |name: &str| {
        format!(
            "  - {{ name: {name}, path: /{name}, upstream: {}, tickets: {{ path: /{name}/ticket }} }}\n",
            backend.url()
        )
    };
    let gate = Gate::start(&format!("keys: [{{ id: alice, secret: {KEY} }}]\nroutes:\n{}{}", two("a"), two("b")));
    let ticket = issued(&gate.ask(with_key(post("/a/ticket"))));
    gate.refuses_before(&backend, ws(&format!("/b?ticket={ticket}")), 401, "invalid_credential");
    opens(&gate, &backend, ws(&format!("/a?ticket={ticket}")));
}

#[test]
fn a_ticket_is_over_when_its_time_is() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, &tickets(", ttl: 1s")));
    let ticket = ticket(&gate);
    eventually("it is over", || gate.ask_status(by_query("x")) == 401 && is_over(&ticket));
    let answer = gate.refuses_before(&backend, by_query(&ticket), 401, "expired_credential");
    assert!(answer.head.has("WWW-Authenticate"));
}

/// By its own date: 8 bytes after the first two.
fn is_over(ticket: &str) -> bool {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(ticket).unwrap();
    let until = i64::from_be_bytes(bytes[2..10].try_into().unwrap());
    jiff::Timestamp::now().as_second() >= until
}

#[test]
fn what_a_ticket_is_bound_to_has_to_be_shown_again() {
    let backend = Backend::manual();
    let fields =
        format!("allowed_origins: [\"{PAGE}\", \"https://two.test\"]\n{}", tickets(", bind: [origin, address]"));
    let gate = Gate::start(&format!("trusted_proxies: [127.0.0.1]\n{}", route(&backend, &fields)));
    let from =
        |request: Request, origin: &str, address: &str| request.with("Origin", origin).with("X-Forwarded-For", address);
    let fresh = || issued(&gate.ask(from(with_key(post(DESK)), PAGE, "203.0.113.7")));
    let one = fresh();
    gate.refuses_before(&backend, from(by_query(&one), "https://two.test", "203.0.113.7"), 401, "invalid_credential");
    gate.refuses_before(&backend, from(by_query(&one), PAGE, "203.0.113.8"), 401, "invalid_credential");
    gate.refuses_before(&backend, by_query(&one), 401, "invalid_credential");
    opens(&gate, &backend, from(by_query(&one), PAGE, "203.0.113.7"));
}

#[test]
fn to_revoke_the_secret_is_to_revoke_ticket_and_tunnel() {
    let backend = Backend::manual();
    let yaml = route(&backend, &tickets(""));
    let two = format!("secrets: [{{ plain: {KEY} }}, {{ plain: second-secret-0123456789 }}]");
    let both = yaml.replace(&format!("secret: {KEY}"), &two);
    let gate = Gate::start(&both);
    let (unused, used) = (ticket(&gate), ticket(&gate));
    let other = issued(&gate.ask(post(DESK).with("X-Api-Key", "second-secret-0123456789")));
    let (mut client, _upstream) = opens(&gate, &backend, by_query(&used));
    let one = both.replace(&format!("{{ plain: {KEY} }}, "), "");
    assert_ne!(one, both);
    rewrite(&gate, &one);
    assert_eq!(client.read_close(), (4401, "revoked".into()));
    gate.refuses_before(&backend, by_query(&unused), 401, "invalid_credential");
    opens(&gate, &backend, by_query(&other));
}

#[test]
fn a_secret_that_moved_to_another_key_takes_no_ticket_along() {
    let backend = Backend::manual();
    let yaml = route(&backend, &tickets(""));
    let gate = Gate::start(&yaml);
    let ticket = ticket(&gate);
    rewrite(&gate, &yaml.replace("id: alice", "id: bob"));
    gate.refuses_before(&backend, by_query(&ticket), 401, "invalid_credential");
}

#[test]
fn replicas_with_one_secret_take_each_others_tickets() {
    let backend = Backend::echo();
    let yaml = |secrets: &str| format!("tickets: {{ secrets: [{secrets}] }}\n{}", route(&backend, &tickets("")));
    let (env, file) = ("{ env: TICKETS }", "{ file: ticket.secret }");
    let one = config(&yaml(env)).env("TICKETS", SECRET_A).start();
    let both =
        config(&yaml(&format!("{file}, {env}"))).env("TICKETS", SECRET_A).file("ticket.secret", SECRET_B).start();
    let new = config(&yaml(file)).file("ticket.secret", &format!("{SECRET_B}\n")).start();
    let own = Gate::start(&route(&backend, &tickets("")));
    let works = |from: &Gate, on: &Gate| on.ask_status(by_query(&ticket(from))) == 101;
    assert!(works(&one, &one) && works(&one, &both) && works(&both, &new) && works(&own, &own));
    assert!(!works(&one, &new) && !works(&both, &one) && !works(&own, &one) && !works(&one, &own));
}

#[test]
fn the_secret_of_tickets_can_be_rotated_while_it_runs() {
    let backend = Backend::manual();
    let yaml = |secrets: &str| format!("tickets: {{ secrets: [{secrets}] }}\n{}", route(&backend, &tickets("")));
    let plain = |secret: &str| format!("{{ plain: {secret} }}");
    let gate = Gate::start(&yaml(&plain(SECRET_A)));
    let (first, second) = (ticket(&gate), ticket(&gate));
    rewrite(&gate, &yaml(&format!("{}, {}", plain(SECRET_B), plain(SECRET_A))));
    opens(&gate, &backend, by_query(&first));
    rewrite(&gate, &yaml(&plain(SECRET_B)));
    gate.refuses_before(&backend, by_query(&second), 401, "invalid_credential");
    assert!(!gate.raw_log().contains(SECRET_A) && !gate.raw_log().contains(SECRET_B));
}

#[test]
fn a_reload_gives_no_used_ticket_back() {
    let backend = Backend::manual();
    let yaml = route(&backend, &tickets(""));
    let gate = Gate::start(&yaml);
    let ticket = ticket(&gate);
    opens(&gate, &backend, by_query(&ticket));
    rewrite(&gate, &format!("{yaml}\n# another day\n"));
    gate.refuses_before(&backend, by_query(&ticket), 401, "invalid_credential");
}

#[test]
fn a_cookie_jar_is_enough() {
    let backend = Backend::manual();
    let gate =
        Gate::start(&route(&backend, &format!("path: /ws\n{}", tickets(", cookie: { name: t, secure: false }"))));
    // GET, as whoever thinks of a login page does it.
    let answer = gate.ask(with_key(plain_get(DESK)));
    let cookie = answer.head.get("Set-Cookie").expect("a cookie").to_owned();
    let ticket = issued(&answer);
    assert_eq!(cookie, format!("t={ticket}; Max-Age=30; Path=/ws; HttpOnly; SameSite=Strict"));
    let dial = || ws("/ws").with("Cookie", &format!("t={ticket}"));
    // From a page it wants allowed_origins, which this route has not.
    gate.refuses_before(&backend, dial().with("Origin", PAGE), 403, "origin_not_allowed");
    let answer = gate.ask(with_key(plain_get(DESK)));
    opens(&gate, &backend, ws("/ws").with("Cookie", &format!("t={}; theme=dark", issued(&answer))));
    assert_eq!(backend.last_head().get("Cookie"), Some("theme=dark"));
}

#[test]
fn secure_is_the_cookies_default() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, &tickets(", cookie: t")));
    let answer = gate.ask(with_key(post(DESK)));
    assert!(answer.head.get("Set-Cookie").is_some_and(|cookie| cookie.ends_with("; Secure")), "{:?}", answer.head);
}

#[test]
fn pages_of_allowed_origins_may_ask_from_elsewhere() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, &format!("allowed_origins: [\"{PAGE}\"]\n{}", tickets(""))));
    let preflight = |origin: &str| {
        plain_get(DESK)
            .first_line(&format!("OPTIONS {DESK} HTTP/1.1"))
            .with("Origin", origin)
            .with("Access-Control-Request-Method", "POST")
            .with("Access-Control-Request-Headers", "x-api-key")
    };
    let answer = gate.ask(preflight(PAGE));
    assert_eq!(answer.status(), 204);
    let get = |name: &str| answer.head.get(name).map(str::to_owned);
    assert_eq!(get("Access-Control-Allow-Origin").as_deref(), Some(PAGE));
    assert_eq!(get("Access-Control-Allow-Methods").as_deref(), Some("GET, POST"));
    assert_eq!(get("Access-Control-Allow-Headers").as_deref(), Some("content-type, x-api-key"));
    assert_eq!(get("Vary").as_deref(), Some("Origin"));
    let refused = gate.refuses(preflight("https://evil.test"), 403, "origin_not_allowed");
    assert!(!refused.head.has("Access-Control-Allow-Origin"));
    // A refusal can be read by the page, too.
    let refused = gate.refuses(post(DESK).with("Origin", PAGE), 401, "missing_credential");
    assert_eq!(refused.head.get("Access-Control-Allow-Origin"), Some(PAGE));
    let answer = gate.ask(with_key(post(DESK)).with("Origin", PAGE));
    assert_eq!(answer.head.get("Access-Control-Allow-Origin"), Some(PAGE));
    issued(&answer);
}

#[test]
fn the_misunderstanding_is_shown_where_tickets_are() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, &format!("path: /ws\n{}", tickets(""))));
    let answer = gate.refuses(with_key(plain_get("/ws")), 426, "upgrade_required");
    assert!(answer.field("detail").contains(&format!("POST the key to {DESK}")), "{}", answer.text());
    // To look is not to use.
    let ticket = ticket(&gate);
    gate.refuses(plain_get(&format!("/ws?ticket={ticket}")), 426, "upgrade_required");
    opens(&gate, &backend, by_query(&ticket));
    let answer = gate.refuses(ws("/ws"), 401, "missing_credential");
    assert!(answer.field("detail").contains(&format!("a ticket from POST {DESK}")), "{}", answer.text());
}

#[test]
fn what_looks_like_a_ticket_is_none() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, &tickets("")));
    let good = ticket(&gate);
    let long = "A".repeat(3000);
    for bad in ["", "x", KEY, &good[1..], &format!("{good}AA"), &good.to_uppercase(), &long] {
        let reason = if bad.is_empty() { "missing_credential" } else { "invalid_credential" };
        gate.refuses_before(&backend, by_query(bad), 401, reason);
    }
    gate.refuses_before(&backend, by_query(&good).with("X-Api-Key", KEY), 400, "conflicting_credentials");
    let body: Value = gate.refuses(by_query("x"), 401, "invalid_credential").json();
    assert_eq!(body["detail"], "this credential does not open anything here");
    opens(&gate, &backend, by_query(&good));
}

#[test]
fn a_ticket_in_a_cookie_loads_pages_and_opens_one_socket() {
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage";
    let backend = Backend::serve(move |mut conn| {
        if conn.head.has("Upgrade") {
            conn.accept();
            conn.echo();
        } else {
            conn.send(page);
            conn.linger();
        }
    });
    let desk = tickets(", cookie: { name: t, secure: false }");
    let gate = Gate::start(&route(&backend, &format!("path: /app/*\nhttp: forward\n{desk}")));
    let cookie = format!("t={}", ticket(&gate));
    for _ in 0..3 {
        let answer = gate.ask(plain_get("/app/index.html").with("Cookie", &cookie));
        assert_eq!((answer.status(), answer.text().as_str()), (200, "page"));
        assert!(!backend.last_head().has("Cookie"));
    }
    let dial = || ws("/app/socket").with("Cookie", &cookie);
    gate.open(dial());
    gate.refuses(dial(), 401, "invalid_credential");
    gate.refuses(plain_get("/app/"), 401, "missing_credential");
    // Only what a browser sends along by itself: a ticket in a URL is used up by the first request, of either kind.
    let url = plain_get(&format!("/app/a?ticket={}", ticket(&gate)));
    assert_eq!(gate.ask_status(&url), 200);
    gate.refuses(&url, 401, "invalid_credential");
}
