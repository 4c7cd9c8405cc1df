//! The backward kernel: one chunk of keys against all queries that see it (Dao et al., "FlashAttention", 2022, with
//! the sign bit of "FlashAttention-2", 2023).
//!
//! ```text
//! dk, dv of the chunk = 0                                    f32, in scratch
//! for each query head of the group, for each tile of 64 queries, last first
//!     q, dout rows; q^T, dout^T panels; lse; delta = <dout, out> / keep_scale
//!     for each block of 64 keys of the chunk
//!         p^T  = 2^(K q^T - lse)      sign set where dropped: one register is weight and mask
//!         dp^T = V dout^T
//!         ds^T = |p| (kept ? dp - delta : -delta) = p (sign(p) ? delta : dp - delta)
//!         dv  += relu(p)^T dout       dk += ds^T q       dq^T += K^T ds^T
//!     dq += dq^T                      in the order of the chunks, see `turnstile.rs`
//! dk, dv times their scales
//! ```
//!
//! keep_scale and softmax_scale are applied once, to the sums. All sums are f32; with bf16 pairs p and ds are rounded
//! to bf16 for the last three products.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::buffer::Buffer;
use crate::call::{BLOCK_KEYS, Call, Tile, Visible};
use crate::gemm::{Left, NV, Right, Weight, product, product_of_weights};
use crate::pack::{self, Rows, Span, padded_dim, panel_width};
use crate::philox::DropTile;
use crate::simd::Simd;
use crate::turnstile::Turn;
use crate::view::{FloatsMut, View, ViewMut};
use signflash_core::Dtype;

/// Queries that are worked on at a time.
pub(crate) const TILE_ROWS: usize = 64;

/// A backward call.
#[derive(Clone, Copy)]
pub(crate) struct Backward<'a> {
    pub(crate) call: Call<'a>,
    pub(crate) q: View<'a>,
    pub(crate) k: View<'a>,
    pub(crate) v: View<'a>,
    pub(crate) out: View<'a>,
    pub(crate) dout: View<'a>,
    pub(crate) lse: &'a [f32],
    pub(crate) dq: ViewMut<'a>,
    pub(crate) dk: ViewMut<'a>,
    pub(crate) dv: ViewMut<'a>,
    /// Keys of a chunk, a multiple of [`BLOCK_KEYS`]. From the shape alone: dq depends on it in the last bits.
    pub(crate) chunk_keys: usize,
}

/// What a unit of work computes.
#[derive(Clone, Copy)]
pub(crate) enum Unit<'a> {
    /// dk and dv of one chunk of one (batch, key head), and its share of dq.
    Chunk {
        batch: usize,
        head_k: usize,
        chunk: usize,
        /// Partial sums of dq for dtypes of 16 bits: `[head of the group][query][padded head_dim]`.
        partial: Option<FloatsMut<'a>>,
        turn: Turn<'a>,
    },
    /// dk and dv only: where partial sums of dq would take too much memory.
    ChunkOnly { batch: usize, head_k: usize, chunk: usize },
    /// dq of one tile of one query head.
    Queries { batch: usize, head: usize, tile: usize },
}

/// What a worker needs, for unit after unit.
pub(crate) struct Scratch {
    k_rows: Buffer,
    k_steps: Buffer,
    v_rows: Buffer,
    /// `[key of the chunk][head_dim]`.
    dk: Buffer,
    dv: Buffer,
    q_rows: Buffer,
    q_steps: Buffer,
    dout_rows: Buffer,
    dout_steps: Buffer,
    /// Panels `[panel][word of head_dim][query]`.
    q: Buffer,
    dout: Buffer,
    /// Panels `[panel][head_dim][query]`.
    dq: Buffer,
    /// `[key][query]`: p with its sign, then relu(p); as the broadcast operand.
    p: Buffer,
    /// `[key][query]`: ds as the broadcast operand.
    ds: Buffer,
    /// `[key pair][query]`: ds as the lane operand, where that differs.
    ds_pairs: Buffer,
    /// Per query of the tile.
    minus_lse_log2: Buffer,
    delta: Buffer,
    floats: Buffer,
    drop: Option<DropTile>,
}

