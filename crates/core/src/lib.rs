//! Attention whose dropout mask lives in the sign bit: what is computed, without saying where.
//!
//! This crate knows no GPU, no framework and no SIMD. It holds
//! - [`Problem`]: sizes, window, packed sequences, scale, dropout and shard position, validated once;
//! - [`TensorRef`] and [`TensorMut`]: borrowed, strided tensors, judged against a problem by [`Inputs`],
//!   [`Outputs`], [`GradInputs`] and [`Gradients`];
//! - [`Piece`]: a part of a problem, which is a problem itself;
//! - [`Sequence`]: where each sequence of a problem lies in its tensors;
//! - [`Window`] and [`Visibility`]: which keys a query sees, and which queries see a key;
//! - [`dropout`]: the dropout mask as a pure function of position, equal to FlashAttention-2's bit for bit;
//! - [`sign_bit`]: the codec that lets one tensor say how probable an entry is and whether it was dropped;
//! - [`oracle`]: forward and backward in f64, written like the formulas;
//! - [`judge`]: how far from that a result may be, one rule for all;
//! - `suite` (feature `suite`): the named cases that every implementation must pass.
//!
//! The formulas (natural logarithm, all sums over the keys that a query may see):
//!
//! ```text
//! s[i,j] = softmax_scale <q[i], k[j]>      lse[i] = log sum_j exp(s[i,j])      p[i,j] = exp(s[i,j] - lse[i])
//! out[i] = keep_scale sum_{j kept} p[i,j] v[j]
//! ```
#![forbid(unsafe_code)]

mod alone;
mod builder;
mod description;
pub mod dropout;
mod dtype;
mod error;
pub mod judge;
mod lengths;
mod operands;
pub mod oracle;
mod piece;
mod problem;
mod scores;
mod sequence;
mod shape;
pub mod sign_bit;
#[cfg(feature = "suite")]
pub mod suite;
mod tensor;
mod visibility;
mod window;

pub use builder::{MAX_HEAD_DIM, ProblemBuilder};
pub use description::Description;
pub use dropout::{
    Dropout, DropoutGenerator, GeneratorState, KeepBlock, KeepRule, ScaleRule, SharedGenerator,
};
pub use dtype::{Dtype, Element, ResultOf};
pub use error::{ProblemError, TensorName};
pub use half::{bf16, f16};
pub use judge::Bounds;
pub use operands::{GradInputs, Gradients, Inputs, Outputs, check_rows};
pub use piece::Piece;
pub use problem::Problem;
pub use scores::{Bias, BiasGrad, BiasMut, BiasRef, Feature, ScoreDescription, ScoreInputs, Slopes};
pub use sequence::Sequence;
pub use shape::{Shape, Shard};
pub use sign_bit::{Probs, SignBit};
pub use tensor::{TensorMut, TensorRef, contiguous_strides};
pub use visibility::{Cover, Number, Span, Visibility};
pub use window::Window;
