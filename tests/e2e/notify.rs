//! What a service manager is told: ready when it serves, reloading, stopping. Its socket is played by the test.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::process::Signal;

use crate::support::wait::DEADLINE;
use crate::support::{Backend, Gate, alice, config, small};

const UNUSED: &str = "NOTIFY_SOCKET cannot be used, the service manager is not told";

struct Manager(UnixDatagram);

impl Manager {
    fn new(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    /// The next datagram.
    #[track_caller]
    fn hears(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("nothing was said");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn hears_nothing_more(&self) {
        self.0.set_nonblocking(true).unwrap();
        assert!(self.0.recv(&mut [0; 4096]).is_err());
    }
}

fn start(backend: &Backend, socket: &str) -> Gate {
    config(&small(backend, "drain: { timeout: 7s, spread: 0s }\n")).env("NOTIFY_SOCKET", socket).start()
}

#[test]
fn a_manager_hears_of_every_stage() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("notify");
    let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let backend = Backend::echo();
    let mut gate = start(&backend, path.to_str().unwrap());
    assert_eq!(manager.hears(), "READY=1\nSTATUS=routes: 1, keys: 1");
    gate.open(alice());

    gate.signal(Signal::HUP);
    let heard = [manager.hears(), manager.hears(), manager.hears()];
    assert_eq!(heard, ["RELOADING=1", "STATUS=routes: 1, keys: 1", "READY=1"]);

    // An edit needs no command, and the manager sees no reload; only what there is now.
    let second = small(&backend, "").replace("keys:\n", "keys:\n  - { id: bob, secret: bob-secret-0123456789 }\n");
    gate.edit_config(&format!("{second}drain: {{ timeout: 7s, spread: 0s }}\n"));
    assert_eq!(manager.hears(), "STATUS=routes: 1, keys: 2");
    let good = gate.yaml();
    gate.fails_to_reload(|| gate.replace("wsbouncer.yaml", "upstrem: x\n"));
    assert!(manager.hears().starts_with("STATUS=the configuration has a fault"));
    gate.reloads(|| gate.replace("wsbouncer.yaml", &good));
    assert_eq!(manager.hears(), "STATUS=routes: 1, keys: 2");

    gate.signal(Signal::TERM);
    assert_eq!(manager.hears(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=9000000\nSTATUS=draining");
    assert_eq!(gate.exit().code(), Some(0));
    manager.hears_nothing_more();
}

#[test]
fn its_socket_may_be_an_abstract_name() {
    let name = format!("wsbouncer-test-{}", std::process::id());
    let manager =
        Manager::new(UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap());
    let gate = start(&Backend::echo(), &format!("@{name}"));
    assert!(manager.hears().starts_with("READY=1\n"));
    drop(gate);
}

#[test]
fn a_manager_that_is_not_there_is_no_reason_to_fail() {
    let backend = Backend::echo();
    for socket in ["/nowhere/notify", "@nobody-listens-here", "what?", ""] {
        let gate = start(&backend, socket);
        gate.open(alice());
        assert_eq!(gate.log_lines(|line| line.is(UNUSED)).len(), usize::from(!socket.is_empty()));
    }
}
