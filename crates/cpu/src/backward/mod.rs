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

mod bias;
mod operands;
mod own_bias;
mod results;
mod sums;
mod weights;

use crate::ahead::Ahead;
use crate::buffer::Buffer;
use crate::call::{BLOCK_KEYS, Call};
use crate::pack::{Dims, panel_width};
use crate::philox::DropTile;
use crate::references::References;
use crate::score_stage::{self, Change, TableMut};
use crate::sequence::Sequence;
use crate::simd::Simd;
use crate::tile::Tile;
use crate::turnstile::Turn;
use crate::view::{FloatsMut, View, ViewMut};
use crate::visible::{blocks, keys_of_tile};
pub(crate) use bias::{BiasTiles, BiasUnit, bias_unit};
pub(crate) use operands::{Keys, Queries};
use operands::{Part, columns_ld};
pub(crate) use own_bias::is_of_each_score;
use results::Place;
use signflash_core::Span;

/// Queries that are worked on at a time.
pub(crate) const TILE_ROWS: usize = 64;

/// Keys of the widest micro-tile; half as many are weighed at a time where products are tiles'.
const STEP_KEYS: usize = 8;

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
    /// The gradient of a bias that has a number [for each score](is_of_each_score).
    pub(crate) dbias: Option<TableMut<'a>>,
    /// Keys of a chunk, a multiple of [`BLOCK_KEYS`]. From the shape alone: dq depends on it in the last bits.
    pub(crate) chunk_keys: usize,
}

impl Backward<'_> {
    /// How many chunks the keys of a head of a sequence are cut into; one at least, which writes what there is
    /// without keys.
    pub(crate) fn chunks(&self, sequence: &Sequence) -> usize {
        sequence.place.seqlen_k.div_ceil(self.chunk_keys).max(1)
    }
}

/// What a unit of work computes.
#[derive(Clone, Copy)]
pub(crate) struct Unit<'a> {
    pub(crate) sequence: Sequence,
    pub(crate) gradients: GradientsOf<'a>,
}

/// A unit, and the chunk of a key head that its thread is likely to compute next.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a> {
    pub(crate) unit: Unit<'a>,
    pub(crate) next: Option<NextChunk>,
}

/// A chunk, as far as it says which rows it begins with.
#[derive(Clone, Copy)]
pub(crate) struct NextChunk {
    pub(crate) sequence: Sequence,
    pub(crate) head_k: usize,
    pub(crate) chunk: usize,
}

/// Gradients of a part of one sequence.
#[derive(Clone, Copy)]
pub(crate) enum GradientsOf<'a> {
    /// dk and dv of one chunk of one key head, and its share of dq. Without that where partial sums of dq would take
    /// too much memory.
    Chunk { head_k: usize, chunk: usize, dq: Option<Share<'a>> },
    /// dq of one tile of one query head.
    Queries { head: usize, tile: usize },
}

/// How a chunk's share of dq comes to the others'.
#[derive(Clone, Copy)]
pub(crate) struct Share<'a> {
    /// Partial sums for dtypes of 16 bits: `[head of the group][query][padded head_dim]`.
    pub(crate) partial: Option<FloatsMut<'a>>,
    pub(crate) turn: Turn<'a>,
}

/// What a worker needs, for unit after unit.
pub(crate) struct Scratch {
    k_rows: Buffer,
    k_steps: Buffer,
    /// k^T, where products are tiles'.
    k_columns: Buffer,
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
    /// Scores, where they are not products in registers, and the slopes of softcap: `[key][lane of the panel]`.
    scores: Buffer,
    /// dp, where products are tiles'.
    dp: Buffer,
    slopes: Buffer,
    stage: score_stage::Scratch,
    /// Sums of dbias: `[key of the chunk][query]`.
    bias: Buffer,
    drop: Option<DropTile>,
    /// What comes after the tile at hand.
    ahead: Ahead,
}

