//! The store, used so that no failure of it is an error.

use super::directory::CacheDirectory;
use super::key::StoreKey;
use super::store::{CubinStore, StoreError};
use crate::said::Said;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether and where machine code is kept on disk, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStatus {
    /// Where; none if it is off or there is no home directory.
    pub directory: Option<PathBuf>,
    /// The first reason why something could not be kept or read, as a sentence; the log has all. Kernels run all the
    /// same.
    pub problem: Option<String>,
    /// Kernels loaded from disk.
    pub loaded: u64,
    /// Kernels compiled.
    pub compiled: u64,
    /// Damaged files found.
    pub damaged: u64,
}

/// The store, if there is one, and what became of it.
#[derive(Debug)]
pub(super) struct Disk {
    store: Option<CubinStore>,
    status: Mutex<CacheStatus>,
    said: Said,
}

impl Disk {
    /// In that directory, of which all files together may take so many bytes.
    pub(super) fn new(directory: CacheDirectory, limit_bytes: u64) -> Self {
        let has_no_home = directory == CacheDirectory::NoHome;
        let directory = match directory {
            CacheDirectory::At(directory) => Some(directory),
            CacheDirectory::Off | CacheDirectory::NoHome => None,
        };
        let store = directory.clone().map(|at| CubinStore::open(at).with_limit(limit_bytes));
        let status = Mutex::new(CacheStatus { directory, ..CacheStatus::default() });
        let disk = Self { store, status, said: Said::new() };
        if has_no_home {
            disk.note("compiled kernels are not kept: there is no home directory; set SIGNFLASH_CACHE_DIR");
        }
        // Said now, for those who ask before they compile.
        if let Some(Err(error)) = disk.store.as_ref().map(CubinStore::check) {
            disk.note(&error.to_string());
        }
        disk
    }

    /// The same, with something else that is wrong.
    pub(super) fn with_problem(self, problem: &str) -> Self {
        self.note(problem);
        self
    }

    /// The machine code of `key`, if it is there and whole.
    pub(super) fn read(&self, key: &StoreKey) -> Option<Vec<u8>> {
        match self.store.as_ref()?.get(key) {
            Ok(found) => found,
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Keeps machine code, if it can.
    pub(super) fn write(&self, key: &StoreKey, cubin: &[u8]) {
        if let Some(Err(error)) = self.store.as_ref().map(|store| store.put(key, cubin)) {
            self.failed(&error);
        }
    }

    pub(super) fn count_loaded(&self) {
        self.lock().loaded += 1;
    }

    pub(super) fn count_compiled(&self) {
        self.lock().compiled += 1;
    }

    pub(super) fn status(&self) -> CacheStatus {
        self.lock().clone()
    }

    fn failed(&self, error: &StoreError) {
        match error {
            StoreError::Damaged { .. } => {
                self.lock().damaged += 1;
                log::info!("{error}");
            }
            _ => self.note(&error.to_string()),
        }
    }

    /// Keeps the first problem, and logs each once, when the lock is open again: a logger may be slow.
    fn note(&self, problem: &str) {
        self.lock().problem.get_or_insert_with(|| problem.into());
        self.said.once(problem.into(), |line| log::warn!("{line}"));
    }

    fn lock(&self) -> MutexGuard<'_, CacheStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> StoreKey {
        StoreKey::of(&["disk"])
    }

    fn in_directory(directory: &std::path::Path) -> Disk {
        Disk::new(CacheDirectory::At(directory.into()), CubinStore::DEFAULT_LIMIT_BYTES)
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let disk = in_directory(directory.path());
        assert_eq!(disk.read(&key()), None);
        disk.write(&key(), b"code");
        assert_eq!(disk.read(&key()).as_deref(), Some(&b"code"[..]));
        assert_eq!(disk.status().problem, None);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_reported_and_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = in_directory(&file.path().join("below/a/file"));
        assert_eq!(disk.read(&key()), None);
        disk.write(&key(), b"code");
        let problem = disk.status().problem.unwrap();
        assert!(problem.starts_with("compiled kernels are not kept in "), "{problem}");
        assert!(problem.ends_with("or set SIGNFLASH_CACHE_DIR to another directory"), "{problem}");
    }

    #[test]
    fn a_missing_home_is_reported_and_no_error() {
        let disk = Disk::new(CacheDirectory::NoHome, 1);
        disk.write(&key(), b"code");
        assert_eq!(disk.read(&key()), None);
        assert_eq!(
            disk.status().problem.as_deref(),
            Some("compiled kernels are not kept: there is no home directory; set SIGNFLASH_CACHE_DIR")
        );
    }

    #[test]
    fn turned_off_it_keeps_nothing_and_has_no_problem() {
        let disk = Disk::new(CacheDirectory::Off, 1);
        disk.write(&key(), b"code");
        assert_eq!(disk.read(&key()), None);
        assert_eq!(disk.status(), CacheStatus::default());
    }

    #[test]
    fn a_damaged_file_is_counted_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let disk = in_directory(directory.path());
        std::fs::write(directory.path().join(format!("{}.cubin", key())), b"foreign").unwrap();
        assert_eq!(disk.read(&key()), None);
        assert_eq!(disk.status().damaged, 1);
        disk.write(&key(), b"code");
        assert_eq!(disk.read(&key()).as_deref(), Some(&b"code"[..]));
        assert_eq!(disk.status().problem, None);
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_others_may_write_is_said_at_once_and_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        in_directory(directory.path()).write(&key(), b"code");
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let disk = in_directory(directory.path());
        let problem = disk.status().problem.unwrap();
        assert!(problem.contains("others than its owner may write it (mode 777)"), "{problem}");
        assert_eq!(disk.read(&key()), None);
    }
}
