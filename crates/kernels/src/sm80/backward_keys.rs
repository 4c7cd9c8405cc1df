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
//! With `late_dq` the last line is that of the step before, behind the barrier that each step begins with: one barrier a
//! step serves q and dout that have come and ds of the step before. ds then has two places in turn.
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
use crate::config::{Common, DqSums, PortableForm};
use crate::parts::args::{DeviceTensor, DropoutVals, ProblemVals, Rows, kernel_args};
use crate::parts::copy::{TileCopy, TileRows};
use crate::parts::dropout::{Philox, SignMask};
use crate::parts::epilogue::{stage_packed, store_rows};
use crate::parts::product::{FragmentA, Lanes, Operand, mma_ab, mma_abt, pack};
use crate::parts::scores::{ScoreStage, score_gradient};
use crate::parts::softmax::scale_rows;
use crate::parts::work::Work;
use crate::rows::dq_sums::SumsTile;
use crate::rows::head::QueryHeads;
use crate::rows::statistics::{self, STAT_BYTES, StatRows};
use signflash_ptx::{
    Acc, B32, Builder, CopyRing, Cta, Kernel, LaunchBounds, Pred, S32, SmemAddr, Thread, TileLayout, U32,
    Val, Var, Warp,
};

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

/// Bytes of shared memory that a block of a form asks for, at most.
pub(crate) fn smem_bytes(head_dim: u32, form: &PortableForm) -> u32 {
    let keys = 4 * head_dim * form.rows();
    let slot = (4 * head_dim + STAT_BYTES) * form.step;
    let (p, ds) = (2 * form.rows() * form.step, 4 * form.rows() * form.step);
    keys + form.slots * slot.next_multiple_of(1024) + p + ds
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &Common, form: &PortableForm, sums: DqSums) -> Kernel {
    let bounds = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: form.blocks_per_sm };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let args = KeysVals::declare(cta);
        let dropout = common.scores.dropout.then(|| Dropout::new(cta.warps(), DropoutVals::declare(cta)));
        let smem = Smem::plan(cta, common, form, sums);
        let work = Work::locate(cta, &problem, problem.key_tiles(form.rows()), problem.num_heads_k, false);
        Keys { cta, common, form, sums, problem, args, dropout, smem, work }.run();
    })
}

/// What is drawn in every step.
struct Dropout<'k> {
    args: DropoutVals<'k>,
    philox: Philox<'k>,
    mask: SignMask<'k>,
}

impl<'k> Dropout<'k> {
    fn new(warp: Warp<'k>, args: DropoutVals<'k>) -> Self {
        Dropout { philox: Philox::new(warp, &args), mask: SignMask::new(warp.threads(), &args), args }
    }
}

/// Everything the block keeps in shared memory.
struct Smem<'k> {
    /// The block's keys and values; in the end dk and dv on their way out.
    k: SmemAddr<'k>,
    v: SmemAddr<'k>,
    /// `tiles.step` rows of q, as many of dout, and their statistics.
    queries: CopyRing<'k>,
    /// p and ds of a step, their rows keys: read by the warps on the same keys, and ds by all warps for dq.
    p: Option<SmemAddr<'k>>,
    ds: Option<SmemAddr<'k>>,
    layout: TileLayout,
    ds_layout: TileLayout,
}

impl<'k> Smem<'k> {
    fn plan(cta: Cta<'k>, common: &Common, form: &PortableForm, sums: DqSums) -> Self {
        let (layout, ds_layout) = (TileLayout::new(common.operands.head_dim), TileLayout::new(form.step));
        let slot = 2 * layout.bytes(form.step) + form.step * STAT_BYTES;
        Smem {
            k: cta.smem("k", layout.bytes(form.rows()), 1024),
            v: cta.smem("v", layout.bytes(form.rows()), 1024),
            queries: cta.copy_ring("queries", form.slots, slot.next_multiple_of(1024)),
            p: (form.split > 1).then(|| cta.smem("p", ds_layout.bytes(form.rows()), 1024)),
            ds: (sums != DqSums::None || form.split > 1).then(|| {
                let places = if sums != DqSums::None && form.late_dq { 2 } else { 1 };
                cta.smem("ds", places * ds_layout.bytes(form.rows()), 1024)
            }),
            layout,
            ds_layout,
        }
    }
}

