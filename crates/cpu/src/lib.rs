//! Exact attention with sign-bit dropout on CPUs, forward and backward, in O(n) memory.
//!
//! [`CpuEngine`] is all there is to call.

mod engine;
mod isa;

pub use engine::CpuEngine;
pub use isa::{Isa, IsaError};
