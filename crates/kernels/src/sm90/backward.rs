//! Backward on Hopper, by blocks that own 128 keys: dk, dv, and dq's pieces.
//!
//! ```text
//! multiply   two warpgroups, 64 keys each, accumulators whose rows are keys; every step of 64 queries:
//!     s^T = k q^T   dp^T = v dout^T            both under way
//!     p = exp2(s - lse), its sign bit: dropped
//!     dv += max(p, 0)^T dout                   under way
//!     ds = max(p, 0) * dp - |p| * delta
//!     dk += ds^T q                             under way
//!     ds -> smem;  both meet;  dq = ds k       each warpgroup some boxes of 64 columns
//!     dq -> smem -> added to the sums in f32 in global memory, by the copy engine
//! copy       one thread: k and v, then q, statistics and dout step by step
//! draw       with dropout: flags, transposed (`movmatrix`), step by step
//! ```
//! | ring | filled by | read by | stages |
//! |---|---|---|---|
//! | `keys` (k and v) | the copying thread | all multiplying warps | 1, once |
//! | `q`, `stats`, `dout` | the copying thread | all multiplying warps | `stages` |
//! | `flags` | the four drawing warps | all multiplying warps | `flag_stages` |
//!
//! Named barriers: 0 the block, once; 1 the multiplying warpgroups, when a step's ds is there; from 8 on each warpgroup's
//! output.
//!
//! With keys as rows, accumulators of s^T and ds^T are operands of dv and dk as they are. ds has two places in turn: who
//! writes the next one has met the others since they read this one.
//!
//! Grid: key tiles x key heads x batches.
use super::forward::{GROUP_ROWS, by_role};
use super::out::stage_words;
use crate::config::{Common, Warpgroups};
use crate::parts::args::{DropoutVals, ProblemVals, kernel_args};
use crate::parts::dropout::{Philox, SignMask, StreamColumn};
use crate::parts::product::pack;
use crate::parts::softmax::scale_rows;
use crate::parts::work::Work;
use crate::sm80::forward::negate;
use signflash_ptx::{
    Acc, B32, BoxTile, Builder, BulkRing, BulkRingConsumer, Columns, Cta, GlobalAddr, Kernel, Pred, Product,
    Rows, S32, Shape, SmemAddr, Tensor, TensorMap, Thread, U32, Val, Var, Warp, Warpgroup,
};

kernel_args! {
    /// Arguments of the pass over keys.
    KeysArgs / KeysVals {
        /// Queries, boxes of 64 rows.
        q: TensorMap,
        /// Keys, boxes of 128 rows.
        k: TensorMap,
        /// Values, likewise.
        v: TensorMap,
        /// Gradient of the output, boxes of 64 rows.
        dout: TensorMap,
        /// Written, boxes of 64 rows.
        dk: TensorMap,
        /// Written, likewise.
        dv: TensorMap,
        /// Of `sm80/delta.rs`.
        stats: u64,
        /// Sums of dq, see `sm80/convert_dq.rs`; zeroed before.
        dq_sums: u64,
    }
}

/// Keys of a block.
pub(crate) const KEYS: u32 = 128;

/// Queries of a step.
pub(crate) const QUERIES: u32 = 64;

/// Bytes of a query's statistics: -lse in base 2, and delta.
const STAT_BYTES: u32 = 8;

/// Bytes of the flags of 16 keys and 32 queries: for each lane two rows of 16 queries of two words.
const FLAG_BYTES: u32 = 32 * 16;

/// The barrier of the multiplying warpgroups, and the first of each one's own.
const DS_WRITTEN: u32 = 1;
const FIRST_BARRIER: u32 = 8;

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &Common, shape: &Warpgroups) -> Kernel {
    assert_eq!((shape.rows(), shape.step), (KEYS, QUERIES), "two warpgroups, 64 queries a step");
    assert!(common.head_dim.is_multiple_of(64), "whole boxes");
    let launch = Shape { block_threads: shape.threads(), min_blocks_per_sm: 1 };
    Builder::build(name, launch, |cta| {
        let problem = ProblemVals::declare(cta);
        let args = KeysVals::declare(cta);
        let dropout = common.dropout.then(|| DropoutVals::declare(cta));
        let smem = Smem::plan(cta, common, shape);
        let work = Work::locate(cta, problem.key_tiles(KEYS), problem.num_heads_k, false);
        cta.sync(); // barriers are initialised
        let block = Block { cta, common, shape, problem, args, dropout, smem, work };
        by_role(cta, shape, |wg| block.multiply(wg), |warp| block.draw(warp), |t| block.copy(t));
    })
}

