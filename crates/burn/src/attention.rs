//! Attention of Burn's tensors.

use crate::inputs::{Inputs, ScoreInputs};
use crate::operator::{Call, Forward, MaybeBool, MaybeFloat, Operands, SignflashBackend as _};
use crate::scores::{declare, judge, judge_fit};
use burn::backend::Dispatch;
use burn::tensor::Tensor;
use signflash_core::{Dropout, Problem, ProblemBuilder, Shape, SharedGenerator as Generator};

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
    deterministic: bool,
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

    /// Whether gradients have the same bits in every run on a GPU, too, where that takes longer. On a CPU they always do.
    pub fn deterministic(self, deterministic: bool) -> Self {
        Self { deterministic, ..self }
    }

    /// Attention of q (batch, num_heads, seqlen_q, head_dim), k (batch, num_heads_k, seqlen_k, head_dim) and v (batch,
    /// num_heads_k, seqlen_k, head_dim_v), of one dtype and any strides. Differentiable in all three. It drops where q's
    /// device has autodiff, as `burn::nn::Dropout` does.
    ///
    /// # Panics
    /// If a tensor does not fit the others, or its dtype or device is not computed; the message names it.
    pub fn forward(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        self.forward_with([q, k, v])
    }

    /// The same of tensors with more that scores are made of: slopes of ALiBi, a bias, a mask, sinks; or told whether to
    /// drop. Differentiable in the bias and the sinks, too.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_with(&self, inputs: impl Into<Inputs<4>>) -> Tensor<4> {
        self.run(inputs.into(), None)
    }

    /// Attention of sequences of different lengths, one behind the other: q is (all queries, num_heads, head_dim), k and v
    /// are (all keys, num_heads_k, head_dim), and so is what comes out. Sequence `b` has the queries from `cu_seqlens_q[b]`
    /// up to `cu_seqlens_q[b + 1]`, likewise its keys, and attends to itself alone.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use signflash_burn::Attention;
    ///
    /// // Sequences of 10, 17 and 3 tokens.
    /// let q = Tensor::<3>::random([30, 8, 64], Distribution::Normal(0.0, 1.0), &Device::flex());
    /// let cu_seqlens = [0, 10, 27, 30];
    /// let out = Attention::new().causal(true).forward_packed([q.clone(), q.clone(), q], &cu_seqlens, &cu_seqlens);
    /// assert_eq!(out.dims(), [30, 8, 64]);
    /// ```
    ///
    /// # Panics
    /// As [`forward`](Self::forward), or at numbers that no sequence can begin or end at.
    pub fn forward_packed(
        &self,
        inputs: impl Into<Inputs<3>>,
        cu_seqlens_q: &[u32],
        cu_seqlens_k: &[u32],
    ) -> Tensor<3> {
        let Inputs { q, k, v, scores, train } = inputs.into();
        let [q, k, v] = [q, k, v].map(|x| x.swap_dims(0, 1).unsqueeze::<4>());
        let out = self.run(Inputs { q, k, v, scores, train }, Some([cu_seqlens_q, cu_seqlens_k]));
        out.squeeze_dim::<3>(0).swap_dims(0, 1)
    }

    fn run(&self, inputs: Inputs<4>, cu_seqlens: Option<[&[u32]; 2]>) -> Tensor<4> {
        let [batch, num_heads, seqlen_q, head_dim] = inputs.q.dims();
        let [_, num_heads_k, seqlen_k, _] = inputs.k.dims();
        let shape = Shape::new(batch, seqlen_q, seqlen_k)
            .heads(num_heads, num_heads_k)
            .head_dim(head_dim)
            .head_dim_v(inputs.v.dims()[3]);
        let (train, mut builder, mut keys) = (inputs.drops(), self.builder(shape), seqlen_k);
        let mut drawn_for = shape; // a packed batch draws as many masks as it has sequences
        if let Some([cu_seqlens_q, cu_seqlens_k]) = cu_seqlens {
            builder = builder.packed(cu_seqlens_q, cu_seqlens_k);
            drawn_for = shape.batch(cu_seqlens_q.len().saturating_sub(1));
            let len = |ends: &[u32]| ends[1].saturating_sub(ends[0]) as usize;
            keys = cu_seqlens_k.windows(2).map(len).max().unwrap_or(0);
        }
        let inputs = judge(inputs, Some(keys));
        // Judged first, so that a call that is refused uses up no random numbers.
        let problem = or_panic(declare(&inputs.scores, builder).build());
        judge_fit(&problem, &inputs);
        let problem = match self.next_dropout(&drawn_for, train) {
            Some(dropout) => or_panic(problem.to_builder().dropout(dropout).build()),
            None => problem,
        };
        run(Call { problem, with_lse: false, deterministic: self.deterministic }, inputs).0
    }

    fn builder(&self, shape: Shape) -> ProblemBuilder {
        let builder = Problem::builder(shape).causal(self.causal).window(self.window[0], self.window[1]);
        let builder = builder.softcap(self.softcap);
        match self.softmax_scale {
            Some(scale) => builder.softmax_scale(scale),
            None => builder,
        }
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

/// The attention that `problem` describes: tensors are (batch, heads, seqlen, head_dim) with its sizes, and what else scores
/// are made of is what it declares. Differentiable in q, k, v, the bias and the sinks; a second derivative is refused.
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
/// assert_eq!(attention(&problem, [q, k.clone(), k]).dims(), [1, 4, 10, 16]);
/// ```
///
/// # Panics
/// As [`Attention::forward`], or if what scores are made of is not what the problem declares.
pub fn attention(problem: &Problem, inputs: impl Into<Inputs<4>>) -> Tensor<4> {
    run_problem(problem, inputs.into(), false).0
}

/// The same, and lse, (batch, num_heads, seqlen_q), f32: the natural logarithm of each row's sum of exponentials, -inf where
/// a query sees no key. Differentiable, too; a loss that depends on both takes two backwards.
///
/// # Panics
/// As [`attention`].
pub fn attention_with_lse(problem: &Problem, inputs: impl Into<Inputs<4>>) -> (Tensor<4>, Tensor<3>) {
    run_problem(problem, inputs.into(), true)
}

fn run_problem(problem: &Problem, inputs: Inputs<4>, with_lse: bool) -> (Tensor<4>, Tensor<3>) {
    let inputs = judge(inputs, None);
    judge_fit(problem, &inputs);
    run(Call { problem: problem.clone(), with_lse, deterministic: false }, inputs)
}

/// Of tensors that were judged.
fn run(call: Call, inputs: Inputs<4>) -> (Tensor<4>, Tensor<3>) {
    let Inputs { q, k, v, scores: ScoreInputs { alibi_slopes, bias, mask, sinks }, .. } = inputs;
    let operands = Operands {
        q: q.into_dispatch(),
        k: k.into_dispatch(),
        v: v.into_dispatch(),
        alibi_slopes: maybe(alibi_slopes),
        bias: maybe(bias),
        // Burn's masks say what is hidden, the engine's what is seen.
        mask: mask.map_or(MaybeBool::Absent, |mask| MaybeBool::Given(mask.bool_not().into_dispatch())),
        sinks: maybe(sinks),
    };
    let Forward { out, lse } = Dispatch::signflash_forward(operands, call);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

fn maybe<const D: usize>(tensor: Option<Tensor<D>>) -> MaybeFloat<Dispatch> {
    MaybeFloat::of(tensor.map(Tensor::into_dispatch))
}

/// The value, or a panic in the error's words.
pub(crate) fn or_panic<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("signflash: {error}"))
}
