//! What is to be computed, as Python says it.

use crate::foreign::ForeignTensor;
use crate::joined::Declared;
use crate::lengths::Lengths;
use signflash_core::{Dropout, Problem, ProblemError, ScaleRule, Shape, Shard};

/// Declares the settings once: a struct, the names of its fields, and how it is read from a tuple of Python's that
/// has them in this order. The package compares the names with those of its own `Settings` when it is imported.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// Everything but tensors and the random state.
        #[derive(Clone, Copy, Debug, PartialEq)]
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
    /// How many keys a query sees before the one that it faces; a negative number is all.
    window_left: i64,
    /// The same behind it.
    window_right: i64,
    /// `1 / (1 - p)` and not the unbiased scale.
    nominal: bool,
    /// Scores become `softcap * tanh(score / softcap)`; 0 for none.
    softcap: f64,
    /// The key that the first query faces; `None` is seqlen_k - seqlen_q.
    diagonal: Option<i64>,
    /// Where this lies in a larger problem.
    shard: Shard,
}

/// Everything is seen, and nothing dropped.
impl Default for Settings {
    fn default() -> Self {
        Self {
            dropout_p: 0.0,
            softmax_scale: None,
            causal: false,
            window_left: -1,
            window_right: -1,
            nominal: false,
            softcap: 0.0,
            diagonal: None,
            shard: Shard::default(),
        }
    }
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
    /// The problem of q (batch, seqlen_q, num_heads, head_dim), k (batch, seqlen_k, num_heads_k, head_dim) and v (batch,
    /// seqlen_k, num_heads_k, head_dim_v).
    ///
    /// # Errors
    /// A [`ProblemError`] naming the argument.
    pub fn problem(
        &self,
        state: &RandomState,
        [q, k, v]: [&ForeignTensor; 3],
        lengths: &Lengths,
        declared: &Declared,
    ) -> Result<Problem, ProblemError> {
        self.of_shape(state, shape_of([q.shape, k.shape, v.shape]), lengths, declared)
    }

    /// The problem of this shape: what each setting means.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the argument.
    pub fn of_shape(
        &self,
        state: &RandomState,
        shape: Shape,
        lengths: &Lengths,
        declared: &Declared,
    ) -> Result<Problem, ProblemError> {
        let Self { dropout_p, softmax_scale, causal, window_left, window_right, nominal, softcap, .. } =
            *self;
        let rule = if nominal { ScaleRule::Nominal } else { ScaleRule::Unbiased };
        let dropout = Dropout::new(dropout_p as f32, state.seed, state.offset)?.with_scale_rule(rule);
        let [left, right] = [window_left, window_right].map(|side| usize::try_from(side).ok());
        let builder =
            Problem::builder(shape).causal(causal).window(left, right).dropout(dropout).shard(self.shard);
        let builder = declared.of(lengths.of(builder)).softcap((softcap != 0.0).then_some(softcap));
        let builder = match self.diagonal {
            Some(diagonal) => builder.diagonal(diagonal),
            None => builder,
        };
        softmax_scale.map_or(builder.clone(), |scale| builder.softmax_scale(scale)).build()
    }
}

/// The sizes that q, k and v of these shapes have.
pub(crate) fn shape_of([q, k, v]: [[usize; 4]; 3]) -> Shape {
    let [batch, seqlen_q, num_heads, head_dim] = q;
    let [_, seqlen_k, num_heads_k, _] = k;
    let shape = Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k);
    shape.head_dim(head_dim).head_dim_v(v[3])
}
