//! Backward by blocks that own keys: dk, dv, and dq's pieces.
//!
//! ```text
//! k, v -> smem                      once
//! q, dout, statistics -> ring       a step of queries ahead of the products; all query heads of the key head in turn
//! every warp, every step, with 16 * row_tiles keys of its own:
//!   s^T = k q^T    dp^T = v dout^T            accumulators whose rows are keys
//!   p = exp2(s - lse), its sign bit: dropped
//!   dv += max(p, 0)^T dout                    packing with relu: the dropped are negative, and become 0
//!   ds = |p| * (dp where kept - delta)        max(p, 0) * dp - |p| * delta
//!   dk += ds^T q
//!   ds -> smem, barrier, dq += ds k           the warps share rows and columns of dq; sums in f32 in global memory
//! ```
//! With `late_dq` the last line is that of the step before, behind the barrier that each step begins with: one
//! barrier a step serves q and dout that have come and ds of the step before. ds then has two places in turn.
//!
//! With `split` warps on the same keys, each makes s, dp, p and ds for its part of the step's queries, and sums up its
//! part of the columns of dk and dv, for which the others' p and ds come through shared memory. Twice the keys a warp
//! for the same registers: every operand that is read from shared memory serves twice the products.
//!
//! With keys as rows, accumulators of s^T and ds^T are operands of dv and dk as they are. Random words come in the
//! order of s, so their flags are transposed between lanes (`movmatrix`) before they become signs. The keep scale and
//! softmax_scale are applied at the end.
//!
//! Grid: key tiles x key heads x batches, along x. Block: 32 * warps threads.
mod dq;
mod scores;
mod smem;

pub(crate) use smem::smem_bytes;

use crate::config::{Common, DqSums, PortableForm};
use crate::packed::PackedVals;
use crate::parts::args::{DeviceTensor, DropoutVals, HeadRows, ProblemVals, TensorVals, kernel_args};
use crate::parts::copy::TileCopy;
use crate::parts::cursor::Cursor;
use crate::parts::epilogue::{stage_packed, store_rows};
use crate::parts::overlays::{ByKeys, OverlayVals};
use crate::parts::product::{FragmentA, Lanes, Operand, mma_ab, mma_abt, pack};
use crate::parts::scores::{ScoreStage, ScoreVals};
use crate::parts::softmax::scale_rows;
use crate::parts::visibility::{SeenRange, Sight};
use crate::parts::width::{Width, Widths};
use crate::parts::work::Work;
use crate::rows::head::QueryHeads;
use crate::rows::statistics::StatRows;
use dq::Behind;
use scores::Dropout;
use signflash_ptx::{Acc, Builder, Cta, Kernel, LaunchBounds, Pred, SmemAddr, TileLayout, U32, Val};
use smem::Smem;

kernel_args! {
    /// Arguments of the pass over keys.
    KeysArgs / KeysVals {
        /// Queries.
        q: DeviceTensor,
        /// Keys.
        k: DeviceTensor,
        /// Values.
        v: DeviceTensor,
        /// Gradient of the output.
        dout: DeviceTensor,
        /// Written.
        dk: DeviceTensor,
        /// Written.
        dv: DeviceTensor,
        /// Of `rows/statistics.rs`.
        stats: u64,
        /// Sums of dq, see `rows/dq_sums.rs`; zeroed before.
        dq_sums: u64,
    }
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &Common, form: &PortableForm, sums: DqSums) -> Kernel {
    let bounds = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: form.blocks_per_sm };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let packed = common.operands.layout.is_packed().then(|| PackedVals::declare(cta));
        let args = KeysVals::declare(cta);
        let widths = Widths::declare(cta, &problem, common);
        let scores = ScoreVals::declare(cta, &common.scores);
        let dropout = common.scores.dropout.then(|| Dropout::new(cta.warps(), DropoutVals::declare(cta)));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let smem = Smem::plan(cta, common, form, sums);
        let heads = problem.num_heads_k;
        let work = match &packed {
            None => Work::locate(cta, &problem, problem.key_tiles(form.rows()), heads, false),
            Some(packed) => Work::listed(cta, &problem, packed, cta.index(), heads),
        };
        let range = overlays.as_ref().and_then(|overlays| overlays.range(cta.threads(), work.sequence));
        Keys { cta, common, form, sums, problem, widths, args, scores, dropout, overlays, smem, work, range }
            .run();
    })
}

struct Keys<'a, 'k> {
    cta: Cta<'k>,
    common: &'a Common,
    form: &'a PortableForm,
    sums: DqSums,
    problem: ProblemVals<'k>,
    widths: Widths<'k>,
    args: KeysVals<'k>,
    scores: ScoreVals<'k>,
    dropout: Option<Dropout<'k>>,
    overlays: Option<OverlayVals<'k>>,
    smem: Smem<'k>,
    work: Work<'k>,
    /// The keys that some query may see, if not all.
    range: Option<SeenRange<'k>>,
}

