//! What becomes of a product `q k`: the only room that knows of softmax_scale and of its sign, of softcap, ALiBi, biases
//! and masks. Forward, probs and backward get their scores and their weights here, so that what happens to a score is
//! written once.
//!
//! ```text
//! score  = q k, of a q whose sign is turned if softmax_scale is negative      `pack_queries`, `scores`
//! score  = what softcap, ALiBi, bias and mask make of it, if there are any    `panel.rs`
//! weight = 2^(score factor + shift)                                           `Factor`
//! ```
//!
//! factor is |softmax_scale| log2(e) where scores are products, cap log2(e) where they are hyperbolic tangents, and log2(e)
//! where something was added to them, which makes exponents of e of them first: those of 2 of the smallest numbers, which
//! some take for -inf in a bias, would be beyond f32. shift is -max factor in the forward,
//! where max is the running maximum of a row's scores, and -lse log2(e) in the backward.
//!
//! Products are scores as they are in most problems, and those are weighed in registers. Any others go through memory, a
//! panel of queries and a block of keys at a time.
#![allow(unsafe_op_in_unsafe_fn)]

mod operands;
mod panel;
mod table;

use crate::call::Call;
use crate::gemm::{Left, NV, Right, product};
use crate::pack::{self, Rows};
use crate::simd::Simd;
use crate::tiles::Sums;
pub(crate) use operands::ScoreOperands;
pub(crate) use panel::{Panel, Scratch};
use signflash_core::{Problem, Span};
use std::f64::consts::{LN_2, LOG2_E};
pub(crate) use table::TableMut;

/// [`ScoreStage::change`], entered by itself: forward, probs and backward call it.
pub(crate) type Change = unsafe fn(&Call<'_>, &Panel<'_>, &mut Scratch);

/// Scores below this are -inf: of keys that a bias or a mask hides.
pub(crate) const HIDDEN: f32 = f32::MIN;

/// The stage, for one problem.
#[derive(Clone, Copy)]
pub(crate) struct ScoreStage {
    /// What a score is worth, as an exponent of e.
    natural: f64,
    /// The same, of 2.
    factor: f32,
    /// What a product, or what softcap made of it, is worth before anything is added.
    unit: f32,
    /// [`Problem::negates`].
    negates: bool,
    /// `|softmax_scale| / cap`, if there is a softcap.
    inverse_cap: Option<f32>,
    /// Whether scores are products, but for keys that are hidden.
    are_products: bool,
    /// Whether a bias or a mask may hide keys.
    hides: bool,
}

impl ScoreStage {
    pub(crate) fn of(problem: &Problem) -> Self {
        let scale = problem.softmax_scale().abs();
        let (cap, hides) = (problem.softcap(), problem.bias().is_some() || problem.mask().is_some());
        let adds = problem.bias().is_some() || problem.alibi().is_some();
        let (natural, factor) = cap
            .map_or((scale, problem.scale_log2()), |cap| (cap, (cap * LOG2_E).min(f32::MAX.into()) as f32));
        // Never 0 and never infinite, so that no product makes a NaN of it.
        let inverse = |cap: f64| (scale / cap).clamp(f32::MIN_POSITIVE.into(), f32::MAX.into()) as f32;
        Self {
            natural: if adds { 1.0 } else { natural },
            factor: if adds { LOG2_E as f32 } else { factor },
            unit: (natural as f32).max(f32::MIN_POSITIVE),
            negates: problem.negates(),
            inverse_cap: cap.map(inverse),
            are_products: cap.is_none() && !adds,
            hides,
        }
    }

    /// Whether the products of a panel and a block are its scores as they are, and there is nothing to
    /// [`change`](Self::change): of a problem with a mask and nothing else, where that `shows_all`.
    pub(crate) fn is_plain(&self, shows_all: impl FnOnce() -> bool) -> bool {
        self.are_products && (!self.hides || shows_all())
    }

