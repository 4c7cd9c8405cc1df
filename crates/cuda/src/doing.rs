//! What was being done when an error came.

use std::fmt;

/// What was being done on the GPU when an error came.
///
/// ```
/// use signflash_cuda::Doing;
/// assert_eq!(Doing::Launch { kernel: "forward".into() }.to_string(), "launching kernel `forward`");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doing {
    /// Loading and initialising the driver.
    LoadDriver,
    /// Opening a GPU and reading what it can do.
    OpenDevice {
        /// Its number.
        ordinal: u32,
    },
    /// Making a GPU the current one of this thread.
    UseDevice {
        /// Its number.
        ordinal: u32,
    },
    /// Compiling a kernel's PTX.
    Compile {
        /// Its name.
        kernel: String,
    },
    /// Loading a compiled kernel.
    Load {
        /// Its name.
        kernel: String,
    },
    /// Launching a kernel.
    Launch {
        /// Its name.
        kernel: String,
    },
    /// Describing a tensor for the copy engine.
    EncodeTensor {
        /// Which.
        map: String,
    },
    /// Allocating memory.
    Allocate {
        /// How much.
        bytes: usize,
    },
    /// Filling memory with one byte.
    Fill {
        /// How much.
        bytes: usize,
    },
    /// Copying between host and GPU.
    Copy {
        /// How much.
        bytes: usize,
    },
    /// Creating a stream.
    CreateStream,
    /// Waiting for a stream or an event; errors of kernels that ran before appear here.
    Synchronize,
    /// Creating, recording or reading events.
    Time,
    /// Having one stream's work wait for others'.
    Order,
    /// Capturing a stream into a graph.
    Capture,
    /// Replaying a graph.
    Replay,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadDriver => write!(f, "initialising the CUDA driver"),
            Self::OpenDevice { ordinal } => write!(f, "opening GPU {ordinal}"),
            Self::UseDevice { ordinal } => write!(f, "making GPU {ordinal} current"),
            Self::Compile { kernel } => write!(f, "compiling kernel `{kernel}`"),
            Self::Load { kernel } => write!(f, "loading kernel `{kernel}`"),
            Self::Launch { kernel } => write!(f, "launching kernel `{kernel}`"),
            Self::EncodeTensor { map } => write!(f, "describing {map} for the copy engine"),
            Self::Allocate { bytes } => write!(f, "allocating {bytes} bytes on the GPU"),
            Self::Fill { bytes } => write!(f, "filling {bytes} bytes on the GPU"),
            Self::Copy { bytes } => write!(f, "copying {bytes} bytes between host and GPU"),
            Self::CreateStream => write!(f, "creating a stream"),
            Self::Synchronize => write!(f, "waiting for the GPU"),
            Self::Order => write!(f, "ordering a stream with the others of its GPU"),
            Self::Time => write!(f, "timing on the GPU"),
            Self::Capture => write!(f, "capturing a stream"),
            Self::Replay => write!(f, "replaying a graph"),
        }
    }
}
