//! Writing gradients: dk and dv of a chunk, and a chunk's share of dq.
#![allow(unsafe_op_in_unsafe_fn)]

use super::operands::{Keys, Part, Queries};
use super::{Scratch, Work};
use crate::pack::{self, Dims, panel_width};
use crate::simd::Simd;
use crate::tile::Tile;
use crate::view::FloatsMut;
use signflash_core::Dtype;

/// Where a share of dq belongs in the sum over chunks.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) part: Part,
    pub(super) partial: Option<FloatsMut<'a>>,
    /// Which head of the group.
    pub(super) member: usize,
}

impl Work<'_> {
    /// Adds a chunk's dq of one tile to what earlier chunks gave, and writes it if this is the last.
    #[inline(always)]
    pub(super) unsafe fn add_dq<S: Simd>(&self, scratch: &mut Scratch, queries: Queries, place: Place<'_>) {
        let (width, dim, tile) = (panel_width::<S>(), self.dims.qk_padded, queries.tile);
        let rows = scratch.floats.floats();
        for lane in (0..tile.rows).step_by(S::LANES) {
            let panel = scratch.dq.floats().add(lane / width * dim * width + lane % width);
            for d in (0..dim).step_by(S::LANES) {
                S::transpose(panel.add(d * width).cast(), width, rows.add(lane * dim + d).cast(), dim);
            }
        }
        let factor =
            S::splat((self.backward.call.problem.softmax_scale() * self.backward.call.keep_scale) as f32);
        for i in (0..tile.rows * dim).step_by(S::LANES) {
            S::store(rows.add(i), S::mul(S::load(rows.add(i)), factor));
        }
        let dq = &self.backward.dq;
        for r in 0..tile.count {
            let row = rows.add((tile.before + r) * dim);
            let dst = dq.row(self.sequence.query(tile.first + r, queries.head));
            let sum: *mut f32 = match place.partial {
                Some(partial) => {
                    partial.at((place.member * self.sequence.place.seqlen_q + tile.first + r) * dim)
                }
                None => dst.cast(), // f32 dq is its own partial sum; of other types there is but one share
            };
            if !place.part.first {
                add_row::<S>(row, sum, self.dims.qk);
            }
            if place.part.last || dq.dtype == Dtype::F32 {
                pack::store_row::<S>(dq.dtype, row, self.dims.qk, dst);
            } else {
                row.copy_to_nonoverlapping(sum, self.dims.qk);
            }
        }
    }

    /// Zeros dq of a tile that sees no key.
    pub(super) unsafe fn clear_dq(&self, head: usize, tile: Tile) {
        let dq = &self.backward.dq;
        for r in 0..tile.count {
            let row = dq.row(self.sequence.query(tile.first + r, head));
            row.write_bytes(0, self.dims.qk * dq.dtype.size_bytes());
        }
    }

    /// Scales and writes dk and dv of a chunk.
    #[inline(always)]
    pub(super) unsafe fn write_dkv<S: Simd>(&self, scratch: &mut Scratch, keys: Keys) {
        let keep_scale = self.backward.call.keep_scale;
        let dk_scale = keep_scale * self.backward.call.problem.softmax_scale();
        let Dims { qk, qk_padded, v, v_padded } = self.dims;
        let operands = [
            (&self.backward.dk, scratch.dk.floats(), dk_scale as f32, [qk, qk_padded]),
            (&self.backward.dv, scratch.dv.floats(), keep_scale as f32, [v, v_padded]),
        ];
        for (gradient, sums, factor, [dim, padded]) in operands {
            for key in 0..keys.count {
                let row = sums.add(key * padded);
                for d in (0..padded).step_by(S::LANES) {
                    S::store(row.add(d), S::mul(S::load(row.add(d)), S::splat(factor)));
                }
                let dst = gradient.row(self.sequence.key(keys.first + key, keys.head));
                pack::store_row::<S>(gradient.dtype, row, dim, dst);
            }
        }
    }
}

/// `row += sum`.
#[inline(always)]
unsafe fn add_row<S: Simd>(row: *mut f32, sum: *const f32, n: usize) {
    let whole = n - n % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        S::store(row.add(i), S::add(S::load(row.add(i)), S::load(sum.add(i))));
    }
    for i in whole..n {
        *row.add(i) += *sum.add(i);
    }
}
