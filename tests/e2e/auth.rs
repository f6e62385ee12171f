//! Who gets in: every place where a key may be, every way to write one down, and every reason to refuse it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::support::client::plain_get;
use crate::support::head::Head;
use crate::support::{Backend, Gate, KEY, Request, alice, config, route, small, stand, stand_echo, ws};

const WRONG: &str = "alice-secret-0123456780";

/// `auth` with these places.
fn from(places: &str) -> String {
    format!("auth: [ {{ api_key: {{ extract_from: [ {places} ] }} }} ]")
}

fn base64url(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn sha256(secret: &str) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `2027-10-01T00:00:00Z`, so many seconds from now.
fn in_seconds(seconds: i64) -> String {
    let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A place, and how a request carries a secret in it.
struct Place {
    yaml: &'static str,
    carry: fn(&str) -> Request,
}

const PLACES: [Place; 16] = [
    Place { yaml: "{ header: X-Api-Key }", carry: |key| ws("/ws").with("x-api-KEY", key) },
    Place { yaml: "{ header: X-Other }", carry: |key| ws("/ws").with("X-Other", key) },
    Place { yaml: "{ header: Authorization }", carry: |key| ws("/ws").with("Authorization", key) },
    Place { yaml: "bearer", carry: |key| ws("/ws").with("Authorization", &format!("Bearer {key}")) },
    Place { yaml: "bearer", carry: |key| ws("/ws").with("authorization", &format!("bEARER {key}")) },
    Place { yaml: "basic", carry: |key| ws("/ws").with("Authorization", &basic("alice", key)) },
    Place { yaml: "{ subprotocol: { pair: x-api-key } }", carry: |key| ws("/ws").offer(&format!("x-api-key, {key}")) },
    Place {
        yaml: "{ subprotocol: { pair: x-api-key, encoding: base64url } }",
        carry: |key| ws("/ws").offer(&format!("x-api-key, {}", base64url(key))),
    },
    Place {
        yaml: "{ subprotocol: { prefix: my-key., encoding: raw } }",
        carry: |key| ws("/ws").offer(&format!("chat, my-key.{key}")),
    },
    Place {
        yaml: "{ subprotocol: { prefix: my-key., encoding: base64url } }",
        carry: |key| ws("/ws").offer(&format!("chat, my-key.{}", base64url(key))),
    },
    Place {
        yaml: "{ subprotocol: { preset: kubernetes } }",
        carry: |key| ws("/ws").offer(&format!("base64url.bearer.authorization.k8s.io.{}, chat", base64url(key))),
    },
    Place {
        yaml: "{ subprotocol: { preset: openai } }",
        carry: |key| ws("/ws").offer(&format!("realtime, openai-insecure-api-key.{key}")),
    },
    Place { yaml: "{ subprotocol: { preset: deepgram } }", carry: |key| ws("/ws").offer(&format!("token, {key}")) },
    Place { yaml: "{ subprotocol: { preset: bearer } }", carry: |key| ws("/ws").offer(&format!("Bearer, {key}")) },
    Place { yaml: "{ query: api_key }", carry: |key| ws(&format!("/ws?api_key={key}")) },
    Place { yaml: "{ query: api_key }", carry: |key| ws(&format!("/ws?a=1&api_key={}&b=2", percent(key))) },
];

/// Every byte as `%xx`.
fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// In whatever form, nothing of the secret is in what the upstream got.
#[track_caller]
fn assert_hidden(head: &Head, secret: &str) {
    let text = head.text();
    for form in [secret.to_owned(), base64url(secret), percent(secret), basic("alice", secret)] {
        assert!(!text.contains(&form), "{text}");
    }
}

#[test]
fn a_key_opens_from_every_place_and_the_upstream_never_sees_it() {
    for place in &PLACES {
        let backend = Backend::echo();
        let gate = Gate::start(&route(&backend, &from(place.yaml)));
        gate.open((place.carry)(KEY));
        let head = backend.last_head();
        assert_hidden(&head, KEY);
        assert_eq!(head.get("X-Auth-Key-Id"), Some("alice"), "{}", place.yaml);

        let answer = gate.refuses_before(&backend, (place.carry)(WRONG), 401, "invalid_credential");
        assert!(answer.head.has("WWW-Authenticate"));
        assert!(!String::from_utf8_lossy(&answer.head.raw).contains(WRONG) && !answer.text().contains(WRONG));
        gate.refuses_before(&backend, ws("/ws"), 401, "missing_credential");
    }
}

#[test]
fn without_a_word_about_it_a_key_is_looked_for_in_its_header_and_then_in_a_pair() {
    let (backend, gate) = stand_echo();
    gate.open(alice());
    gate.open(ws("/ws").offer(&format!("x-api-key, {KEY}")));
    for request in [
        ws("/ws").with("Authorization", &format!("Bearer {KEY}")),
        ws(&format!("/ws?api_key={KEY}")),
        ws("/ws").with("Cookie", &format!("x-api-key={KEY}")),
        ws("/ws").offer(KEY),
    ] {
        gate.refuses_before(&backend, request, 401, "missing_credential");
    }
}

#[test]
fn auth_can_be_written_short() {
    let backend = Backend::echo();
    for auth in ["auth: [ api_key ]", "auth: [ { api_key: { extract_from: [ { header: X-Api-Key } ] } } ]"] {
        let gate = Gate::start(&route(&backend, auth));
        gate.open(alice());
        gate.refuses_before(&backend, ws("/ws"), 401, "missing_credential");
    }
}

#[test]
fn an_open_route_says_so_and_lets_everybody_in() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, "auth: none"));
    gate.open(ws("/ws"));
    assert_eq!(gate.log_line(|line| line.is("tunnel opened")).get("key"), "");
}

