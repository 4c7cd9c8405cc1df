//! The tensors of one call.

use burn::tensor::{Bool, Tensor};

/// q, k and v, and what scores are made of besides them: of `D` = 4 dimensions (batch, heads, seqlen, head_dim), or of 3,
/// (tokens, heads, head_dim), where sequences are packed. `[q, k, v]` is one of these without more.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use signflash_burn::{Attention, Inputs, ScoreInputs};
///
/// let device = Device::flex().autodiff();
/// let q = Tensor::<4>::random([2, 4, 10, 16], Distribution::Normal(0.0, 1.0), &device);
/// let bias = Tensor::<4>::zeros([1, 4, 10, 10], &device).require_grad(); // for all of the batch
/// let scores = ScoreInputs::default().bias(bias.clone());
/// let out = Attention::new().forward_with(Inputs::new(q.clone(), q.clone(), q).scores(scores));
/// let gradients = out.powi_scalar(2).sum().backward();
/// assert_eq!(bias.grad(&gradients).unwrap().dims(), [1, 4, 10, 10]);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct Inputs<const D: usize> {
    pub q: Tensor<D>,
    pub k: Tensor<D>,
    pub v: Tensor<D>,
    /// What scores are made of besides q and k.
    pub scores: ScoreInputs,
    /// Whether to drop; without it, where q's device has autodiff.
    pub train: Option<bool>,
}

impl<const D: usize> Inputs<D> {
    /// Of these three.
    pub fn new(q: Tensor<D>, k: Tensor<D>, v: Tensor<D>) -> Self {
        Self { q, k, v, scores: ScoreInputs::default(), train: None }
    }

    /// With more that scores are made of.
    pub fn scores(self, scores: ScoreInputs) -> Self {
        Self { scores, ..self }
    }

    /// Says whether to drop.
    pub fn train(self, train: bool) -> Self {
        Self { train: Some(train), ..self }
    }

    pub(crate) fn drops(&self) -> bool {
        self.train.unwrap_or_else(|| self.q.device().is_autodiff())
    }
}

impl<const D: usize> From<[Tensor<D>; 3]> for Inputs<D> {
    fn from([q, k, v]: [Tensor<D>; 3]) -> Self {
        Self::new(q, k, v)
    }
}

/// What scores are made of besides q and k; the default is nothing. `docs/scores.md` has the formulas.
///
/// With packed sequences query i and key j of a bias or a mask are counted from their sequence's first, and there are as many
/// as the longest has or more.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ScoreInputs {
    /// (1 or batch or sequences, num_heads): a score loses `slope * |i + seqlen_k - seqlen_q - j|`. They have no gradient:
    /// slopes that ask for one are refused.
    pub alibi_slopes: Option<Tensor<2>>,
    /// Added to the scores, (1 or batch, 1 or num_heads, 1 or seqlen_q, 1 or seqlen_k), f32, f16 or bf16 whatever q is, with
    /// any strides: one that is expanded costs no memory. Where it is -inf a key is hidden. Differentiable.
    pub bias: Option<Tensor<4>>,
    /// Of a bias's shapes: *true where a query does not see a key*, as in Burn. A query that sees none has out 0.
    pub mask: Option<Tensor<4, Bool>>,
    /// (num_heads): one more score of every row, without a value. Differentiable.
    pub sinks: Option<Tensor<1>>,
}

impl ScoreInputs {
    /// With slopes of ALiBi.
    pub fn alibi_slopes(self, slopes: impl Into<Option<Tensor<2>>>) -> Self {
        Self { alibi_slopes: slopes.into(), ..self }
    }

    /// With a bias.
    pub fn bias(self, bias: impl Into<Option<Tensor<4>>>) -> Self {
        Self { bias: bias.into(), ..self }
    }

    /// With a mask of what is hidden.
    pub fn mask(self, mask: impl Into<Option<Tensor<4, Bool>>>) -> Self {
        Self { mask: mask.into(), ..self }
    }

    /// With a mask of padding, (batch, seqlen_k), true where there is some, as Burn's `MhaInput` takes it: in addition to
    /// the mask that there is.
    pub fn mask_pad(self, mask_pad: Tensor<2, Bool>) -> Self {
        let [batch, keys] = mask_pad.dims();
        self.hide(mask_pad.reshape([batch, 1, 1, keys]))
    }

    /// With a mask of all heads, (batch, seqlen_q, seqlen_k), true where a key is hidden, as Burn's `MhaInput` takes it: in
    /// addition to the mask that there is.
    pub fn mask_attn(self, mask_attn: Tensor<3, Bool>) -> Self {
        self.hide(mask_attn.unsqueeze_dim(1))
    }

    /// Those of `len` queries from `begin` on, where there was one entry a query.
    pub(crate) fn of_queries(self, begin: usize, len: usize) -> Self {
        let bias = self.bias.map(|x| if x.dims()[2] == 1 { x } else { x.narrow(2, begin, len) });
        let mask = self.mask.map(|x| if x.dims()[2] == 1 { x } else { x.narrow(2, begin, len) });
        Self { bias, mask, ..self }
    }

    fn hide(self, more: Tensor<4, Bool>) -> Self {
        let mask = match self.mask.clone() {
            None => more,
            Some(mask) => {
                let (a, b) = (mask.dims(), more.dims());
                let both = [0, 1, 2, 3].map(|dim| a[dim].max(b[dim]));
                mask.expand(both).bool_or(more.expand(both))
            }
        };
        self.mask(mask)
    }

    /// With sinks.
    pub fn sinks(self, sinks: impl Into<Option<Tensor<1>>>) -> Self {
        Self { sinks: sinks.into(), ..self }
    }
}