impl Scratch {
    pub(crate) fn new<S: Simd>(backward: &Backward<'_>) -> Self {
        let Dims { qk_padded, v_padded, .. } = Dims::of::<S>(backward.call.problem.shape());
        let chunk = backward.chunk_keys;
        let weights = BLOCK_KEYS * TILE_ROWS;
        Self {
            k_rows: Buffer::new(chunk * qk_padded / S::UNIT),
            k_steps: Buffer::new(chunk * qk_padded / S::UNIT),
            k_columns: Buffer::new(columns_ld(chunk) * qk_padded),
            v_rows: Buffer::new(chunk * v_padded / S::UNIT),
            dk: Buffer::new(chunk * qk_padded),
            dv: Buffer::new(chunk * v_padded),
            q_rows: Buffer::new(TILE_ROWS * qk_padded / S::UNIT),
            q_steps: Buffer::new(TILE_ROWS * qk_padded / S::UNIT),
            dout_rows: Buffer::new(TILE_ROWS * v_padded / S::UNIT),
            dout_steps: Buffer::new(TILE_ROWS * v_padded / S::UNIT),
            q: Buffer::new(TILE_ROWS * qk_padded / S::UNIT),
            dout: Buffer::new(TILE_ROWS * v_padded / S::UNIT),
            dq: Buffer::new(TILE_ROWS * qk_padded),
            p: Buffer::new(weights),
            ds: Buffer::new(weights),
            ds_pairs: Buffer::new(weights),
            minus_lse_log2: Buffer::new(TILE_ROWS),
            base: Buffer::new(TILE_ROWS),
            delta: Buffer::new(TILE_ROWS),
            floats: Buffer::new(TILE_ROWS * qk_padded.max(v_padded)),
            scores: Buffer::new(BLOCK_KEYS * panel_width::<S>()),
            dp: Buffer::new(BLOCK_KEYS * panel_width::<S>()),
            slopes: Buffer::new(BLOCK_KEYS * panel_width::<S>()),
            stage: score_stage::Scratch::new::<S>(),
            bias: Buffer::new(chunk * TILE_ROWS),
            drop: backward.call.rule.map(|rule| DropTile::new(&rule, TILE_ROWS, BLOCK_KEYS)),
            ahead: Ahead::nothing(),
        }
    }
}

/// Which gradients to accumulate.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    dkv: bool,
    dq: bool,
}

/// [`Work::sweep`], entered by itself: both kinds of units call it, and it is most of the code.
pub(crate) type Sweep = unsafe fn(&Work<'_>, &mut Scratch, Keys, Queries, Wanted);

/// [`Work::sweep_bias`], likewise.
pub(crate) type SweepBias = unsafe fn(&Work<'_>, &mut Scratch, Keys, Queries);

/// What is entered by itself, of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Entries {
    pub(crate) sweep: Sweep,
    pub(crate) sweep_bias: SweepBias,
    pub(crate) change: Change,
}

/// Computes one unit.
///
/// # Safety
/// As [`Simd`]; the operands were checked against the problem, `scratch` was made for `backward`, and no other thread
/// has this unit. `entries` are the instruction set's.
#[inline(always)]
pub(crate) unsafe fn unit<S: Simd>(
    backward: &Backward<'_>,
    Task { unit: Unit { sequence, gradients }, next }: Task<'_>,
    scratch: &mut Scratch,
    entries: Entries,
) {
    let work = Work { backward, sequence, dims: Dims::of::<S>(backward.call.problem.shape()), entries };
    match gradients {
        GradientsOf::Chunk { head_k, chunk, dq } => {
            let keys = work.keys::<S>(scratch, head_k, chunk);
            work.chunk::<S>(scratch, keys, dq, next);
        }
        GradientsOf::Queries { head, tile } => work.queries_only::<S>(scratch, head, tile),
    }
}

/// The sequence at hand.
pub(crate) struct Work<'a> {
    backward: &'a Backward<'a>,
    sequence: Sequence,
    dims: Dims,
    entries: Entries,
}