/// Shared memory of a block.
struct Smem<'k> {
    /// k, and behind it v; in the end dk and dv on their way out.
    keys: BulkRing<'k>,
    q: BulkRing<'k>,
    dout: BulkRing<'k>,
    stats: BulkRing<'k>,
    /// For each 16 keys, each 32 queries and each lane 16 bytes.
    flags: Option<BulkRing<'k>>,
    /// ds of two steps, rows keys.
    ds: SmemAddr<'k>,
    /// dq of a step in f32, as accumulators lie.
    dq: SmemAddr<'k>,
}

/// Bytes of 16-bit rows.
fn rows_bytes(common: &Common, rows: u32) -> u32 {
    2 * rows * common.head_dim
}

/// Bytes of ds of a step.
const DS_BYTES: u32 = 2 * KEYS * QUERIES;

impl<'k> Smem<'k> {
    fn plan(cta: Cta<'k>, common: &Common, shape: &Warpgroups) -> Self {
        let readers = 4 * shape.groups;
        let queries = rows_bytes(common, QUERIES);
        let flags = || {
            let bytes = KEYS / 16 * (QUERIES / 32) * FLAG_BYTES;
            cta.stage_ring("flags", shape.flag_stages, bytes, 4, readers)
        };
        Smem {
            keys: cta.bulk_ring("keys", 1, 2 * rows_bytes(common, KEYS), readers),
            q: cta.bulk_ring("q", shape.stages, queries, readers),
            dout: cta.bulk_ring("dout", shape.stages, queries, readers),
            stats: cta.bulk_ring("stats", shape.stages, QUERIES * STAT_BYTES, readers),
            flags: common.dropout.then(flags),
            ds: cta.smem("ds", 2 * DS_BYTES, 1024),
            dq: cta.smem("dq", 4 * QUERIES * common.head_dim, 1024),
        }
    }
}

struct Block<'a, 'k> {
    cta: Cta<'k>,
    common: &'a Common,
    shape: &'a Warpgroups,
    problem: ProblemVals<'k>,
    args: KeysVals<'k>,
    dropout: Option<DropoutVals<'k>>,
    smem: Smem<'k>,
    work: Work<'k>,
}

/// A role's walk over queries: all steps of a head, then the next head of the group.
struct Cursor<'k> {
    first: Val<'k, U32>,
    end: Val<'k, U32>,
    group: Val<'k, U32>,
    step: Var<'k, U32>,
    /// Heads of the group that are done.
    member: Var<'k, U32>,
}

impl<'k> Cursor<'k> {
    fn more(&self) -> Val<'k, Pred> {
        self.member.get().lt(self.group) & self.first.lt(self.end)
    }

    fn advance(&self) {
        let next = self.step.get() + 1;
        let wraps = next.eq(self.end);
        self.step.set(wraps.select(self.first, next));
        self.member.set(self.member.get() + wraps.select(1u32, 0u32));
    }
}

