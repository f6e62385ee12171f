//! What a gate holds when nobody is there, and that it holds no more than that afterwards.

use super::gate::Gate;
use super::wait::eventually;
use super::wire::Wire;
use super::{alice, ws};

/// A gate at rest.
#[derive(Debug)]
pub struct BaseLine {
    descriptors: usize,
    resident: usize,
    /// Tunnels for which the file has room (`limits.max_connections`).
    room: usize,
}

/// What an allocator keeps of what was given back to it. A leak shows, because faults happen again and again.
const KEPT: usize = 12 << 20;

/// Gauges of what is there.
const GAUGES: [&str; 4] =
    ["wsbouncer_connections_open", "wsbouncer_tunnels_open", "wsbouncer_forwards_open", "wsbouncer_key_tunnels_open"];

impl Gate {
    /// Of a gate whose file has room for so many tunnels, `/ws` being a path where one opens.
    #[track_caller]
    pub fn base_line(&self, room: usize) -> BaseLine {
        // What is there for the first client and stays, such as buffers of a thread.
        self.has_room_for(room);
        self.is_empty();
        BaseLine { descriptors: self.descriptors().len(), resident: self.resident(), room }
    }

    /// Nobody is there, and nothing is held for anybody: no descriptor, no tunnel, no place, no memory.
    #[track_caller]
    pub fn returns_to(&self, base: &BaseLine) {
        self.is_empty();
        self.has_room_for(base.room);
        self.is_empty();
        eventually("its descriptors are closed", || self.descriptors().len() <= base.descriptors);
        eventually("its memory is given back", || self.resident() <= base.resident + KEPT);
    }

    /// Nobody is there.
    #[track_caller]
    pub fn is_empty(&self) {
        for gauge in GAUGES {
            eventually(&format!("{gauge} is 0"), || self.metric(gauge, &[]) == 0.0);
        }
        self.wait_for_open(0);
    }

    /// Exactly so many tunnels fit: every place has come back, and none twice.
    #[track_caller]
    fn has_room_for(&self, room: usize) {
        let tunnels: Vec<Wire> = (0..room).map(|_| self.open(alice())).collect();
        let one_more = self.ask(ws("/ws").with("X-Api-Key", super::KEY));
        assert_eq!((one_more.status(), &*one_more.field("reason")), (503, "at_capacity"), "{}", one_more.text());
        drop(tunnels);
    }
}
