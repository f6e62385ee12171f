//! The frame follower against tungstenite. The input: whose frames, how they are cut, and then for each frame its first two
//! bytes, a length and how it is written.

#[path = "../../../frames/foreign.rs"]
mod foreign;

use wsbouncer::frame::{Ahead, Fault, Follower};

use self::foreign::{Outcome, foreign_frames, foreign_read};
use crate::bytes::Input;

struct Stream {
    bytes: Vec<u8>,
    /// Where each frame begins.
    starts: Vec<usize>,
    /// The last one is not whole.
    is_cut: bool,
}

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (masked, cut) = (input.byte() & 1 != 0, usize::from(input.byte()) + 1);
    let stream = stream(&mut input, masked);
    let (mut own, at) = strict_read(&stream.bytes, masked, cut);
    let good = if own.fault.is_some() { at } else { stream.bytes.len() };
    boundaries_agree(&stream.bytes[..good], masked, cut);
    let foreign = foreign_read(&stream.bytes, masked);
    // A message counts with the header of its last frame, which may be all that is there of it.
    own.messages -= u64::from(own.fault.is_none() && stream.is_cut && own.messages == foreign.messages + 1);
    match own.fault {
        // The other one lets these pass, or has stopped to read before.
        Some(Fault::BadLength) => {}
        Some(Fault::AfterClose) if masked => {}
        // It waits for the whole of a frame before it finds fault with it.
        Some(_) if stream.is_cut && stream.starts.last() == Some(&at) => {}
        // With more than one thing wrong, each may name another.
        Some(fault) if foreign.fault.is_some() && faults(&stream, at, masked).len() > 1 => {
            assert!(faults(&stream, at, masked).contains(&fault), "{fault:?}");
            own.fault = foreign.fault;
            assert_eq!(own, foreign);
        }
        _ => assert_eq!(own, foreign),
    }
    assert_eq!(foreign_read(&stream.bytes[..good], masked).fault, None, "nothing wrong before the fault");
    assert!(own.fault.is_none() || stream.starts.contains(&at), "a fault is at the beginning of a frame");
}

/// All that is wrong with the frame that begins here (RFC 6455 sections 5.1 to 5.5).
fn faults(stream: &Stream, at: usize, masked: bool) -> Vec<Fault> {
    let before: Vec<u8> =
        stream.starts.iter().take_while(|start| **start < at).map(|start| stream.bytes[*start]).collect();
    let in_message = before.iter().rev().find(|first| **first & 8 == 0).is_some_and(|first| first & 0x80 == 0);
    let (first, second) = (stream.bytes[at], stream.bytes[at + 1]);
    let (opcode, is_control, is_masked) = (first & 0x0f, first & 8 != 0, second & 0x80 != 0);
    let length = second & 0x7f;
    let checks = [
        (first & 0x70 != 0, Fault::ReservedBits),
        (matches!(opcode, 3..=7 | 11..=15), Fault::ReservedOpcode),
        (is_masked && !masked, Fault::Masked),
        (!is_masked && masked, Fault::NotMasked),
        (is_control && first & 0x80 == 0, Fault::FragmentedControl),
        (is_control && length > 125 || opcode == 8 && length == 1, Fault::ControlLength),
        (opcode == 0 && !in_message, Fault::UnexpectedContinuation),
        (matches!(opcode, 1 | 2) && in_message, Fault::ExpectedContinuation),
        (before.iter().any(|first| first & 0x0f == 8), Fault::AfterClose),
        // Which of these lengths are written too long is not looked at again here.
        (length > 125, Fault::BadLength),
    ];
    checks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, fault)| fault).collect()
}

fn stream(input: &mut Input<'_>, masked: bool) -> Stream {
    let mut stream = Stream { bytes: Vec::new(), starts: Vec::new(), is_cut: false };
    while !input.0.is_empty() && stream.bytes.len() < 300_000 {
        let (first, second, length) = (input.byte(), input.byte(), input.short());
        let length = if first & 8 != 0 { length % 200 } else { length };
        stream.starts.push(stream.bytes.len());
        stream.bytes.push(first);
        // Nearly always as it has to be.
        let bit = if (second & 0x70 == 0x70) != masked { 0x80 } else { 0 };
        match (second & 3, length) {
            (0, 0..126) => stream.bytes.push(bit | length as u8),
            (3, _) => {
                stream.bytes.push(bit | 127);
                stream.bytes.extend((length as u64).to_be_bytes());
            }
            _ => {
                stream.bytes.push(bit | 126);
                stream.bytes.extend((length as u16).to_be_bytes());
            }
        }
        let mask = if bit == 0 { [0; 4] } else { [first, second, 3, 4] };
        if bit != 0 {
            stream.bytes.extend(mask);
        }
        let mut payload: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
        if first & 0x0f == 8 && length >= 2 {
            let code: u16 = [1000, 1001, 3000, 4999][usize::from(second >> 2 & 3)];
            payload[..2].copy_from_slice(&code.to_be_bytes());
        }
        stream.bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
    // The last one may be cut off.
    if input.byte() == 0 && stream.starts.len().is_multiple_of(3) {
        stream.is_cut = true;
        let last = stream.starts.last().copied().unwrap_or(0);
        stream.bytes.truncate(last + (stream.bytes.len() - last) / 2);
    }
    stream
}

fn follower(masked: bool) -> Follower {
    if masked { Follower::from_client(false) } else { Follower::from_upstream(false) }
}

/// Looks before each step, as a guard does; says where a frame was found wrong.
fn strict_read(bytes: &[u8], masked: bool, cut: usize) -> (Outcome, usize) {
    let mut follower = follower(masked).strict(true);
    let (mut at, mut frame_start) = (0, 0);
    let mut fault = None;
    'all: while at < bytes.len() {
        let piece = (at + cut).min(bytes.len());
        while at < piece {
            let input = &bytes[at..piece];
            if follower.is_between() {
                frame_start = at;
            }
            let used = match follower.look_ahead(input) {
                Ahead::Lost => panic!("it was looked before"),
                Ahead::Payload(count) => count,
                Ahead::PartOfHeader => input.len(),
                Ahead::Header(header) if header.fault.is_some() => {
                    fault = header.fault;
                    break 'all;
                }
                Ahead::Header(header) => {
                    assert_eq!(header.bytes(), &bytes[frame_start..frame_start + header.bytes().len()]);
                    header.rest()
                }
            };
            follower.follow(&input[..used]);
            at += used;
        }
    }
    let close = follower.saw_close().then(|| follower.close_code());
    (Outcome { messages: follower.messages(), close, fault }, frame_start)
}

/// Up to the first frame that is wrong, boundaries and messages are the same.
fn boundaries_agree(bytes: &[u8], masked: bool, cut: usize) {
    let ends = foreign_frames(bytes);
    let (mut follower, mut at, mut frame) = (follower(masked), 0, 0);
    while at < bytes.len() {
        let piece = (at + cut).min(bytes.len());
        follower.follow(&bytes[at..piece]);
        at = piece;
        while ends.get(frame).is_some_and(|(end, _)| *end <= at) {
            frame += 1;
        }
        let (end, messages) = if frame == 0 { (0, 0) } else { ends[frame - 1] };
        assert_eq!(follower.is_between(), at == end);
        if at == end {
            assert_eq!(follower.messages(), messages);
        }
        assert!(!follower.is_lost());
    }
}
