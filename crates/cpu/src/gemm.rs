//! The one micro-kernel: `C[M][N vectors] = sum over depth of A[M][k] (a broadcast word) * B[k][N vectors]`.
//!
//! Queries lie along the lanes, so each product of attention has this form without packing its broadcast operand:
//! `s^T = K q^T`, `out^T = V^T p^T`, `dp^T = V dout^T`, `dv = p^T dout`, `dk = ds^T q`, `dq^T = K^T ds^T`. Every sum
//! runs over its depth in order, one fused multiply-add a step, whatever the width of the vectors: the same bits from
//! AVX2 and AVX-512.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::simd::Simd;
use crate::tiles;

/// Vectors that a micro-tile is wide.
pub(crate) const NV: usize = 2;

/// Keys that are computed at a time: those of a micro-tile of `MR`, or of a product of tiles.
pub(crate) const fn step_keys<S: Simd, const MR: usize>() -> usize {
    if S::TILES { tiles::SIDE } else { MR }
}

/// The broadcast operand: word (m, k) lies at `p[m * row + k * step]`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) p: *const u32,
    pub(crate) row: usize,
    pub(crate) step: usize,
}

/// The lane operand: the vectors of k lie at `p[k * step ..]`.
#[derive(Clone, Copy)]
pub(crate) struct Right {
    pub(crate) p: *const u32,
    pub(crate) step: usize,
}

/// Which operand is a weight whose zeros must not meet the infinities and NaNs of the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    Left,
    Right,
}

/// The product of `depth` words.
///
/// # Safety
/// As [`Simd`]; `a` and `b` must be readable for `M` rows, `depth` steps and `N` vectors.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, const M: usize, const N: usize>(
    depth: usize,
    a: Left,
    b: Right,
) -> [[S::V; N]; M] {
    let mut acc = [[S::splat(0.0); N]; M];
    let mut b_step = b.p;
    let mut a_step = a.p;
    for _ in 0..depth {
        let mut lanes = [S::splat(0.0); N];
        for (n, lane) in lanes.iter_mut().enumerate() {
            *lane = S::load(b_step.add(n * S::LANES).cast());
        }
        for (m, acc) in acc.iter_mut().enumerate() {
            let word = S::broadcast(a_step.add(m * a.row));
            for (acc, lane) in acc.iter_mut().zip(lanes) {
                *acc = S::mac(*acc, word, lane);
            }
        }
        a_step = a_step.wrapping_add(a.step);
        b_step = b_step.wrapping_add(b.step);
    }
    acc
}

/// The product with weights. In `careful` calls, whose inputs hold infinities or NaNs, a weight of zero contributes
/// nothing, whatever it is multiplied with; that is slower. Words are f32 then.
///
/// # Safety
/// As [`product`].
#[inline(always)]
pub(crate) unsafe fn product_of_weights<S: Simd, const M: usize, const N: usize>(
    depth: usize,
    a: Left,
    b: Right,
    weight: Weight,
    careful: bool,
) -> [[S::V; N]; M] {
    if S::PAIRS || !careful {
        return product::<S, M, N>(depth, a, b);
    }
    let mut acc = [[S::splat(0.0); N]; M];
    for k in 0..depth {
        for (m, acc) in acc.iter_mut().enumerate() {
            let word = S::broadcast(a.p.add(m * a.row + k * a.step));
            for (n, acc) in acc.iter_mut().enumerate() {
                let lane = S::load(b.p.add(k * b.step + n * S::LANES).cast());
                let test = if weight == Weight::Left { word } else { lane };
                *acc = S::where_nonzero(test, S::mac(*acc, word, lane), *acc);
            }
        }
    }
    acc
}