// ---- missing

#[test]
fn a_missing_key_is_told_where_this_route_looks() {
    let backend = Backend::manual();
    let places = "{ header: X-Api-Key }, bearer, { subprotocol: { pair: x-api-key } }, { query: api_key }";
    let gate = Gate::start(&route(&backend, &from(places)));
    let answer = gate.refuses_before(&backend, ws("/ws"), 401, "missing_credential");
    let detail = answer.field("detail");
    for place in ["X-Api-Key", "Authorization: Bearer", "new WebSocket(url, [\"x-api-key\"", "api_key"] {
        assert!(detail.contains(place), "{place} in {detail}");
    }
    assert_eq!(answer.head.get("WWW-Authenticate"), Some("Bearer realm=\"wsbouncer\""));
}

#[test]
fn what_carries_nothing_is_missing() {
    let backend = Backend::manual();
    let everywhere = "{ header: X-Api-Key }, bearer, { subprotocol: { pair: x-api-key } }, { query: api_key }";
    let gate = Gate::start(&route(&backend, &from(everywhere)));
    for request in [
        ws("/ws").with("X-Api-Key", ""),
        ws("/ws").with("X-Api-Key", "  "),
        ws("/ws?api_key="),
        ws("/ws?api_key"),
        ws(&format!("/ws?API_KEY={KEY}")),
        ws(&format!("/ws?api_keys={KEY}")),
        ws("/ws").with("Authorization", "Bearer"),
        ws("/ws").with("Authorization", &format!("Bearer{KEY}")),
        ws("/ws").with("Authorization", &format!("Token {KEY}")),
        ws("/ws").with("Authorization", &basic("alice", KEY)),
        ws("/ws").offer("x-api-key"),
        ws("/ws").offer(&format!("{KEY}, x-api-key")),
        ws("/ws").offer(&format!("X-API-KEY, {KEY}")),
        // Look-alikes of the header are not the header.
        ws("/ws").with("X_Api_Key", KEY),
        ws("/ws").with("X.Api.Key", KEY),
        ws("/ws").with("X-Api_Key", KEY),
        ws("/ws").with("X-Api-Key2", KEY),
        // A nomination does not make a key appear.
        ws("/ws").set("Connection", "Upgrade, X-Api-Key"),
    ] {
        let sent = format!("{request:?}");
        let answer = gate.refuses_before(&backend, request, 401, "missing_credential");
        assert_eq!(answer.status(), 401, "{sent}");
    }
}