struct Keys<'a, 'k> {
    cta: Cta<'k>,
    common: &'a Common,
    form: &'a PortableForm,
    sums: DqSums,
    problem: ProblemVals<'k>,
    args: KeysVals<'k>,
    dropout: Option<Dropout<'k>>,
    smem: Smem<'k>,
    work: Work<'k>,
}

/// Where the walk over queries is: all steps of a head, then the next head of the group.
struct Cursor<'k> {
    first: Val<'k, U32>,
    end: Val<'k, U32>,
    step: Var<'k, U32>,
    /// Heads of the group that are done.
    member: Var<'k, U32>,
}

impl<'k> Cursor<'k> {
    fn new(t: Thread<'k>, first: Val<'k, U32>, end: Val<'k, U32>) -> Self {
        Cursor { first, end, step: first.var(), member: t.u32(0).var() }
    }

    fn advance(&self) {
        let next = self.step.get() + 1;
        let wraps = next.eq(self.end);
        self.step.set(wraps.select(self.first, next));
        self.member.set(self.member.get() + wraps.select(1u32, 0u32));
    }
}

/// The step whose dq is still to be added.
struct Behind<'k> {
    /// Its number among all (batch, head, step); `NO_STEP` before the first.
    tile: Var<'k, U32>,
    /// Where ds of the next step goes; that of the last is at the other place.
    place: Var<'k, U32>,
}

const NO_STEP: u32 = u32::MAX;

/// What a warp has at hand in every step.
struct Own<'a, 'k> {
    lanes: &'a Lanes<'k>,
    ds_lanes: &'a Lanes<'k>,
    /// The warp's part of the columns of a head.
    columns: &'a Lanes<'k>,
    /// Which of the warps on the same keys it is, and which keys these are.
    part: Val<'k, U32>,
    team: Val<'k, U32>,
    /// The warp's rows of k and v.
    k: SmemAddr<'k>,
    v: SmemAddr<'k>,
    /// The first of its keys: of its tile, and of the thread.
    first_key: Val<'k, U32>,
    row: Val<'k, U32>,
}

