//! One end of an open tunnel: sends its stream with pauses, compares what comes, ends as planned or as it is told.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};

use crate::clock;
use crate::stream::{Check, Direction, Rng, Stream, close, control};
use crate::world::{Plan, Side, Tunnel, World, lock};

const READ: usize = 16 * 1024;
/// From the first Close on, until the connection has ended.
const PATIENCE: u64 = 60_000;

/// What the reader tells the sender.
#[derive(Default)]
struct Heard {
    /// The other end, or the proxy, has said Close.
    close: watch::Sender<bool>,
    pings: std::sync::Mutex<Vec<Vec<u8>>>,
    ping: Notify,
}

/// What has been counted, whatever becomes of the futures that do.
#[derive(Default)]
struct Sent {
    bytes: u64,
    messages: u64,
}

struct Sender<'a> {
    writer: OwnedWriteHalf,
    sent: &'a std::sync::Mutex<Sent>,
    heard: &'a Heard,
    tunnel: &'a Tunnel,
    world: &'a World,
    own: Direction,
    rng: Rng,
}

impl Sender<'_> {
    /// Each write either was or was not, so that the count is right even if this is dropped.
    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.writer.write(bytes).await?;
            lock(self.sent).bytes += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    async fn answer_pings(&mut self) -> io::Result<()> {
        let pings = std::mem::take(&mut *lock(&self.heard.pings));
        for ping in pings {
            // Neither end's: the proxy asked, and keeps it.
            self.writer.write_all(&control(0x8a, &ping, self.own)).await?;
        }
        Ok(())
    }

    fn is_mine(&self) -> bool {
        self.tunnel.plan.is_of_client() == (self.own == Direction::Up)
    }

    fn is_time(&self) -> bool {
        self.is_mine() && (clock::now() >= self.tunnel.plan_at || self.world.is_finishing())
    }

    async fn pause(&mut self) {
        let pause = match self.rng.below(100) {
            0..20 => return,
            20..70 => self.rng.between(1, 3000),
            _ => self.rng.between(3000, 12_000),
        };
        let mut until = clock::now() + pause;
        if self.is_mine() {
            until = until.min(self.tunnel.plan_at);
        }
        let (mut close, mut finish) = (self.heard.close.subscribe(), self.world.finish.subscribe());
        tokio::select! {
            () = clock::sleep_until(until) => {}
            () = self.heard.ping.notified() => {}
            _ = close.wait_for(|close| *close) => {}
            _ = finish.wait_for(|finish| *finish) => {}
        }
    }

    /// Sends until the end. Whether the connection is to be dropped at once, and how.
    async fn run(&mut self) -> io::Result<Option<Plan>> {
        let mut stream = Stream::new(self.tunnel.seed, self.own, self.tunnel.deflate);
        let mut frame = Vec::new();
        loop {
            self.answer_pings().await?;
            if *self.heard.close.borrow() {
                self.write(&close(1000, self.own)).await?;
                return Ok(None);
            }
            if self.is_time() {
                return self.end(&mut stream, &mut frame).await;
            }
            for _ in 0..self.rng.between(1, 4) {
                let ends_message = stream.next(&mut frame);
                self.write(&frame).await?;
                lock(self.sent).messages += u64::from(ends_message);
                if ends_message {
                    stream.take_plain();
                }
                if *self.heard.close.borrow() {
                    break;
                }
            }
            if frame.capacity() > READ {
                frame = Vec::new();
            }
            if !*self.heard.close.borrow() {
                self.pause().await;
            }
        }
    }

    async fn end(&mut self, stream: &mut Stream, frame: &mut Vec<u8>) -> io::Result<Option<Plan>> {
        let plan = self.tunnel.plan;
        if matches!(plan, Plan::ClientCloses | Plan::UpstreamCloses) {
            self.tunnel.planned.comes();
            self.write(&close(1000, self.own)).await?;
            return Ok(None);
        }
        if self.rng.chance(50) {
            stream.next(frame);
            let part = self.rng.below(frame.len() as u64) as usize;
            self.write(&frame[..part]).await?;
        }
        self.tunnel.planned.comes();
        Ok(Some(plan))
    }
}

