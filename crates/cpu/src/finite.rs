//! Whether operands hold an infinity or a NaN.

use crate::pack::Rows;
use crate::simd::Simd;

/// Whether every element of `count` rows of `words` words is finite: an exponent of all ones is an infinity or a NaN.
/// Without early exit, so that it vectorises.
///
/// # Safety
/// As [`Simd`]; the words must be readable.
#[inline(always)]
pub(crate) unsafe fn rows_are_finite<S: Simd>(rows: Rows, count: usize, words: usize) -> bool {
    let (low, high) = (0x7f80, 0x7f80_0000);
    let mut found = false;
    for r in 0..count {
        for word in 0..words {
            // SAFETY: the caller's promise. A word of a pair of bf16 in place may begin between two words.
            let x = unsafe { rows.p.add(r * rows.ld + word).read_unaligned() };
            found |= (x & high == high) | (S::PAIRS && x & low == low);
        }
    }
    !found
}

/// Whether the gradient of lse is finite wherever it counts: where a query saw a key.
pub(crate) fn finite_where_seen(lse: &[f32], dlse: &[f32]) -> bool {
    lse.iter().zip(dlse).all(|(lse, dlse)| *lse == f32::NEG_INFINITY || dlse.is_finite())
}

/// Whether a row is of NaNs, which what is hidden from it and what it drops must be kept from.
pub(crate) fn has_nan_rows(lse: &[f32]) -> bool {
    lse.iter().any(|lse| lse.is_nan() || *lse == f32::INFINITY)
}
