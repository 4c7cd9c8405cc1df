//! What becomes of a score.
//!
//! A product q k becomes, in place, a number t ([`ScoreStage::prepare`]), so that its weight is always
//!
//! ```text
//! exp2(t * factor + shift)
//! ```
//! where shift is minus the running maximum in a forward and minus lse in a backward, both in base 2. What t and the
//! factor are is said here and nowhere else; the kernels of both orientations, whose rows are queries or keys, ask
//! here.
//!
//! | scores | t | factor |
//! |---|---|---|
//! | scaled | q k | softmax_scale in base 2 |
//! | scaled by a negative number | -q k | its magnitude in base 2 |
use super::args::ProblemVals;
use crate::config::Scores;
use signflash_ptx::{Acc, F32, Val, Var};

/// What becomes of scores in a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreStage<'k> {
    negates: bool,
    factor: Val<'k, F32>,
}

impl<'k> ScoreStage<'k> {
    /// Of a problem, of such scores.
    pub(crate) fn new(problem: &ProblemVals<'k>, scores: Scores) -> Self {
        ScoreStage { negates: scores.negative_scale, factor: problem.scale_log2 }
    }

    /// Products become t, in place.
    #[track_caller]
    pub(crate) fn prepare(&self, s: &Acc<'k>) {
        if self.negates {
            for (group, register) in (0..s.groups()).flat_map(|group| (0..4).map(move |r| (group, r))) {
                let x = s.at(group, register);
                x.set(-x.get());
            }
        }
    }

    /// The weight of t.
    #[track_caller]
    pub(crate) fn weight(&self, t: Val<'k, F32>, shift: Val<'k, F32>) -> Val<'k, F32> {
        t.mul_add(self.factor, shift).ex2()
    }

    /// What t is multiplied by, in base 2.
    pub(crate) fn factor(&self) -> Val<'k, F32> {
        self.factor
    }
}

/// The gradient of a probability, dp, becomes that of its score but for softmax_scale, in place. With dropout, the
/// sign of `p` says what is dropped.
#[track_caller]
pub(crate) fn score_gradient<'k>(dp: &Var<'k, F32>, p: Val<'k, F32>, delta: Val<'k, F32>, dropout: bool) {
    dp.set(match dropout {
        // The dropped p is negative: max(p, 0) is what dp counts for, |p| what delta counts for.
        true => p.max(0.0).mul_add(dp.get(), -(p.abs() * delta)),
        false => p * (dp.get() - delta),
    });
}

/// The same, with dropout twice as large, which takes an instruction less.
#[track_caller]
pub(crate) fn doubled_score_gradient<'k>(
    dp: &Var<'k, F32>,
    p: Val<'k, F32>,
    delta: Val<'k, F32>,
    dropout: bool,
) {
    dp.set(match dropout {
        // The dropped p is negative: p + |p| is what dp counts for, |p| what delta, doubled, counts for.
        true => (p + p.abs()).mul_add(dp.get(), -(p.abs() * delta)),
        false => p * (dp.get() - delta),
    });
}
