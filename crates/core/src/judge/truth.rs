//! What the oracle says of a problem, and of others' results.

use super::sizes::{Size, Sizes};
use super::{Bounds, Distance};
use crate::oracle::{self, Forward};
use crate::{Dtype, Element, Inputs, Problem, ProblemError, TensorName, TensorRef};

/// What a backward is of, beside the forward's operands.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a, T> {
    /// The gradient of out.
    pub dout: TensorRef<'a, T>,
    /// The gradient of lse, if there is one.
    pub dlse: Option<&'a [f32]>,
}

/// The oracle's results on the rounded operands, and what is needed to judge others by them.
///
/// ```
/// use signflash_core::{Inputs, Problem, Shape, TensorName, TensorRef, judge::{Backward, Truth}};
/// let shape = Shape::new(1, 1, 1).heads(1, 1).head_dim(2);
/// let problem = Problem::builder(shape).build()?;
/// let x = TensorRef::bshd(&[0.5f32, 0.7], shape.q());
/// let inputs = Inputs::new(x, x, x);
/// let truth = Truth::of(&problem, &inputs, Some(Backward { dout: x, dlse: None }))?;
/// assert_eq!(truth.tensor(TensorName::Out).unwrap().values, [0.5, f64::from(0.7f32)]);
/// // One key: dq is exactly 0, and what is near 0 beside <dout, v> is right.
/// let dq = truth.tensor(TensorName::Dq).unwrap();
/// assert!(dq.distance(|_| 1e-8).is_right() && !dq.distance(|_| 1e-5).is_right());
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Truth {
    out: Expected,
    lse: Expected,
    /// Those that there are; none without a backward.
    gradients: Vec<(TensorName, Expected)>,
    max_score: f64,
    deciding_score: f64,
    dtype: Dtype,
    head_dim: usize,
    /// That of dbias, if there is one.
    bias: Option<Dtype>,
}

/// One tensor as it should be.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Dense, in the order of the tensor's dimensions.
    pub values: Vec<f64>,
    size: Size,
    /// The contract's bound of this tensor, for these scores.
    bound: f64,
    /// From here on rounding may give an infinity.
    large: f64,
}

impl Truth {
    /// Of the forward and, if there is one, the backward.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit.
    pub fn of<T: Element>(
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        backward: Option<Backward<'_, T>>,
    ) -> Result<Self, ProblemError> {
        let forward = oracle::forward(problem, inputs)?;
        Self::from_forward(problem, inputs, backward, forward)
    }

    /// The same where out and lse are known: those of the whole, for a shard of its keys.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit.
    ///
    /// # Panics
    /// If `forward` is not of `problem`'s shape.
    pub fn from_forward<T: Element>(
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        backward: Option<Backward<'_, T>>,
        forward: Forward,
    ) -> Result<Self, ProblemError> {
        inputs.check(problem)?;
        let gradients = backward
            .map(|Backward { dout, dlse }| oracle::backward(problem, inputs, &dout, dlse, &forward))
            .transpose()?;
        let sizes = Sizes::of(problem, inputs, backward, &forward, gradients.as_ref());
        Ok(Self::of_dtype(T::DTYPE, problem, (forward, gradients), sizes))
    }

    fn of_dtype(
        dtype: Dtype,
        problem: &Problem,
        (forward, gradients): (Forward, Option<oracle::Gradients>),
        sizes: Sizes,
    ) -> Self {
        let expected = |tensor, values, size| Expected {
            values,
            size,
            bound: 0.0,
            large: if tensor == TensorName::Lse { f64::INFINITY } else { large(dtype) },
        };
        let Sizes { out, lse, gradients: of_gradients, max_score, deciding_score } = sizes;
        let bias = problem.bias().map(|bias| bias.dtype);
        let tensors = gradients.iter().flat_map(oracle::Gradients::tensors);
        let gradient = |((tensor, values), (_, size)): ((_, &Vec<f64>), _)| {
            let of_tensor = match tensor {
                TensorName::Dbias => bias.unwrap_or(Dtype::F32),
                TensorName::Dsinks => Dtype::F32,
                _ => dtype,
            };
            (tensor, Expected { large: large(of_tensor), ..expected(tensor, values.clone(), size) })
        };
        let mut truth = Self {
            gradients: tensors.zip(of_gradients).map(gradient).collect(),
            out: expected(TensorName::Out, forward.out, out),
            lse: expected(TensorName::Lse, forward.lse, lse),
            max_score,
            deciding_score,
            dtype,
            head_dim: problem.shape().head_dim,
            bias,
        };
        truth.limit_scores(f64::INFINITY);
        truth
    }

