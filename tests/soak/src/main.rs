//! The soak: thousands of tunnels through wsbouncer, with reloads, revocations, dying services and drains all the
//! while; every byte compared with what the other end sent, every end explained, nothing left behind.

mod chaos;
mod client;
mod clock;
mod deflate;
mod drain;
mod judge;
mod proxy;
mod stream;
mod talk;
mod upstream;
mod world;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::SignalKind;
use tokio::sync::watch;

use crate::chaos::{Chaos, new_key};
use crate::judge::Journal;
use crate::proxy::{Costs, Proxy, Rules};
use crate::stream::Rng;
use crate::world::{World, lock};

const UPSTREAMS: usize = 3;
const KEYS: u64 = 20;
/// What the proxy's memory may have grown by from the base line to the end, in KiB: the long run's peak is a higher one
/// than that of the first wave, and the allocator keeps some of it.
const MARGIN: u64 = 12 * 1024;
/// So many processes of the proxy follow one another in the long run, for the same time each.
const LIVES: u64 = 3;
/// The first wave and the last one, in seconds.
const FIRST: u64 = 15;
const LAST: u64 = 10;
/// For the last tunnels to end when no more are opened, and for what they held to be given back.
const PATIENCE: u64 = 120_000;

struct Options {
    seconds: u64,
    tunnels: u64,
    seed: u64,
    pids: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut words = std::env::args().skip(1);
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let mut options = Options { seconds: 60, tunnels: 3000, seed, pids: None };
    while let Some(word) = words.next() {
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).ok_or("a number is missing");
        match &*word {
            "--tunnels" => options.tunnels = number(words.next())?,
            "--seed" => options.seed = number(words.next())?,
            "--pids" => options.pids = words.next().map(PathBuf::from),
            _ => options.seconds = number(Some(word))?,
        }
    }
    Ok(options)
}

