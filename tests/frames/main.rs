//! What follows frames against a foreign implementation of the same RFC: random streams, right and wrong ones, cut at
//! random places. `FRAMES=10000000 cargo test --release --test frames` takes more of them, `SEED=...` takes the same again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod foreign;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};

use wsbouncer::end::{Cause, End};
use wsbouncer::frame::{Ahead, Fault, Follower};
use wsbouncer::relay::{Bounds, Control, Pinging, Relay, Start, Watch};
use wsbouncer::traffic::{Flow, Rate, Traffic};

use foreign::{Outcome, foreign_frames, foreign_read};

// ---- chance

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

fn frames_wanted() -> usize {
    std::env::var("FRAMES").map_or(30_000, |text| text.parse().unwrap())
}

/// Shown when a test fails, so that it can be run again.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = std::env::var("SEED").map_or(u64::from(now.subsec_nanos()), |text| text.parse().unwrap());
    println!("SEED={seed}");
    seed
}

// ---- streams

/// Frames of one direction, and what is wrong with the last of them.
#[derive(Debug)]
struct Sent {
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
    wrong: Option<Wrong>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// This one rule is broken.
    Only(Fault),
    /// Any number of rules, perhaps none.
    Anything,
}

/// Up to so many frames, of a client if `masked`. Nobody is wrong unless `may_err`.
fn stream(random: &mut Random, masked: bool, most: usize, may_err: bool) -> Sent {
    let mut sent = Sent { bytes: Vec::new(), frames: Vec::new(), wrong: None };
    let mut in_message = false;
    while sent.frames.len() < most {
        let start = sent.bytes.len();
        if may_err && random.one_in(60) {
            sent.wrong = Some(wrong_frame(random, masked, in_message, &mut sent.bytes));
            sent.frames.push(start..sent.bytes.len());
            break;
        }
        if random.one_in(5) {
            let opcode = if random.one_in(2) { 9 } else { 10 };
            // The length of ours is left to ours.
            let length = *[0, 1, 7, 9, 60, 125].get(random.below(6)).unwrap();
            frame(random, 0x80 | opcode, masked, length, &mut sent.bytes);
        } else if random.one_in(300) {
            goodbye(random, masked, &mut sent.bytes);
            sent.frames.push(start..sent.bytes.len());
            if may_err && random.one_in(2) {
                let start = sent.bytes.len();
                frame(random, 0x82, masked, 5, &mut sent.bytes);
                sent.frames.push(start..sent.bytes.len());
                sent.wrong = Some(Wrong::Only(Fault::AfterClose));
            }
            break;
        } else {
            let is_last = !random.one_in(3);
            let opcode = if in_message { 0 } else { 1 + u8::from(random.one_in(2)) };
            in_message = !is_last;
            let length = length(random);
            frame(random, if is_last { 0x80 } else { 0 } | opcode, masked, length, &mut sent.bytes);
        }
        sent.frames.push(start..sent.bytes.len());
    }
    sent
}

fn length(random: &mut Random) -> usize {
    match random.below(400) {
        0 => 65_530 + random.below(12),
        1..20 => 120 + random.below(12),
        20..40 => random.below(3000),
        40..100 => random.below(2),
        _ => random.below(60),
    }
}

/// A frame with a payload of small letters.
fn frame(random: &mut Random, first: u8, masked: bool, length: usize, into: &mut Vec<u8>) {
    let bytes: Vec<u8> = (0..length).map(|at| b'a' + u8::try_from((at + usize::from(first)) % 26).unwrap()).collect();
    header(first, masked, length, into);
    payload(random, masked, &bytes, into);
}

fn header(first: u8, masked: bool, length: usize, into: &mut Vec<u8>) {
    let bit = if masked { 0x80 } else { 0 };
    into.push(first);
    match length {
        0..126 => into.push(bit | u8::try_from(length).unwrap()),
        126..65_536 => {
            into.push(bit | 126);
            into.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            into.push(bit | 127);
            into.extend((length as u64).to_be_bytes());
        }
    }
}

