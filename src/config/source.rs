//! Every file that the rules were made of: read under a bound, and remembered well enough to see when it changes.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::problem::Wrong;
use crate::secret::Digest;

/// The files and patterns of one load.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
    patterns: Vec<Pattern>,
    digest: String,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// `None`: it could not be read.
    content: Option<Digest>,
    limit: u64,
    read_at: Instant,
    seen: Mutex<Seen>,
}

/// What a file looked like from outside.
#[derive(Debug, Clone, Copy)]
struct Seen {
    stamp: Option<Stamp>,
    /// Whether the stamp is old enough for every later change to show in it.
    settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug)]
struct Pattern {
    path: PathBuf,
    matched: Vec<PathBuf>,
}

/// How long a file that cannot be read rests before it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// A change within the resolution of the clock that stamps files does not show in the stamp. Two seconds is the coarsest
/// resolution in use.
const TOO_FRESH: Duration = Duration::from_secs(2);

impl Sources {
    /// Whether a new load could give something else. Cheap as long as nothing happens: one `stat` a file.
    pub fn looks_changed(&self) -> bool {
        self.patterns.iter().any(Pattern::looks_changed) || self.files.iter().any(Source::looks_changed)
    }

    /// Directories in which a change of these files shows: of the paths as they are written, and of what they resolve
    /// to now (a mounted ConfigMap is a link to a link, and only the outer one is ever replaced).
    pub fn directories(&self) -> Vec<PathBuf> {
        let paths = self.files.iter().map(|file| &file.path).chain(self.patterns.iter().map(|pattern| &pattern.path));
        let mut all: Vec<PathBuf> =
            paths.flat_map(|path| [Some(parent(path)), resolved_parent(path)]).flatten().collect();
        all.sort();
        all.dedup();
        all
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// The files as they were named.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| &*file.path)
    }

    /// SHA-256 over all contents, in hexadecimal: equal for instances that run by the same rules.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

fn parent(path: &Path) -> PathBuf {
    let parent = path.parent().unwrap_or(path);
    if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() }
}

fn resolved_parent(path: &Path) -> Option<PathBuf> {
    // A pattern is no file, but the directory it looks into may be a link.
    let resolved = path.canonicalize().ok().map(|path| parent(&path));
    resolved.or_else(|| parent(path).canonicalize().ok())
}

impl Source {
    fn looks_changed(&self) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = std::fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        // What kept a file that is there from being read (no descriptor left, a network mount) may pass without a trace in
        // its stamp.
        if self.content.is_none() && stamp.is_some() && self.read_at.elapsed() > TRY_AGAIN {
            return true;
        }
        if stamp == seen.stamp && (seen.settled || stamp.is_none()) {
            return false;
        }
        let is_same_file = |a: &Stamp, b: &Stamp| (a.device, a.inode) == (b.device, b.inode);
        match (&stamp, &seen.stamp) {
            (Some(now), Some(before)) if is_same_file(now, before) => {}
            // Another file in its place may lie in another directory, which wants to be watched.
            _ => return true,
        }
        // Touched, or too fresh to tell: what it holds decides.
        let settled = stamp.is_some_and(|stamp| stamp.is_settled());
        if digest_of(&self.path, self.limit).ok() != self.content {
            return true;
        }
        *seen = Seen { stamp, settled };
        false
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// By ctime: unlike mtime it cannot be set back.
    fn is_settled(self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or_default());
        now.checked_sub(changed).is_some_and(|age| age > TOO_FRESH)
    }
}

impl Pattern {
    fn looks_changed(&self) -> bool {
        expand(&self.path).unwrap_or_default() != self.matched
    }
}

/// Reads files for one load and remembers them.
#[derive(Default)]
pub struct Reader {
    sources: Sources,
    digest: Sha256,
}

impl Reader {
    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// Why it cannot be read. It is remembered all the same: it may be readable later.
    pub fn read(&mut self, path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, Wrong> {
        let read = read_file(path, limit);
        let stamp = match &read {
            Ok((_, stamp, _)) => Some(*stamp),
            Err(_) => std::fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata)),
        };
        let content = read.as_ref().ok().map(|(_, _, digest)| *digest);
        if let Some(content) = &content {
            self.digest.update(content.as_bytes());
        }
        let seen = Mutex::new(Seen { stamp, settled: stamp.is_some_and(Stamp::is_settled) });
        self.sources.files.push(Source { path: path.to_owned(), content, limit, read_at: Instant::now(), seen });
        read.map(|(bytes, ..)| bytes)
    }

    /// The files that a pattern names now, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn expand(&mut self, path: &Path) -> Result<Vec<PathBuf>, Wrong> {
        let matched = expand(path);
        let kept = matched.as_ref().cloned().unwrap_or_default();
        self.sources.patterns.push(Pattern { path: path.to_owned(), matched: kept });
        matched.map_err(|error| Wrong::new(format!("its directory cannot be read: {}", cause(&error))))
    }

    /// Takes something else that the rules depend on into the digest.
    pub fn note(&mut self, bytes: &[u8]) {
        self.digest.update(Digest::of(bytes).as_bytes());
    }

    pub fn finish(mut self) -> Sources {
        let digest: [u8; 32] = self.digest.finalize().into();
        self.sources.digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.sources
    }
}

