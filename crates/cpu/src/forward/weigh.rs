//! The online softmax: scores become weights.
#![allow(unsafe_op_in_unsafe_fn)]

use super::{Scratch, Work};
use crate::gemm::NV;
use crate::pack::panel_width;
use crate::score_stage::Factor;
use crate::simd::Simd;
use signflash_core::Span;

/// Where out is in memory, what weights are relative to stays where it is until a score is so far above it, so that out is
/// seldom rescaled; weights are up to 2 to this power then.
const FAR_ABOVE_LOG2: f32 = 6.0;

/// What turns the scores of one vector of rows into weights.
#[derive(Clone, Copy)]
struct Weigh<S: Simd, const FLUSH: bool> {
    factor: Factor<S>,
    shift: S::V,
    /// The dropped rows of each key, and the bit of the first lane.
    bits: Option<(*const u16, u32)>,
}

impl<S: Simd, const FLUSH: bool> Weigh<S, FLUSH> {
    /// One key's weights; added to `sum` dropped or not.
    #[inline(always)]
    unsafe fn weight(&self, s: S::V, key: usize, sum: &mut S::V) -> S::V {
        let p =
            if FLUSH { self.factor.weight_or_zero(s, self.shift) } else { self.factor.weight(s, self.shift) };
        *sum = S::add(*sum, p);
        match self.bits {
            // Dropped weights are negative; relu makes them 0 and keeps NaN.
            Some((bits, shift)) => S::max(S::splat(0.0), S::sign_where(p, bits.add(key), shift)),
            None => p,
        }
    }
}

/// What is dropped of the rows from `lane` on, of the keys from `at` on.
#[inline(always)]
unsafe fn dropped_lanes(scratch: &Scratch, lane: usize, at: usize) -> Option<(*const u16, u32)> {
    scratch.drop.as_ref().map(|drop| {
        let (bits, shift) = drop.lanes(lane);
        (bits.add(at), shift)
    })
}

impl Work<'_> {
    /// Turns one panel's scores into weights: moves the running maximum, or what stands for it, and the sum, drops by sign and relu. The
    /// block is `at` in the stretch. Returns the factor of what was accumulated before.
    #[inline(always)]
    pub(super) unsafe fn weigh<S: Simd, const DROP: bool, const FLUSH: bool>(
        &self,
        scratch: &mut Scratch,
        panel: usize,
        (keys, at): (Span<usize>, usize),
        block_max: [S::V; NV],
    ) -> [S::V; NV] {
        let width = panel_width::<S>();
        let factor = self.scores.call.stage.factor::<S>();
        let weights = scratch.weights.floats();
        let (hidden, zero) = (S::splat(f32::NEG_INFINITY), S::splat(0.0));
        let mut rescale = [zero; NV];
        for (n, block_max) in block_max.into_iter().enumerate() {
            let lane = panel * width + n * S::LANES;
            let (row_max, row_sum) = (scratch.row_max.floats().add(lane), scratch.row_sum.floats().add(lane));
            let old_max = S::load(row_max);
            let mut new_max = S::max(block_max, old_max);
            if S::TILES {
                // Of a row that has seen nothing the distance is infinite, or NaN if it sees nothing here either.
                let above = factor.exponent(S::sub(new_max, old_max));
                new_max = S::where_less(above, S::splat(FAR_ABOVE_LOG2), old_max, new_max);
            }
            S::store(row_max, new_max);
            // A row that has seen nothing yet must not make -inf - -inf.
            let seen = S::where_less(hidden, new_max, new_max, zero);
            let mut max_log2 = factor.exponent(seen);
            rescale[n] = S::exp2(S::sub(factor.exponent(old_max), max_log2));
            if S::any_reaches(max_log2, self.large) {
                rescale[n] = S::exp2(factor.exponent(S::sub(old_max, seen)));
                self.subtract::<S>(weights.add(n * S::LANES), keys, seen);
                max_log2 = zero;
            }
            let shift = S::sub(zero, max_log2);
            let bits = if DROP { dropped_lanes(scratch, lane, at) } else { None };
            let mut sum = zero;
            let softmax = Weigh::<S, FLUSH> { factor, shift, bits };
            if S::PAIRS {
                let pairs = scratch.pairs.words().add(at / 2 * width);
                for key in (keys.begin..keys.end).step_by(2) {
                    let at = weights.add(key * width + n * S::LANES);
                    let even = softmax.weight(S::load(at), key, &mut sum);
                    let odd = softmax.weight(S::load(at.add(width)), key + 1, &mut sum);
                    S::store_weight_pair(pairs.add(key / 2 * width + n * S::LANES), even, odd);
                }
            } else {
                for key in keys.begin..keys.end {
                    let at = weights.add(key * width + n * S::LANES);
                    S::store(at, softmax.weight(S::load(at), key, &mut sum));
                }
            }
            S::store(row_sum, S::fma(S::load(row_sum), rescale[n], sum));
        }
        rescale
    }
    /// The same of scores that nothing hides, in one pass over them, where what weights are relative to stays for all rows.
    /// Otherwise, and of rows that have seen nothing yet, returns false: nothing but what the weights are is changed then.
    #[inline(always)]
    pub(super) unsafe fn weigh_if_maxima_stay<S: Simd, const DROP: bool>(
        &self,
        scratch: &mut Scratch,
        panel: usize,
        (keys, at): (Span<usize>, usize),
    ) -> bool {
        let (width, first) = (panel_width::<S>(), panel * panel_width::<S>());
        let factor = self.scores.call.stage.factor::<S>();
        let (hidden, zero) = (S::splat(f32::NEG_INFINITY), S::splat(0.0));
        let (row_max, row_sum) = (scratch.row_max.floats().add(first), scratch.row_sum.floats().add(first));
        let (mut max, mut sum) = ([hidden; NV], [zero; NV]);
        let mut softmax = [Weigh::<S, false> { factor, shift: zero, bits: None }; NV];
        for (n, softmax) in softmax.iter_mut().enumerate() {
            let max_log2 = factor.exponent(S::load(row_max.add(n * S::LANES)));
            if S::any_reaches(max_log2, self.large) {
                return false;
            }
            softmax.shift = S::sub(zero, max_log2);
            softmax.bits = if DROP { dropped_lanes(scratch, first + n * S::LANES, at) } else { None };
        }
        let (scores, pairs) = (scratch.weights.floats(), scratch.pairs.words().add(at / 2 * width));
        for key in (keys.begin..keys.end).step_by(2) {
            for (n, softmax) in softmax.iter().enumerate() {
                let at = scores.add(key * width + n * S::LANES);
                let (even, odd) = (S::load(at), S::load(at.add(width)));
                max[n] = S::max(odd, S::max(even, max[n]));
                let (even, odd) =
                    (softmax.weight(even, key, &mut sum[n]), softmax.weight(odd, key + 1, &mut sum[n]));
                S::store_weight_pair(pairs.add(key / 2 * width + n * S::LANES), even, odd);
            }
        }
        for (n, max) in max.into_iter().enumerate() {
            let old_max = S::load(row_max.add(n * S::LANES));
            let above = factor.exponent(S::sub(S::max(max, old_max), old_max));
            if !S::all_less(above, FAR_ABOVE_LOG2) {
                return false;
            }
        }
        for (n, sum) in sum.into_iter().enumerate() {
            let row_sum = row_sum.add(n * S::LANES);
            S::store(row_sum, S::add(S::load(row_sum), sum));
        }
        true
    }
}
