//! Output files that are there whole or not at all.
//!
//! A regular file is written without a name where the system knows such files, else under a temporary name beside its
//! own, and gets its name when it is whole. Whatever happens before, even SIGKILL, an older file stays as it was. What
//! is no regular file (a pipe, a device) cannot be replaced: it is given the bytes once they are all there.

mod draft;
#[cfg(unix)]
pub(crate) mod interrupt;
mod place;

use crate::errors::Error;
use draft::Draft;
use place::{Place, Regular};
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

/// Makes writing beyond `RLIMIT_FSIZE` an error like that of a full disk. Without this the system ends the process with
/// SIGXFSZ.
#[cfg(unix)]
pub fn survive_file_size_limits() {
    use signal_hook::consts::SIGXFSZ;
    // The flag is not read: a signal that is heard, by whomever, does not end the process.
    let _ = signal_hook::flag::register(SIGXFSZ, std::sync::Arc::default());
}

/// Refuses outputs that would replace `input` or each other: names may differ and links lead to one file.
///
/// # Errors
/// [`Error::SameFile`].
pub fn expect_distinct(input: &Path, outputs: &[(&'static str, Option<&Pending>)]) -> Result<(), Error> {
    let mut taken = vec![("the input", input.canonicalize().ok())];
    for (argument, pending) in outputs.iter().filter_map(|(argument, pending)| Some((*argument, (*pending)?)))
    {
        let place = pending.place();
        if let Some(&(other, _)) = taken.iter().find(|(_, there)| place.is_some() && *there == place) {
            return Err(Error::SameFile { argument, path: pending.path.clone(), other });
        }
        taken.push((argument, place));
    }
    Ok(())
}

/// A file being written. Dropped without [`commit`](Self::commit), it vanishes, and whatever bore its name before is
/// untouched.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Regular { place: Regular, draft: Draft },
    Through { draft: File, device: File },
}

impl Pending {
    /// Starts a file. Do this before the long computation: a directory that cannot be written to is found here.
    ///
    /// Symbolic links are followed, to a file that is not there yet, too. A file that is there keeps its permissions; a
    /// new one has those that the umask leaves. A file that nobody may write is not replaced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: path.to_path_buf(), action: "write", source };
        let target = match place::find(path).map_err(failed)? {
            Place::Regular(place) => {
                let draft = Draft::beside(&place).map_err(failed)?;
                Target::Regular { place, draft }
            }
            Place::Device(device) => Target::Through { draft: tempfile::tempfile().map_err(failed)?, device },
        };
        Ok(Self { path: path.to_path_buf(), target })
    }

    /// The file that it will be, behind all links; a device takes everybody's bytes and is none.
    fn place(&self) -> Option<PathBuf> {
        match &self.target {
            Target::Regular { place, .. } => {
                Some(place.directory().canonicalize().ok()?.join(place.path.file_name()?))
            }
            Target::Through { .. } => None,
        }
    }

    /// The name that it will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes to it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
        let file = match &mut self.target {
            Target::Regular { draft, .. } => draft.file(),
            Target::Through { draft, .. } => draft,
        };
        fill(file).map_err(|source| self.failed(source))
    }

    /// Gives it its name, replacing what bore it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn commit(self) -> Result<(), Error> {
        let Self { path, target } = self;
        let done = match target {
            Target::Regular { place, draft } => draft.publish(&place),
            Target::Through { mut draft, mut device } => {
                draft.rewind().and_then(|()| io::copy(&mut draft, &mut device)).map(drop)
            }
        };
        done.map_err(|source| Error::Io { path, action: "write", source })
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.path.clone(), action: "write", source }
    }
}
