//! Attention of Burn's tensors.

use crate::operator::{Call, SignflashBackend as _};
use burn::backend::Dispatch;
use burn::tensor::Tensor;
use signflash_core::{Dropout, Problem, ProblemError, Shape, SharedGenerator as Generator};

/// Attention with settings that stay from call to call. It has no weights;
/// [`MultiHeadAttention`](crate::MultiHeadAttention) does.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use signflash_burn::{Attention, Generator};
///
/// let device = Device::flex(); // without autodiff: evaluation, nothing is dropped
/// let attention = Attention::new().causal(true).window(Some(256), None).dropout(0.1, &Generator::new(42));
/// let q = Tensor::<4>::random([2, 8, 100, 64], Distribution::Normal(0.0, 1.0), &device);
/// let k = Tensor::<4>::random([2, 2, 120, 64], Distribution::Normal(0.0, 1.0), &device); // a head serves four of q's
/// assert_eq!(attention.forward(q, k.clone(), k).dims(), [2, 8, 100, 64]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Attention {
    causal: bool,
    window: [Option<usize>; 2],
    softcap: Option<f64>,
    softmax_scale: Option<f64>,
    dropout: Option<(f32, Generator)>,
}

impl Attention {
    /// Every query sees every key, nothing is dropped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a query sees only keys up to the one it faces; the last query faces the last key.
    pub fn causal(self, causal: bool) -> Self {
        Self { causal, ..self }
    }

    /// How many keys a query sees before the one that it faces, and how many behind; `None` for all there are.
    pub fn window(self, left: Option<usize>, right: Option<usize>) -> Self {
        Self { window: [left, right], ..self }
    }

    /// Scores become `softcap * tanh(score / softcap)`; `None` leaves them as they are.
    pub fn softcap(self, softcap: Option<f64>) -> Self {
        Self { softcap, ..self }
    }

    /// The factor of the scores; without it `1 / sqrt(head_dim)`.
    pub fn softmax_scale(self, softmax_scale: f64) -> Self {
        Self { softmax_scale: Some(softmax_scale), ..self }
    }

    /// In training, drops each probability with this one (in steps of 1/256), by masks that the generator hands out, one a
    /// call. What is kept is scaled so that its mean stays.
    pub fn dropout(self, dropout_p: f32, generator: &Generator) -> Self {
        Self { dropout: Some((dropout_p, generator.clone())), ..self }
    }

    /// Attention of q (batch, num_heads, seqlen_q, head_dim), k (batch, num_heads_k, seqlen_k, head_dim) and v (batch,
    /// num_heads_k, seqlen_k, head_dim_v), of one dtype and any strides. Differentiable in all three. It drops where q's
    /// device has autodiff, as `burn::nn::Dropout` does.
    ///
    /// # Panics
    /// If a tensor does not fit the others, or its dtype or device is not computed; the message names it.
    pub fn forward(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        let train = q.device().is_autodiff();
        self.forward_if(q, k, v, train)
    }

    /// The same, but `train` says whether to drop.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_if(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, train: bool) -> Tensor<4> {
        let [batch, num_heads, seqlen_q, head_dim] = q.dims();
        let [_, num_heads_k, seqlen_k, _] = k.dims();
        let shape = Shape::new(batch, seqlen_q, seqlen_k)
            .heads(num_heads, num_heads_k)
            .head_dim(head_dim)
            .head_dim_v(v.dims()[3]);
        let problem = or_panic(self.problem(shape));
        // Judged first, so that a call that is refused uses up no random numbers.
        let problem = match self.next_dropout(&shape, train) {
            Some(dropout) => or_panic(problem.to_builder().dropout(dropout).build()),
            None => problem,
        };
        attention(&problem, q, k, v)
    }

    fn problem(&self, shape: Shape) -> Result<Problem, ProblemError> {
        let builder = Problem::builder(shape).causal(self.causal).window(self.window[0], self.window[1]);
        let builder = builder.softcap(self.softcap);
        match self.softmax_scale {
            Some(scale) => builder.softmax_scale(scale),
            None => builder,
        }
        .build()
    }

    fn next_dropout(&self, shape: &Shape, train: bool) -> Option<Dropout> {
        match &self.dropout {
            Some((dropout_p, generator)) if train => {
                Some(or_panic(generator.next_dropout(*dropout_p, shape)))
            }
            _ => None,
        }
    }
}

/// The attention that `problem` describes: tensors are (batch, heads, seqlen, head_dim) with its sizes. Differentiable in
/// q, k and v; a second derivative is refused.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use signflash_burn::{Dropout, Problem, Shape, attention};
///
/// let shape = Shape::new(1, 10, 12).heads(4, 2).head_dim(16);
/// let dropout = Dropout::new(0.1, 42, 0).unwrap(); // probability, seed, offset
/// let problem = Problem::builder(shape).dropout(dropout).build().unwrap();
/// let q = Tensor::<4>::random([1, 4, 10, 16], Distribution::Normal(0.0, 1.0), &Device::flex());
/// let k = Tensor::<4>::random([1, 2, 12, 16], Distribution::Normal(0.0, 1.0), &Device::flex());
/// assert_eq!(attention(&problem, q, k.clone(), k).dims(), [1, 4, 10, 16]);
/// ```
///
/// # Panics
/// As [`Attention::forward`], or if the problem declares operands of scores besides q and k.
pub fn attention(problem: &Problem, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    for (name, x) in [("k", &k), ("v", &v)] {
        let (expected, got) = (q.dtype(), x.dtype());
        assert!(got == expected, "signflash: {name} must have q's dtype {expected:?}, got {got:?}; cast it");
    }
    let results = Dispatch::signflash_forward(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        Call(problem.clone()),
    );
    Tensor::from_dispatch(results.out)
}

/// The value, or a panic in the error's words.
pub(crate) fn or_panic<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("signflash: {error}"))
}
