//! The forward kernel: one tile of queries against all keys it sees, with online softmax (Milakov and Gimelshein,
//! 2018; Dao et al., "FlashAttention", 2022).
//!
//! ```text
//! for each block of 64 keys                         k, v rows: in place, or copied to scratch
//!     for each panel of 2 vectors of queries        lanes = queries, so everything per row is per lane
//!         s^T  = K q^T                              micro-kernel; invisible scores become -inf
//!         m'   = max(m, max s);  a = 2^(m - m')     scores in base 2
//!         p^T  = 2^(s - m');  l = l a + sum p       of all visible keys, dropped or not
//!         p^T  sign set where dropped               Philox: one bit a row, 16 rows a block
//!         p^T  = max(p, 0)                          the sign bit drops: relu
//!         out^T = out^T a + V^T p^T                 micro-kernel
//! out = out^T keep_scale / l,  lse = ln 2 m + ln l
//! ```
//!
//! `2^(s - m)` is one fused multiply-add and an exponential: `q k` times the scale, less the rounded product of the
//! maximum and the scale. That rounding moves all weights of a row alike and normalises away, up to a size
//! ([`LARGE_LOG2`]) from which the maximum is taken from `q k` before it is scaled.
//!
//! Scores, sums and out are f32; with bf16 pairs p is rounded to bf16 for the second product.
#![allow(unsafe_op_in_unsafe_fn)]

mod output;
mod probs;
mod scores;
mod stretch;
mod weigh;

pub(crate) use probs::clear_behind_ends;

use crate::ahead::Ahead;
use crate::buffer::Buffer;
use crate::call::{BLOCK_KEYS, Call};
use crate::gemm::step_keys;
use crate::pack::{self, Dims, Rows, panel_width};
use crate::philox::DropTile;
use crate::references::{Writer, is_large};
use crate::row_end::RowEnd;
use crate::score_stage::{self, Change};
use crate::sequence::Sequence;
use crate::simd::Simd;
use crate::tile::Tile;
use crate::view::{FloatsMut, View, ViewMut};
use crate::visible::{Visible, blocks, keys_of_tile, lanes_of, panels_that_see};
use std::ops::Range;
use stretch::{STRETCH_KEYS, columns_ld};

/// What scores depend on, and how their rows are cut into tiles.
#[derive(Clone, Copy)]
pub(crate) struct Scores<'a> {
    pub(crate) call: Call<'a>,
    pub(crate) q: View<'a>,
    pub(crate) k: View<'a>,
    /// Lanes of a tile.
    pub(crate) tile_rows: usize,
}

/// A forward call.
#[derive(Clone, Copy)]
pub(crate) struct Forward<'a> {
    pub(crate) scores: Scores<'a>,
    pub(crate) v: View<'a>,
    pub(crate) out: ViewMut<'a>,
    pub(crate) lse: FloatsMut<'a>,
    pub(crate) probs: Option<ViewMut<'a>>,
}

/// One tile of one query head of a sequence.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    pub(crate) sequence: Sequence,
    pub(crate) head: usize,
    pub(crate) tile: usize,
}

/// A unit, and the one that its thread is likely to compute next.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub(crate) unit: Unit,
    pub(crate) next: Option<Unit>,
}

/// What a worker needs, for tile after tile.
pub(crate) struct Scratch {
    /// Rows of q on their way in; rows of out on their way out.
    rows: Buffer,
    /// Panels of q^T: `[panel][word of head_dim][lane]`.
    q: Buffer,
    /// Panels of out^T: `[panel][head_dim of v][lane]`.
    out: Buffer,
    k: Buffer,
    v_rows: Buffer,
    v: Buffer,
    /// v^T, where products are tiles'.
    v_columns: Buffer,
    columns_ld: usize,
    /// One panel of s^T, then p^T: `[key][lane]`.
    weights: Buffer,
    /// One panel of p^T as the lane operand, where that differs from `weights`: of as many keys as are packed at a time.
    pairs: Buffer,
    row_max: Buffer,
    row_sum: Buffer,
    stage: score_stage::Scratch,
    drop: Option<DropTile>,
    /// What comes after the block of keys at hand.
    ahead: Ahead,
}

