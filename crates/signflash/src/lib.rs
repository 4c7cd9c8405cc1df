//! Exact attention with dropout, forward and backward, whose dropout mask lives in the sign bit of the softmax: on CPUs,
//! and with the feature `cuda` on NVIDIA GPUs.
//!
//! [`attention`] takes slices and returns vectors; [`attention_with`] takes an engine and tensors of any strides. Who
//! wants to say where results are written, or keeps tensors on a GPU, calls the engines themselves:
//! [`CpuEngine`] and `CudaEngine`.
//!
//! ```
//! use signflash::prelude::*;
//!
//! let shape = Shape::new(1, 100, 120).heads(4, 2).head_dim(64); // each key head serves two query heads
//! let dropout = DropoutGenerator::new(42).next_dropout(0.1, &shape)?;
//! let problem = Problem::builder(shape).causal(true).dropout(dropout).build()?;
//! let (q, k, v) = (vec![0.1f32; 25600], vec![0.2f32; 15360], vec![0.3f32; 15360]);
//! let attended = attention(&problem, &q, &k, &v)?;
//! let gradients = attended.backward(&vec![1.0; attended.out.len()])?;
//! assert_eq!(gradients.dk.len(), k.len());
//! # Ok::<(), ProblemError>(())
//! ```
//!
//! # Features
//!
//! | feature | meaning |
//! |---|---|
//! | `cuda` | `CudaEngine`: NVIDIA GPUs since Ampere, f16 and bf16. The driver's library is loaded when first used: a program with it builds and starts on machines without one |
#![forbid(unsafe_code)]

mod attended;
mod engine;
mod partial;

pub use attended::{Attended, BackwardWith, Grads, attention, attention_with};
pub use engine::Engine;
pub use partial::Partial;
pub use signflash_core::{
    Bias, BiasGrad, BiasMut, BiasRef, Bounds, Dropout, DropoutGenerator, Dtype, Element, GeneratorState,
    GradInputs, Gradients, Inputs, KeepBlock, KeepRule, Outputs, Piece, Problem, ProblemBuilder,
    ProblemError, Probs, ResultOf, ScaleRule, ScoreInputs, Sequence, Shape, Shard, SharedGenerator, SignBit,
    Slopes, TensorMut, TensorName, TensorRef, Visibility, Window, bf16, dropout, f16, judge, oracle,
    sign_bit,
};
pub use signflash_cpu::{CpuEngine, Isa, IsaError};
#[cfg(feature = "cuda")]
pub use signflash_cuda::{
    CudaEngine, CudaError, Device, DeviceBuffer, EngineError, Event, Graph, Resident, Stream, Workspace,
};
#[cfg(feature = "cuda")]
pub use signflash_kernels::{BackwardCall, DeviceTensor, ForwardCall, Half, Order, Stored};

/// What most programs use.
///
/// ```
/// use signflash::prelude::*;
/// ```
pub mod prelude {
    pub use crate::{
        Attended, CpuEngine, Dropout, DropoutGenerator, Engine, Grads, Inputs, Problem, ProblemError, Probs,
        Shape, SignBit, TensorMut, TensorRef, attention, attention_with, bf16, f16,
    };
    #[cfg(feature = "cuda")]
    pub use crate::{CudaEngine, Device, EngineError, Stream};
}

/// README's example, so that it compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
