//! wsbouncer from outside: the built binary, real sockets, raw bytes, and a foreign WebSocket implementation.

#![expect(unreachable_pub, reason = "to a test binary everything is its own")]
#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod support;

mod admin;
mod auth;
mod cli;
mod drain;
mod exhaustion;
mod explain;
mod failure;
mod faults;
mod first_message;
mod forward;
mod frames;
mod handshake;
mod hostile;
mod kubernetes_reload;
mod limits;
mod logs;
mod metrics;
mod notify;
mod probe;
mod relay;
mod reload;
mod secrets;
mod subprotocol;
mod threats;
mod tickets;
#[cfg(feature = "otlp")]
mod traces;
mod upstream;
