//! The gradient of a bias: tiles of it, each of which one unit of work owns. A unit walks over the sequences and heads
//! that have this tile of the bias in common, in one order, and sums what they give in scratch. So the sum is the same
//! for any number of threads, and nothing of the size of all scores is held besides dbias itself.
//!
//! ```text
//! dbias[i,j] = sum of p[i,j] (dp[i,j] - delta[i])             over what it is the same for
//! ```
//!
//! That is two products of the five again, and only where dbias is asked for.
#![allow(unsafe_op_in_unsafe_fn)]

use super::operands::{Keys, Queries};
use super::{Backward, Entries, Scratch, TILE_ROWS, Work};
use crate::call::{BLOCK_KEYS, Call};
use crate::pack::Dims;
use crate::score_stage::TableMut;
use crate::sequence::Sequences;
use crate::simd::Simd;
use crate::visible::{blocks, keys_of_tile};
use std::ops::Range;

/// Of which sequence, head, tile of queries and chunk of keys of the bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BiasUnit {
    pub(crate) sequence: usize,
    pub(crate) head: usize,
    pub(crate) tile: usize,
    pub(crate) chunk: usize,
}

/// How a bias is cut into units.
#[derive(Clone, Copy)]
pub(crate) struct BiasTiles {
    shape: [usize; 4],
    /// How many rows of a Philox block lie before row 0.
    phase: usize,
    tiles: usize,
    chunks: usize,
}

impl BiasTiles {
    pub(crate) fn of(backward: &Backward<'_>, shape: [usize; 4]) -> Self {
        let phase = backward.call.row_phase();
        let tiles = if shape[2] == 1 { 1 } else { (shape[2] + phase).div_ceil(TILE_ROWS) };
        Self { shape, phase, tiles, chunks: shape[3].div_ceil(backward.chunk_keys) }
    }

    /// How many units.
    pub(crate) fn count(&self) -> usize {
        if self.shape.contains(&0) { 0 } else { self.shape[0] * self.shape[1] * self.tiles * self.chunks }
    }

    /// The units of a head lie side by side.
    pub(crate) fn at(&self, unit: usize) -> BiasUnit {
        let (chunk, rest) = (unit % self.chunks, unit / self.chunks);
        let (tile, rest) = (rest % self.tiles, rest / self.tiles);
        BiasUnit { sequence: rest / self.shape[1], head: rest % self.shape[1], tile, chunk }
    }

    /// The sequences and the heads that share a unit's tile.
    fn sharers(&self, call: &Call<'_>, unit: BiasUnit) -> [Range<usize>; 2] {
        let own = |size: usize, at: usize, all: usize| if size == 1 { 0..all } else { at..at + 1 };
        [
            own(self.shape[0], unit.sequence, call.problem.sequence_count()),
            own(self.shape[1], unit.head, call.problem.shape().num_heads),
        ]
    }
}

