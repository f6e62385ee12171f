//! Directory events, as a nudge. Where there are none (network mounts), polling is enough.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

/// What can have changed a file. Not that it was read, which we do ourselves, and not that bytes were written to it: that
/// is what each line of a log does that lies beside the file, and the kernel would wake us for it. A file that is edited
/// in its place is closed in the end, and one that is never closed is found by polling.
const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// The directories that are watched, each with the kernel's number for it.
pub(super) struct Watch {
    events: Option<AsyncFd<OwnedFd>>,
    watched: HashMap<PathBuf, i32>,
}

impl Watch {
    pub(super) fn new() -> Self {
        let events = open().inspect_err(|error| debug!(%error, "no directory events, polling only")).ok();
        Self { events, watched: HashMap::new() }
    }

    /// Directories, not files: a file that is replaced takes its watch with it.
    pub(super) fn follow(&mut self, wanted: impl IntoIterator<Item = PathBuf>) {
        let Some(events) = &self.events else { return };
        let mut gone = std::mem::take(&mut self.watched);
        for directory in wanted {
            let known = gone.remove(&directory);
            if let Some(number) = known.or_else(|| add_watch(events.get_ref(), &directory, EVENTS).ok()) {
                self.watched.insert(directory, number);
            }
        }
        for number in gone.into_values() {
            // Two paths to one directory share its number.
            if !self.watched.values().any(|other| *other == number) {
                let _ = remove_watch(events.get_ref(), number);
            }
        }
    }

    /// Returns when something has happened in one of them, perhaps a while ago.
    pub(super) async fn nudged(&self) {
        let Some(events) = &self.events else { return std::future::pending().await };
        let Ok(mut ready) = events.readable().await else { return std::future::pending().await };
        drain(events.get_ref());
        ready.clear_ready();
    }
}

/// Takes all events, and says whether there were any. What happened, and where, does not matter: content decides.
fn drain(events: &OwnedFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut reader = Reader::new(events, &mut buffer);
    let mut any = false;
    while reader.next().is_ok() {
        any = true;
    }
    any
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; this one cannot"
    )]
    AsyncFd::with_interest(events, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, rename, write};
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_line_in_a_log_is_no_event_and_a_new_file_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let mut log = File::create(path("log")).unwrap();
        let mut watch = Watch::new();
        watch.follow([directory.path().to_owned()]);
        let happened = || drain(watch.events.as_ref().unwrap().get_ref());
        log.write_all(b"a line\n").unwrap();
        assert!(!happened(), "a line in a log");
        write(path("new"), "a").unwrap();
        assert!(happened(), "a new file");
        rename(path("new"), path("file")).unwrap();
        assert!(happened(), "one that takes another's place");
        write(path("file"), "b").unwrap();
        watch.nudged().await;
    }
}
