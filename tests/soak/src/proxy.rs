//! The proxy under test: its file, its process, its log, what it costs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::clock;
use crate::judge::Journal;
use crate::world::{Key, ROUTES, SHORT_LIFE, lock};

/// What every secret begins with: neither the log nor an upstream may ever show it.
pub(crate) const SECRET: &str = "soak-secret-of-";

/// A drain ends the tunnels one after the other within this time.
const SPREAD: &str = "3s";
/// For a process to listen, and for one that was told to stop to end.
const PATIENCE: u64 = 120_000;

pub(crate) fn secret(key: &str) -> String {
    format!("{SECRET}{key}-0123456789")
}

/// What the file says.
pub(crate) struct Rules<'a> {
    pub(crate) listen: SocketAddr,
    pub(crate) upstreams: &'a [SocketAddr],
    pub(crate) keys: &'a [Arc<Key>],
    /// Revoked keys that are still there, turned off.
    pub(crate) disabled: &'a [Arc<Key>],
    pub(crate) has_guest: bool,
    pub(crate) remark: u64,
}

impl Rules<'_> {
    /// Nothing is late because this machine is, or because all of it was stopped for a while.
    const TIMEOUTS: &'static str = "connect: 10m, handshake: 10m, half_close: 10m";

    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "# {}\nlisten: {}\nadmin: off\ntimeouts: {{ head: 10m }}\ndrain: {{ timeout: 10m, spread: {SPREAD} }}\n\
             live_connections:\n  on_route_removed: {{ after: 500ms }}\nkeys:\n",
            self.remark, self.listen
        );
        for (keys, field) in [(self.keys, ""), (self.disabled, ", disabled: true")] {
            for key in keys {
                let names: Vec<String> = (0..self.upstreams.len()).map(|at| format!("plain-{at}")).collect();
                let narrow = format!(", routes: [{}]", names.join(", "));
                let routes = if key.narrowed.begun.has_come() { &*narrow } else { "" };
                let _ = writeln!(text, "  - {{ id: {}, secret: {}{routes}{field} }}", key.name, secret(&key.name));
            }
        }
        text.push_str("routes:\n");
        for route in ROUTES.iter().filter(|route| self.has_guest || **route != "guest") {
            for (at, address) in self.upstreams.iter().enumerate() {
                let more = match *route {
                    "watched" => {
                        "ping_interval: 2s, ping_timeout: 10m }\n    strict_frames: true\n    limits: { \
                         max_message_bytes: 64MiB, messages_per_second: 500, bytes_per_second: 256KiB, \
                         byte_burst: 512KiB, on_excess: delay }"
                    }
                    "short" => &format!("max_lifetime: {SHORT_LIFE} }}"),
                    _ => "idle: 1h }",
                };
                let _ = writeln!(
                    text,
                    "  - name: {route}-{at}\n    path: /{route}/{at}\n    upstream: ws://{address}\n    timeouts: {{ {}, \
                     {more}",
                    Self::TIMEOUTS
                );
            }
        }
        text
    }
}

/// What the log has said so far.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) reloads: AtomicU64,
    pub(crate) failed_reloads: AtomicU64,
    pub(crate) drained: AtomicU64,
    listen: Mutex<Option<SocketAddr>>,
    /// Each line, by its level and what it is about.
    pub(crate) lines: Mutex<BTreeMap<String, u64>>,
    pub(crate) leaks: AtomicU64,
    stop: AtomicBool,
}

