//! wsbouncer: a reverse proxy that authenticates WebSocket upgrades. This is the map of the house; the README says what
//! the program is for and how it is run.
//!
//! # The idea
//!
//! A request walks through a few steps, written as lines of one function, [`proxy::Proxy::handle`]'s `open`. The steps
//! that guard access produce a value that the next one needs, so that none can be skipped: a [`auth::Credential`] becomes
//! a [`auth::Principal`], that an [`admit::Admission`], that a [`tunnels::Seat`], and only who holds a seat can
//! [`upstream::Upstream::open`] a connection. Everything a request needs to know is in one immutable [`rules::Rules`],
//! swapped whole on [`reload`]. What outlives the request is a tunnel, and every tunnel is counted, bounded and drainable.
//!
//! # Words
//!
//! *Downstream* is the client's side, *upstream* the protected service. A *route* is host and path to verifier, conditions
//! and upstream. A *credential* is what a caller shows, a *principal* who it is, an *admission* the proof that it may open
//! this tunnel now, a *permit* one unit of a limit. A *tunnel* is the open pair of connections, the *relay* carries its
//! bytes. A [`forward`]ed request is a plain one that
//! was let through. A [`denial`] is why an upgrade was refused, an [`end`] why a tunnel stopped. *Drain*: no new work, finish the old.
//!
//! # Who knows whom
//!
//! ```text
//! process   main -> server -> { worker, reload, admin }, cli
//! flow      worker -> listener -> desk -> connection -> proxy -> { relay, forward }
//! domain    proxy -> route, handshake, headers, auth, admit (limit), upstream
//! facts     everyone -> answer, socket (queue), peer, random, denial (cap), end, secret, clock, fields, traffic,
//!           trace_context, spans, rules, tunnels, log, metrics, sync, notify_socket, write_last
//! config    config -> constructors of the domain; the domain never knows config
//! ```
//!
//! A test, `tests/house.rs`, holds the sources to it.
//!
//! # A connection, step by step
//!
//! | step | where | bounded by |
//! | --- | --- | --- |
//! | accept, hand to a thread | [`listener`], [`desk`], [`worker`] | descriptors; errors never end the loop |
//! | a place among those without a tunnel | [`connection`], [`limit`] | so many of one address |
//! | raw head read, vetted, parsed | [`head`] | deadline, 16 KiB, 64 lines |
//! | caller, route | [`peer`], [`route`] | pure |
//! | is it an upgrade? | [`handshake`] | pure |
//! | credential out, verified | [`auth`] | pure |
//! | origin, scope, limits | [`admit`], [`limit`] | pure |
//! | on the list, asked once more | [`tunnels`], [`rules`] | |
//! | dial, our handshake, its answer checked | [`headers`], [`upstream`], [`handshake`] | `connect`, `handshake` |
//! | bytes both ways, frames followed | [`relay`], [`frame`], [`traffic`] | `idle`, `write_stall`, `max_lifetime`, sizes and rates, dates, drain |
//! | or a plain request and its answer, where the route says `http: forward` | [`forward`] | the same |
//! | one line, counters, permits back | [`log`], [`metrics`] | |

pub mod cli;
pub mod server;

pub mod admin;
pub mod connection;
pub mod desk;
pub mod listener;
pub mod reload;
pub mod worker;

pub mod first_message;
pub mod forward;
pub mod head;
pub mod knock;
pub mod porch;
pub mod proxy;
pub mod rehearsal;
pub mod relay;

pub mod admit;
pub mod auth;
pub mod decline;
pub mod handshake;
pub mod headers;
pub mod issue;
pub mod limit;
pub mod route;
pub mod template;
pub mod upstream;

pub mod answer;
pub mod cap;
pub mod clock;
pub mod denial;
pub mod end;
pub mod fields;
pub mod frame;
pub mod log;
pub mod metrics;
pub mod notify_socket;
pub mod peer;
pub mod queue;
pub mod random;
pub mod rules;
pub mod secret;
pub mod socket;
pub mod spans;
pub mod sync;
pub mod trace_context;
pub mod traffic;
pub mod trail;
pub mod tunnels;
pub mod usage;
pub mod write_last;

pub mod config;

#[cfg(all(test, shuttle))]
#[path = "../tests/concurrency/models.rs"]
mod models;
