//! Attention kernels with sign-bit dropout for NVIDIA GPUs, written in Rust on `signflash-ptx`.
//!
//! ```text
//! ForwardCall, Gpu  --ForwardChoice::of-->  which kernels, and why  --tasks()-->  [Task]  launches and arguments
//! Config            --kernel()-->           Kernel                   its PTX for the driver, or run by the interpreter
//! ```
//!
//! | kernel | computes | blocks own | walk over | on Hopper |
//! |---|---|---|---|---|
//! | [`Config::Forward`] | out, lse | queries | keys | its own: `src/sm90` |
//! | [`Config::Probs`] | the sign-encoded probabilities | queries | keys | its own |
//! | [`Config::Delta`] | statistics of rows | rows | | the same |
//! | [`Config::Keys`] | dk, dv, sums of dq | keys | queries of all heads of the group | its own: `src/sm90/backward` |
//! | [`Config::Dq`] | dq from its sums, or by a pass of its own | rows, or queries | keys | from sums, wherever its own pass over keys runs |
//!
//! Nothing here knows a driver: `signflash-cuda` runs the tasks on a GPU, [`Interpreted`] on the CPU.
//!
//! ```
//! use signflash_core::{Problem, Shape};
//! use signflash_kernels::{ForwardCall, ForwardChoice, Gpu, Half, Kernels};
//! let shape = Shape::new(1, 4096, 4096).heads(8, 8).head_dim(128);
//! let problem = Problem::builder(shape).causal(true).build()?;
//! let call = ForwardCall::of_dense(&problem, Half::Bf16);
//! let config = ForwardChoice::of(&call, Gpu::AMPERE, Kernels::Best).kernels().next().unwrap();
//! assert_eq!(config.to_string(), "sf_fwd_bf16_d128_causal_w4r32n64s2b2");
//! assert!(config.kernel().ptx().contains("mma.sync"));
//! let config = ForwardChoice::of(&call, Gpu::HOPPER, Kernels::Best).kernels().next().unwrap();
//! assert!(config.kernel().ptx().contains("wgmma.mma_async"));
//! # Ok::<(), signflash_core::ProblemError>(())
//! ```
#![forbid(unsafe_code)]

mod arguments;
mod call;
mod choose;
pub mod config;
mod geometry;
mod gpu;
mod hosted;
mod interpreted;
mod kernel;
mod overlays;
mod packed;
mod padding;
mod parts;
mod plan;
mod rows;
mod scores;
mod sm80;
mod sm90;
mod tables;
mod takes;
mod tensor;
mod variants;
mod words;
mod workspace;

pub use call::{BackwardCall, CallError, ForwardCall, Task, TooManyBlocks, check_features, half_of};
pub use choose::{BackwardChoice, ForwardChoice, Kernels, NotEnoughWorkspace};
pub use config::{
    Access, BandKind, Common, Config, DbiasKernel, DeltaRows, DqKernel, DqSums, ForwardKernel, HopperCommon,
    HopperForm, HopperKeysForm, KeysKernel, Layout, Numbers, Operands, OverlayKind, Overlays, PortableForm,
    Product, RowsCommon, ScoreKind, Scores, Stored,
};
pub use gpu::Gpu;
pub use hosted::{HeldScores, HostBackward, HostForward, Memory};
pub use interpreted::{InterpretError, Interpreted};
pub use scores::{DeviceScoreTensor, DeviceScores};
pub use signflash_ptx::{Arg, Half, Kernel, Target, TensorMap};
pub use takes::NotHopper;
pub use tensor::{DeviceTensor, Order};
pub use variants::{Calls, Masks, variants};
pub use words::Words;
pub use workspace::{backward_workspace_bytes, forward_workspace_bytes};
