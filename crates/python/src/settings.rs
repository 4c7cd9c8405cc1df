//! What is to be computed, as Python says it.

use crate::foreign::ForeignTensor;
use signflash_core::{Dropout, Problem, ProblemError, ScaleRule, Shape, Shard};

/// Everything but tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Whether later keys are hidden, bottom-right aligned.
    pub causal: bool,
    /// The factor of the scores; `None` is `1 / sqrt(head_dim)`.
    pub softmax_scale: Option<f64>,
    /// The probability of dropping.
    pub dropout_p: f64,
    /// The generator's key.
    pub seed: u64,
    /// The generator's counter.
    pub offset: u64,
    /// `1 / (1 - p)` and not the unbiased scale.
    pub nominal: bool,
    /// Where this lies in a larger problem.
    pub shard: Shard,
}

impl Settings {
    /// The problem of q (batch, seqlen_q, num_heads, head_dim) and k (batch, seqlen_k, num_heads_k, head_dim).
    ///
    /// # Errors
    /// A [`ProblemError`] naming the argument.
    pub fn problem(&self, q: &ForeignTensor, k: &ForeignTensor) -> Result<Problem, ProblemError> {
        let [batch, seqlen_q, num_heads, head_dim] = q.shape;
        let [_, seqlen_k, num_heads_k, _] = k.shape;
        self.of_shape(Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim))
    }

    /// The problem of this shape.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the argument.
    pub fn of_shape(&self, shape: Shape) -> Result<Problem, ProblemError> {
        let rule = if self.nominal { ScaleRule::Nominal } else { ScaleRule::Unbiased };
        let dropout = Dropout::new(self.dropout_p as f32, self.seed, self.offset)?.with_scale_rule(rule);
        let builder = Problem::builder(shape).causal(self.causal).dropout(dropout).shard(self.shard);
        self.softmax_scale.map_or(builder.clone(), |scale| builder.softmax_scale(scale)).build()
    }
}
