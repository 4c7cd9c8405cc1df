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
//! `2^(s - m)` is one fused multiply-add and an exponential: `q k` times the scale, less the rounded product of the maximum
//! and the scale. That rounding moves all weights of a row alike and normalises away, up to a size ([`LARGE_LOG2`]) from
//! which the maximum is taken from `q k` before it is scaled.
//!
//! Scores, sums and out are f32; with bf16 pairs p is rounded to bf16 for the second product.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::buffer::Buffer;
use crate::call::{BLOCK_KEYS, Call, Tile, Visible};
use crate::gemm::{Left, NV, Right, Weight, product, product_of_weights};
use crate::pack::{self, Rows, Span, padded_dim, panel_width};
use crate::philox::DropTile;
use crate::references::{Writer, is_large};
use crate::simd::Simd;
use crate::view::{FloatsMut, View, ViewMut};

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

/// One tile of one (batch, query head).
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    pub(crate) tile: usize,
}

/// What a worker needs, for tile after tile.
pub(crate) struct Scratch {
    q_rows: Buffer,
    /// Panels of q^T: `[panel][word of head_dim][lane]`.
    q: Buffer,
    /// Panels of out^T: `[panel][head_dim][lane]`.
    out: Buffer,
    k: Buffer,
    v_rows: Buffer,
    v: Buffer,
    /// One panel of s^T, then p^T: `[key][lane]`.
    weights: Buffer,
    /// One panel of p^T as the lane operand, where that differs from `weights`.
    pairs: Buffer,
    row_max: Buffer,
    row_sum: Buffer,
    drop: Option<DropTile>,
}

impl Scratch {
    pub(crate) fn new<S: Simd>(scores: &Scores<'_>) -> Self {
        let (rows, dim) = (scores.tile_rows, padded_dim::<S>(scores.call.problem.shape().head_dim));
        let width = panel_width::<S>();
        Self {
            q_rows: Buffer::new(rows * dim),
            q: Buffer::new(rows * dim),
            out: Buffer::new(rows * dim),
            k: Buffer::new(BLOCK_KEYS * dim),
            v_rows: Buffer::new(BLOCK_KEYS * dim),
            v: Buffer::new(BLOCK_KEYS * dim),
            weights: Buffer::new(BLOCK_KEYS * width),
            pairs: Buffer::new(BLOCK_KEYS * width),
            row_max: Buffer::new(rows),
            row_sum: Buffer::new(rows),
            drop: scores.call.rule.map(|rule| DropTile::new(&rule, rows, BLOCK_KEYS)),
        }
    }
}

/// The tile at hand.
struct Work<'a> {
    scores: &'a Scores<'a>,
    unit: Unit,
    tile: Tile,
    head_k: usize,
    head_dim: usize,
    /// head_dim, padded.
    dim: usize,
    /// From which magnitude on, in base 2, maxima are subtracted from scores before they are scaled.
    large: f32,
}

/// At this magnitude in base 2 the rounding of `max * scale` moves weights by 2^-13 at most, all of a row alike, so that
/// they stay near 1 and normalise away. At 2^31 it would move them by 2^128, out of f32.
const LARGE_LOG2: f32 = 4096.0;

