//! Forward: out and lse. Blocks own query rows and walk over the keys.
//!
//! ```text
//! q -> smem                         once, each warp its own 16 * row_tiles rows of it
//! k, v -> ring of `slots` tiles     a step ahead of the products
//! every warp, every step:           s = q k^T  ->  hide, exp2  ->  round, drop  ->  out += p v
//! ```
//! s and out are f32 in registers, p is 16-bit in registers: an accumulator of s is an operand of p v as it is. A
//! step costs one barrier. Random bytes come in the order of the accumulator, so a dropped p becomes 0 by one `and`
//! with its neighbour, after rounding. The sum of a row counts what is dropped; 1 / sum and the keep scale are
//! applied at the end.
//!
//! Grid: query tiles x heads x batches, along x. Block: 32 * warps threads.
use super::query_block::QueryBlock;
use crate::config::{Common, HeadDims, PortableForm, Stored};
use crate::packed::PackedVals;
use crate::parts::args::{DeviceTensor, DropoutVals, ProblemVals, kernel_args};
use crate::parts::copy::TileRows;
use crate::parts::dropout::{PackedKeep, Philox, Stream};
use crate::parts::epilogue::{Before, store_rows, store_wide};
use crate::parts::hiding::{SeenKeys, first_column, hide_keys};
use crate::parts::overlays::{ByQueries, OverlayVals, dynamic};
use crate::parts::product::{FragmentA, Lanes, Operand, mma_ab, mma_abt, pack};
use crate::parts::scores::{HeadScores, ScoreVals};
use crate::parts::sinks::SinksVals;
use crate::parts::softmax::{OnlineSoftmax, RowResult, THREAD_ROWS, scale_rows};
use crate::parts::width::Widths;
use crate::parts::work::Work;
use crate::rows::head::QueryHeads;
use crate::rows::lse::LseRows;
use signflash_ptx::{
    Acc, B32, Builder, CopyRing, Cta, F32, Kernel, LaunchBounds, SmemAddr, TileLayout, U32, Val, Warp,
};

kernel_args! {
    /// Arguments of the forward, in the order of the kernel's parameters.
    ForwardArgs / ForwardVals {
        /// Queries.
        q: DeviceTensor,
        /// Keys.
        k: DeviceTensor,
        /// Values.
        v: DeviceTensor,
        /// Output.
        out: DeviceTensor,
        /// (batch, num_heads, seqlen_q) f32, dense.
        lse: u64,
    }
}

/// Bytes of shared memory that a block of a form asks for.
pub(crate) fn smem_bytes(dims: HeadDims, form: &PortableForm) -> u32 {
    2 * (dims.max() * form.rows() + dims.sum() * form.slots * form.step)
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &Common, form: &PortableForm) -> Kernel {
    let bounds = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: form.blocks_per_sm };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let packed = common.operands.layout.is_packed().then(|| PackedVals::declare(cta));
        let args = ForwardVals::declare(cta);
        let widths = Widths::declare(cta, &problem, common);
        let scores = ScoreVals::declare(cta, &common.scores);
        let sinks = common.scores.sinks.then(|| SinksVals::declare(cta));
        let dropout = common.scores.dropout.then(|| DropoutVals::declare(cta));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let smem = Smem::plan(cta, common, form);
        let block =
            QueryBlock::locate(cta, common, form, (problem, widths), packed.as_ref(), (scores, overlays));
        Forward { block, args, sinks, smem }.run(dropout);
    })
}

/// Everything the block keeps in shared memory.
struct Smem<'k> {
    /// `form.rows()` rows; each warp reads its own, and in the end, when all have, leaves rows of output there.
    q: SmemAddr<'k>,
    /// `form.step` rows of k, then as many of v.
    kv: CopyRing<'k>,
    layout: TileLayout,
    layout_v: TileLayout,
}

