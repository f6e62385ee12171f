//! Kinds of work, a file each.

pub(crate) mod echo;
pub(crate) mod handshake;
pub(crate) mod idle;
pub(crate) mod paced;
pub(crate) mod refusal;
pub(crate) mod stream;
