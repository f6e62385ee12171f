//! The limits of the whole process: as the file says, and what holds where it does not.

/// Limits of the whole process, as they stand in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: Option<u32>,
    pub max_connections_per_address: Option<u32>,
    pub max_pending_per_address: Option<u32>,
    pub max_pending_per_key: Option<u32>,
    pub max_failed_attempts_per_minute: Option<u32>,
    pub max_declined: Option<u32>,
    pub max_declined_per_address: Option<u32>,
    pub max_waiting: Option<u32>,
    pub max_waiting_per_address: Option<u32>,
}

/// The same as numbers that something is compared with.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shares {
    pub(super) connections: u32,
    pub(super) connections_per_address: u32,
    pub(super) pending_per_address: u32,
    pub(super) pending_per_key: u32,
    pub(super) failed_attempts_per_minute: Option<u32>,
    pub(super) declined: u32,
    pub(super) declined_per_address: u32,
    pub(super) waiting: u32,
    pub(super) waiting_per_address: u32,
}

/// Of what there is, one of so many is left to others, and never more than [`MOST_SPARE`].
const SPARE: u32 = 32;
const MOST_SPARE: u32 = 1024;
/// Handshakes under way of one address or key, where the file does not say: a quarter of the room, and never more than
/// thousands of clients behind one address need when all come back at once.
const PENDING: u32 = 4096;
/// ... and never fewer than that, where there is room for them at all.
const PENDING_AT_LEAST: u32 = 64;

impl Limits {
    /// What of them holds where there is room for so many connections.
    pub(super) fn within(&self, room: usize) -> Shares {
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        // Beyond that somebody has to be left to be told no: who waits to be accepted hears nothing.
        let most = room - spare(room);
        let connections = self.max_connections.unwrap_or(most).min(most);
        let pending = (room / 4).clamp(PENDING_AT_LEAST, PENDING).min(room);
        Shares {
            connections,
            connections_per_address: self.max_connections_per_address.unwrap_or(connections - spare(connections)),
            pending_per_address: self.max_pending_per_address.unwrap_or(pending),
            pending_per_key: self.max_pending_per_key.unwrap_or(pending),
            failed_attempts_per_minute: self.max_failed_attempts_per_minute,
            declined: self.max_declined.unwrap_or(u32::MAX),
            declined_per_address: self.max_declined_per_address.unwrap_or(u32::MAX),
            waiting: self.max_waiting.unwrap_or(u32::MAX),
            waiting_per_address: self.max_waiting_per_address.unwrap_or(u32::MAX),
        }
    }
}

impl Shares {
    pub(super) fn as_limits(&self) -> Limits {
        Limits {
            max_connections: Some(self.connections),
            max_connections_per_address: Some(self.connections_per_address),
            max_pending_per_address: Some(self.pending_per_address),
            max_pending_per_key: Some(self.pending_per_key),
            max_failed_attempts_per_minute: self.failed_attempts_per_minute,
            max_declined: Some(self.declined),
            max_declined_per_address: Some(self.declined_per_address),
            max_waiting: Some(self.waiting),
            max_waiting_per_address: Some(self.waiting_per_address),
        }
    }
}

fn spare(of: u32) -> u32 {
    (of / SPARE).min(MOST_SPARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(room: usize, max_connections: Option<u32>) -> (u32, u32, u32) {
        let shares = Limits { max_connections, ..Limits::default() }.within(room);
        assert_eq!(shares.pending_per_address, shares.pending_per_key);
        (shares.connections, shares.connections_per_address, shares.pending_per_address)
    }

    #[test]
    fn what_the_file_leaves_open_follows_from_the_room() {
        assert_eq!(within(1, None), (1, 1, 1));
        assert_eq!(within(11, None), (11, 11, 11));
        // ulimit -n of 1024, 20,000 and 1,048,576, on two cores.
        assert_eq!(within(484, None), (469, 455, 121));
        assert_eq!(within(9_824, None), (9_517, 9_220, 2_456));
        assert_eq!(within(516_000, None), (514_976, 513_952, 4096));
    }

    #[test]
    fn what_the_file_says_holds_as_far_as_there_is_room() {
        assert_eq!(within(9_824, Some(3)), (3, 3, 2_456));
        assert_eq!(within(9_824, Some(50_000)), (9_517, 9_220, 2_456));
        let limits = Limits { max_connections_per_address: Some(7), max_waiting: Some(5), ..Limits::default() };
        let shares = limits.within(9_824);
        assert_eq!((shares.connections_per_address, shares.waiting), (7, 5));
    }
}
