//! Believing in an upgrade that did not happen, as far as it is the client's doing, and upgrades to something else.

use super::{Trial, hidden, page};
use crate::support::client::plain_get;
use crate::support::{Backend, Gate, KEY, alice, route, ws};

#[test]
fn t001_a_wrong_version_opens_no_pipe() {
    for trial in Trial::both() {
        for version in ["777", "8", "0", "14", "013", "+13", "13.0", "1 3", "13, 8", "13,13", "websocket", ""] {
            for request in [alice(), ws("/ws")] {
                for behind in [plain_get("/internal").bytes(), hidden()] {
                    let request = request.clone().set("Sec-WebSocket-Version", version).followed_by(behind);
                    let answer = trial.refuses(request, 426, "upgrade_required");
                    assert_eq!(answer.head.get("Sec-WebSocket-Version"), Some("13"));
                }
            }
        }
        let twice = alice().with("Sec-WebSocket-Version", "777").followed_by(hidden());
        trial.refuses(twice, 400, "bad_handshake");
        trial.still_serves();
    }
}

#[test]
fn t004_what_is_no_upgrade_cannot_be_switched() {
    let trial = Trial::of_sockets();
    for request in [plain_get("/ws"), page("GET", "/ws"), alice().without("Upgrade")] {
        trial.refuses(request.followed_by(hidden()), 426, "upgrade_required");
    }
    trial.still_serves();
    // Where it is forwarded, the upstream switches although nobody has asked it to.
    let trial = Trial::of_pages();
    let good = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nleaked";
    for request in [page("GET", "/x"), page("POST", "/x").with("Content-Length", "0")] {
        for answer in [good, "HTTP/1.1 101 X\r\n\r\nleaked", "HTTP/1.1 101 X\r\nUpgrade: h2c\r\n\r\nleaked"] {
            let mut client = trial.gate.send(request.clone().followed_by(hidden()));
            let mut up = trial.backend.next();
            assert!(!up.head.has("Upgrade"), "{:?}", up.head);
            up.send(answer);
            let refusal = client.read_answer();
            trial.gate.check_refusal(&refusal, 502, "upstream_bad_handshake");
            assert!(!refusal.text().contains("leaked"));
            assert_eq!(up.read_to_close().0, b"", "nothing of what came behind");
        }
    }
    trial.still_serves();
}

#[test]
fn t009_no_other_protocol_has_a_tunnel() {
    for trial in Trial::both() {
        for protocol in ["h2c", "TLS/1.0", "websocket2", "xwebsocket", "web socket", "websocket/13", "ANY", "*", ""] {
            for request in [alice().set("Upgrade", protocol), page("GET", "/ws").with("Upgrade", protocol)] {
                let request = request.set("Connection", "Upgrade").followed_by(hidden());
                trial.refuses(request, 426, "upgrade_required");
            }
        }
        trial.still_serves();
    }
}

#[test]
fn t011_http_1_0_upgrades_nothing() {
    for trial in Trial::both() {
        for line in ["GET /ws HTTP/1.0", "GET /ws HTTP/0.9", "GET /ws"] {
            for request in [alice(), alice().set("Connection", "keep-alive, Upgrade"), page("GET", "/ws")] {
                trial.refuses(request.first_line(line).followed_by(hidden()), 400, "bad_handshake");
            }
        }
        trial.still_serves();
    }
}

#[test]
fn t013_nothing_goes_through_connect() {
    for trial in Trial::both() {
        for target in ["a:80", "169.254.169.254:80", "127.0.0.1:22", "/ws", "gate.test:443", "*"] {
            for request in [alice(), page("GET", "/"), plain_get("/")] {
                let request = request.first_line(&format!("CONNECT {target} HTTP/1.1")).followed_by(hidden());
                let answer = trial.refuses(request, 405, "bad_handshake");
                assert_eq!(answer.head.get("Allow"), Some("GET"));
            }
        }
        trial.still_serves();
    }
}

#[test]
fn t023_h2c_is_never_spoken() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for trial in Trial::both() {
        for upgrade in ["h2c", "H2C", "h2", "h2c, h2c", "h2c,foo"] {
            for connection in ["Upgrade, HTTP2-Settings", "upgrade,http2-settings", "Upgrade", "HTTP2-Settings"] {
                for request in [page("GET", "/ws"), plain_get("/ws"), alice().without("Upgrade").without("Connection")]
                {
                    let request = request.with("Upgrade", upgrade).with("Connection", connection);
                    let request = request.with("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA").followed_by(preface);
                    trial.refuses(request, 426, "upgrade_required");
                }
            }
        }
        trial.still_serves();
    }
}