#[test]
fn a_plain_request_with_a_valid_key_learns_what_was_meant() {
    let (backend, gate) = stand();
    let with_key = plain_get("/ws").with("X-Api-Key", KEY);
    let answer = gate.refuses_before(&backend, with_key, 426, "upgrade_required");
    let detail = answer.field("detail").to_lowercase();
    assert!(
        detail.contains("key") && detail.contains("upgrade itself"),
        "the key must ride on the upgrade itself: {detail}"
    );
    let bare = gate.refuses_before(&backend, plain_get("/ws"), 426, "upgrade_required").field("detail");
    let wrong = plain_get("/ws").with("X-Api-Key", WRONG);
    let wrong = gate.refuses_before(&backend, wrong, 426, "upgrade_required").field("detail");
    assert_ne!(detail, bare.to_lowercase());
    assert_eq!(wrong, bare, "a plain request must not tell whether a wrong key is one");
    // The mistaken flow goes on with a dial that carries nothing.
    gate.refuses_before(&backend, ws("/ws"), 401, "missing_credential");
}

// ---- wrong

#[test]
fn a_secret_is_compared_byte_by_byte() {
    let (backend, gate) = stand();
    let swapped = KEY.to_uppercase();
    let longer = format!("{KEY}0");
    for secret in [
        &swapped,
        &longer,
        &KEY[1..],
        &KEY[..KEY.len() - 1],
        &format!("{KEY},{KEY}"),
        &format!("bad, {KEY}"),
        &format!("{KEY}, bad"),
        &format!("\"{KEY}\""),
        &format!("Bearer {KEY}"),
        &base64url(KEY),
        &percent(KEY),
        &sha256(KEY),
        "alice",
        "*",
        "null",
    ] {
        gate.refuses_before(&backend, ws("/ws").with("X-Api-Key", secret), 401, "invalid_credential");
    }
}

#[test]
fn blanks_around_a_header_value_are_not_part_of_it() {
    let (_backend, gate) = stand_echo();
    gate.open(ws("/ws").raw(format!("X-Api-Key:{KEY}")));
    gate.open(ws("/ws").raw(format!("X-Api-Key: \t {KEY} \t")));
}

#[test]
fn the_wrong_encoding_is_a_wrong_key() {
    let backend = Backend::manual();
    let gate = Gate::start(&route(&backend, &from("{ subprotocol: { preset: kubernetes } }")));
    let prefix = "base64url.bearer.authorization.k8s.io.";
    for value in [KEY, "!!!!", "A", &sha256(KEY)] {
        let request = ws("/ws").offer(&format!("chat, {prefix}{value}"));
        gate.refuses_before(&backend, request, 401, "invalid_credential");
    }
    let bare = ws("/ws").offer(&format!("chat, {prefix}"));
    gate.refuses_before(&backend, bare, 401, "missing_credential");
}

#[test]
fn basic_wants_the_user_whose_secret_it_is() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, &from("basic")));
    gate.open(ws("/ws").with("Authorization", &basic("alice", KEY)));
    gate.open(ws("/ws").with("Authorization", &basic("alice", KEY).replace("Basic", "BASIC")));
    for value in [
        basic("bob", KEY),
        basic("Alice", KEY),
        basic("", KEY),
        basic("alice", WRONG),
        basic("alice", ""),
        format!("Basic {}", STANDARD.encode(KEY)),
        "Basic !!!".to_owned(),
    ] {
        let answer = gate.refuses_before(&backend, ws("/ws").with("Authorization", &value), 401, "invalid_credential");
        let challenge = answer.head.get("WWW-Authenticate").unwrap();
        assert!(challenge.starts_with("Basic realm="), "{challenge}");
    }
}

