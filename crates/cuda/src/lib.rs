//! Runs PTX kernels on NVIDIA GPUs with only the driver installed: no CUDA toolkit, no compiler, no runtime library.
//!
//! The driver's library is loaded when first used, so a program with this crate builds and starts on any machine; where
//! there is no driver, [`Device::open`] says so in a sentence. Contexts are the primary ones, so pointers and streams
//! are PyTorch's too. Kernels need compute capability 8.0 and a driver for CUDA 11.4 or newer.
//!
//! ```no_run
//! use signflash_cuda::{Arg, Device, DeviceBuffer, ModuleCache, Program, Stream};
//!
//! const PTX: &str = "
//!     .version 7.0
//!     .target sm_80
//!     .address_size 64
//!     .visible .entry number(.param .u64 to) {
//!         .reg .b64 %to, %offset;
//!         .reg .b32 %thread;
//!         ld.param.u64 %to, [to];
//!         mov.u32 %thread, %tid.x;
//!         mul.wide.u32 %offset, %thread, 4;
//!         add.u64 %to, %to, %offset;
//!         st.global.u32 [%to], %thread;
//!         ret;
//!     }";
//!
//! let device = Device::open(0)?;
//! let stream = Stream::new(&device)?;
//! let numbers = DeviceBuffer::alloc(&device, 32 * 4)?;
//! let kernels = ModuleCache::new();
//! let number = kernels.get_or_compile(&device, "number", || Program {
//!     entry: "number".into(),
//!     ptx: PTX.into(),
//!     parameter_bytes: vec![8],
//!     block_threads: 32,
//!     ..Program::default()
//! })?;
//! // SAFETY: one block of 32 threads writes 32 numbers of 4 bytes, which `numbers` has room for.
//! unsafe { number.launch(&stream, 1, &[Arg::from(&numbers)])? };
//! assert_eq!(numbers.to_host(&stream)?[4..8], 1u32.to_le_bytes());
//! # Ok::<(), signflash_cuda::CudaError>(())
//! ```
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `SIGNFLASH_CACHE_DIR` | where compiled kernels are kept; empty or `off`: nowhere |
//! | `XDG_CACHE_HOME` | without the above they are kept in its `signflash`; without both in `~/.cache/signflash` |
//! | `SIGNFLASH_CACHE_MAX_MIB` | MiB that they may take there, 256 if it is not set; 0: nothing is kept |
//! | `CUDA_VISIBLE_DEVICES` | the driver's: which GPUs a process sees, and in which order |
//! | `SIGNFLASH_REQUIRE_GPU` | only the tests read it: with `1` a test that finds no GPU fails instead of passing |
//!
//! The directory may be deleted at any time. An entry takes some 100 KiB, and a new driver or a new version of this
//! crate makes new ones; those used longest ago are deleted when room is needed. The directory is made for its user
//! alone; one that belongs to another user, or that others may write, is not used, and a warning says so.

mod bound;
mod buffer;
mod cache;
mod code;
mod compile;
mod device;
mod doing;
mod driver;
mod engine;
mod error;
mod event;
mod function;
mod graph;
mod host;
mod known;
mod launch;
mod order;
mod program;
mod resident;
mod said;
mod shared;
mod stream;
mod sys;
mod tensor;
mod value;
mod workspace;

pub use buffer::DeviceBuffer;
pub use cache::{CacheDirectory, CacheStatus, CubinStore, ModuleCache, StoreError, StoreKey};
pub use code::DriverCode;
pub use device::{Device, DeviceInfo};
pub use doing::Doing;
pub use engine::{CudaEngine, EngineError};
pub use error::CudaError;
pub use event::Event;
pub use function::Function;
pub use graph::Graph;
pub use program::Program;
pub use resident::Resident;
pub use signflash_kernels::{Arg, check_features};
pub use stream::Stream;
pub use workspace::Workspace;