impl<'k> Block<'_, 'k> {
    fn first_key(&self) -> Val<'k, U32> {
        self.work.block * KEYS
    }

    fn cursor(&self) -> Cursor<'k> {
        let Block { problem, .. } = self;
        let t = self.cta.threads();
        let end = problem.query_tiles(QUERIES);
        let first = match self.common.causal {
            false => t.u32(0),
            true => {
                // Query i sees key j from i = j - (seqlen_k - seqlen_q) on.
                let hidden = problem.seqlen_q.cast::<S32>() - problem.seqlen_k.cast::<S32>();
                let first_row = (self.first_key().cast::<S32>() + hidden).max(0);
                ((first_row.cast::<U32>() + problem.row_shift) / QUERIES).min(end)
            }
        };
        Cursor { first, end, group: problem.group, step: first.var(), member: t.u32(0).var() }
    }

    fn head(&self, at: &Cursor<'k>) -> Val<'k, U32> {
        self.work.head * self.problem.group + at.member.get()
    }

    /// The first row of a step; before the tensor's first, if a shard starts there.
    fn first_row(&self, at: &Cursor<'k>) -> Val<'k, U32> {
        at.step.get() * QUERIES - self.problem.row_shift
    }

    fn copy(&self, t: Thread<'k>) {
        let Block { args, smem, problem, work, common, .. } = self;
        let mut keys = smem.keys.producer(t);
        keys.fill_by(t, |filling| {
            for (tensor, to) in [(args.k, 0), (args.v, rows_bytes(common, KEYS))] {
                for i in 0..common.boxes() {
                    let from = tensor.at(64 * i, [self.first_key(), work.head, work.batch]);
                    filling.load(t, to + i * KEYS * 128, from);
                }
            }
        });
        let (mut q, mut dout, mut stats) =
            (smem.q.producer(t), smem.dout.producer(t), smem.stats.producer(t));
        let at = self.cursor();
        t.while_(
            || at.more(),
            |t| {
                let head = self.head(&at);
                let rows =
                    |tensor: Tensor<'k>, i: u32| tensor.at(64 * i, [self.first_row(&at), head, work.batch]);
                q.fill_by(t, |filling| {
                    (0..common.boxes()).for_each(|i| filling.load(t, i * QUERIES * 128, rows(args.q, i)));
                });
                let row = (work.batch * problem.num_heads + head).mul_wide(problem.stat_rows)
                    + (at.step.get() * QUERIES).widen();
                stats.fill(t, GlobalAddr::new(row * u64::from(STAT_BYTES) + args.stats));
                dout.fill_by(t, |filling| {
                    (0..common.boxes()).for_each(|i| filling.load(t, i * QUERIES * 128, rows(args.dout, i)));
                });
                at.advance();
            },
        );
    }

    /// Warp w draws what queries 16 w.. of each step drop, of all keys.
    fn draw(&self, warp: Warp<'k>) {
        let (t, args) = (warp.threads(), self.dropout.as_ref().expect("only dropout draws"));
        let (philox, mask) = (Philox::new(warp, args), SignMask::new(t, args));
        let mut ring = self.smem.flags.expect("planned with dropout").producer(t);
        let number = warp.index() & 3;
        let own = (number >> 1u32) * FLAG_BYTES + t.lane() * 16 + (number & 1) * 8;
        let column32 = args.first_column32 + self.work.block * (KEYS / 32);
        let at = self.cursor();
        warp.while_(
            || at.more(),
            |warp| {
                let stream = philox.stream(t, self.work.batch, self.head(&at));
                let row = stream.row(args.first_row16 + at.step.get() * (QUERIES / 16) + number);
                signflash_ptx::BulkRingProducer::fill_with_stores(&mut [&mut ring], warp, |stages| {
                    for i in 0..KEYS / 32 {
                        let column = StreamColumn::new(stream.lane(), column32 + i);
                        let words = philox.block(&row, &column).map(|word| mask.transposed(warp, word));
                        for half in 0..2 {
                            let to = stages[0].plus(own).at((2 * i + half) * (QUERIES / 32) * FLAG_BYTES);
                            t.store(to, [words[2 * half as usize], words[2 * half as usize + 1]]);
                        }
                    }
                });
                at.advance();
            },
        );
    }
}

/// For each 16 queries: flags of keys g and g + 8 of a warp.
type Flags<'k> = Vec<[Val<'k, B32>; 2]>;

