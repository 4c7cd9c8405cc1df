//! Work on rows, the same on every GPU; and where what the kernels tell each other of rows lies, which has no strides.

pub(crate) mod convert_dq;
pub(crate) mod delta;
pub(crate) mod dq_sums;
pub(crate) mod dsinks;
pub(crate) mod head;
pub(crate) mod lse;
pub(crate) mod packed_delta;
pub(crate) mod statistics;
