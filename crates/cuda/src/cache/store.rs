//! Machine code on disk. Nothing here knows CUDA.

use super::key::StoreKey;
use super::{room, trust};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const MAGIC: [u8; 8] = *b"SGNFCUBN";
const VERSION: u32 = 1;

/// Magic, version, key, length and checksum, in this order; numbers are little-endian.
const HEADER_BYTES: usize = 8 + 4 + 32 + 8 + 32;

/// The largest machine code that is kept; the largest of ours has some 100 KiB.
const MAX_PAYLOAD_BYTES: u64 = 16 << 20;

/// The largest file that can be an entry.
pub(super) const MAX_ENTRY_BYTES: u64 = HEADER_BYTES as u64 + MAX_PAYLOAD_BYTES;

/// What an entry's name ends with, after the key.
pub(super) const ENTRY_SUFFIX: &str = ".cubin";

/// What the name of a file begins with while it is being written.
pub(super) const WRITING_PREFIX: &str = ".writing-";

/// A directory of compiled kernels, one file each.
///
/// A file has a header (magic, version, the key, the length of what follows and its SHA-256) and the machine code. It
/// is written under another name and renamed, so that any number of threads and processes may read and write one
/// directory: a reader finds an old file, a new file or none, and of two writers one wins. A file that is not what
/// was written is seen as such and may be written again.
///
/// What is got runs on the GPU, so it must come from this user. The directory is made with mode 0700; one that
/// belongs to somebody else, or that others may write, is not used, and neither is such a file.
///
/// Together the files take at most [`DEFAULT_LIMIT_BYTES`](Self::DEFAULT_LIMIT_BYTES), or what
/// [`with_limit`](Self::with_limit) says: a put removes those that were put or got longest ago.
///
/// ```
/// use signflash_cuda::{CubinStore, StoreKey};
///
/// let directory = tempfile::tempdir()?;
/// let store = CubinStore::open(directory.path().join("made/when/needed"));
/// let key = StoreKey::of(&["driver", "text"]);
/// assert_eq!(store.get(&key)?, None);
/// store.put(&key, b"machine code")?;
/// assert_eq!(store.get(&key)?.as_deref(), Some(&b"machine code"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CubinStore {
    directory: PathBuf,
    limit_bytes: u64,
}

/// Why an entry could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system refused.
    #[error("compiled kernels are not kept in {}: {doing} failed: {source}; make it writable, or set SIGNFLASH_CACHE_DIR to another directory", directory.display())]
    Io {
        /// Where.
        directory: PathBuf,
        /// What failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could have put kernels there.
    #[error("compiled kernels are not kept in {}: {why}; make it your own with mode 700, or set SIGNFLASH_CACHE_DIR to another directory", directory.display())]
    Untrusted {
        /// Where.
        directory: PathBuf,
        /// What lets others in.
        why: String,
    },
    /// The entry is larger than the store, or than any kernel.
    #[error("a compiled kernel of {bytes} bytes is not kept in {}, which takes {most}", directory.display())]
    TooLarge {
        /// Where.
        directory: PathBuf,
        /// How large the file would be.
        bytes: u64,
        /// How large it may be.
        most: u64,
    },
    /// The file is not what was written.
    #[error("{} is not used: {what}; it will be replaced", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl CubinStore {
    /// Bytes that all files together take, if nothing else is said: 256 MiB.
    pub const DEFAULT_LIMIT_BYTES: u64 = 256 << 20;

    /// The store in this directory, which is made when the first entry is written.
    pub fn open(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), limit_bytes: Self::DEFAULT_LIMIT_BYTES }
    }

    /// With another limit for the bytes of all files together.
    pub fn with_limit(self, limit_bytes: u64) -> Self {
        Self { limit_bytes, ..self }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// That nobody else can put files into the directory. One that is not there yet is as good as our own.
    ///
    /// # Errors
    /// [`StoreError::Untrusted`], or that it cannot be looked at.
    pub fn check(&self) -> Result<(), StoreError> {
        let metadata = match fs::metadata(&self.directory) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.io("looking at the directory")(error)),
        };
        match trust::distrusted(&metadata) {
            Some(why) => Err(StoreError::Untrusted { directory: self.directory.clone(), why }),
            None => Ok(()),
        }
    }

    /// What was put under `key`, or nothing.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Untrusted`], or that the file is there but cannot be read.
    pub fn get(&self, key: &StoreKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.check()?;
        let path = self.path(key);
        match read(&path, key) {
            Ok(payload) => Ok(Some(payload)),
            Err(Refused::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(Refused::Io(error)) => Err(self.io("reading")(error)),
            Err(Refused::Damaged(what)) => Err(StoreError::Damaged { path, what }),
        }
    }

    /// Keeps `payload` under `key`, in place of what was there, and removes old entries that it leaves no room for.
    ///
    /// # Errors
    /// [`StoreError::Untrusted`], [`StoreError::TooLarge`], or that the directory cannot be made or written; what was
    /// there stays.
    pub fn put(&self, key: &StoreKey, payload: &[u8]) -> Result<(), StoreError> {
        let (bytes, most) = ((HEADER_BYTES + payload.len()) as u64, self.limit_bytes.min(MAX_ENTRY_BYTES));
        if bytes > most {
            return Err(StoreError::TooLarge { directory: self.directory.clone(), bytes, most });
        }
        trust::make_directory(&self.directory).map_err(self.io("making the directory"))?;
        self.check()?;
        let mut file = tempfile::Builder::new()
            .prefix(WRITING_PREFIX)
            .tempfile_in(&self.directory)
            .map_err(self.io("making a file"))?;
        file.write_all(&header(key, payload)).map_err(self.io("writing"))?;
        file.write_all(payload).map_err(self.io("writing"))?;
        let path = self.path(key);
        file.persist(&path).map_err(|error| self.io("renaming a file")(error.error))?;
        room::make(&self.directory, self.limit_bytes, &path).map_err(self.io("removing old files"))
    }

    /// The file of `key`.
    pub fn path(&self, key: &StoreKey) -> PathBuf {
        self.directory.join(format!("{key}{ENTRY_SUFFIX}"))
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        let directory = self.directory.clone();
        move |source| StoreError::Io { directory, doing, source }
    }
}

