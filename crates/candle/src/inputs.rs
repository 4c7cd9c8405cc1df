//! The tensors of one call.

use candle_core::{Tensor, Var};

/// q, k and v, and what scores are made of besides them. `[&q, &k, &v]` is one of these without more.
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use signflash_candle::{Attention, Inputs, ScoreInputs};
///
/// # fn main() -> Result<()> {
/// let q = Tensor::randn(0f32, 1.0, (2, 10, 4, 16), &Device::Cpu)?; // (batch, seqlen, num_heads, head_dim)
/// let bias = Var::zeros((1, 4, 10, 10), q.dtype(), &Device::Cpu)?; // for all of the batch
/// let mask = Tensor::new(&[[1u8; 10], [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]], &Device::Cpu)?; // of padding: (batch, seqlen_k)
/// let scores = ScoreInputs::default().bias(bias.as_tensor());
/// let mask = mask.reshape((2, 1, 1, 10))?;
/// let inputs = Inputs::new(&q, &q, &q).scores(scores.mask(&mask));
/// let out = Attention::new().forward_with(inputs, false)?;
/// let gradients = out.sqr()?.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&bias).unwrap().dims(), bias.dims());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct Inputs<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    /// What scores are made of besides q and k.
    pub scores: ScoreInputs<'a>,
}

impl<'a> Inputs<'a> {
    /// Of these three.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self { q, k, v, scores: ScoreInputs::default() }
    }

    /// With more that scores are made of.
    pub fn scores(self, scores: ScoreInputs<'a>) -> Self {
        Self { scores, ..self }
    }

    pub(crate) fn qkv(&self) -> [&'a Tensor; 3] {
        [self.q, self.k, self.v]
    }
}

impl<'a> From<[&'a Tensor; 3]> for Inputs<'a> {
    fn from([q, k, v]: [&'a Tensor; 3]) -> Self {
        Self::new(q, k, v)
    }
}

impl<'a> From<[&'a Var; 3]> for Inputs<'a> {
    fn from([q, k, v]: [&'a Var; 3]) -> Self {
        Self::new(q, k, v)
    }
}

/// What scores are made of besides q and k; the default is nothing. `docs/scores.md` has the formulas.
///
/// Of a bias or a mask, dimensions that are left out in front are 1. With packed sequences query i and key j are counted
/// from their sequence's first, and there are as many as the longest has or more.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ScoreInputs<'a> {
    /// (num_heads) or (batch or sequences, num_heads): a score loses `slope * |i + seqlen_k - seqlen_q - j|`. They have no
    /// gradient: slopes that ask for one are refused.
    pub alibi_slopes: Option<&'a Tensor>,
    /// Added to the scores, (1 or batch, 1 or num_heads, 1 or seqlen_q, 1 or seqlen_k), f32, f16 or bf16 whatever q is, with
    /// any strides: one that is broadcast costs no memory. Where it is -inf a key is hidden. Differentiable.
    pub bias: Option<&'a Tensor>,
    /// u8 of a bias's shapes and strides: 0 where a query does not see a key. A query that sees none has out 0.
    pub mask: Option<&'a Tensor>,
    /// (num_heads), f32, f16 or bf16: one more score of every row, without a value. Differentiable.
    pub sinks: Option<&'a Tensor>,
}

impl<'a> ScoreInputs<'a> {
    /// With slopes of ALiBi.
    pub fn alibi_slopes(self, slopes: impl Into<Option<&'a Tensor>>) -> Self {
        Self { alibi_slopes: slopes.into(), ..self }
    }

    /// With a bias.
    pub fn bias(self, bias: impl Into<Option<&'a Tensor>>) -> Self {
        Self { bias: bias.into(), ..self }
    }

    /// With a mask.
    pub fn mask(self, mask: impl Into<Option<&'a Tensor>>) -> Self {
        Self { mask: mask.into(), ..self }
    }

    /// With sinks.
    pub fn sinks(self, sinks: impl Into<Option<&'a Tensor>>) -> Self {
        Self { sinks: sinks.into(), ..self }
    }
}
