//! Attention kernels with sign-bit dropout for NVIDIA GPUs, written in Rust on `signflash-ptx`.
//!
//! ```text
//! Problem, GPU  --Select-->  Config  --kernel()-->  Kernel    its PTX for the driver, or run by the interpreter
//! ForwardCall   --forward-->  [Step]                          launches with their arguments, for either
//! ```
//!
//! | kernel | computes | blocks own | walk over |
//! |---|---|---|---|
//! | [`Config::Forward`] | out, lse | queries | keys |
//! | [`Config::HopperForward`] | the same on Hopper: `src/sm90` | queries | keys |
//! | [`Config::Probs`] | the sign-encoded probabilities | queries | keys |
//! | [`Config::HopperProbs`] | the same on Hopper | queries | keys |
//! | [`Config::Delta`] | statistics of rows | rows | |
//! | [`Config::Keys`] | dk, dv, sums of dq | keys | queries of all heads of the group |
//! | [`Config::HopperKeys`] | the same on Hopper: `src/sm90/backward` | keys | queries of all heads of the group |
//! | [`Config::ConvertDq`] | dq from its sums | | |
//! | [`Config::Queries`] | dq, the same bits in every run | queries | keys |
//!
//! Nothing here knows a driver: `signflash-cuda` runs the steps on a GPU, [`Interpreted`] on the CPU.
//!
//! ```
//! use signflash_core::{Problem, Shape};
//! use signflash_kernels::{Gpu, Half, Select};
//! let shape = Shape::new(1, 4096, 4096).heads(8, 8).head_dim(128);
//! let problem = Problem::builder(shape).causal(true).build()?;
//! let select = Select { gpu: Gpu::AMPERE, aligned: true };
//! let config = select.forward(select.common(&problem, Half::Bf16), problem.shape().seqlen_k);
//! assert_eq!(config.to_string(), "sf_fwd_bf16_d128_causal_w4r32n64s2b2");
//! assert!(config.kernel().ptx().contains("mma.sync"));
//! let select = Select { gpu: Gpu::HOPPER, ..select };
//! let config = select.forward(select.common(&problem, Half::Bf16), problem.shape().seqlen_k);
//! assert!(config.kernel().ptx().contains("wgmma.mma_async"));
//! # Ok::<(), signflash_core::ProblemError>(())
//! ```
#![forbid(unsafe_code)]

pub mod config;
mod interpreted;
mod kernel;
mod parts;
pub mod plan;
pub mod select;
mod sm80;
mod sm90;
mod variants;

pub use config::{
    Access, Common, Config, DeltaRows, DqSums, HopperCommon, HopperForm, HopperKeysForm, Operands,
    PortableForm, Rows, Scores,
};
pub use interpreted::{InterpretError, Interpreted};
pub use parts::args::DeviceTensor;
pub use plan::{
    BackwardCall, BackwardChoice, BackwardShape, ForwardCall, ForwardChoice, ForwardShape, Step,
    TooManyBlocks, backward, backward_with, backward_workspace_bytes, choose_backward, choose_forward,
    forward, forward_with, portable_backward, portable_forward,
};
pub use select::{Gpu, Select, half_of};
pub use signflash_ptx::{Arg, Half, TensorMap};
pub use variants::{kernels_of, variants};
