//! Output files that are there whole or not at all.

use crate::errors::Error;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file being written under a temporary name in its own directory. Dropped without [`commit`](Self::commit), it
/// vanishes, and whatever bore its name before is untouched.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    file: NamedTempFile,
}

impl Pending {
    /// Starts a file. Do this before the long computation: a directory that cannot be written to is found here.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: path.to_path_buf(), action: "write", source };
        let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        if path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let prefix = format!(".{}.", name.to_string_lossy());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any program creates a file: the umask takes its share. The default is 0600, meant for secrets.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        // tempfile's error names the temporary file; only the cause is of interest.
        let file = builder.tempfile_in(directory).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                failed(io::Error::new(error.kind(), "its directory does not exist, create it first"))
            }
            kind => failed(kind.into()),
        })?;
        Ok(Self { path: path.to_path_buf(), file })
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
        let path = self.path.clone();
        fill(self.file.as_file_mut()).map_err(|source| Error::Io { path, action: "write", source })
    }

    /// Gives it its name, replacing what bore it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn commit(self) -> Result<(), Error> {
        let Self { path, file } = self;
        match file.persist(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Io { path, action: "write", source: error.error }),
        }
    }
}
