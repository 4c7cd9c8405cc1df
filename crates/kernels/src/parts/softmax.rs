//! Online softmax over the rows of a warp's accumulators (Milakov, Gimelshein 2018; as in FlashAttention).
use super::scores::ScoreStage;
use signflash_ptx::{Acc, F32, Pred, Thread, Val, Var, Warp};
use std::array::from_fn;
use std::f32::consts::{LN_2, LOG2_E};

/// Rows of a 16-row accumulator that one thread holds parts of: g and g + 8.
pub(crate) const THREAD_ROWS: usize = 2;

/// Combines a value over the four lanes that share a row.
#[track_caller]
pub(crate) fn over_row<'k>(
    warp: Warp<'k>,
    value: Val<'k, F32>,
    combine: impl Fn(Val<'k, F32>, Val<'k, F32>) -> Val<'k, F32>,
) -> Val<'k, F32> {
    [1, 2].into_iter().fold(value, |value, lanes| combine(value, warp.shuffle_xor(value, lanes)))
}

/// The running maximum and sum of a thread's two rows.
#[derive(Debug)]
pub(crate) struct OnlineSoftmax<'k> {
    warp: Warp<'k>,
    stage: ScoreStage<'k>,
    /// Of scores before they are scaled.
    max: [Var<'k, F32>; THREAD_ROWS],
    /// Of this thread's columns only; added up at the end.
    sum: [Var<'k, F32>; THREAD_ROWS],
}

/// By how many powers of two exponentials may exceed 1.
pub(crate) const GROWTH_LOG2: f32 = 8.0;

/// From this magnitude of a row's maximum in base 2 on, it is taken from the scores before they are scaled.
///
/// Else one fused multiply-add scales a score and subtracts the scaled maximum, which has been rounded: that moves
/// the exponents of a row, all alike, by 2^-9 here, and by 128 at 2^31, where nothing would be left of the row, or
/// infinity.
pub(crate) const LARGE_LOG2: f32 = 65536.0;

/// Up to which magnitude of lse p is recomputed from it. lse has been rounded to f32, which moves p by up to 2^-23 of
/// lse: by 2^-13 at 1024, by 1/8 here. What lies beyond is NaN rather than wrong.
pub(crate) const LARGEST_LSE: f32 = 1_048_576.0;

/// A row's lse as what p = exp(s - lse) is recomputed from. Without keys it is -inf, and p shall be 0, not
/// exp(s + inf).
#[track_caller]
pub(crate) fn lse_of_p<'k>(t: Thread<'k>, lse: Val<'k, F32>) -> Val<'k, F32> {
    let in_reach = t.f32(LARGEST_LSE).lt(lse.abs()).select(t.f32(f32::NAN), lse);
    lse.eq(f32::NEG_INFINITY).select(t.f32(f32::INFINITY), in_reach)
}

/// Takes `base` from a row's scores: exactly where they are near it, which are those that count.
#[track_caller]
pub(crate) fn subtract<'k>(s: &Acc<'k>, row: usize, base: Val<'k, F32>) {
    for cell in (0..s.groups()).flat_map(|group| [2 * row, 2 * row + 1].map(|r| s.at(group, r))) {
        cell.set(cell.get() - base);
    }
}

/// A row that has seen no key yet must not compute -inf - -inf.
#[track_caller]
pub(crate) fn finite<'k>(t: Thread<'k>, max: Val<'k, F32>) -> Val<'k, F32> {
    max.eq(f32::NEG_INFINITY).select(t.f32(0.0), max)
}

