//! Backward on Hopper, by blocks that own 128 keys (with head_dim above 128: 64, see shared.rs): dk, dv, and dq's
//! pieces.
//!
//! ```text
//! multiply (multiply.rs)  two warpgroups, 64 keys each, accumulators whose rows are keys; step j, some queries:
//!     s^T = k q^T   dp^T = v dout^T             both under way
//!     p = exp2(s - lse), its sign: dropped      (scores.rs) while dp is under way
//!     ds = keep p dp - p delta                  out of p + |p| and |p|
//!     dv += max(p, 0)^T dout                    under way; ds -> smem
//!     dk += ds^T q                              under way
//!     turn (dq.rs): if j and the warpgroup are both even or both odd
//!         dq(j-1) = ds(j-1) k -> smem -> added to the sums in f32 in global memory, by the copy engine
//! serve (serve.rs)        one warpgroup; as far ahead as there are stages
//!     first warp          copies: k and v, then q, dout and statistics step by step
//!     with dropout, all   draw: flags, transposed (`stmatrix`), step by step
//! ```
//! | ring | filled by | read by | stages |
//! |---|---|---|---|
//! | `keys` (k and v) | the copying warp | all multiplying warps | 1, once (several tiles: `keys`, `values`) |
//! | `queries` (q, dout, statistics) | the copying warp | all multiplying warps | `stages` |
//! | `flags` | the four drawing warps | all multiplying warps | `flag_stages` |
//! | `ds` | all multiplying warps | the warpgroup whose turn it is | `ds_stages` |
//!
//! (Where warpgroups share keys, shared.rs has its own table.)
//!
//! `dq_left` is a barrier in shared memory: a phase ends when dq of a turn has been read, and the next may be put
//! there. Named barriers: 0 the block, once; 1 the multiplying warpgroups, in the end; from 8 on each one's output.
//!
//! With keys as rows, accumulators of s^T and ds^T are operands of dv and dk as they are. What a step's dq needs of
//! the other warpgroup was made a step ago, so that the two need not keep in step: one's exponentials run during the
//! other's products. `docs/hopper-backward.md` has what else was tried.
//!
//! Grid: key tiles x key heads x batches. Or as many blocks as multiprocessors, which take tile after tile (tiles.rs).
mod args;
mod dq;
mod multiply;
mod results;
mod scores;
mod serve;
mod shared;
mod tiles;

pub(crate) use args::{KeysArgs, SumsArgs};
pub(crate) use dq::counters_bytes;
pub(crate) use tiles::{NEXT_TILE_BYTES, TilesArgs};

use crate::config::{BandKind, HopperCommon, HopperKeysForm};
use crate::packed::PackedVals;
use crate::parts::args::{DropoutVals, ProblemVals};
use crate::parts::cursor::Cursor;
use crate::parts::overlays::OverlayVals;
use crate::parts::scores::ScoreVals;
use crate::parts::visibility::{QueryTiles, SeenRange, Sight};
use crate::parts::work::{Order, Units, Work};
use crate::rows::statistics::STAT_BYTES;
use crate::sm90::forward::{BoxedVals, WG_ROWS};
use crate::sm90::results::{ResultVals, names};
use args::{KeysVals, SumsVals};
use signflash_ptx::{
    BoxTile, Builder, BulkRing, Cta, FullStage, Kernel, LaunchBounds, Mbarrier, Pred, SmemAddr, U32, Val,
    Warpgroup,
};
use tiles::{Tiles, TilesVals};

/// Warpgroups that multiply.
const MULTIPLIERS: u32 = 2;

/// Queries that are multiplied at once for dq.
const QUERIES: u32 = 64;

/// Bytes of the flags of 8 keys and 16 queries: a word of each lane.
const FLAG_BYTES: u32 = 8 * 16;

/// The barrier of the multiplying warpgroups when they have read all keys, and the first of each one's own.
const KEYS_READ: u32 = 1;
const FIRST_BARRIER: u32 = 8;