#[test]
fn unknown_disabled_and_not_yet_valid_look_the_same_from_outside() {
    let backend = Backend::manual();
    let gate = Gate::start(&format!(
        "upstream: {}\nkeys:\n\
         - {{ id: off, secret: disabled-secret, disabled: true }}\n\
         - {{ id: soon, secret: early-secret, not_before: {} }}\n",
        backend.url(),
        in_seconds(3600)
    ));
    let mut answers = Vec::new();
    for (secret, key) in [("unknown-secret", ""), ("disabled-secret", "off"), ("early-secret", "soon")] {
        let answer = gate.refuses_before(&backend, ws("/ws").with("X-Api-Key", secret), 401, "invalid_credential");
        let id = answer.field("request_id");
        let line = gate.log_line(|line| line.get("id") == id);
        assert_eq!(line.get("key"), key, "the log knows whose it was");
        assert!(!line.get("cause").is_empty(), "the log knows why");
        let head = answer.head.text().replace(&id, "ID");
        let head: Vec<String> = head.lines().filter(|line| !line.starts_with("date:")).map(str::to_owned).collect();
        answers.push((head, answer.text().replace(&id, "ID")));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
}

// ---- dates

#[test]
fn several_secrets_open_one_key_each_until_its_own_date() {
    let backend = Backend::echo();
    let gate = Gate::start(&format!(
        "upstream: {}\nkeys:\n\
         - id: dashboard\n\
        \x20 secrets:\n\
        \x20    - sha256: \"{}\"\n\
        \x20    - {{ sha256: \"{}\", valid_until: {} }}\n\
        \x20    - {{ plain: third-secret, valid_until: {} }}\n\
        \x20    - plain: \"fourth secret, with blanks\"\n",
        backend.url(),
        sha256("first-secret").to_uppercase(),
        sha256("second-secret"),
        in_seconds(3600),
        in_seconds(-5),
    ));
    for secret in ["first-secret", "second-secret", "fourth secret, with blanks"] {
        gate.open(ws("/ws").with("X-Api-Key", secret));
        assert_eq!(backend.last_head().get("X-Auth-Key-Id"), Some("dashboard"));
    }
    gate.refuses_before(&backend, ws("/ws").with("X-Api-Key", "third-secret"), 401, "expired_credential");
}

#[test]
fn a_key_has_a_first_and_a_last_moment() {
    let backend = Backend::echo();
    let gate = Gate::start(&format!(
        "upstream: {}\nkeys:\n\
         - {{ id: past, secret: past-secret, expires_at: 2020-12-31 }}\n\
         - {{ id: now, secret: now-secret, not_before: 2020-01-01, expires_at: 2999-12-31 }}\n\
         - {{ id: future, secret: future-secret, not_before: 2999-01-01T00:00:00Z }}\n",
        backend.url()
    ));
    gate.open(ws("/ws").with("X-Api-Key", "now-secret"));
    let past = gate.refuses_before(&backend, ws("/ws").with("X-Api-Key", "past-secret"), 401, "expired_credential");
    assert!(past.head.has("WWW-Authenticate"));
    gate.refuses_before(&backend, ws("/ws").with("X-Api-Key", "future-secret"), 401, "invalid_credential");
}

// ---- where secrets come from

#[test]
fn secrets_come_from_the_environment_and_from_files() {
    let backend = Backend::echo();
    let yaml = format!(
        "upstream: {}\nkeys:\n\
         - {{ id: env, secrets: [ {{ env: TEST_SECRET }} ] }}\n\
         - {{ id: file, secrets: [ {{ file: mounted/secret }} ] }}\n",
        backend.url()
    );
    let gate = config(&yaml).env("TEST_SECRET", "from-env").file("mounted/secret", "from-file\n").start();
    for (secret, id) in [("from-env", "env"), ("from-file", "file")] {
        gate.open(ws("/ws").with("X-Api-Key", secret));
        assert_eq!(backend.last_head().get("X-Auth-Key-Id"), Some(id));
    }
}

#[test]
fn keys_may_stand_in_files_of_their_own() {
    let backend = Backend::echo();
    let yaml = format!(
        "upstream: {}\nkey_files: [ keys.yaml, keys.d/*.yaml ]\nkeys: [ {{ id: inline, secret: s-inline }} ]\n",
        backend.url()
    );
    let gate = config(&yaml)
        .file("keys.yaml", "- { id: list, secret: s-list }\n")
        .file("keys.d/one.yaml", "keys:\n  - { id: one, secret: s-one }\n")
        .file("keys.d/two.yaml", "- { id: two, secret: s-two }\n")
        .file("keys.d/three.txt", "- { id: three, secret: s-three }\n")
        .start();
    for id in ["inline", "list", "one", "two"] {
        gate.open(ws("/ws").with("X-Api-Key", &format!("s-{id}")));
        assert_eq!(backend.last_head().get("X-Auth-Key-Id"), Some(id));
    }
    gate.refuses_before(&backend, ws("/ws").with("X-Api-Key", "s-three"), 401, "invalid_credential");
}

// ---- scope

#[test]
fn a_key_opens_only_the_routes_it_names() {
    let backend = Backend::echo();
    let gate = Gate::start(&format!(
        "keys:\n  - {{ id: scoped, secret: scoped-secret, routes: [ one ] }}\n  - {{ id: all, secret: all-secret }}\n\
         routes:\n  - {{ name: one, path: /one, upstream: \"{0}\" }}\n  - {{ name: two, path: /two, upstream: \"{0}\" }}\n",
        backend.url()
    ));
    gate.open(ws("/one").with("X-Api-Key", "scoped-secret"));
    gate.open(ws("/one").with("X-Api-Key", "all-secret"));
    gate.open(ws("/two").with("X-Api-Key", "all-secret"));
    let answer =
        gate.refuses_before(&backend, ws("/two").with("X-Api-Key", "scoped-secret"), 403, "not_allowed_on_route");
    let line = gate.log_line(|line| line.get("id") == answer.field("request_id"));
    assert_eq!((line.get("key"), line.get("route")), ("scoped".into(), "two".into()));
}

// ---- exactly one

#[test]
fn more_than_one_credential_is_a_conflict_even_if_they_are_equal() {
    let backend = Backend::manual();
    let everywhere = "{ header: X-Api-Key }, bearer, basic, { subprotocol: { pair: x-api-key } }, \
                      { subprotocol: { preset: openai } }, { query: api_key }";
    let gate = Gate::start(&route(&backend, &from(everywhere)));
    let pair = format!("x-api-key, {KEY}");
    let bearer = format!("Bearer {KEY}");
    for request in [
        alice().with("X-Api-Key", KEY),
        alice().with("x-api-key", WRONG),
        ws("/ws").with("X-Api-Key", WRONG).with("X-Api-Key", KEY),
        alice().with("X-Api-Key", ""),
        alice().with("Authorization", &bearer),
        ws("/ws").with("Authorization", &bearer).with("Authorization", &bearer),
        ws("/ws").with("Authorization", &bearer).with("Authorization", &basic("alice", KEY)),
        alice().offer(&pair),
        ws("/ws").with("X-Api-Key", WRONG).offer(&pair),
        ws("/ws").offer(&format!("{pair}, {pair}")),
        ws("/ws").offer(&pair).offer(&pair),
        ws("/ws").offer(&format!("{pair}, openai-insecure-api-key.{KEY}")),
        ws("/ws").offer(&format!("openai-insecure-api-key.{KEY}, openai-insecure-api-key.{KEY}")),
        ws(&format!("/ws?api_key={KEY}")).with("X-Api-Key", KEY),
        ws(&format!("/ws?api_key={KEY}&api_key={KEY}")),
        ws(&format!("/ws?api_key={KEY}&api%5fkey={WRONG}")),
    ] {
        let sent = format!("{request:?}");
        let answer = gate.ask(&request);
        assert_eq!((answer.status(), answer.field("reason")), (400, "conflicting_credentials".into()), "{sent}");
        gate.check_refusal(&answer, 400, "conflicting_credentials");
    }
    gate.refuses_before(&backend, alice().with("X-Api-Key", KEY), 400, "conflicting_credentials");
}

// ---- origins

#[test]
fn a_page_may_connect_only_from_an_allowed_origin() {
    let backend = Backend::echo();
    let origins =
        "allowed_origins: [ \"https://chat.example.com\", \"https://*.apps.example.com\", \"http://127.0.0.1:3000\" ]";
    let gate = Gate::start(&route(&backend, origins));
    gate.open(alice());
    for origin in [
        "https://chat.example.com",
        "https://CHAT.example.com",
        "https://chat.example.com:443",
        "https://a.apps.example.com",
        "http://127.0.0.1:3000",
    ] {
        gate.open(alice().with("Origin", origin));
    }
    for origin in [
        "http://chat.example.com",
        "https://chat.example.com.evil.example",
        "https://evilchat.example.com",
        "https://chatxexample.com",
        "https://chat.example.com:8443",
        "https://chat.example.com/",
        "https://evil@chat.example.com",
        "https://chat.example.com@evil.example",
        "https://apps.example.com",
        "https://a.b.apps.example.com",
        "https://.apps.example.com",
        "https://aapps.example.com",
        "http://127.0.0.1:3001",
        "http://127.0.0.1",
        "null",
        "",
        "https://chat.example.com, https://evil.example",
    ] {
        let answer = gate.refuses_before(&backend, alice().with("Origin", origin), 403, "origin_not_allowed");
        let line = gate.log_line(|line| line.get("id") == answer.field("request_id"));
        assert_eq!(line.get("key"), "alice");
    }
    let twice = alice().with("Origin", "https://chat.example.com").with("Origin", "https://chat.example.com");
    gate.refuses_before(&backend, twice, 403, "origin_not_allowed");
}

#[test]
fn a_browser_that_knows_a_basic_password_is_no_proof_of_who_made_the_page() {
    let (id, key) = ("alice", KEY);
    let with_basic = || ws("/ws").with("Authorization", &basic(id, key));
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, &from("basic")));
    gate.open(with_basic());
    gate.refuses(with_basic().with("Origin", "https://evil.example"), 403, "origin_not_allowed");
    let fields = format!("{}\nallowed_origins: [ \"https://a.example\" ]", from("basic"));
    let gate = Gate::start(&route(&backend, &fields));
    gate.open(with_basic());
    gate.open(with_basic().with("Origin", "https://a.example"));
    gate.refuses(with_basic().with("Origin", "https://evil.example"), 403, "origin_not_allowed");
}

