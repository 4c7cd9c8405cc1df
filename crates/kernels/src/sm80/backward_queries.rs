//! Backward by blocks that own queries: dq, the same bits in every run.
//!
//! ```text
//! q, dout, statistics               once
//! k, v -> ring                      a step ahead of the products
//! every warp, every step:
//!   s = q k^T    dp = dout v^T    p = exp2(s - lse), its sign bit: dropped
//!   ds = |p| * (dp where kept - delta)
//!   dq += ds k                      an accumulator of ds is an operand as it is
//! ```
//! s and dp are computed a second time here: 7 products in all instead of the 5 of a backward whose blocks add to dq in
//! whatever order they come.
//!
//! Grid: query tiles x heads x batches, along x. Block: 32 * warps threads.
use super::query_block::QueryBlock;
use crate::config::{Common, HeadDims, PortableForm};
use crate::packed::PackedVals;
use crate::parts::args::{DeviceTensor, DropoutVals, ProblemVals, kernel_args};
use crate::parts::dropout::{DropSigns, Philox, Stream};
use crate::parts::epilogue::store_rows;
use crate::parts::hiding::{SeenKeys, first_column, hide_keys};
use crate::parts::overlays::{ByQueries, OverlayVals, dynamic};
use crate::parts::product::{FragmentA, Lanes, Operand, mma_ab, mma_abt, pack};
use crate::parts::scores::{HeadScores, ScoreVals, Weights, score_gradient};
use crate::parts::softmax::{THREAD_ROWS, scale_rows};
use crate::parts::visibility::KeyTiles;
use crate::parts::width::Widths;
use crate::rows::head::QueryHeads;
use crate::rows::statistics::StatRows;
use signflash_ptx::{Acc, Builder, CopyRing, Cta, F32, Kernel, LaunchBounds, SmemAddr, TileLayout, U32, Val};

kernel_args! {
    /// Arguments of the pass over queries.
    QueriesArgs / QueriesVals {
        /// Queries.
        q: DeviceTensor,
        /// Keys.
        k: DeviceTensor,
        /// Values.
        v: DeviceTensor,
        /// Gradient of the output.
        dout: DeviceTensor,
        /// Written.
        dq: DeviceTensor,
        /// Of `rows/statistics.rs`.
        stats: u64,
    }
}

/// Bytes of shared memory that a block of a form asks for.
pub(crate) fn smem_bytes(dims: HeadDims, form: &PortableForm) -> u32 {
    2 * dims.sum() * (form.rows() + form.slots * form.step)
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &Common, form: &PortableForm) -> Kernel {
    let bounds = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: form.blocks_per_sm };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let packed = common.operands.layout.is_packed().then(|| PackedVals::declare(cta));
        let args = QueriesVals::declare(cta);
        let widths = Widths::declare(cta, &problem, common);
        let scores = ScoreVals::declare(cta, &common.scores);
        let dropout = common.scores.dropout.then(|| DropoutVals::declare(cta));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let smem = Smem::plan(cta, common, form);
        let block =
            QueryBlock::locate(cta, common, form, (problem, widths), packed.as_ref(), (scores, overlays));
        Queries { block, args, dropout, smem }.run();
    })
}

/// Everything the block keeps in shared memory.
struct Smem<'k> {
    /// The block's rows; each warp reads its own. q's become dq in the end.
    q: SmemAddr<'k>,
    dout: SmemAddr<'k>,
    /// `form.step` rows of k, then as many of v.
    kv: CopyRing<'k>,
    layout: TileLayout,
    layout_v: TileLayout,
}

impl<'k> Smem<'k> {
    fn plan(cta: Cta<'k>, common: &Common, form: &PortableForm) -> Self {
        let [layout, layout_v] = common.operands.dims().map(TileLayout::new);
        Smem {
            q: cta.smem("q", layout.bytes(form.rows()), 1024),
            dout: cta.smem("dout", layout_v.bytes(form.rows()), 1024),
            kv: cta.copy_ring("kv", form.slots, layout.bytes(form.step) + layout_v.bytes(form.step)),
            layout,
            layout_v,
        }
    }
}

struct Queries<'a, 'k> {
    block: QueryBlock<'a, 'k>,
    args: QueriesVals<'k>,
    dropout: Option<DropoutVals<'k>>,
    smem: Smem<'k>,
}