/// What sums of ds have to be multiplied by: with dropout the kernel computes twice ds, which takes an instruction
/// less.
pub(crate) fn ds_scale(dropout: bool) -> f32 {
    if dropout { 0.5 } else { 1.0 }
}

/// Whether blocks add to dq in the order of their keys from the last to the first, or the last begins: in a window. There,
/// a block's first queries are later ones of those before it, which need not wait for them that way.
fn adds_downwards(common: &HopperCommon, form: &HopperKeysForm) -> bool {
    (form.ordered || form.begins_sums) && common.scores.band == BandKind::Both
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &HopperCommon, form: &HopperKeysForm) -> Kernel {
    let whole_boxes = common.operands.dims().map(|columns| columns.is_multiple_of(64));
    assert!(form.step.is_multiple_of(QUERIES) && whole_boxes == [true; 2], "whole boxes");
    assert!(form.keys == 128 || form.shares_keys() && form.step == QUERIES, "{form:?}");
    let begins_in_order = common.scores.band == BandKind::Both && form.persistent && !form.ordered;
    assert!(!form.begins_sums || begins_in_order && !common.operands.layout.is_packed(), "{form:?}");
    let launch = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: 1 };
    Builder::build(name, launch, |cta| {
        let problem = ProblemVals::declare(cta);
        let packed = common.operands.layout.is_packed().then(|| PackedVals::declare(cta));
        let several = form.persistent.then(|| TilesVals::declare(cta));
        let args = KeysVals::declare(cta);
        let results =
            [names!("dk"), names!("dv")].map(|names| ResultVals::declare(cta, names, common.operands));
        let sums = SumsVals::declare(cta);
        let boxed = common.scores.overlays.has_boxes().then(|| BoxedVals::declare(cta));
        let scores = ScoreVals::declare(cta, &common.scores);
        let dropout = common.scores.dropout.then(|| DropoutVals::declare(cta));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let overlays = overlays.map(OverlayVals::asking);
        let smem = Smem::plan(cta, common, form);
        let block = |work| {
            let Work { sequence, .. } = work;
            let range = overlays.as_ref().and_then(|overlays| overlays.range(cta.threads(), sequence));
            Block {
                cta,
                common,
                form,
                problem,
                args,
                results,
                sums,
                scores,
                dropout,
                overlays,
                boxed,
                smem,
                work,
                range,
            }
        };
        match several {
            Some(args_of_tiles) => {
                let numbers = tiles::numbers(cta);
                cta.sync(); // barriers are initialised
                let heads_at_once = sums.heads_at_once;
                let args = args_of_tiles;
                let block = &block;
                let tiles =
                    Tiles { cta, form, problem, packed, args, heads_at_once, dropout, smem, numbers, block };
                by_role(
                    cta,
                    form,
                    |wg, wg_number| tiles::multiply(&tiles, wg, wg_number),
                    |wg| serve::serve_tiles(&tiles, wg),
                );
            }
            None => {
                let work = one_tile(cta, &problem, packed.as_ref(), &sums, (common, form));
                cta.sync(); // barriers are initialised
                let block = block(work);
                by_role(
                    cta,
                    form,
                    |wg, wg_number| match form.shares_keys() {
                        true => block.multiply_shared(wg, wg_number),
                        false => block.multiply(wg, wg_number),
                    },
                    |wg| block.serve(wg),
                );
            }
        }
    })
}

/// The tile of keys of a block that has one.
fn one_tile<'k>(
    cta: Cta<'k>,
    problem: &ProblemVals<'k>,
    packed: Option<&PackedVals<'k>>,
    sums: &SumsVals<'k>,
    (common, form): (&HopperCommon, &HopperKeysForm),
) -> Work<'k> {
    let (heads, downwards) = (problem.num_heads_k, adds_downwards(common, form));
    match packed {
        None => {
            let tiles = problem.key_tiles(form.keys);
            let units = Units::of_grid(cta, tiles);
            let heads_first = common.scores.overlays.are_by_query();
            let order = Order { reversed: downwards, heads_first };
            Work::alternate(units, problem, heads, sums.heads_at_once, order)
        }
        Some(packed) => {
            let work = Work::listed(cta, problem, packed, cta.index(), heads);
            // A sequence's tiles follow each other in the list, so the last of them starts first.
            if downwards { work.counted_from_the_last(work.sequence.seqlen_k, form.keys) } else { work }
        }
    }
}

