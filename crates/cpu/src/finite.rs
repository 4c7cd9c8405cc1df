//! Whether tensors hold an infinity or a NaN.

use crate::schedule;
use crate::view::View;
use signflash_core::Dtype;
use std::slice::from_raw_parts;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether every element is finite. One pass over the tensor: nothing beside attention's quadratic work.
pub(crate) fn all_finite(threads: usize, x: &View<'_>) -> bool {
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
            if !(0..seqlen).all(|s| row_is_finite(x, [b, s, h])) {
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

/// Whether a row is of NaNs, which what is hidden from it and what it drops must be kept from.
pub(crate) fn has_nan_rows(lse: &[f32]) -> bool {
    lse.iter().any(|lse| lse.is_nan() || *lse == f32::INFINITY)
}

/// An exponent of all ones is an infinity or a NaN. Without early exit, so that it vectorises.
fn row_is_finite(x: &View<'_>, index: [usize; 3]) -> bool {
    let (row, len) = (x.row(index), x.shape[3]);
    match x.dtype {
        Dtype::F32 => {
            // SAFETY: a row is dense and aligned, as the checks of the operands proved, and nobody writes it, by the
            // promise to `View::new`.
            let bits: &[u32] = unsafe { from_raw_parts(row.cast(), len) };
            bits.iter().fold(0, |found, x| found | u32::from(x & 0x7f80_0000 == 0x7f80_0000)) == 0
        }
        dtype => {
            let exponent = if dtype == Dtype::F16 { 0x7c00 } else { 0x7f80 };
            // SAFETY: as above.
            let bits: &[u16] = unsafe { from_raw_parts(row.cast(), len) };
            bits.iter().fold(0, |found, x| found | u16::from(x & exponent == exponent)) == 0
        }
    }
}
