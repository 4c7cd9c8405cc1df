//! What the instructions of AMX compute, in plain Rust.
//!
//! Results below 2^-126 are flushed once they have been rounded to f32's subnormals, where the instruction rounds as if
//! exponents had no end: a sum between 2^-126 - 2^-150 and 2^-126 - 2^-151 would come out as 2^-126 here and as 0 there.

use super::{Left, ROWS, Right, SIDE, STEP_WORDS, Sums};

/// # Safety
/// As [`super::Tiles::product`].
#[inline(always)]
pub(super) unsafe fn product<const ADD: bool>(rows: usize, depth: usize, a: Left, b: Right, to: Sums) {
    for first in (0..rows).step_by(ROWS) {
        let a = Left { p: a.p.wrapping_add(first * a.row), ..a };
        let to = Sums { p: to.p.wrapping_add(first * to.row), ..to };
        // SAFETY: the caller's promise for some of the rows.
        unsafe { product_of_rows::<ADD>(depth, a, b, to) };
    }
}

/// # Safety
/// As [`product`], of one tile's rows.
#[inline(always)]
unsafe fn product_of_rows<const ADD: bool>(depth: usize, a: Left, b: Right, to: Sums) {
    let mut sums = [[0.0f32; SIDE]; ROWS];
    for step in (0..depth).step_by(STEP_WORDS) {
        let mut right = [[[0.0f32; SIDE]; 2]; STEP_WORDS];
        for (k, right) in right.iter_mut().enumerate() {
            let [evens, odds] = right;
            for (n, (even, odd)) in evens.iter_mut().zip(odds).enumerate() {
                // SAFETY: row `step + k` of `b`, which has SIDE words, by the caller's promise.
                [*even, *odd] = pair(unsafe { b.p.add((step + k) * b.step + n).read_unaligned() });
            }
        }
        for (m, sums) in sums.iter_mut().enumerate() {
            if ADD && step == 0 {
                for (n, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: row m of the sums, by the caller's promise.
                    *sum = unsafe { to.p.add(m * to.row + n).read() };
                }
            }
            let (mut evens, mut odds) = ([0.0f32; SIDE], [0.0f32; SIDE]);
            for (k, right) in right.iter().enumerate() {
                // SAFETY: row m of `a`, which has `depth` words, by the caller's promise.
                let [even, odd] = pair(unsafe { a.p.add(m * a.row + step + k).read_unaligned() });
                for n in 0..SIDE {
                    evens[n] = flush(even.mul_add(right[0][n], evens[n]));
                    odds[n] = flush(odd.mul_add(right[1][n], odds[n]));
                }
            }
            for n in 0..SIDE {
                sums[n] = flush(flush(sums[n]) + flush(evens[n] + odds[n]));
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        // SAFETY: row m of the sums, by the caller's promise.
        unsafe { to.p.add(m * to.row).copy_from_nonoverlapping(sums.as_ptr(), SIDE) };
    }
}

/// The even and the odd half of a word, subnormals as zeros.
#[inline(always)]
fn pair(word: u32) -> [f32; 2] {
    [word << 16, word & 0xffff_0000].map(|bits| flush(f32::from_bits(bits)))
}

/// Subnormal numbers become zeros of their sign.
#[inline(always)]
fn flush(x: f32) -> f32 {
    let is_small = x.abs() < f32::MIN_POSITIVE;
    f32::from_bits(x.to_bits() & if is_small { 1 << 31 } else { u32::MAX })
}