/// Gives each warpgroup its role, and its registers.
fn by_role<'k>(
    cta: Cta<'k>,
    form: &HopperKeysForm,
    multiply: impl FnOnce(Warpgroup<'k>, Val<'k, U32>),
    serve: impl FnOnce(Warpgroup<'k>),
) {
    let (wg, index) = (cta.warpgroups(), cta.warpgroups().index());
    wg.when(index.lt(MULTIPLIERS), |wg| {
        wg.grow_registers(form.registers);
        multiply(wg, index);
    });
    wg.when(index.eq(MULTIPLIERS), |wg| {
        wg.shrink_registers(form.serving_registers());
        serve(wg);
    });
}

/// Shared memory of a block. Tiles lie as the copy engine leaves them: boxes of 64 columns behind each other.
#[derive(Clone, Copy)]
struct Smem<'k> {
    /// k, and behind it v; in the end dk and dv on their way out. Where a block takes several tiles, k alone.
    keys: BulkRing<'k>,
    /// v, where a block takes several tiles: its place is free earlier.
    values: Option<BulkRing<'k>>,
    /// q, behind it dout, and behind that statistics of a step.
    queries: BulkRing<'k>,
    /// For each 16 keys, each 32 queries and each lane four numbers of four flags each.
    flags: Option<BulkRing<'k>>,
    /// ds, rows keys, columns queries.
    ds: BulkRing<'k>,
    /// If a bias comes in boxes: of a step's queries, those of each 64 keys behind each other.
    bias: Option<BulkRing<'k>>,
    between: Between<'k>,
}

/// What the multiplying warpgroups have between them.
#[derive(Clone, Copy)]
enum Between<'k> {
    /// Keys of their own. dq of a step in f32, as accumulators lie, and whether it has left.
    Turns { dq: SmemAddr<'k>, dq_left: Mbarrier<'k> },
    /// The same keys. p in f32 with its sign, as accumulators lie.
    Probs(BulkRing<'k>),
}

/// Bytes of so many rows of q or k, and of v or dout.
fn rows_bytes(common: &HopperCommon, rows: u32) -> [u32; 2] {
    common.operands.dims().map(|columns| 2 * rows * columns)
}

/// Bytes of a step's q, dout and statistics, which the copy engine brings.
fn queries_bytes(common: &HopperCommon, form: &HopperKeysForm) -> u32 {
    rows_bytes(common, form.step).iter().sum::<u32>() + form.step * STAT_BYTES
}

impl<'k> Smem<'k> {
    fn plan(cta: Cta<'k>, common: &HopperCommon, form: &HopperKeysForm) -> Self {
        let (multiplying_warps, shares) = (4 * MULTIPLIERS, form.shares_keys());
        let queries = queries_bytes(common, form);
        let flags = || {
            let bytes = form.keys / 8 * (form.step / 16) * FLAG_BYTES;
            cta.stage_ring("flags", form.flag_stages, bytes, 4, if shares { 4 } else { multiplying_warps })
        };
        let [k_bytes, v_bytes] = rows_bytes(common, form.keys);
        let ([of_keys, of_values], several) = (form.key_stages, form.persistent);
        assert!(several || form.key_stages == [1; 2], "{form:?}");
        let keys = if several { k_bytes } else { k_bytes + v_bytes };
        let [ds_writers, ds_readers] = if shares { [4, multiplying_warps] } else { [multiplying_warps, 4] };
        Smem {
            keys: cta.bulk_ring("keys", of_keys, keys, multiplying_warps),
            values: several.then(|| cta.bulk_ring("values", of_values, v_bytes, multiplying_warps)),
            queries: cta
                .bulk_ring_for_lanes(
                    "queries",
                    form.stages,
                    queries.next_multiple_of(1024),
                    multiplying_warps,
                )
                .with_copies_of(queries),
            flags: common.scores.dropout.then(flags),
            bias: serve::bias_ring(cta, common, form),
            ds: cta.stage_ring("ds", form.ds_stages, 2 * form.keys * form.step, ds_writers, ds_readers),
            between: match shares {
                true => Between::Probs(cta.stage_ring("p", 1, 4 * form.keys * form.step, 4, 4)),
                false => Between::Turns {
                    dq: cta.smem("dq", 4 * form.step * common.operands.head_dim, 1024),
                    dq_left: cta.mbarriers("dq_left", 1, 128),
                },
            },
        }
    }
}