/// What a multiplying warpgroup has at hand.
struct Keys<'a, 'k> {
    block: &'a Block<'a, 'k>,
    wg: Warpgroup<'k>,
    group: Val<'k, U32>,
    /// Its rows of k and v; and all rows of k.
    own_k: BoxTile<'k>,
    own_v: BoxTile<'k>,
    k: BoxTile<'k>,
    q: BulkRingConsumer<'k>,
    dout: BulkRingConsumer<'k>,
    stats: BulkRingConsumer<'k>,
    flags: Option<BulkRingConsumer<'k>>,
    s: Acc<'k>,
    dp: Acc<'k>,
    dk: Acc<'k>,
    dv: Acc<'k>,
    p: Vec<[Var<'k, B32>; 4]>,
    ds: Vec<[Var<'k, B32>; 4]>,
    /// Where ds of this step goes.
    place: Var<'k, U32>,
}

impl<'k> Block<'_, 'k> {
    fn multiply(&self, wg: Warpgroup<'k>) {
        let (warp, t, group, smem, common) = (wg.warps(), wg.threads(), wg.index(), &self.smem, self.common);
        let mut keys = smem.keys.consumer(warp);
        let stage = keys.wait(warp);
        let k = BoxTile::new(stage.address(), KEYS);
        let v = BoxTile::new(stage.address().at(rows_bytes(common, KEYS)), KEYS);
        let own_row = group * GROUP_ROWS;
        let operand = || -> Vec<[Var<'k, B32>; 4]> {
            (0..QUERIES / 16).map(|_| [(); 4].map(|()| t.u32(0).cast::<B32>().var())).collect()
        };
        let mut own = Keys {
            block: self,
            wg,
            group,
            own_k: k.from_row_of(own_row),
            own_v: v.from_row_of(own_row),
            k,
            q: smem.q.consumer(warp),
            dout: smem.dout.consumer(warp),
            stats: smem.stats.consumer(warp),
            flags: smem.flags.map(|ring| ring.consumer(warp)),
            s: wg.acc(QUERIES),
            dp: wg.acc(QUERIES),
            dk: wg.acc(common.head_dim),
            dv: wg.acc(common.head_dim),
            p: operand(),
            ds: operand(),
            place: t.u32(0).var(),
        };
        own.dk.clear();
        own.dv.clear();
        let at = self.cursor();
        wg.while_(
            || at.more(),
            |_| {
                own.step(&at);
                at.advance();
            },
        );
        // Everybody has read k, whose place dk takes.
        stage.release(warp);
        wg.sync_among(DS_WRITTEN, 128 * self.shape.groups);
        own.finish(smem.keys.data());
    }

    /// rows (64) * columns^T over head_dim.
    fn over_head_dim<'p>(&self, rows: BoxTile<'k>, columns: BoxTile<'k>) -> Product<'p, 'k> {
        Product {
            rows: Rows::Tile(rows),
            columns: Columns::OfRows(columns),
            depth: self.common.head_dim,
            half: self.common.half,
            add: false,
            columns_at_once: None,
        }
    }