/// A warp's rows.
struct Own<'a, 'k> {
    q: Operand<'a, 'k>,
    dout: Operand<'a, 'k>,
    first_row: Val<'k, U32>,
    /// For each tile of 16 rows and each of the thread's two in it: -lse in base 2, and delta.
    stats: Vec<[[Val<'k, F32>; 2]; THREAD_ROWS]>,
    /// Likewise, which keys they see.
    seen: Vec<[SeenKeys<'k>; THREAD_ROWS]>,
    overlays: Vec<Option<ByQueries<'k>>>,
    stream: Option<(Stream<'k>, DropSigns<'k>)>,
    scores: HeadScores<'k>,
}

impl<'k> Queries<'_, 'k> {
    fn run(&self) {
        let QueryBlock { cta, common, form, problem, .. } = &self.block;
        let (warp, t) = (cta.warps(), cta.threads());
        let first_row = self.block.first_row();
        let keys = self.block.sight().key_tiles(first_row, form.rows(), form.step);
        let kv = self.block.key_values(&self.smem.kv, [&self.args.k, &self.args.v], &keys);
        let Widths { q: of_q, v: of_v } = self.block.widths;
        let rows = [(self.smem.q, &self.args.q, of_q), (self.smem.dout, &self.args.dout, of_v)];
        let queries = cta.copy_group(|| self.block.load_queries(rows, first_row));
        kv.fill(keys.begin.unsigned());

        let lanes = Lanes::new(warp, self.smem.layout);
        let lanes_v = (self.smem.layout_v != self.smem.layout).then(|| Lanes::new(warp, self.smem.layout_v));
        let own = self.own([&lanes, lanes_v.as_ref().unwrap_or(&lanes)], first_row);
        let mut dq: Vec<Acc<'k>> = (0..form.row_tiles).map(|_| warp.acc(common.operands.head_dim)).collect();
        dq.iter().for_each(Acc::clear);
        queries.wait(*cta);
        let n = keys.begin.unsigned().var();
        cta.while_(
            || n.get().lt(keys.end),
            |cta| {
                let tile = n.get();
                let slot = self.smem.kv.take(cta);
                if form.slots > 1 {
                    kv.fill(tile + 1);
                }
                let ds = self.ds(&own, slot.address(), tile, &keys);
                let keys_tile = Operand { lanes: &lanes, tile: slot.address() };
                mma_ab(
                    warp,
                    &mut dq,
                    form.step,
                    common.operands.half,
                    |i, k16| ds[i][k16 as usize],
                    keys_tile,
                );
                slot.release();
                if form.slots == 1 {
                    cta.sync();
                    kv.fill(tile + 1);
                }
                n.set(tile + 1);
            },
        );
        self.smem.kv.take(*cta).release(); // the last fill: of nothing

        let keep_scale = self.dropout.map_or(t.f32(1.0), |d| d.keep_scale);
        let factor = problem.scale * keep_scale;
        dq.iter().for_each(|dq| scale_rows(dq, [factor, factor]));
        let target = self.block.queries_of(&self.args.dq, of_q, own.first_row);
        let copy = of_q.copy(t, t.lane(), 32);
        store_rows(warp, &dq, common.operands, own.q.tile, &copy, target);
    }

    fn own<'a>(&self, [lanes, lanes_v]: [&'a Lanes<'k>; 2], first_row: Val<'k, U32>) -> Own<'a, 'k> {
        let QueryBlock { form, problem, work, .. } = &self.block;
        let (warp, t) = (self.block.cta.warps(), self.block.cta.threads());
        let row = warp.index() * (16 * form.row_tiles);
        let own = |tile: SmemAddr<'k>, layout: TileLayout| tile.plus(row * layout.row_bytes());
        let in_tile = |i: u32, h: u32| row + (t.lane() >> 2) + (16 * i + 8 * h);
        let stats = StatRows::of(QueryHeads::of(problem, work.sequence).nth(work.head));
        let stat = |i: u32, h: u32| stats.load(t, self.args.stats, work.block * form.rows() + in_tile(i, h));
        let sight = self.block.sight();
        let seen = |i: u32, h: u32| SeenKeys::of(&sight, first_row + in_tile(i, h));
        Own {
            q: Operand { lanes, tile: own(self.smem.q, self.smem.layout) },
            dout: Operand { lanes: lanes_v, tile: own(self.smem.dout, self.smem.layout_v) },
            first_row: first_row + row,
            stats: (0..form.row_tiles).map(|i| [stat(i, 0), stat(i, 1)]).collect(),
            seen: (0..form.row_tiles).map(|i| [seen(i, 0), seen(i, 1)]).collect(),
            overlays: (0..form.row_tiles)
                .map(|i| self.block.overlays_of(|| first_row + row + 16 * i))
                .collect(),
            stream: self.dropout.as_ref().map(|args| {
                (Philox::new(warp, args).stream(t, work.sequence, work.head), DropSigns::new(t, args))
            }),
            scores: self.block.head_scores(),
        }
    }

    /// ds of this warp's rows and a tile of keys, as operands.
    fn ds(
        &self,
        own: &Own<'_, 'k>,
        slot: SmemAddr<'k>,
        tile: Val<'k, U32>,
        keys: &KeyTiles<'k>,
    ) -> Vec<Vec<FragmentA<'k>>> {
        let (k, v) = (slot, slot.at(self.smem.layout.bytes(self.block.form.step)));
        let dims = self.block.common.operands.dims();
        let s = self.product(own.q, k, dims.q);
        let read: Vec<_> =
            own.overlays.iter().map(|overlays| self.block.read(overlays.as_ref(), tile)).collect();
        let mut weights: Vec<Weights<'_, 'k>> = vec![];
        for ((i, s), read) in (0..).zip(&s).zip(&read) {
            let (warp, place) = (self.block.cta.warps(), || self.block.place(own.first_row + 16 * i, tile));
            weights.push(own.scores.prepare_for_gradients(warp, s, place, dynamic(read)));
        }
        let dp = self.product(own.dout, v, dims.v);
        for (i, (s, dp)) in s.iter().zip(&dp).enumerate() {
            self.gradients(own, i, (s, &weights[i]), dp, tile);
        }
        self.block.cta.when(keys.is_edge(tile), |_| self.zero_hidden(own, &dp, tile));
        dp.iter().map(|dp| pack(dp, self.block.common.operands.half, false)).collect()
    }