impl Work<'_> {
    fn tile<S: Simd>(&self, index: usize) -> Tile {
        self.backward.call.tile(&self.sequence, index, TILE_ROWS, panel_width::<S>())
    }

    /// dk and dv of a chunk, and perhaps its share of dq.
    #[inline(always)]
    unsafe fn chunk<S: Simd>(
        &self,
        scratch: &mut Scratch,
        keys: Keys,
        dq: Option<Share<'_>>,
        next: Option<NextChunk>,
    ) {
        let whole = keys.count.next_multiple_of(BLOCK_KEYS);
        scratch.dk.words().write_bytes(0, whole * self.dims.qk_padded);
        scratch.dv.words().write_bytes(0, whole * self.dims.v_padded);
        let tiles = self.backward.call.tiles(&self.sequence, TILE_ROWS);
        // Without queries there is nothing to walk through, however many heads there are of them.
        let group = if tiles == 0 { 0 } else { self.backward.call.problem.shape().group_size() };
        for member in 0..group {
            for index in (0..tiles).rev() {
                let (head, tile) = (keys.head * group + member, self.tile::<S>(index));
                let seen = keys_of_tile(&self.sequence, &tile).some;
                let step = member * tiles + (tiles - 1 - index);
                if let Some(dbias) = &self.backward.dbias {
                    self.clear_unseen::<S>(dbias, (keys, head, &tile), seen);
                }
                if let Some(part) = keys.part_of(seen) {
                    let queries = self.queries::<S>(scratch, head, tile);
                    let ahead = match (index, member + 1) {
                        (0, end) if end == group => self.ask_for_next::<S>(keys, next),
                        (0, member) => self.ask_for_queries::<S>(keys.head * group + member, tiles - 1),
                        (index, _) => self.ask_for_queries::<S>(head, index - 1),
                    };
                    let own = self.sequence.queries(head, &tile);
                    let step_keys = if S::TILES { STEP_KEYS / 2 } else { STEP_KEYS };
                    let steps = keys.count.div_ceil(step_keys) * tile.rows / panel_width::<S>();
                    scratch.ahead = ahead.write(&self.backward.dq, own, self.dims.qk).within(steps);
                    (self.entries.sweep)(
                        self,
                        scratch,
                        keys,
                        queries,
                        Wanted { dkv: true, dq: dq.is_some() },
                    );
                    if let Some(Share { partial, turn }) = dq {
                        turn.wait(step);
                        self.add_dq::<S>(scratch, queries, Place { part, partial, member });
                    }
                } else if dq.is_some() && keys.first == 0 && seen.is_empty() {
                    self.clear_dq(head, tile); // nobody else does
                }
                if let Some(Share { turn, .. }) = dq {
                    turn.done(step);
                }
            }
        }
        self.write_dkv::<S>(scratch, keys);
    }

    /// Asks for the rows of a tile of queries.
    fn ask_for_queries<S: Simd>(&self, head: usize, index: usize) -> Ahead {
        let Backward { q, dout, out, .. } = self.backward;
        let rows = self.sequence.queries(head, &self.tile::<S>(index));
        Ahead::nothing().read(q, rows).read(dout, rows).read(out, rows)
    }

    /// Asks for the rows of dk and dv that a chunk will write, and for what the next one begins with.
    fn ask_for_next<S: Simd>(&self, keys: Keys, next: Option<NextChunk>) -> Ahead {
        let Backward { k, v, dk, dv, chunk_keys, .. } = self.backward;
        let own = self.sequence.keys(keys.head, keys.first, *chunk_keys);
        let of_own = |ahead: Ahead| ahead.write(dk, own, self.dims.qk).write(dv, own, self.dims.v);
        let Some(NextChunk { sequence, head_k, chunk }) = next else { return of_own(Ahead::nothing()) };
        let keys = sequence.keys(head_k, chunk * chunk_keys, *chunk_keys);
        of_own(Ahead::nothing()).read(k, keys).read(v, keys)
    }

    /// dq of one tile against all keys that it sees.
    #[inline(always)]
    unsafe fn queries_only<S: Simd>(&self, scratch: &mut Scratch, head: usize, tile: usize) {
        let tile = self.tile::<S>(tile);
        let seen = keys_of_tile(&self.sequence, &tile).some.positions();
        if seen.is_empty() {
            return self.clear_dq(head, tile);
        }
        let queries = self.queries::<S>(scratch, head, tile);
        scratch.ahead = Ahead::nothing();
        let chunk_keys = self.backward.chunk_keys;
        let head_k = head / self.backward.call.problem.shape().group_size();
        for chunk in seen.start / chunk_keys..seen.end.div_ceil(chunk_keys) {
            let keys = self.keys::<S>(scratch, head_k, chunk);
            (self.entries.sweep)(self, scratch, keys, queries, Wanted { dkv: false, dq: true });
        }
        let part = Part { first: true, last: true };
        self.add_dq::<S>(scratch, queries, Place { part, partial: None, member: 0 });
    }

    /// All blocks of the keys against one tile of queries.
    ///
    /// # Safety
    /// As [`unit()`]; keys and queries are packed in `scratch`.
    #[inline(always)]
    pub(crate) unsafe fn sweep<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        keys: Keys,
        queries: Queries,
        wanted: Wanted,
    ) {
        let seen = keys_of_tile(&self.sequence, &queries.tile).some;
        let dbias = self.backward.dbias.as_ref().filter(|_| wanted.dkv);
        for first in blocks(keys.those_of(seen)) {
            let block = keys.block::<S>(first);
            let at = first - keys.first;
            let overlap = self.weights::<S, MR, false>(scratch, block, queries, (at, dbias));
            if let Some(dbias) = dbias {
                let computed = overlap.map_or(Span { begin: 0, end: 0 }, |overlap| overlap.panels);
                self.clear_panels::<S>(dbias, (block, queries), computed);
            }
            let Some(overlap) = overlap else { continue };
            if wanted.dkv {
                self.add_dkv::<S, MR>(scratch, queries, at, overlap);
            }
            if wanted.dq {
                self.add_dq_block::<S, MR>(scratch, block, overlap);
            }
        }
    }
}