impl Scratch {
    pub(crate) fn new<S: Simd>(scores: &Scores<'_>) -> Self {
        let (rows, width) = (scores.tile_rows, panel_width::<S>());
        let [.., longest] = scores.call.problem.probs();
        let at_once = keys_at_once::<S>().min(longest.next_multiple_of(BLOCK_KEYS)).max(BLOCK_KEYS);
        let dims = Dims::of::<S>(scores.call.problem.shape());
        Self {
            rows: Buffer::new(rows * dims.qk_padded.max(dims.v_padded)),
            q: Buffer::new(rows * dims.qk_padded),
            out: Buffer::new(rows * dims.v_padded),
            k: Buffer::new(at_once * dims.qk_padded / S::UNIT),
            v_rows: Buffer::new(BLOCK_KEYS * dims.v_padded),
            v: Buffer::new(BLOCK_KEYS * dims.v_padded),
            v_columns: Buffer::new(columns_ld(at_once) * dims.v_padded),
            columns_ld: columns_ld(at_once),
            weights: Buffer::new(BLOCK_KEYS * width),
            pairs: Buffer::new(at_once * width / S::UNIT),
            row_max: Buffer::new(rows),
            row_sum: Buffer::new(rows),
            stage: score_stage::Scratch::new::<S>(),
            drop: scores.call.rule.map(|rule| DropTile::new(&rule, rows, at_once)),
            ahead: Ahead::nothing(),
        }
    }
}

/// The tile at hand.
struct Work<'a> {
    scores: &'a Scores<'a>,
    unit: Unit,
    tile: Tile,
    head_k: usize,
    dims: Dims,
    change: Change,
    /// From which magnitude on, in base 2, maxima are subtracted from scores before they are scaled.
    large: f32,
}

/// Keys that are packed at a time.
const fn keys_at_once<S: Simd>() -> usize {
    if S::TILES { STRETCH_KEYS } else { BLOCK_KEYS }
}

/// At this magnitude in base 2 the rounding of `max * scale` moves weights by 2^-13 at most, all of a row alike, so
/// that they stay near 1 and normalise away. At 2^31 it would move them by 2^128, out of f32.
const LARGE_LOG2: f32 = 4096.0;

/// Computes one tile: out and lse, and probs if asked for.
///
/// # Safety
/// As [`Simd`]; the operands were checked against the problem, `scratch` was made for `forward`, and no other thread
/// has this unit. `change` is the instruction set's.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, const MR: usize>(
    forward: &Forward<'_>,
    Task { unit, next }: Task,
    scratch: &mut Scratch,
    change: Change,
) {
    if forward.scores.call.is_in_vain() {
        return;
    }
    let work = Work::new::<S>(&forward.scores, unit, change, LARGE_LOG2);
    work.start::<S>(scratch);
    let mut seen = work.keys_at_once::<S>().peekable();
    while let Some(keys) = seen.next() {
        if S::TILES {
            work.stretch::<S, MR>(scratch, &forward.v, keys);
            continue;
        }
        let ahead = match seen.peek() {
            Some(keys) => work.ask_for_keys(Ahead::nothing(), forward, keys.clone()),
            None => work.ask_for_next::<S>(forward, next),
        };
        // Once for each micro-tile of scores.
        scratch.ahead = ahead.within(work.panels::<S>() * BLOCK_KEYS / MR);
        work.block::<S, MR>(scratch, &forward.v, keys.start);
    }
    work.end_rows::<S>(scratch, forward);
    if let Some(probs) = forward.probs {
        for first_key in (0..unit.sequence.place.seqlen_k).step_by(BLOCK_KEYS) {
            work.probs_block::<S, MR>(scratch, &probs, first_key);
        }
    }
    work.finish::<S>(scratch, forward);
}

/// Finds what the weights of one tile's rows of large lse are relative to.
///
/// # Safety
/// As [`tile`]; `scratch` was made for `scores`, and no other thread writes these rows.
#[inline(always)]
pub(crate) unsafe fn references<S: Simd, const MR: usize>(
    scores: &Scores<'_>,
    unit: Unit,
    scratch: &mut Scratch,
    to: &Writer<'_>,
    change: Change,
) {
    let work = Work::new::<S>(scores, unit, change, 0.0); // always relative to the maximum itself
    let first = scores.call.first_row(&unit.sequence, unit.head) + work.tile.first;
    let rows = first..first + work.tile.count;
    if !to.lse[rows.clone()].iter().any(|&lse| is_large(lse)) {
        return;
    }
    work.start::<S>(scratch);
    for first_key in work.blocks() {
        work.sums::<S, MR>(scratch, first_key);
    }
    for (i, row) in rows.enumerate().filter(|(_, row)| is_large(to.lse[*row])) {
        let lane = work.tile.before + i;
        let (max, sum) = (*scratch.row_max.floats().add(lane), *scratch.row_sum.floats().add(lane));
        let sink = scores.call.sink(&unit.sequence, unit.head);
        to.write(row, max, RowEnd::of(scores.call.stage.natural(max), sum.into(), sink));
    }
}