impl Scratch {
    pub(crate) fn new<S: Simd>(backward: &Backward<'_>) -> Self {
        let dim = padded_dim::<S>(backward.call.problem.shape().head_dim);
        let (chunk, tile) = (backward.chunk_keys * dim, TILE_ROWS * dim);
        let weights = BLOCK_KEYS * TILE_ROWS;
        Self {
            k_rows: Buffer::new(chunk),
            k_steps: Buffer::new(if S::PAIRS { chunk } else { 0 }),
            v_rows: Buffer::new(chunk),
            dk: Buffer::new(chunk),
            dv: Buffer::new(chunk),
            q_rows: Buffer::new(tile),
            q_steps: Buffer::new(if S::PAIRS { tile } else { 0 }),
            dout_rows: Buffer::new(tile),
            dout_steps: Buffer::new(if S::PAIRS { tile } else { 0 }),
            q: Buffer::new(tile),
            dout: Buffer::new(tile),
            dq: Buffer::new(tile),
            p: Buffer::new(weights),
            ds: Buffer::new(weights),
            ds_pairs: Buffer::new(if S::PAIRS { weights } else { 0 }),
            minus_lse_log2: Buffer::new(TILE_ROWS),
            delta: Buffer::new(TILE_ROWS),
            floats: Buffer::new(tile + 2 * dim),
            drop: backward.call.rule.map(|rule| DropTile::new(&rule, TILE_ROWS, BLOCK_KEYS)),
        }
    }
}

/// The keys at hand: one chunk, or one block of it, of one (batch, key head).
#[derive(Clone, Copy)]
struct Keys {
    batch: usize,
    head: usize,
    first: usize,
    count: usize,
    /// Rows for the products that sum over head_dim.
    k: Rows,
    v: Rows,
    /// Steps for the product that sums over keys.
    k_steps: Rows,
}

/// The queries at hand: one tile of one query head.
#[derive(Clone, Copy)]
struct Queries {
    head: usize,
    tile: Tile,
    q_steps: Rows,
    dout_steps: Rows,
}

/// Which gradients to accumulate.
#[derive(Clone, Copy)]
struct Wanted {
    dkv: bool,
    dq: bool,
}

/// Computes one unit.
///
/// # Safety
/// As [`Simd`]; the operands were checked against the problem, `scratch` was made for `backward`, and no other thread
/// has this unit.
#[inline(always)]
pub(crate) unsafe fn unit<S: Simd, const MR: usize>(
    backward: &Backward<'_>,
    unit: Unit<'_>,
    scratch: &mut Scratch,
) {
    let work = Work {
        backward,
        head_dim: backward.call.problem.shape().head_dim,
        dim: padded_dim::<S>(backward.call.problem.shape().head_dim),
    };
    match unit {
        Unit::Chunk { batch, head_k, chunk, .. } | Unit::ChunkOnly { batch, head_k, chunk } => {
            let keys = work.keys::<S>(scratch, batch, head_k, chunk);
            work.chunk::<S, MR>(scratch, unit, keys);
        }
        Unit::Queries { batch, head, tile } => work.queries_only::<S, MR>(scratch, batch, head, tile),
    }
}

struct Work<'a> {
    backward: &'a Backward<'a>,
    head_dim: usize,
    /// head_dim, padded.
    dim: usize,
}

