//! Probabilities for those who want to see them: normalised, what is dropped in the sign bit, every entry written.
//!
//! A second kernel after the forward: p = exp2(s - lse) from the forward's own lse. Blocks own query rows and walk over
//! all keys, hidden ones too, whose entries are +0. Each entry is stored by itself: this kernel is for
//! looking at probabilities, not for speed.
//!
//! Grid: query tiles x heads x batches, along x. Block: 32 * warps threads.
use crate::config::{Common, HeadDims, PortableForm};
use crate::packed::matrices::MatricesVals;
use crate::parts::args::{DeviceTensor, DropoutVals, HeadRows, ProblemVals, kernel_args};
use crate::parts::copy::{TileCopy, TileRows};
use crate::parts::dropout::{DropSigns, Philox, Stream};
use crate::parts::hiding::{SeenKeys, first_column};
use crate::parts::overlays::{ByQueries, OverlayVals, dynamic};
use crate::parts::product::{Lanes, Operand, mma_abt};
use crate::parts::scores::{Place, RowsAre, ScoreStage, ScoreVals};
use crate::parts::softmax::{THREAD_ROWS, lse_of_p};
use crate::parts::visibility::Sight;
use crate::parts::work::Work;
use crate::rows::head::QueryHeads;
use crate::rows::lse::LseRows;
use signflash_ptx::{
    Acc, B32, Builder, CopyRing, Cta, F32, GlobalAddr, Kernel, LaunchBounds, Pred, SmemAddr, TileLayout, U32,
    Val, Var,
};
use std::array::from_fn;
use std::f32::consts::LOG2_E;

kernel_args! {
    /// Arguments of the pass that writes probs.
    ProbsArgs / ProbsVals {
        /// Queries.
        q: DeviceTensor,
        /// Keys.
        k: DeviceTensor,
        /// Of the forward: (batch, num_heads, seqlen_q) f32, dense.
        lse: u64,
        /// Written: (batch, num_heads, seqlen_q, seqlen_k).
        probs: DeviceTensor,
    }
}

/// Bytes of shared memory that a block of a form may take: as many as that of a forward, which is more than it asks
/// for.
pub(crate) fn smem_bytes(dims: HeadDims, form: &PortableForm) -> u32 {
    2 * dims.q * (form.rows() + 2 * form.slots * form.step)
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &Common, form: &PortableForm) -> Kernel {
    let bounds = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: form.blocks_per_sm };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let matrices = common.operands.layout.is_packed().then(|| MatricesVals::declare(cta));
        let args = ProbsVals::declare(cta);
        let scores = ScoreVals::declare(cta, &common.scores);
        let dropout = common.scores.dropout.then(|| DropoutVals::declare(cta));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let layout = TileLayout::new(common.operands.head_dim);
        let q = cta.smem("q", layout.bytes(form.rows()), 1024);
        let k = cta.copy_ring("k", form.slots, layout.bytes(form.step));
        let work = match &matrices {
            None => Work::locate(cta, &problem, problem.query_tiles(form.rows()), problem.num_heads, false),
            Some(matrices) => matrices.locate(cta, &problem, form.rows()),
        };
        ProbsKernel { cta, common, form, problem, matrices, args, scores, dropout, overlays, q, k, work }
            .run();
    })
}

struct ProbsKernel<'a, 'k> {
    cta: Cta<'k>,
    common: &'a Common,
    form: &'a PortableForm,
    problem: ProblemVals<'k>,
    matrices: Option<MatricesVals<'k>>,
    args: ProbsVals<'k>,
    scores: ScoreVals<'k>,
    dropout: Option<DropoutVals<'k>>,
    overlays: Option<OverlayVals<'k>>,
    q: SmemAddr<'k>,
    k: CopyRing<'k>,
    work: Work<'k>,
}

/// One of a thread's rows.
struct Row<'k> {
    /// Whether it is a query.
    real: Val<'k, Pred>,
    /// Whether it is written.
    written: Val<'k, Pred>,
    /// lse in base 2; +inf for rows without keys.
    lse_log2: Val<'k, F32>,
    seen: SeenKeys<'k>,
    to: GlobalAddr<'k>,
}