impl<'a> Work<'a> {
    fn new<S: Simd>(scores: &'a Scores<'a>, unit: Unit, change: Change, large: f32) -> Self {
        let shape = scores.call.problem.shape();
        Work {
            scores,
            unit,
            tile: scores.call.tile(&unit.sequence, unit.tile, scores.tile_rows, panel_width::<S>()),
            head_k: unit.head / shape.group_size(),
            dims: Dims::of::<S>(shape),
            change,
            large,
        }
    }

    /// The first keys of the blocks to compute.
    fn blocks(&self) -> impl Iterator<Item = usize> {
        blocks(keys_of_tile(&self.unit.sequence, &self.tile).some)
    }

    /// The keys to compute, as many as are packed at a time: a block, or the blocks of a stretch.
    fn keys_at_once<S: Simd>(&self) -> impl Iterator<Item = Range<usize>> {
        let keys = keys_of_tile(&self.unit.sequence, &self.tile).some.positions();
        let begin = keys.start / BLOCK_KEYS * BLOCK_KEYS;
        let (end, most) = (keys.end.next_multiple_of(BLOCK_KEYS), keys_at_once::<S>());
        (begin..end).step_by(most).map(move |first| first..end.min(first + most))
    }

    fn panels<S: Simd>(&self) -> usize {
        self.tile.rows / panel_width::<S>()
    }

    /// What a panel sees of a block.
    fn visible<S: Simd, const MR: usize>(&self, panel: usize, first_key: usize) -> Option<Visible> {
        let (first, width) = (panel * panel_width::<S>(), panel_width::<S>());
        let visible = Visible::new::<S, MR>(&self.unit.sequence, &self.tile, first, first_key)?;
        let keys = first_key + visible.keys.begin..first_key + visible.keys.end;
        self.is_shown(first..first + width, keys).then_some(visible)
    }

    /// Whether a mask, if there is one, shows some of these keys to some of these lanes.
    fn is_shown(&self, lanes: Range<usize>, keys: Range<usize>) -> bool {
        let Unit { sequence, head, .. } = &self.unit;
        self.scores.call.operands.show(sequence, *head, (&self.tile, lanes), keys)
    }

    /// Whether it shows all of them to all of the lanes.
    fn is_all_shown(&self, lanes: Range<usize>, keys: Range<usize>) -> bool {
        let Unit { sequence, head, .. } = &self.unit;
        self.scores.call.operands.show_all(sequence, *head, (&self.tile, lanes), keys)
    }

    /// Transposes q, clears the running state and the row part of the dropout mask.
    #[inline(always)]
    unsafe fn start<S: Simd>(&self, scratch: &mut Scratch) {
        let Unit { sequence, head, .. } = self.unit;
        let Tile { rows, block_row, .. } = self.tile;
        let call = &self.scores.call;
        let q = sequence.queries(head, &self.tile);
        let q = pack::rows_once::<S>(&self.scores.q, self.dims.qk, q, &mut scratch.rows);
        let words = self.dims.qk_padded / S::UNIT;
        call.stage.pack_queries::<S>(q, self.panels::<S>(), words, scratch.q.words());
        scratch.out.words().write_bytes(0, rows * self.dims.v_padded);
        scratch.row_sum.words().write_bytes(0, rows);
        std::slice::from_raw_parts_mut(scratch.row_max.floats(), rows).fill(f32::NEG_INFINITY);
        if let (Some(rule), Some(drop)) = (&call.rule, &mut scratch.drop) {
            drop.start::<S>(rule, sequence.place.stream, head, block_row, rows);
        }
    }

