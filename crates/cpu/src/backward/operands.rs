//! The operands of a unit: a chunk of keys, a tile of queries.
#![allow(unsafe_op_in_unsafe_fn)]

use super::{Scratch, Work};
use crate::call::BLOCK_KEYS;
use crate::pack::{self, Rows, panel_width};
use crate::references::is_large;
use crate::simd::Simd;
use crate::tile::Tile;
use crate::tiles;
use crate::view::View;
use signflash_core::Span;

/// The keys at hand: one chunk, or one block of it, of one key head.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    pub(super) head: usize,
    /// Counted in the sequence.
    pub(super) first: usize,
    pub(super) count: usize,
    /// Rows for the products that sum over head_dim.
    pub(super) k: Rows,
    pub(super) v: Rows,
    /// Steps for the product that sums over keys; columns, where products are tiles'.
    pub(super) k_steps: Rows,
}

/// Which part of the keys that a tile sees a chunk is.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) first: bool,
    pub(super) last: bool,
}

impl Keys {
    /// Those of some keys that are these.
    pub(super) fn those_of(&self, keys: Span<i64>) -> Span<i64> {
        let (first, end) = (self.first as i64, (self.first + self.count) as i64);
        Span { begin: keys.begin.max(first), end: keys.end.min(end) }
    }

    /// As what part of what a tile sees these count; `None` if it sees none of them.
    pub(super) fn part_of(&self, seen: Span<i64>) -> Option<Part> {
        let own = self.those_of(seen);
        (!own.is_empty()).then_some(Part { first: own.begin == seen.begin, last: own.end == seen.end })
    }

    /// The block of these keys whose first is `first`.
    ///
    /// # Safety
    /// As [`Simd`]; `first` lies in the chunk.
    #[inline(always)]
    pub(super) unsafe fn block<S: Simd>(&self, first: usize) -> Self {
        let at = first - self.first;
        Self {
            first,
            count: (self.count - at).min(BLOCK_KEYS),
            k: Rows { p: self.k.p.add(at * self.k.ld), ..self.k },
            v: Rows { p: self.v.p.add(at * self.v.ld), ..self.v },
            k_steps: Rows {
                p: self.k_steps.p.add(at / S::UNIT * if S::TILES { 1 } else { self.k_steps.ld }),
                ..self.k_steps
            },
            ..*self
        }
    }
}

/// From one column of a chunk to the next, in words: such that neighbours do not share sets of the first-level cache.
pub(super) fn columns_ld(chunk_keys: usize) -> usize {
    chunk_keys / 2 + 16
}

/// The queries at hand: one tile of one query head.
#[derive(Clone, Copy)]
pub(crate) struct Queries {
    pub(super) head: usize,
    pub(super) tile: Tile,
    pub(super) q_steps: Rows,
    pub(super) dout_steps: Rows,
}

