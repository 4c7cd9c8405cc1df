//! The gradient of a bias: blocks own tiles of it and walk over the heads of the sequences that share it.
//!
//! ```text
//! q, dout, k, v -> ring             a tile of queries and one of keys of a head; the next one's ahead of the products
//! every warp, every step:
//!   s = q k^T    dp = dout v^T    p = exp2(s - lse), its sign bit: dropped
//!   dbias += |p| * (dp where kept - delta)
//! ```
//! s and dp are computed once more, so that dbias is summed up in registers, in one order, whatever is shared: between
//! sequences, between heads, and if all queries have the same bias between tiles of queries, too.
//!
//! Grid: tiles of keys x tiles of queries x heads x batches of the bias, along x. Block: 32 * warps threads.
mod results;
mod rows;
mod walk;

use crate::config::{Common, DbiasKernel, HeadDims, PortableForm};
use crate::packed::matrices::MatricesVals;
use crate::parts::args::{DeviceTensor, DropoutVals, ProblemVals, ScoreTensor, kernel_args};
use crate::parts::dropout::{DropSigns, Philox};
use crate::parts::overlays::{ByQueries, OverlayVals};
use crate::parts::product::{Lanes, Operand, mma_abt};
use crate::parts::scores::ScoreVals;
use crate::parts::width::Widths;
pub(crate) use results::Results;
pub(crate) use rows::GradientsOf;
use signflash_ptx::{Acc, Builder, CopyRing, Cta, F32, Kernel, LaunchBounds, SmemAddr, TileLayout, U32, Val};
pub(crate) use walk::{At, Ground, Own, Walk};

kernel_args! {
    /// Operands of the pass over tiles of a bias.
    OperandArgs / OperandVals {
        /// Queries.
        q: DeviceTensor,
        /// Keys.
        k: DeviceTensor,
        /// Values.
        v: DeviceTensor,
        /// Gradient of the output.
        dout: DeviceTensor,
    }
}

kernel_args! {
    /// What else such a pass is told, Hopper's own as well.
    DbiasArgs / DbiasVals {
        /// Of `rows/statistics.rs`.
        stats: u64,
        /// Written.
        dbias: ScoreTensor,
        /// Sequences.
        sequence_count: u32,
        /// Of the bias: 1, or as many as there are sequences.
        bias_batches: u32,
        /// Of the bias: 1, or as many as there are heads.
        bias_heads: u32,
        /// What delta is multiplied by, so that it is divided by the keep scale.
        delta_scale: f32,
    }
}

/// Bytes of shared memory that a block of a form asks for, at most.
pub(crate) fn smem_bytes(dims: HeadDims, form: &PortableForm) -> u32 {
    form.slots * 2 * dims.sum() * (form.rows() + form.step) + 4 * form.warps * form.step
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, DbiasKernel { common, form, pairs }: &DbiasKernel) -> Kernel {
    let bounds = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: form.blocks_per_sm };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let packed = common.operands.layout.is_packed().then(|| MatricesVals::declare(cta));
        let inputs = OperandVals::declare(cta);
        let args = DbiasVals::declare(cta);
        let widths = Widths::declare(cta, &problem, common);
        let scores = ScoreVals::declare(cta, &common.scores);
        let dropout = common.scores.dropout.then(|| DropoutVals::declare(cta));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let overlays = overlays.expect("a bias");
        let slot = 2 * common.operands.dims().sum() * (form.rows() + form.step);
        let ring = cta.copy_ring("tiles", form.slots, slot);
        let own = Own::locate(cta, [form.rows(), form.step], per_key(common), &problem, &args);
        let block = Block {
            cta,
            common,
            form,
            problem,
            widths,
            packed,
            inputs,
            args,
            scores,
            dropout,
            overlays,
            ring,
            own,
        };
        block.run(*pairs);
    })
}

