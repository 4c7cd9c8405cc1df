//! The products that gather gradients: `dv += p^T dout`, `dk += ds^T q`, `dq^T += K^T ds^T`.
#![allow(unsafe_op_in_unsafe_fn)]

use super::operands::{Keys, Queries};
use super::{Scratch, TILE_ROWS, Work};
use crate::gemm::{Left, NV, Right, Weight, product_of_weights};
use crate::pack::{self, panel_width};
use crate::simd::Simd;
use crate::tiles::{self, Sums};
use crate::visible::Overlap;

impl Work<'_> {
    /// `dv += p^T dout`, `dk += ds^T q` of one block, `at` keys into the chunk.
    #[inline(always)]
    pub(super) unsafe fn add_dkv<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        queries: Queries,
        at: usize,
        overlap: Overlap,
    ) {
        let Overlap { keys, panels } = overlap;
        // Queries, in words: those before and behind see none of the block.
        let words = |panel: usize| panel * panel_width::<S>() / S::UNIT;
        let (first, depth) = (words(panels.begin), words(panels.end - panels.begin));
        let operands = [
            (scratch.p.words(), queries.dout_steps, scratch.dv.floats(), self.dims.v_padded),
            (scratch.ds.words(), queries.q_steps, scratch.dk.floats(), self.dims.qk_padded),
        ];
        for (weights, rows, sums, dim) in operands {
            let weights = weights.add(first).cast_const();
            if S::TILES {
                let (row, count) = (TILE_ROWS / S::UNIT, keys.end - keys.begin);
                let a = Left { p: weights.add(keys.begin * row), row, step: 1 };
                for d in (0..dim).step_by(tiles::SIDE) {
                    let b = Right { p: rows.p.add(first * rows.ld + d), step: rows.ld };
                    let sums = Sums { p: sums.add((at + keys.begin) * dim + d), row: dim };
                    self.backward.call.tiles.product::<true>(count, depth, a, b, sums);
                }
                continue;
            }
            for d in (0..dim).step_by(S::LANES * NV) {
                let b = Right { p: rows.p.add(first * rows.ld + d), step: rows.ld };
                for key in (keys.begin..keys.end).step_by(MR) {
                    let row = TILE_ROWS / S::UNIT;
                    let a = Left { p: weights.add(key * row), row, step: 1 };
                    let sums = sums.add((at + key) * dim + d);
                    if pack::whole_panels::<S>() || d + S::LANES * NV <= dim {
                        self.add_product::<S, MR, NV>(depth, a, b, sums, dim);
                    } else {
                        self.add_product::<S, MR, 1>(depth, a, b, sums, dim);
                    }
                }
            }
        }
    }

    /// Adds a product of weights on the left to rows of `sums`, which are `dim` apart.
    #[inline(always)]
    unsafe fn add_product<S: Simd, const M: usize, const N: usize>(
        &self,
        depth: usize,
        a: Left,
        b: Right,
        sums: *mut f32,
        dim: usize,
    ) {
        let careful = self.backward.call.careful;
        let sum = product_of_weights::<S, M, N>(depth, a, b, Weight::Left, careful);
        for (m, sum) in sum.into_iter().enumerate() {
            for (n, sum) in sum.into_iter().enumerate() {
                let at = sums.add(m * dim + n * S::LANES);
                S::store(at, S::add(S::load(at), sum));
            }
        }
    }

    /// `dq^T += K^T ds^T` of one block.
    #[inline(always)]
    pub(super) unsafe fn add_dq_block<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        block: Keys,
        overlap: Overlap,
    ) {
        let (width, dim) = (panel_width::<S>(), self.dims.qk_padded);
        let ds = if S::PAIRS { scratch.ds_pairs.words() } else { scratch.ds.words() };
        let Overlap { keys, panels } = overlap;
        let (first, depth) = (keys.begin / S::UNIT, (keys.end - keys.begin) / S::UNIT);
        for panel in panels.begin..panels.end {
            let b = Right { p: ds.add(first * TILE_ROWS + panel * width), step: TILE_ROWS };
            let dq = scratch.dq.floats().add(panel * dim * width);
            if S::TILES {
                let k = block.k_steps;
                let a = Left { p: k.p.add(first), row: k.ld, step: 1 };
                self.backward.call.tiles.product::<true>(dim, depth, a, b, Sums { p: dq, row: width });
                continue;
            }
            for d in (0..dim).step_by(MR) {
                let k = block.k_steps;
                let a = Left { p: k.p.add(first * k.ld + d), row: 1, step: k.ld };
                let careful = self.backward.call.careful;
                let sum = product_of_weights::<S, MR, NV>(depth, a, b, Weight::Right, careful);
                for (m, sum) in sum.into_iter().enumerate() {
                    for (n, sum) in sum.into_iter().enumerate() {
                        let at = dq.add((d + m) * width + n * S::LANES);
                        S::store(at, S::add(S::load(at), sum));
                    }
                }
            }
        }
    }
}
