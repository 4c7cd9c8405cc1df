//! Writing gradients: dk and dv of a chunk, and a chunk's share of dq.
#![allow(unsafe_op_in_unsafe_fn)]

use super::operands::{Keys, Queries};
use super::{Scratch, Work};
use crate::pack::{self, panel_width};
use crate::simd::Simd;
use crate::view::FloatsMut;
use signflash_core::Dtype;

/// Where a share of dq belongs in the sum over chunks.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) first: bool,
    pub(super) last: bool,
    pub(super) partial: Option<FloatsMut<'a>>,
    /// Which head of the group.
    pub(super) member: usize,
}

impl Work<'_> {
    /// Adds a chunk's dq of one tile to what earlier chunks gave, and writes it if this is the last.
    #[inline(always)]
    pub(super) unsafe fn add_dq<S: Simd>(
        &self,
        scratch: &mut Scratch,
        batch: usize,
        queries: Queries,
        place: Place<'_>,
    ) {
        let (width, dim, tile) = (panel_width::<S>(), self.dim, queries.tile);
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
            let dst = dq.row([batch, tile.first + r, queries.head]);
            let seqlen_q = self.backward.call.problem.shape().seqlen_q;
            let sum: *mut f32 = match place.partial {
                Some(partial) => partial.at((place.member * seqlen_q + tile.first + r) * dim),
                None => dst.cast(), // f32 dq is its own partial sum; of other types there is but one share
            };
            if !place.first {
                add_row::<S>(row, sum, self.head_dim);
            }
            if place.last || dq.dtype == Dtype::F32 {
                pack::store_row::<S>(dq.dtype, row, self.head_dim, dst);
            } else {
                row.copy_to_nonoverlapping(sum, self.head_dim);
            }
        }
    }

    /// Zeros dq of a tile that sees no key.
    pub(super) unsafe fn clear_dq<S: Simd>(&self, batch: usize, head: usize, tile: usize) {
        let tile = self.tile::<S>(tile);
        let dq = &self.backward.dq;
        for r in 0..tile.count {
            dq.row([batch, tile.first + r, head]).write_bytes(0, self.head_dim * dq.dtype.size_bytes());
        }
    }

    /// Scales and writes dk and dv of a chunk.
    #[inline(always)]
    pub(super) unsafe fn write_dkv<S: Simd>(&self, scratch: &mut Scratch, keys: Keys) {
        let keep_scale = self.backward.call.keep_scale;
        let dk_scale = keep_scale * self.backward.call.problem.softmax_scale();
        let operands = [
            (&self.backward.dk, scratch.dk.floats(), dk_scale as f32),
            (&self.backward.dv, scratch.dv.floats(), keep_scale as f32),
        ];
        for (gradient, sums, factor) in operands {
            for key in 0..keys.count {
                let row = sums.add(key * self.dim);
                for d in (0..self.dim).step_by(S::LANES) {
                    S::store(row.add(d), S::mul(S::load(row.add(d)), S::splat(factor)));
                }
                let dst = gradient.row([keys.batch, keys.first + key, keys.head]);
                pack::store_row::<S>(gradient.dtype, row, self.head_dim, dst);
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
