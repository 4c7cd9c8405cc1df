//! Writing probs: normalised probabilities whose sign says what is dropped.
#![allow(unsafe_op_in_unsafe_fn)]

use super::{Scratch, Work};
use crate::call::BLOCK_KEYS;
use crate::pack::{self, panel_width};
use crate::score_stage::HIDDEN;
use crate::simd::Simd;
use crate::view::ViewMut;
use crate::visible::Visible;
use signflash_core::Problem;

/// Zeros what of probs lies behind the ends of packed sequences; no tile writes there.
///
/// # Safety
/// `probs` is of the shape that the problem says, and no other thread writes it.
pub(crate) unsafe fn clear_behind_ends(problem: &Problem, probs: &ViewMut<'_>) {
    let [count, num_heads, longest_q, longest_k] = problem.probs();
    let bytes = probs.dtype.size_bytes();
    for (index, sequence) in problem.sequences().take(count).enumerate() {
        for (head, row) in (0..num_heads).flat_map(|head| (0..longest_q).map(move |row| (head, row))) {
            let keys = if row < sequence.seqlen_q { sequence.seqlen_k } else { 0 };
            let behind = probs.row([index, head, row]).wrapping_add(keys * bytes);
            behind.write_bytes(0, (longest_k - keys) * bytes);
        }
    }
}

impl Work<'_> {
    /// Writes one block of keys of `probs`, once the rows' maxima and sums are known.
    #[inline(always)]
    pub(super) unsafe fn probs_block<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        probs: &ViewMut<'_>,
        first_key: usize,
    ) {
        let (k, count) = self.keys::<S, MR>(scratch, first_key, BLOCK_KEYS);
        self.draw::<S>(scratch, first_key, count, 0);
        for panel in 0..self.panels::<S>() {
            let (weights, width) = (scratch.weights.floats(), panel_width::<S>());
            match self.visible::<S, MR>(panel, first_key) {
                Some(visible) => {
                    self.scores::<S, MR>(scratch, k, panel, first_key, visible);
                    self.sign_encode::<S>(scratch, panel, visible);
                    let keys = visible.keys;
                    weights.write_bytes(0, keys.begin * width);
                    weights.add(keys.end * width).write_bytes(0, (BLOCK_KEYS - keys.end) * width);
                }
                None => weights.write_bytes(0, BLOCK_KEYS * width),
            }
            self.write_probs::<S>(scratch, probs, panel, first_key, count);
        }
    }

    /// Turns one panel's scores into normalised probabilities, their sign set where dropped; +0.0 where invisible.
    #[inline(always)]
    unsafe fn sign_encode<S: Simd>(&self, scratch: &mut Scratch, panel: usize, visible: Visible) {
        let width = panel_width::<S>();
        let (factor, zero) = (self.scores.call.stage.factor::<S>(), S::splat(0.0));
        let weights = scratch.weights.floats();
        let hides = self.scores.call.stage.hides();
        let bounds = visible.bounds::<S>(&self.unit.sequence, &self.tile);
        for n in 0..width / S::LANES {
            let lane = panel * width + n * S::LANES;
            let (mut seen, mut normalise) = ([0.0f32; 16], [0.0f32; 16]);
            for i in 0..S::LANES {
                let (max, sum) =
                    (*scratch.row_max.floats().add(lane + i), *scratch.row_sum.floats().add(lane + i));
                seen[i] = if max == f32::NEG_INFINITY { 0.0 } else { max };
                normalise[i] = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            }
            let (seen, normalise) = (S::load(seen.as_ptr()), S::load(normalise.as_ptr()));
            let mut shift = S::sub(zero, factor.exponent(seen));
            if S::any_reaches(shift, self.large) {
                self.subtract::<S>(weights.add(n * S::LANES), visible.keys, seen);
                shift = zero;
            }
            let bits = scratch.drop.as_ref().map(|drop| drop.lanes(lane));
            for key in visible.keys.begin..visible.keys.end {
                let at = weights.add(key * width + n * S::LANES);
                // The NaN that arithmetic makes has its sign bit set; here that bit says what is dropped.
                let s = S::load(at);
                let mut p = S::abs(S::mul(factor.weight(s, shift), normalise));
                if let Some((bits, lane_shift)) = bits {
                    p = S::sign_where(p, bits.add(key), lane_shift);
                }
                if hides {
                    p = S::where_less(s, S::splat(HIDDEN), zero, p);
                }
                S::store(at, bounds.hide(n, key, p, zero));
            }
        }
    }

    /// Transposes one panel of probabilities and writes its rows.
    #[inline(always)]
    unsafe fn write_probs<S: Simd>(
        &self,
        scratch: &mut Scratch,
        probs: &ViewMut<'_>,
        panel: usize,
        first_key: usize,
        count: usize,
    ) {
        let width = panel_width::<S>();
        let weights = scratch.weights.words();
        let mut rows = [0u32; 16 * BLOCK_KEYS];
        for first in (0..width).step_by(S::LANES) {
            for key in (0..BLOCK_KEYS).step_by(S::LANES) {
                let block = weights.add(key * width + first);
                S::transpose(block, width, rows.as_mut_ptr().add(key), BLOCK_KEYS);
            }
            for lane in 0..S::LANES {
                let tile_lane = panel * width + first + lane;
                if self.tile.is_real(tile_lane) {
                    let row = self.unit.sequence.probs_row(self.tile.row_of(tile_lane), self.unit.head);
                    let dst = probs.row(row).add(first_key * probs.dtype.size_bytes());
                    let src = rows.as_ptr().add(lane * BLOCK_KEYS).cast();
                    pack::store_row::<S>(probs.dtype, src, count, dst);
                }
            }
        }
    }
}
