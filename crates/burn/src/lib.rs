//! Exact attention with dropout for Burn: an operator with a backward of its own, in memory that grows with the length,
//! not with its square. It runs on Burn's CPU back end, Flex, in f32, f16 and bf16, and with the feature `cuda` on Burn's CUDA
//! back end, on NVIDIA GPUs since Ampere, in f16 and bf16; with and without `Autodiff`.
//!
//! What is dropped is drawn again by the backward; no mask is stored. Results are the contract's, as exact as those of
//! [Signflash](https://docs.rs/signflash)'s engines, which compute them.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use signflash_burn::{Attention, Generator};
//!
//! let device = Device::flex().autodiff();
//! let generator = Generator::new(42); // of a model: its layers share it
//! let attention = Attention::new().causal(true).dropout(0.1, &generator);
//!
//! // (batch, num_heads, seqlen, head_dim), as Burn has it.
//! let q = Tensor::<4>::random([2, 8, 100, 64], Distribution::Normal(0.0, 1.0), &device).require_grad();
//! let out = attention.forward(q.clone(), q.clone(), q.clone());
//! let gradients = out.powi_scalar(2).sum().backward();
//! assert_eq!(q.grad(&gradients).unwrap().dims(), q.dims());
//! ```
//!
//! [`Attention`] holds what does not change from call to call, [`MultiHeadAttention`] is Burn's layer of that name with
//! dropout that costs no memory, [`attention`] takes a [`Problem`] of Signflash's, which can say all there is.
//!
//! As in Burn, what does not fit is a panic that says what was expected.

mod attention;
mod cache;
#[cfg(feature = "cuda")]
mod cuda;
mod flex;
#[cfg(feature = "cuda")]
mod fusion;
mod inputs;
mod multi_head;
mod operator;
mod scores;

pub use attention::{Attention, attention, attention_with_lse};
pub use cache::MhaCache;
pub use inputs::{Inputs, ScoreInputs};
pub use multi_head::MultiHeadAttention;
#[doc(hidden)]
pub use operator::{
    Backwards, Call, Forward, Given, MaybeBool, MaybeFloat, Operands, SignflashBackend, SignflashGradients,
};
pub use signflash_core::SharedGenerator as Generator;
pub use signflash_core::{Dropout, Dtype, GeneratorState, Problem, ScaleRule, Shape, Shard, Slopes};
