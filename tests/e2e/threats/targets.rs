//! What is asked for: paths with two readings, targets of other forms, and rules that a path must not slip by.

use super::hidden;
use crate::support::client::plain_get;
use crate::support::{Backend, Gate, KEY, Request, alice, stand_echo, ws};

/// `/ws/*` is open to everybody, `/admin/*` is not, and both lead to one service.
struct Doors {
    backend: Backend,
    gate: Gate,
}

impl Doors {
    fn new(http: &str) -> Self {
        let backend = Backend::manual();
        let gate = Gate::start(&format!(
            "keys: [{{ id: alice, secret: {KEY} }}]\nroutes:\n\
             \x20 - {{ name: open, path: /ws/*, auth: none, upstream: \"{0}\", http: {http} }}\n\
             \x20 - {{ name: guarded, path: /admin/*, upstream: \"{0}\", http: {http} }}\n",
            backend.url()
        ));
        Self { backend, gate }
    }

    /// Without a key, none of these targets gets further than us.
    #[track_caller]
    fn closed(&self, targets: &[&str], status: u16, reason: &str) {
        for target in targets {
            for request in [ws("/"), plain_get("/")] {
                let request = request.first_line(&format!("GET {target} HTTP/1.1")).followed_by(hidden());
                self.gate.refuses_before(&self.backend, request, status, reason);
            }
        }
    }

    fn still_opens(mut self) {
        let client = self.gate.send(ws("/ws/x"));
        let mut up = self.backend.next();
        assert_eq!(up.head.target(), "/ws/x");
        up.accept();
        client.opened();
        self.gate.is_well();
    }
}

#[track_caller]
fn closed(targets: &[&str], reason: &str) {
    for http in ["refuse", "forward"] {
        let doors = Doors::new(http);
        doors.closed(targets, 400, reason);
        doors.still_opens();
    }
}

#[test]
fn t085_dots_lead_nowhere() {
    closed(
        &[
            "/ws/../admin/x",
            "/ws/./../admin/x",
            "/ws/%2e%2e/admin/x",
            "/ws/%2E%2e/admin/x",
            "/ws/.%2e/admin/x",
            "/ws/%2e./admin/x",
            "/ws/..",
            "/ws/.",
            "/ws/x/../../admin/x",
            "/../admin/x",
            "/./admin/x",
            "/ws/../../admin/x",
        ],
        "ambiguous_path",
    );
}

#[test]
fn t086_no_separator_is_encoded() {
    closed(
        &[
            "/ws/..%2fadmin/x",
            "/ws/..%2Fadmin/x",
            "/ws%2f..%2fadmin",
            "/ws/%2fadmin",
            "/ws/..%5cadmin/x",
            "/ws/..%5Cadmin/x",
            "/ws/%252e%252e/admin/x",
            "/ws/..%252fadmin/x",
            "/ws/%2525",
        ],
        "ambiguous_path",
    );
    closed(&["/ws/..\\admin\\x", "/ws\\x", "\\ws\\x"], "bad_handshake");
}

#[test]
fn t087_a_path_has_no_parameters() {
    closed(
        &["/ws/..;/admin/x", "/ws;/admin/x", "/ws/x;a=b", "/;/admin/x", "/ws/..%3b/admin/x", "/ws/%3B"],
        "ambiguous_path",
    );
}

#[test]
fn t088_a_target_has_no_fragment() {
    closed(&["/ws/#/../admin/x", "/ws/x#", "/ws/#", "/admin/x#/ws/", "/ws/x?a#b", "#", "/#"], "bad_handshake");
    closed(&["/ws/%23/../admin/x"], "ambiguous_path");
}

#[test]
fn t089_a_query_chooses_no_route() {
    for http in ["refuse", "forward"] {
        let doors = Doors::new(http);
        for target in ["/admin/x?x=/ws/", "/admin/x?/ws/x", "/admin/x?path=/ws/x&open"] {
            doors.gate.refuses_before(&doors.backend, ws(target).followed_by(hidden()), 401, "missing_credential");
        }
        for target in ["/?x=/ws/", "/x?/ws/x", "/admin?/ws/x"] {
            doors.gate.refuses_before(&doors.backend, ws(target).followed_by(hidden()), 404, "no_route");
        }
        doors.still_opens();
    }
}

#[test]
fn t090_a_path_is_compared_byte_by_byte() {
    for http in ["refuse", "forward"] {
        let doors = Doors::new(http);
        doors.closed(&["/WS/x", "/Ws/x", "/ADMIN/x", "/ws", "/admin", "/wsx/y"], 404, "no_route");
        doors.closed(&["/%77s/x", "/w%73/x", "/%61dmin/x", "/ws/%61"], 400, "ambiguous_path");
        doors.still_opens();
    }
}

