//! Tensors in files: .safetensors and .npz, in and out.
//!
//! Readers trust nothing. What a header claims is compared with the length of the file before memory is asked for,
//! and memory is asked for as the data arrive.

mod elements;
mod keys;
mod latch;
pub mod npy;
pub mod npz;
pub mod safetensors;
mod source;

pub use crate::errors::FileError;
pub use elements::{Data, FileElement, Kind, read_elements, write_elements};

use crate::errors::Error;
use crate::output::Pending;
use crate::text;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A tensor, dense, last dimension fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, in the file's order.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Data,
}

/// What a file holds, or as much of it as was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Archive {
    /// The tensors that were asked for and are there.
    pub tensors: BTreeMap<String, Tensor>,
    /// Settings and notes, as text.
    pub metadata: BTreeMap<String, String>,
    /// The names of all tensors in the file, read or not.
    pub present: Vec<String>,
}

/// The formats that hold several tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.safetensors`.
    Safetensors,
    /// `.npz`.
    Npz,
}

impl Format {
    /// By the extension of `path`; `argument` is named if it says nothing.
    ///
    /// # Errors
    /// [`Error::Extension`].
    pub fn of(argument: &'static str, path: &Path) -> Result<Self, Error> {
        match extension(path).as_str() {
            "safetensors" => Ok(Self::Safetensors),
            "npz" => Ok(Self::Npz),
            _ => Err(wrong_extension(argument, path, ".safetensors or .npz")),
        }
    }
}

/// The extension in lower case; empty if there is none.
pub fn extension(path: &Path) -> String {
    path.extension().map(|x| x.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The error for a file name that says nothing.
pub fn wrong_extension(argument: &'static str, path: &Path, expected: &'static str) -> Error {
    let got = match extension(path).as_str() {
        "" => "none".to_string(),
        other => text::path(Path::new(&format!(".{other}"))),
    };
    Error::Extension { argument, path: path.to_path_buf(), expected, got }
}

/// Reads those of `wanted` that the file holds, and its metadata.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened, [`Error::File`] if it is not what its name says.
pub fn read(path: &Path, wanted: &[&str]) -> Result<Archive, Error> {
    let format = Format::of("INPUT", path)?;
    let mut source = source::open(path).map_err(|source| Error::Io {
        path: path.to_path_buf(),
        action: "open",
        source,
    })?;
    let archive = match format {
        Format::Safetensors => safetensors::read(&mut source, wanted),
        Format::Npz => npz::read(&mut source, wanted),
    };
    archive.map_err(|source| Error::File { path: path.to_path_buf(), source })
}

/// Writes `archive` to a temporary file; [`Pending::commit`] gives it its name.
///
/// # Errors
/// [`Error::Io`].
pub fn write(pending: &mut Pending, archive: &Archive) -> Result<(), Error> {
    let format = Format::of("--output", pending.path())?;
    pending.write(|file| {
        let mut sink = BufWriter::with_capacity(1 << 20, file);
        match format {
            Format::Safetensors => safetensors::write(&mut sink, archive)?,
            Format::Npz => npz::write(&mut sink, archive)?,
        }
        sink.flush()
    })
}

/// The names of a list, for a sentence.
pub fn listing<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| printable(name.as_ref())).collect();
    match names.len() {
        0 => "no tensors".to_string(),
        n if n > SHOWN => format!("{} and {} more", shown.join(", "), n - SHOWN),
        _ => shown.join(", "),
    }
}

/// A name from a file, short and without anything that would break a line or a terminal.
pub fn printable(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_default).collect();
    if text.chars().nth(60).is_some() {
        short.push_str("...");
    }
    short
}