#[test]
fn a_page_without_an_origin_of_its_own_has_no_cookie() {
    let backend = Backend::echo();
    let fields = format!("{}\nallowed_origins: [ \"null\" ]", from("{ cookie: session }, { header: X-Api-Key }"));
    let gate = Gate::start(&route(&backend, &fields));
    let by_cookie = ws("/ws").with("Cookie", &format!("session={KEY}")).with("Origin", "null");
    gate.refuses(by_cookie, 403, "origin_not_allowed");
    gate.open(alice().with("Origin", "null"));
}

#[test]
fn a_cookie_counts_only_together_with_an_allowed_origin() {
    let backend = Backend::echo();
    let fields = format!("allowed_origins: [ \"https://a.example\" ]\n{}", from("{ cookie: session }"));
    let gate = Gate::start(&route(&backend, &fields));
    let with = |cookie: &str| ws("/ws").with("Cookie", cookie);
    let good = [
        format!("session={KEY}"),
        format!("theme=dark; session={KEY}; lang=de"),
        format!("session=\"{KEY}\""),
        format!("theme=dark;session={KEY}"),
    ];
    for cookie in &good {
        gate.open(with(cookie).with("Origin", "https://a.example"));
        assert_hidden(&backend.last_head(), KEY);
        gate.refuses_before(&backend, with(cookie), 403, "origin_not_allowed");
        gate.refuses_before(&backend, with(cookie).with("Origin", "https://evil"), 403, "origin_not_allowed");
    }
    gate.open(with(&good[1]).with("Origin", "https://a.example"));
    assert_eq!(backend.last_head().get("Cookie"), Some("theme=dark; lang=de"), "other cookies pass");
    gate.open(with(&good[0]).with("Origin", "https://a.example"));
    assert!(!backend.last_head().has("Cookie"));

    let origin = |request: Request| request.with("Origin", "https://a.example");
    gate.refuses_before(&backend, origin(with(&format!("Session={KEY}"))), 401, "missing_credential");
    gate.refuses_before(&backend, origin(with(&format!("session={WRONG}"))), 401, "invalid_credential");
    let twice = format!("session={WRONG}; session={KEY}");
    gate.refuses_before(&backend, origin(with(&twice)), 400, "conflicting_credentials");
    gate.refuses_before(&backend, origin(with(&good[0]).with("Cookie", &good[0])), 400, "conflicting_credentials");
}