    /// p^T or ds^T times a step of dout or q.
    fn over_queries<'p>(&self, words: &'p [[Var<'k, B32>; 4]], queries: BoxTile<'k>) -> Product<'p, 'k> {
        Product {
            rows: Rows::Registers(words),
            columns: Columns::Plain(queries),
            depth: QUERIES,
            half: self.common.half,
            add: true,
            columns_at_once: None,
        }
    }
}

fn set<'k>(operand: &[[Var<'k, B32>; 4]], words: &[[Val<'k, B32>; 4]]) {
    let pairs = operand.iter().flatten().zip(words.iter().flatten());
    pairs.for_each(|(var, word)| var.set(*word));
}

impl<'k> Keys<'_, 'k> {
    fn step(&mut self, at: &Cursor<'k>) {
        let Keys { block, wg, q, dout, stats, flags, s, dp, dk, dv, p, ds, .. } = self;
        let (wg, warp, common) = (*wg, wg.warps(), block.common);
        let q_stage = q.wait(warp);
        let q_tile = BoxTile::new(q_stage.address(), QUERIES);
        let scores = wg.multiply(s, &block.over_head_dim(self.own_k, q_tile));
        let dout_stage = dout.wait(warp);
        let dout_tile = BoxTile::new(dout_stage.address(), QUERIES);
        let gradients = wg.multiply(dp, &block.over_head_dim(self.own_v, dout_tile));
        scores.wait();
        gradients.wait();
        if common.negative_scale {
            negate(s);
        }
        let flags = flags.as_mut().map(|ring| read_flags(warp, ring, self.group));
        let stats_stage = stats.wait(warp);
        block.probabilities(warp, [s, dp], stats_stage.address(), flags.as_ref());
        stats_stage.release(warp);
        let hidden = Hidden::new(block, warp, self.group, block.first_row(at));
        warp.when(warp.any(hidden.any), |_| hidden.zero([s, dp]));

        // The dropped p are negative: relu makes them 0.
        set(p, &pack(s, common.half, common.dropout));
        let values = wg.multiply(dv, &block.over_queries(p, dout_tile));
        let words = pack(dp, common.half, false);
        set(ds, &words);
        let keys = wg.multiply(dk, &block.over_queries(ds, q_tile));
        let place = block.smem.ds.plus(self.place.get());
        stage_words(wg, &words, place.plus(self.group * (GROUP_ROWS * 128)));
        wg.threads().fence_proxy_async();
        wg.sync_among(DS_WRITTEN, 128 * block.shape.groups);
        values.wait();
        dout_stage.release_products(warp);
        keys.wait();
        q_stage.release_products(warp);
        self.add_dq(place, at);
        self.place.set(self.place.get() ^ DS_BYTES);
    }

    /// dq = ds k, each warpgroup every other box of 64 columns, over all keys of the block; added to the sums.
    fn add_dq(&self, ds: SmemAddr<'k>, at: &Cursor<'k>) {
        let Keys { block, wg, group, .. } = self;
        let (common, boxes) = (block.common, block.common.boxes());
        let bh = block.work.batch * block.problem.num_heads + block.head(at);
        let tile = bh * block.problem.query_tiles(QUERIES) + at.step.get();
        let sums = tile.widen().mul_add(u64::from(4 * QUERIES * common.head_dim), block.args.dq_sums);
        for i in 0..boxes.div_ceil(block.shape.groups) {
            let number = *group + i * block.shape.groups;
            wg.when(number.lt(boxes), |wg| {
                let (warp, t) = (wg.warps(), wg.threads());
                let mut dq = wg.acc(64);
                let product = Product {
                    rows: Rows::ColumnsOf(BoxTile::new(ds, KEYS)),
                    // The boxes lie behind each other.
                    columns: Columns::Plain(self.k.from_row_of(number * KEYS)),
                    depth: KEYS,
                    half: common.half,
                    add: false,
                    columns_at_once: None,
                };
                wg.multiply(&mut dq, &product).wait();
                // A warp's 16 rows: 8 groups of 8 columns, each four registers of 32 lanes.
                let own = ((warp.index() & 3) * (common.head_dim / 8) + number * 8) * 512;
                let staging = block.smem.dq.plus(own);
                t.when(t.lane().eq(0), |t| t.wait_stored());
                warp.sync();
                for column in 0..8 {
                    let values = [0, 1, 2, 3].map(|r| dq.at(column as usize, r).get());
                    t.store(staging.plus(t.lane() * 16).at(512 * column), values);
                }
                t.fence_proxy_async();
                warp.sync();
                t.when(t.lane().eq(0), |t| {
                    t.bulk_add(GlobalAddr::new(sums).plus(own.widen()), staging, 8 * 512);
                });
            });
        }
    }

    /// Scales and writes dk and dv; `keys` is where k was, and v behind it.
    fn finish(&self, keys: SmemAddr<'k>) {
        let Keys { block, wg, group, dk, dv, .. } = self;
        let (common, problem, t) = (block.common, &block.problem, wg.threads());
        let keep_scale = block.dropout.as_ref().map_or(t.f32(1.0), |args| args.keep_scale);
        let own = *group * rows_bytes(common, GROUP_ROWS);
        let places = [keys.plus(own), keys.at(rows_bytes(common, KEYS)).plus(own)];
        for ((acc, place), factor) in
            [dk, dv].into_iter().zip(places).zip([problem.scale * keep_scale, keep_scale])
        {
            scale_rows(acc, [factor, factor]);
            stage_words(*wg, &pack(acc, common.half, false), place);
        }
        t.fence_proxy_async();
        wg.sync_among(*group + FIRST_BARRIER, 128);
        let at = [block.first_key() + *group * GROUP_ROWS, block.work.head, block.work.batch];
        t.when((t.index() & 127).eq(0), |t| {
            for (tensor, place) in [block.args.dk, block.args.dv].into_iter().zip(places) {
                let boxes = 0..common.boxes();
                t.store_boxes(boxes.map(|i| (place.at(i * GROUP_ROWS * 128), tensor.at(64 * i, at))));
            }
        });
        t.when(t.lane().eq(0), |t| t.wait_stored());
    }
}