impl Work<'_> {
    fn tile<S: Simd>(&self, index: usize) -> Tile {
        self.backward.call.tile(index, TILE_ROWS, panel_width::<S>())
    }

    /// Packs a chunk of keys.
    #[inline(always)]
    unsafe fn keys<S: Simd>(&self, scratch: &mut Scratch, batch: usize, head: usize, chunk: usize) -> Keys {
        let first = chunk * self.backward.chunk_keys;
        let count = (self.backward.call.problem.shape().seqlen_k - first).min(self.backward.chunk_keys);
        let span = Span { batch, head, first, before: 0, count, total: count.next_multiple_of(16) };
        let k = pack::rows::<S>(&self.backward.k, self.head_dim, span, scratch.k_rows.words());
        let v = pack::rows::<S>(&self.backward.v, self.head_dim, span, scratch.v_rows.words());
        let k_steps = pack::steps::<S>(k, span.total, self.dim / S::UNIT, scratch.k_steps.words());
        Keys { batch, head, first, count, k, v, k_steps }
    }

    /// dk and dv of a chunk, and perhaps its share of dq.
    #[inline(always)]
    unsafe fn chunk<S: Simd, const MR: usize>(&self, scratch: &mut Scratch, unit: Unit<'_>, keys: Keys) {
        let problem = self.backward.call.problem;
        let words = keys.count.next_multiple_of(16) * self.dim;
        scratch.dk.words().write_bytes(0, words);
        scratch.dv.words().write_bytes(0, words);
        let group = problem.shape().group_size();
        let tiles = self.backward.call.tiles(TILE_ROWS);
        for member in 0..group {
            for tile in (0..tiles).rev() {
                let head = keys.head * group + member;
                let seen = self.tile::<S>(tile).key_end(problem);
                let step = member * tiles + (tiles - 1 - tile);
                match unit {
                    Unit::Chunk { chunk, partial, turn, .. } => {
                        if seen > keys.first {
                            let queries = self.queries::<S>(scratch, keys.batch, head, tile);
                            self.sweep::<S, MR>(scratch, keys, queries, Wanted { dkv: true, dq: true });
                            turn.wait(step);
                            let last = seen <= keys.first + keys.count;
                            let place = Place { first: chunk == 0, last, partial, member };
                            self.add_dq::<S>(scratch, keys.batch, queries, place);
                        } else if chunk == 0 {
                            self.clear_dq::<S>(keys.batch, head, tile);
                        }
                        turn.done(step);
                    }
                    _ if seen > keys.first => {
                        let queries = self.queries::<S>(scratch, keys.batch, head, tile);
                        self.sweep::<S, MR>(scratch, keys, queries, Wanted { dkv: true, dq: false });
                    }
                    _ => {}
                }
            }
        }
        self.write_dkv::<S>(scratch, keys);
    }

    /// dq of one tile against all keys that it sees.
    #[inline(always)]
    unsafe fn queries_only<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        batch: usize,
        head: usize,
        tile: usize,
    ) {
        let problem = self.backward.call.problem;
        let seen = self.tile::<S>(tile).key_end(problem);
        if seen == 0 {
            return self.clear_dq::<S>(batch, head, tile);
        }
        let queries = self.queries::<S>(scratch, batch, head, tile);
        for chunk in 0..seen.div_ceil(self.backward.chunk_keys) {
            let keys = self.keys::<S>(scratch, batch, head / problem.shape().group_size(), chunk);
            self.sweep::<S, MR>(scratch, keys, queries, Wanted { dkv: false, dq: true });
        }
        self.add_dq::<S>(
            scratch,
            batch,
            queries,
            Place { first: true, last: true, partial: None, member: 0 },
        );
    }

    /// Packs a tile of queries: rows, panels, lse, delta, the row part of the mask. Clears dq^T.
    #[inline(always)]
    unsafe fn queries<S: Simd>(
        &self,
        scratch: &mut Scratch,
        batch: usize,
        head: usize,
        tile: usize,
    ) -> Queries {
        let call = &self.backward.call;
        let tile = self.tile::<S>(tile);
        let Tile { first, before, count, rows, block_row } = tile;
        let span = Span { batch, head, first, before, count, total: rows };
        let words = self.dim / S::UNIT;
        let panels = rows / panel_width::<S>();
        let q = pack::rows::<S>(&self.backward.q, self.head_dim, span, scratch.q_rows.words());
        let dout = pack::rows::<S>(&self.backward.dout, self.head_dim, span, scratch.dout_rows.words());
        let flip = if call.negative_scale { pack::sign_flip::<S>() } else { 0 };
        pack::transpose_panels::<S>(q, panels, words, flip, scratch.q.words());
        pack::transpose_panels::<S>(dout, panels, words, 0, scratch.dout.words());
        let q_steps = pack::steps::<S>(q, rows, words, scratch.q_steps.words());
        let dout_steps = pack::steps::<S>(dout, rows, words, scratch.dout_steps.words());
        scratch.dq.words().write_bytes(0, rows * self.dim);
        if let (Some(rule), Some(drop)) = (&call.rule, &mut scratch.drop) {
            drop.start::<S>(rule, batch, head, block_row, rows);
        }
        let queries = Queries { head, tile, q_steps, dout_steps };
        self.row_terms::<S>(scratch, batch, &queries);
        queries
    }

    /// -lse in base 2 and delta / keep_scale of each lane. A row that saw no key, or no row, gets lse = +inf: its
    /// weights are then 0.
    #[inline(always)]
    unsafe fn row_terms<S: Simd>(&self, scratch: &mut Scratch, batch: usize, queries: &Queries) {
        let shape = self.backward.call.problem.shape();
        let lse = &self.backward.lse[(batch * shape.num_heads + queries.head) * shape.seqlen_q..];
        let (minus_lse_log2, delta) = (scratch.minus_lse_log2.floats(), scratch.delta.floats());
        let (dout_row, out_row) = (scratch.floats.floats(), scratch.floats.floats().add(self.dim));
        for lane in 0..queries.tile.rows {
            let (mut shift, mut sum) = (f32::NEG_INFINITY, 0.0);
            if queries.tile.is_real(lane) {
                let row = queries.tile.row_of(lane);
                let lse = f64::from(lse[row]);
                if lse != f64::NEG_INFINITY {
                    shift = (-lse * std::f64::consts::LOG2_E) as f32;
                }
                let index = [batch, row, queries.head];
                self.load_padded::<S>(&self.backward.dout, index, dout_row);
                self.load_padded::<S>(&self.backward.out, index, out_row);
                sum = dot::<S>(dout_row, out_row, self.dim);
            }
            *minus_lse_log2.add(lane) = shift;
            *delta.add(lane) = (f64::from(sum) / self.backward.call.keep_scale) as f32;
        }
    }

    /// One row as f32, zeros up to the padded head_dim.
    #[inline(always)]
    unsafe fn load_padded<S: Simd>(&self, x: &View<'_>, index: [usize; 3], dst: *mut f32) {
        pack::load_row::<S>(x.dtype, x.row(index), self.head_dim, dst);
        dst.add(self.head_dim).write_bytes(0, self.dim - self.head_dim);
    }

    /// All blocks of the keys against one tile of queries.
    #[inline(always)]
    unsafe fn sweep<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        keys: Keys,
        queries: Queries,
        wanted: Wanted,
    ) {
        let problem = self.backward.call.problem;
        let end = queries.tile.key_end(problem).min(keys.first + keys.count);
        for first in (keys.first..end).step_by(BLOCK_KEYS) {
            let at = first - keys.first;
            let block = Keys {
                first,
                count: (keys.count - at).min(BLOCK_KEYS),
                k: Rows { p: keys.k.p.add(at * keys.k.ld), ..keys.k },
                v: Rows { p: keys.v.p.add(at * keys.v.ld), ..keys.v },
                k_steps: Rows { p: keys.k_steps.p.add(at / S::UNIT * keys.k_steps.ld), ..keys.k_steps },
                ..keys
            };
            if let Some(drop) = &mut scratch.drop {
                drop.draw::<S>(first, block.count);
            }
            let (first_panel, depth) = self.weights::<S, MR>(scratch, block, queries);
            if wanted.dkv {
                self.add_dkv::<S, MR>(scratch, queries, at, first_panel, depth);
            }
            if wanted.dq {
                self.add_dq_block::<S, MR>(scratch, block, queries, first_panel, depth);
            }
        }
    }

    /// p and ds of one block. Returns the first panel that sees any of it, and how many keys were computed.
    #[inline(always)]
    unsafe fn weights<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        block: Keys,
        queries: Queries,
    ) -> (usize, usize) {
        let problem = self.backward.call.problem;
        let width = panel_width::<S>();
        let panels = queries.tile.rows / width;
        // All panels compute as many keys as the last, which sees the most; what one of them does not see gets 0.
        let seen = (queries.tile.key_end(problem) - block.first).min(block.count);
        let depth = seen.next_multiple_of(MR.max(S::UNIT));
        let mut first_panel = panels;
        for panel in (0..panels).rev() {
            let visible = Visible::new::<MR>(problem, &queries.tile, panel * width, width, block.first);
            let Some(visible) = visible else { break };
            first_panel = panel;
            let visible = visible.computing(depth);
            if scratch.drop.is_some() {
                self.panel_weights::<S, MR, true>(scratch, block, queries, panel, visible);
            } else {
                self.panel_weights::<S, MR, false>(scratch, block, queries, panel, visible);
            }
        }
        (first_panel, depth)
    }

    #[inline(always)]
    unsafe fn panel_weights<S: Simd, const MR: usize, const DROP: bool>(
        &self,
        scratch: &mut Scratch,
        block: Keys,
        queries: Queries,
        panel: usize,
        visible: Visible,
    ) {
        let call = &self.backward.call;
        let (width, words) = (panel_width::<S>(), self.dim / S::UNIT);
        let lane = panel * width;
        let q = Right { p: scratch.q.words().add(panel * words * width), step: width };
        let dout = Right { p: scratch.dout.words().add(panel * words * width), step: width };
        let (scale, zero) = (S::splat(call.scale_log2), S::splat(0.0));
        let ends = if visible.all { [zero; NV] } else { visible.ends::<S>(call.problem, &queries.tile) };
        let mut rows = [Row::<S> { minus_lse: zero, delta: zero, bits: None }; NV];
        for (n, row) in rows.iter_mut().enumerate() {
            let lane = lane + n * S::LANES;
            row.minus_lse = S::load(scratch.minus_lse_log2.floats().add(lane));
            row.delta = S::load(scratch.delta.floats().add(lane));
            row.bits = if DROP { scratch.drop.as_ref().map(|drop| drop.lanes(lane)) } else { None };
        }
        for key in (0..visible.keys).step_by(MR) {
            let a = Left { p: block.k.p.add(key * block.k.ld), row: block.k.ld, step: 1 };
            let mut p = product::<S, MR, NV>(words, a, q);
            for (m, p) in p.iter_mut().enumerate() {
                let index = S::splat((key + m) as f32);
                for (n, p) in p.iter_mut().enumerate() {
                    let mut weight = S::exp2(S::fma(*p, scale, rows[n].minus_lse));
                    if call.careful {
                        weight = S::abs(weight); // the NaN that arithmetic makes has its sign bit set
                    }
                    let weight =
                        if visible.all { weight } else { S::where_less(index, ends[n], weight, zero) };
                    *p = if DROP { rows[n].sign(weight, key + m) } else { weight };
                }
            }
            let a = Left { p: block.v.p.add(key * block.v.ld), row: block.v.ld, step: 1 };
            let mut ds = product::<S, MR, NV>(words, a, dout);
            for (p, ds) in p.iter_mut().zip(&mut ds) {
                for ((p, ds), row) in p.iter_mut().zip(ds).zip(&rows) {
                    let kept = S::sub(*ds, row.delta);
                    *ds = S::mul(*p, if DROP { S::by_sign(*p, kept, row.delta) } else { kept });
                    if call.careful {
                        *ds = S::where_nonzero(*p, *ds, zero);
                    }
                    if DROP {
                        *p = if call.careful { S::by_sign(*p, *p, zero) } else { S::max(zero, *p) };
                    }
                }
            }
            self.store_weights::<S, MR>(scratch, key, lane, &p, &ds);
        }
    }

    /// Puts MR keys of relu(p) and ds where the products want them.
    #[inline(always)]
    unsafe fn store_weights<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        key: usize,
        lane: usize,
        p: &[[S::V; NV]; MR],
        ds: &[[S::V; NV]; MR],
    ) {
        let (p_rows, ds_rows) = (scratch.p.words(), scratch.ds.words());
        for m in 0..MR {
            for n in 0..NV {
                let at = ((key + m) * TILE_ROWS + lane + n * S::LANES) / S::UNIT;
                if S::PAIRS {
                    S::store_weights(p_rows.add(at).cast(), p[m][n]);
                    S::store_weights(ds_rows.add(at).cast(), ds[m][n]);
                    if m % 2 == 0 {
                        let at = (key + m) / 2 * TILE_ROWS + lane + n * S::LANES;
                        S::store_pair(scratch.ds_pairs.words().add(at), ds[m][n], ds[m + 1][n]);
                    }
                } else {
                    S::store(p_rows.add(at).cast(), p[m][n]);
                    S::store(ds_rows.add(at).cast(), ds[m][n]);
                }
            }
        }
    }

    /// `dv += p^T dout`, `dk += ds^T q` of one block, `at` keys into the chunk.
    #[inline(always)]
    unsafe fn add_dkv<S: Simd, const MR: usize>(
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
    unsafe fn add_product<S: Simd, const M: usize, const N: usize>(
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
    unsafe fn add_dq_block<S: Simd, const MR: usize>(
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

    /// Adds a chunk's dq of one tile to what earlier chunks gave, and writes it if this is the last.
    #[inline(always)]
    unsafe fn add_dq<S: Simd>(
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
    unsafe fn clear_dq<S: Simd>(&self, batch: usize, head: usize, tile: usize) {
        let tile = self.tile::<S>(tile);
        let dq = &self.backward.dq;
        for r in 0..tile.count {
            dq.row([batch, tile.first + r, head]).write_bytes(0, self.head_dim * dq.dtype.size_bytes());
        }
    }

    /// Scales and writes dk and dv of a chunk.
    #[inline(always)]
    unsafe fn write_dkv<S: Simd>(&self, scratch: &mut Scratch, keys: Keys) {
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

/// Where a share of dq belongs in the sum over chunks.
#[derive(Clone, Copy)]
struct Place<'a> {
    first: bool,
    last: bool,
    partial: Option<FloatsMut<'a>>,
    /// Which head of the group.
    member: usize,
}

/// What the weights of one vector of rows depend on.
#[derive(Clone, Copy)]
struct Row<S: Simd> {
    minus_lse: S::V,
    delta: S::V,
    /// The dropped rows of each key, and the bit of the first lane.
    bits: Option<(*const u16, u32)>,
}

impl<S: Simd> Row<S> {
    /// The weights with their sign bit set where the key is dropped.
    #[inline(always)]
    unsafe fn sign(&self, p: S::V, key: usize) -> S::V {
        match self.bits {
            Some((bits, shift)) => S::sign_where(p, bits.add(key), shift),
            None => p,
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
