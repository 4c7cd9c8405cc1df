//! What is to be computed, as Python says it.

use crate::foreign::ForeignTensor;
use signflash_core::{Dropout, Problem, ProblemError, ScaleRule, Shape, Shard};

/// Declares the settings once: a struct, the names of its fields, and how it is read from a tuple of Python's that
/// has them in this order. The package compares the names with those of its own `Settings` when it is imported.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// Everything but tensors and the random state.
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct Settings {
            $($(#[$doc])* pub $name: $kind,)*
        }

        impl Settings {
            /// The names of the fields, in the order of Python's tuple.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];
        }

        #[cfg(feature = "extension")]
        impl<'a, 'py> pyo3::FromPyObject<'a, 'py> for Settings {
            type Error = pyo3::PyErr;

            fn extract(tuple: pyo3::Borrowed<'a, 'py, pyo3::PyAny>) -> pyo3::PyResult<Self> {
                let mut fields = crate::arguments::Fields::of(tuple)?;
                Ok(Self { $($name: fields.take()?,)* })
            }
        }
    };
}

settings! {
    /// The probability of dropping.
    dropout_p: f64,
    /// The factor of the scores; `None` is `1 / sqrt(head_dim)`.
    softmax_scale: Option<f64>,
    /// Whether later keys are hidden, bottom-right aligned.
    causal: bool,
    /// `1 / (1 - p)` and not the unbiased scale.
    nominal: bool,
    /// Where this lies in a larger problem.
    shard: Shard,
}

/// What the dropout mask is drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RandomState {
    /// The generator's key.
    pub seed: u64,
    /// The generator's counter.
    pub offset: u64,
    /// On a GPU, the address of both where they are not known here; or 0.
    pub address: u64,
}

impl Settings {
    /// The problem of q (batch, seqlen_q, num_heads, head_dim) and k (batch, seqlen_k, num_heads_k, head_dim).
    ///
    /// # Errors
    /// A [`ProblemError`] naming the argument.
    pub fn problem(
        &self,
        state: &RandomState,
        q: &ForeignTensor,
        k: &ForeignTensor,
    ) -> Result<Problem, ProblemError> {
        let [batch, seqlen_q, num_heads, head_dim] = q.shape;
        let [_, seqlen_k, num_heads_k, _] = k.shape;
        self.of_shape(
            state,
            Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim),
        )
    }

    /// The problem of this shape: what each setting means.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the argument.
    pub fn of_shape(&self, state: &RandomState, shape: Shape) -> Result<Problem, ProblemError> {
        let Self { dropout_p, softmax_scale, causal, nominal, shard } = *self;
        let rule = if nominal { ScaleRule::Nominal } else { ScaleRule::Unbiased };
        let dropout = Dropout::new(dropout_p as f32, state.seed, state.offset)?.with_scale_rule(rule);
        let builder = Problem::builder(shape).causal(causal).dropout(dropout).shard(shard);
        softmax_scale.map_or(builder.clone(), |scale| builder.softmax_scale(scale)).build()
    }
}