#[test]
fn t091_a_target_begins_with_a_slash() {
    closed(&["ws/x", "127.0.0.1:80", "gate.test:80", "*", "?x", "ws", ".", "%2fws/x", "@/ws/x"], "bad_handshake");
}

#[test]
fn t092_a_target_names_no_host() {
    closed(
        &[
            "http://evil/ws/x",
            "http://gate.test/ws/x",
            "HTTP://gate.test/ws/x",
            "ws://gate.test/ws/x",
            "https://user:pw@gate.test/ws/x",
            "http:///ws/x",
            "http:/ws/x",
            "file:///etc/passwd",
        ],
        "bad_handshake",
    );
}

#[test]
fn t093_an_empty_segment_is_a_second_reading() {
    closed(&["//evil.example/ws/x", "///ws/x", "/ws//x", "/ws//../admin/x", "//admin/x", "/ws/x//"], "ambiguous_path");
    // Where no rule depends on a path, the service gets what was sent, and decides.
    let (backend, gate) = stand_echo();
    for target in ["//evil.example/ws", "///ws", "/a/../b", "/..;/x", "//"] {
        gate.open(ws(target).with("X-Api-Key", KEY));
        assert_eq!(backend.last_head().target(), target);
    }
}

#[test]
fn t094_no_target_holds_a_control() {
    closed(
        &[
            "/ws/%0d%0aX-Evil:%20y",
            "/ws/%00",
            "/ws/%0a",
            "/ws/%7f",
            "/ws/%c0%ae%c0%ae/admin",
            "/ws/%ff",
            "/ws/%1b",
            "/ws/%c2%85",
        ],
        "ambiguous_path",
    );
    closed(
        &[
            "/ws/x\ty",
            "/ws/x y",
            "/ws/gr\u{fc}n",
            "/ws/\"x",
            "/ws/<x>",
            "/ws/%",
            "/ws/%2",
            "/ws/%zz",
            "/ws/%u002e",
            "/ws/\u{85}",
        ],
        "bad_handshake",
    );
    for http in ["refuse", "forward"] {
        let doors = Doors::new(http);
        let bytes = ws("/ws/MARK").bytes();
        let at = bytes.windows(4).position(|four| four == b"MARK").unwrap();
        for evil in [&b"\xff"[..], b"\0", b"\x01", b"\x7f", b"\r", b"\n", b"\x0b", b"\xc0\xae"] {
            let request = [&bytes[..at], evil, &bytes[at + 4..], &hidden()].concat();
            doors.gate.refuses_before(&doors.backend, request, 400, "bad_handshake");
        }
        doors.still_opens();
    }
}

#[test]
fn t095_a_query_passes_as_it_is_or_not_at_all() {
    let (backend, gate) = stand_echo();
    for query in ["a=1;b=2", "a=1&a=2", "a=%0d%0a", "a[]=1", "=", "&&", "a=%00", "a=/../&b=//", "?", "a=%2e%2e"] {
        let target = format!("/ws?{query}");
        gate.open(alice().first_line(&format!("GET {target} HTTP/1.1")));
        assert_eq!(backend.last_head().target(), target);
    }
    for query in ["%zz", "a=%", "a=%2", "a=\"", "a=<", "a=#", "a=\u{fc}"] {
        let request = alice().first_line(&format!("GET /ws?{query} HTTP/1.1")).followed_by(hidden());
        gate.refuses_before(&backend, request, 400, "bad_handshake");
    }
    let many = "a=1&".repeat(100_000);
    let mut client = gate.connect();
    let _ = client.try_send(alice().first_line(&format!("GET /ws?{many} HTTP/1.1")).bytes());
    assert_eq!(client.read_head().first, "HTTP/1.1 414 URI Too Long");
    gate.open(alice());
}

#[test]
fn t054_no_header_says_what_was_asked_for() {
    for http in ["refuse", "forward"] {
        let doors = Doors::new(http);
        let names = [
            "X-Forwarded-Uri",
            "X-Original-URL",
            "X-Original-URI",
            "X-Rewrite-URL",
            "x-envoy-original-path",
            "X-Forwarded-Path",
            "X-Forwarded-Prefix",
            "X_Original_Url",
            "X-HTTP-Method-Override",
        ];
        let all = |request: Request| names.iter().fold(request, |request, name| request.with(name, "/ws/x"));
        doors.gate.refuses_before(&doors.backend, all(ws("/admin/x")), 401, "missing_credential");
        let client = doors.gate.send(all(ws("/admin/x").with("X-Api-Key", KEY)));
        let mut up = doors.backend.next();
        assert_eq!(up.head.target(), "/admin/x");
        for name in &names[..8] {
            assert!(!up.head.has(name), "{name}: {:?}", up.head);
        }
        up.accept();
        client.opened();
        doors.still_opens();
    }
}
