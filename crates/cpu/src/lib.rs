//! Exact attention with sign-bit dropout on CPUs, forward and backward, in O(n) memory.
//!
//! [`CpuEngine`] is all there is to call; [`raw`] describes tensors that are not borrowed.
// What only tiles and pairs of bf16 need, there and in the code that is written once for all.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_variables))]

mod ahead;
mod backward;
mod buffer;
mod call;
mod chunks;
mod division;
mod engine;
mod entry;
mod finite;
mod forward;
mod gemm;
mod isa;
mod operands;
mod order;
mod pack;
mod partial;
mod passes;
pub mod peak;
mod philox;
pub mod raw;
mod references;
mod row_end;
mod schedule;
mod score_stage;
mod sequence;
mod simd;
mod sinks;
mod team;
mod tile;
mod tiles;
mod turnstile;
mod units;
mod view;
mod visible;

pub use engine::CpuEngine;
pub use isa::{Choice, Isa, IsaError};
#[cfg(feature = "inside")]
#[doc(hidden)]
pub use passes::tests as inside;
pub use team::Team;
