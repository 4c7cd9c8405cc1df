//! Tables of forms: the first row that fits a problem and a GPU wins.
//!
//! They were chosen by measurement on an H200 for head_dim 64 and 128 (see `benchmarks/gpu.md`); other rows are
//! bounded by registers (255 a thread) and by shared memory.
pub(crate) mod hopper;
pub(crate) mod portable;