/// Computes one unit.
///
/// # Safety
/// As [`Simd`]; the operands and dbias were checked against the problem, `scratch` was made for `backward`, and no other
/// thread has this unit. `entries` are the instruction set's.
#[inline(always)]
pub(crate) unsafe fn bias_unit<S: Simd>(
    backward: &Backward<'_>,
    (dbias, tiles): (&TableMut<'_>, &BiasTiles),
    unit: BiasUnit,
    scratch: &mut Scratch,
    entries: Entries,
) {
    let (call, dims) = (&backward.call, Dims::of::<S>(backward.call.problem.shape()));
    let first_key = unit.chunk * backward.chunk_keys;
    scratch.bias.words().write_bytes(0, backward.chunk_keys * TILE_ROWS);
    let [sequences, heads] = tiles.sharers(call, unit);
    for sequence in sequences.map(|index| Sequences::of(call.problem).at(index)) {
        let own_tiles = match call.tiles(&sequence, TILE_ROWS) {
            all if tiles.shape[2] == 1 => 0..all,
            all => unit.tile.min(all)..all.min(unit.tile + 1),
        };
        if first_key < sequence.place.seqlen_k && !own_tiles.is_empty() {
            let work = Work { backward, sequence, dims, entries };
            work.add_bias::<S>(scratch, heads.clone(), own_tiles, unit.chunk);
        }
    }
    write::<S>(backward, (dbias, tiles), unit, scratch);
}

impl Work<'_> {
    /// Adds what these tiles of these heads give to a chunk's sums.
    #[inline(always)]
    unsafe fn add_bias<S: Simd>(
        &self,
        scratch: &mut Scratch,
        heads: Range<usize>,
        tiles: Range<usize>,
        chunk: usize,
    ) {
        let group = self.backward.call.problem.shape().group_size();
        let mut keys: Option<Keys> = None;
        for head in heads {
            let keys = match keys {
                Some(keys) if keys.head == head / group => keys,
                _ => *keys.insert(self.keys::<S>(scratch, head / group, chunk)),
            };
            for tile in tiles.clone().map(|tile| self.tile::<S>(tile)) {
                if keys.part_of(keys_of_tile(&self.sequence, &tile).some).is_some() {
                    let queries = self.queries::<S>(scratch, head, tile);
                    (self.entries.sweep_bias)(self, scratch, keys, queries);
                }
            }
        }
    }

    /// All blocks of the keys against one tile of queries, for the sums of dbias alone.
    ///
    /// # Safety
    /// As [`super::unit()`]; keys and queries are packed in `scratch`.
    #[inline(always)]
    pub(crate) unsafe fn sweep_bias<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        keys: Keys,
        queries: Queries,
    ) {
        let seen = keys_of_tile(&self.sequence, &queries.tile).some;
        for first in blocks(keys.those_of(seen)) {
            let at = (first - keys.first, None);
            self.weights::<S, MR, true>(scratch, keys.block::<S>(first), queries, at);
        }
    }
}

/// Writes the sums of a unit, a block of keys at a time.
#[inline(always)]
unsafe fn write<S: Simd>(
    backward: &Backward<'_>,
    (dbias, tiles): (&TableMut<'_>, &BiasTiles),
    unit: BiasUnit,
    scratch: &mut Scratch,
) {
    let BiasUnit { sequence, head, tile, chunk } = unit;
    let [.., queries, keys] = tiles.shape;
    let keep_scale = S::splat(backward.call.keep_scale as f32);
    let (sums, rows) = (scratch.bias.floats(), scratch.p.floats());
    let first = chunk * backward.chunk_keys;
    for at in (0..backward.chunk_keys.min(keys - first)).step_by(BLOCK_KEYS) {
        let (block, count) = (sums.add(at * TILE_ROWS), BLOCK_KEYS.min(keys - first - at));
        for n in (0..BLOCK_KEYS * TILE_ROWS).step_by(S::LANES) {
            S::store(block.add(n), S::mul(S::load(block.add(n)), keep_scale));
        }
        if queries == 1 {
            for key in 0..count {
                let lanes = std::slice::from_raw_parts(block.add(key * TILE_ROWS), TILE_ROWS);
                *rows.add(key) = lanes.iter().map(|x| f64::from(*x)).sum::<f64>() as f32;
            }
            dbias.write_row::<S>([sequence, head, 0, first + at], rows, count);
            continue;
        }
        for key in (0..BLOCK_KEYS).step_by(S::LANES) {
            for lane in (0..TILE_ROWS).step_by(S::LANES) {
                let from = block.add(key * TILE_ROWS + lane).cast();
                S::transpose(from, TILE_ROWS, rows.add(lane * BLOCK_KEYS + key).cast(), BLOCK_KEYS);
            }
        }
        for lane in 0..TILE_ROWS {
            // Lanes before the first row, and behind the last, stand for none.
            match (tile * TILE_ROWS + lane).checked_sub(tiles.phase) {
                Some(row) if row < queries => {
                    dbias.write_row::<S>(
                        [sequence, head, row, first + at],
                        rows.add(lane * BLOCK_KEYS),
                        count,
                    );
                }
                _ => {}
            }
        }
    }
}
