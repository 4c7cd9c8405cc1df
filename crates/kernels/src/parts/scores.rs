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
//! | with a bias | q k softmax_scale + bias | 1 in base 2 |
//!
//! Where a mask is 0 or a bias -inf, t is -inf, whatever the product.
use super::args::ProblemVals;
use super::overlays::{Overlay, OverlayOf};
use crate::config::Scores;
use signflash_ptx::{Acc, F32, Thread, Val, Var};
use std::f32::consts::LOG2_E;

/// What becomes of scores in a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreStage<'k> {
    negates: bool,
    /// With a bias: softmax_scale.
    scale: Option<Val<'k, F32>>,
    factor: Val<'k, F32>,
}

impl<'k> ScoreStage<'k> {
    /// Of a problem, of such scores.
    pub(crate) fn new(t: Thread<'k>, problem: &ProblemVals<'k>, scores: Scores) -> Self {
        let has_bias = scores.overlays.bias.is_some();
        let scale = has_bias.then_some(problem.scale);
        let factor = if has_bias { t.f32(LOG2_E) } else { problem.scale_log2 };
        ScoreStage { negates: scores.negative_scale, scale, factor }
    }

    /// Products become t, in place, with what was read to be added to them, if anything is.
    #[track_caller]
    pub(crate) fn prepare(&self, s: &Acc<'k>, overlays: Option<&dyn OverlayOf<'k>>) {
        for group in 0..s.groups() {
            let overlays = overlays.map(|overlays| overlays.of(group));
            for register in 0..4 {
                let x = s.at(group, register);
                if self.negates {
                    x.set(-x.get());
                }
                if let Some(overlays) = &overlays {
                    x.set(self.add(x.get(), &overlays[register]));
                }
            }
        }
    }

    #[track_caller]
    fn add(&self, x: Val<'k, F32>, Overlay { number, seen }: &Overlay<'k>) -> Val<'k, F32> {
        let t = match number.zip(self.scale) {
            Some((number, scale)) => x.mul_add(scale, number),
            None => x,
        };
        seen.select::<F32>(t, f32::NEG_INFINITY)
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