/// What a warp has at hand in every step.
struct Own<'a, 'k> {
    lanes: &'a Lanes<'k>,
    ds_lanes: &'a Lanes<'k>,
    /// The warp's part of the columns of q, and of dout.
    columns: [&'a Lanes<'k>; 2],
    /// Which of the warps on the same keys it is, and which keys these are.
    part: Val<'k, U32>,
    team: Val<'k, U32>,
    /// The warp's rows of k and v.
    k: Operand<'a, 'k>,
    v: Operand<'a, 'k>,
    /// The first of its keys: of its tile, and of the thread.
    first_key: Val<'k, U32>,
    row: Val<'k, U32>,
    /// For each 16 of its keys what is added to scores, if anything is.
    overlays: Vec<Option<ByKeys<'k>>>,
}

impl<'k> Keys<'_, 'k> {
    fn run(&self) {
        let Keys { cta, form, problem, .. } = self;
        let (warp, t) = (cta.warps(), cta.threads());
        let first_key = self.work.block * form.rows() - problem.column_shift;
        let kv = cta.copy_group(|| self.load_keys(first_key));
        let tiles = self.sight().query_tiles(first_key, form.rows(), form.step);
        let ahead = Cursor::new(t, problem, tiles);
        self.fill(&ahead, ahead.more());

        let (team, part) = match form.split {
            1 => (warp.index(), t.u32(0)),
            split => (warp.index() / split, warp.index().modulo(split)),
        };
        let row = team * (16 * form.row_tiles);
        let (layout, layout_v) = (self.smem.layout, self.smem.layout_v);
        let (lanes, ds_lanes) = (Lanes::new(warp, layout), Lanes::new(warp, self.smem.ds_layout));
        let lanes_v = (layout_v != layout).then(|| Lanes::new(warp, layout_v));
        let lanes_v = lanes_v.as_ref().unwrap_or(&lanes);
        let of_part =
            |layout: TileLayout, columns: u32| Lanes::part(warp, layout, part * (columns / 16), columns / 16);
        let [columns, columns_v] = self.columns();
        let own_columns = (form.split > 1).then(|| of_part(layout, columns));
        let own_columns_v = (form.split > 1 && layout_v != layout).then(|| of_part(layout_v, columns_v));
        let own = |tile: SmemAddr<'k>, layout: TileLayout| tile.plus(row * layout.row_bytes());
        let own = Own {
            lanes: &lanes,
            ds_lanes: &ds_lanes,
            columns: [
                own_columns.as_ref().unwrap_or(&lanes),
                own_columns_v.as_ref().or(own_columns.as_ref()).unwrap_or(lanes_v),
            ],
            part,
            team,
            k: Operand { lanes: &lanes, tile: own(self.smem.k, layout) },
            v: Operand { lanes: lanes_v, tile: own(self.smem.v, layout_v) },
            first_key,
            row,
            overlays: (0..form.row_tiles).map(|i| self.overlays_of(|| first_key + row + 16 * i)).collect(),
        };
        let cleared = |columns: u32| -> Vec<Acc<'k>> {
            let acc: Vec<_> = (0..form.row_tiles).map(|_| warp.acc(columns)).collect();
            acc.iter().for_each(Acc::clear);
            acc
        };
        let (mut dk, mut dv) = (cleared(columns), cleared(columns_v));
        kv.wait(*cta);
        let now = Cursor::new(t, problem, tiles);
        let behind = Behind::new(t);
        cta.while_(
            || now.more(),
            |cta| {
                let queries = self.smem.queries.take(cta);
                ahead.advance();
                if form.slots > 1 {
                    self.fill(&ahead, ahead.more());
                }
                self.add_dq_behind(&own, &behind);
                self.step(&own, queries.address(), &now, &behind, [&mut dk, &mut dv]);
                queries.release();
                if form.slots == 1 {
                    cta.sync();
                    self.fill(&ahead, ahead.more());
                }
                now.advance();
            },
        );
        self.smem.queries.take(*cta).release(); // the last fill: of nothing; and everybody's ds is there
        if self.is_late() {
            self.add_dq_behind(&own, &behind);
            cta.sync(); // k, which all warps read for dq, becomes dk's way out
        }
        self.finish(&own, &dk, &dv);
    }

    /// Columns of dk and dv that a warp sums up.
    fn columns(&self) -> [u32; 2] {
        self.common.operands.dims().map(|columns| columns / self.form.split)
    }

    /// Queries of a step for which a warp makes s and dp.
    fn queries(&self) -> u32 {
        self.form.step / self.form.split
    }

    fn sight(&self) -> Sight<'k> {
        Sight::new(self.cta.threads(), &self.problem, self.work.sequence, self.scores.band).within(self.range)
    }

    fn stage(&self) -> ScoreStage<'k> {
        ScoreStage::new(self.cta.threads(), &self.problem, self.scores, self.common.scores)
    }

    fn load_keys(&self, first_key: Val<'k, U32>) {
        let t = self.cta.threads();
        let (Widths { q: of_k, v: of_v }, seqlen) = (self.widths, self.work.sequence.seqlen_k);
        let [copy_k, copy_v] = self.widths.copies(t, t.index(), self.form.threads());
        let [k, v] = [self.args.k, self.args.v].map(|tensor| self.key_rows(tensor));
        copy_k.load(self.smem.k, of_k.tile(k, first_key, seqlen), self.form.rows());
        copy_v.load(self.smem.v, of_v.tile(v, first_key, seqlen), self.form.rows());
    }

    /// Starts to bring a step of queries, if there is one.
    fn fill(&self, at: &Cursor<'k>, real: Val<'k, Pred>) {
        let Keys { cta, form, problem, work, .. } = self;
        let (ring, step) = (&self.smem.queries, form.step);
        let Widths { q: of_q, v: of_v } = self.widths;
        let slot = ring.next_fill();
        let (m, head) = (at.step.get(), work.head * problem.group_size + at.member.get());
        ring.fill(*cta, || {
            cta.when(real, |cta| {
                let t = cta.threads();
                let [copy_q, copy_v] = self.widths.copies(t, t.index(), form.threads());
                let seqlen = work.sequence.seqlen_q;
                let q = self.args.q.head(work.sequence.queries(), head);
                copy_q.load(slot, of_q.tile(q, m * step - problem.row_shift, seqlen), step);
                let dout = self.args.dout.head(work.sequence.queries(), head);
                let place = slot.at(self.smem.layout.bytes(step));
                copy_v.load(place, of_v.tile(dout, m * step - problem.row_shift, seqlen), step);
                // Two queries' statistics are 16 bytes.
                t.when(t.index().lt(step / 2), |t| {
                    let rows = StatRows::of(QueryHeads::of(problem, work.sequence).nth(head));
                    let from = rows.from(self.args.stats, m * step);
                    let own = t.index() * 16;
                    let to = slot.at(self.smem.rows_bytes(step)).plus(own);
                    t.copy_async(to, from.plus(own.widen()), t.index().lt(step));
                });
            });
        });
    }

    fn step(
        &self,
        own: &Own<'_, 'k>,
        slot: SmemAddr<'k>,
        at: &Cursor<'k>,
        behind: &Behind<'k>,
        [dk, dv]: [&mut Vec<Acc<'k>>; 2],
    ) {
        let Keys { common, form, smem, .. } = self;
        let (warp, half) = (self.cta.warps(), common.operands.half);
        let (q, dout) = (slot, slot.at(smem.layout.bytes(form.step)));
        let m = at.step.get();
        let head = self.work.head * self.problem.group_size + at.member.get();

        let flags = self.dropout.as_ref().map(|dropout| self.draw(dropout, own, m, head));
        let (s_depth, dp_depth) = (common.operands.dims().q, common.operands.dims().v);
        let s = self.product(own, own.k, q, s_depth);
        let read = self.read(own, m, head);
        let weights = self.weights(own, m, head, (&s, &read));
        let dp = self.product(own, own.v, dout, dp_depth);
        let stats = slot.at(smem.rows_bytes(form.step));
        self.probabilities(own, (&s, &weights), &dp, stats, flags.as_deref());
        self.hide(own, m, &s, &dp);

        // The dropped p are negative: relu makes them 0.
        let p: Vec<_> = s.iter().map(|s| pack(s, half, common.scores.dropout)).collect();
        let ds: Vec<_> = dp.iter().map(|dp| pack(dp, half, false)).collect();
        let ds_tile = smem.ds.map(|tile| if self.is_late() { tile.plus(behind.place.get()) } else { tile });
        for (tile, words) in [(smem.p, &p), (ds_tile, &ds)] {
            if let Some(tile) = tile {
                let own_rows = tile.plus(own.row * smem.ds_layout.row_bytes());
                stage_packed(warp, words, own_rows, smem.ds_layout, own.part * (self.queries() / 8));
            }
        }
        if form.split > 1 {
            warp.sync_among(own.team + 1, 32 * form.split);
        }
        let [columns, columns_v] = own.columns;
        self.sum(own, dv, &p, smem.p, Operand { lanes: columns_v, tile: dout });
        self.sum(own, dk, &ds, ds_tile, Operand { lanes: columns, tile: q });
        let tile = QueryHeads::of(&self.problem, self.work.sequence).nth(head).first_dq_tile(form.step) + m;
        if self.is_late() {
            behind.tile.set(tile);
            behind.place.set(behind.place.get() ^ self.ds_bytes());
        } else if let Some(ds) = smem.ds.filter(|_| self.sums != DqSums::None) {
            self.cta.sync();
            self.add_dq(own, ds, tile);
        }
    }

    /// acc += (own rows of p or ds) * (a step of queries): first this warp's queries, from registers, then those of the
    /// others on the same keys.
    fn sum(
        &self,
        own: &Own<'_, 'k>,
        acc: &mut [Acc<'k>],
        words: &[Vec<FragmentA<'k>>],
        shared: Option<SmemAddr<'k>>,
        queries: Operand<'_, 'k>,
    ) {
        let (warp, half) = (self.cta.warps(), self.common.operands.half);
        let split = self.form.split;
        let of_part = |part: Val<'k, U32>| {
            let first = part * queries.lanes.layout().bytes(self.queries());
            if split == 1 { queries } else { Operand { tile: queries.tile.plus(first), ..queries } }
        };
        mma_ab(warp, acc, self.queries(), half, |i, k16| words[i][k16 as usize], of_part(own.part));
        for further in 1..split {
            let part = (own.part + further).modulo(split);
            let rows =
                shared.expect("split passes share p and ds").plus(own.row * self.smem.ds_layout.row_bytes());
            let pieces = self.queries() / 16;
            let from = |i: usize, k16: u32| {
                let column = own.ds_lanes.a_rows(warp, rows, part * pieces + k16);
                warp.load_matrices_at(column.at(self.smem.ds_layout.bytes(16 * i as u32)), false)
            };
            mma_ab(warp, acc, self.queries(), half, from, of_part(part));
        }
    }

    /// This warp's rows of a tile in shared memory, times its part of a step of queries transposed.
    fn product(
        &self,
        own: &Own<'_, 'k>,
        rows: Operand<'_, 'k>,
        queries: SmemAddr<'k>,
        depth: u32,
    ) -> Vec<Acc<'k>> {
        let warp = self.cta.warps();
        let mut acc: Vec<Acc<'k>> = (0..self.form.row_tiles).map(|_| warp.acc(self.queries())).collect();
        acc.iter().for_each(Acc::clear);
        let queries = match self.form.split {
            1 => queries,
            _ => queries.plus(own.part * rows.lanes.layout().bytes(self.queries())),
        };
        let queries = Operand { lanes: rows.lanes, tile: queries };
        let a = |i: usize, k16: u32| rows.a(warp, 16 * i as u32, k16);
        mma_abt(warp, &mut acc, depth, self.common.operands.half, a, queries);
        acc
    }

    /// Scales and writes dk and dv.
    fn finish(&self, own: &Own<'_, 'k>, dk: &[Acc<'k>], dv: &[Acc<'k>]) {
        let (warp, t) = (self.cta.warps(), self.cta.threads());
        let keep_scale = self.dropout.as_ref().map_or(t.f32(1.0), |d| d.args.keep_scale);
        let [dk_rows, dv_rows] = [self.args.dk, self.args.dv].map(|tensor| self.key_rows(tensor));
        let ([columns, columns_v], Widths { q: of_k, v: of_v }) = (self.columns(), self.widths);
        let way_k = self.way_out(own, of_k, columns);
        let way_v = if of_v.rows == of_k.rows { way_k } else { self.way_out(own, of_v, columns_v) };
        let targets = [
            (dk, way_k, of_k, dk_rows, own.k.tile, self.problem.scale * keep_scale),
            (dv, way_v, of_v, dv_rows, own.v.tile, keep_scale),
        ];
        for (acc, (copy, share), width, rows, staging, factor) in targets {
            acc.iter().for_each(|acc| scale_rows(acc, [factor, factor]));
            let target = width.tile(rows, own.first_key + own.row, self.work.sequence.seqlen_k);
            store_rows(warp, acc, self.common.operands, staging.plus(share), &copy, target);
        }
    }

    /// How so many columns of a warp's rows leave, and by way of which part of their tile, which the warps on the same
    /// keys divide among them.
    fn way_out(&self, own: &Own<'_, 'k>, width: Width<'k>, columns: u32) -> (TileCopy<'k>, Val<'k, U32>) {
        let t = self.cta.threads();
        let copy = width.copy(t, t.lane(), 32).of_columns(t.lane(), 32, columns, own.part * columns);
        (copy, own.part * TileLayout::new(columns).bytes(16 * self.form.row_tiles))
    }

    /// The rows of a tensor of k's or v's kind.
    fn key_rows(&self, tensor: TensorVals<'k>) -> HeadRows<'k> {
        tensor.head(self.work.sequence.keys(), self.work.head)
    }
}
