//! What this process has of what connections take: descriptors, and memory where a container or a service manager limits
//! it. Whoever has too few of the former is told so by the system; whoever takes too much of the latter is killed, and all
//! tunnels with it.

use std::fs;
use std::path::Path;

use crate::relay;

/// For how many connections there is enough of each.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    pub files: usize,
    pub memory: usize,
}

/// Descriptors that are kept for files, the admin listener and what else is not a tunnel; and for each worker.
const RESERVED: u64 = 24;
const RESERVED_BY_WORKER: u64 = 8;

/// Memory of a connection besides what waits for a side that does not keep up: two sockets, as the kernel counts them
/// (5.5 kB measured), and our part of an idle tunnel (1.3 kB).
const MEMORY_OF_CONNECTION: u64 = 8 * 1024;
/// There is room for so many, however little memory there is.
const AT_LEAST: u64 = 64;
/// Limits beyond that are none: cgroups of the first version have always a number.
const ENDLESS: u64 = 1 << 60;

impl Space {
    pub const ENDLESS: Self = Self { files: usize::MAX, memory: usize::MAX };

    /// What there is for that many workers, besides the rules, which are loaded. Raises the limit of descriptors as far as
    /// it goes.
    pub fn of_this_process(workers: usize) -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let memory = limit_of_memory(Path::new("/sys/fs/cgroup"), &groups);
        let memory = memory.map(|limit| connections_in(limit, memory_taken(), workers));
        Self { files: connections_of(raise_limit_of_files(), workers), memory: memory.unwrap_or(usize::MAX) }
    }
}

fn raise_limit_of_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)
}

/// For how many connections so many descriptors are enough: two each.
fn connections_of(descriptors: u64, workers: usize) -> usize {
    let reserved = RESERVED + workers as u64 * RESERVED_BY_WORKER + descriptors / 64;
    let room = descriptors.saturating_sub(reserved) / 2;
    usize::try_from(room).unwrap_or(usize::MAX).max(1)
}

/// For how many connections so much memory is enough, whatever they do, where so much of it is taken.
fn connections_in(limit: u64, taken: u64, workers: usize) -> usize {
    let rest = limit.saturating_sub(taken + relay::memory_of_all(workers) as u64);
    let room = rest / (MEMORY_OF_CONNECTION + relay::MEMORY_OF_EACH as u64);
    usize::try_from(room.max(AT_LEAST)).unwrap_or(usize::MAX)
}

/// What the program takes, in bytes, and what is loaded now, twice: a reload has the old and the new at the same time
/// (proc_pid_status(5)).
fn memory_taken() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name| {
        let value = |line: &str| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok();
        status.lines().find_map(value).unwrap_or(0)
    };
    (kib("RssFile:") + 2 * kib("RssAnon:")) * 1024
}

/// The least limit of the groups of this process and of those around them (cgroups(7)). `None`: there is none.
fn limit_of_memory(root: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        if controllers.is_empty() {
            least(root, group, "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            least(&root.join("memory"), group, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    limits.min()
}

/// Groups that cannot be seen from here, as those outside of a container, do not count; the outermost that can be is the
/// container's own.
fn least(root: &Path, group: &str, file: &str) -> Option<u64> {
    let group = Path::new(group.trim_start_matches('/'));
    let limits = group.ancestors().filter_map(|group| {
        let text = fs::read_to_string(root.join(group).join(file)).ok()?;
        text.trim().parse().ok().filter(|limit| *limit < ENDLESS)
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_least_limit_around_this_process_counts() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups| limit_of_memory(root, groups);
        assert_eq!(limit("0::/\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/memory.max", "67108864\n");
        assert_eq!(limit("0::/a/b\n"), Some(64 * MIB));
        write("a/b/memory.max", "1048576\n");
        assert_eq!(limit("0::/a/b\n"), Some(MIB));
        // In a container the group is known by its name outside, and seen as the root.
        write("memory.max", "4096\n");
        assert_eq!(limit("0::/kubepods/pod1/c1\n"), Some(4096));
        // The first version.
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("5:cpu,cpuacct:/\n4:memory:/x\n"), None);
        write("memory/x/memory.limit_in_bytes", "8192\n");
        assert_eq!(limit("5:cpu,cpuacct:/\n4:memory:/x\n1:name=systemd:/\n"), Some(8192));
        assert_eq!(limit("nonsense\n\n::\n"), Some(4096));
    }

    #[test]
    fn room_follows_from_what_there_is() {
        assert_eq!(connections_of(20_000, 2), 9_824);
        assert_eq!(connections_of(3, 64), 1);
        // Of 64 MiB, 17 are shared by all and 7 are for program and rules; 24 KiB each.
        assert_eq!(connections_in(64 * MIB, 7 * MIB, 2), 1706);
        assert_eq!(connections_in(256 * MIB, 7 * MIB, 2), 9898);
        assert_eq!(connections_in(16 * MIB, 7 * MIB, 2), 64);
        assert!(memory_taken() > MIB);
    }
}