/// A thread's two rows at the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowResult<'k> {
    /// 1 / (sum of exponentials), or 0 for a row without keys.
    pub(crate) inverse: [Val<'k, F32>; THREAD_ROWS],
    /// Natural logarithm of the sum of exponentials, or -inf.
    pub(crate) lse: [Val<'k, F32>; THREAD_ROWS],
}

impl<'k> OnlineSoftmax<'k> {
    #[track_caller]
    pub(crate) fn new(warp: Warp<'k>, stage: ScoreStage<'k>) -> Self {
        let fill = |x: f32| from_fn(|_| warp.threads().f32(x).var());
        OnlineSoftmax { warp, stage, max: fill(f32::NEG_INFINITY), sum: fill(0.0) }
    }

    /// Turns scores into exponentials relative to a maximum, and adds them to the sums.
    ///
    /// The maximum is the one of some earlier step unless a row has grown beyond it by 2^8 or more: only then, which a
    /// warp decides as one, is `out` multiplied. (The idea is FlashAttention-4's. The result does not depend on which
    /// maximum is used, but for roundings; exponentials stay below 2^8, far from f16's largest number.)
    #[track_caller]
    pub(crate) fn step(&self, s: &Acc<'k>, out: &Acc<'k>) {
        let t = self.warp.threads();
        let cells = |row: usize| {
            (0..s.groups()).flat_map(move |group| [2 * row, 2 * row + 1].map(|r| s.at(group, r)))
        };
        let newest: [_; THREAD_ROWS] = from_fn(|row| {
            let own = cells(row).fold(self.max[row].get(), |max, x| max.max(x.get()));
            over_row(self.warp, own, |a, b| a.max(b))
        });
        // A row that sees its first key has grown from -inf. A row without keys has not: -inf - -inf is NaN, which
        // exceeds nothing.
        let grown = |row: usize| {
            let by = (newest[row] - self.max[row].get()) * self.stage.factor();
            t.f32(GROWTH_LOG2).lt(by)
        };
        self.warp.when(self.warp.any(grown(0) | grown(1)), |_| {
            let corrections: [_; THREAD_ROWS] = from_fn(|row| {
                let (shift, is_large) = self.shift(newest[row]);
                let base = is_large.select(finite(t, newest[row]), t.f32(0.0));
                let shift = is_large.select(t.f32(0.0), shift);
                let correction = self.stage.weight(self.max[row].get() - base, shift);
                self.sum[row].set(self.sum[row].get() * correction);
                self.max[row].set(newest[row]);
                correction
            });
            scale_rows(out, corrections);
        });
        let shifts = [0, 1].map(|row| self.shift(self.max[row].get()));
        let shift = shifts.map(|(shift, _)| shift.var());
        self.warp.when(self.warp.any(shifts[0].1 | shifts[1].1), |_| {
            for (row, (own, is_large)) in shifts.into_iter().enumerate() {
                subtract(s, row, is_large.select(finite(t, self.max[row].get()), t.f32(0.0)));
                shift[row].set(is_large.select(t.f32(0.0), own));
            }
        });
        for (row, shift) in shift.iter().map(Var::get).enumerate() {
            let mut sum = self.sum[row].get();
            for x in cells(row) {
                let p = self.stage.weight(x.get(), shift);
                x.set(p);
                sum = sum + p;
            }
            self.sum[row].set(sum);
        }
    }

    /// What scores are shifted by in base 2 when this is their maximum; and whether that is too large to be rounded.
    #[track_caller]
    fn shift(&self, max: Val<'k, F32>) -> (Val<'k, F32>, Val<'k, Pred>) {
        let t = self.warp.threads();
        let shift = -(finite(t, max) * self.stage.factor());
        (shift, t.f32(LARGE_LOG2).lt(shift.abs()))
    }

    /// The rows' sums and logarithms.
    #[track_caller]
    pub(crate) fn finish(&self, sink: Option<Val<'k, F32>>) -> RowResult<'k> {
        RowResult::of((self.warp, self.stage), &self.max, &self.sum, sink)
    }
}

impl<'k> RowResult<'k> {
    /// Of a thread's running maxima and sums, those of its own columns; and of one more score, if rows have one.
    #[track_caller]
    pub(crate) fn of(
        (warp, stage): (Warp<'k>, ScoreStage<'k>),
        max: &[Var<'k, F32>; THREAD_ROWS],
        sum: &[Var<'k, F32>; THREAD_ROWS],
        sink: Option<Val<'k, F32>>,
    ) -> Self {
        let t = warp.threads();
        let sum: [_; THREAD_ROWS] = from_fn(|row| over_row(warp, sum[row].get(), |a, b| a + b));
        if let Some(sink) = sink {
            return Self::with_sink((t, stage), max, sum, sink);
        }
        RowResult {
            inverse: sum.map(|sum| sum.eq(0.0).select(t.f32(0.0), sum.rcp())),
            lse: from_fn(|row| {
                // The scale in base 2 would make infinities of the largest scores.
                let (ln_2, scale) = (LN_2, stage.factor() * LN_2);
                let lse = max[row].get().mul_add(scale, sum[row].lg2() * ln_2);
                sum[row].eq(0.0).select(t.f32(f32::NEG_INFINITY), lse)
            }),
        }
    }
}

impl<'k> RowResult<'k> {
    /// The same of these keys and others together, whose lse is given, and what part of it their out has. A row that has seen
    /// no key keeps its 0.
    #[track_caller]
    pub(crate) fn with_others(
        self,
        t: Thread<'k>,
        others: [Val<'k, F32>; THREAD_ROWS],
    ) -> (Self, [Val<'k, F32>; THREAD_ROWS]) {
        /// Less than any lse of a row that sees a key.
        const LEAST: f32 = -3.0e38;
        let one = t.f32(1.0);
        let rows: [_; THREAD_ROWS] = from_fn(|row| {
            let (own, other) = (self.lse[row], others[row]);
            let known = other.eq(f32::NEG_INFINITY).select(t.f32(LEAST), other);
            let ahead = (known - own) * LOG2_E;
            let (new, old) = ((one + ahead.ex2()).rcp(), (one + (-ahead).ex2()).rcp());
            let both = own.max(other) + (one + (-ahead.abs()).ex2()).lg2() * LN_2;
            (self.inverse[row] * new, both, old)
        });
        let both = RowResult { inverse: rows.map(|row| row.0), lse: rows.map(|row| row.1) };
        (both, rows.map(|row| row.2))
    }
}

/// Multiplies each row of an accumulator.
#[track_caller]
pub(crate) fn scale_rows<'k>(acc: &Acc<'k>, factors: [Val<'k, F32>; THREAD_ROWS]) {
    for group in 0..acc.groups() {
        for register in 0..4 {
            let cell = acc.at(group, register);
            cell.set(cell.get() * factors[register / 2]);
        }
    }
}
