//! The scores of one panel of queries and one block of keys.
#![allow(unsafe_op_in_unsafe_fn)]

use super::{Scratch, Work};
use crate::gemm::{Left, NV, Right};
use crate::pack::{Rows, panel_width};
use crate::score_stage::{Panel, ScoreStage};
use crate::simd::Simd;
use crate::visible::{Bounds, Visible};
use signflash_core::Span;

impl Work<'_> {
    /// `s^T = K q^T` of one panel into `weights`, -inf where invisible. Returns each lane's maximum.
    #[inline(always)]
    pub(super) unsafe fn scores<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        k: Rows,
        panel: usize,
        first_key: usize,
        visible: Visible,
    ) -> [S::V; NV] {
        let (width, hidden) = (panel_width::<S>(), S::splat(f32::NEG_INFINITY));
        let is_plain = self.is_plain::<S>(panel, first_key, visible);
        let bounds = self.bounds::<S>(visible);
        if S::TILES || !is_plain {
            self.scores_in_memory::<S, MR>(scratch, k, panel, first_key, visible);
            return self.maxima::<S>(scratch, visible, &bounds);
        }
        let (stage, depth) = (self.scores.call.stage, self.dims.qk_padded / S::UNIT);
        let q = Right { p: scratch.q.words().add(panel * depth * width), step: width };
        let weights = scratch.weights.floats();
        let mut max = [hidden; NV];
        for key in (visible.keys.begin..visible.keys.end).step_by(MR) {
            scratch.ahead.ask();
            let a = Left { p: k.p.add(key * k.ld), row: k.ld, step: 1 };
            let mut s = stage.scores::<S, MR>(depth, a, q);
            if visible.hides {
                for (m, s) in s.iter_mut().enumerate() {
                    for (n, s) in s.iter_mut().enumerate() {
                        *s = bounds.hide_behind(n, key + m, *s, hidden);
                    }
                }
                bounds.hide_before(key, &mut s, hidden);
            }
            for (m, s) in s.into_iter().enumerate() {
                for (n, s) in s.into_iter().enumerate() {
                    max[n] = S::max(s, max[n]);
                    S::store(weights.add((key + m) * width + n * S::LANES), s);
                }
            }
        }
        max
    }

    /// Whether the products of a panel are its scores as they are.
    fn is_plain<S: Simd>(&self, panel: usize, first_key: usize, visible: Visible) -> bool {
        let (width, keys) = (panel_width::<S>(), visible.keys);
        let keys = first_key + keys.begin..first_key + keys.end;
        self.scores.call.stage.is_plain(|| self.is_all_shown(panel * width..(panel + 1) * width, keys))
    }

    /// What the rows of a panel see of a block, where some do not see all that is computed.
    #[inline(always)]
    pub(super) unsafe fn bounds<S: Simd>(&self, visible: Visible) -> Bounds<S> {
        match visible.hides {
            true => visible.bounds::<S>(&self.unit.sequence, &self.tile),
            false => Bounds::none(),
        }
    }

    /// `s^T = K q^T` of one panel into `weights`, and what becomes of it there; what is invisible is not hidden yet.
    #[inline(always)]
    pub(super) unsafe fn scores_in_memory<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        k: Rows,
        panel: usize,
        first_key: usize,
        visible: Visible,
    ) {
        let (width, depth) = (panel_width::<S>(), self.dims.qk_padded / S::UNIT);
        let q = Right { p: scratch.q.words().add(panel * depth * width), step: width };
        let weights = scratch.weights.floats();
        ScoreStage::scores_to::<S, MR>(&self.scores.call, depth, (k, visible.keys), q, weights);
        if !self.is_plain::<S>(panel, first_key, visible) {
            self.change::<S>(scratch, panel, first_key, visible);
        }
    }

    /// Makes scores of a panel of products, in memory.
    #[inline(always)]
    unsafe fn change<S: Simd>(
        &self,
        scratch: &mut Scratch,
        panel: usize,
        first_key: usize,
        visible: Visible,
    ) {
        let width = panel_width::<S>();
        let place = Panel {
            sequence: &self.unit.sequence,
            head: self.unit.head,
            tile: &self.tile,
            lane: panel * width,
            first_key,
            keys: visible.keys,
            scores: scratch.weights.floats(),
            slopes: std::ptr::null_mut(),
        };
        (self.change)(&self.scores.call, &place, &mut scratch.stage);
    }

    /// Each lane's maximum of a panel of scores in memory, once they are -inf where invisible.
    #[inline(always)]
    pub(super) unsafe fn maxima<S: Simd>(
        &self,
        scratch: &mut Scratch,
        visible: Visible,
        bounds: &Bounds<S>,
    ) -> [S::V; NV] {
        /// Maxima that do not wait for each other.
        const SIDE_BY_SIDE: usize = 4;
        let (width, scores) = (panel_width::<S>(), scratch.weights.floats());
        let hidden = S::splat(f32::NEG_INFINITY);
        let mut maxima = [[hidden; NV]; SIDE_BY_SIDE];
        for first in (visible.keys.begin..visible.keys.end).step_by(SIDE_BY_SIDE) {
            scratch.ahead.ask();
            for (m, max) in maxima.iter_mut().enumerate() {
                for (n, max) in max.iter_mut().enumerate() {
                    let at = scores.add((first + m) * width + n * S::LANES);
                    let mut s = S::load(at);
                    if visible.hides {
                        s = bounds.hide(n, first + m, s, hidden);
                        S::store(at, s);
                    }
                    *max = S::max(s, *max);
                }
            }
        }
        let [first, others @ ..] = maxima;
        others.into_iter().fold(first, |all, max| std::array::from_fn(|n| S::max(max[n], all[n])))
    }

    /// Takes `base` from the scores of one vector of rows: exactly where they are near it, which are those that count.
    #[inline(always)]
    pub(super) unsafe fn subtract<S: Simd>(&self, scores: *mut f32, keys: Span<usize>, base: S::V) {
        for key in keys.begin..keys.end {
            let at = scores.add(key * panel_width::<S>());
            S::store(at, S::sub(S::load(at), base));
        }
    }
}
