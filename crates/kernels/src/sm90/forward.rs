//! Forward on Hopper: out and lse. One block a multiprocessor; its warpgroups have roles.
//!
//! ```text
//! multiply (multiply.rs)  64 rows each; step j:
//!     turn:  s = q k(j)^T  and  out += p v(j-1)     both under way, then the next warpgroup's turn
//!     wait for s;   hide;   the softmax's early pieces, if any
//!     wait for out; softmax, round, drop -> p       while other warpgroups' products go on
//! copy (load.rs)          one thread: q, then k and v step by step, as far ahead as there are stages
//! draw (load.rs)          with dropout: flags (flags.rs), as far ahead as there are stages
//! ```
//! | ring | filled by | read by | stages |
//! |---|---|---|---|
//! | `q` | the copying thread | the four warps of one multiplying warpgroup, which has a ring of its own | 1 |
//! | `k`, `v` | the copying thread | all multiplying warps | `stages` |
//! | `flags` | the four warps of one drawing warpgroup | as `q` | `flag_stages` |
//!
//! Named barriers: 0 the block, once; from 1 on turns (turns.rs); from 8 on each warpgroup's output (out.rs).
//!
//! Pipeline, roles and turns are FlashAttention-3's (Shah et al. 2024). What is dropped does not depend on the
//! scores: here it is drawn by warps that have nothing else to do, which keeps its long chains of products off the
//! multiplying warps' way.
use super::pipeline::Pipeline;
use super::results::{ResultVals, names};
use super::schedule::{Schedule, Shares};
use super::steps::Steps;
use crate::config::{BandKind, HopperCommon, HopperForm, Scores};
use crate::parts::args::{DropoutVals, ProblemVals, kernel_args};
use crate::parts::overlays::{ByQueries, KeyMask, OverlayVals};
use crate::parts::scores::{ScoreStage, ScoreVals};
use crate::parts::sinks::SinksVals;
use crate::parts::visibility::{KeyTiles, SeenRange, Sight};
use crate::parts::work::Work;
use signflash_ptx::{
    Builder, Cta, Kernel, LaunchBounds, Pred, S32, TensorMap, Thread, U32, U64, Val, Warp, Warpgroup,
};

kernel_args! {
    /// Arguments of the forward, in the order of the kernel's parameters. Then come out, and lse (batch, num_heads,
    /// seqlen_q) f32, dense.
    ForwardArgs / ForwardVals {
        /// Queries, boxes of 64 rows.
        q: TensorMap,
        /// Keys, boxes of a step's rows.
        k: TensorMap,
        /// Values, likewise.
        v: TensorMap,
    }
}

kernel_args! {
    /// What a forward, or the pass over keys, is told of a bias in boxes.
    BoxedArgs / BoxedVals {
        /// The bias, boxes of 64 rows, or of a step's.
        boxed_bias: TensorMap,
    }
}

/// Rows of a warpgroup.
pub(crate) const WG_ROWS: u32 = 64;

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &HopperCommon, form: &HopperForm) -> Kernel {
    let launch = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: 1 };
    Builder::build(name, launch, |cta| {
        let problem = ProblemVals::declare(cta);
        let shares = Shares::declare(cta, common.operands.layout);
        let args = ForwardVals::declare(cta);
        let results = (ResultVals::declare(cta, names!("out"), common.operands), cta.param_u64("lse"));
        let boxed = common.scores.overlays.has_boxes().then(|| BoxedVals::declare(cta));
        let scores = ScoreVals::declare(cta, &common.scores);
        let sinks = common.scores.sinks.then(|| SinksVals::declare(cta));
        let dropout = common.scores.dropout.then(|| DropoutVals::declare(cta));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let overlays = overlays.map(OverlayVals::asking);
        let smem = Pipeline::plan(cta, common, form);
        cta.sync(); // barriers are initialised
        let block = Block {
            cta,
            common,
            form,
            problem,
            args,
            results,
            boxed,
            scores,
            sinks,
            dropout,
            overlays,
            smem,
            shares,
        };
        by_role(cta, form, |wg| block.multiply(wg), |warp| block.draw(warp), |t| block.copy(t));
    })
}

