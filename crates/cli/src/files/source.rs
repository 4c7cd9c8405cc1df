//! What is read: a file, or what comes out of a pipe.

use super::{FileError, listing};
use crate::memory;
use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes with a beginning and an end.
#[derive(Debug)]
pub(super) enum Source {
    File(BufReader<File>),
    /// All that a pipe held: readers go back and forth.
    Pipe(Cursor<Vec<u8>>),
}

/// Opens `path`; of a pipe, reads everything, and waits for whoever writes it.
pub(super) fn open(path: &Path) -> io::Result<Source> {
    let there = fs::metadata(path)?;
    // Opening a directory succeeds on Unix; reading it would give a less helpful error.
    if there.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if is_device(&there) {
        return Err(io::Error::other("it is a device; expected a file or a pipe"));
    }
    let mut file = File::open(path)?;
    if there.is_file() {
        return Ok(Source::File(BufReader::new(file)));
    }
    // A vector that grows is there twice for a moment, and the tensors are there beside it.
    let limit = memory::available().map_or(u64::MAX, |bytes| bytes / 4);
    let mut bytes = Vec::new();
    file.by_ref().take(limit).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == limit {
        let limit = memory::readable(limit);
        let why =
            format!("the pipe holds more than {limit}, a quarter of the memory available; write a file");
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
    }
    Ok(Source::Pipe(Cursor::new(bytes)))
}

#[cfg(unix)]
fn is_device(there: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    there.file_type().is_char_device() || there.file_type().is_block_device()
}

#[cfg(not(unix))]
fn is_device(_: &fs::Metadata) -> bool {
    false
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Pipe(bytes) => bytes.read(buffer),
        }
    }
}

impl Seek for Source {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Pipe(bytes) => bytes.seek(to),
        }
    }
}

/// Refuses to read more than the machine can hold: a sparse file or a zip bomb of true sizes is larger than any limit
/// on the file itself would notice.
pub(super) fn check_memory(names: &[&str], bytes: u64) -> Result<(), FileError> {
    match memory::available() {
        Some(there) if bytes > there => Err(FileError::Memory {
            names: listing(names),
            needed: memory::readable(bytes),
            available: memory::readable(there),
        }),
        _ => Ok(()),
    }
}
