//! Which limit on a number was reached: one closed list, by the names that stand in the file.

/// A limit that somebody was turned away by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap {
    Connections,
    ConnectionsPerAddress,
    ConnectionsOfRoute,
    ConnectionsOfKey,
    ConnectionsOfKeyOnRoute,
    PendingPerAddress,
    PendingPerKey,
    FailedAttempts,
    Declined,
    DeclinedPerAddress,
    Waiting,
    WaitingPerAddress,
    /// None of the file, but of the system.
    OpenFiles,
    Memory,
}

impl Cap {
    pub const ALL: [Self; 14] = [
        Self::Connections,
        Self::ConnectionsPerAddress,
        Self::ConnectionsOfRoute,
        Self::ConnectionsOfKey,
        Self::ConnectionsOfKeyOnRoute,
        Self::PendingPerAddress,
        Self::PendingPerKey,
        Self::FailedAttempts,
        Self::Declined,
        Self::DeclinedPerAddress,
        Self::Waiting,
        Self::WaitingPerAddress,
        Self::OpenFiles,
        Self::Memory,
    ];

    /// Its label in the metric.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::ConnectionsPerAddress => "max_connections_per_address",
            Self::ConnectionsOfRoute => "route_max_connections",
            Self::ConnectionsOfKey => "key_max_connections",
            Self::ConnectionsOfKeyOnRoute => "route_max_connections_per_key",
            Self::PendingPerAddress => "max_pending_per_address",
            Self::PendingPerKey => "max_pending_per_key",
            Self::FailedAttempts => "max_failed_attempts_per_minute",
            Self::Declined => "max_declined",
            Self::DeclinedPerAddress => "max_declined_per_address",
            Self::Waiting => "max_waiting",
            Self::WaitingPerAddress => "max_waiting_per_address",
            Self::OpenFiles => "open_files",
            Self::Memory => "memory",
        }
    }

    /// What the log says.
    pub fn says(self) -> &'static str {
        match self {
            Self::Connections => "limits.max_connections is reached",
            Self::ConnectionsPerAddress => "limits.max_connections_per_address is reached",
            Self::ConnectionsOfRoute => "the route's max_connections is reached",
            Self::ConnectionsOfKey => "the key's max_connections is reached",
            Self::ConnectionsOfKeyOnRoute => "the route's max_connections_per_key is reached",
            Self::PendingPerAddress => "limits.max_pending_per_address is reached",
            Self::PendingPerKey => "limits.max_pending_per_key is reached",
            Self::FailedAttempts => "limits.max_failed_attempts_per_minute is reached",
            Self::Declined => "limits.max_declined is reached",
            Self::DeclinedPerAddress => "limits.max_declined_per_address is reached",
            Self::Waiting => "limits.max_waiting is reached",
            Self::WaitingPerAddress => "limits.max_waiting_per_address is reached",
            Self::OpenFiles => "the limit of open files is reached",
            Self::Memory => "there is memory for no more connections",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique() {
        let mut words: Vec<_> = Cap::ALL.iter().map(|cap| cap.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Cap::ALL.len());
        assert!(Cap::ALL.iter().enumerate().all(|(at, cap)| *cap as usize == at));
    }
}
