//! The products that gather gradients: `dv += p^T dout`, `dk += ds^T q`, `dq^T += K^T ds^T`.
#![allow(unsafe_op_in_unsafe_fn)]

use super::operands::{Keys, Queries};
use super::{Scratch, TILE_ROWS, Work};
use crate::gemm::{Left, NV, Right, Weight, product, product_of_weights};
use crate::pack::panel_width;
use crate::simd::Simd;

impl Work<'_> {
    /// `dv += p^T dout`, `dk += ds^T q` of one block, `at` keys into the chunk.
    #[inline(always)]
    pub(super) unsafe fn add_dkv<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        queries: Queries,
        at: usize,
        first_panel: usize,
        keys: usize,
    ) {
        let skip = first_panel * panel_width::<S>() / S::UNIT; // queries, in words, that see none of the block
        let operands = [
            (scratch.p.words(), queries.dout_steps, scratch.dv.floats()),
            (scratch.ds.words(), queries.q_steps, scratch.dk.floats()),
        ];
        for (weights, rows, sums) in operands {
            let weights = weights.add(skip).cast_const();
            let depth = queries.tile.rows / S::UNIT - skip;
            for d in (0..self.dim).step_by(S::LANES * NV) {
                let b = Right { p: rows.p.add(skip * rows.ld + d), step: rows.ld };
                for key in (0..keys).step_by(MR) {
                    let row = TILE_ROWS / S::UNIT;
                    let a = Left { p: weights.add(key * row), row, step: 1 };
                    let sums = sums.add((at + key) * self.dim + d);
                    if d + S::LANES * NV <= self.dim {
                        self.add_product::<S, MR, NV>(depth, a, b, sums, Weight::Left);
                    } else {
                        self.add_product::<S, MR, 1>(depth, a, b, sums, Weight::Left);
                    }
                }
            }
        }
    }

    /// Adds a product to rows of `sums`, which are `dim` apart.
    #[inline(always)]
    pub(super) unsafe fn add_product<S: Simd, const M: usize, const N: usize>(
        &self,
        depth: usize,
        a: Left,
        b: Right,
        sums: *mut f32,
        weight: Weight,
    ) {
        let sum = if self.backward.call.careful {
            product_of_weights::<S, M, N>(depth, a, b, weight)
        } else {
            product::<S, M, N>(depth, a, b)
        };
        for (m, sum) in sum.into_iter().enumerate() {
            for (n, sum) in sum.into_iter().enumerate() {
                let at = sums.add(m * self.dim + n * S::LANES);
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
        queries: Queries,
        first_panel: usize,
        keys: usize,
    ) {
        let width = panel_width::<S>();
        let ds = if S::PAIRS { scratch.ds_pairs.words() } else { scratch.ds.words() };
        for panel in first_panel..queries.tile.rows / width {
            let b = Right { p: ds.add(panel * width), step: TILE_ROWS };
            let dq = scratch.dq.floats().add(panel * self.dim * width);
            for d in (0..self.dim).step_by(MR) {
                let a = Left { p: block.k_steps.p.add(d), row: 1, step: block.k_steps.ld };
                let sum = if self.backward.call.careful {
                    product_of_weights::<S, MR, NV>(keys / S::UNIT, a, b, Weight::Right)
                } else {
                    product::<S, MR, NV>(keys / S::UNIT, a, b)
                };
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
