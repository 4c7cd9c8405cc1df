//! Why a file could not be read.

use std::io;

/// What is wrong with a file, as the end of a sentence that starts with its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Reading failed.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// Shorter than what its header promises.
    #[error("is truncated: {what} needs {needed} bytes, {got} are there; copy or download it again")]
    Truncated {
        /// Which part.
        what: String,
        /// How many bytes it needs.
        needed: u64,
        /// How many there are.
        got: u64,
    },
    /// Longer than what its header promises.
    #[error("has {extra} bytes beyond its last tensor; it is corrupt, write it again")]
    Trailing {
        /// How many.
        extra: u64,
    },
    /// A header larger than any sane file's.
    #[error("claims a header of {got} bytes, expected at most {max}; it is corrupt or no {format} file")]
    HeaderTooLong {
        /// What it claims.
        got: u64,
        /// The limit.
        max: u64,
        /// Which format.
        format: &'static str,
    },
    /// A header that does not parse.
    #[error("has a bad header: {why}; it is corrupt or no {format} file")]
    Header {
        /// What is wrong.
        why: String,
        /// Which format.
        format: &'static str,
    },
    /// Two tensors of one name.
    #[error("holds `{name}` twice; expected every name once, write it again")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A tensor in a dtype that is not understood.
    #[error("tensor `{tensor}` has dtype {got}, expected {expected}; {remedy}")]
    Dtype {
        /// Which tensor.
        tensor: String,
        /// Its dtype.
        got: String,
        /// What is understood.
        expected: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A tensor whose shape cannot be.
    #[error(
        "tensor `{tensor}` claims shape {shape}, more elements than can be addressed; the file is corrupt"
    )]
    ShapeOverflow {
        /// Which tensor.
        tensor: String,
        /// What it claims.
        shape: String,
    },
    /// A Fortran-ordered array.
    #[error("tensor `{tensor}` is in Fortran order, expected C order; save np.ascontiguousarray({tensor})")]
    FortranOrder {
        /// Which tensor.
        tensor: String,
    },
    /// A zip archive that is none.
    #[error("is no readable .npz archive: {why}; write it again with numpy.savez")]
    Zip {
        /// What is wrong.
        why: String,
    },
    /// An entry that expands to more than its compressed bytes can hold.
    #[error(
        "entry `{entry}` claims {claimed} bytes out of {stored} compressed ones, more than deflate can; the file is \
         corrupt or a zip bomb"
    )]
    Expansion {
        /// Which entry.
        entry: String,
        /// The size that it claims.
        claimed: u64,
        /// The bytes that are stored.
        stored: u64,
    },
    /// An entry whose size is not what its header says.
    #[error(
        "tensor `{tensor}` has {got} bytes of data, expected {expected} by its shape and dtype; the file is corrupt"
    )]
    EntrySize {
        /// Which tensor.
        tensor: String,
        /// By shape and dtype.
        expected: u64,
        /// By the archive.
        got: u64,
    },
    /// More data than memory.
    #[error(
        "tensors {names} hold {needed}; machine, container and ulimit leave {available} of memory available; use a smaller \
         file or raise the limit"
    )]
    Memory {
        /// Which tensors.
        names: String,
        /// How much.
        needed: String,
        /// How much there is.
        available: String,
    },
    /// The settings entry of an .npz file.
    #[error(
        "entry `settings` must be a JSON object of strings, numbers, booleans and lists of numbers: {why}; store json.dumps({{\"dropout_p\": 0.1, ...}})"
    )]
    Settings {
        /// What is wrong.
        why: String,
    },
}

impl FileError {
    /// Whether the machine, not the file's content, is at fault. Libraries make errors of their own for what they do
    /// not understand; the system's have a number, and EINVAL is its answer to an offset that no file has.
    pub fn is_io(&self) -> bool {
        match self {
            Self::Io(source) => {
                source.raw_os_error().is_some() && source.kind() != io::ErrorKind::InvalidInput
            }
            _ => false,
        }
    }

    /// Whether there is too little memory for it.
    pub fn is_memory(&self) -> bool {
        match self {
            Self::Io(source) => source.kind() == io::ErrorKind::OutOfMemory,
            Self::Memory { .. } => true,
            _ => false,
        }
    }
}