/// Gives each warpgroup its role, and its registers. One thread of the last copies; its others are done.
pub(super) fn by_role<'k>(
    cta: Cta<'k>,
    form: &HopperForm,
    multiply: impl FnOnce(Warpgroup<'k>),
    draw: impl FnOnce(Warp<'k>),
    copy: impl FnOnce(Thread<'k>),
) {
    let (wg, drawing) = (cta.warpgroups(), form.warpgroups + form.drawers);
    let [copier_registers, drawer_registers] = form.other_registers();
    let index = wg.index();
    wg.when(index.lt(form.warpgroups), |wg| {
        wg.grow_registers(form.registers);
        multiply(wg);
    });
    if form.drawers > 0 {
        wg.when(!index.lt(form.warpgroups) & index.lt(drawing), |wg| {
            wg.shrink_registers(drawer_registers);
            draw(wg.warps());
        });
    }
    wg.when(index.eq(drawing), |wg| {
        wg.shrink_registers(copier_registers);
        let t = wg.threads();
        t.when(t.index().eq(128 * drawing), copy);
    });
}

/// What every role of a block knows.
pub(super) struct Block<'a, 'k> {
    pub(super) cta: Cta<'k>,
    pub(super) common: &'a HopperCommon,
    pub(super) form: &'a HopperForm,
    pub(super) problem: ProblemVals<'k>,
    pub(super) args: ForwardVals<'k>,
    /// out, and lse.
    pub(super) results: (ResultVals<'k>, Val<'k, U64>),
    pub(super) boxed: Option<BoxedVals<'k>>,
    scores: ScoreVals<'k>,
    pub(super) sinks: Option<SinksVals<'k>>,
    pub(super) dropout: Option<DropoutVals<'k>>,
    pub(super) overlays: Option<OverlayVals<'k>>,
    pub(super) smem: Pipeline<'k>,
    shares: Shares<'k>,
}

/// A tile of queries: where it is, and which keys it sees.
pub(super) struct Tile<'k> {
    pub(super) work: Work<'k>,
    pub(super) head_k: Val<'k, U32>,
    pub(super) first_row: Val<'k, U32>,
    pub(super) keys: KeyTiles<'k>,
    /// The keys that some query may see, if not all.
    range: Option<SeenRange<'k>>,
    pub(super) steps: Steps<'k>,
}

impl<'k> Block<'_, 'k> {
    /// The block's tiles, for one role.
    pub(super) fn tiles(&self) -> Schedule<'k> {
        self.shares.schedule(self.cta, &self.problem, (self.form.rows(), self.common.scores))
    }

    /// What the queries of a sequence see.
    fn sight(&self, work: &Work<'k>, range: Option<SeenRange<'k>>) -> Sight<'k> {
        Sight::new(self.cta.threads(), &self.problem, work.sequence, self.scores.band).within(range)
    }

    /// What the queries of a tile see.
    pub(super) fn sight_of(&self, tile: &Tile<'k>) -> Sight<'k> {
        self.sight(&tile.work, tile.range)
    }

    /// What is added to the scores of a lane's two queries of a tile, if anything is.
    pub(super) fn overlays_of(
        &self,
        warp: Warp<'k>,
        tile: &Tile<'k>,
        rows: impl FnOnce() -> [Val<'k, U32>; 2],
    ) -> Option<ByQueries<'k>> {
        let Work { sequence, head, .. } = tile.work;
        let overlays = self.overlays.as_ref().filter(|overlays| overlays.reads())?;
        Some(ByQueries::new(warp, overlays, (sequence, head), rows()))
    }

    /// The mask to ask of a tile's keys, if there is one, and whether it is to be asked of a step's, the first of which
    /// this is.
    pub(super) fn key_mask(
        &self,
        tile: &Tile<'k>,
        first: Val<'k, U32>,
    ) -> Option<(KeyMask<'k>, Val<'k, Pred>)> {
        let mask = self.overlays.as_ref()?.key_mask(self.cta.threads(), tile.work.sequence)?;
        Some(mask).zip(tile.range.and_then(|range| range.is_to_be_asked(first)))
    }

    /// What becomes of scores.
    pub(super) fn stage(&self) -> ScoreStage<'k> {
        ScoreStage::new(self.cta.threads(), &self.problem, self.scores, self.common.scores)
    }

    pub(super) fn tile(&self, work: Work<'k>) -> Tile<'k> {
        let (rows, step) = (self.form.rows(), self.form.step);
        // The shift is 0 as long as `takes::forward` refuses shards that start inside 16 rows.
        let first_row = work.block * rows - self.problem.row_shift;
        let range = self.overlays.as_ref().and_then(|of| of.range(self.cta.threads(), work.sequence));
        let keys = self.sight(&work, range).key_tiles(first_row, rows, step);
        let head_k = work.head / self.problem.group_size;
        let Scores { band, kind, .. } = self.common.scores;
        let facing = || self.stage().facing(work.sequence);
        let steps = match (band == BandKind::Full).then(facing).flatten() {
            None => Steps::of(&keys, kind.alibi || band == BandKind::Both),
            Some(facing) => {
                // The tile of the key that the last query faces.
                let last = (first_row + rows).min(work.sequence.seqlen_q) - 1;
                let key = last.cast::<S32>() + facing + self.problem.column_shift.cast::<S32>();
                Steps::around(&keys, (key.max(0).cast::<U32>() / step).cast())
            }
        };
        Tile { work, head_k, first_row, keys, range, steps }
    }
}
