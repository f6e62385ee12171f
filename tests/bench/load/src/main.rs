//! `wsload` loads WebSocket proxies and measures what that costs them: CPU time and memory of the proxy's processes, rates,
//! latencies. It is also the service behind the proxies (`echo-server`). Everything stays on loopback.
//!
//! One run is one kind of work against one proxy; it prints one JSON object to stdout and one line for people to stderr.
//! What runs are compared with each other, and in which order, is not decided here.

mod client;
mod drive;
mod frame;
mod histogram;
mod machine;
mod server;
mod work;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::client::Target;
use crate::drive::Plan;

#[derive(Parser)]
#[command(name = "wsload", about = "Loads WebSocket proxies, on loopback, and measures what that costs them")]
struct Command {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// The service behind the proxies: sends every message back; /source sends frames, /sink takes them
    EchoServer {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
    /// Open a connection, close it with a Close frame, again and again
    Handshake {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 64)]
        concurrency: usize,
    },
    /// Be refused with 401 or 403, again and again, on a new connection each time
    Refusal {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 64)]
        concurrency: usize,
        /// Stay on one connection as long as the proxy lets us
        #[arg(long)]
        keepalive: bool,
    },
    /// Messages there and back, the next when the last one has come
    Echo {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        messages: Messages,
        /// Messages under way on each connection
        #[arg(long, default_value_t = 1)]
        inflight: usize,
    },
    /// Messages there and back at a rate that does not depend on the answers; latency counts from when each was due
    Paced {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        messages: Messages,
        /// Messages a second, over all connections
        #[arg(long)]
        rate: f64,
    },
    /// Large frames in one direction or both
    Stream {
        #[command(flatten)]
        common: Common,
        #[arg(long, value_enum)]
        direction: Direction,
        /// Payload of a frame, in bytes
        #[arg(long, default_value_t = 65536)]
        size: usize,
        #[arg(long, default_value_t = 4)]
        connections: usize,
    },
    /// Memory of connections over which nothing passes
    Idle {
        #[command(flatten)]
        target: TargetArgs,
        #[arg(long)]
        connections: usize,
        /// Seconds of silence before memory is read
        #[arg(long, default_value_t = 1.5)]
        hold: f64,
        /// Then one message of this size over each connection, silence, and memory is read again; 0 for none
        #[arg(long, default_value_t = 0)]
        touch: usize,
    },
}

#[derive(Args, Clone)]
struct TargetArgs {
    /// ws://127.0.0.1:PORT/path; other addresses than those of loopback are refused
    #[arg(long, value_parser = Target::parse)]
    url: Target,
    /// A header line for each handshake
    #[arg(long)]
    header: Vec<String>,
    /// What the result is called
    #[arg(long, default_value = "")]
    label: String,
    /// The process whose CPU time and memory is read, with all below it
    #[arg(long)]
    proxy_pid: Option<u32>,
}

#[derive(Args, Clone)]
struct Common {
    #[command(flatten)]
    target: TargetArgs,
    /// The echo server, to tell its CPU time from that of strangers
    #[arg(long)]
    server_pid: Option<u32>,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

#[derive(Args, Clone)]
struct Messages {
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Payload of a message, in bytes
    #[arg(long, default_value_t = 32)]
    size: usize,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Down,
    Up,
    Both,
}

impl TargetArgs {
    fn target(&self) -> Target {
        self.url.with_headers(&self.header)
    }
}

impl Common {
    fn plan(&self, mode: &'static str, unit: &'static str, connections: usize) -> Plan {
        Plan {
            mode,
            unit,
            label: self.target.label.clone(),
            connections,
            threads: self.threads.clamp(1, connections.max(1)),
            seconds: self.seconds,
            warmup: self.warmup,
            proxy: self.target.proxy_pid,
            server: self.server_pid,
        }
    }
}

fn main() -> ExitCode {
    let command = Command::parse();
    machine::allow_many_files();
    match run(command.work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wsload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(work: Work) -> std::io::Result<()> {
    match work {
        Work::EchoServer { listen, threads } => server::run(listen, threads),
        Work::Handshake { common, concurrency } => {
            let plan = common.plan("handshake", "handshake", concurrency);
            work::handshake::run(&plan, &common.target.target())
        }
        Work::Refusal { common, concurrency, keepalive } => {
            let plan = common.plan("refusal", "refusal", concurrency);
            work::refusal::run(&plan, &common.target.target(), keepalive)
        }
        Work::Echo { common, messages, inflight } => {
            let plan = common.plan("echo", "message", messages.connections);
            work::echo::run(&plan, &common.target.target(), messages.size, inflight)
        }
        Work::Paced { common, messages, rate } => {
            let plan = common.plan("paced", "message", messages.connections);
            work::paced::run(&plan, &common.target.target(), messages.size, rate)
        }
        Work::Stream { common, direction, size, connections } => {
            let plan = common.plan("stream", "MB", connections);
            work::stream::run(&plan, &common.target.target(), direction, size)
        }
        Work::Idle { target, connections, hold, touch } => {
            work::idle::run(&target.target(), &target.label, target.proxy_pid, connections, hold, touch)
        }
    }
}