#[test]
fn t024_of_two_protocols_none_is_taken() {
    for trial in Trial::both() {
        for list in ["websocket, h2c", "h2c, websocket", "h2c,WebSocket", "websocket,websocket", "foo, websocket"] {
            trial.refuses(alice().set("Upgrade", list).followed_by(hidden()), 400, "bad_handshake");
        }
        for second in ["h2c", "websocket", "H2C, foo", "foo"] {
            trial.refuses(alice().with("Upgrade", second).followed_by(hidden()), 400, "bad_handshake");
            let first = alice().without("Upgrade").with("Upgrade", second).with("upgrade", "websocket");
            // Where neither of the first two is ours, it is another protocol that is asked for.
            let (status, reason) =
                if second == "H2C, foo" { (426, "upgrade_required") } else { (400, "bad_handshake") };
            trial.refuses(first.followed_by(hidden()), status, reason);
        }
        trial.still_serves();
    }
}

#[test]
fn t025_settings_of_http2_go_nowhere() {
    for trial in Trial::both() {
        let settings = ["HTTP2-Settings", "http2-settings", "HTTP2_Settings", "Http2.Settings"];
        let requests = settings.map(|name| alice().with(name, "AAMAAABk"));
        let opened = requests.len();
        for request in requests {
            let client = trial.gate.send(request);
            let mut up = trial.backend.next();
            assert!(!up.head.text().contains("AAMAAABk"), "{:?}", up.head);
            up.accept();
            client.opened();
        }
        trial.still_serves_after(opened);
    }
}

#[test]
fn t026_http2_by_prior_knowledge_is_refused_at_once() {
    for trial in Trial::both() {
        let frames = b"\0\0\0\x04\0\0\0\0\0\0\0\x04\x08\0\0\0\0\0\0\x01\0\0".as_slice();
        for preface in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * HTTP/2.0\r\nHost: gate.test\r\n\r\nSM\r\n\r\n"] {
            trial.refuses([preface.as_bytes(), frames].concat(), 400, "bad_handshake");
        }
        trial.refuses(page("GET", "/").first_line("PRI / HTTP/2.0").followed_by(frames), 400, "bad_handshake");
        trial.still_serves();
    }
}

#[test]
fn t029_connection_is_a_list_of_words() {
    for trial in Trial::both() {
        for connection in [
            "no-upgrade, xupgrade",
            "xupgrade",
            "upgrade2",
            "up grade",
            "\"upgrade\"",
            "upgrade;q=1",
            "-upgrade",
            "not upgrade",
            "upgrade/1",
            "close",
            "keep-alive",
            "",
        ] {
            trial.refuses(alice().set("Connection", connection).followed_by(hidden()), 400, "bad_handshake");
        }
        trial.still_serves();
    }
}

/// The route's own upstream is all there is, whatever the request calls itself.
#[test]
fn t096_the_request_does_not_choose_who_is_dialled() {
    let (backend, other) = (Backend::manual(), Backend::manual());
    for http in ["refuse", "forward"] {
        let gate = Gate::start(&route(&backend, &format!("http: {http}")));
        let address = other.address();
        for host in ["169.254.169.254", "169.254.169.254:80", "localhost", "[::1]:6379", &*address] {
            let request = alice().host(host).with("X-Forwarded-Host", &address).with("X-Original-Host", &address);
            let client = gate.send(request.followed_by("early"));
            let mut up = backend.next();
            assert_eq!((up.head.get("Host"), up.head.get("X-Forwarded-Host")), (Some(host), Some(host)));
            up.accept();
            client.opened();
            if http == "forward" {
                let mut client = gate.send(page("GET", "/x").host(host));
                let mut up = backend.next();
                assert_eq!(up.head.get("Host"), Some(host));
                up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                assert_eq!(client.read_answer().text(), "ok");
            }
        }
        let target = format!("http://{address}/ws");
        let absolute = alice().first_line(&format!("GET {target} HTTP/1.1"));
        gate.refuses_before(&backend, absolute, 400, "bad_handshake");
    }
    assert_eq!(other.accepted(), 0);
    assert!(!backend.heads().iter().any(|head| head.text().contains(KEY)));
}
