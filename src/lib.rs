//! wsbouncer: a reverse proxy that authenticates WebSocket upgrades.

pub mod admit;
pub mod auth;
pub mod cli;
pub mod denial;
pub mod headers;
pub mod limit;
pub mod peer;
pub mod route;
pub mod rules;
pub mod secret;
pub mod upstream;
