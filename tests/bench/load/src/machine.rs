//! What processes cost: CPU time and memory of one and all below it, and how busy the machine was with others.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// As many file descriptors as we are allowed, and more than that if we may ask for more.
pub(crate) fn allow_many_files() {
    const MANY: Rlimit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    if setrlimit(Resource::Nofile, MANY).is_err() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        // Where even that fails, the run fails by itself, and says on what.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// A process and everything below it, as they are at one moment.
pub(crate) struct Tree(Vec<u32>);

/// CPU time in user and kernel mode, in microseconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

/// In kB.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) rss: f64,
    pub(crate) pss: f64,
}

impl Tree {
    pub(crate) fn of(root: u32) -> Self {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let parent = stat(pid).and_then(|fields| fields.get(1)?.parse().ok());
            if let Some(parent) = parent {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut all = vec![root];
        let mut at = 0;
        while let Some(pid) = all.get(at) {
            all.extend(children.get(pid).into_iter().flatten());
            at += 1;
        }
        Self(all)
    }

    /// So far, with that of children that have ended.
    pub(crate) fn cpu(&self) -> Cpu {
        let mut total = Cpu::default();
        for pid in &self.0 {
            let Some(fields) = stat(*pid) else { continue };
            let ticks = |at: usize| fields.get(at).and_then(|field| field.parse().ok()).unwrap_or(0.0);
            total.user += (ticks(11) + ticks(13)) * tick();
            total.system += (ticks(12) + ticks(14)) * tick();
        }
        total
    }

    pub(crate) fn memory(&self) -> Memory {
        let mut total = Memory::default();
        for pid in &self.0 {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            total.rss += kilobytes(&rollup, "Rss:");
            total.pss += kilobytes(&rollup, "Pss:");
        }
        total
    }
}

impl Cpu {
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { user: self.user - earlier.user, system: self.system - earlier.system }
    }
}

/// The fields of /proc/PID/stat behind the name, which may hold blanks and parentheses: state, parent, ...
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

fn kilobytes(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// CPU time of this process.
pub(crate) fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// What all cores did since the machine started, in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Busy {
    pub(crate) working: f64,
    /// Taken by the hypervisor for other machines.
    pub(crate) stolen: f64,
}

pub(crate) fn busy() -> Busy {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, then idle and waiting, then both kinds of interrupts, then stolen.
    let at = |at: usize| ticks.get(at).copied().unwrap_or(0.0) * tick();
    Busy { working: at(0) + at(1) + at(2) + at(5) + at(6), stolen: at(7) }
}

/// Kernel memory in slabs, where sockets live, in kB.
pub(crate) fn slab() -> f64 {
    kilobytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "Slab:")
}

/// Microseconds in one tick of the clock that /proc counts in.
fn tick() -> f64 {
    1_000_000.0 / rustix::param::clock_ticks_per_second() as f64
}
