//! Online softmax without a maximum: it is looked for only when the exponentials grow.
//!
//! Exponentials are taken relative to a maximum of some earlier step. While none of them exceeds 2^8 that is as good as
//! any (FlashAttention-4 rescales by that rule); and since they are positive, none does if their sum does not, which is
//! needed anyway. So the usual step has no maximum, no shuffle and no correction: on Hopper each instruction of the
//! integer unit, `max` among them, takes nearly twice as long while products run (`docs/hopper.md`).
//!
//! A step that fails the test is done again, from the scores, which are still there: with the maximum of its scores,
//! and the output so far made relative to it. A row that has seen no key has NaN for a shift, fails every test, and
//! so gets its maximum with its first key.
//!
//! Scores may be products still (`parts/scores/folded.rs`). What is made of these need not be right where a step fails its test,
//! and only then do they become what a maximum is looked for among.
//!
//! A row whose maximum is so large that it must be subtracted before scores are scaled ([`LARGE_LOG2`]) has NaN for a
//! shift, too: each of its steps is done again, with scores less the maximum.
//!
//! With dropout, pairs of bf16 are not rounded but cut off, because `prmt` can pack, cut off and drop at once
//! (`flags.rs`). Exponentials are therefore taken a little too large, by [`LIFT`], so that what is cut off is made up
//! for on average, and the sums are corrected when a row is finished.
use super::flags::{Selectors, kept};
use crate::config::HopperCommon;
use crate::parts::scores::{ScoreStage, StepWeights};
use crate::parts::softmax::{LARGE_LOG2, RowResult, THREAD_ROWS, finite, over_row, scale_rows, subtract};
use signflash_ptx::{Acc, B32, F32, Half, Pred, Thread, U32, Val, Var, Warp};
use std::array::from_fn;

/// What exponentials of one thread's part of a row and step may add up to.
const GROWN: f32 = 256.0;

/// How much larger exponentials of bf16 are taken that are cut off to 8 bits, in powers of two: log2(1 + ln 2 / 256).
/// Half a unit of the last place is 1/256 of the power of two below a number m times as large, and where logarithms
/// are spread evenly the mean of m is 1 / ln 2.
const LIFT: f32 = 0.003_901_0;

/// Probabilities as operands: for each 16 keys four registers.
pub(crate) type Packed<'k> = [[Var<'k, B32>; 4]];

/// Four registers of an operand.
type Words<'k> = [Val<'k, B32>; 4];

/// What becomes those.
type Pairs<'k> = [[Val<'k, F32>; 2]; 4];

type Sums<'k> = [Option<Val<'k, F32>>; THREAD_ROWS];

