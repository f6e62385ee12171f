//! Why a tunnel or a forwarded request ended, and what its peers are told about it.

use crate::frame::Fault;

/// The closed list of causes: the same word in the log, the metric and the Close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cause {
    /// The client ended the conversation, with a Close frame or by closing its side.
    Client = 1,
    Upstream,
    /// The client's connection broke.
    ClientLost,
    /// The upstream's connection broke, or ended without a Close frame.
    UpstreamLost,
    IdleTimeout,
    MaxLifetime,
    /// One side had ended, and the other one stayed silent.
    HalfCloseTimeout,
    Revoked,
    NotAllowedOnRoute,
    Expired,
    RouteRemoved,
    Drain,
    /// The process was told to stop at once.
    Shutdown,
    /// A forwarded request was answered, to the last byte.
    Complete,
    /// A forwarded request had a larger body than its route takes.
    BodyTooLarge,
    /// The client was asked for a sign of life, and gave none.
    PingTimeout,
    /// More than `max_message_bytes` in one message.
    MessageTooBig,
    /// More messages or bytes than the rate allows.
    RateExceeded,
    /// One side breaks the rules of framing, and the route is strict about it.
    ProtocolError,
    /// An operator has closed this one.
    ClosedByOperator,
    /// One side took nothing of what was there for it.
    WriteStall,
}

impl Cause {
    pub const ALL: [Self; 21] = [
        Self::Client,
        Self::Upstream,
        Self::ClientLost,
        Self::UpstreamLost,
        Self::IdleTimeout,
        Self::MaxLifetime,
        Self::HalfCloseTimeout,
        Self::Revoked,
        Self::NotAllowedOnRoute,
        Self::Expired,
        Self::RouteRemoved,
        Self::Drain,
        Self::Shutdown,
        Self::Complete,
        Self::BodyTooLarge,
        Self::PingTimeout,
        Self::MessageTooBig,
        Self::RateExceeded,
        Self::ProtocolError,
        Self::ClosedByOperator,
        Self::WriteStall,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::ClientLost => "client_lost",
            Self::UpstreamLost => "upstream_lost",
            Self::IdleTimeout => "idle_timeout",
            Self::MaxLifetime => "max_lifetime",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::Revoked => "revoked",
            Self::NotAllowedOnRoute => "not_allowed_on_route",
            Self::Expired => "expired",
            Self::RouteRemoved => "route_removed",
            Self::Drain => "drain",
            Self::Shutdown => "shutdown",
            Self::Complete => "complete",
            Self::BodyTooLarge => "body_too_large",
            Self::PingTimeout => "ping_timeout",
            Self::MessageTooBig => "message_too_big",
            Self::RateExceeded => "rate_exceeded",
            Self::ProtocolError => "protocol_error",
            Self::ClosedByOperator => "closed_by_operator",
            Self::WriteStall => "write_stall",
        }
    }

    /// The code of the Close frame that the client gets from us (RFC 6455 section 7.4; 1012 and 1014 are in IANA's
    /// registry, 4000 and up are private).
    pub fn close_code(self) -> u16 {
        match self {
            Self::ClosedByOperator => 4000,
            Self::Revoked | Self::Expired => 4401,
            Self::NotAllowedOnRoute => 4403,
            Self::RouteRemoved | Self::Drain | Self::Shutdown => 1012,
            Self::UpstreamLost => 1014,
            Self::IdleTimeout | Self::MaxLifetime | Self::HalfCloseTimeout | Self::PingTimeout | Self::WriteStall => {
                1001
            }
            Self::MessageTooBig => 1009,
            Self::RateExceeded => 4429,
            Self::ProtocolError => 1002,
            Self::Client | Self::Upstream | Self::Complete => 1000,
            Self::ClientLost => 1001,
            Self::BodyTooLarge => 1009,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| *cause as u8 == byte)
    }
}

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub cause: Cause,
    /// The code of the first Close frame that was passed on or sent to the client.
    pub code: Option<u16>,
    /// What was too much, wrong or stuck, where that is the cause.
    pub breach: Option<Breach>,
}

impl End {
    pub fn new(cause: Cause, code: Option<u16>) -> Self {
        Self { cause, code, breach: None }
    }
}

/// Which of a tunnel's directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the upstream.
    Up,
    Down,
}

impl Direction {
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Something that must not pass, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breach {
    pub direction: Direction,
    /// What is wrong with the frame, if it is not its size or number.
    pub fault: Option<Fault>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_survives_its_byte() {
        for cause in Cause::ALL {
            assert_eq!(Cause::from_byte(cause as u8), Some(cause));
        }
        assert_eq!(Cause::from_byte(0), None);
    }
}
