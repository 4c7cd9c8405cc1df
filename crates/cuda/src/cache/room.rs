//! Keeps a directory of compiled kernels from growing without end.

use super::store::{ENTRY_SUFFIX, MAX_ENTRY_BYTES, WRITING_PREFIX};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// After so long nobody is still writing a file: who began it was killed.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// Removes entries, those that were used longest ago first, until no more than `limit_bytes` are left; never `kept`.
/// What killed processes were writing goes as well. Files that no store wrote stay.
pub(super) fn make(directory: &Path, limit_bytes: u64, kept: &Path) -> io::Result<()> {
    let (mut entries, now) = (vec![], SystemTime::now());
    for found in fs::read_dir(directory)? {
        let found = found?;
        // Another process may have been faster; and this does not follow links.
        let Ok(metadata) = found.metadata() else { continue };
        let used = metadata.modified()?;
        match Kind::of(&found.file_name()) {
            _ if !metadata.is_file() => {}
            Kind::Writing if now.duration_since(used).is_ok_and(|age| age > ABANDONED) => {
                remove(&found.path())?;
            }
            Kind::Entry if metadata.len() > MAX_ENTRY_BYTES => remove(&found.path())?,
            Kind::Entry => {
                entries.push(Entry { used, bytes: metadata.len(), path: found.path() });
            }
            _ => {}
        }
    }
    entries.sort_by_key(|entry| entry.used);
    let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    for entry in entries.iter().filter(|entry| entry.path != kept) {
        if total <= limit_bytes {
            break;
        }
        remove(&entry.path)?;
        total -= entry.bytes;
    }
    Ok(())
}

struct Entry {
    used: SystemTime,
    bytes: u64,
    path: PathBuf,
}

/// What a file's name says of it.
enum Kind {
    Entry,
    Writing,
    Foreign,
}

impl Kind {
    fn of(name: &OsStr) -> Self {
        let name = name.to_string_lossy();
        let is_key = |key: &str| key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        if name.strip_suffix(ENTRY_SUFFIX).is_some_and(is_key) {
            Kind::Entry
        } else if name.starts_with(WRITING_PREFIX) {
            Kind::Writing
        } else {
            Kind::Foreign
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