/// Computes one tile: out and lse, and probs if asked for.
///
/// # Safety
/// As [`Simd`]; the operands were checked against the problem, `scratch` was made for `forward`, and no other thread
/// has this unit.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, const MR: usize>(
    forward: &Forward<'_>,
    unit: Unit,
    scratch: &mut Scratch,
) {
    let shape = forward.scores.call.problem.shape();
    let work = Work::new::<S>(&forward.scores, unit, LARGE_LOG2);
    work.start::<S>(scratch);
    for first_key in (0..work.tile.key_end(forward.scores.call.problem)).step_by(BLOCK_KEYS) {
        work.block::<S, MR>(scratch, &forward.v, first_key);
    }
    if let Some(probs) = forward.probs {
        for first_key in (0..shape.seqlen_k).step_by(BLOCK_KEYS) {
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
) {
    let work = Work::new::<S>(scores, unit, 0.0); // always relative to the maximum itself
    let shape = scores.call.problem.shape();
    let first = (unit.batch * shape.num_heads + unit.head) * shape.seqlen_q + work.tile.first;
    let rows = first..first + work.tile.count;
    if !to.lse[rows.clone()].iter().any(|&lse| is_large(lse)) {
        return;
    }
    work.start::<S>(scratch);
    for first_key in (0..work.tile.key_end(scores.call.problem)).step_by(BLOCK_KEYS) {
        work.sums::<S, MR>(scratch, first_key);
    }
    for (i, row) in rows.enumerate().filter(|(_, row)| is_large(to.lse[*row])) {
        let lane = work.tile.before + i;
        let (max, sum) = (*scratch.row_max.floats().add(lane), *scratch.row_sum.floats().add(lane));
        to.write(&scores.call, row, max, sum.into());
    }
}

/// What turns the scores of one vector of rows into weights.
struct Weigh<S: Simd> {
    scale: S::V,
    minus_shift: S::V,
    /// The dropped rows of each key, and the bit of the first lane.
    bits: Option<(*const u16, u32)>,
}

impl<S: Simd> Weigh<S> {
    /// One key's weights; added to `sum` dropped or not.
    #[inline(always)]
    unsafe fn weight(&self, s: S::V, key: usize, sum: &mut S::V) -> S::V {
        let p = S::exp2(S::fma(s, self.scale, self.minus_shift));
        *sum = S::add(*sum, p);
        match self.bits {
            // Dropped weights are negative; relu makes them 0 and keeps NaN.
            Some((bits, shift)) => S::max(S::splat(0.0), S::sign_where(p, bits.add(key), shift)),
            None => p,
        }
    }
}

impl<'a> Work<'a> {
    fn new<S: Simd>(scores: &'a Scores<'a>, unit: Unit, large: f32) -> Self {
        let shape = scores.call.problem.shape();
        Work {
            scores,
            unit,
            tile: scores.call.tile(unit.tile, scores.tile_rows, panel_width::<S>()),
            head_k: unit.head / shape.group_size(),
            head_dim: shape.head_dim,
            dim: padded_dim::<S>(shape.head_dim),
            large,
        }
    }

    fn panels<S: Simd>(&self) -> usize {
        self.tile.rows / panel_width::<S>()
    }

    fn span_of_keys(&self, first_key: usize, total: usize) -> Span {
        let count = (self.scores.call.problem.shape().seqlen_k - first_key).min(BLOCK_KEYS);
        Span { batch: self.unit.batch, head: self.head_k, first: first_key, before: 0, count, total }
    }

    /// Transposes q, clears the running state and the row part of the dropout mask.
    #[inline(always)]
    unsafe fn start<S: Simd>(&self, scratch: &mut Scratch) {
        let Tile { first, before, count, rows, block_row } = self.tile;
        let span = Span { batch: self.unit.batch, head: self.unit.head, first, before, count, total: rows };
        let q = pack::rows::<S>(&self.scores.q, self.head_dim, span, &mut scratch.q_rows);
        let flip = if self.scores.call.negative_scale { pack::sign_flip::<S>() } else { 0 };
        pack::transpose_panels::<S>(q, self.panels::<S>(), self.dim / S::UNIT, flip, scratch.q.words());
        scratch.out.words().write_bytes(0, rows * self.dim);
        scratch.row_sum.words().write_bytes(0, rows);
        std::slice::from_raw_parts_mut(scratch.row_max.floats(), rows).fill(f32::NEG_INFINITY);
        if let (Some(rule), Some(drop)) = (&self.scores.call.rule, &mut scratch.drop) {
            drop.start::<S>(rule, self.unit.batch, self.unit.head, block_row, rows);
        }
    }

    /// One block of keys against every panel of the tile.
    #[inline(always)]
    unsafe fn block<S: Simd, const MR: usize>(&self, scratch: &mut Scratch, v: &View<'_>, first_key: usize) {
        let span = self.span_of_keys(first_key, BLOCK_KEYS);
        // Rows are computed in whole micro-tiles and pairs: a ragged block is padded with zeros.
        let total = span.count.next_multiple_of(16);
        let span = Span { total, ..span };
        let k = pack::rows::<S>(&self.scores.k, self.head_dim, span, &mut scratch.k);
        let v = pack::rows::<S>(v, self.head_dim, span, &mut scratch.v_rows);
        let v = pack::steps::<S>(v, total, self.dim / S::UNIT, &mut scratch.v);
        if let Some(drop) = &mut scratch.drop {
            drop.draw::<S>(first_key, span.count);
        }
        for panel in 0..self.panels::<S>() {
            let lane = panel * panel_width::<S>();
            let problem = self.scores.call.problem;
            let Some(visible) = Visible::new::<MR>(problem, &self.tile, lane, panel_width::<S>(), first_key)
            else {
                continue;
            };
            let block_max = self.scores::<S, MR>(scratch, k, panel, visible);
            let rescale = if scratch.drop.is_some() {
                self.weigh::<S, true>(scratch, panel, visible.keys, block_max)
            } else {
                self.weigh::<S, false>(scratch, panel, visible.keys, block_max)
            };
            self.accumulate::<S, MR>(scratch, v, panel, visible.keys, rescale);
        }
    }

    /// One block of keys, for the rows' maxima and sums only.
    #[inline(always)]
    unsafe fn sums<S: Simd, const MR: usize>(&self, scratch: &mut Scratch, first_key: usize) {
        let span = self.span_of_keys(first_key, BLOCK_KEYS);
        let span = Span { total: span.count.next_multiple_of(16), ..span };
        let k = pack::rows::<S>(&self.scores.k, self.head_dim, span, &mut scratch.k);
        for panel in 0..self.panels::<S>() {
            let (lane, width) = (panel * panel_width::<S>(), panel_width::<S>());
            let problem = self.scores.call.problem;
            if let Some(visible) = Visible::new::<MR>(problem, &self.tile, lane, width, first_key) {
                let block_max = self.scores::<S, MR>(scratch, k, panel, visible);
                self.weigh::<S, false>(scratch, panel, visible.keys, block_max);
            }
        }
    }

    /// `s^T = K q^T` of one panel into `weights`, -inf where invisible. Returns each lane's maximum.
    #[inline(always)]
    unsafe fn scores<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        k: Rows,
        panel: usize,
        visible: Visible,
    ) -> [S::V; NV] {
        let (width, depth) = (panel_width::<S>(), self.dim / S::UNIT);
        let q = Right { p: scratch.q.words().add(panel * depth * width), step: width };
        let weights = scratch.weights.floats();
        let hidden = S::splat(f32::NEG_INFINITY);
        let ends =
            if visible.all { [hidden; NV] } else { visible.ends::<S>(self.scores.call.problem, &self.tile) };
        let mut max = [hidden; NV];
        for key in (0..visible.keys).step_by(MR) {
            let a = Left { p: k.p.add(key * k.ld), row: k.ld, step: 1 };
            let mut s = product::<S, MR, NV>(depth, a, q);
            if !visible.all {
                for (m, s) in s.iter_mut().enumerate() {
                    let index = S::splat((key + m) as f32);
                    for (s, end) in s.iter_mut().zip(ends) {
                        *s = S::where_less(index, end, *s, hidden);
                    }
                }
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

    /// Turns one panel's scores into weights: moves the running maximum and sum, drops by sign and relu. Returns the
    /// factor of what was accumulated before.
    #[inline(always)]
    unsafe fn weigh<S: Simd, const DROP: bool>(
        &self,
        scratch: &mut Scratch,
        panel: usize,
        keys: usize,
        block_max: [S::V; NV],
    ) -> [S::V; NV] {
        let width = panel_width::<S>();
        let scale = S::splat(self.scores.call.scale_log2);
        let weights = scratch.weights.floats();
        let (hidden, zero) = (S::splat(f32::NEG_INFINITY), S::splat(0.0));
        let mut rescale = [zero; NV];
        for (n, block_max) in block_max.into_iter().enumerate() {
            let lane = panel * width + n * S::LANES;
            let (row_max, row_sum) = (scratch.row_max.floats().add(lane), scratch.row_sum.floats().add(lane));
            let old_max = S::load(row_max);
            let new_max = S::max(block_max, old_max);
            S::store(row_max, new_max);
            // A row that has seen nothing yet must not make -inf - -inf.
            let seen = S::where_less(hidden, new_max, new_max, zero);
            let mut shift = S::mul(seen, scale);
            rescale[n] = S::exp2(S::sub(S::mul(old_max, scale), shift));
            if S::any_reaches(shift, self.large) {
                rescale[n] = S::exp2(S::mul(S::sub(old_max, seen), scale));
                self.subtract::<S>(weights.add(n * S::LANES), keys, seen);
                shift = zero;
            }
            let minus_shift = S::sub(zero, shift);
            let bits = if DROP { scratch.drop.as_ref().map(|drop| drop.lanes(lane)) } else { None };
            let mut sum = zero;
            let softmax = Weigh::<S> { scale, minus_shift, bits };
            if S::PAIRS {
                let pairs = scratch.pairs.words();
                for key in (0..keys).step_by(2) {
                    let at = weights.add(key * width + n * S::LANES);
                    let even = softmax.weight(S::load(at), key, &mut sum);
                    let odd = softmax.weight(S::load(at.add(width)), key + 1, &mut sum);
                    S::store_pair(pairs.add(key / 2 * width + n * S::LANES), even, odd);
                }
            } else {
                for key in 0..keys {
                    let at = weights.add(key * width + n * S::LANES);
                    S::store(at, softmax.weight(S::load(at), key, &mut sum));
                }
            }
            S::store(row_sum, S::fma(S::load(row_sum), rescale[n], sum));
        }
        rescale
    }

    /// Takes `base` from the scores of one vector of rows: exactly where they are near it, which are those that count.
    #[inline(always)]
    unsafe fn subtract<S: Simd>(&self, scores: *mut f32, keys: usize, base: S::V) {
        for key in 0..keys {
            let at = scores.add(key * panel_width::<S>());
            S::store(at, S::sub(S::load(at), base));
        }
    }

    /// `out^T = out^T rescale + V^T p^T` of one panel.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        v: Rows,
        panel: usize,
        keys: usize,
        rescale: [S::V; NV],
    ) {
        let width = panel_width::<S>();
        let out = scratch.out.floats().add(panel * self.dim * width);
        let p = if S::PAIRS { scratch.pairs.words() } else { scratch.weights.words() };
        let p = Right { p, step: width };
        for d in (0..self.dim).step_by(MR) {
            let a = Left { p: v.p.add(d), row: 1, step: v.ld };
            let sum = if self.scores.call.careful {
                product_of_weights::<S, MR, NV>(keys / S::UNIT, a, p, Weight::Right)
            } else {
                product::<S, MR, NV>(keys / S::UNIT, a, p)
            };
            for (m, sum) in sum.into_iter().enumerate() {
                for (n, sum) in sum.into_iter().enumerate() {
                    let at = out.add((d + m) * width + n * S::LANES);
                    S::store(at, S::fma(S::load(at), rescale[n], sum));
                }
            }
        }
    }

    /// Normalises and writes out and lse.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, scratch: &mut Scratch, forward: &Forward<'_>) {
        let shape = self.scores.call.problem.shape();
        let keep_scale = self.scores.call.keep_scale;
        let (row_max, row_sum) = (scratch.row_max.floats(), scratch.row_sum.floats());
        let lse_row = (self.unit.batch * shape.num_heads + self.unit.head) * shape.seqlen_q;
        for lane in 0..self.tile.rows {
            let (max, sum) = (*row_max.add(lane), f64::from(*row_sum.add(lane)));
            if self.tile.is_real(lane) {
                *forward.lse.at(lse_row + self.tile.row_of(lane)) =
                    self.scores.call.lse(max, sum, self.large);
            }
            // From here on the factor of the row; a row that saw no key has gathered 0 and stays 0.
            *row_sum.add(lane) = if sum == 0.0 { 0.0 } else { (keep_scale / sum) as f32 };
        }
        self.write_out::<S>(scratch, &forward.out);
    }

    #[inline(always)]
    unsafe fn write_out<S: Simd>(&self, scratch: &mut Scratch, out: &ViewMut<'_>) {
        let (width, dim) = (panel_width::<S>(), self.dim);
        let rows = scratch.q_rows.floats(); // q is no longer needed
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
            let dst = out.row([self.unit.batch, self.tile.first + r, self.unit.head]);
            pack::store_row::<S>(out.dtype, row, self.head_dim, dst);
        }
    }

    /// Writes one block of keys of `probs`, once the rows' maxima and sums are known.
    #[inline(always)]
    unsafe fn probs_block<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        probs: &ViewMut<'_>,
        first_key: usize,
    ) {
        let span = self.span_of_keys(first_key, BLOCK_KEYS);
        let span = Span { total: span.count.next_multiple_of(16), ..span };
        let k = pack::rows::<S>(&self.scores.k, self.head_dim, span, &mut scratch.k);
        if let Some(drop) = &mut scratch.drop {
            drop.draw::<S>(first_key, span.count);
        }
        for panel in 0..self.panels::<S>() {
            let lane = panel * panel_width::<S>();
            let problem = self.scores.call.problem;
            let visible = Visible::new::<MR>(problem, &self.tile, lane, panel_width::<S>(), first_key);
            let keys = visible.map_or(0, |visible| visible.keys);
            if let Some(visible) = visible {
                self.scores::<S, MR>(scratch, k, panel, visible);
                self.sign_encode::<S>(scratch, panel, visible);
            }
            let rest = BLOCK_KEYS - keys;
            scratch.weights.floats().add(keys * panel_width::<S>()).write_bytes(0, rest * panel_width::<S>());
            self.write_probs::<S>(scratch, probs, panel, span);
        }
    }

    /// Turns one panel's scores into normalised probabilities with the sign set where dropped; +0.0 where invisible.
    #[inline(always)]
    unsafe fn sign_encode<S: Simd>(&self, scratch: &mut Scratch, panel: usize, visible: Visible) {
        let width = panel_width::<S>();
        let (scale, zero) = (S::splat(self.scores.call.scale_log2), S::splat(0.0));
        let weights = scratch.weights.floats();
        let ends = visible.ends::<S>(self.scores.call.problem, &self.tile);
        for (n, end) in ends.into_iter().enumerate() {
            let lane = panel * width + n * S::LANES;
            let (mut seen, mut factor) = ([0.0f32; 16], [0.0f32; 16]);
            for i in 0..S::LANES {
                let (max, sum) =
                    (*scratch.row_max.floats().add(lane + i), *scratch.row_sum.floats().add(lane + i));
                seen[i] = if max == f32::NEG_INFINITY { 0.0 } else { max };
                factor[i] = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            }
            let (seen, factor) = (S::load(seen.as_ptr()), S::load(factor.as_ptr()));
            let mut minus_shift = S::sub(zero, S::mul(seen, scale));
            if S::any_reaches(minus_shift, self.large) {
                self.subtract::<S>(weights.add(n * S::LANES), visible.keys, seen);
                minus_shift = zero;
            }
            let bits = scratch.drop.as_ref().map(|drop| drop.lanes(lane));
            for key in 0..visible.keys {
                let at = weights.add(key * width + n * S::LANES);
                // The NaN that arithmetic makes has its sign bit set; here that bit says dropped.
                let mut p = S::abs(S::mul(S::exp2(S::fma(S::load(at), scale, minus_shift)), factor));
                if let Some((bits, lane_shift)) = bits {
                    p = S::sign_where(p, bits.add(key), lane_shift);
                }
                S::store(at, S::where_less(S::splat(key as f32), end, p, zero));
            }
        }
    }

    /// Transposes one panel of probabilities and writes its rows.
    #[inline(always)]
    unsafe fn write_probs<S: Simd>(
        &self,
        scratch: &mut Scratch,
        probs: &ViewMut<'_>,
        panel: usize,
        span: Span,
    ) {
        let width = panel_width::<S>();
        let weights = scratch.weights.words();
        let mut rows = [0u32; 16 * BLOCK_KEYS];
        for first in (0..width).step_by(S::LANES) {
            for key in (0..BLOCK_KEYS).step_by(S::LANES) {
                let block = weights.add(key * width + first);
                S::transpose(block, width, rows.as_mut_ptr().add(key), BLOCK_KEYS);
            }
            for lane in 0..S::LANES {
                let tile_lane = panel * width + first + lane;
                if self.tile.is_real(tile_lane) {
                    let row = probs.row([self.unit.batch, self.unit.head, self.tile.row_of(tile_lane)]);
                    let dst = row.add(span.first * probs.dtype.size_bytes());
                    pack::store_row::<S>(
                        probs.dtype,
                        rows.as_ptr().add(lane * BLOCK_KEYS).cast(),
                        span.count,
                        dst,
                    );
                }
            }
        }
    }
}
