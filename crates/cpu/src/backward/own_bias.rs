//! The gradient of a bias that has a number for each score: what a chunk of keys gives to it is the chunk's alone. So it is
//! written while ds is at hand, a panel of queries and a block of keys at a time, and no product is computed again.
//!
//! ```text
//! dbias[i,j] = p[i,j] (dp[i,j] - delta[i])             before softcap's slope; 0 where it is not computed
//! ```
#![allow(unsafe_op_in_unsafe_fn)]

use super::operands::{Keys, Queries};
use super::{Scratch, Work};
use crate::call::BLOCK_KEYS;
use crate::pack::panel_width;
use crate::score_stage::TableMut;
use crate::simd::Simd;
use crate::tile::Tile;
use crate::visible::blocks;
use signflash_core::{Problem, Span};
use std::ops::Range;

/// Whether no two chunks of keys of a problem have an element of a bias of this shape in common.
pub(crate) fn is_of_each_score(problem: &Problem, [sequences, heads, queries, keys]: [usize; 4]) -> bool {
    let shape = problem.shape();
    !problem.is_packed()
        && [sequences, heads, queries, keys] == [shape.batch, shape.num_heads, shape.seqlen_q, shape.seqlen_k]
}

impl Work<'_> {
    /// Writes what one panel gives, of keys of a block that were computed; others of the block are zeroed. Their ds stands
    /// where their scores were.
    #[inline(always)]
    pub(super) unsafe fn write_panel<S: Simd>(
        &self,
        dbias: &TableMut<'_>,
        scratch: &mut Scratch,
        (block, queries): (Keys, Queries),
        panel: usize,
        computed: Span<usize>,
    ) {
        let width = panel_width::<S>();
        let (ds, rows) = (scratch.scores.floats(), scratch.slopes.floats());
        for key in (0..computed.begin).chain(computed.end..BLOCK_KEYS) {
            for lane in (0..width).step_by(S::LANES) {
                S::store(ds.add(key * width + lane), S::splat(0.0));
            }
        }
        for lane in (0..width).step_by(S::LANES) {
            for key in (0..BLOCK_KEYS).step_by(S::LANES) {
                let (from, to) = (ds.add(key * width + lane), rows.add(lane * BLOCK_KEYS + key));
                S::transpose(from.cast(), width, to.cast(), BLOCK_KEYS);
            }
        }
        for lane in 0..width {
            if queries.tile.is_real(panel * width + lane) {
                let row = queries.tile.row_of(panel * width + lane);
                let index = [self.sequence.place.stream, queries.head, row, block.first];
                dbias.write_row::<S>(index, rows.add(lane * BLOCK_KEYS), block.count);
            }
        }
    }

    /// Zeros what a tile's panels beside `computed` give to a block of keys.
    #[inline(always)]
    pub(super) unsafe fn clear_panels<S: Simd>(
        &self,
        dbias: &TableMut<'_>,
        (block, queries): (Keys, Queries),
        computed: Span<usize>,
    ) {
        let width = panel_width::<S>();
        let keys = block.first..block.first + block.count;
        self.clear_lanes::<S>(dbias, (queries.head, &queries.tile), 0..computed.begin * width, keys.clone());
        let behind = computed.end * width..queries.tile.rows;
        self.clear_lanes::<S>(dbias, (queries.head, &queries.tile), behind, keys);
    }

    /// Zeros what a tile gives to keys of a chunk that none of its rows sees: those of no block that `seen` touches.
    #[inline(always)]
    pub(super) unsafe fn clear_unseen<S: Simd>(
        &self,
        dbias: &TableMut<'_>,
        (keys, head, tile): (Keys, usize, &Tile),
        seen: Span<i64>,
    ) {
        let end = keys.first + keys.count;
        let (mut first, mut last) = (end, end);
        for block in blocks(keys.those_of(seen)) {
            first = first.min(block);
            last = (block + BLOCK_KEYS).min(end);
        }
        let all = 0..tile.rows;
        self.clear_lanes::<S>(dbias, (head, tile), all.clone(), keys.first..first);
        self.clear_lanes::<S>(dbias, (head, tile), all, last..end);
    }

    #[inline(always)]
    unsafe fn clear_lanes<S: Simd>(
        &self,
        dbias: &TableMut<'_>,
        (head, tile): (usize, &Tile),
        lanes: Range<usize>,
        keys: Range<usize>,
    ) {
        const ZEROS: [f32; BLOCK_KEYS] = [0.0; BLOCK_KEYS];
        for row in lanes.filter(|lane| tile.is_real(*lane)).map(|lane| tile.row_of(lane)) {
            for key in keys.clone().step_by(BLOCK_KEYS) {
                let index = [self.sequence.place.stream, head, row, key];
                dbias.write_row::<S>(index, ZEROS.as_ptr(), BLOCK_KEYS.min(keys.end - key));
            }
        }
    }
}
