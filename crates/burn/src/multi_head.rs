//! Burn's layer, with our attention inside.

use crate::attention::Attention;
use crate::inputs::{Inputs, ScoreInputs};
use burn::module::Module;
use burn::nn::attention::MultiHeadAttention as BurnMultiHeadAttention;
use burn::nn::{Dropout, Linear};
use burn::tensor::{DType, Tensor};
use signflash_core::SharedGenerator as Generator;

/// `burn::nn::attention::MultiHeadAttention` with the same weights under the same names, so that records of one load into
/// the other. Dropout acts on the probabilities, after the softmax, as Burn's does, and costs no memory; the weights of
/// attention are not returned, since they do not exist. Burn's quiet softmax is that of sinks of 0.
///
/// A query that sees no key, since masks hide them all, gets 0 here. Burn's layer gives it the mean of the values, for it
/// hides with a large finite number.
///
/// ```
/// use burn::nn::attention::MultiHeadAttentionConfig;
/// use burn::tensor::{Device, Distribution, Tensor};
/// use signflash_burn::{Generator, MultiHeadAttention};
///
/// let device = Device::flex().autodiff();
/// let config = MultiHeadAttentionConfig::new(64, 4).with_dropout(0.1);
/// let layer = MultiHeadAttention::from_burn(config.init(&device), &Generator::new(42)).causal(true);
/// let x = Tensor::<3>::random([2, 10, 64], Distribution::Normal(0.0, 1.0), &device);
/// assert_eq!(layer.forward(x).dims(), [2, 10, 64]);
/// ```
#[derive(Module, Debug)]
pub struct MultiHeadAttention {
    /// Projects the queries.
    pub query: Linear,
    /// Projects the keys.
    pub key: Linear,
    /// Projects the values.
    pub value: Linear,
    /// Projects what comes out.
    pub output: Linear,
    /// How much is dropped in training, and whether this layer takes part in it. Its own random numbers are not used.
    pub dropout: Dropout,
    /// The number of heads.
    pub n_heads: usize,
    /// Whether a query may look at nothing: one more score of 0 in the denominator.
    pub quiet_softmax: bool,
    #[module(skip)]
    attention: Attention,
    #[module(skip)]
    generator: Generator,
    #[module(skip)]
    attention_dtype: Option<DType>,
}

impl MultiHeadAttention {
    /// Burn's layer, its weights and its dropout; masks are handed out by `generator`.
    pub fn from_burn(layer: BurnMultiHeadAttention, generator: &Generator) -> Self {
        let BurnMultiHeadAttention { query, key, value, output, dropout, n_heads, quiet_softmax, .. } = layer;
        let (attention, generator) = (Attention::new(), generator.clone());
        Self {
            query,
            key,
            value,
            output,
            dropout,
            n_heads,
            quiet_softmax,
            attention,
            generator,
            attention_dtype: None,
        }
    }

    /// Whether a query sees only keys up to its own.
    pub fn causal(self, causal: bool) -> Self {
        Self { attention: self.attention.causal(causal), ..self }
    }

    /// How many keys a query sees before the one that it faces, and how many behind; `None` for all there are.
    pub fn window(self, left: Option<usize>, right: Option<usize>) -> Self {
        Self { attention: self.attention.window(left, right), ..self }
    }

    /// The dtype that q, k and v are cast to for attention alone, and what comes out back: for weights of f32 on a GPU, where
    /// attention takes f16 and bf16. `None` leaves them as they are.
    pub fn attention_dtype(self, dtype: impl Into<Option<DType>>) -> Self {
        Self { attention_dtype: dtype.into(), ..self }
    }

    /// Whether gradients have the same bits in every run on a GPU, too: [`Attention::deterministic`].
    pub fn deterministic(self, deterministic: bool) -> Self {
        Self { attention: self.attention.deterministic(deterministic), ..self }
    }

    /// Self-attention of `x`, (batch, seqlen, d_model).
    ///
    /// # Panics
    /// As [`Attention::forward`].
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.forward_cross(x.clone(), x.clone(), x)
    }

    /// Attention of the queries of `query`, (batch, seqlen_q, d_model), to the keys of `key` with the values of `value`,
    /// both (batch, seqlen_k, d_model).
    ///
    /// # Panics
    /// As [`Attention::forward`].
    pub fn forward_cross(&self, query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Tensor<3> {
        self.forward_with([query, key, value], ScoreInputs::default())
    }

    /// The same with more that scores are made of: masks as Burn's layer takes them
    /// ([`mask_pad`](ScoreInputs::mask_pad), [`mask_attn`](ScoreInputs::mask_attn)), a bias, slopes, sinks.
    ///
    /// # Panics
    /// As [`Attention::forward`], or if sinks are given to a layer that has the quiet softmax.
    pub fn forward_with(&self, [query, key, value]: [Tensor<3>; 3], scores: ScoreInputs) -> Tensor<3> {
        let q = self.heads(query, &self.query);
        self.attend(q, self.heads(key, &self.key), self.heads(value, &self.value), scores)
    }

    /// A projection, (batch, num_heads, seqlen, head_dim).
    pub(crate) fn heads(&self, x: Tensor<3>, linear: &Linear) -> Tensor<4> {
        let [batch, seqlen, _] = x.dims();
        let x = linear.forward(x);
        let width = x.dims()[2] / self.n_heads;
        x.reshape([batch, seqlen, self.n_heads, width]).swap_dims(1, 2)
    }

    /// Attention of what was projected, and what becomes of it.
    pub(crate) fn attend(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scores: ScoreInputs) -> Tensor<3> {
        let [batch, num_heads, seqlen, _] = q.dims();
        let scores = self.quiet(scores, &q);
        let train =
            self.dropout.training.is_enabled() && q.device().is_autodiff() && self.dropout.prob != 0.0;
        let attention = self.attention.clone().dropout(self.dropout.prob as f32, &self.generator);
        let (dtype, inner) = (q.dtype(), self.attention_dtype.unwrap_or(q.dtype()));
        let [q, k, v] = [q, k, v].map(|x| cast(x, inner));
        let out = attention.forward_with(Inputs::new(q, k, v).scores(scores).train(train));
        let out = cast(out, dtype);
        let width = num_heads * out.dims()[3];
        self.output.forward(out.swap_dims(1, 2).reshape([batch, seqlen, width]))
    }

    /// With the sinks of a quiet softmax, if the layer has it.
    fn quiet(&self, scores: ScoreInputs, q: &Tensor<4>) -> ScoreInputs {
        if !self.quiet_softmax {
            return scores;
        }
        assert!(
            scores.sinks.is_none(),
            "signflash: sinks must be left out of a layer with quiet_softmax, got some; that is sinks of 0"
        );
        scores.sinks(Tensor::zeros([self.n_heads], (&q.device(), DType::F32)))
    }
}

/// Nothing is added to the graph where nothing changes.
fn cast(x: Tensor<4>, dtype: DType) -> Tensor<4> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
