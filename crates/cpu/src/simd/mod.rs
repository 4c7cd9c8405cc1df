//! One vector interface over all instruction sets, as narrow as the kernels need it.
//!
//! The kernels are written once, over [`Simd`]. Every method is `#[inline(always)]` and carries no
//! `#[target_feature]` of its own: it takes the features of the entry function that it is inlined into (`entry.rs`),
//! which runs only after [`Isa::require`](crate::Isa::require) has seen them on this machine. That is the safety
//! contract of every `unsafe fn` below: *call only from code that is inlined into such an entry*, with pointers valid
//! for the lanes read or written. So the modules here spare each intrinsic its own block.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
pub(crate) mod tanh;
#[cfg(test)]
mod tests;

use crate::philox::RowPhilox;

/// Vectors of f32 lanes, and what the kernels do with them.
///
/// A *word* is 32 bits of a matrix operand: one f32, or two neighbouring bf16 along the summed dimension
/// ([`PAIRS`](Self::PAIRS)). One micro-kernel serves both, because both multiply a broadcast word by a vector of words.
pub(crate) trait Simd: Copy + 'static {
    /// f32 lanes of a vector.
    const LANES: usize;
    /// Whether a word is a pair of bf16 instead of an f32.
    const PAIRS: bool;
    /// Whether products are [tiles](crate::tiles)'. Only when [`PAIRS`](Self::PAIRS), with 16 lanes.
    const TILES: bool = false;
    /// Elements of a word.
    const UNIT: usize = if Self::PAIRS { 2 } else { 1 };
    /// In which order [`drop_block`](Self::drop_block) wants the eight rows of a Philox lane column.
    const PHILOX_ORDER: [usize; 8];
    /// A vector.
    type V: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, x: Self::V);
    /// The word at `p` in every lane.
    unsafe fn broadcast(p: *const u32) -> Self::V;
    /// `acc + a * b`, lane by lane; a sum of two products when words are pairs.
    unsafe fn mac(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the machine can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// 2^x for x up to 127; 0 below -126.5 (or -126) and for -inf, NaN for NaN. Relative error below 1e-7, 2e-7 for pairs.
    unsafe fn exp2(x: Self::V) -> Self::V;
    /// `x` with the sign bit cleared, NaN or not.
    unsafe fn abs(x: Self::V) -> Self::V;
    /// `x` with the sign bit set in the lanes whose bit of `drop` is set, counted from bit `first`, a multiple of
    /// `LANES`.
    unsafe fn sign_where(x: Self::V, drop: *const u16, first: u32) -> Self::V;
    /// By the sign bit of `sign`: `plus` where clear, `minus` where set.
    unsafe fn by_sign(sign: Self::V, plus: Self::V, minus: Self::V) -> Self::V;
    /// `x` where `a < b`, else `otherwise`.
    unsafe fn where_less(a: Self::V, b: Self::V, x: Self::V, otherwise: Self::V) -> Self::V;
    /// Whether every lane is less than `limit`; NaN is not.
    unsafe fn all_less(x: Self::V, limit: f32) -> bool;
    /// Whether any lane's magnitude is at least `limit`.
    unsafe fn any_reaches(x: Self::V, limit: f32) -> bool;
    /// `x` where `test` is not zero (NaN is not), else `otherwise`.
    unsafe fn where_nonzero(test: Self::V, x: Self::V, otherwise: Self::V) -> Self::V;

    /// A block of `LANES` x `LANES` words: `dst[c * dst_ld + r] = src[r * src_ld + c]`.
    unsafe fn transpose(src: *const u32, src_ld: usize, dst: *mut u32, dst_ld: usize);

    /// `LANES` f16 as f32.
    unsafe fn load_f16(p: *const u16) -> Self::V;
    /// `LANES` bf16 as f32.
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// `LANES` f32 rounded to f16, ties to even.
    unsafe fn store_f16(p: *mut u16, x: Self::V);
    /// `LANES` f32 rounded to bf16, ties to even.
    unsafe fn store_bf16(p: *mut u16, x: Self::V);

    /// As [`store_bf16`](Self::store_bf16), subnormals flushed to zero. Only when [`PAIRS`](Self::PAIRS).
    unsafe fn store_weights(p: *mut u16, x: Self::V);
    /// Words of which each holds the bf16 of `even` (low half) and of `odd`. Only when [`PAIRS`](Self::PAIRS).
    unsafe fn store_pair(p: *mut u32, even: Self::V, odd: Self::V);
    /// The same of weights, which are not negative, and 0 rather than subnormal: ties may be rounded up, and a NaN may become any
    /// number, since the sum of its row says that it was one.
    unsafe fn store_weight_pair(p: *mut u32, even: Self::V, odd: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { Self::store_pair(p, even, odd) }
    }
    /// Two rows of `2 * LANES` bf16 each, woven: `dst[c]` is (row `even` element c, row `odd` element c). Only when
    /// [`PAIRS`](Self::PAIRS).
    unsafe fn weave(even: *const u32, odd: *const u32, dst: *mut u32);

    /// The dropped entries of one Philox block: bit r of `out[c]` says that row r, column c is dropped.
    unsafe fn drop_block(row: &RowPhilox, block_column: u32, threshold: u8, out: *mut u16);
}

/// Adding it rounds to a whole number n and leaves n + 127 in the lowest bits of the sum: shifted up by 23 they are
/// 2^n, and 0 for n = -127. Cheaper than `vreduceps` and `vscalefps`, which take a cycle each on Zen 5 (`vscalefps`
/// two on Zen 4).
pub(crate) const EXP2_SHIFT: f32 = 12_582_912.0 + 127.0;

/// Where 2^x is 0 already.
pub(crate) const EXP2_LEAST: f32 = -127.0;

/// Minimax coefficients of 2^f on [-0.5, 0.5] with a constant term of exactly 1, highest first: relative error 2.0e-9,
/// 7.9e-8 when evaluated in f32 (fitted by Lawson iteration in f64). 2^0 must be exactly 1, so that a row whose maximum
/// did not move is not rescaled.
pub(crate) const EXP2_DEGREE_6: [f32; 7] =
    [1.5353362e-4, 1.3398875e-3, 9.618437e-3, 5.5503324e-2, 2.4022648e-1, 6.931472e-1, 1.0];

/// The same of degree 5: 9.1e-8, 1.6e-7 in f32; enough where probabilities are rounded to bf16.
#[allow(clippy::approx_constant)] // fitted, not ln 2
pub(crate) const EXP2_DEGREE_5: [f32; 6] =
    [1.3264727e-3, 9.671513e-3, 5.5507336e-2, 2.4022242e-1, 6.93147e-1, 1.0];

/// The same of degree 5 on [0, 1]: 8.3e-8, 1.5e-7 in f32.
pub(crate) const EXP2_DEGREE_5_ABOVE: [f32; 6] =
    [1.8671302e-3, 9.01703e-3, 5.5799913e-2, 2.4016444e-1, 6.931513e-1, 1.0];

/// Below it 2^x is subnormal.
pub(crate) const EXP2_LEAST_NORMAL: f32 = -126.0;