/// As many descriptors as we may have, and how many tunnels that is enough for: each takes two here, and two there.
fn room() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20).saturating_sub(400) / 3
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    clock::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    // So that what was started ends with this.
    let told = async {
        let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
        tokio::select! {
            soaked = soak(options) => soaked,
            _ = terminate.recv() => Err(io::Error::other("told to stop")),
            _ = tokio::signal::ctrl_c() => Err(io::Error::other("told to stop")),
        }
    };
    match runtime.and_then(|runtime| runtime.block_on(told)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn soak(mut options: Options) -> io::Result<bool> {
    let room = room();
    if room < options.tunnels {
        println!("{room} tunnels instead of {}: the limit of descriptors is small", options.tunnels);
        options.tunnels = room;
    }
    println!("seed {}, {} tunnels at a time, {} s", options.seed, options.tunnels, options.seconds);
    let seconds = options.seconds;
    let mut soak = Soak::begin(options).await?;
    let (world, proxy) = (soak.world.clone(), soak.proxy.clone());
    // A first wave of as many tunnels: what is made once and kept, and what the allocator keeps of a peak, is in the base
    // line. What the long run leaves beyond it is a leak.
    let before = settled(&proxy, 0).await;
    println!("cold: {} descriptors, Pss {} KiB", before.files, before.memory);
    soak.wave(FIRST, None, End::AsPlanned).await;
    let base = settled(&proxy, before.files).await;
    println!("base line: {} descriptors, Pss {} KiB", base.files, base.memory);
    let chaos = soak.chaos((1..LIVES).rev().map(|life| seconds * 1000 * life / LIVES).collect());
    let peak = soak.wave(seconds, Some(chaos), End::AsPlanned).await;
    let after = settled(&proxy, base.files).await;
    println!("peak: {} descriptors, Pss {} KiB", peak.files, peak.memory);
    println!("after: {} descriptors, Pss {} KiB (margin: {MARGIN} KiB)", after.files, after.memory);
    if !proxy.is_running() {
        world.fault("the proxy has ended".to_owned());
    }
    if before.files != base.files || after.files != base.files {
        world.fault(format!("descriptors: {} cold, {} before, {} after", before.files, base.files, after.files));
    }
    if after.memory > base.memory + MARGIN {
        world.fault(format!("Pss of {} KiB before, {} KiB after", base.memory, after.memory));
    }
    soak.wave(LAST, None, End::Drained).await;
    report(&world, &proxy);
    Ok(world.fault_count.load(SeqCst) == 0)
}

/// How the tunnels of a wave end that are there at its end.
#[derive(PartialEq, Eq)]
enum End {
    AsPlanned,
    /// The proxy is told to stop, and there is no other one after it.
    Drained,
}

struct Soak {
    world: Arc<World>,
    journal: Arc<Journal>,
    proxy: Arc<Proxy>,
    rng: Rng,
    tunnels: u64,
}

impl Soak {
    /// Everything is there, and no tunnel yet.
    async fn begin(options: Options) -> io::Result<Self> {
        let mut rng = Rng::new(options.seed);
        let mut addresses = upstream::reserve(&mut rng, UPSTREAMS + 1)?;
        let listen = addresses.pop().ok_or_else(|| io::Error::other("no address"))?;
        let keys: Vec<_> = (0..KEYS).map(new_key).collect();
        let text =
            Rules { listen, upstreams: &addresses, keys: &keys, disabled: &[], has_guest: true, remark: 0 }.text();
        let journal = Arc::<Journal>::default();
        let binary = std::env::var_os("WSBOUNCER").ok_or_else(|| io::Error::other("WSBOUNCER is not set"))?;
        let proxy = Proxy::start(PathBuf::from(binary), &text, listen, &journal, options.pids).await?;
        keys.iter().for_each(|key| key.in_force.comes());
        let world = Arc::new(World {
            proxy: proxy.address,
            life: Default::default(),
            keys: keys.into(),
            guest: Default::default(),
            upstreams: addresses.into_iter().map(upstream::upstream).collect(),
            tunnels: Default::default(),
            finish: watch::Sender::new(false),
            total: Default::default(),
            faults: Default::default(),
            fault_count: 0.into(),
        });
        for index in 0..UPSTREAMS {
            let world = world.clone();
            tokio::spawn(async move { upstream::live(world, index).await });
        }
        Ok(Self { world, journal, proxy: Arc::new(proxy), rng, tunnels: options.tunnels })
    }

    fn chaos(&mut self, drains: Vec<u64>) -> Chaos {
        Chaos {
            world: self.world.clone(),
            proxy: self.proxy.clone(),
            upstreams: self.world.upstreams.iter().map(|upstream| upstream.address).collect(),
            rng: Rng::new(self.rng.next()),
            disabled: Vec::new(),
            has_guest: true,
            keys_made: KEYS,
            saved: 0,
            drains,
        }
    }

    /// As many tunnels at a time for so long, and until the last of them has ended. What the proxy cost at most.
    async fn wave(&mut self, seconds: u64, chaos: Option<Chaos>, end: End) -> Costs {
        let world = self.world.clone();
        world.finish.send_replace(false);
        let mut slots = tokio::task::JoinSet::new();
        let ramp = (seconds * 1000 / 6).min(10_000);
        for _ in 0..self.tunnels {
            let (begin, rng) = (self.rng.below(ramp), Rng::new(self.rng.next()));
            slots.spawn(client::slot(world.clone(), self.journal.clone(), rng, begin));
        }
        let chaos = chaos.map(|chaos| tokio::spawn(chaos.run()));
        let peak = self.watch(seconds).await;
        if end == End::Drained {
            drain::drain(&world, &self.proxy).await;
        }
        world.finish.send_replace(true);
        if let Some(chaos) = chaos
            && let Err(error) = chaos.await
        {
            world.fault(format!("what goes on all the while has ended: {error}"));
        }
        let all = async {
            while let Some(slot) = slots.join_next().await {
                if let Err(error) = slot {
                    world.fault(format!("a client has ended: {error}"));
                }
            }
        };
        if clock::within(PATIENCE, all).await.is_none() {
            for tunnel in lock(&world.tunnels).values() {
                let (client, server) = (lock(&tunnel.client).clone(), lock(&tunnel.server).clone());
                world.fault(format!("t{} does not end: {:?}, {client:?}, {server:?}", tunnel.number, tunnel.plan));
            }
        }
        peak
    }

    /// Looks at what the proxy costs, for so long, and says it every minute. The most.
    async fn watch(&self, seconds: u64) -> Costs {
        let mut peak = Costs::default();
        let (end, mut said) = (clock::now() + seconds * 1000, clock::now());
        while clock::now() < end {
            clock::sleep(1000).await;
            let costs = self.proxy.costs();
            peak = Costs { files: peak.files.max(costs.files), memory: peak.memory.max(costs.memory) };
            if clock::now() > said + 60_000 {
                said = clock::now();
                let total = &self.world.total;
                println!(
                    "  {} open, {} opened, {} descriptors, Pss {} KiB, {} faults",
                    total.now.load(SeqCst),
                    total.opened.load(SeqCst),
                    costs.files,
                    costs.memory,
                    self.world.fault_count.load(SeqCst)
                );
            }
        }
        peak
    }
}

/// When so many descriptors are open again, or will not be. 0: only after a moment.
async fn settled(proxy: &Proxy, files: u64) -> Costs {
    let back = async {
        while files > 0 && proxy.costs().files != files {
            clock::sleep(100).await;
        }
    };
    let _ = clock::within(PATIENCE, back).await;
    clock::sleep(1000).await;
    proxy.costs()
}

fn report(world: &World, proxy: &Proxy) {
    let total = &world.total;
    let count = |what: &std::sync::atomic::AtomicU64| what.load(SeqCst);
    println!(
        "tunnels: {} opened, {} at a time, {} to a clean end and complete",
        count(&total.opened),
        count(&total.peak),
        count(&total.complete)
    );
    for (way, at) in [("up", 0), ("down", 1)] {
        println!(
            "{way}: {} bytes sent, {} bytes and {} messages received and compared",
            count(&total.bytes[at]),
            count(&total.received[at]),
            count(&total.messages[at])
        );
    }
    let [messages, payload, plain] = total.inflated.each_ref().map(count);
    println!(
        "permessage-deflate: {} tunnels with no context takeover, {} with it; {messages} messages of {payload} bytes \
         inflated to {plain} and compared",
        count(&total.alone),
        count(&total.linked)
    );
    println!("Pings of the proxy: {}; ends whose Close found no place: {}", count(&total.pings), count(&total.no_word));
    println!("reloads: {} good, {} refused", count(&proxy.heard.reloads), count(&proxy.heard.failed_reloads));
    println!("events: {:?}", lock(&total.events));
    println!("ends: {:?}", lock(&total.ends));
    println!("refused: {:?}", lock(&total.refused));
    println!("lines of the log: {:?}", lock(&proxy.heard.lines));
    lines(world, proxy);
    if count(&proxy.heard.leaks) > 0 {
        world.fault(format!("{} lines of the log show a secret", count(&proxy.heard.leaks)));
    }
    let faults = count(&world.fault_count);
    println!("{}", if faults == 0 { "no faults".to_owned() } else { format!("{faults} FAULTS") });
}

/// Each line of the log has something that it comes from: those of tunnels, refusals and reloads are looked at where
/// they are waited for, of the others there are as many as there were reasons.
fn lines(world: &World, proxy: &Proxy) {
    let heard = lock(&proxy.heard.lines).clone();
    let events = lock(&world.total.events).clone();
    let (drains, said) = (world.total.drains.load(SeqCst), |line: &str| heard.get(line).copied().unwrap_or_default());
    let counted = [
        ("ERROR reload failed", events.get("broken file").copied().unwrap_or_default()),
        ("INFO listening", drains),
        ("INFO draining", drains),
        ("INFO drained", drains),
        ("INFO tunnel closed", said("INFO tunnel opened")),
    ];
    for (line, count) in counted.into_iter().filter(|(line, count)| said(line) != *count) {
        world.fault(format!("the log says {line:?} {} times, and {count} times would be right", said(line)));
    }
    // Keys in plain text, and a small limit of descriptors, are warned about.
    let any = [
        "INFO tunnel opened",
        "INFO refused",
        "INFO reloaded",
        "WARN warning",
        "WARN more connections are allowed than there is room for",
    ];
    let is_known = |line: &str| any.contains(&line) || counted.iter().any(|(known, _)| *known == line);
    for line in heard.keys().filter(|line| !is_known(line)) {
        world.fault(format!("nothing explains a line of the log: {line}"));
    }
}
