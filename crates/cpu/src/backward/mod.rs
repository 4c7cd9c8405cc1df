//! The backward kernel: one chunk of keys against all queries that see it (Dao et al., "FlashAttention", 2022, with
//! the sign bit of "FlashAttention-2", 2023).
//!
//! ```text
//! dk, dv of the chunk = 0                                    f32, in scratch
//! for each query head of the group, for each tile of 64 queries, last first
//!     q, dout rows; q^T, dout^T panels; lse; delta = (<dout, out> - dlse) / keep_scale
//!     for each block of 64 keys of the chunk
//!         p^T  = 2^(K q^T - lse)      sign set where dropped: one register says weight and dropped
//!         dp^T = V dout^T
//!         ds^T = |p| (kept ? dp - delta : -delta) = p (sign(p) ? delta : dp - delta)
//!         dv  += relu(p)^T dout       dk += ds^T q       dq^T += K^T ds^T
//!     dq += dq^T                      in the order of the chunks, see `turnstile.rs`
//! dk, dv times their scales
//! ```
//!
//! Rows of large lse have p^T = 2^(K q^T - max - log2 sum) instead, see `references.rs`.
//!
//! keep_scale and softmax_scale are applied once, to the sums. All sums are f32; with bf16 pairs p and ds are rounded
//! to bf16 for the last three products.
#![allow(unsafe_op_in_unsafe_fn)]

mod operands;
mod results;
mod sums;
mod weights;

use crate::buffer::Buffer;
use crate::call::{BLOCK_KEYS, Call, Tile};
use crate::pack::{Rows, padded_dim, panel_width};
use crate::philox::DropTile;
use crate::references::References;
use crate::simd::Simd;
use crate::turnstile::Turn;
use crate::view::{FloatsMut, View, ViewMut};
use operands::{Keys, Queries};
use results::Place;

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
    /// If any lse is so large that p must not be recomputed from it.
    pub(crate) references: Option<&'a References>,
    /// The gradient of lse.
    pub(crate) dlse: Option<&'a [f32]>,
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
    /// What is taken from `q k` first: 0 but for rows of large lse.
    base: Buffer,
    delta: Buffer,
    /// Rows of f32 on their way in (dout, out) or out (dq).
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
            k_steps: Buffer::new(chunk),
            v_rows: Buffer::new(chunk),
            dk: Buffer::new(chunk),
            dv: Buffer::new(chunk),
            q_rows: Buffer::new(tile),
            q_steps: Buffer::new(tile),
            dout_rows: Buffer::new(tile),
            dout_steps: Buffer::new(tile),
            q: Buffer::new(tile),
            dout: Buffer::new(tile),
            dq: Buffer::new(tile),
            p: Buffer::new(weights),
            ds: Buffer::new(weights),
            ds_pairs: Buffer::new(weights),
            minus_lse_log2: Buffer::new(TILE_ROWS),
            base: Buffer::new(TILE_ROWS),
            delta: Buffer::new(TILE_ROWS),
            floats: Buffer::new(tile),
            drop: backward.call.rule.map(|rule| DropTile::new(&rule, TILE_ROWS, BLOCK_KEYS)),
        }
    }
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

    /// dk and dv of a chunk, and perhaps its share of dq.
    #[inline(always)]
    unsafe fn chunk<S: Simd, const MR: usize>(&self, scratch: &mut Scratch, unit: Unit<'_>, keys: Keys) {
        let problem = self.backward.call.problem;
        let words = keys.count.next_multiple_of(16) * self.dim;
        scratch.dk.words().write_bytes(0, words);
        scratch.dv.words().write_bytes(0, words);
        let tiles = self.backward.call.tiles(TILE_ROWS);
        // Without queries there is nothing to walk through, however many heads there are of them.
        let group = if tiles == 0 { 0 } else { problem.shape().group_size() };
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
}
