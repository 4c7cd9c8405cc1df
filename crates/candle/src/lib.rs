//! Exact attention with dropout for candle: forward and backward in memory that grows with the length, not with its
//! square, on CPUs (f32, f16, bf16) and with the feature `cuda` on NVIDIA GPUs since Ampere (f16, bf16).
//!
//! What is dropped is drawn again by the backward; no mask is stored. Results are the contract's, as exact as those of
//! [Signflash](https://docs.rs/signflash)'s engines, which compute them.
//!
//! ```
//! use candle_core::{Device, Result, Tensor};
//! use signflash_candle::{Attention, Generator};
//!
//! # fn main() -> Result<()> {
//! let generator = Generator::new(42); // of a model: its layers share it
//! let attention = Attention::new().causal(true).dropout(0.1, &generator);
//!
//! let (batch, seqlen, heads, head_dim) = (2, 100, 8, 64);
//! let q = Tensor::randn(0f32, 1.0, (batch, seqlen, heads, head_dim), &Device::Cpu)?;
//! let out = attention.forward(&q, &q, &q, true)?; // differentiable; with `false` nothing is dropped
//! assert_eq!(out.dims(), q.dims());
//! # Ok(())
//! # }
//! ```
//!
//! [`Attention`] holds what does not change from call to call. [`MultiHeadAttention`] adds projections whose weights
//! come from a `VarBuilder`. [`attention`] takes a [`Problem`] of Signflash's, which can say all there is: shards,
//! diagonals, a dropout mask of your own choosing.

mod attention;
mod call;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod inputs;
mod join;
mod layout;
mod lse;
mod multi_head;
mod op;
mod scores;

pub use attention::Attention;
pub use call::{attention, attention_with_lse, probs};
pub use inputs::{Inputs, ScoreInputs};
pub use layout::Layout;
pub use multi_head::{MultiHeadAttention, MultiHeadConfig};
pub use signflash_core::SharedGenerator as Generator;
pub use signflash_core::{Dropout, Dtype, GeneratorState, Problem, ScaleRule, Shape, Shard, Slopes};
