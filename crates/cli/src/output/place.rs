//! Where an output goes: behind symbolic links, over an older file or none, or through a device.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// As many links as Linux follows.
const MAX_LINKS: usize = 40;

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Place {
    /// A file, there or not.
    Regular(Regular),
    /// A pipe or device, open for writing.
    Device(File),
}

/// A regular file's place.
#[derive(Debug)]
pub(super) struct Regular {
    /// Its own name, behind all links.
    pub(super) path: PathBuf,
    /// The file that is there already.
    pub(super) older: Option<Box<Metadata>>,
}

impl Regular {
    /// The directory that it is in.
    pub(super) fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

/// Follows `path`, and judges what is there.
pub(super) fn find(path: &Path) -> io::Result<Place> {
    let path = follow(path)?;
    let older = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
            return Ok(Place::Regular(Regular { path, older: None }));
        }
        Err(error) => return Err(error),
    };
    if older.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !older.is_file() {
        return OpenOptions::new().write(true).open(&path).map(Place::Device);
    }
    // Replacing a file needs no right to write it, only to write its directory; root may write anything.
    if older.permissions().readonly() {
        let advice = "it is read-only; make it writable or choose another name";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, advice));
    }
    OpenOptions::new().write(true).open(&path)?;
    Ok(Place::Regular(Regular { path, older: Some(Box::new(older)) }))
}

/// The name behind symbolic links, whether or not there is a file of that name.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                let link = fs::read_link(&path)?;
                // Links of /proc lead to what has no name, such as pipes: those are opened through the link.
                if fs::metadata(&path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
                    return Ok(path);
                }
                path = path.parent().map_or_else(|| link.clone(), |directory| directory.join(&link));
            }
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}