impl Work<'_> {
    /// Packs a chunk of keys.
    #[inline(always)]
    pub(super) unsafe fn keys<S: Simd>(&self, scratch: &mut Scratch, head: usize, chunk: usize) -> Keys {
        let first = chunk * self.backward.chunk_keys;
        let mut keys = self.sequence.keys(head, first, self.backward.chunk_keys);
        if S::TILES {
            keys = keys.in_steps_of(tiles::SIDE);
        }
        let k = pack::rows::<S>(&self.backward.k, self.dims.qk, keys, &mut scratch.k_rows);
        let v = pack::rows::<S>(&self.backward.v, self.dims.v, keys, &mut scratch.v_rows);
        let (call, total) = (&self.backward.call, keys.total);
        call.look::<S>(k, total, self.dims.qk_padded / S::UNIT);
        call.look::<S>(v, total, self.dims.v_padded / S::UNIT);
        let words = self.dims.qk_padded / S::UNIT;
        let mut k_steps = pack::steps::<S>(k, keys.total, words, &mut scratch.k_steps);
        if S::TILES {
            let ld = columns_ld(self.backward.chunk_keys);
            k_steps = pack::columns::<S>(k_steps, keys.total, words, ld, scratch.k_columns.words());
        }
        Keys { head, first, count: keys.count, k, v, k_steps }
    }

    /// Packs a tile of queries: rows, panels, lse, delta, the row part of the dropout mask. Clears dq^T.
    #[inline(always)]
    pub(super) unsafe fn queries<S: Simd>(&self, scratch: &mut Scratch, head: usize, tile: Tile) -> Queries {
        let (call, dims) = (&self.backward.call, &self.dims);
        let rows = tile.rows;
        let queries = self.sequence.queries(head, &tile);
        let (qk_words, v_words) = (dims.qk_padded / S::UNIT, dims.v_padded / S::UNIT);
        let panels = rows / panel_width::<S>();
        let q = pack::rows::<S>(&self.backward.q, dims.qk, queries, &mut scratch.q_rows);
        let dout = pack::rows::<S>(&self.backward.dout, dims.v, queries, &mut scratch.dout_rows);
        call.look::<S>(q, rows, qk_words);
        call.look::<S>(dout, rows, v_words);
        call.stage.pack_queries::<S>(q, panels, qk_words, scratch.q.words());
        pack::transpose_panels::<S>(dout, panels, v_words, 0, scratch.dout.words());
        let q_steps = pack::steps::<S>(q, rows, qk_words, &mut scratch.q_steps);
        let dout_steps = pack::steps::<S>(dout, rows, v_words, &mut scratch.dout_steps);
        scratch.dq.words().write_bytes(0, rows * dims.qk_padded);
        if let (Some(rule), Some(drop)) = (&call.rule, &mut scratch.drop) {
            drop.start::<S>(rule, self.sequence.place.stream, head, tile.block_row, rows);
        }
        let queries = Queries { head, tile, q_steps, dout_steps };
        self.row_terms::<S>(scratch, &queries);
        queries
    }

    /// -lse in base 2, or what stands for it, and delta / keep_scale of each lane. A row that saw no key, or no row,
    /// gets lse = +inf: its weights are then 0.
    #[inline(always)]
    pub(super) unsafe fn row_terms<S: Simd>(&self, scratch: &mut Scratch, queries: &Queries) {
        let dim = self.dims.v_padded;
        let first = self.backward.call.first_row(&self.sequence, queries.head);
        let lse = &self.backward.lse[first..];
        let dlse = self.backward.dlse.map(|dlse| &dlse[first..]);
        let (minus_lse_log2, delta) = (scratch.minus_lse_log2.floats(), scratch.delta.floats());
        let bases = scratch.base.floats();
        let (dout_row, out_row) = (scratch.floats.floats(), scratch.floats.floats().add(dim));
        for lane in 0..queries.tile.rows {
            let (mut shift, mut base, mut row_delta) = (f32::NEG_INFINITY, 0.0, 0.0);
            if queries.tile.is_real(lane) {
                let row = queries.tile.row_of(lane);
                let index = self.sequence.query(row, queries.head);
                self.load_padded::<S>(&self.backward.dout, index, dout_row);
                self.load_padded::<S>(&self.backward.out, index, out_row);
                self.backward.call.look::<S>(Rows { p: out_row.cast(), ld: 0 }, 1, self.dims.v_padded);
                row_delta = f64::from(dot::<S>(dout_row, out_row, dim));
                let lse = lse[row];
                if lse != f32::NEG_INFINITY {
                    (base, shift) = match self.backward.references {
                        Some(references) if is_large(lse) => {
                            (references.base[first + row], references.shift[first + row])
                        }
                        // A score beyond f32: there are no weights, and no zeros shall hide it.
                        _ if lse == f32::INFINITY => (0.0, f32::NAN),
                        _ => (0.0, (-f64::from(lse) * std::f64::consts::LOG2_E) as f32),
                    };
                    // Not in a row without weights, where dlse may be NaN: 0 * NaN is NaN.
                    row_delta -= dlse.map_or(0.0, |dlse| f64::from(dlse[row]));
                }
            }
            *minus_lse_log2.add(lane) = shift;
            *bases.add(lane) = base;
            *delta.add(lane) = (row_delta / self.backward.call.keep_scale) as f32;
        }
    }

    /// One row of dout or out as f32, zeros up to the padded head_dim.
    #[inline(always)]
    unsafe fn load_padded<S: Simd>(&self, x: &View<'_>, index: [usize; 3], dst: *mut f32) {
        pack::load_row::<S>(x.dtype, x.row(index), self.dims.v, dst);
        dst.add(self.dims.v).write_bytes(0, self.dims.v_padded - self.dims.v);
    }
}

/// A dot product of `n` floats, a multiple of 16, in an order that does not depend on the width of the vectors.
#[inline(always)]
unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, n: usize) -> f32 {
    let mut sums = [0.0f32; 16];
    for part in (0..16).step_by(S::LANES) {
        let mut sum = S::splat(0.0);
        for i in (part..n).step_by(16) {
            sum = S::fma(S::load(a.add(i)), S::load(b.add(i)), sum);
        }
        S::store(sums.as_mut_ptr().add(part), sum);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}
