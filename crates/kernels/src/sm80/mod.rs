//! Kernels of Ampere's instructions (mma.sync, ldmatrix, cp.async), which every later GPU runs.

pub(crate) mod backward_keys;
pub(crate) mod backward_queries;
pub(crate) mod dbias;
pub(crate) mod forward;
pub(crate) mod probs;
mod query_block;
