//! Standard error as a place that may be full, or closed, or a pipe that nobody reads: then lines are lost, and counted,
//! and tunnels wait for none of them longer than `PATIENCE`.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};

/// What a pipe takes whole or not at all (`PIPE_BUF`, pipe(7)), so that a write of it never waits where there is room.
const PIECE: usize = 4096;
/// How long a reader that has kept up so far is waited for: a burst of lines may be faster than it, and a busy machine lets
/// it have its turn late. One that has stopped is waited for once.
const PATIENCE: Duration = Duration::from_millis(500);

static LOST: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicU64 = AtomicU64::new(0);
/// The last lines were lost: to say so now would be one more.
static IS_LOSING: AtomicBool = AtomicBool::new(false);
/// Nobody reads. Until somebody does, nobody waits for that.
static IS_STUCK: AtomicBool = AtomicBool::new(false);
/// The last thing written was a piece of a line.
static IS_TORN: AtomicBool = AtomicBool::new(false);

/// Whether a write may wait for somebody who reads.
static MAY_WAIT: LazyLock<bool> = LazyLock::new(|| {
    let kind = fstat(io::stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    matches!(kind, Ok(FileType::Fifo | FileType::Socket)) || io::stderr().is_terminal()
});

/// Lines that could not be written, since the start.
pub fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// How many of them the log has not been told of, once it takes lines again. Whoever asks is to tell it.
pub(super) fn lost_and_not_told() -> u64 {
    if IS_LOSING.load(Relaxed) {
        return 0;
    }
    let lost = lost();
    lost.saturating_sub(TOLD.swap(lost, Relaxed))
}

/// Writes lines, or loses what of them cannot be written now.
pub(super) fn write(lines: &[u8]) {
    let mut stderr = io::stderr().lock();
    let mut sent = 0;
    if !IS_TORN.load(Relaxed) || write_some(&mut stderr, b"\n") > 0 {
        IS_TORN.store(false, Relaxed);
        while sent < lines.len() {
            let count = write_some(&mut stderr, piece_of(&lines[sent..]));
            if count == 0 {
                break;
            }
            sent += count;
        }
    }
    let (written, unsent) = lines.split_at(sent);
    IS_LOSING.store(!unsent.is_empty(), Relaxed);
    if !unsent.is_empty() {
        if written.last().is_some_and(|last| *last != b'\n') {
            IS_TORN.store(true, Relaxed);
        }
        LOST.fetch_add(unsent.iter().filter(|byte| **byte == b'\n').count() as u64, Relaxed);
    }
}

/// As many whole lines as a pipe takes at once, or so much of one that is longer.
fn piece_of(lines: &[u8]) -> &[u8] {
    if !*MAY_WAIT {
        return lines;
    }
    let most = &lines[..lines.len().min(PIECE)];
    let end = most.iter().rposition(|byte| *byte == b'\n').map_or(most.len(), |last| last + 1);
    &most[..end]
}

/// How much of a piece was taken. 0: it cannot be written now.
fn write_some(stderr: &mut io::StderrLock<'_>, piece: &[u8]) -> usize {
    loop {
        if !takes_some(PATIENCE) {
            return 0;
        }
        match stderr.write(piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done.unwrap_or(0),
        }
    }
}

/// Whether a piece can be written without waiting for a reader.
fn takes_some(patience: Duration) -> bool {
    if !*MAY_WAIT {
        return true;
    }
    let patience = if IS_STUCK.load(Relaxed) { Duration::ZERO } else { patience };
    let patience = Timespec::try_from(patience).unwrap_or_default();
    let stderr = io::stderr();
    let takes = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&patience)).is_ok_and(|ready| ready > 0);
    IS_STUCK.store(!takes, Relaxed);
    takes
}
