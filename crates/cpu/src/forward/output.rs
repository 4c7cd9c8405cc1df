//! Gathering out, and writing it with lse.
#![allow(unsafe_op_in_unsafe_fn)]

use super::{Forward, Scratch, Unit, Work};
use crate::gemm::{Left, NV, Right, Weight, product_of_weights};
use crate::pack::{self, Rows, panel_width};
use crate::row_end::RowEnd;
use crate::simd::Simd;
use crate::tiles::Sums;
use crate::view::ViewMut;
use signflash_core::Span;

impl Work<'_> {
    /// `out^T = out^T rescale + V^T p^T` of one panel; of tiles, whose out is rescaled beforehand, without `rescale`.
    #[inline(always)]
    pub(super) unsafe fn accumulate<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        v: Rows,
        panel: usize,
        keys: Span<usize>,
        rescale: [S::V; NV],
    ) {
        let (width, dim) = (panel_width::<S>(), self.dims.v_padded);
        let careful = self.scores.call.careful;
        let out = scratch.out.floats().add(panel * dim * width);
        let p = if S::PAIRS { scratch.pairs.words() } else { scratch.weights.words() };
        let (first, depth) = (keys.begin / S::UNIT, (keys.end - keys.begin) / S::UNIT);
        let p = Right { p: p.add(first * width), step: width };
        if S::TILES {
            let a = Left { p: v.p.add(first), row: v.ld, step: 1 };
            let sums = Sums { p: out, row: width };
            self.scores.call.tiles.product::<true>(dim, depth, a, p, sums);
            return;
        }
        for d in (0..dim).step_by(MR) {
            let a = Left { p: v.p.add(first * v.ld + d), row: 1, step: v.ld };
            let sum = product_of_weights::<S, MR, NV>(depth, a, p, Weight::Right, careful);
            for (m, sum) in sum.into_iter().enumerate() {
                for (n, sum) in sum.into_iter().enumerate() {
                    let at = out.add((d + m) * width + n * S::LANES);
                    S::store(at, S::fma(S::load(at), rescale[n], sum));
                }
            }
        }
    }

    /// `out^T = out^T rescale` of one panel.
    #[inline(always)]
    pub(super) unsafe fn rescale<S: Simd>(&self, scratch: &mut Scratch, panel: usize, rescale: [S::V; NV]) {
        let out = scratch.out.floats().add(panel * self.dims.v_padded * panel_width::<S>());
        for d in 0..self.dims.v_padded {
            for (n, factor) in rescale.into_iter().enumerate() {
                let at = out.add(d * panel_width::<S>() + n * S::LANES);
                S::store(at, S::mul(S::load(at), factor));
            }
        }
    }

    /// Writes lse, and adds to each row's sum what its sink weighs.
    #[inline(always)]
    pub(super) unsafe fn end_rows<S: Simd>(&self, scratch: &mut Scratch, forward: &Forward<'_>) {
        let Unit { sequence, head, .. } = self.unit;
        let call = &self.scores.call;
        let (row_max, row_sum) = (scratch.row_max.floats(), scratch.row_sum.floats());
        let (first_row, sink) = (call.first_row(&sequence, head), call.sink(&sequence, head));
        for lane in (0..self.tile.rows).filter(|&lane| self.tile.is_real(lane)) {
            let (max, sum) = (*row_max.add(lane), f64::from(*row_sum.add(lane)));
            let end = RowEnd::of(call.stage.reference(max, self.large), sum, sink);
            *forward.lse.at(first_row + self.tile.row_of(lane)) = end.lse as f32;
            *row_sum.add(lane) = end.total as f32;
        }
    }

    /// Normalises and writes out.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(&self, scratch: &mut Scratch, forward: &Forward<'_>) {
        let row_sum = scratch.row_sum.floats();
        for lane in 0..self.tile.rows {
            let sum = f64::from(*row_sum.add(lane));
            // From here on the factor of the row; a row that saw no key has gathered 0 and stays 0.
            *row_sum.add(lane) = if sum == 0.0 { 0.0 } else { (self.scores.call.keep_scale / sum) as f32 };
        }
        self.write_out::<S>(scratch, &forward.out);
    }

    #[inline(always)]
    unsafe fn write_out<S: Simd>(&self, scratch: &mut Scratch, out: &ViewMut<'_>) {
        let (width, dim) = (panel_width::<S>(), self.dims.v_padded);
        let rows = scratch.rows.floats(); // q's are no longer needed
        for lane in (0..self.tile.rows).step_by(S::LANES) {
            let factor = S::load(scratch.row_sum.floats().add(lane));
            let panel = scratch.out.floats().add(lane / width * dim * width + lane % width);
            for d in 0..dim {
                let at = panel.add(d * width);
                S::store(at, S::mul(S::load(at), factor));
            }
            for d in (0..dim).step_by(S::LANES) {
                S::transpose(panel.add(d * width).cast(), width, rows.add(lane * dim + d).cast(), dim);
            }
        }
        for r in 0..self.tile.count {
            let row = rows.add((self.tile.before + r) * dim);
            let dst = out.row(self.unit.sequence.query(self.tile.first + r, self.unit.head));
            pack::store_row::<S>(out.dtype, row, self.dims.v, dst);
        }
    }
}
