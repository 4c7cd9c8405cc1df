//! The gradient of a bias on Hopper: blocks own tiles of it and walk over the heads of the sequences that share it, as those of
//! the portable pass do (`sm80/dbias`).
//!
//! ```text
//! copy       one thread: once the tile's bias; then, head after head, q and k, dout and v
//! multiply   two warpgroups, 64 queries each; every head:
//!     s = q k^T   dp = dout v^T     both under way
//!     p = exp2(s - lse), its sign: dropped, drawn by the warp itself
//!     dbias += |p| * (dp where kept - delta)
//! ```
//! | ring | filled by | read by | stages |
//! |---|---|---|---|
//! | `bias` | the copying thread | a warpgroup | 1, once |
//! | `scores` (q, k) | the copying thread | all multiplying warps | 2 |
//! | `gradients` (dout, v) | the copying thread | all multiplying warps | 1, or 2 where there is room |
//!
//! What counts is how fast tiles come: for each two products of 128 x 128 all four operands, from the second-level cache.
use super::forward::{WG_ROWS, by_role};
use crate::config::{HopperCommon, HopperForm};
use crate::parts::args::{DropoutVals, ProblemVals, kernel_args};
use crate::parts::dropout::{DropSigns, Philox};
use crate::parts::overlays::{BOX_KEYS, BoxRead, OverlayVals, OwnPart, box_bytes};
use crate::parts::scores::ScoreVals;
use crate::sm80::dbias::{DbiasVals, GradientsOf, Ground, Own, Results, Walk};
use signflash_ptx::{
    Acc, BoxTile, Builder, BulkRing, BulkRingProducer, Columns, Cta, Kernel, LaunchBounds, Product, Rows,
    SmemAddr, Tensor, TensorMap, Thread, U32, Val, Warpgroup,
};

kernel_args! {
    /// Operands of the pass over tiles of a bias, each in boxes of a tile's rows.
    OperandArgs / OperandVals {
        /// Queries.
        q: TensorMap,
        /// Keys.
        k: TensorMap,
        /// Values.
        v: TensorMap,
        /// Gradient of the output.
        dout: TensorMap,
        /// The bias, boxes of 64 rows.
        boxed_bias: TensorMap,
    }
}

/// Queries, and keys, of a tile.
pub(crate) const TILE: u32 = 128;

/// Who does what in a block.
const ROLES: HopperForm = HopperForm {
    warpgroups: 2,
    drawers: 0,
    step: TILE,
    stages: 2,
    flag_stages: 0,
    registers: 240,
    turns: false,
    early: 0,
    out_in_q: false,
};

/// The largest head_dim, of q or v, of which four tiles fit.
pub(crate) const MOST_COLUMNS: u32 = 128;

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &HopperCommon) -> Kernel {
    let launch = LaunchBounds { block_threads: ROLES.threads(), min_blocks_per_sm: 1 };
    Builder::build(name, launch, |cta| {
        let problem = ProblemVals::declare(cta);
        let inputs = OperandVals::declare(cta);
        let args = DbiasVals::declare(cta);
        let scores = ScoreVals::declare(cta, &common.scores);
        let dropout = common.scores.dropout.then(|| DropoutVals::declare(cta));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let overlays = overlays.expect("a bias");
        let smem = Smem::plan(cta, common);
        let own = Own::locate(cta, [TILE, TILE], false, &problem, &args);
        cta.sync(); // barriers are initialised
        let block = Block { cta, common, problem, inputs, args, scores, dropout, overlays, smem, own };
        by_role(cta, &ROLES, |wg| block.multiply(wg), |_| (), |t| block.copy(t));
    })
}

/// Shared memory of a block.
struct Smem<'k> {
    /// q, and behind it k.
    scores: BulkRing<'k>,
    /// dout, and behind it v.
    gradients: BulkRing<'k>,
    /// The tile of the bias, for each warpgroup its 64 queries.
    bias: BulkRing<'k>,
}

/// Bytes of a tile of so many boxes of 64 columns.
fn tile_bytes(boxes: u32) -> u32 {
    TILE * 128 * boxes
}

impl<'k> Smem<'k> {
    fn plan(cta: Cta<'k>, common: &HopperCommon) -> Self {
        let ([q, v], readers) = (common.boxes(), 4 * ROLES.warpgroups);
        let boxes = TILE / BOX_KEYS * box_bytes(WG_ROWS);
        Smem {
            scores: cta.bulk_ring("scores", 2, 2 * tile_bytes(q), readers),
            gradients: cta.bulk_ring(
                "gradients",
                if q.max(v) > 1 { 1 } else { 2 },
                2 * tile_bytes(v),
                readers,
            ),
            bias: cta.bulk_rings_for_lanes("bias", ROLES.warpgroups, [1, boxes], 4),
        }
    }
}

struct Block<'a, 'k> {
    cta: Cta<'k>,
    common: &'a HopperCommon,
    problem: ProblemVals<'k>,
    inputs: OperandVals<'k>,
    args: DbiasVals<'k>,
    scores: ScoreVals<'k>,
    dropout: Option<DropoutVals<'k>>,
    overlays: OverlayVals<'k>,
    smem: Smem<'k>,
    own: Own<'k>,
}

