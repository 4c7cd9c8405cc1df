//! Whether tensors hold an infinity or a NaN.

use crate::raw::RawTensor;
use crate::schedule;
use signflash_core::{Dtype, Element};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether every element is finite. One pass over the tensor: nothing beside attention's quadratic work.
///
/// # Safety
/// The tensor was checked, and nobody writes it meanwhile.
pub(crate) unsafe fn all_finite<T: Element>(threads: usize, x: RawTensor<T>) -> bool {
    let [batch, seqlen, heads, _] = x.shape;
    if x.shape.contains(&0) {
        return true; // however many heads there are of nothing
    }
    let found = AtomicBool::new(false);
    schedule::run(
        threads,
        batch * heads,
        || (),
        |(), unit| {
            let (b, h) = (unit / heads, unit % heads);
            // SAFETY: the index lies inside the shape; the rest is the caller's promise.
            let finite = (0..seqlen).all(|s| row_is_finite(unsafe { x.row([b, s, h]) }));
            if !finite {
                found.store(true, Ordering::Relaxed);
            }
        },
    );
    !found.into_inner()
}

/// Whether the gradient of lse is finite wherever it counts: where a query saw a key.
pub(crate) fn finite_where_seen(lse: &[f32], dlse: &[f32]) -> bool {
    lse.iter().zip(dlse).all(|(lse, dlse)| *lse == f32::NEG_INFINITY || dlse.is_finite())
}

/// An exponent of all ones is an infinity or a NaN. Without early exit, so that it vectorises.
fn row_is_finite<T: Element>(row: &[T]) -> bool {
    match T::DTYPE {
        Dtype::F32 => {
            let bits: &[u32] = bytemuck::cast_slice(row);
            bits.iter().fold(0, |found, x| found | u32::from(x & 0x7f80_0000 == 0x7f80_0000)) == 0
        }
        dtype => {
            let exponent = if dtype == Dtype::F16 { 0x7c00 } else { 0x7f80 };
            let bits: &[u16] = bytemuck::cast_slice(row);
            bits.iter().fold(0, |found, x| found | u16::from(x & exponent == exponent)) == 0
        }
    }
}
