//! Everything that can go wrong, as one sentence each, and the exit code of each.

mod file;

pub use file::FileError;

use crate::text;
use signflash_core::{ProblemError, TensorName};
use signflash_cpu::IsaError;
use signflash_cuda::EngineError;
use std::io;
use std::path::PathBuf;

/// The exit code of a process that has no memory left, or none for its threads.
pub const MEMORY: u8 = 4;

/// Why a command stopped. Its `Display` is one line: what is wrong, what was expected, what came, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The verification found errors beyond the bounds; the table on stdout says which.
    #[error(
        "verification failed: {failed} of {checks} checks are beyond their bounds (see the table): {names}"
    )]
    BeyondBounds {
        /// Checks that failed.
        failed: usize,
        /// Checks that ran.
        checks: usize,
        /// The names of those that failed.
        names: String,
    },
    /// A file could be opened but not understood.
    #[error("{}: {source}", text::path(path))]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: FileError,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", text::path(path))]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was attempted: "open", "write", ...
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Standard output could not be written.
    #[error("standard output: cannot write: {0}")]
    Stdout(#[source] io::Error),
    /// A file name whose extension says nothing known.
    #[error("{argument} {}: expected a file name ending in {expected}, got {got}", text::path(path))]
    Extension {
        /// Which argument.
        argument: &'static str,
        /// Its value.
        path: PathBuf,
        /// The extensions that are understood.
        expected: &'static str,
        /// The extension that came.
        got: String,
    },
    /// An output would replace the input or another output, perhaps behind a link.
    #[error("{argument} {}: is {other} itself, which would be lost; choose another name", text::path(path))]
    SameFile {
        /// Which argument.
        argument: &'static str,
        /// Its value.
        path: PathBuf,
        /// What it would replace.
        other: &'static str,
    },
    /// A setting in a file's metadata that does not parse.
    #[error("metadata `{name}`: expected {expected}, got {got:?}; correct the file or pass {flag}")]
    Setting {
        /// The key.
        name: &'static str,
        /// What it must look like.
        expected: &'static str,
        /// What it is.
        got: String,
        /// The flag that overrides it.
        flag: String,
    },
    /// An argument outside what it may be.
    #[error("{argument} must be {expected}, got {got}")]
    Argument {
        /// Which argument.
        argument: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A tensor that the command needs and the file lacks.
    #[error("{tensor} is missing; the file holds {present}; {remedy}")]
    MissingTensor {
        /// Which tensor.
        tensor: &'static str,
        /// What the file holds.
        present: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A tensor of the wrong shape, in the file's order of dimensions.
    #[error("{tensor} has shape {}, expected {expected} = {meaning}", text::shape(got))]
    TensorShape {
        /// Which tensor.
        tensor: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The shape it must have, `*` where anything goes.
        expected: String,
        /// The names of the dimensions.
        meaning: &'static str,
    },
    /// A tensor of the wrong element type.
    #[error("{tensor} has dtype {got}, expected {expected}; convert it before saving")]
    TensorDtype {
        /// Which tensor.
        tensor: &'static str,
        /// Its dtype.
        got: &'static str,
        /// What it must be.
        expected: String,
    },
    /// A number of a tensor that it cannot hold.
    #[error(
        "{tensor}[{index}] must be {expected}, got {got}; it is where a sequence begins, and the last ends"
    )]
    TensorNumber {
        /// Which tensor.
        tensor: &'static str,
        /// Which of its numbers.
        index: usize,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        got: i64,
    },
    /// The problem itself makes no sense.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// The instruction set cannot be used.
    #[error("--isa: {0}")]
    Isa(#[from] IsaError),
    /// The GPU, or what it cannot do.
    #[error("--device: {0}")]
    Engine(EngineError),
    /// More memory than the machine has left.
    #[error(
        "{what} needs {needed}; machine, container and ulimit leave {available} of memory available; {remedy}"
    )]
    Memory {
        /// What needs it.
        what: String,
        /// How much.
        needed: String,
        /// How much there is.
        available: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The system starts no thread, or not as many as were asked for.
    #[error(
        "{threads} threads cannot be started: {why}; choose fewer with --threads, or raise the limits (ulimit -u, ulimit -v)"
    )]
    Threads {
        /// How many.
        threads: usize,
        /// Why not.
        why: String,
    },
    /// A file sets something that is no setting, or that is not computed.
    #[error("{what}; {remedy}")]
    UnknownSetting {
        /// Where it stands and what it is.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The picture could not be drawn.
    #[error("{}: cannot draw: {why}", text::path(path))]
    Draw {
        /// Which picture.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The engine returned something that it must not.
    #[error(
        "bench {case}: the result is wrong, {tensor} is {error:.1e} from the f64 oracle (bound {bound:.1e}); its time means nothing, please report this"
    )]
    WrongResult {
        /// The row.
        case: String,
        /// The tensor.
        tensor: TensorName,
        /// Relative Frobenius error.
        error: f64,
        /// What it may be.
        bound: f64,
    },
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Problem(problem) => Self::Problem(problem),
            other => Self::Engine(other),
        }
    }
}

impl Error {
    /// The process's exit code: see `signflash --help`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BeyondBounds { .. } | Self::WrongResult { .. } => 1,
            Self::File { source, .. } if source.is_memory() => MEMORY,
            Self::File { source, .. } if source.is_io() => 3,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::OutOfMemory => MEMORY,
            Self::Io { .. } | Self::Stdout(_) => 3,
            Self::Memory { .. } | Self::Threads { .. } => MEMORY,
            Self::Engine(EngineError::Cuda(_)) => 5,
            _ => 2,
        }
    }

    /// Whether the reader of our output simply went away (`signflash ... | head`), which is nobody's fault.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Stdout(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }
}