impl<'k> Block<'_, 'k> {
    fn ground(&self) -> Ground<'_, 'k> {
        let Block { cta, problem, overlays, own, .. } = self;
        let band = self.scores.band;
        Ground { cta: *cta, problem, packed: None, overlays, own, band, rows: TILE, step: TILE }
    }

    fn copy(&self, t: Thread<'k>) {
        let Block { inputs, smem, own, problem, .. } = self;
        let (ground, walk) = (self.ground(), Walk::new(&self.ground()));
        let (mut scores, mut gradients) = (smem.scores.producer(t), smem.gradients.producer(t));
        self.copy_bias(t);
        t.while_(
            || walk.more(&ground),
            |t| {
                let at = walk.at(&ground);
                t.when(at.seen, |t| {
                    let [q_boxes, v_boxes] = self.common.boxes();
                    let queries = at.sequence.queries().coordinates(at.first_row, at.head);
                    let keys = at.sequence.keys().coordinates(own.first_key, at.head / problem.group_size);
                    let fill = |ring: &mut BulkRingProducer<'k>, [a, b]: [Tensor<'k>; 2], boxes: u32| {
                        ring.fill_by(t, |filling| {
                            for i in 0..boxes {
                                filling.load(t, tile_bytes(i), a.at(64 * i, queries));
                                filling.load(t, tile_bytes(boxes + i), b.at(64 * i, keys));
                            }
                        });
                    };
                    fill(&mut scores, [inputs.q, inputs.k], q_boxes);
                    fill(&mut gradients, [inputs.dout, inputs.v], v_boxes);
                });
                walk.advance(&ground);
            },
        );
    }

    /// The tile's bias, which all that share it have.
    fn copy_bias(&self, t: Thread<'k>) {
        let Block { inputs, smem, own, overlays, problem, .. } = self;
        let first_row = own.query_tile * TILE - problem.row_shift;
        for wg_number in 0..ROLES.warpgroups {
            let at = overlays.box_of([own.batch, own.head], first_row + wg_number * WG_ROWS);
            smem.bias.nth(t.u32(wg_number)).producer(t).fill_by(t, |filling| {
                for i in 0..TILE / BOX_KEYS {
                    let from = inputs.boxed_bias.at_columns(own.first_key + i * BOX_KEYS, at);
                    filling.load(t, i * box_bytes(WG_ROWS), from);
                }
            });
        }
    }

    fn multiply(&self, wg: Warpgroup<'k>) {
        let Block { smem, own, problem, .. } = self;
        let (warp, t, wg_number) = (wg.warps(), wg.threads(), wg.index());
        let (ground, walk) = (self.ground(), Walk::new(&self.ground()));
        let (mut scores, mut gradients) = (smem.scores.consumer(warp), smem.gradients.consumer(warp));
        let mut bias = smem.bias.nth(wg_number).consumer(warp);
        let bias = bias.wait(warp);
        let kind = self.overlays.boxed().expect("a bias in boxes");
        let drawn =
            self.dropout.as_ref().map(|args| (args, Philox::new(warp, args), DropSigns::new(t, args)));
        let of = GradientsOf {
            warp,
            problem,
            args: &self.args,
            own,
            scores: self.scores,
            kinds: self.common.scores,
            tile: [TILE, TILE],
            dropout: drawn.as_ref().map(|(args, philox, signs)| (*args, philox, signs)),
        };
        let first = wg_number * WG_ROWS + (warp.index() & 3) * 16;
        let (mut s, mut dp, sum) = (wg.acc(TILE), wg.acc(TILE), wg.acc(TILE));
        sum.clear();
        wg.while_(
            || walk.more(&ground),
            |wg| {
                let at = walk.at(&ground);
                wg.when(at.seen, |wg| {
                    let (q_and_k, dout_and_v) = (scores.wait(warp), gradients.wait(warp));
                    let [q_boxes, v_boxes] = self.common.boxes();
                    let dims = self.common.operands.dims();
                    let product = |from, boxes, depth| self.product(wg_number, from, boxes, depth);
                    let of_scores = wg.multiply(&mut s, &product(q_and_k.address(), q_boxes, dims.q));
                    let of_gradients = wg.multiply(&mut dp, &product(dout_and_v.address(), v_boxes, dims.v));
                    let stats = of.stats(&at, first);
                    let p = of_scores.wait();
                    q_and_k.release_products(warp);
                    let read = BoxRead::new(warp, kind, bias.address(), OwnPart::Queries);
                    of.probabilities((&at, first), p, &read, stats.map(|[lse, _]| lse));
                    let dp = of_gradients.wait();
                    dout_and_v.release_products(warp);
                    of.gradients((&at, first), p, dp, stats.map(|[_, delta]| delta));
                    add(&sum, dp);
                });
                walk.advance(&ground);
            },
        );
        bias.release(warp);
        let first_row = own.query_tile * TILE - problem.row_shift + first;
        let factor = self.dropout.as_ref().map_or(t.f32(1.0), |args| args.keep_scale);
        Results { t, own, dbias: &self.args.dbias, numbers: kind.numbers, factor }
            .write(first_row, &sum, true);
    }

    /// A warpgroup's 64 rows of the first tile by all of the second, which lies behind it.
    fn product<'p>(
        &self,
        wg_number: Val<'k, U32>,
        from: SmemAddr<'k>,
        boxes: u32,
        depth: u32,
    ) -> Product<'p, 'k> {
        let [rows, columns] = [0, tile_bytes(boxes)].map(|bytes| BoxTile::new(from.at(bytes), TILE));
        Product {
            rows: Rows::Tile(rows.from_row_of(wg_number * WG_ROWS)),
            columns: Columns::OfRows(columns),
            depth,
            half: self.common.operands.half,
            add: false,
            columns_at_once: None,
        }
    }
}

fn add<'k>(sum: &Acc<'k>, dp: &Acc<'k>) {
    for (group, register) in (0..dp.groups()).flat_map(|group| (0..4).map(move |r| (group, r))) {
        let to = sum.at(group, register);
        to.set(to.get() + dp.at(group, register).get());
    }
}
