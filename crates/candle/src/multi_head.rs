//! Attention with its projections.

use crate::attention::Attention;
use crate::inputs::{Inputs, ScoreInputs};
use crate::layout::Layout;
use candle_core::{DType, Module, ModuleT, Result, Tensor, bail};
use candle_nn::{Linear, VarBuilder, linear_b};

/// The sizes of a [`MultiHeadAttention`], and what its weights are called.
///
/// ```
/// use signflash_candle::MultiHeadConfig;
/// let ours = MultiHeadConfig::new(768, 12);
/// assert_eq!(ours.names, ["q_proj", "k_proj", "v_proj", "out_proj"]);
/// // BERT's, as its checkpoints name them below `attention`:
/// let bert = MultiHeadConfig { names: ["self.query", "self.key", "self.value", "output.dense"], ..ours };
/// // Llama's: fewer key heads, no biases.
/// let llama = MultiHeadConfig { num_heads_k: 4, bias: false, names: ["q_proj", "k_proj", "v_proj", "o_proj"], ..ours };
/// # let _ = (bert, llama);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiHeadConfig {
    /// Width of what comes in and goes out.
    pub hidden: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides num_heads.
    pub num_heads_k: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether the projections have biases.
    pub bias: bool,
    /// Names of the projections of q, k, v and out below the `VarBuilder`'s prefix.
    pub names: [&'static str; 4],
}

impl MultiHeadConfig {
    /// As many key as query heads, `hidden / num_heads` wide, with biases.
    pub fn new(hidden: usize, num_heads: usize) -> Self {
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let head_dim = hidden / num_heads.max(1);
        Self { hidden, num_heads, num_heads_k: num_heads, head_dim, bias: true, names }
    }
}

/// Self- or cross-attention: projections of q, k and v, [`Attention`], a projection of what comes out.
///
/// ```
/// use candle_core::{DType, Device, ModuleT, Result, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use signflash_candle::{Attention, Generator, MultiHeadAttention, MultiHeadConfig};
///
/// # fn main() -> Result<()> {
/// let weights = VarMap::new();
/// let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let generator = Generator::new(42);
/// let attention = Attention::new().causal(true).dropout(0.1, &generator);
/// let layer = MultiHeadAttention::new(MultiHeadConfig::new(64, 4), attention, vb.pp("attention"))?;
/// let x = Tensor::randn(0f32, 1.0, (2, 10, 64), &Device::Cpu)?;
/// assert_eq!(layer.forward_t(&x, true)?.dims(), x.dims());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MultiHeadAttention {
    config: MultiHeadConfig,
    attention: Attention,
    attention_dtype: Option<DType>,
    projections: [Linear; 4],
}

impl MultiHeadAttention {
    /// Weights come from `vb`: `{name}.weight` and, with biases, `{name}.bias` of each projection.
    ///
    /// # Errors
    /// Weights that are missing or of another shape, or sizes that make no attention.
    pub fn new(config: MultiHeadConfig, attention: Attention, vb: VarBuilder<'_>) -> Result<Self> {
        let MultiHeadConfig { hidden, num_heads, num_heads_k, head_dim, bias, names } = config;
        if num_heads == 0 || num_heads_k == 0 || !num_heads.is_multiple_of(num_heads_k) || head_dim == 0 {
            bail!(
                "signflash: num_heads must be a positive multiple of num_heads_k and head_dim positive, got {num_heads}, \
                 {num_heads_k} and {head_dim}"
            )
        }
        let (width, width_k) = (num_heads * head_dim, num_heads_k * head_dim);
        let [q, k, v, out] = [(hidden, width), (hidden, width_k), (hidden, width_k), (width, hidden)];
        let linear = |(input, output), name: &str| linear_b(input, output, bias, vb.pp(name));
        let projections =
            [linear(q, names[0])?, linear(k, names[1])?, linear(v, names[2])?, linear(out, names[3])?];
        let attention = attention.layout(Layout::Bshd);
        Ok(Self { config, attention, attention_dtype: None, projections })
    }

    /// Computes attention in this dtype, where weights and what comes in have another: kernels of GPUs are of 16 bits, and
    /// weights of 16 bits lose what small steps of training add to them. What goes out has the dtype of what comes in.
    pub fn attention_dtype(self, dtype: impl Into<Option<DType>>) -> Self {
        Self { attention_dtype: dtype.into(), ..self }
    }

    /// Queries from `x`, (batch, seqlen_q, hidden), keys and values from `memory`, (batch, seqlen_k, hidden); the same
    /// tensor is self-attention.
    ///
    /// # Errors
    /// Tensors of other shapes, or [`Attention::forward`]'s.
    pub fn forward(&self, x: &Tensor, memory: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_with(x, memory, ScoreInputs::default(), train)
    }

    /// The same with more that scores are made of: a mask of padding, (batch, 1, 1, seqlen_k), or a bias of relative
    /// positions.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        x: &Tensor,
        memory: &Tensor,
        scores: ScoreInputs<'_>,
        train: bool,
    ) -> Result<Tensor> {
        let MultiHeadConfig { num_heads, num_heads_k, head_dim, .. } = self.config;
        let [q, k, v, out] = &self.projections;
        let heads = |projection: &Linear, x: &Tensor, heads: usize| {
            let (batch, seqlen, _) = x.dims3()?;
            let x = projection.forward(x)?.reshape((batch, seqlen, heads, head_dim))?;
            self.attention_dtype.map_or(Ok(x.clone()), |dtype| x.to_dtype(dtype))
        };
        let (q, k) = (heads(q, x, num_heads)?, heads(k, memory, num_heads_k)?);
        let v = heads(v, memory, num_heads_k)?;
        let attended = self.attention.forward_with(Inputs::new(&q, &k, &v).scores(scores), train)?;
        out.forward(&attended.to_dtype(x.dtype())?.flatten_from(2)?)
    }
}

/// Self-attention.
impl ModuleT for MultiHeadAttention {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, x, train)
    }
}
