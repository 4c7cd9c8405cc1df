//! What becomes of a product `<q, k>`: the one place that knows.

mod declared;
mod described;
mod features;
mod grad;
mod inputs;

use crate::problem::Problem;
pub use declared::{Bias, Slopes};
pub(crate) use declared::{Scores, place_of_piece};
pub use described::ScoreDescription;
pub use features::Feature;
pub use grad::BiasGrad;
pub(crate) use inputs::check_gradients;
pub use inputs::{BiasMut, BiasRef, ScoreInputs};

/// A score and its slope.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    /// `s[i,j]`, of which softmax makes the probability.
    pub(crate) value: f64,
    /// By how much the score grows with the product: what ds is multiplied with to become the product's gradient.
    pub(crate) slope: f64,
}

impl Problem {
    /// The score of a product, as the formulas say; `addend` is what ALiBi and a bias add.
    pub(crate) fn score(&self, product: f64, addend: f64) -> Score {
        let scale = self.softmax_scale();
        let (value, slope) = match self.softcap() {
            None => (scale * product, scale),
            Some(cap) => {
                let tanh = (scale * product / cap).tanh();
                (cap * tanh, scale * (1.0 - tanh * tanh))
            }
        };
        Score { value: value + addend, slope }
    }

    /// From where on scores saturate: they become `softcap * tanh(score / softcap)`, before anything is added.
    pub const fn softcap(&self) -> Option<f64> {
        self.scores.softcap
    }

    /// Which slopes ALiBi has, if it is used.
    pub const fn alibi(&self) -> Option<Slopes> {
        self.scores.alibi
    }

    /// The bias of scores, if there is one.
    pub const fn bias(&self) -> Option<Bias> {
        self.scores.bias
    }

    /// The shape of the mask, if there is one.
    pub const fn mask(&self) -> Option<[usize; 4]> {
        self.scores.mask
    }

    /// Whether every row has one more score, of a sink.
    pub const fn sinks(&self) -> bool {
        self.scores.sinks
    }

    /// `|softmax_scale| * log2(e)`: what engines multiply scores with, which then are exponents of 2. Never 0, so
    /// that a score of -inf, which hides a key, stays -inf; at the smallest normal number all weights are 1 just the
    /// same. Scores change their sign first if the problem [`negates`](Self::negates).
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let shape = Shape::new(1, 3, 3).heads(1, 1).head_dim(8);
    /// let of = |scale| Problem::builder(shape).softmax_scale(scale).build().map(|problem| problem.scale_log2());
    /// assert_eq!((of(0.5)?, of(-0.5)?, of(0.0)?), (0.72134752, 0.72134752, f32::MIN_POSITIVE));
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn scale_log2(&self) -> f32 {
        ((self.softmax_scale().abs() * std::f64::consts::LOG2_E) as f32).max(f32::MIN_POSITIVE)
    }

    /// Whether softmax_scale is negative, so that scores change their sign before [`scale_log2`](Self::scale_log2).
    pub fn negates(&self) -> bool {
        self.softmax_scale() < 0.0
    }
}