/// One process after the other, with one file and one log.
pub(crate) struct Proxy {
    binary: PathBuf,
    child: Mutex<Child>,
    directory: PathBuf,
    /// Where the numbers of our processes are to be found.
    pids: Option<PathBuf>,
    pub(crate) heard: Arc<Heard>,
    pub(crate) address: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.heard.stop.store(true, SeqCst);
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Proxy {
    pub(crate) async fn start(
        binary: PathBuf,
        text: &str,
        address: SocketAddr,
        journal: &Arc<Journal>,
        pids: Option<PathBuf>,
    ) -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("wsbouncer-soak-{}", std::process::id()));
        fs::create_dir_all(directory.join("rules"))?;
        save(&directory, text)?;
        let child = Mutex::new(spawn(&binary, &directory)?);
        let heard = Arc::<Heard>::default();
        let proxy = Self { binary, child, directory, pids, heard: heard.clone(), address };
        let (lines, journal) = (BufReader::new(File::open(log(&proxy.directory))?), journal.clone());
        std::thread::spawn(move || listen(lines, &heard, &journal));
        proxy.has_started().await?;
        Ok(proxy)
    }

    /// Another process with the same file, when the one before has ended.
    pub(crate) async fn start_again(&self) -> io::Result<()> {
        lock(&self.heard.listen).take();
        *lock(&self.child) = spawn(&self.binary, &self.directory)?;
        self.has_started().await
    }

    async fn has_started(&self) -> io::Result<()> {
        if let Some(path) = &self.pids {
            fs::write(path, format!("{}\n{}\n", std::process::id(), self.pid()))?;
        }
        let listening = async {
            while lock(&self.heard.listen).is_none() && self.is_running() {
                clock::sleep(20).await;
            }
            clock::sleep(20).await;
        };
        let _ = clock::within(PATIENCE, listening).await;
        let listens = *lock(&self.heard.listen);
        if listens == Some(self.address) {
            return Ok(());
        }
        let said = fs::read_to_string(log(&self.directory)).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        Err(io::Error::other(format!("it listens on {listens:?}, and has said at last: {last:?}")))
    }

    /// SIGTERM. The exit status, or nothing if it does not end.
    pub(crate) async fn stop(&self) -> Option<ExitStatus> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw)?;
        kill_process(pid, Signal::TERM).ok()?;
        let ended = async {
            loop {
                if let Ok(Some(status)) = lock(&self.child).try_wait() {
                    return status;
                }
                clock::sleep(20).await;
            }
        };
        clock::within(PATIENCE, ended).await
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// Open descriptors, and memory in KiB (Pss).
    pub(crate) fn costs(&self) -> Costs {
        costs(self.pid())
    }
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log")
}

fn spawn(binary: &Path, directory: &Path) -> io::Result<Child> {
    // A file: a pipe that nobody reads for a while would hold up whoever writes. The next process goes on with it.
    let log = File::options().create(true).append(true).open(log(directory))?;
    Command::new(binary)
        .args(["serve", "--log-format", "json", "--config"])
        .arg(directory.join("rules/wsbouncer.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Costs {
    pub(crate) files: u64,
    pub(crate) memory: u64,
}

pub(crate) fn costs(pid: u32) -> Costs {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64);
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let memory = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    Costs { files, memory }
}

/// Replaces the file in one step, as editors do.
pub(crate) fn save(directory: &Path, text: &str) -> io::Result<()> {
    let draft = directory.join("draft");
    fs::write(&draft, text)?;
    fs::rename(draft, directory.join("rules/wsbouncer.yaml"))
}

fn listen(mut lines: BufReader<File>, heard: &Heard, journal: &Journal) {
    let mut line = String::new();
    while !heard.stop.load(SeqCst) {
        match lines.read_line(&mut line) {
            Ok(_) if line.ends_with('\n') => {}
            // The rest of the line will come.
            Ok(_) => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(_) => return,
        }
        heard.leaks.fetch_add(u64::from(line.contains(SECRET)), SeqCst);
        take(&line, heard, journal);
        line.clear();
    }
}

fn take(line: &str, heard: &Heard, journal: &Journal) {
    let event: Value = serde_json::from_str(line).unwrap_or_default();
    let message = event["message"].as_str().unwrap_or(line.trim());
    match message {
        "tunnel closed" => journal.note(&event),
        "reloaded" => _ = heard.reloads.fetch_add(1, SeqCst),
        "drained" => _ = heard.drained.fetch_add(1, SeqCst),
        "listening" => *lock(&heard.listen) = event["listen"].as_str().and_then(|address| address.parse().ok()),
        _ => {}
    }
    let level = event["level"].as_str().unwrap_or("none");
    if level == "ERROR" && message == "reload failed" {
        heard.failed_reloads.fetch_add(1, SeqCst);
    }
    *lock(&heard.lines).entry(format!("{level} {message}")).or_default() += 1;
}
