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

impl Work<'_> {
    /// Turns one panel's scores into weights: moves the running maximum, or what stands for it, and the sum, drops by sign and relu. Returns the
    /// factor of what was accumulated before.
    #[inline(always)]
    pub(super) unsafe fn weigh<S: Simd, const DROP: bool, const FLUSH: bool>(
        &self,
        scratch: &mut Scratch,
        panel: usize,
        keys: Span<usize>,
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
            let bits = if DROP { scratch.drop.as_ref().map(|drop| drop.lanes(lane)) } else { None };
            let mut sum = zero;
            let softmax = Weigh::<S, FLUSH> { factor, shift, bits };
            if S::PAIRS {
                let pairs = scratch.pairs.words();
                for key in (keys.begin..keys.end).step_by(2) {
                    let at = weights.add(key * width + n * S::LANES);
                    let even = softmax.weight(S::load(at), key, &mut sum);
                    let odd = softmax.weight(S::load(at.add(width)), key + 1, &mut sum);
                    S::store_pair(pairs.add(key / 2 * width + n * S::LANES), even, odd);
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
}