    /// Takes no larger scores for an excuse of a larger error: they are known to be exact.
    pub(crate) fn limit_scores(&mut self, largest: f64) {
        self.max_score = self.max_score.min(largest);
        self.deciding_score = self.deciding_score.min(largest);
        let bounds = Bounds::of(self.dtype).for_scores(self.deciding_score, self.head_dim);
        self.out.bound = bounds.out;
        self.lse.bound = bounds.lse;
        // dbias may be stored in a coarser dtype than q.
        let of_bias = bounds.gradients.max(self.bias.map_or(0.0, |dtype| Bounds::of(dtype).gradients));
        for (tensor, gradient) in &mut self.gradients {
            gradient.bound = if *tensor == TensorName::Dbias { of_bias } else { bounds.gradients };
        }
    }

    /// Lets gradients be off by so much more.
    #[cfg(feature = "suite")]
    pub(crate) fn widen_gradients(&mut self, more: f64) {
        self.gradients.iter_mut().for_each(|(_, gradient)| gradient.bound += more);
    }

    /// One tensor; `None` for what is not among them: gradients without a backward, probs, operands.
    pub fn tensor(&self, tensor: TensorName) -> Option<&Expected> {
        match tensor {
            TensorName::Out => Some(&self.out),
            TensorName::Lse => Some(&self.lse),
            _ => self.gradients.iter().find(|(name, _)| *name == tensor).map(|(_, gradient)| gradient),
        }
    }

    /// out.
    pub const fn out(&self) -> &Expected {
        &self.out
    }

    /// lse.
    pub const fn lse(&self) -> &Expected {
        &self.lse
    }

    /// The largest magnitude of a finite score.
    pub const fn max_score(&self) -> f64 {
        self.max_score
    }
}

impl Expected {
    /// How far a result is from this; `got` says its n-th number.
    pub fn distance(&self, got: impl Fn(usize) -> f64) -> Distance {
        self.measure(|n| {
            let got = got(n);
            if self.is_special(n, got) { (f64::NAN, 0.0) } else { (got, self.values[n]) }
        })
    }

    /// How far two results are from each other, judged by the size of this.
    pub fn distance_of_two(&self, ours: impl Fn(usize) -> f64, other: impl Fn(usize) -> f64) -> Distance {
        self.measure(|n| (ours(n), other(n))).of_two_results()
    }

    fn measure(&self, pair: impl Fn(usize) -> (f64, f64)) -> Distance {
        let Size { rounding, .. } = self.size;
        let finite = |x: &&f64| x.is_finite();
        let mut distance = Distance {
            bound: self.bound,
            rounding,
            terms: self.size.terms.iter().filter(finite).sum(),
            oracle: self.values.iter().filter(finite).map(|x| x * x).sum(),
            numbers: self.values.len() as u64,
            ..Distance::default()
        };
        for n in 0..self.values.len() {
            let (got, want) = pair(n);
            if !(self.values[n].abs() >= self.large && got.is_infinite() || got == want) {
                distance.add(got, want);
            }
        }
        distance
    }

    /// Whether the n-th number is NaN, infinite or something beside 0, and the oracle's is not, or the other way round.
    pub(crate) fn is_special(&self, n: usize, got: f64) -> bool {
        let want = self.values[n];
        let overflows = want.abs() >= self.large && got.is_infinite() && got.signum() == want.signum();
        let infinite = (got.is_infinite() || want.is_infinite()) && got != want;
        got.is_nan() != want.is_nan() || infinite && !overflows || self.must_be_zero(n) && got != 0.0
    }

    /// A number of a row without terms: no key is seen, or none is kept.
    fn must_be_zero(&self, n: usize) -> bool {
        let rows = self.size.terms.len().max(1);
        self.values[n] == 0.0 && self.size.terms[n / (self.values.len() / rows)] == 0.0
    }
}

/// Just below the largest number: what is larger may be rounded to infinity, here or there.
fn large(dtype: Dtype) -> f64 {
    0.99 * match dtype {
        Dtype::F32 | Dtype::Bf16 => f64::from(f32::MAX),
        Dtype::F16 => 65504.0,
    }
}