    /// Whether weights may be so small that it pays to make them 0: see [`Factor::weight_or_zero`].
    pub(crate) fn flushes(&self) -> bool {
        !self.are_products
    }

    /// Whether scores of -inf are of keys that are hidden, which have no weight even in a row of NaNs.
    pub(crate) fn hides(&self) -> bool {
        self.hides
    }

    /// Whether scores have a slope, which ds is multiplied with.
    pub(crate) fn has_slope(&self) -> bool {
        self.inverse_cap.is_some()
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

    /// The products of `MR` keys and a panel of queries, `depth` words each: their scores, where it
    /// [is plain](Self::is_plain).
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

    /// The same of these keys, into `to`: `[key][lane of the panel]`.
    ///
    /// # Safety
    /// As [`product`]; with [tiles](Simd::TILES), of a call for which this thread holds them. `k` are the block's rows.
    #[inline(always)]
    pub(crate) unsafe fn scores_to<S: Simd, const MR: usize>(
        call: &Call<'_>,
        depth: usize,
        (k, keys): (Rows, Span<usize>),
        q: Right,
        to: *mut f32,
    ) {
        let width = pack::panel_width::<S>();
        if S::TILES {
            let a = Left { p: k.p.add(keys.begin * k.ld), row: k.ld, step: 1 };
            let to = Sums { p: to.add(keys.begin * width), row: width };
            return call.tiles.product::<false>(keys.end - keys.begin, depth, a, q, to);
        }
        for key in (keys.begin..keys.end).step_by(MR) {
            let a = Left { p: k.p.add(key * k.ld), row: k.ld, step: 1 };
            let to = to.add(key * width);
            for (m, s) in product::<S, MR, NV>(depth, a, q).into_iter().enumerate() {
                for (n, s) in s.into_iter().enumerate() {
                    S::store(to.add(m * width + n * S::LANES), s);
                }
            }
        }
    }

    /// What makes weights of scores.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn factor<S: Simd>(&self) -> Factor<S> {
        let least = if self.flushes() { LEAST_LOG2 } else { f32::NEG_INFINITY };
        Factor { factor: S::splat(self.factor), least: S::splat(least) }
    }

    /// The exponent, in base e, of a score.
    pub(crate) fn natural(&self, score: f32) -> f64 {
        f64::from(score) * self.natural
    }

    /// What weights are relative to, as an exponent of e: `max`, a row's largest score, and its rounded exponent of 2
    /// if that is below `large`.
    pub(crate) fn reference(&self, max: f32, large: f32) -> f64 {
        let max_log2 = max * self.factor;
        if max_log2.abs() >= large { self.natural(max) } else { f64::from(max_log2) * LN_2 }
    }
}

/// The exponent of 2 below which weights are 0 beside those of their row, whose sum is 1.
const LEAST_LOG2: f32 = -100.0;

/// What turns scores into weights, in every lane.
#[derive(Clone, Copy)]
pub(crate) struct Factor<S: Simd> {
    /// Between scores and exponents of 2.
    factor: S::V,
    /// The exponent below which [`weight_or_zero`](Self::weight_or_zero) is 0.
    least: S::V,
}

impl<S: Simd> Factor<S> {
    /// The exponent of 2 of a score.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn exponent(self, score: S::V) -> S::V {
        S::mul(score, self.factor)
    }

    /// The weight of a score: its exponent and `shift` are added before either is rounded.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn weight(self, score: S::V, shift: S::V) -> S::V {
        S::exp2(S::fma(score, self.factor, shift))
    }

    /// The same, but 0 where it is so small that what it is multiplied with would be subnormal, which takes processors a
    /// hundred times as long. What is added to scores makes many such weights, as ALiBi does of distant keys; of products
    /// alone they are few, and are left as they are.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn weight_or_zero(self, score: S::V, shift: S::V) -> S::V {
        let exponent = S::fma(score, self.factor, shift);
        S::where_less(exponent, self.least, S::splat(0.0), S::exp2(exponent))
    }
}
