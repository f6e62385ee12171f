//! What can be wrong with a frame.

/// What is wrong with a frame's header: the closed list of words for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A reserved bit is set, and no extension was agreed on (section 5.2).
    ReservedBits,
    ReservedOpcode,
    /// A client's frame without a mask (section 5.1).
    NotMasked,
    /// A server's frame with one.
    Masked,
    /// A Close, Ping or Pong in fragments (section 5.4).
    FragmentedControl,
    /// A Close, Ping or Pong with over 125 bytes, or a Close with one (sections 5.5 and 5.5.1).
    ControlLength,
    /// A fragment of a message that has not begun.
    UnexpectedContinuation,
    /// A new message inside of one that has not ended.
    ExpectedContinuation,
    /// A length of over 63 bits, or one that is not written in the fewest bytes (section 5.2).
    BadLength,
    /// Anything behind a Close (section 5.5.1).
    AfterClose,
}

impl Fault {
    pub const ALL: [Self; 10] = [
        Self::ReservedBits,
        Self::ReservedOpcode,
        Self::NotMasked,
        Self::Masked,
        Self::FragmentedControl,
        Self::ControlLength,
        Self::UnexpectedContinuation,
        Self::ExpectedContinuation,
        Self::BadLength,
        Self::AfterClose,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved_bits",
            Self::ReservedOpcode => "reserved_opcode",
            Self::NotMasked => "not_masked",
            Self::Masked => "masked",
            Self::FragmentedControl => "fragmented_control",
            Self::ControlLength => "control_length",
            Self::UnexpectedContinuation => "unexpected_continuation",
            Self::ExpectedContinuation => "expected_continuation",
            Self::BadLength => "bad_length",
            Self::AfterClose => "after_close",
        }
    }
}