/// Opens a file, and looks at it.
fn open(path: &Path) -> Result<(File, Metadata), Wrong> {
    // Opening a named pipe would wait for somebody who writes into it.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
        return Err(Wrong::new(format!("this file cannot be read: it is {what}")));
    }
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    Ok((file, metadata))
}

#[expect(clippy::needless_pass_by_value, reason = "it is made for this")]
fn unreadable(error: io::Error) -> Wrong {
    Wrong::new(format!("this file cannot be read: {}", cause(&error)))
}

/// The digest of a file, without having the whole of it in memory.
fn digest_of(path: &Path, limit: u64) -> Result<Digest, Wrong> {
    let (file, _) = open(path)?;
    let mut file = file.take(limit + 1);
    let mut piece = Zeroizing::new(vec![0; PIECE]);
    let mut digest = Sha256::new();
    loop {
        match file.read(&mut piece) {
            Ok(0) if file.limit() == 0 => return Err(too_large(limit)),
            Ok(0) => return Ok(Digest::from(<[u8; 32]>::from(digest.finalize()))),
            Ok(length) => digest.update(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

/// Fits into a core's cache.
const PIECE: usize = 64 << 10;

/// Reads a whole file, in pieces: a single call that copies a hundred megabytes holds its core for longer than others should
/// wait for it.
fn read_file(path: &Path, limit: u64) -> Result<(Zeroizing<Vec<u8>>, Stamp, Digest), Wrong> {
    // The stamp is older than what is read: a change in between shows later.
    let (mut file, metadata) = open(path)?;
    let expected = usize::try_from(metadata.len().min(limit)).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 1));
    let mut digest = Sha256::new();
    loop {
        let before = bytes.len();
        let most = (limit + 1 - before as u64).min(PIECE as u64);
        if file.by_ref().take(most).read_to_end(&mut bytes).map_err(unreadable)? == 0 {
            break;
        }
        digest.update(&bytes[before..]);
    }
    if bytes.len() as u64 > limit {
        return Err(too_large(limit));
    }
    Ok((bytes, Stamp::of(&metadata), Digest::from(<[u8; 32]>::from(digest.finalize()))))
}

fn too_large(limit: u64) -> Wrong {
    let size = if limit >= 1 << 20 { format!("{} MiB", limit >> 20) } else { format!("{} KiB", limit >> 10) };
    Wrong::new(format!("this file is larger than {size}"))
}

/// "permission denied": without the number that the system gives it.
fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        // EMFILE and ENFILE have no word of their own.
        _ if matches!(error.raw_os_error(), Some(23 | 24)) => "too many files are open".into(),
        other => other.to_string(),
    }
}

pub fn is_pattern(path: &str) -> bool {
    path.contains('*')
}

/// Files whose name matches the last part of the path. Hidden ones only if the pattern says so: editors and ConfigMaps
/// keep things of their own beside the files.
fn expand(path: &Path) -> io::Result<Vec<PathBuf>> {
    let pattern = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut matched = Vec::new();
    for entry in std::fs::read_dir(parent(path))? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let hidden = text.starts_with('.') && !pattern.starts_with('.');
        let found = path.with_file_name(&name);
        if !hidden && matches(&pattern, &text) && found.is_file() {
            matched.push(found);
        }
    }
    matched.sort();
    Ok(matched)
}

/// `*` stands for any run of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_run_of_characters() {
        for (pattern, name) in [("*", "a"), ("*.yaml", "a.yaml"), ("a*b*c", "aXbYc"), ("a*b*c", "abc"), ("*", "")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.yaml", "a.yml"), ("a*b*c", "acb"), ("a*a", "a"), ("x", "y")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_changes_is_seen_and_what_does_not_is_not() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("a.yaml");
        let pattern = scratch.path().join("*.yaml");
        let sources = || {
            let mut reader = Reader::default();
            let _ = reader.read(&file, 100);
            let _ = reader.expand(&pattern);
            reader.finish()
        };
        std::fs::write(&file, "one").unwrap();
        let first = sources();
        assert!(!first.looks_changed());
        // The same size, within the resolution of any clock.
        std::fs::write(&file, "two").unwrap();
        assert!(first.looks_changed());
        let second = sources();
        assert!(!second.looks_changed());
        assert_ne!(first.digest(), second.digest());
        // Touched only.
        std::fs::write(&file, "two").unwrap();
        assert!(!second.looks_changed());
        // One file more.
        std::fs::write(scratch.path().join("b.yaml"), "").unwrap();
        assert!(second.looks_changed());
        // Gone, and back again.
        std::fs::remove_file(&file).unwrap();
        let gone = sources();
        assert!(!gone.looks_changed());
        std::fs::write(&file, "two").unwrap();
        assert!(gone.looks_changed());
    }

    #[test]
    fn a_swapped_link_is_seen() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for version in ["..1", "..2"] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("a.yaml"), "same").unwrap();
        }
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let mut reader = Reader::default();
        reader.read(&at("a.yaml"), 100).unwrap();
        let sources = reader.finish();
        let root = scratch.path().canonicalize().unwrap();
        assert!(sources.directories().contains(&scratch.path().to_owned()));
        assert!(sources.directories().contains(&root.join("..1")));
        std::os::unix::fs::symlink("..2", at("..new")).unwrap();
        std::fs::rename(at("..new"), at("..data")).unwrap();
        assert!(sources.looks_changed());
    }
}