    /// rows * columns^T over so many columns of a head.
    fn product(&self, rows: Operand<'_, 'k>, columns: SmemAddr<'k>, depth: u32) -> Vec<Acc<'k>> {
        let warp = self.block.cta.warps();
        let mut acc: Vec<Acc<'k>> =
            (0..self.block.form.row_tiles).map(|_| warp.acc(self.block.form.step)).collect();
        acc.iter().for_each(Acc::clear);
        let columns = Operand { lanes: rows.lanes, tile: columns };
        let a = |i: usize, k16: u32| rows.a(warp, 16 * i as u32, k16);
        mma_abt(warp, &mut acc, depth, self.block.common.operands.half, a, columns);
        acc
    }

    /// dp becomes ds, for 16 rows.
    fn gradients(
        &self,
        own: &Own<'_, 'k>,
        i: usize,
        (s, weights): (&Acc<'k>, &Weights<'_, 'k>),
        dp: &Acc<'k>,
        tile: Val<'k, U32>,
    ) {
        let row16 = self.dropout.map(|args| {
            args.first_row16 + ((own.first_row + self.block.problem.row_shift) >> 4u32) + i as u32
        });
        for block in 0..s.groups().div_ceil(4) {
            let flags =
                own.stream.as_ref().zip(row16).zip(self.dropout).map(|(((stream, signs), row16), args)| {
                    assert!(
                        self.block.form.step.is_multiple_of(32),
                        "random words come for 32 columns at once"
                    );
                    let column32 = args.first_column32 + tile * (self.block.form.step / 32) + block as u32;
                    stream.block(row16, column32).map(|word| signs.dropped(word))
                });
            for group in (0..4).map(|group| 4 * block + group) {
                let weights = weights.of_group(group);
                for register in 0..4 {
                    let [negative_lse, delta] = own.stats[i][register / 2];
                    let prepared = s.at(group, register).get();
                    let p = weights.of(register, prepared, negative_lse);
                    let p = flags.map_or(p, |flags| DropSigns::sign(p, flags[group % 4], register as u32));
                    let p = weights.bent(p, prepared);
                    score_gradient(&dp.at(group, register), p, delta, flags.is_some());
                }
            }
        }
    }

    fn zero_hidden(&self, own: &Own<'_, 'k>, dp: &[Acc<'k>], tile: Val<'k, U32>) {
        let t = self.block.cta.threads();
        let first = tile * self.block.form.step - self.block.problem.column_shift + first_column(t);
        dp.iter().zip(&own.seen).for_each(|(dp, seen)| hide_keys(dp, seen, first, 0.0));
    }
}