/// What a stage of queries holds.
struct Queries<'k> {
    q: BoxTile<'k>,
    dout: BoxTile<'k>,
    stats: SmemAddr<'k>,
}

/// The queries that see some of a few keys.
struct Seers<'k> {
    steps: QueryTiles<'k>,
    /// Whether these are keys at all, and not behind the last.
    are_keys: Val<'k, Pred>,
}

impl<'k> Seers<'k> {
    /// Whether some of a step do.
    fn see(&self, step: Val<'k, U32>) -> Val<'k, Pred> {
        self.are_keys & !step.lt(self.steps.begin) & step.lt(self.steps.end)
    }
}

/// What every role of a block knows.
struct Block<'a, 'k> {
    cta: Cta<'k>,
    common: &'a HopperCommon,
    form: &'a HopperKeysForm,
    problem: ProblemVals<'k>,
    args: KeysVals<'k>,
    /// dk and dv.
    results: [ResultVals<'k>; 2],
    sums: SumsVals<'k>,
    scores: ScoreVals<'k>,
    dropout: Option<DropoutVals<'k>>,
    overlays: Option<OverlayVals<'k>>,
    boxed: Option<BoxedVals<'k>>,
    smem: Smem<'k>,
    work: Work<'k>,
    /// The keys that some query may see, if not all.
    range: Option<SeenRange<'k>>,
}

impl<'k> Block<'_, 'k> {
    fn first_key(&self) -> Val<'k, U32> {
        self.work.block * self.form.keys
    }

    fn sight(&self) -> Sight<'k> {
        Sight::new(self.cta.threads(), &self.problem, self.work.sequence, self.scores.band).within(self.range)
    }

    fn cursor(&self) -> Cursor<'k> {
        let tiles = self.sight().query_tiles(self.first_key(), self.form.keys, self.form.step);
        Cursor::new(self.cta.threads(), &self.problem, tiles)
    }

    /// The queries that see keys of one of the multiplying warpgroups.
    fn seers(&self, wg_number: Val<'k, U32>) -> Seers<'k> {
        let first_key = self.first_key() + wg_number * WG_ROWS;
        let steps = self.sight().query_tiles(first_key, WG_ROWS, self.form.step);
        Seers { steps, are_keys: first_key.lt(self.work.sequence.seqlen_k) }
    }

    fn queries(&self, stage: &FullStage<'_, 'k>) -> Queries<'k> {
        let (step, [q_bytes, dout_bytes]) = (self.form.step, rows_bytes(self.common, self.form.step));
        let [q, dout, stats] = [0, q_bytes, q_bytes + dout_bytes].map(|offset| stage.address().at(offset));
        Queries { q: BoxTile::new(q, step), dout: BoxTile::new(dout, step), stats }
    }

    fn head(&self, at: &Cursor<'k>) -> Val<'k, U32> {
        self.work.head * self.problem.group_size + at.member.get()
    }

    /// The first row of a step; before the tensor's first, if a shard starts there.
    fn first_row(&self, at: &Cursor<'k>) -> Val<'k, U32> {
        at.step.get() * self.form.step - self.problem.row_shift
    }
}