async fn read(reader: &mut OwnedReadHalf, check: &mut Check, heard: &Heard, mut rng: Rng) -> Result<(), String> {
    let mut buffer = vec![0; READ];
    // Some read slowly, so that their senders have to wait.
    let is_slow = rng.chance(10);
    loop {
        let count = match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => count,
        };
        check.take(&buffer[..count])?;
        if !check.pings.is_empty() {
            lock(&heard.pings).append(&mut check.pings);
            heard.ping.notify_one();
        }
        if check.close.is_some() {
            heard.close.send_replace(true);
        }
        if is_slow && rng.chance(5) && !*heard.close.borrow() {
            clock::sleep(rng.between(1, 700)).await;
        }
    }
}

/// Speaks from the first byte to the last. `early` came with the handshake; `killed` ends it like a process that dies.
pub(crate) async fn talk(
    world: &World,
    tunnel: &Arc<Tunnel>,
    stream: TcpStream,
    early: &[u8],
    own: Direction,
    killed: impl Future<Output = ()>,
) -> Side {
    let other = if own == Direction::Up { Direction::Down } else { Direction::Up };
    let mut check = Check::new(Stream::new(tunnel.seed, other, tunnel.deflate));
    let (heard, sent) = (Heard::default(), std::sync::Mutex::new(Sent::default()));
    let salt = if own == Direction::Up { 11 } else { 12 };
    let mut rng = Rng::new(tunnel.seed ^ salt);
    let (mut reader, writer) = stream.into_split();
    let mut sender = Sender { writer, sent: &sent, heard: &heard, tunnel, world, own, rng: Rng::new(rng.next()) };
    let mut wrong = check.take(early).err();
    if check.close.is_some() {
        heard.close.send_replace(true);
    }
    if wrong.is_none() {
        let late = async {
            let mut close = heard.close.subscribe();
            let _ = close.wait_for(|close| *close).await;
            clock::sleep(PATIENCE).await;
        };
        let reading = read(&mut reader, &mut check, &heard, Rng::new(rng.next()));
        let end = converse(&mut sender, reading, own, late, killed).await;
        wrong = end.wrong;
        if end.reset {
            let _ = socket2::SockRef::from(sender.writer.as_ref()).set_linger(Some(Duration::ZERO));
        }
    }
    drop((reader, sender));
    let sent = lock(&sent);
    Side {
        sent: sent.bytes,
        sent_messages: sent.messages,
        received: check.bytes,
        received_messages: check.messages,
        pings: check.ping_count,
        inflated: check.inflated,
        inside: check.is_inside(),
        close: check.close,
        wrong,
        at: clock::now(),
    }
}

#[derive(Default)]
struct Ending {
    wrong: Option<String>,
    reset: bool,
}

async fn converse(
    sender: &mut Sender<'_>,
    reading: impl Future<Output = Result<(), String>>,
    own: Direction,
    late: impl Future<Output = ()>,
    killed: impl Future<Output = ()>,
) -> Ending {
    let mut closed = sender.heard.close.subscribe();
    let reset = sender.rng.chance(50);
    let sending = async {
        let ended = sender.run().await;
        match ended {
            Ok(Some(plan)) => Some(matches!(plan, Plan::ClientGoes(true) | Plan::UpstreamGoes(true))),
            // The upstream ends the connection when both have said Close (RFC 6455 section 7.1.1), the client waits.
            Ok(None) if own == Direction::Down => {
                let _ = closed.wait_for(|close| *close).await;
                Some(false)
            }
            // What can no longer be written is no reason not to read what is there.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = killed => Ending { reset, ..Ending::default() },
        read = reading => Ending { wrong: read.err(), ..Ending::default() },
        how = sending => Ending { reset: how == Some(true), ..Ending::default() },
        () = late => Ending { wrong: Some("still open a minute after a Close".to_owned()), reset: true },
    }
}
