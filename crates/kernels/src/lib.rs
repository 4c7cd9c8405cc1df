//! Attention kernels with sign-bit dropout, written in Rust on `signflash-ptx`.
#![forbid(unsafe_code)]

pub mod config;
mod interpreted;
mod parts;
pub mod plan;
pub mod select;
mod sm80;
mod variants;

pub use config::{Common, Config, DqSums, Tiles};
pub use interpreted::{InterpretError, Interpreted};
pub use parts::args::DeviceTensor;
pub use parts::copy::Access;
pub use plan::{
    BackwardCall, ForwardCall, Step, TooManyBlocks, backward, backward_with, backward_workspace_bytes,
    forward, forward_with,
};
pub use select::{Gpu, Select, half_of};
pub use signflash_ptx::{Arg, Half};
pub use variants::variants;
