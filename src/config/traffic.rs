//! Limits of what passes through a tunnel, as they stand in a route or a key.

use super::fields::Fields;
use super::problem::{Faults, Wrong};
use super::value::{self, Flow, Rate, Traffic};

/// Reads them from the `limits` of a route or a key.
pub fn read(fields: &Fields<'_, '_>, faults: &mut Faults) -> Traffic {
    let size = |fields: &Fields<'_, '_>, name, faults: &mut Faults| fields.parsed(name, value::some_size, faults);
    let count = |fields: &Fields<'_, '_>, name, faults: &mut Faults| fields.count(name, faults).map(u64::from);
    let max_message = fields.each_way("max_message_bytes", faults, size);
    let per_second =
        (fields.each_way("messages_per_second", faults, count), fields.each_way("bytes_per_second", faults, size));
    let burst = (fields.each_way("message_burst", faults, count), fields.each_way("byte_burst", faults, size));
    let delays = fields.parsed_or_default("on_excess", value::on_excess, faults);
    if !fields.has("messages_per_second") && !fields.has("bytes_per_second") && fields.has("on_excess") {
        let wrong = Wrong::new("there is no rate here that could be exceeded");
        let hint = "add messages_per_second or bytes_per_second; max_message_bytes always closes, with 1009";
        faults.value(&fields.at.field("on_excess"), wrong.hint(hint));
    }
    let messages = rates(fields, ["messages_per_second", "message_burst"], per_second.0, burst.0, delays, faults);
    let bytes = rates(fields, ["bytes_per_second", "byte_burst"], per_second.1, burst.1, delays, faults);
    let flow = |way: usize| Flow { max_message: max_message[way], messages: messages[way], bytes: bytes[way] };
    Traffic { up: flow(0), down: flow(1) }
}

/// A rate for each direction that has one. Without a burst it is that of one second.
fn rates(
    fields: &Fields<'_, '_>,
    [rate, burst]: [&'static str; 2],
    per_second: [Option<u64>; 2],
    bursts: [Option<u64>; 2],
    delays: bool,
    faults: &mut Faults,
) -> [Option<Rate>; 2] {
    let is_alone = |way: usize| bursts[way].is_some() && per_second[way].is_none();
    if !fields.has(rate) && fields.has(burst) {
        let wrong = Wrong::new(format!("a burst needs a rate that fills it: {rate}"));
        faults.value(&fields.at.field(burst), wrong.hint(format!("add {rate}, or leave {burst} out")));
    } else if fields.has(burst) && fields.is_each_way(burst) && (is_alone(0) || is_alone(1)) && faults.is_empty() {
        let wrong = Wrong::new(format!("a burst needs a rate that fills it: {rate} has none in this direction"));
        faults.value(&fields.at.field(burst), wrong.hint(format!("add the direction to {rate}, or leave it out here")));
    }
    [0, 1].map(|way| {
        per_second[way].map(|per_second| Rate { per_second, burst: bursts[way].unwrap_or(per_second), delays })
    })
}