fn payload(random: &mut Random, masked: bool, bytes: &[u8], into: &mut Vec<u8>) {
    if masked {
        let mask = [random.byte(), random.byte(), random.byte(), random.byte()];
        into.extend(mask);
        into.extend(bytes.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        into.extend(bytes);
    }
}

fn goodbye(random: &mut Random, masked: bool, into: &mut Vec<u8>) {
    let code = *[1000_u16, 1001, 3000, 4999].get(random.below(4)).unwrap();
    let bytes = [&code.to_be_bytes()[..], b"because"].concat();
    let bytes = &bytes[..*[0, 2, 9].get(random.below(3)).unwrap()];
    header(0x88, masked, bytes.len(), into);
    payload(random, masked, bytes, into);
}

fn wrong_frame(random: &mut Random, masked: bool, in_message: bool, into: &mut Vec<u8>) -> Wrong {
    let data = if in_message { 0 } else { 2 };
    let which = random.below(10);
    let mut add = |first, masked, length| frame(random, first, masked, length, into);
    Wrong::Only(match which {
        0 => {
            add(0xa0 | data, masked, 3);
            Fault::ReservedBits
        }
        1 => {
            add(0x83, masked, 3);
            Fault::ReservedOpcode
        }
        2 => {
            add(0x8c, masked, 3);
            Fault::ReservedOpcode
        }
        3 => {
            add(0x80 | data, !masked, 3);
            if masked { Fault::NotMasked } else { Fault::Masked }
        }
        4 => {
            add(0x09, masked, 3);
            Fault::FragmentedControl
        }
        5 => {
            add(0x89, masked, 126);
            Fault::ControlLength
        }
        6 => {
            add(0x88, masked, 1);
            Fault::ControlLength
        }
        7 => {
            add(if in_message { 0x82 } else { 0x80 }, masked, 3);
            if in_message { Fault::ExpectedContinuation } else { Fault::UnexpectedContinuation }
        }
        8 => {
            into.extend([0x80 | data, if masked { 0xfe } else { 126 }, 0, 3]);
            payload(random, masked, b"abc", into);
            Fault::BadLength
        }
        _ => {
            let (first, flip) = (random.byte(), random.one_in(2));
            frame(random, first, masked != flip, 20, into);
            return Wrong::Anything;
        }
    })
}

// ---- the follower

fn follower(masked: bool) -> Follower {
    if masked { Follower::from_client(false) } else { Follower::from_upstream(false) }
}

/// Looks before each step, as a guard does; says where a frame was found wrong.
fn strict_read(random: &mut Random, bytes: &[u8], masked: bool) -> (Outcome, usize) {
    let mut follower = follower(masked).strict(true);
    let (mut at, mut frame_start) = (0, 0);
    let mut fault = None;
    'pieces: while at < bytes.len() {
        let piece = (at + cut(random)).min(bytes.len());
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
                    break 'pieces;
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

fn cut(random: &mut Random) -> usize {
    match random.below(4) {
        0 => 1 + random.below(3),
        1 => 1 + random.below(20),
        2 => 1 + random.below(300),
        _ => 1 + random.below(20_000),
    }
}

#[test]
fn frames_are_what_others_take_them_for() {
    let (seed, wanted) = (seed(), frames_wanted());
    let (mut random, mut seen, mut wrong) = (Random(seed), 0, 0);
    while seen < wanted {
        let masked = random.one_in(2);
        let most = 1 + random.below(200);
        let sent = stream(&mut random, masked, most, true);
        seen += sent.frames.len();
        wrong += usize::from(sent.wrong.is_some());
        boundaries_agree(&mut random, &sent, masked);
        verdicts_agree(&mut random, &sent, masked);
    }
    assert!(wrong > seen / 200, "{wrong} of {seen}");
}

/// Without strictness: up to the first frame that is wrong, boundaries and messages are the same.
fn boundaries_agree(random: &mut Random, sent: &Sent, masked: bool) {
    let good = sent.wrong.map_or(sent.bytes.len(), |_| sent.frames.last().unwrap().start);
    let ends = foreign_frames(&sent.bytes[..good]);
    let (mut follower, mut at, mut frame) = (follower(masked), 0, 0);
    while at < good {
        let piece = (at + cut(random)).min(good);
        follower.follow(&sent.bytes[at..piece]);
        at = piece;
        while ends.get(frame).is_some_and(|(end, _)| *end <= at) {
            frame += 1;
        }
        let (end, messages) = if frame == 0 { (0, 0) } else { ends[frame - 1] };
        assert_eq!(follower.is_between(), at == end, "at {at} of {sent:?}");
        if at == end {
            assert_eq!(follower.messages(), messages, "at {at} of {sent:?}");
        }
        assert!(!follower.is_lost());
    }
    assert_eq!(ends.last().map_or(0, |(end, _)| *end), good, "{sent:?}");
}

fn verdicts_agree(random: &mut Random, sent: &Sent, masked: bool) {
    let (own, at) = strict_read(random, &sent.bytes, masked);
    if let Some(Wrong::Only(fault)) = sent.wrong {
        assert_eq!((own.fault, at), (Some(fault), sent.frames.last().unwrap().start), "{sent:?}");
    }
    match sent.wrong {
        // The foreign one lets these pass, or has stopped to read before.
        Some(Wrong::Only(Fault::BadLength)) => {}
        Some(Wrong::Only(Fault::AfterClose)) if masked => {}
        Some(Wrong::Anything) => {
            let foreign = foreign_read(&sent.bytes, masked);
            // Text that is no UTF-8 and the like is not looked at here; a fault is a fault.
            assert_eq!(own.fault.is_some(), foreign.fault.is_some(), "{own:?} {foreign:?} {sent:?}");
        }
        _ => assert_eq!(own, foreign_read(&sent.bytes, masked), "{sent:?}"),
    }
    if sent.wrong.is_some() {
        let before = &sent.bytes[..sent.frames.last().unwrap().start];
        assert_eq!(foreign_read(before, masked).fault, None);
    }
}

// ---- the relay

/// What is asked of a tunnel.
#[derive(Debug, Clone, Copy)]
struct Case {
    watch: Watch,
    /// It is told to end at some time.
    stops: bool,
}

fn case(random: &mut Random) -> Case {
    let mut watch = Watch { strict: random.one_in(2), ..Watch::default() };
    if random.one_in(2) {
        watch.ping = Some(Pinging { interval: PING_INTERVAL, timeout: Duration::from_secs(60) });
    }
    if random.one_in(3) {
        let messages = Some(Rate { per_second: 20_000, burst: 10, delays: true });
        let bytes = random.one_in(2).then_some(Rate { per_second: 1 << 30, burst: 5000, delays: true });
        let flow = Flow { max_message: Some(1 << 30), messages, bytes };
        watch.traffic = Traffic { up: flow, down: flow };
    }
    Case { watch, stops: random.one_in(2) }
}

const PING_INTERVAL: Duration = Duration::from_millis(1);

/// Who falls silent does so for long enough to be asked, however coarse the clock's ticks are.
const SILENCE: Duration = Duration::from_millis(5);

/// Pongs that the client owes.
type Owed = Arc<Mutex<VecDeque<Vec<u8>>>>;

async fn send(
    mut to: tokio::io::WriteHalf<DuplexStream>,
    sent: Arc<Sent>,
    mut random: Random,
    owed: Option<Owed>,
) -> tokio::io::WriteHalf<DuplexStream> {
    for range in &sent.frames {
        let pong = owed.as_ref().and_then(|owed| owed.lock().unwrap().pop_front());
        let pongs = pong.map(|payload_of_ping| {
            let mut bytes = Vec::new();
            header(0x8a, true, payload_of_ping.len(), &mut bytes);
            payload(&mut random, true, &payload_of_ping, &mut bytes);
            bytes
        });
        for mut bytes in pongs.as_deref().into_iter().chain([&sent.bytes[range.clone()]]) {
            while !bytes.is_empty() {
                let piece = cut(&mut random).min(bytes.len());
                if to.write_all(&bytes[..piece]).await.is_err() {
                    return to;
                }
                bytes = &bytes[piece..];
                if random.one_in(50) {
                    tokio::time::sleep(SILENCE).await;
                } else if random.one_in(3) {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    to
}

/// All that comes, and of the pings a note of each.
async fn receive(mut from: tokio::io::ReadHalf<DuplexStream>, owed: Option<Owed>) -> Vec<u8> {
    let (mut all, mut buffer, mut seen) = (Vec::new(), vec![0; 5000], 0);
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..count]);
        if let Some(owed) = &owed {
            seen = note_pings(&all, seen, owed);
        }
    }
    all
}

const OUR_PING: [u8; 2] = [0x89, 8];

fn note_pings(all: &[u8], from: usize, owed: &Owed) -> usize {
    let mut start = from;
    for (end, _) in foreign_frames(&all[from..]) {
        let frame = &all[start..from + end];
        if frame.starts_with(&OUR_PING) {
            owed.lock().unwrap().push_back(frame[2..].to_vec());
        }
        start = from + end;
    }
    start
}

/// What came of a tunnel.
struct Passed {
    end: End,
    /// It was told to end before it had, whatever that is called.
    was_told: bool,
    got_up: Vec<u8>,
    got_down: Vec<u8>,
}

async fn run(random: &mut Random, case: Case, up: Arc<Sent>, down: Arc<Sent>) -> Passed {
    let size = *[3, 100, 5000, 100_000].get(random.below(4)).unwrap();
    let (client, outside) = duplex(size);
    let (upstream, service) = duplex(size);
    let bounds = Bounds { idle: None, until: None, half_close: Duration::from_secs(60), write_stall: None };
    let start = Start { watch: Some(Box::new(case.watch)), ..Start::default() };
    let control = Arc::new(Control::new(None));
    let mut relay = Relay::new(outside, upstream, &start, &bounds);
    let owed = Owed::default();
    let (client_reads, client_writes) = split(client);
    let (service_reads, service_writes) = split(service);
    let sends_up = send(client_writes, up, Random(random.next()), Some(owed.clone()));
    let sends_down = send(service_writes, down, Random(random.next()), None);
    let stop_after = random.below(3000);
    let stopper = control.clone();
    let both = async {
        let (mut client, mut service) = tokio::join!(sends_up, sends_down);
        // The upstream's end first: it is what a Close may be put behind.
        let _ = service.shutdown().await;
        let _ = client.shutdown().await;
        (client, service)
    };
    let stop = async {
        if case.stops {
            for _ in 0..stop_after {
                tokio::task::yield_now().await;
            }
            stopper.stop(Cause::Drain);
        }
    };
    let ((end, was_told), got_up, got_down, ..) = tokio::join!(
        async {
            let end = poll_fn(|cx| relay.poll(cx, &control)).await;
            drop(relay);
            (end, control.stopped().is_some())
        },
        receive(service_reads, None),
        receive(client_reads, Some(owed)),
        both,
        stop
    );
    Passed { end, was_told, got_up, got_down }
}

/// Takes the frames of ours out: the Pings, and the Close at the end, by its code.
fn without_ours(bytes: &[u8], masked: bool, reason: &str) -> (Vec<u8>, bool) {
    let (mut rest, mut start, mut closed) = (Vec::new(), 0, false);
    for (end, _) in foreign_frames(bytes) {
        let frame = &bytes[start..end];
        start = end;
        assert!(!closed, "something behind our Close");
        let mask = if masked && frame.len() >= 6 { [frame[2], frame[3], frame[4], frame[5]] } else { [0; 4] };
        let payload = &frame[(if masked { 6 } else { 2 }).min(frame.len())..];
        let said: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        // Whatever the end is called: an upstream that ended without a Close was said to be lost.
        let is_reason = |said: &[u8]| said == reason.as_bytes() || said == Cause::UpstreamLost.word().as_bytes();
        if frame[0] == 0x88 && said.get(2..).is_some_and(is_reason) {
            closed = true;
        } else if masked || !frame.starts_with(&OUR_PING) {
            rest.extend_from_slice(frame);
        }
    }
    if !closed {
        rest.extend_from_slice(&bytes[start..]);
    } else {
        assert_eq!(start, bytes.len(), "our Close is the last");
    }
    (rest, closed)
}

/// What came out of one direction is what went in, up to somewhere, and a Close of ours only where frames end.
fn check(sent: &Sent, got: &[u8], masked: bool, outcome: &Passed, case: Case) {
    let end = outcome.end;
    let reason = end.cause.word();
    let (rest, closed) = without_ours(got, masked, reason);
    assert!(sent.bytes.starts_with(&rest), "{end:?} {case:?}: {} of {} bytes", rest.len(), sent.bytes.len());
    let is_boundary = rest.is_empty() || sent.frames.iter().any(|frame| frame.end == rest.len());
    assert!(!closed || is_boundary, "{end:?} {case:?}");
    if let Some(Wrong::Only(fault)) = sent.wrong {
        let at = sent.frames.last().unwrap().start;
        // Faults that hide no boundary are none where messages are only counted.
        let is_odd = fault == Fault::BadLength || fault == Fault::ControlLength && sent.bytes[at] == 0x88;
        let is_watched = case.watch.strict || case.watch.traffic != Traffic::default() && !is_odd;
        assert!(!is_watched || rest.len() <= at, "{end:?} {case:?}: a wrong frame has passed");
    }
    if sent.wrong.is_none() {
        let read = foreign_read(got, masked);
        assert_eq!(read.fault, None, "{end:?} {case:?}");
    }
    if end.cause == Cause::ProtocolError {
        let breach = end.breach.unwrap();
        assert!(breach.fault.is_some());
    } else if !outcome.was_told && sent.wrong.is_none() {
        let has_close = sent.frames.last().is_some_and(|last| sent.bytes[last.start] == 0x88);
        assert!(has_close || rest.len() == sent.bytes.len(), "{end:?} {case:?}: something is lost");
    }
}

#[test]
fn what_is_put_between_never_lands_inside() {
    let (seed, wanted) = (seed(), frames_wanted() / 10);
    let mut random = Random(seed ^ 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (mut seen, mut closes, mut pings) = (0, 0, 0);
    while seen < wanted {
        let case = case(&mut random);
        let (most_up, most_down) = (1 + random.below(100), 1 + random.below(100));
        let may_err = random.one_in(4);
        let up = Arc::new(stream(&mut random, true, most_up, may_err));
        let down = Arc::new(stream(&mut random, false, most_down, may_err));
        seen += up.frames.len() + down.frames.len();
        let outcome = runtime.block_on(run(&mut random, case, up.clone(), down.clone()));
        check(&up, &outcome.got_up, true, &outcome, case);
        check(&down, &outcome.got_down, false, &outcome, case);
        closes += usize::from(without_ours(&outcome.got_down, false, outcome.end.cause.word()).1);
        pings += outcome.got_down.windows(2).filter(|two| *two == OUR_PING).count();
    }
    assert!(closes > 0 && pings > 0, "{closes} closes, {pings} pings");
}
