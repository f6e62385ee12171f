//! The targets, and what each is compared with.

mod answer;
mod config;
mod credential;
mod first_message;
mod frames;
mod handshake;
mod head;
mod origin;
mod route;
mod ticket;

/// Panics where two do not agree.
pub type Target = fn(&[u8]);

/// By the names that `tests/fuzz/run` and the directories of the corpus have.
pub const ALL: [(&str, Target); 10] = [
    ("head", head::run),
    ("handshake", handshake::run),
    ("credential", credential::run),
    ("origin", origin::run),
    ("route", route::run),
    ("answer", answer::run),
    ("frames", frames::run),
    ("first_message", first_message::run),
    ("ticket", ticket::run),
    ("config", config::run),
];