impl<'k> Keys<'_, 'k> {
    fn run(&self) {
        let Keys { cta, form, problem, .. } = self;
        let (warp, t) = (cta.warps(), cta.threads());
        let first_key = self.work.block * form.rows() - problem.column_shift;
        let kv = cta.copy_group(|| self.load_keys(first_key));
        let (first, end) = self.query_steps(first_key);
        let ahead = Cursor::new(t, first, end);
        let more = |cursor: &Cursor<'k>| cursor.member.get().lt(problem.group) & first.lt(end);
        self.fill(&ahead, more(&ahead));

        let (team, part) = match form.split {
            1 => (warp.index(), t.u32(0)),
            split => (warp.index() / split, warp.index().modulo(split)),
        };
        let row = team * (16 * form.row_tiles);
        let (lanes, ds_lanes) = (Lanes::new(warp, self.smem.layout), Lanes::new(warp, self.smem.ds_layout));
        let pieces = self.columns() / 16;
        let columns = (form.split > 1).then(|| Lanes::part(warp, self.smem.layout, part * pieces, pieces));
        let own = |tile: SmemAddr<'k>| tile.plus(row * self.smem.layout.row_bytes());
        let own = Own {
            lanes: &lanes,
            ds_lanes: &ds_lanes,
            columns: columns.as_ref().unwrap_or(&lanes),
            part,
            team,
            k: own(self.smem.k),
            v: own(self.smem.v),
            first_key,
            row,
        };
        let cleared = || -> Vec<Acc<'k>> {
            let acc: Vec<_> = (0..form.row_tiles).map(|_| warp.acc(self.columns())).collect();
            acc.iter().for_each(Acc::clear);
            acc
        };
        let (mut dk, mut dv) = (cleared(), cleared());
        kv.wait(*cta);
        let now = Cursor::new(t, first, end);
        let behind = Behind { tile: t.u32(NO_STEP).var(), place: t.u32(0).var() };
        cta.while_(
            || more(&now),
            |cta| {
                let queries = self.smem.queries.take(cta);
                ahead.advance();
                if form.slots > 1 {
                    self.fill(&ahead, more(&ahead));
                }
                self.add_dq_behind(&own, &behind);
                self.step(&own, queries.address(), &now, &behind, [&mut dk, &mut dv]);
                queries.release();
                if form.slots == 1 {
                    cta.sync();
                    self.fill(&ahead, more(&ahead));
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
    fn columns(&self) -> u32 {
        self.common.operands.head_dim / self.form.split
    }

    /// Queries of a step for which a warp makes s and dp.
    fn queries(&self) -> u32 {
        self.form.step / self.form.split
    }

    /// The steps of queries that see a key of the block.
    fn query_steps(&self, first_key: Val<'k, U32>) -> (Val<'k, U32>, Val<'k, U32>) {
        let Keys { problem, form, .. } = self;
        let end = problem.query_tiles(form.step);
        if !self.common.scores.causal {
            return (self.cta.threads().u32(0), end);
        }
        // Query i sees key j from i = j - (seqlen_k - seqlen_q) on.
        let first_key = first_key.cast::<S32>().max(0);
        let first_row = (first_key + problem.seqlen_q.cast::<S32>() - problem.seqlen_k.cast::<S32>()).max(0);
        let step = (first_row.cast::<U32>() + problem.row_shift) / form.step;
        (step.min(end), end)
    }

    fn stage(&self) -> ScoreStage<'k> {
        ScoreStage::new(&self.problem, self.common.scores)
    }

    fn tile_of(&self, rows: Rows<'k>, first: Val<'k, U32>, seqlen: Val<'k, U32>) -> TileRows<'k> {
        TileRows { rows, first, seqlen, head_dim: self.problem.head_dim }
    }

    fn load_keys(&self, first_key: Val<'k, U32>) {
        let t = self.cta.threads();
        let copy = TileCopy::new(t, self.common.rows(), t.index(), self.form.threads());
        let (k, v) = (self.args.k, self.args.v).map_heads(&self.work);
        let tile = |rows| self.tile_of(rows, first_key, self.work.sequence.seqlen_k);
        copy.load(self.smem.k, tile(k), self.form.rows());
        copy.load(self.smem.v, tile(v), self.form.rows());
    }

    /// Starts to bring a step of queries, if there is one.
    fn fill(&self, at: &Cursor<'k>, real: Val<'k, Pred>) {
        let Keys { cta, form, problem, work, .. } = self;
        let (ring, step) = (&self.smem.queries, form.step);
        let slot = ring.next_fill();
        let (m, head) = (at.step.get(), work.head * problem.group + at.member.get());
        ring.fill(*cta, || {
            cta.when(real, |cta| {
                let t = cta.threads();
                let copy = TileCopy::new(t, self.common.rows(), t.index(), form.threads());
                let tile = |rows| self.tile_of(rows, m * step - problem.row_shift, work.sequence.seqlen_q);
                copy.load(slot, tile(self.args.q.head(work.sequence, head)), step);
                let dout = slot.at(self.smem.layout.bytes(step));
                copy.load(dout, tile(self.args.dout.head(work.sequence, head)), step);
                // Two queries' statistics are 16 bytes.
                t.when(t.index().lt(step / 2), |t| {
                    let rows = StatRows::of(QueryHeads::of(problem, work.sequence).nth(head));
                    let from = rows.from(self.args.stats, m * step);
                    let own = t.index() * 16;
                    let to = slot.at(2 * self.smem.layout.bytes(step)).plus(own);
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
        let head = self.work.head * self.problem.group + at.member.get();

        let flags = self.dropout.as_ref().map(|dropout| self.draw(dropout, own, m, head));
        let s = self.product(own, own.k, q);
        s.iter().for_each(|s| self.stage().prepare(s));
        let dp = self.product(own, own.v, dout);
        self.probabilities(own, &s, &dp, slot.at(2 * smem.layout.bytes(form.step)), flags.as_deref());
        let hidden = Hidden::new(self, own, m);
        self.cta.when(hidden.any, |_| hidden.zero(&s, &dp));

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
        self.sum(own, dv, &p, smem.p, dout);
        self.sum(own, dk, &ds, ds_tile, q);
        let tile = QueryHeads::of(&self.problem, self.work.sequence).nth(head).first_dq_tile(form.step) + m;
        if self.is_late() {
            behind.tile.set(tile);
            behind.place.set(behind.place.get() ^ self.ds_bytes());
        } else if let Some(ds) = smem.ds.filter(|_| self.sums != DqSums::None) {
            self.cta.sync();
            self.add_dq(own, ds, tile);
        }
    }

    /// Whether dq is added, a step later.
    fn is_late(&self) -> bool {
        self.sums != DqSums::None && self.form.late_dq
    }

    /// Of ds of one step; a power of two.
    fn ds_bytes(&self) -> u32 {
        self.smem.ds_layout.bytes(self.form.rows())
    }

    /// acc += (own rows of p or ds) * (a step of queries): first this warp's queries, from registers, then those of the
    /// others on the same keys.
    fn sum(
        &self,
        own: &Own<'_, 'k>,
        acc: &mut [Acc<'k>],
        words: &[Vec<FragmentA<'k>>],
        shared: Option<SmemAddr<'k>>,
        queries: SmemAddr<'k>,
    ) {
        let (warp, half, split) = (self.cta.warps(), self.common.operands.half, self.form.split);
        let of_part = |part: Val<'k, U32>| {
            let first = part * self.smem.layout.bytes(self.queries());
            Operand { lanes: own.columns, tile: if split == 1 { queries } else { queries.plus(first) } }
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
    fn product(&self, own: &Own<'_, 'k>, rows: SmemAddr<'k>, queries: SmemAddr<'k>) -> Vec<Acc<'k>> {
        let warp = self.cta.warps();
        let mut acc: Vec<Acc<'k>> = (0..self.form.row_tiles).map(|_| warp.acc(self.queries())).collect();
        acc.iter().for_each(Acc::clear);
        let queries = match self.form.split {
            1 => queries,
            _ => queries.plus(own.part * self.smem.layout.bytes(self.queries())),
        };
        let queries = Operand { lanes: own.lanes, tile: queries };
        let rows = Operand { lanes: own.lanes, tile: rows };
        let a = |i: usize, k16: u32| rows.a(warp, 16 * i as u32, k16);
        mma_abt(warp, &mut acc, self.common.operands.head_dim, self.common.operands.half, a, queries);
        acc
    }

    /// s becomes p, its sign bit saying what is dropped; dp becomes ds.
    fn probabilities(
        &self,
        own: &Own<'_, 'k>,
        s: &[Acc<'k>],
        dp: &[Acc<'k>],
        stats: SmemAddr<'k>,
        flags: Option<&[Flags<'k>]>,
    ) {
        let (t, stage) = (self.cta.threads(), self.stage());
        for group in 0..s[0].groups() {
            let first = stats.plus(own.part * (self.queries() * STAT_BYTES));
            let of = |first| statistics::of_columns(t, first, group as u32);
            let (negative_lse, delta) = (of(first), of(first.at(statistics::DELTA)));
            for (i, s) in s.iter().enumerate() {
                for register in 0..4 {
                    let (h, x) = (register / 2, register % 2);
                    let cell = s.at(group, register);
                    let p = stage.weight(cell.get(), negative_lse[x]);
                    let p = match flags {
                        Some(flags) => SignMask::sign(p, flags[i][group / 2][h], (2 * x + group % 2) as u32),
                        None => p,
                    };
                    cell.set(p);
                    score_gradient(&dp[i].at(group, register), p, delta[x], flags.is_some());
                }
            }
        }
    }

    /// The flags of this warp's keys and a step of queries.
    fn draw(
        &self,
        dropout: &Dropout<'k>,
        own: &Own<'_, 'k>,
        m: Val<'k, U32>,
        head: Val<'k, U32>,
    ) -> Vec<Flags<'k>> {
        let (warp, t, form) = (self.cta.warps(), self.cta.threads(), self.form);
        let Dropout { args, philox, mask } = dropout;
        let philox = philox.stream(t, self.work.sequence, head);
        let rows16 = self.queries() / 16;
        let row16 = args.first_row16 + m * (form.step / 16) + own.part * rows16;
        let column32 = args.first_column32 + ((self.work.block * form.rows() + own.row) >> 5u32);
        let transposed = |words: [Val<'k, B32>; 2]| words.map(|word| mask.transposed(warp, word));
        if form.row_tiles.is_multiple_of(2) {
            // Two tiles of 16 keys are the two halves of a block of 32 columns.
            let mut flags: Vec<Flags<'k>> = vec![vec![]; form.row_tiles as usize];
            for (pair, r) in (0..form.row_tiles / 2).flat_map(|pair| (0..rows16).map(move |r| (pair, r))) {
                let [a, b, c, d] = philox.block(row16 + r, column32 + pair);
                flags[2 * pair as usize].push(transposed([a, b]));
                flags[2 * pair as usize + 1].push(transposed([c, d]));
            }
            return flags;
        }
        assert_eq!(form.row_tiles, 1, "one tile of 16 keys a warp, or pairs");
        let right = (own.row & 16).ne(0);
        let of_row = |r: u32| {
            let [a, b, c, d] = philox.block(row16 + r, column32);
            transposed([right.select(c, a), right.select(d, b)])
        };
        vec![(0..rows16).map(of_row).collect()]
    }

    /// Adds dq of the step before, if there was one. The block has met since its ds was written.
    fn add_dq_behind(&self, own: &Own<'_, 'k>, behind: &Behind<'k>) {
        let Some(ds) = self.smem.ds.filter(|_| self.is_late()) else { return };
        let tile = behind.tile.get();
        self.cta.when(tile.ne(NO_STEP), |_| {
            self.add_dq(own, ds.plus(behind.place.get() ^ self.ds_bytes()), tile);
        });
    }

    /// dq += ds k: each warp takes some rows and some columns, over all keys of the block.
    fn add_dq(&self, own: &Own<'_, 'k>, ds: SmemAddr<'k>, tile: Val<'k, U32>) {
        let (warp, t, form, layout) = (self.cta.warps(), self.cta.threads(), self.form, self.smem.layout);
        let share = DqShare::new(form, self.common.operands.head_dim);
        let sums =
            SumsTile::new(t, self.args.dq_sums, tile, [form.step, self.common.operands.head_dim], self.sums);
        let index = warp.index();
        let (part, column) = (index.modulo(share.row_parts), index / share.row_parts);
        let row_tile = |i: u32| part * share.row_tiles + i;
        let rows: Vec<SmemAddr<'k>> =
            (0..share.row_tiles).map(|i| own.ds_lanes.a_column(warp, ds, row_tile(i))).collect();
        for piece in 0..share.pieces {
            let col16 = column + piece * share.column_parts;
            let add = |warp: Warp<'k>| {
                let k = own.lanes.b_column(warp, self.smem.k, col16);
                let mut acc: Vec<Acc<'k>> = rows.iter().map(|_| warp.acc(16)).collect();
                acc.iter().for_each(Acc::clear);
                for key in (0..form.rows()).step_by(16) {
                    let b = warp.load_matrices_at(k.at(layout.bytes(key)), true);
                    for (acc, rows) in acc.iter_mut().zip(&rows) {
                        let a = warp.load_matrices_at(rows.at(self.smem.ds_layout.bytes(key)), true);
                        warp.mma(acc, 0, a, [b[0], b[1]], self.common.operands.half);
                        warp.mma(acc, 1, a, [b[2], b[3]], self.common.operands.half);
                    }
                }
                for (i, group) in (0..share.row_tiles).flat_map(|i| [(i, 0), (i, 1)]) {
                    let place = sums.place(row_tile(i), col16 * 2 + group);
                    let values = [0, 1, 2, 3].map(|r| acc[i as usize].at(group as usize, r).get());
                    sums.add(t, place, values);
                }
            };
            if share.is_even {
                add(warp);
            } else {
                warp.when(col16.lt(self.common.operands.head_dim / 16), add);
            }
        }
    }

    /// Scales and writes dk and dv.
    fn finish(&self, own: &Own<'_, 'k>, dk: &[Acc<'k>], dv: &[Acc<'k>]) {
        let (warp, t) = (self.cta.warps(), self.cta.threads());
        let keep_scale = self.dropout.as_ref().map_or(t.f32(1.0), |d| d.args.keep_scale);
        let (dk_rows, dv_rows) = (self.args.dk, self.args.dv).map_heads(&self.work);
        let columns = self.columns();
        let copy = TileCopy::new(t, self.common.rows(), t.lane(), 32);
        let copy = copy.of_columns(t.lane(), 32, columns, own.part * columns);
        // The warps on the same keys divide their rows of the tile among them.
        let share = own.part * TileLayout::new(columns).bytes(16 * self.form.row_tiles);
        let targets =
            [(dk, dk_rows, own.k, self.problem.scale * keep_scale), (dv, dv_rows, own.v, keep_scale)];
        for (acc, rows, staging, factor) in targets {
            acc.iter().for_each(|acc| scale_rows(acc, [factor, factor]));
            let target = self.tile_of(rows, own.first_key + own.row, self.work.sequence.seqlen_k);
            store_rows(warp, acc, self.common.operands.half, staging.plus(share), &copy, target);
        }
    }
}

/// For each 16 queries: flags of keys g and g + 8 of a tile.
type Flags<'k> = Vec<[Val<'k, B32>; 2]>;

/// How the warps share a step's dq out.
struct DqShare {
    /// Tiles of 16 rows that a warp takes.
    row_tiles: u32,
    row_parts: u32,
    /// Warps side by side; each takes every so-many-th piece of 16 columns.
    column_parts: u32,
    pieces: u32,
    is_even: bool,
}

impl DqShare {
    fn new(form: &PortableForm, head_dim: u32) -> Self {
        let row_tiles = if form.step >= 32 { 2 } else { 1 };
        let row_parts = form.step / 16 / row_tiles;
        assert!(form.warps.is_multiple_of(row_parts), "{} warps for {row_parts} parts of rows", form.warps);
        let (column_parts, columns) = (form.warps / row_parts, head_dim / 16);
        let pieces = columns.div_ceil(column_parts);
        DqShare { row_tiles, row_parts, column_parts, pieces, is_even: columns.is_multiple_of(column_parts) }
    }
}

/// Which entries of a step are hidden: beyond the keys, or by the causal mask.
struct Hidden<'k> {
    any: Val<'k, Pred>,
    /// For each of the thread's keys, the first column of an accumulator (from the thread's first) that sees it.
    seen_from: Vec<[Val<'k, S32>; 2]>,
}

impl<'k> Hidden<'k> {
    fn new(keys: &Keys<'_, 'k>, own: &Own<'_, 'k>, m: Val<'k, U32>) -> Self {
        let (t, problem, form) = (keys.cta.threads(), &keys.problem, keys.form);
        let causal = keys.common.scores.causal;
        let first_row = m * form.step - problem.row_shift;
        let behind = own.first_key + form.rows();
        let beyond =
            problem.seqlen_k.cast::<S32>().lt(behind.cast::<S32>()) | own.first_key.cast::<S32>().lt(0);
        let fewest = problem.visible(first_row, causal);
        let own_row = first_row + own.part * keys.queries() + (t.lane() & 3) * 2;
        let seen_from = |i: u32, h: u32| {
            let key = own.first_key + own.row + (t.lane() >> 2) + (16 * i + 8 * h);
            let from = match causal {
                true => (key + problem.seqlen_q - problem.seqlen_k - own_row).cast::<S32>(),
                false => t.u32(0).cast(),
            };
            key.lt(problem.seqlen_k).select(from, t.u32(i32::MAX as u32).cast())
        };
        Hidden {
            any: beyond | fewest.cast::<S32>().lt(behind.cast::<S32>()),
            seen_from: (0..form.row_tiles).map(|i| [seen_from(i, 0), seen_from(i, 1)]).collect(),
        }
    }

    /// Zeroes what is hidden, whatever it became.
    fn zero(&self, s: &[Acc<'k>], dp: &[Acc<'k>]) {
        for (i, from) in self.seen_from.iter().enumerate() {
            for (group, register) in (0..s[i].groups()).flat_map(|group| (0..4).map(move |r| (group, r))) {
                let column = (8 * group + register % 2) as i32;
                let hidden = from[register / 2].le(column);
                for acc in [&s[i], &dp[i]] {
                    let cell = acc.at(group, register);
                    cell.set(hidden.select(cell.get(), 0.0f32));
                }
            }
        }
    }
}

/// Key heads of two tensors.
trait MapHeads<'k> {
    fn map_heads(self, work: &Work<'k>) -> (Rows<'k>, Rows<'k>);
}

impl<'k> MapHeads<'k> for (crate::parts::args::TensorVals<'k>, crate::parts::args::TensorVals<'k>) {
    fn map_heads(self, work: &Work<'k>) -> (Rows<'k>, Rows<'k>) {
        (self.0.head(work.sequence, work.head), self.1.head(work.sequence, work.head))
    }
}
