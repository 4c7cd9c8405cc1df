//! What becomes of a product `q k`: the only room that knows of softmax_scale and of its sign. Forward, probs and
//! backward get their scores and their weights here, so that what else may happen to a score is written once, too.
//!
//! ```text
//! score  = q k, of a q whose sign is turned if softmax_scale is negative      `pack_queries`, `scores`
//! weight = 2^(score factor + shift)            factor = |softmax_scale| log2(e)           `Factor`
//! ```
//!
//! shift is -max factor in the forward, where max is the running maximum of a row's scores, and -lse log2(e) in the
//! backward.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::gemm::{Left, NV, Right, product};
use crate::pack::{self, Rows};
use crate::simd::Simd;
use signflash_core::Problem;

/// The stage, for one problem.
#[derive(Clone, Copy)]
pub(crate) struct ScoreStage {
    /// The magnitude of softmax_scale.
    scale: f64,
    /// [`Problem::scale_log2`].
    factor: f32,
    /// [`Problem::negates`].
    negates: bool,
}

impl ScoreStage {
    pub(crate) fn of(problem: &Problem) -> Self {
        Self {
            scale: problem.softmax_scale().abs(),
            factor: problem.scale_log2(),
            negates: problem.negates(),
        }
    }

    /// Panels of q^T as [`scores`](Self::scores) wants them.
    ///
    /// # Safety
    /// As [`pack::transpose_panels`].
    #[inline(always)]
    pub(crate) unsafe fn pack_queries<S: Simd>(&self, q: Rows, panels: usize, words: usize, dst: *mut u32) {
        let flip = if self.negates { pack::sign_flip::<S>() } else { 0 };
        pack::transpose_panels::<S>(q, panels, words, flip, dst);
    }

    /// The scores of `MR` keys and a panel of queries, `depth` words each.
    ///
    /// # Safety
    /// As [`product`].
    #[inline(always)]
    pub(crate) unsafe fn scores<S: Simd, const MR: usize>(
        &self,
        depth: usize,
        k: Left,
        q: Right,
    ) -> [[S::V; NV]; MR] {
        product::<S, MR, NV>(depth, k, q)
    }

    /// What makes weights of scores.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn factor<S: Simd>(&self) -> Factor<S> {
        Factor(S::splat(self.factor))
    }

    /// The exponent, in base e, of a score.
    pub(crate) fn natural(&self, score: f32) -> f64 {
        f64::from(score) * self.scale
    }

    /// The logarithm of a row's sum of weights, which are relative to `max`, its largest score: to its rounded
    /// exponent of 2 if that is below `large`, else to the score itself.
    pub(crate) fn lse(&self, max: f32, sum: f64, large: f32) -> f32 {
        let max_log2 = max * self.factor;
        if sum == 0.0 {
            f32::NEG_INFINITY
        } else if max_log2.abs() >= large {
            (self.natural(max) + sum.ln()) as f32
        } else {
            (f64::from(max_log2) * std::f64::consts::LN_2 + sum.ln()) as f32
        }
    }
}

/// The factor between scores and exponents of 2, in every lane.
#[derive(Clone, Copy)]
pub(crate) struct Factor<S: Simd>(S::V);

impl<S: Simd> Factor<S> {
    /// The exponent of 2 of a score.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn exponent(self, score: S::V) -> S::V {
        S::mul(score, self.0)
    }

    /// The weight of a score: its exponent and `shift` are added before either is rounded.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn weight(self, score: S::V, shift: S::V) -> S::V {
        S::exp2(S::fma(score, self.0, shift))
    }
}