/// The flags of a warp's keys and a step of queries.
fn read_flags<'k>(warp: Warp<'k>, ring: &mut BulkRingConsumer<'k>, group: Val<'k, U32>) -> Flags<'k> {
    let stage = ring.wait(warp);
    let t = warp.threads();
    let own = (group * 4 + (warp.index() & 3)) * (QUERIES / 32 * FLAG_BYTES) + t.lane() * 16;
    let from = stage.address().plus(own);
    let words = (0..QUERIES / 32).flat_map(|i| {
        let [a, b, c, d] = t.load(from.at(i * FLAG_BYTES));
        [[a, b], [c, d]]
    });
    let words = words.collect();
    stage.release(warp);
    words
}

impl<'k> Block<'_, 'k> {
    /// s becomes p, its sign bit saying what is dropped; dp becomes ds.
    fn probabilities(
        &self,
        warp: Warp<'k>,
        [s, dp]: [&Acc<'k>; 2],
        stats: SmemAddr<'k>,
        flags: Option<&Flags<'k>>,
    ) {
        let t = warp.threads();
        for group in 0..s.groups() {
            // Of queries 2 c and 2 c + 1 of the group.
            let from = stats.plus((t.lane() & 3) * (2 * STAT_BYTES)).at(8 * STAT_BYTES * group as u32);
            let [lse0, delta0, lse1, delta1] = t.load(from);
            let (negative_lse, delta) = ([lse0, lse1], [delta0, delta1]);
            for register in 0..4 {
                let (h, x) = (register / 2, register % 2);
                let cell = s.at(group, register);
                let p = cell.get().mul_add(self.problem.scale_log2, negative_lse[x]).ex2();
                let p = match flags {
                    Some(flags) => SignMask::sign(p, flags[group / 2][h], (2 * x + group % 2) as u32),
                    None => p,
                };
                cell.set(p);
                let dp = dp.at(group, register);
                dp.set(match flags {
                    // The dropped p is negative: max(p, 0) is what dp counts for, |p| what delta counts for.
                    Some(_) => p.max(0.0).mul_add(dp.get(), -(p.abs() * delta[x])),
                    None => p * (dp.get() - delta[x]),
                });
            }
        }
    }
}

/// Which entries of a step are hidden: beyond the keys, or by the causal mask.
struct Hidden<'k> {
    any: Val<'k, Pred>,
    /// For the thread's two keys, the first column of an accumulator (from the thread's first) that sees it.
    seen_from: [Val<'k, S32>; 2],
}

impl<'k> Hidden<'k> {
    fn new(block: &Block<'_, 'k>, warp: Warp<'k>, group: Val<'k, U32>, first_row: Val<'k, U32>) -> Self {
        let (t, problem, causal) = (warp.threads(), &block.problem, block.common.causal);
        let first_key = block.first_key();
        let behind = first_key + KEYS;
        let fewest = problem.visible(first_row, causal);
        let own_row = first_row + (t.lane() & 3) * 2;
        let own_key = first_key + group * GROUP_ROWS + ((warp.index() & 3) << 4u32) + (t.lane() >> 2);
        let seen_from = |h: u32| {
            let key = own_key + 8 * h;
            let from = match causal {
                true => (key + problem.seqlen_q - problem.seqlen_k - own_row).cast::<S32>(),
                false => t.u32(0).cast(),
            };
            key.lt(problem.seqlen_k).select(from, t.u32(i32::MAX as u32).cast())
        };
        let beyond = problem.seqlen_k.lt(behind);
        Hidden {
            any: beyond | fewest.cast::<S32>().lt(behind.cast::<S32>()),
            seen_from: [seen_from(0), seen_from(1)],
        }
    }

    /// Zeroes what is hidden, whatever it became.
    fn zero(&self, accs: [&Acc<'k>; 2]) {
        let [s, _] = accs;
        for (group, register) in (0..s.groups()).flat_map(|group| (0..4).map(move |r| (group, r))) {
            let column = (8 * group + register % 2) as i32;
            let hidden = self.seen_from[register / 2].le(column);
            for acc in accs {
                let cell = acc.at(group, register);
                cell.set(hidden.select(cell.get(), 0.0f32));
            }
        }
    }
}
