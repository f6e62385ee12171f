//! The proxy under test: its file, its process, its log, what it costs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::judge::Journal;
use crate::world::{Key, ROUTES, SHORT_LIFE, lock};

/// What every secret begins with: neither the log nor an upstream may ever show it.
pub(crate) const SECRET: &str = "soak-secret-of-";

pub(crate) fn secret(key: &str) -> String {
    format!("{SECRET}{key}-0123456789")
}

/// What the file says.
pub(crate) struct Rules<'a> {
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
            "# {}\nlisten: 127.0.0.1:0\nadmin: off\ntimeouts: {{ head: 10m }}\nlive_connections:\n  \
             on_route_removed: {{ after: 500ms }}\nkeys:\n",
            self.remark
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
    listen: Mutex<Option<SocketAddr>>,
    pub(crate) warnings: Mutex<BTreeMap<String, u64>>,
    pub(crate) leaks: AtomicU64,
    stop: AtomicBool,
}

pub(crate) struct Proxy {
    child: Child,
    directory: PathBuf,
    pub(crate) heard: Arc<Heard>,
    pub(crate) address: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.heard.stop.store(true, SeqCst);
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Proxy {
    pub(crate) fn start(binary: &Path, text: &str, journal: &Arc<Journal>) -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("wsbouncer-soak-{}", std::process::id()));
        fs::create_dir_all(directory.join("rules"))?;
        let log = directory.join("log");
        save(&directory, text)?;
        // A file: a pipe that nobody reads for a while would hold up whoever writes.
        let child = Command::new(binary)
            .args(["serve", "--log-format", "json", "--config"])
            .arg(directory.join("rules/wsbouncer.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let heard = Arc::<Heard>::default();
        let mut proxy = Self { child, directory, heard: heard.clone(), address: ([127, 0, 0, 1], 0).into() };
        let (lines, journal) = (BufReader::new(File::open(&log)?), journal.clone());
        std::thread::spawn(move || listen(lines, &heard, &journal));
        for _ in 0..600 {
            let listens = *lock(&proxy.heard.listen);
            if let Some(address) = listens {
                proxy.address = address;
                return Ok(proxy);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(io::Error::other(format!("it does not listen: {}", fs::read_to_string(&log).unwrap_or_default())))
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Open descriptors, and memory in KiB (Pss).
    pub(crate) fn costs(&self) -> Costs {
        costs(self.pid())
    }
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
        "reloaded" => drop(heard.reloads.fetch_add(1, SeqCst)),
        "listening" => *lock(&heard.listen) = event["listen"].as_str().and_then(|address| address.parse().ok()),
        _ => {}
    }
    let level = event["level"].as_str().unwrap_or("none");
    if level == "ERROR" && message.contains("reload") {
        heard.failed_reloads.fetch_add(1, SeqCst);
    }
    // Each key is one in plain text, which is warned about.
    if level != "INFO" && message != "warning" {
        *lock(&heard.warnings).entry(format!("{level} {message}")).or_default() += 1;
    }
}