impl<'k> ProbsKernel<'_, 'k> {
    fn run(&self) {
        let ProbsKernel { cta, common, form, problem, work, .. } = self;
        let (warp, t) = (cta.warps(), cta.threads());
        let scores = self.stage().of_head(t, work.sequence, || work.head);
        let first_row = work.block * form.rows() - problem.row_shift;
        let rows =
            |rows: HeadRows<'k>, first, seqlen| TileRows { rows, first, seqlen, head_dim: problem.head_dim };
        let copy = TileCopy::new(t, common.rows(), t.index(), form.threads());
        let q = rows(self.args.q.head(work.sequence.queries(), work.head), first_row, work.sequence.seqlen_q);
        let q = cta.copy_group(|| copy.load(self.q, q, form.rows()));
        let k = self.args.k.head(work.sequence.keys(), work.head / problem.group_size);
        let end = match &self.matrices {
            None => problem.key_tiles(form.step),
            Some(matrices) => (matrices.columns + (form.step - 1)) / form.step,
        };
        let fill = |tile: Val<'k, U32>| {
            let slot = self.k.next_fill();
            let source = rows(k, tile * form.step - problem.column_shift, work.sequence.seqlen_k);
            self.k.fill(*cta, || cta.when(tile.lt(end), |_| copy.load(slot, source, form.step)));
        };
        fill(t.u32(0));

        let lanes = Lanes::new(warp, TileLayout::new(common.operands.head_dim));
        let own_row = warp.index() * (16 * form.row_tiles);
        let own_q = Operand {
            lanes: &lanes,
            tile: self.q.plus(own_row * TileLayout::new(common.operands.head_dim).row_bytes()),
        };
        let own: Vec<_> = (0..form.row_tiles).map(|i| self.rows(first_row + own_row + 16 * i)).collect();
        let overlays: Vec<_> = (0..form.row_tiles)
            .map(|i| {
                let overlays = self.overlays.as_ref()?;
                let own = first_row + own_row + 16 * i + (t.lane() >> 2);
                Some(ByQueries::new(warp, overlays, (work.sequence, work.head), [own, own + 8]))
            })
            .collect();
        let drawn = self.dropout.as_ref().map(|args| {
            (Philox::new(warp, args).stream(t, work.sequence, work.head), DropSigns::new(t, args), args)
        });
        q.wait(*cta);
        let n: Var<'k, U32> = t.u32(0).var();
        cta.while_(
            || n.get().lt(end),
            |cta| {
                let tile = n.get();
                let k = self.k.take(cta);
                fill(tile + 1);
                let mut s: Vec<Acc<'k>> = own.iter().map(|_| warp.acc(form.step)).collect();
                s.iter().for_each(Acc::clear);
                let b = Operand { lanes: &lanes, tile: k.address() };
                let a = |i: usize, k16: u32| own_q.a(warp, 16 * i as u32, k16);
                mma_abt(warp, &mut s, common.operands.head_dim, common.operands.half, a, b);
                k.release();
                for (i, (s, own)) in s.iter().zip(&own).enumerate() {
                    let read = overlays[i]
                        .as_ref()
                        .map(|overlays| overlays.read(tile * form.step - problem.column_shift, form.step));
                    let place = || Place {
                        rows_are: RowsAre::Queries,
                        row: first_row + own_row + 16 * i as u32 + (t.lane() >> 2),
                        column: tile * form.step - problem.column_shift + first_column(t),
                    };
                    scores.prepare(warp, s, place, dynamic(&read));
                    let row16 = (first_row + own_row + problem.row_shift) >> 4u32;
                    let flags = drawn.as_ref().map(|(stream, signs, args)| {
                        self.flags(
                            stream,
                            signs,
                            args.first_row16 + row16 + i as u32,
                            args.first_column32,
                            tile,
                        )
                    });
                    self.write(s, own, tile, flags.as_deref());
                }
                n.set(tile + 1);
            },
        );
        self.k.take(*cta).release(); // the last fill: of nothing
    }

    fn sight(&self) -> Sight<'k> {
        let t = self.cta.threads();
        let range = self.overlays.as_ref().and_then(|overlays| overlays.range(t, self.work.sequence));
        Sight::new(t, &self.problem, self.work.sequence, self.scores.band).within(range)
    }

    fn stage(&self) -> ScoreStage<'k> {
        ScoreStage::new(self.cta.threads(), &self.problem, self.scores, self.common.scores)
    }

    fn rows(&self, first: Val<'k, U32>) -> [Row<'k>; THREAD_ROWS] {
        let (t, problem, work) = (self.cta.threads(), &self.problem, &self.work);
        from_fn(|lower| {
            let row = first + (t.lane() >> 2) + 8 * lower as u32;
            let real = row.lt(work.sequence.seqlen_q);
            let lse = t.f32(f32::INFINITY).var();
            t.when(real, |t| {
                let rows = LseRows::of(QueryHeads::of(problem, work.sequence).nth(work.head));
                let [own] = t.load::<F32, 1>(rows.place(row).of(self.args.lse));
                lse.set(lse_of_p(t, own));
            });
            Row {
                real,
                written: self.matrices.as_ref().map_or(real, |matrices| row.lt(matrices.rows)),
                lse_log2: lse.get() * LOG2_E,
                seen: SeenKeys::of(&self.sight(), row),
                to: self.args.probs.head(work.sequence.matrix(), work.head).row(row),
            }
        })
    }

    /// For each 32 columns of a tile, the flags in the order of the accumulator.
    fn flags(
        &self,
        stream: &Stream<'k>,
        signs: &DropSigns<'k>,
        row16: Val<'k, U32>,
        first_column32: Val<'k, U32>,
        tile: Val<'k, U32>,
    ) -> Vec<[Val<'k, B32>; 4]> {
        let first = first_column32 + tile * (self.form.step / 32);
        let block = |j: u32| stream.block(row16, first + j).map(|word| signs.dropped(word));
        (0..self.form.step / 32).map(block).collect()
    }

    /// Whether a row is a query that sees a key. Only a matrix of packed sequences has rows behind the last.
    fn sees(&self, row: &Row<'k>, key: Val<'k, U32>, score: Val<'k, F32>) -> Val<'k, Pred> {
        let seen = row.seen.contains(key);
        let seen = if self.matrices.is_some() { row.real & seen } else { seen };
        if self.overlays.is_some() { seen & !score.eq(f32::NEG_INFINITY) } else { seen }
    }

    fn write(
        &self,
        s: &Acc<'k>,
        rows: &[Row<'k>; THREAD_ROWS],
        tile: Val<'k, U32>,
        flags: Option<&[[Val<'k, B32>; 4]]>,
    ) {
        let (t, problem, stage) = (self.cta.threads(), &self.problem, self.stage());
        let first = tile * self.form.step - problem.column_shift + first_column(t);
        for (group, register) in (0..s.groups()).flat_map(|group| (0..4).map(move |r| (group, r))) {
            let row = &rows[register / 2];
            let key = first + (8 * group + register % 2) as u32;
            let score = s.at(group, register).get();
            let p = stage.weight(score, -row.lse_log2);
            let seen = self.sees(row, key, score);
            let p = seen.select::<F32>(p, 0.0);
            let p = p.pack(p, self.common.operands.half, false);
            // The sign is set after rounding, which would lose a NaN's. Byte `register` of the flags is this entry's.
            let signed = flags.map(|flags| {
                let flag = flags[group / 4][group % 4] >> (8 * register as u32);
                let signed = p ^ (flag & 0x80u32) << 8u32;
                self.sees(row, key, score).select::<B32>(signed, p)
            });
            let columns = self.matrices.as_ref().map_or(self.work.sequence.seqlen_k, |of| of.columns);
            t.when(row.written & key.lt(columns), |t| {
                t.store_half(row.to.plus(key.widen() * 2u64), signed.unwrap_or(p));
            });
        }
    }
}