// ---- hidden or not

#[test]
fn credentials_pass_on_where_the_file_says_so() {
    let backend = Backend::echo();
    let fields = format!(
        "hide_credentials: false\nallowed_origins: [ \"https://a.example\" ]\n{}",
        from("{ header: X-Api-Key }, bearer, { query: api_key }, { cookie: session }")
    );
    let gate = Gate::start(&route(&backend, &fields));
    gate.open(alice());
    assert_eq!(backend.last_head().get("X-Api-Key"), Some(KEY));
    let bearer = format!("Bearer {KEY}");
    gate.open(ws("/ws").with("Authorization", &bearer));
    assert_eq!(backend.last_head().get("Authorization"), Some(&*bearer));
    gate.open(ws(&format!("/ws?a=1&api_key={KEY}")));
    assert_eq!(backend.last_head().target(), format!("/ws?a=1&api_key={KEY}"));
    let cookie = format!("a=b; session={KEY}");
    gate.open(ws("/ws").with("Cookie", &cookie).with("Origin", "https://a.example"));
    assert_eq!(backend.last_head().get("Cookie"), Some(&*cookie));
}

#[test]
fn only_the_credential_is_taken_out_of_the_query() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, &from("{ query: api_key }")));
    for (sent, seen) in [
        (format!("/ws?api_key={KEY}"), "/ws"),
        (format!("/ws?a=1&api_key={KEY}&b=%20&c"), "/ws?a=1&b=%20&c"),
        (format!("/ws?api_key={KEY}&api_keys=x"), "/ws?api_keys=x"),
        (format!("/ws?a&&b=c=d&api%5Fkey={KEY}"), "/ws?a&&b=c=d"),
    ] {
        gate.open(ws(&sent));
        assert_eq!(backend.last_head().target(), seen, "{sent}");
    }
}