fn header(key: &StoreKey, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..44].copy_from_slice(&key.0);
    header[44..52].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    header[52..].copy_from_slice(&Sha256::digest(payload));
    header
}

enum Refused {
    Io(io::Error),
    Damaged(String),
}

fn damaged<T>(what: &str) -> Result<T, Refused> {
    Err(Refused::Damaged(what.into()))
}

/// The payload, if the file is one that `put` wrote under `key`. It is judged before it is read, and never waited for.
fn read(path: &Path, key: &StoreKey) -> Result<Vec<u8>, Refused> {
    let mut file = match trust::open(path) {
        Err(error) if trust::is_link(&error) => return damaged("it is a symbolic link"),
        opened => opened.map_err(Refused::Io)?,
    };
    let metadata = file.metadata().map_err(Refused::Io)?;
    if !metadata.is_file() {
        return damaged("it is no regular file");
    }
    if let Some(why) = trust::distrusted(&metadata) {
        return Err(Refused::Damaged(why));
    }
    if metadata.len() > MAX_ENTRY_BYTES {
        return damaged("it is larger than any kernel");
    }
    let payload = judge(&mut file, metadata.len(), key)?;
    // So that it is not the next to go. Where that cannot be said, it goes and is compiled again.
    let _ = file.set_modified(SystemTime::now());
    Ok(payload)
}

/// The payload of a file of so many bytes, if header and payload are as `put` wrote them under `key`.
fn judge(file: &mut impl Read, file_bytes: u64, key: &StoreKey) -> Result<Vec<u8>, Refused> {
    let Some(payload_bytes) = file_bytes.checked_sub(HEADER_BYTES as u64) else {
        return damaged("it is shorter than its header");
    };
    let mut found = [0; HEADER_BYTES];
    file.read_exact(&mut found).map_err(Refused::Io)?;
    if found[..8] != MAGIC {
        return damaged("it is no compiled kernel");
    }
    if found[8..12] != VERSION.to_le_bytes() {
        return damaged("it has another version");
    }
    if found[12..44] != key.0 {
        return damaged("it is another kernel's");
    }
    if found[44..52] != payload_bytes.to_le_bytes() {
        return damaged("its length is wrong");
    }
    // Memory grows with what is read, not with what a size claims.
    let mut payload = Vec::new();
    file.take(payload_bytes).read_to_end(&mut payload).map_err(Refused::Io)?;
    if found != header(key, &payload) {
        return damaged("its checksum is wrong");
    }
    Ok(payload)
}
