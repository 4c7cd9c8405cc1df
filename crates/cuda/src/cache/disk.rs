//! The store, used so that no failure of it is an error.

use super::directory::CacheDirectory;
use super::key::StoreKey;
use super::store::{CubinStore, StoreError};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether and where machine code is kept on disk, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStatus {
    /// Where; none if it is off or there is no home directory.
    pub directory: Option<PathBuf>,
    /// The first reason why something could not be kept or read, as a sentence. Kernels run all the same.
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
}

impl Disk {
    /// In that directory, of which all files together may take so many bytes.
    pub(super) fn new(directory: CacheDirectory, limit_bytes: u64) -> Self {
        let mut status = CacheStatus::default();
        let store = match directory {
            CacheDirectory::At(directory) => {
                status.directory = Some(directory.clone());
                let store = CubinStore::open(directory).with_limit(limit_bytes);
                // Said now, for those who ask before they compile.
                if let Err(error) = store.check() {
                    note(&mut status, &error.to_string());
                }
                Some(store)
            }
            CacheDirectory::Off => None,
            CacheDirectory::NoHome => {
                note(
                    &mut status,
                    "compiled kernels are not kept: there is no home directory; set SIGNFLASH_CACHE_DIR",
                );
                None
            }
        };
        Self { store, status: Mutex::new(status) }
    }

    /// The same, with something else that is wrong.
    pub(super) fn with_problem(self, problem: &str) -> Self {
        note(&mut self.lock(), problem);
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
        let mut status = self.lock();
        match error {
            StoreError::Damaged { .. } => {
                status.damaged += 1;
                log::info!("{error}");
            }
            _ => note(&mut status, &error.to_string()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, CacheStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the first problem and logs it, once.
fn note(status: &mut CacheStatus, problem: &str) {
    if status.problem.is_none() {
        log::warn!("{problem}");
        status.problem = Some(problem.into());
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
