//! Work on rows, the same on every GPU; and where what the kernels tell each other of rows lies, which has no strides.

pub(crate) mod convert_dq;
pub(crate) mod delta;
pub(crate) mod dq_sums;
pub(crate) mod dsinks;
pub(crate) mod head;
pub(crate) mod lse;
pub(crate) mod packed_delta;
pub(crate) mod statistics;

use signflash_ptx::{Cta, U32, Val};

/// The block's number, counted from the last: what the kernel before has written last is in the second-level cache when the
/// first blocks run.
#[track_caller]
fn from_the_last(cta: Cta<'_>) -> Val<'_, U32> {
    cta.count() - 1 - cta.index()
}
