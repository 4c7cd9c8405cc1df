//! Machine code on disk. Nothing here knows CUDA.

use super::key::StoreKey;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"SGNFCUBN";
const VERSION: u32 = 1;

/// Magic, version, key, length and checksum, in this order; numbers are little-endian.
const HEADER_BYTES: usize = 8 + 4 + 32 + 8 + 32;

/// A directory of compiled kernels, one file each.
///
/// A file has a header (magic, version, the key, the length of what follows and its SHA-256) and the machine code. It is
/// written under another name and renamed, so that any number of threads and processes may read and write one
/// directory: a reader finds an old file, a new file or none, and of two writers one wins. A file that is not what was
/// written is seen as such and may be written again.
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
    /// The file is not what was written.
    #[error("{} is damaged: {what}; it will be replaced", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl CubinStore {
    /// The store in this directory, which is made when the first entry is written.
    pub fn open(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What was put under `key`, or nothing.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or that the file is there but cannot be read.
    pub fn get(&self, key: &StoreKey) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(key);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("reading")(error)),
        };
        let file_bytes = file.metadata().map_err(self.io("reading"))?.len();
        match read(&mut file, file_bytes, key) {
            Ok(payload) => Ok(Some(payload)),
            Err(Refused::Io(error)) => Err(self.io("reading")(error)),
            Err(Refused::Damaged(what)) => Err(StoreError::Damaged { path, what }),
        }
    }

    /// Keeps `payload` under `key`, in place of what was there.
    ///
    /// # Errors
    /// That the directory cannot be made or written; what was there stays.
    pub fn put(&self, key: &StoreKey, payload: &[u8]) -> Result<(), StoreError> {
        fs::create_dir_all(&self.directory).map_err(self.io("making the directory"))?;
        let mut file = tempfile::Builder::new()
            .prefix(".writing-")
            .tempfile_in(&self.directory)
            .map_err(self.io("making a file"))?;
        file.write_all(&header(key, payload)).map_err(self.io("writing"))?;
        file.write_all(payload).map_err(self.io("writing"))?;
        file.persist(self.path(key)).map_err(|error| self.io("renaming a file")(error.error))?;
        Ok(())
    }

    /// The file of `key`.
    pub fn path(&self, key: &StoreKey) -> PathBuf {
        self.directory.join(format!("{key}.cubin"))
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
    Damaged(&'static str),
}

/// The payload, if header and payload are as `put` wrote them under `key`.
fn read(file: &mut impl Read, file_bytes: u64, key: &StoreKey) -> Result<Vec<u8>, Refused> {
    let payload_bytes = file_bytes
        .checked_sub(HEADER_BYTES as u64)
        .ok_or(Refused::Damaged("it is shorter than its header"))?;
    let mut found = [0; HEADER_BYTES];
    file.read_exact(&mut found).map_err(Refused::Io)?;
    if found[..8] != MAGIC {
        return Err(Refused::Damaged("it is no compiled kernel"));
    }
    if found[8..12] != VERSION.to_le_bytes() {
        return Err(Refused::Damaged("it has another version"));
    }
    if found[12..44] != key.0 {
        return Err(Refused::Damaged("it is another kernel's"));
    }
    // Seen before anything is read, so that a wrong length allocates nothing.
    if found[44..52] != payload_bytes.to_le_bytes() {
        return Err(Refused::Damaged("its length is wrong"));
    }
    let mut payload = Vec::with_capacity(payload_bytes as usize);
    file.take(payload_bytes).read_to_end(&mut payload).map_err(Refused::Io)?;
    if found != header(key, &payload) {
        return Err(Refused::Damaged("its checksum is wrong"));
    }
    Ok(payload)
}