#[test]
fn a_header_that_another_route_would_take_as_a_key_passes_here() {
    let backend = Backend::echo();
    let gate = Gate::start(&route(&backend, &from("{ header: X-Api-Key }")));
    gate.open(alice().with("Authorization", "Bearer for-the-service"));
    assert_eq!(backend.last_head().get("Authorization"), Some("Bearer for-the-service"));
}

#[test]
fn no_keys_means_that_nobody_gets_in() {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, "").replace("keys:\n", "keys: []\n#").replace("  - { id", "# "));
    gate.refuses_before(&backend, alice(), 401, "invalid_credential");
}

/// The route for everything is open, those for some paths are not, and all lead to one backend, which decodes.
#[test]
fn a_second_spelling_of_a_guarded_path_is_not_another_path() {
    let backend = Backend::echo();
    let url = backend.url();
    let gate = Gate::start(&format!(
        "keys:\n  - {{ id: alice, secret: {KEY} }}\nroutes:\n  - {{ name: admin, path: /admin, upstream: {url} }}\n  \
         - {{ name: private, path: /private/*, upstream: {url} }}\n  - {{ name: open, auth: none, upstream: {url} }}\n"
    ));
    for path in ["/admin", "/private/x"] {
        gate.refuses_before(&backend, ws(path), 401, "missing_credential");
    }
    let spellings = [
        "/%61dmin",
        "/admi%6E",
        "/admin;x",
        "/;x/admin",
        "/admin%3bx",
        "/%70rivate/x",
        "/private;x/x",
        "/private%3bx/x",
        "/x%2d",
        "/%c0%aeadmin",
    ];
    for path in spellings {
        assert_eq!(gate.ask_status(ws(path)), 400, "{path}");
        gate.refuses_before(&backend, ws(path), 400, "ambiguous_path");
    }
    gate.open(ws("/public/gr%C3%BCn"));
}