struct Block<'a, 'k> {
    cta: Cta<'k>,
    common: &'a Common,
    form: &'a PortableForm,
    problem: ProblemVals<'k>,
    widths: Widths<'k>,
    packed: Option<MatricesVals<'k>>,
    inputs: OperandVals<'k>,
    args: DbiasVals<'k>,
    scores: ScoreVals<'k>,
    dropout: Option<DropoutVals<'k>>,
    overlays: OverlayVals<'k>,
    /// `form.rows()` rows of q, `form.step` rows of k, as many rows of dout and of v.
    ring: CopyRing<'k>,
    own: Own<'k>,
}

/// What a warp has at hand in every step.
struct WarpTools<'k> {
    /// Its ways to read q and k, and dout and v, if these have other columns.
    lanes: Lanes<'k>,
    lanes_v: Option<Lanes<'k>>,
    /// The first of its rows, in its block's tile.
    row: Val<'k, U32>,
    dropout: Option<(Philox<'k>, DropSigns<'k>)>,
}

/// Where a step's tiles are in shared memory.
struct Tiles<'k> {
    q: SmemAddr<'k>,
    dout: SmemAddr<'k>,
    k: SmemAddr<'k>,
    v: SmemAddr<'k>,
}

impl<'k> Block<'_, 'k> {
    fn run(&self, pairs: bool) {
        let (cta, form) = (self.cta, self.form);
        let (warp, t) = (cta.warps(), cta.threads());
        let ground = self.ground();
        let ahead = Walk::new(&ground);
        self.fill(&ahead);
        let tools = WarpTools {
            lanes: Lanes::new(warp, self.widths.q.layout()),
            lanes_v: self.common.operands.head_dim_v.map(|_| Lanes::new(warp, self.widths.v.layout())),
            row: warp.index() * (16 * form.row_tiles),
            dropout: self.dropout.as_ref().map(|args| (Philox::new(warp, args), DropSigns::new(t, args))),
        };
        let sums: Vec<Acc<'k>> = (0..form.row_tiles).map(|_| warp.acc(form.step)).collect();
        sums.iter().for_each(Acc::clear);
        let now = Walk::new(&ground);
        cta.while_(
            || now.more(&ground),
            |cta| {
                let slot = self.ring.take(cta);
                ahead.advance(&ground);
                if form.slots > 1 {
                    self.fill(&ahead);
                }
                let at = now.at(&ground);
                cta.when(at.seen, |_| self.step(&tools, slot.address(), &at, &sums));
                slot.release();
                if form.slots == 1 {
                    cta.sync();
                    self.fill(&ahead);
                }
                now.advance(&ground);
            },
        );
        self.ring.take(cta).release(); // the last fill: of nothing
        self.write(&tools, &sums, pairs);
    }

    fn ground(&self) -> Ground<'_, 'k> {
        let Block { cta, problem, packed, overlays, own, form, .. } = self;
        let (packed, band) = (packed.as_ref(), self.scores.band);
        Ground { cta: *cta, problem, packed, overlays, own, band, rows: form.rows(), step: form.step }
    }

    fn tiles(&self, slot: SmemAddr<'k>) -> Tiles<'k> {
        let (of_q, of_v, form) = (self.widths.q.layout(), self.widths.v.layout(), self.form);
        let k = slot.at(of_q.bytes(form.rows()));
        let dout = k.at(of_q.bytes(form.step));
        Tiles { q: slot, k, dout, v: dout.at(of_v.bytes(form.rows())) }
    }

    /// Starts to bring a step's tiles, if there is one and anything of it is seen.
    fn fill(&self, walk: &Walk<'k>) {
        let Block { cta, inputs, form, .. } = self;
        let ground = self.ground();
        let slot = self.ring.next_fill();
        self.ring.fill(*cta, || {
            cta.when(walk.more(&ground), |cta| {
                let at = walk.at(&ground);
                cta.when(at.seen, |cta| {
                    let t = cta.threads();
                    let [copy, copy_v] = self.widths.copies(t, t.index(), form.threads());
                    let (Tiles { q, dout, k, v }, Widths { q: of_q, v: of_v }) =
                        (self.tiles(slot), self.widths);
                    let (seqlen_q, seqlen_k) = (at.sequence.seqlen_q, at.sequence.seqlen_k);
                    for (to, tensor, copy, width) in
                        [(q, inputs.q, copy, of_q), (dout, inputs.dout, copy_v, of_v)]
                    {
                        let rows = tensor.head(at.sequence.queries(), at.head);
                        copy.load(to, width.tile(rows, at.first_row, seqlen_q), form.rows());
                    }
                    for (to, tensor, copy, width) in [(k, inputs.k, copy, of_q), (v, inputs.v, copy_v, of_v)]
                    {
                        let rows = tensor.head(at.sequence.keys(), at.head / self.problem.group_size);
                        copy.load(to, width.tile(rows, self.own.first_key, seqlen_k), form.step);
                    }
                });
            });
        });
    }

    fn step(&self, tools: &WarpTools<'k>, slot: SmemAddr<'k>, at: &At<'k>, sums: &[Acc<'k>]) {
        let Tiles { q, dout, k, v } = self.tiles(slot);
        let dims = self.common.operands.dims();
        let lanes_v = tools.lanes_v.as_ref().unwrap_or(&tools.lanes);
        let own = |tile: SmemAddr<'k>, layout: TileLayout| tile.plus(tools.row * layout.row_bytes());
        let s = self.product(&tools.lanes, [own(q, self.widths.q.layout()), k], dims.q);
        let dp = self.product(lanes_v, [own(dout, self.widths.v.layout()), v], dims.v);
        for (i, (s, dp)) in (0..).zip(s.iter().zip(&dp)) {
            self.gradients(tools, at, i, s, dp);
            for (group, register) in (0..dp.groups()).flat_map(|group| (0..4).map(move |r| (group, r))) {
                let sum = sums[i as usize].at(group, register);
                sum.set(sum.get() + dp.at(group, register).get());
            }
        }
    }

    /// rows * columns^T.
    fn product(&self, lanes: &Lanes<'k>, [rows, columns]: [SmemAddr<'k>; 2], depth: u32) -> Vec<Acc<'k>> {
        let (warp, half) = (self.cta.warps(), self.common.operands.half);
        let mut acc: Vec<Acc<'k>> = (0..self.form.row_tiles).map(|_| warp.acc(self.form.step)).collect();
        acc.iter().for_each(Acc::clear);
        let operand = |tile| Operand { lanes, tile };
        let a = |i: usize, k16: u32| operand(rows).a(warp, 16 * i as u32, k16);
        mma_abt(warp, &mut acc, depth, half, a, operand(columns));
        acc
    }

    /// dp becomes the gradient of scores, for 16 rows.
    fn gradients(&self, tools: &WarpTools<'k>, at: &At<'k>, i: u32, s: &Acc<'k>, dp: &Acc<'k>) {
        let (warp, t) = (self.cta.warps(), self.cta.threads());
        let first = tools.row + 16 * i;
        let rows = [0, 8].map(|lower| at.first_row + first + (t.lane() >> 2) + lower);
        let overlays = ByQueries::new(warp, &self.overlays, (at.sequence, at.head), rows);
        let read = overlays.read(self.own.first_key, self.form.step);
        let of = self.gradients_of(tools);
        let stats = of.stats(at, first);
        of.probabilities((at, first), s, &read, stats.map(|[lse, _]| lse));
        of.gradients((at, first), s, dp, stats.map(|[_, delta]| delta));
    }

    fn gradients_of<'b>(&'b self, tools: &'b WarpTools<'k>) -> GradientsOf<'b, 'k> {
        let Block { cta, common, problem, args, scores, own, form, .. } = self;
        let drawn = self.dropout.as_ref().zip(tools.dropout.as_ref());
        GradientsOf {
            warp: cta.warps(),
            problem,
            args,
            own,
            scores: *scores,
            kinds: common.scores,
            tile: [form.rows(), form.step],
            dropout: drawn.map(|(args, (philox, signs))| (args, philox, signs)),
        }
    }

    /// What sums are multiplied by.
    fn factor(&self) -> Val<'k, F32> {
        self.dropout.as_ref().map_or(self.cta.threads().f32(1.0), |args| args.keep_scale)
    }
}

/// Whether all queries have the same bias.
fn per_key(common: &Common) -> bool {
    common.scores.overlays.bias.is_some_and(|bias| bias.per_key)
}