    /// The rows of one block of keys, and how many keys they are.
    #[inline(always)]
    unsafe fn keys<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        first_key: usize,
        most: usize,
    ) -> (Rows, usize) {
        let keys = self.unit.sequence.keys(self.head_k, first_key, most);
        let keys = keys.in_steps_of(step_keys::<S, MR>());
        (pack::rows::<S>(&self.scores.k, self.dims.qk, keys, &mut scratch.k), keys.count)
    }

    /// Draws what is dropped of one block of keys, `at` among those packed at a time, for the panels that see some of it.
    #[inline(always)]
    unsafe fn draw<S: Simd>(&self, scratch: &mut Scratch, first_key: usize, count: usize, at: usize) {
        if let Some(drop) = &mut scratch.drop {
            let panels = panels_that_see::<S>(&self.unit.sequence, &self.tile, first_key, count);
            drop.draw::<S>(first_key, count, lanes_of::<S>(panels), at);
        }
    }

    /// One block of keys against every panel of the tile.
    #[inline(always)]
    unsafe fn block<S: Simd, const MR: usize>(&self, scratch: &mut Scratch, v: &View<'_>, first_key: usize) {
        if !self.is_shown(0..self.tile.rows, first_key..first_key + BLOCK_KEYS) {
            return;
        }
        let (k, count) = self.keys::<S, MR>(scratch, first_key, BLOCK_KEYS);
        let values = self.unit.sequence.keys(self.head_k, first_key, BLOCK_KEYS);
        let values = values.in_steps_of(step_keys::<S, MR>());
        let v = match S::PAIRS {
            true => pack::rows_once::<S>(v, self.dims.v, values, &mut scratch.v_rows), // to be woven
            false => pack::rows::<S>(v, self.dims.v, values, &mut scratch.v_rows),
        };
        self.scores.call.look::<S>(v, values.count, self.dims.v_padded / S::UNIT);
        let words = self.dims.v_padded / S::UNIT;
        let v = pack::steps::<S>(v, values.total, words, &mut scratch.v);
        self.draw::<S>(scratch, first_key, count, 0);
        for panel in 0..self.panels::<S>() {
            let Some(visible) = self.visible::<S, MR>(panel, first_key) else { continue };
            let block_max = self.scores::<S, MR>(scratch, k, panel, first_key, visible);
            // With pairs subnormals cost nothing.
            let flush = !S::PAIRS && !self.scores.call.careful && self.scores.call.stage.flushes();
            let keys = (visible.keys, 0);
            let rescale = match (scratch.drop.is_some(), flush) {
                (true, false) => self.weigh::<S, true, false>(scratch, panel, keys, block_max),
                (false, false) => self.weigh::<S, false, false>(scratch, panel, keys, block_max),
                (true, true) => self.weigh::<S, true, true>(scratch, panel, keys, block_max),
                (false, true) => self.weigh::<S, false, true>(scratch, panel, keys, block_max),
            };
            self.accumulate::<S, MR>(scratch, v, panel, visible.keys, rescale);
        }
    }

    /// Asks for the rows of keys.
    fn ask_for_keys(&self, ahead: Ahead, forward: &Forward<'_>, keys: Range<usize>) -> Ahead {
        let keys = self.unit.sequence.keys(self.head_k, keys.start, keys.len());
        ahead.read(&self.scores.k, keys).read(&forward.v, keys)
    }

    /// Asks for the rows of out that this tile will write, and for what the next unit begins with.
    fn ask_for_next<S: Simd>(&self, forward: &Forward<'_>, next: Option<Unit>) -> Ahead {
        let own = self.unit.sequence.queries(self.unit.head, &self.tile);
        let ahead = Ahead::nothing().write(&forward.out, own, self.dims.v);
        let Some(next) = next else { return ahead };
        let work = Work::new::<S>(self.scores, next, self.change, self.large);
        let ahead = ahead.read(&self.scores.q, next.sequence.queries(next.head, &work.tile));
        match work.keys_at_once::<S>().next() {
            Some(keys) => work.ask_for_keys(ahead, forward, keys),
            None => ahead,
        }
    }

    /// One block of keys, for the rows' maxima and sums only.
    #[inline(always)]
    unsafe fn sums<S: Simd, const MR: usize>(&self, scratch: &mut Scratch, first_key: usize) {
        let (k, _) = self.keys::<S, MR>(scratch, first_key, BLOCK_KEYS);
        for panel in 0..self.panels::<S>() {
            if let Some(visible) = self.visible::<S, MR>(panel, first_key) {
                let block_max = self.scores::<S, MR>(scratch, k, panel, first_key, visible);
                self.weigh::<S, false, false>(scratch, panel, (visible.keys, 0), block_max);
            }
        }
    }
}
