//! wsbouncer: a reverse proxy that authenticates WebSocket upgrades.

pub mod admin;
pub mod admit;
pub mod auth;
pub mod cli;
pub mod config;
pub mod denial;
pub mod end;
pub mod frame;
pub mod handshake;
pub mod head;
pub mod headers;
pub mod limit;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod peer;
pub mod proxy;
pub mod relay;
pub mod reload;
pub mod route;
pub mod rules;
pub mod secret;
pub mod server;
pub mod tunnels;
pub mod upstream;
