//! A small causal transformer, with our attention or with candle's own operators.

use candle_core::{D, DType, Module, ModuleT, Result, Tensor};
use candle_nn::{Dropout, Embedding, LayerNorm, Linear, VarBuilder, embedding, layer_norm, linear};
use signflash_candle::{Attention, Generator, MultiHeadAttention, MultiHeadConfig};

/// The sizes of a model.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) symbols: usize,
    pub(crate) seqlen: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    pub(crate) dropout_p: f32,
}

/// Who computes attention.
#[derive(Clone)]
pub(crate) enum Kind {
    Ours(Generator),
    #[allow(dead_code)] // `train-text` is ours alone
    Candles,
}

enum SelfAttention {
    Ours(MultiHeadAttention),
    Candles { projections: [Linear; 4], heads: usize, dropout: Dropout },
}

impl SelfAttention {
    fn new(sizes: &Sizes, kind: &Kind, vb: VarBuilder<'_>) -> Result<Self> {
        let Sizes { width, heads, dropout_p, .. } = *sizes;
        if let Kind::Ours(generator) = kind {
            let attention = Attention::new().causal(true).dropout(dropout_p, generator);
            let attention_dtype = vb.device().is_cuda().then_some(DType::BF16); // GPUs' kernels are of 16 bits
            let layer = MultiHeadAttention::new(MultiHeadConfig::new(width, heads), attention, vb)?;
            return Ok(Self::Ours(layer.attention_dtype(attention_dtype)));
        }
        let [q, k, v, out] =
            ["q_proj", "k_proj", "v_proj", "out_proj"].map(|name| linear(width, width, vb.pp(name)));
        Ok(Self::Candles { projections: [q?, k?, v?, out?], heads, dropout: Dropout::new(dropout_p) })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (projections, heads, dropout) = match self {
            Self::Ours(layer) => return layer.forward_t(x, train),
            Self::Candles { projections: [q, k, v, out], heads, dropout } => {
                ([q, k, v, out], *heads, dropout)
            }
        };
        let (batch, seqlen, width) = x.dims3()?;
        let split = |n: usize| {
            let x = projections[n].forward(x)?.reshape((batch, seqlen, heads, width / heads))?;
            x.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) = (split(0)?, split(1)?, split(2)?);
        let scores = (q.matmul(&k.t()?)? * (1.0 / ((width / heads) as f64).sqrt()))?;
        let scores = scores.broadcast_add(&causal_mask(seqlen, scores.dtype(), x.device())?)?;
        let probs = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let probs = if train { dropout.forward(&probs, train)? } else { probs };
        projections[3].forward(&probs.matmul(&v)?.transpose(1, 2)?.reshape((batch, seqlen, width))?)
    }
}

fn causal_mask(seqlen: usize, dtype: DType, device: &candle_core::Device) -> Result<Tensor> {
    let hidden =
        |row: usize| (0..seqlen).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 });
    Tensor::from_iter((0..seqlen).flat_map(hidden), device)?.reshape((seqlen, seqlen))?.to_dtype(dtype)
}

struct Block {
    before: LayerNorm,
    attention: SelfAttention,
    after: LayerNorm,
    mlp: [Linear; 2],
}

impl Block {
    fn new(sizes: &Sizes, kind: &Kind, vb: VarBuilder<'_>) -> Result<Self> {
        let width = sizes.width;
        Ok(Self {
            before: layer_norm(width, 1e-5, vb.pp("before"))?,
            attention: SelfAttention::new(sizes, kind, vb.pp("attention"))?,
            after: layer_norm(width, 1e-5, vb.pp("after"))?,
            mlp: [linear(width, 4 * width, vb.pp("up"))?, linear(4 * width, width, vb.pp("down"))?],
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.before.forward(x)?, train)?)?;
        let inner = self.mlp[0].forward(&self.after.forward(&x)?)?.gelu()?;
        x + self.mlp[1].forward(&inner)?
    }
}

/// Says of each symbol which comes next.
pub(crate) struct Model {
    symbol: Embedding,
    position: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl Model {
    pub(crate) fn new(sizes: &Sizes, kind: &Kind, vb: VarBuilder<'_>) -> Result<Self> {
        let Sizes { symbols, seqlen, width, layers, .. } = *sizes;
        let block = |n| Block::new(sizes, kind, vb.pp(format!("block{n}")));
        Ok(Self {
            symbol: embedding(symbols, width, vb.pp("symbol"))?,
            position: vb.get_with_hints(
                (seqlen, width),
                "position",
                candle_nn::init::DEFAULT_KAIMING_NORMAL,
            )?,
            blocks: (0..layers).map(block).collect::<Result<_>>()?,
            norm: layer_norm(width, 1e-5, vb.pp("norm"))?,
            head: linear(width, symbols, vb.pp("head"))?,
        })
    }

    /// (batch, seqlen) numbers of symbols; (batch, seqlen, symbols) logits.
    pub(crate) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let positions = self.position.narrow(0, 0, x.dim(1)?)?;
        let mut x = self.symbol.forward(x)?.broadcast_add(&positions)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        self.head.forward(&self.norm.forward(&x)?)
    }

    /// The loss of rows of `seqlen + 1` symbols.
    pub(crate) fn loss(&self, rows: &Tensor, train: bool) -> Result<Tensor> {
        let seqlen = rows.dim(1)? - 1;
        let logits = self.forward(&rows.narrow(1, 0, seqlen)?.contiguous()?, train)?;
        let next = rows.narrow(1, 1, seqlen)?.flatten_all()?;
        candle_nn::loss::cross_entropy(&logits.flatten_to(1)?.to_dtype(DType::F32)?, &next)
    }
}
