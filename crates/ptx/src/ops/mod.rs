//! The instructions, one family a file: what it prints and what it does.

pub mod alu;
mod alu_slips;
pub(crate) mod atomic;
pub(crate) mod barrier;
pub(crate) mod bulk;
pub(crate) mod control;
pub(crate) mod counter;
pub(crate) mod cp_async;
mod lanes;
pub(crate) mod ldmatrix;
pub(crate) mod mbarrier;
pub(crate) mod memory;
pub(crate) mod mma;
pub(crate) mod movmatrix;
pub(crate) mod param;
pub(crate) mod registers;
pub(crate) mod shuffle;
pub(crate) mod stmatrix;
pub(crate) mod tensor;
pub(crate) mod vote;
pub(crate) mod wgmma;
