//! What the tests stand on: the built binary, a scripted upstream, a raw client, and waiting for conditions.

pub mod backend;
pub mod base;
pub mod client;
pub mod frames;
pub mod gate;
pub mod head;
pub mod log;
pub mod metrics;
pub mod setup;
pub mod wait;
pub mod wire;

pub use backend::{Backend, Conn};
pub use client::{Request, ws};
pub use gate::Gate;
pub use setup::config;
pub use wait::{eventually, pause};
pub use wire::Wire;

/// Alice's secret in almost every test.
pub const KEY: &str = "alice-secret-0123456789";

/// A valid handshake for `/ws` with Alice's key in its usual header.
pub fn alice() -> Request {
    ws("/ws").with("X-Api-Key", KEY)
}

/// The smallest file: one route for everything, Alice, and what the test adds.
pub fn small(backend: &Backend, more: &str) -> String {
    format!("upstream: {}\nkeys:\n  - {{ id: alice, secret: {KEY} }}\n{more}", backend.url())
}

/// A gate with the smallest file before an upstream that the test drives by hand.
pub fn stand() -> (Backend, Gate) {
    let backend = Backend::manual();
    let gate = Gate::start(&small(&backend, ""));
    (backend, gate)
}

/// A gate with the smallest file before an upstream that echoes bytes.
pub fn stand_echo() -> (Backend, Gate) {
    let backend = Backend::echo();
    let gate = Gate::start(&small(&backend, ""));
    (backend, gate)
}

/// One route named `main` that takes everything, with these fields besides `upstream` and Alice as the only key.
pub fn route(backend: &Backend, fields: &str) -> String {
    let fields: String = fields.trim().lines().map(|line| format!("    {}\n", line.trim_end())).collect();
    format!(
        "keys:\n  - {{ id: alice, secret: {KEY}, attributes: {{ tenant: acme }} }}\nroutes:\n  - name: main\n    upstream: {}\n{fields}",
        backend.url()
    )
}
