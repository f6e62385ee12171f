//! Messages that are sent when they are due, whatever has or has not come back: latency at a load that is given.
//!
//! Messages are due in small bursts, one each millisecond and thread; threads are out of step with each other, connections
//! take turns. Latency counts from the moment at which the burst was due, so that a proxy (or a client thread) that stalls
//! pays for every message that had to wait. A thread waits in `epoll_wait` until its next burst is due or a message comes
//! back, to the nanosecond: no timer wheel, no timer for each message, no spinning that takes the CPU from the proxy.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;
use serde_json::json;

use crate::client::{self, Target, fault};
use crate::drive::{self, Plan, Run, Tally};
use crate::frame;

/// From one burst of a thread to the next.
const BURSTS: Duration = Duration::from_millis(1);
/// How long answers are waited for when nothing more is sent.
const LAST_ANSWERS: Duration = Duration::from_millis(300);
/// Wakes up to see whether the run is over.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

pub(crate) fn run(plan: &Plan, target: &Target, size: usize, rate: f64) -> io::Result<()> {
    if !(1.0..1e9).contains(&rate) {
        return Err(fault("the rate has to be at least one message a second"));
    }
    let run = Run::new();
    let details = json!({ "size": size, "paced_rate": rate });
    drive::measure(plan, &run, details, |thread| {
        let mut tally = Tally::new();
        let mut lateness = crate::histogram::Histogram::new();
        if let Err(error) = Client::open(&run, target, plan.share(thread), size)
            .and_then(|client| client.work(&run, &mut tally, &mut lateness, || Schedule::new(plan, rate, thread)))
        {
            run.error(&error);
        }
        // What the load generator itself was late with: a part of every latency, through a proxy or not.
        tally.extra.insert("late_p99_us", lateness.quantile(0.99));
        Ok(tally)
    })
}

/// When messages are due, and how many.
struct Schedule {
    next: Instant,
    /// Messages of one burst, and the part of one that is left over for the next.
    each: f64,
    left: f64,
}

impl Schedule {
    fn new(plan: &Plan, rate: f64, thread: usize) -> Self {
        let each = rate * BURSTS.as_secs_f64() * plan.share(thread) as f64 / plan.connections as f64;
        let step = BURSTS * u32::try_from(thread).unwrap_or(0) / u32::try_from(plan.threads).unwrap_or(1);
        Self { next: Instant::now() + step, each, left: 0.0 }
    }

    /// The next burst, if it is due: since when, and its messages.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number, rounded down")]
    fn due(&mut self, now: Instant) -> Option<(Instant, usize)> {
        let since = self.next;
        if now < since {
            return None;
        }
        self.next += BURSTS;
        let messages = self.each + self.left;
        self.left = messages.fract();
        Some((since, messages as usize))
    }
}

/// One thread's connections.
struct Client {
    epoll: rustix::fd::OwnedFd,
    connections: Vec<Connection>,
    sent: Vec<u8>,
    wanted: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// When the messages that are under way were due.
    due: VecDeque<Instant>,
    buffer: Vec<u8>,
    have: usize,
}

impl Client {
    fn open(run: &Run, target: &Target, count: usize, size: usize) -> io::Result<Self> {
        let payload = frame::payload(size);
        let wanted = frame::frame(frame::BINARY, &payload, None);
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(count);
        for at in 0..count {
            let stream = run.opened(open(target))?;
            stream.set_nonblocking(true)?;
            epoll::add(&epoll, &stream, EventData::new_u64(at as u64), EventFlags::IN)?;
            let buffer = vec![0; (wanted.len() * 64).max(4096)];
            connections.push(Connection { stream, due: VecDeque::new(), buffer, have: 0 });
        }
        let sent = frame::frame(frame::BINARY, &payload, Some(frame::MASK));
        Ok(Self { epoll, connections, sent, wanted })
    }

    fn work(
        mut self,
        run: &Run,
        tally: &mut Tally,
        lateness: &mut crate::histogram::Histogram,
        schedule: impl FnOnce() -> Schedule,
    ) -> io::Result<()> {
        // Otherwise the kernel may wake us 50 us late, to save power.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        while !run.has_begun() {
            sleep(Duration::from_millis(1));
        }
        let mut schedule = schedule();
        let mut turn = 0;
        let mut measured_from = None;
        while !run.is_over() {
            let now = Instant::now();
            if measured_from.is_none() && run.is_measuring() {
                measured_from = Some(now);
            }
            while let Some((since, messages)) = schedule.due(now) {
                if measured_from.is_some_and(|from| from <= since) {
                    lateness.add(since.elapsed());
                }
                for _ in 0..messages {
                    self.connections[turn].send(&self.sent, since)?;
                    turn = (turn + 1) % self.connections.len();
                }
            }
            let wait = schedule.next.saturating_duration_since(Instant::now()).min(LONGEST_WAIT);
            self.receive(wait, measured_from, tally)?;
        }
        let end = Instant::now();
        while end.elapsed() < LAST_ANSWERS && self.connections.iter().any(|it| !it.due.is_empty()) {
            self.receive(LONGEST_WAIT, measured_from, tally)?;
        }
        // What has not come back has taken at least so long.
        let missing = self.connections.iter().flat_map(|connection| &connection.due);
        for due in missing.filter(|due| measured_from.is_some_and(|from| from <= **due)) {
            tally.add(due.elapsed());
        }
        Ok(())
    }

    fn receive(&mut self, wait: Duration, measured_from: Option<Instant>, tally: &mut Tally) -> io::Result<()> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 64];
        let timeout = Timespec::try_from(wait).unwrap_or_default();
        let count = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            let at = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            let Some(connection) = self.connections.get_mut(at) else { continue };
            connection.receive(&self.wanted, |due| {
                if measured_from.is_some_and(|from| from <= due) {
                    tally.add(due.elapsed());
                }
            })?;
        }
        Ok(())
    }
}

impl Connection {
    fn send(&mut self, message: &[u8], due: Instant) -> io::Result<()> {
        self.due.push_back(due);
        match self.stream.write(message)? {
            count if count == message.len() => Ok(()),
            _ => Err(fault("the proxy takes no more: the rate is too high")),
        }
    }

    fn receive(&mut self, wanted: &[u8], mut arrived: impl FnMut(Instant)) -> io::Result<()> {
        match self.stream.read(&mut self.buffer[self.have..]) {
            Ok(0) => return Err(fault("the connection ended")),
            Ok(count) => self.have += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let whole = self.have - self.have % wanted.len();
        for message in self.buffer[..whole].chunks(wanted.len()) {
            if *message != *wanted {
                return Err(fault("another message came back than was sent"));
            }
            arrived(self.due.pop_front().ok_or_else(|| fault("more came back than was sent"))?);
        }
        self.buffer.copy_within(whole..self.have, 0);
        self.have -= whole;
        Ok(())
    }
}

/// The handshake on a blocking socket.
fn open(target: &Target) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(target.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    client::upgrade_blocking(&mut stream, &target.handshake())?;
    Ok(stream)
}