impl<'k> Smem<'k> {
    fn plan(cta: Cta<'k>, common: &Common, form: &PortableForm) -> Self {
        let [layout, layout_v] = common.operands.dims().map(TileLayout::new);
        let bytes = |rows| [layout, layout_v].map(|layout| layout.bytes(rows));
        let ([q, out], [k, v]) = (bytes(form.rows()), bytes(form.step));
        Smem {
            q: cta.smem("q", q.max(out), 1024),
            kv: cta.copy_ring("kv", form.slots, k + v),
            layout,
            layout_v,
        }
    }
}

struct Forward<'a, 'k> {
    block: QueryBlock<'a, 'k>,
    args: ForwardVals<'k>,
    sinks: Option<SinksVals<'k>>,
    smem: Smem<'k>,
}

impl<'k> Forward<'_, 'k> {
    fn run(&self, dropout: Option<DropoutVals<'k>>) {
        let QueryBlock { cta, form, problem, .. } = &self.block;
        let warp = cta.warps();
        let first_row = self.block.first_row();
        let keys = self.block.sight().key_tiles(first_row, form.rows(), form.step);
        let kv = self.block.key_values(&self.smem.kv, [&self.args.k, &self.args.v], &keys);
        let of_q = (self.smem.q, &self.args.q, self.block.widths.q);
        let q = cta.copy_group(|| self.block.load_queries([of_q], first_row));
        kv.fill(keys.begin.unsigned());

        // This warp's rows and what they need throughout.
        let own_row = warp.index() * (16 * form.row_tiles);
        let own_q = self.smem.q.plus(own_row * self.smem.layout.row_bytes());
        // q and v are read in the same order: one set of addresses serves both if they are equally wide.
        let lanes = Lanes::new(warp, self.smem.layout).with_a_at(own_q);
        let lanes_v = (self.smem.layout_v != self.smem.layout).then(|| Lanes::new(warp, self.smem.layout_v));
        let rows = Rows16::new(self, first_row + own_row);
        let drops = dropout.as_ref().map(|args| Drops::new(self, args, first_row + own_row));
        let mut out: Vec<Acc<'k>> =
            (0..form.row_tiles).map(|_| warp.acc(self.block.common.operands.dims().v)).collect();
        out.iter().for_each(Acc::clear);
        q.wait(*cta);
        let q = QueryFragments::new(warp, self, &lanes, own_q.relative_to(own_q));

        let n = keys.begin.unsigned().var();
        cta.while_(
            || n.get().lt(keys.end),
            |cta| {
                let tile = n.get();
                let slot = self.smem.kv.take(cta);
                kv.fill(tile + 1);
                let mut s = self.products(warp, &q, Operand { lanes: &lanes, tile: slot.address() });
                rows.prepare(&s, tile);
                cta.when(keys.is_edge(tile), |_| {
                    rows.hide(&s, tile * form.step - problem.column_shift);
                });
                let mut p = Vec::new();
                for (i, s) in s.iter_mut().enumerate() {
                    rows.softmax[i].step(s, &out[i]);
                    p.push(pack(s, self.block.common.operands.half, false));
                    if let Some(drops) = &drops {
                        drops.drop(&mut p[i], &drops.draw(tile, i as u32));
                    }
                }
                let v_tile = slot.address().at(self.smem.layout.bytes(form.step));
                let v = match &lanes_v {
                    None => Operand { lanes: &lanes, tile: v_tile.relative_to(own_q) },
                    Some(lanes) => Operand { lanes, tile: v_tile },
                };
                let a = |i: usize, k16: u32| p[i][k16 as usize];
                mma_ab(warp, &mut out, form.step, self.block.common.operands.half, a, v);
                slot.release();
                n.set(tile + 1);
            },
        );
        self.smem.kv.take(*cta).release(); // the last fill: of nothing; and all warps have read their queries
        let staging = match lanes_v {
            None => own_q,
            Some(_) => self.smem.q.plus(own_row * self.smem.layout_v.row_bytes()),
        };
        self.finish(&rows, &out, staging, first_row + own_row, dropout.map(|d| d.keep_scale));
    }

    /// s = q k^T of this warp's rows and a tile of keys.
    fn products(&self, warp: Warp<'k>, q: &QueryFragments<'_, 'k>, k: Operand<'_, 'k>) -> Vec<Acc<'k>> {
        let mut s: Vec<Acc<'k>> =
            (0..self.block.form.row_tiles).map(|_| warp.acc(self.block.form.step)).collect();
        s.iter().for_each(Acc::clear);
        mma_abt(
            warp,
            &mut s,
            self.block.common.operands.head_dim,
            self.block.common.operands.half,
            |i, k16| q.get(warp, i, k16),
            k,
        );
        s
    }

    /// Normalises and writes out and lse.
    fn finish(
        &self,
        rows: &Rows16<'_, 'k>,
        out: &[Acc<'k>],
        staging: SmemAddr<'k>,
        first_row: Val<'k, U32>,
        keep_scale: Option<Val<'k, F32>>,
    ) {
        let (warp, t) = (self.block.cta.warps(), self.block.cta.threads());
        let Work { sequence, head, .. } = self.block.work;
        let sink = self.sinks.map(|sinks| sinks.of_head(t, sequence, head));
        let mut before = vec![];
        for (i, out) in out.iter().enumerate() {
            let (RowResult { inverse, lse }, of_others) =
                self.with_others(rows.softmax[i].finish(sink), || first_row + 16 * i as u32);
            before.push(of_others);
            scale_rows(out, inverse.map(|inverse| keep_scale.map_or(inverse, |scale| inverse * scale)));
            let to = LseRows::of(
                QueryHeads::of(&self.block.problem, self.block.work.sequence).nth(self.block.work.head),
            );
            for (lower, lse) in lse.into_iter().enumerate() {
                let row = first_row + (t.lane() >> 2) + (16 * i + 8 * lower) as u32;
                to.store(t, self.args.lse, row, lse);
            }
        }
        let width = self.block.widths.v;
        let target = self.block.queries_of(&self.args.out, width, first_row);
        let copy = width.copy(t, t.lane(), 32);
        let operands = self.block.common.operands;
        if !operands.stored.is_wide() {
            return store_rows(warp, out, operands, staging, &copy, target);
        }
        for (tile, (out, before)) in (0..).zip(out.iter().zip(before)) {
            let first = target.first + 16 * tile;
            store_wide(warp, out, (copy.access, copy.first_col), TileRows { first, ..target }, before);
        }
    }

    /// The result of 16 rows, together with that of other keys where it is added to it.
    fn with_others(
        &self,
        own: RowResult<'k>,
        first_row: impl FnOnce() -> Val<'k, U32>,
    ) -> (RowResult<'k>, Before<'k>) {
        if self.block.common.operands.stored != Stored::Added {
            return (own, Before::Nothing);
        }
        let (warp, Work { sequence, head, .. }) = (self.block.cta.warps(), self.block.work);
        let first_row = first_row();
        let rows = [0, 8].map(|lower| first_row + (warp.threads().lane() >> 2) + lower);
        let lse = LseRows::of(QueryHeads::of(&self.block.problem, sequence).nth(head));
        lse.with_others(warp, self.args.lse, rows, own)
    }
}

/// This warp's part of q: in registers for the whole walk, or read from shared memory whenever it is needed.
struct QueryFragments<'a, 'k> {
    operand: Operand<'a, 'k>,
    kept: Vec<Vec<FragmentA<'k>>>,
}

impl<'a, 'k> QueryFragments<'a, 'k> {
    fn new(warp: Warp<'k>, forward: &Forward<'_, 'k>, lanes: &'a Lanes<'k>, tile: SmemAddr<'k>) -> Self {
        let operand = Operand { lanes, tile };
        let pieces = |i: u32| {
            (0..forward.block.common.operands.head_dim / 16).map(|k16| operand.a(warp, 16 * i, k16)).collect()
        };
        let row_tiles = if forward.block.form.in_registers { forward.block.form.row_tiles } else { 0 };
        QueryFragments { operand, kept: (0..row_tiles).map(pieces).collect() }
    }

    fn get(&self, warp: Warp<'k>, tile: usize, k16: u32) -> FragmentA<'k> {
        match self.kept.get(tile) {
            Some(pieces) => pieces[k16 as usize],
            None => self.operand.a(warp, 16 * tile as u32, k16),
        }
    }
}

/// What a warp knows of its rows, 16 at a time.
struct Rows16<'a, 'k> {
    forward: &'a Forward<'a, 'k>,
    softmax: Vec<OnlineSoftmax<'k>>,
    overlays: Vec<Option<ByQueries<'k>>>,
    scores: HeadScores<'k>,
    first: Val<'k, U32>,
}

impl<'a, 'k> Rows16<'a, 'k> {
    fn new(forward: &'a Forward<'a, 'k>, first: Val<'k, U32>) -> Self {
        let softmax = |_| OnlineSoftmax::new(forward.block.cta.warps(), forward.block.stage());
        let row_tiles = 0..forward.block.form.row_tiles;
        let overlays = row_tiles.clone().map(|i| forward.block.overlays_of(|| first + 16 * i)).collect();
        let scores = forward.block.head_scores();
        Rows16 { forward, softmax: row_tiles.map(softmax).collect(), overlays, scores, first }
    }

    /// Products become scores.
    fn prepare(&self, s: &[Acc<'k>], tile: Val<'k, U32>) {
        let block = &self.forward.block;
        for ((i, s), overlays) in (0..).zip(s).zip(&self.overlays) {
            let read = block.read(overlays.as_ref(), tile);
            let place = || block.place(self.first + 16 * i, tile);
            self.scores.prepare(block.cta.warps(), s, place, dynamic(&read));
        }
    }

    /// Few tiles need this: what rows see is derived anew, not kept in registers.
    fn hide(&self, s: &[Acc<'k>], first_key: Val<'k, U32>) {
        let (t, sight) = (self.forward.block.cta.threads(), self.forward.block.sight());
        for (i, s) in s.iter().enumerate() {
            let seen: [_; THREAD_ROWS] = std::array::from_fn(|lower| {
                let row = self.first + (t.lane() >> 2) + (16 * i + 8 * lower) as u32;
                SeenKeys::of(&sight, row)
            });
            hide_keys(s, &seen, first_key + first_column(t), f32::NEG_INFINITY);
        }
    }
}

/// Random words of a step, for 16 rows: four for every 32 columns.
type Drawn<'k> = Vec<[Val<'k, B32>; 4]>;

/// Dropout of a warp's rows.
struct Drops<'k> {
    stream: Stream<'k>,
    packed: PackedKeep<'k>,
    row16: Val<'k, U32>,
    column32: Val<'k, U32>,
    columns32: u32,
}

impl<'k> Drops<'k> {
    fn new(forward: &Forward<'_, 'k>, args: &DropoutVals<'k>, first_row: Val<'k, U32>) -> Self {
        let (warp, t, work) = (forward.block.cta.warps(), forward.block.cta.threads(), &forward.block.work);
        assert!(forward.block.form.step.is_multiple_of(32), "random words come for 32 columns at once");
        Drops {
            stream: Philox::new(warp, args).stream(t, work.sequence, work.head),
            packed: PackedKeep::new(args),
            row16: args.first_row16 + ((first_row + forward.block.problem.row_shift) >> 4u32),
            column32: args.first_column32,
            columns32: forward.block.form.step / 32,
        }
    }

    /// The words of 16 rows, drawn where they are needed: earlier they would occupy registers during the products.
    fn draw(&self, tile: Val<'k, U32>, row_tile: u32) -> Drawn<'k> {
        let first = self.column32 + tile * self.columns32;
        (0..self.columns32).map(|j| self.stream.block(self.row16 + row_tile, first + j)).collect()
    }

    /// Makes dropped probabilities zero.
    fn drop(&self, p: &mut [FragmentA<'k>], drawn: &Drawn<'k>) {
        for (k16, fragment) in p.iter_mut().enumerate() {
            for (register, p) in fragment.iter_mut().enumerate() {
                let word = drawn[k16 / 2][2 * (k16 % 2) + register / 2];
                *p = *p & self.packed.keep(word, register % 2 == 1);
            }
        }
    }
}
