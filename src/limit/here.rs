//! How many are here of an address, and as what.

use std::collections::HashMap;

use super::network::Network;

/// How many of one address are here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Here {
    /// Tunnels, and handshakes of those who may have one.
    pub(super) open: u32,
    /// Connections that are no tunnel yet, or never will be one.
    pub(super) pending: u32,
    /// Those of them that are waited for to send their first message.
    pub(super) waiting: u32,
    /// Those of them that were refused with a Close frame and have not gone yet.
    pub(super) declined: u32,
}

impl Here {
    pub(super) fn count(&mut self, among: Among) -> &mut u32 {
        match among {
            Among::Pending => &mut self.pending,
            Among::Waiting => &mut self.waiting,
            Among::Declined => &mut self.declined,
        }
    }
}

/// Lowers a count of an address, and forgets one of which nobody is left.
pub(super) fn leave(addresses: &mut HashMap<Network, Here>, address: Network, lower: impl FnOnce(&mut Here)) {
    if let Some(here) = addresses.get_mut(&address) {
        lower(here);
        if *here == Here::default() {
            addresses.remove(&address);
        }
    }
}

/// Who has a place and no tunnel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Among {
    Pending,
    Waiting,
    Declined,
}
