//! Probabilities on Hopper: normalised, what is dropped in the sign bit, every entry written.
//!
//! A second kernel after the forward: p = exp2(s - lse) from the forward's own lse. Roles are the forward's; of the
//! products there is one, and what a step leaves in shared memory goes straight to the tensor. Time is that of writing:
//! seqlen_q * seqlen_k numbers a head.
//!
//! ```text
//! multiply   64 rows each; step j:  s = q k(j)^T;  p = exp2(s - lse), round;  sign <- flags;  hidden <- +0;  store
//! copy       one thread: q, then k step by step
//! draw       with dropout: flags, as for the forward
//! ```
use super::flags::{FlagReader, FlagWriter, dropped};
use super::forward::{WG_ROWS, by_role};
use super::out::stage_words;
use super::pipeline::FLAG_BLOCK_BYTES;
use super::schedule::{Schedule, Shares};
use crate::config::{HopperCommon, HopperForm};
use crate::parts::args::{DropoutVals, ProblemVals, kernel_args};
use crate::parts::hiding::{SeenKeys, first_column, hide_packed};
use crate::parts::overlays::{ByQueries, OverlayVals, dynamic};
use crate::parts::scores::{HeadScores, Place, RowsAre, ScoreStage, ScoreVals};
use crate::parts::softmax::{THREAD_ROWS, lse_of_p};
use crate::parts::visibility::Sight;
use crate::parts::work::Work;
use crate::rows::head::QueryHeads;
use crate::rows::lse::LseRows;
use signflash_ptx::{
    Acc, B32, BoxTile, Builder, BulkRing, Columns, Cta, F32, Kernel, LaunchBounds, Product, Rows, SmemAddr,
    TensorMap, Thread, U32, Val, Var, Warp, Warpgroup,
};
use std::array::from_fn;
use std::f32::consts::LOG2_E;

kernel_args! {
    /// Arguments of the pass that writes probs, in the order of the kernel's parameters.
    ProbsArgs / ProbsVals {
        /// Queries, boxes of 64 rows.
        q: TensorMap,
        /// Keys, boxes of a step's rows.
        k: TensorMap,
        /// Written: (batch, num_heads, seqlen_q, seqlen_k), boxes of 64 rows.
        probs: TensorMap,
        /// Of the forward: (batch, num_heads, seqlen_q) f32, dense.
        lse: u64,
    }
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &HopperCommon, form: &HopperForm) -> Kernel {
    let launch = LaunchBounds { block_threads: form.threads(), min_blocks_per_sm: 1 };
    Builder::build(name, launch, |cta| {
        let problem = ProblemVals::declare(cta);
        let shares = Shares::declare(cta, common.operands.layout);
        let args = ProbsVals::declare(cta);
        let scores = ScoreVals::declare(cta, &common.scores);
        let dropout = common.scores.dropout.then(|| DropoutVals::declare(cta));
        let overlays = OverlayVals::declare(cta, common.scores.overlays, common.operands.layout);
        let smem = Smem::plan(cta, common, form);
        cta.sync(); // barriers are initialised
        let block = Block { cta, common, form, problem, shares, args, scores, dropout, overlays, smem };
        by_role(cta, form, |wg| block.multiply(wg), |warp| block.draw(warp), |t| block.copy(t));
    })
}

/// Shared memory of a block.
struct Smem<'k> {
    /// For each multiplying warpgroup its 64 queries.
    q: BulkRing<'k>,
    k: BulkRing<'k>,
    /// As the forward's.
    flags: Option<BulkRing<'k>>,
    /// For each multiplying warpgroup a step's probabilities, as boxes of 64 columns.
    p: SmemAddr<'k>,
}

impl<'k> Smem<'k> {
    fn plan(cta: Cta<'k>, common: &HopperCommon, form: &HopperForm) -> Self {
        let [boxes, _] = common.boxes();
        let tile = |rows: u32| rows * boxes * 128;
        let flags = || {
            let bytes = 4 * form.step / 32 * FLAG_BLOCK_BYTES;
            cta.stage_rings("flags", form.warpgroups, [form.flag_stages, bytes], 4, 4)
        };
        Smem {
            q: cta.bulk_rings("q", form.warpgroups, [1, tile(WG_ROWS)], 4),
            k: cta.bulk_ring("k", form.stages, tile(form.step), 4 * form.warpgroups),
            p: cta.smem("p", form.warpgroups * place_bytes(form), 1024),
            flags: common.scores.dropout.then(flags),
        }
    }
}

/// A warpgroup's place for a step's probabilities.
fn place_bytes(form: &HopperForm) -> u32 {
    WG_ROWS * form.step * 2
}

struct Block<'a, 'k> {
    cta: Cta<'k>,
    common: &'a HopperCommon,
    form: &'a HopperForm,
    problem: ProblemVals<'k>,
    shares: Shares<'k>,
    args: ProbsVals<'k>,
    scores: ScoreVals<'k>,
    dropout: Option<DropoutVals<'k>>,
    overlays: Option<OverlayVals<'k>>,
    smem: Smem<'k>,
}

