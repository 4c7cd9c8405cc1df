//! What several kernels share, one concept a file.

pub(crate) mod args;
pub(crate) mod copy;
pub(crate) mod cursor;
pub(crate) mod dropout;
pub(crate) mod epilogue;
pub(crate) mod hiding;
pub(crate) mod overlays;
pub(crate) mod product;
pub(crate) mod scores;
pub(crate) mod sequence;
pub(crate) mod sinks;
pub(crate) mod softmax;
pub(crate) mod visibility;
pub(crate) mod width;
pub(crate) mod work;