/// Of each row what was taken from its scores, 0 unless it is large, and what is added to them once they are scaled.
struct Reference<'k> {
    base: [Val<'k, F32>; THREAD_ROWS],
    shift: [Val<'k, F32>; THREAD_ROWS],
}

/// Whether scaled scores must not be shifted by this: it is rounded.
#[track_caller]
fn is_large<'k>(t: Thread<'k>, shift: Val<'k, F32>) -> Val<'k, Pred> {
    t.f32(LARGE_LOG2).lt(shift.abs())
}

/// A step of [`LateSoftmax`] that has begun.
pub(crate) struct Progress<'a, 'k> {
    weights: StepWeights<'a, 'k>,
    shift: [Val<'k, F32>; THREAD_ROWS],
    sums: Sums<'k>,
}

/// The running maximum and sum of a thread's two rows.
#[derive(Debug)]
pub(crate) struct LateSoftmax<'k> {
    warp: Warp<'k>,
    half: Half,
    dropout: bool,
    stage: ScoreStage<'k>,
    /// Of the exponentials, if they are cut off: [`LIFT`].
    lift: Option<f32>,
    max: [Var<'k, F32>; THREAD_ROWS],
    /// What scaled scores are shifted by: -max * scale and the lift; NaN if that is infinite or large.
    shift: [Var<'k, F32>; THREAD_ROWS],
    /// Of this thread's columns.
    sum: [Var<'k, F32>; THREAD_ROWS],
    /// Of the step.
    step_sum: [Var<'k, F32>; THREAD_ROWS],
}

impl<'k> LateSoftmax<'k> {
    /// No key seen.
    #[track_caller]
    pub(crate) fn new(warp: Warp<'k>, stage: ScoreStage<'k>, common: &HopperCommon) -> Self {
        let (half, dropout) = (common.operands.half, common.scores.dropout);
        let lift = (dropout && half == Half::Bf16).then_some(LIFT);
        let fill = |x: f32| from_fn(|_| warp.threads().f32(x).var());
        let (max, sum) = (fill(f32::NEG_INFINITY), fill(0.0));
        LateSoftmax { warp, half, dropout, stage, lift, max, shift: fill(f32::NAN), sum, step_sum: fill(0.0) }
    }

    /// Scores of the first keys become exponentials, packed. Nothing is in the output yet.
    #[track_caller]
    pub(crate) fn first(&self, s: &Acc<'k>, p: &Packed<'k>, selectors: Option<&Selectors<'k>>) {
        let newest = self.newest(s, [f32::NEG_INFINITY; 2].map(|x| self.warp.threads().f32(x)));
        self.set_max(newest);
        let Reference { shift, .. } = self.refer(s);
        self.exponentials(s, p, shift, |pairs, k16, _| self.pack(pairs, selectors.map(|of| of.of(k16))));
        (0..THREAD_ROWS).for_each(|row| self.sum[row].set(self.step_sum[row].get()));
    }

    /// Numbers t are weighed.
    pub(crate) fn of_t<'a>(&self) -> StepWeights<'a, 'k> {
        StepWeights::of_t(self.warp.threads(), self.stage.factor())
    }

    /// Further scores are about to become exponentials.
    pub(crate) fn begin<'a>(&self, weights: StepWeights<'a, 'k>) -> Progress<'a, 'k> {
        let shift = weights.shifts(from_fn(|row| self.shift[row].get()));
        Progress { weights, shift, sums: [None; THREAD_ROWS] }
    }

    /// The next piece of 16 keys.
    #[track_caller]
    pub(crate) fn next(
        &self,
        progress: &mut Progress<'_, 'k>,
        s: &Acc<'k>,
        k16: usize,
        selectors: Option<&Selectors<'k>>,
    ) -> Words<'k> {
        let Progress { weights, shift, sums } = progress;
        self.pack(self.pairs((s, weights), k16, *shift, sums), selectors.map(|of| of.of(k16)))
    }

    /// All pieces are in `p`; `out` is corrected if they have grown, and then they are computed anew, of scores that
    /// `prepare` has made numbers t of.
    #[track_caller]
    pub(crate) fn end(
        &self,
        progress: Progress<'_, 'k>,
        (s, p, out): (&Acc<'k>, &Packed<'k>, &Acc<'k>),
        selectors: Option<&Selectors<'k>>,
        prepare: impl FnOnce(Warp<'k>),
    ) {
        self.set_step_sums(progress.sums);
        // A NaN is not less.
        let small = |row: usize| self.step_sum[row].get().lt(GROWN);
        let grown = !(small(0) & small(1));
        let failed = progress.weights.failed().map(|failed| self.warp.any(failed));
        let again = self.warp.any(grown);
        self.warp.when(failed.map_or(again, |failed| failed | again), |warp| {
            progress.weights.settle(warp, s, prepare);
            if let Some(failed) = failed {
                progress.weights.learn(failed);
            }
            let before: [_; THREAD_ROWS] = from_fn(|row| self.max[row].get());
            self.set_max(self.newest(s, before));
            let Reference { base, shift } = self.refer(s);
            let lowered = shift.map(|shift| self.lift.map_or(shift, |lift| shift - lift));
            let corrections = from_fn(|row| self.stage.weight(before[row] - base[row], lowered[row]));
            (0..THREAD_ROWS).for_each(|row| self.sum[row].set(self.sum[row].get() * corrections[row]));
            scale_rows(out, corrections);
            // What was there may be zero for no reason.
            let selectors = failed.and(selectors).map(|of| of.anew(warp));
            self.exponentials(s, p, shift, |pairs, k16, before| match &selectors {
                None if self.dropout => self.pack_again(pairs, before),
                _ => self.pack(pairs, selectors.as_ref().map(|of| of.of(k16))),
            });
        });
        for row in 0..THREAD_ROWS {
            self.sum[row].set(self.sum[row].get() + self.step_sum[row].get());
        }
    }

    /// The rows' maxima so far.
    #[track_caller]
    fn newest(&self, s: &Acc<'k>, before: [Val<'k, F32>; THREAD_ROWS]) -> [Val<'k, F32>; THREAD_ROWS] {
        from_fn(|row| {
            let cells = (0..s.groups()).flat_map(|group| [2 * row, 2 * row + 1].map(|r| s.at(group, r)));
            let own = cells.fold(before[row], |max, x| max.max(x.get()));
            over_row(self.warp, own, |a, b| a.max(b))
        })
    }

    #[track_caller]
    fn set_max(&self, max: [Val<'k, F32>; THREAD_ROWS]) {
        let t = self.warp.threads();
        for (row, max) in max.into_iter().enumerate() {
            self.max[row].set(max);
            let shift = self.shift_of(max);
            // That of a row without keys is infinite, and so large, too.
            self.shift[row].set(is_large(t, shift).select(t.f32(f32::NAN), shift));
        }
    }

    /// What exponentials are relative to from now on. Where that is too large to be scaled and rounded, it is taken
    /// from the scores at once.
    #[track_caller]
    fn refer(&self, s: &Acc<'k>) -> Reference<'k> {
        let t = self.warp.threads();
        let max: [_; THREAD_ROWS] = from_fn(|row| finite(t, self.max[row].get()));
        let shift = max.map(|max| self.shift_of(max));
        let large = shift.map(|shift| is_large(t, shift));
        let base = from_fn(|row| large[row].select(max[row], t.f32(0.0)));
        self.warp.when(self.warp.any(large[0] | large[1]), |_| {
            (0..THREAD_ROWS).for_each(|row| subtract(s, row, base[row]));
        });
        let of_base = t.f32(self.lift.unwrap_or(0.0));
        Reference { base, shift: from_fn(|row| large[row].select(of_base, shift[row])) }
    }

    #[track_caller]
    fn shift_of(&self, max: Val<'k, F32>) -> Val<'k, F32> {
        match self.lift {
            None => -(max * self.stage.factor()),
            Some(lift) => max.mul_add(-self.stage.factor(), lift),
        }
    }

    /// `pack` makes operands of pairs, given the piece's number and what was in its place.
    #[track_caller]
    fn exponentials(
        &self,
        s: &Acc<'k>,
        p: &Packed<'k>,
        shift: [Val<'k, F32>; THREAD_ROWS],
        pack: impl Fn(Pairs<'k>, usize, Words<'k>) -> Words<'k>,
    ) {
        let (weights, mut sums) = (self.of_t(), [None; THREAD_ROWS]);
        for (k16, p) in p.iter().enumerate() {
            let words =
                pack(self.pairs((s, &weights), k16, shift, &mut sums), k16, p.each_ref().map(Var::get));
            p.iter().zip(words).for_each(|(p, word)| p.set(word));
        }
        self.set_step_sums(sums);
    }

    /// 16 keys: their exponentials, which are added up.
    #[track_caller]
    fn pairs(
        &self,
        (s, weights): (&Acc<'k>, &StepWeights<'_, 'k>),
        k16: usize,
        shift: [Val<'k, F32>; THREAD_ROWS],
        sums: &mut Sums<'k>,
    ) -> Pairs<'k> {
        from_fn(|i| {
            let (group, row) = (2 * k16 + i / 2, i % 2);
            [0, 1].map(|x| {
                let e = weights.of([group, 2 * row + x], s.at(group, 2 * row + x).get(), shift[row]);
                sums[row] = Some(sums[row].map_or(e, |sum| sum + e));
                e
            })
        })
    }

    /// Pairs as operands: rounded, or as selectors say.
    #[track_caller]
    fn pack(&self, pairs: Pairs<'k>, selectors: Option<Words<'k>>) -> Words<'k> {
        from_fn(|i| {
            let [low, high] = pairs[i];
            match (selectors, self.half) {
                (Some(selectors), Half::Bf16) => low.cast::<B32>().permute(high.cast::<B32>(), selectors[i]),
                (Some(selectors), Half::F16) => low.pack(high, Half::F16, false).permute(0u32, selectors[i]),
                (None, half) => low.pack(high, half, false),
            }
        })
    }

    /// The same where zeros were before: dropped, or so small that they are zero again, now that the maximum has grown.
    /// (So the usual way need not keep the selectors.)
    #[track_caller]
    fn pack_again(&self, pairs: Pairs<'k>, before: Words<'k>) -> Words<'k> {
        let t = self.warp.threads();
        let kept = [t.u32(kept(self.half)).cast(); 4];
        let words = self.pack(pairs, Some(kept));
        from_fn(|i| {
            let half = |ones: u32| {
                (before[i] & ones).cast::<U32>().eq(0).select(t.u32(0), t.u32(ones)).cast::<B32>()
            };
            words[i] & (half(0xFFFF) | half(0xFFFF_0000))
        })
    }

    #[track_caller]
    fn set_step_sums(&self, sums: Sums<'k>) {
        for (sum, step_sum) in sums.into_iter().zip(&self.step_sum) {
            step_sum.set(sum.expect("a step has keys"));
        }
    }

    /// The rows' sums and logarithms.
    #[track_caller]
    pub(crate) fn finish(&self, sink: Option<Val<'k, F32>>) -> RowResult<'k> {
        if let Some(lift) = self.lift {
            self.sum.iter().for_each(|sum| sum.set(sum.get() * (-lift).exp2()));
        }
        RowResult::of((self.warp, self.stage), &self.max, &self.sum, sink)
    }
}