/// A thread's two rows.
struct OwnRows<'k> {
    /// The first of them.
    first: Val<'k, U32>,
    /// -lse in base 2; -inf for rows without keys and beyond the end.
    shift: [Val<'k, F32>; THREAD_ROWS],
    seen: [SeenKeys<'k>; THREAD_ROWS],
    overlays: Option<ByQueries<'k>>,
    scores: HeadScores<'k>,
}

/// Named barriers from this one on keep a warpgroup's threads together.
const FIRST_BARRIER: u32 = 8;

impl<'k> Block<'_, 'k> {
    fn tiles(&self) -> Schedule<'k> {
        self.shares.schedule(self.cta, &self.problem, (self.form.rows(), self.common.scores))
    }

    /// Tiles start with the tensor: shards that do not are the portable kernel's.
    fn first_row(&self, work: &Work<'k>) -> Val<'k, U32> {
        work.block * self.form.rows()
    }

    fn steps(&self) -> Val<'k, U32> {
        self.problem.key_tiles(self.form.step)
    }

    fn stage(&self) -> ScoreStage<'k> {
        ScoreStage::new(self.cta.threads(), &self.problem, self.scores, self.common.scores)
    }

    fn draw(&self, warp: Warp<'k>) {
        let args = self.dropout.as_ref().expect("only dropout draws");
        let rings = self.smem.flags.expect("planned with dropout");
        let mut flags = FlagWriter::new(warp, rings, self.form, self.common, args);
        let (tiles, steps) = (self.tiles(), self.steps());
        warp.while_(
            || tiles.has_more(),
            |warp| {
                flags.begin(warp, tiles.take());
                let next = warp.threads().u32(0).var();
                warp.while_(
                    || next.get().lt(steps),
                    |warp| {
                        flags.write(warp, next.get());
                        next.set(next.get() + 1);
                    },
                );
            },
        );
    }

    fn copy(&self, t: Thread<'k>) {
        let (form, [boxes, _]) = (self.form, self.common.boxes());
        let mut q: Vec<_> = (0..form.warpgroups).map(|i| self.smem.q.nth(t.u32(i)).producer(t)).collect();
        let mut k = self.smem.k.producer(t);
        let (tiles, steps) = (self.tiles(), self.steps());
        t.while_(
            || tiles.has_more(),
            |t| {
                let work = tiles.take();
                let first_row = self.first_row(&work);
                for (wg_number, q) in (0..).zip(&mut q) {
                    let at = work.sequence.queries().coordinates(first_row + wg_number * WG_ROWS, work.head);
                    q.fill_by(t, |filling| {
                        for i in 0..boxes {
                            filling.load(t, i * WG_ROWS * 128, self.args.q.at(64 * i, at));
                        }
                    });
                }
                let head_k = work.head / self.problem.group_size;
                let next = t.u32(0).var();
                t.while_(
                    || next.get().lt(steps),
                    |t| {
                        let at = work.sequence.keys().coordinates(next.get() * form.step, head_k);
                        k.fill_by(t, |filling| {
                            for i in 0..boxes {
                                filling.load(t, i * form.step * 128, self.args.k.at(64 * i, at));
                            }
                        });
                        next.set(next.get() + 1);
                    },
                );
            },
        );
    }

    fn multiply(&self, wg: Warpgroup<'k>) {
        let (warp, t, form, wg_number) = (wg.warps(), wg.threads(), self.form, wg.index());
        let mut q = self.smem.q.nth(wg_number).consumer(warp);
        let mut k = self.smem.k.consumer(warp);
        let mut flags = self.smem.flags.map(|rings| FlagReader::new(warp, rings, wg_number, form));
        let place = self.smem.p.plus(wg_number * place_bytes(form));
        let mut s = wg.acc(form.step);
        let (tiles, steps) = (self.tiles(), self.steps());
        let stores = (t.index() & 127).eq(0);
        wg.while_(
            || tiles.has_more(),
            |wg| {
                let work = tiles.take();
                let first_row = self.first_row(&work) + wg_number * WG_ROWS;
                let rows = self.own_rows(warp, &work, first_row);
                let q_stage = q.wait(warp);
                let q_tile = BoxTile::new(q_stage.address(), WG_ROWS);
                let next = t.u32(0).var();
                wg.while_(
                    || next.get().lt(steps),
                    |wg| {
                        let step = next.get();
                        let k_stage = k.wait(warp);
                        self.scores(
                            wg,
                            &mut s,
                            [q_tile, BoxTile::new(k_stage.address(), form.step)],
                            &rows,
                            step,
                        );
                        k_stage.release_products(warp);
                        let words = flags.as_mut().map(|flags| flags.words(warp));
                        let p = self.probabilities(warp, &s, &rows, step, words.as_deref());
                        // The last step's have left.
                        t.when(stores, |t| t.wait_stored());
                        wg.sync_among(wg_number + FIRST_BARRIER, 128);
                        stage_words(wg, &p, place);
                        t.fence_proxy_async();
                        wg.sync_among(wg_number + FIRST_BARRIER, 128);
                        t.when(stores, |t| {
                            let at = |i: u32| {
                                let to = self.args.probs.at_columns(
                                    step * form.step + 64 * i,
                                    work.sequence.matrix().coordinates(first_row, work.head),
                                );
                                (place.at(i * WG_ROWS * 128), to)
                            };
                            t.store_boxes((0..form.step / 64).map(at));
                        });
                        next.set(step + 1);
                    },
                );
                q_stage.release_products(warp);
            },
        );
        t.when(stores, |t| t.wait_stored());
    }

    fn scores(
        &self,
        wg: Warpgroup<'k>,
        s: &mut Acc<'k>,
        [q, k]: [BoxTile<'k>; 2],
        own: &OwnRows<'k>,
        step: Val<'k, U32>,
    ) {
        let (rows, columns) = (Rows::Tile(q), Columns::OfRows(k));
        let (depth, half) = (self.common.operands.head_dim, self.common.operands.half);
        let product = Product { rows, columns, depth, half, add: false, columns_at_once: None };
        let scores = wg.multiply(s, &product);
        let read = own.overlays.as_ref().map(|own| own.read(step * self.form.step, self.form.step));
        let (s, warp) = (scores.wait(), wg.warps());
        let place = || Place {
            rows_are: RowsAre::Queries,
            row: own.first,
            column: step * self.form.step + first_column(warp.threads()),
        };
        own.scores.prepare(warp, s, place, dynamic(&read));
    }

    fn own_rows(&self, warp: Warp<'k>, work: &Work<'k>, first_row: Val<'k, U32>) -> OwnRows<'k> {
        let (t, problem) = (warp.threads(), &self.problem);
        let first = first_row + ((warp.index() & 3) << 4u32) + (t.lane() >> 2);
        let row = |lower: usize| first + 8 * lower as u32;
        let shift = |lower| {
            let lse = t.f32(f32::INFINITY).var();
            t.when(row(lower).lt(work.sequence.seqlen_q), |t| {
                let rows = LseRows::of(QueryHeads::of(problem, work.sequence).nth(work.head));
                let [own] = t.load::<F32, 1>(rows.place(row(lower)).of(self.args.lse));
                lse.set(lse_of_p(t, own));
            });
            -(lse.get() * LOG2_E)
        };
        let range = self.overlays.as_ref().and_then(|overlays| overlays.range(t, work.sequence));
        let sight = Sight::new(t, problem, work.sequence, self.scores.band).within(range);
        let seen = |lower| SeenKeys::of(&sight, row(lower));
        let overlays = self.overlays.as_ref();
        let overlays =
            overlays.map(|of| ByQueries::new(warp, of, (work.sequence, work.head), [row(0), row(1)]));
        let scores = self.stage().of_head(t, work.sequence, || work.head);
        OwnRows { first, shift: from_fn(shift), seen: from_fn(seen), overlays, scores }
    }

    /// For each 16 keys four packed pairs, with signs.
    fn probabilities(
        &self,
        warp: Warp<'k>,
        s: &Acc<'k>,
        rows: &OwnRows<'k>,
        step: Val<'k, U32>,
        flags: Option<&[[Val<'k, B32>; 4]]>,
    ) -> Vec<[Val<'k, B32>; 4]> {
        let (t, half) = (warp.threads(), self.common.operands.half);
        let first = step * self.form.step + first_column(t);
        let piece = |k16: usize| {
            let dropped = flags.map(|words| dropped(words, k16));
            from_fn(|i| {
                let (group, row) = (2 * k16 + i / 2, i % 2);
                let e = [0, 1].map(|x| {
                    let score = s.at(group, 2 * row + x).get();
                    self.stage().weight(score, rows.shift[row])
                });
                // The sign is set after rounding, which would lose a NaN's.
                let pair = e[0].pack(e[1], half, false);
                let signed = dropped.map_or(pair, |dropped| pair ^ (dropped[i] & 0x8000_8000u32));
                signed.var()
            })
        };
        let p: Vec<[Var<'k, B32>; 4]> = (0..self.form.step as usize / 16).map(piece).collect();
        let hides = rows.seen.iter().map(|seen| seen.lacks_some_of(step, self.form.step));
        let hides = hides.reduce(|a, b| a | b).expect("a thread has rows");
        // What is hidden becomes +0, whatever was drawn for it.
        warp.when(warp.any(hides), |_| {
            hide_packed(&p, |row, column| rows.seen[row].contains(first + column));
        });
        if rows.overlays.is_some() {
            let score =
                |row: usize, column: u32| s.at(column as usize / 8, 2 * row + column as usize % 8).get();
            hide_packed(&p, |row, column| !score(row, column).eq(f32::NEG_INFINITY));
        }
        p.iter().map(|words| words.each_ref().map(Var::get)).collect()
    }
}
