//! What becomes of requests, in one word each.

/// What became of a request that had a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Opened,
    /// Got a ticket.
    Ticket,
    Refused,
    /// The upstream answered something else than 101.
    PassedThrough,
    /// A plain request went to the upstream.
    Forwarded,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Ticket => "ticket",
            Self::Refused => "refused",
            Self::PassedThrough => "passed_through",
            Self::Forwarded => "forwarded",
        }
    }
}
