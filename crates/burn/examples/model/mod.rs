//! A small causal transformer, with our attention or with Burn's own layer.

use burn::module::Module;
use burn::nn::attention::{
    MhaInput, MultiHeadAttention as BurnMultiHeadAttention, MultiHeadAttentionConfig,
    generate_autoregressive_mask,
};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, EmbeddingConfig, Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor};
use signflash_burn::{Generator, MultiHeadAttention};

/// The sizes of a model.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) symbols: usize,
    pub(crate) seqlen: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    pub(crate) dropout_p: f32,
    /// What our attention casts to, if weights have another dtype than it takes.
    pub(crate) attention_dtype: Option<DType>,
}

#[derive(Module, Debug)]
struct Block {
    before: LayerNorm,
    ours: Option<MultiHeadAttention>,
    burns: Option<BurnMultiHeadAttention>,
    after: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(sizes: &Sizes, generator: Option<&Generator>, device: &Device) -> Self {
        let Sizes { width, heads, dropout_p, attention_dtype, .. } = *sizes;
        let config = MultiHeadAttentionConfig::new(width, heads).with_dropout(f64::from(dropout_p));
        let norm = || LayerNormConfig::new(width).init(device);
        Self {
            before: norm(),
            ours: generator.map(|g| {
                let layer = MultiHeadAttention::from_burn(config.init(device), g).causal(true);
                layer.attention_dtype(attention_dtype)
            }),
            burns: generator.is_none().then(|| config.init(device)),
            after: norm(),
            up: LinearConfig::new(width, 4 * width).init(device),
            down: LinearConfig::new(4 * width, width).init(device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = self.before.forward(x.clone());
        let attended = match (&self.ours, &self.burns) {
            (Some(layer), _) => layer.forward(inner),
            (None, Some(layer)) => {
                let [batch, seqlen, _] = inner.dims();
                let mask = generate_autoregressive_mask(batch, seqlen, &inner.device());
                layer.forward(MhaInput::self_attn(inner).mask_attn(mask)).context
            }
            (None, None) => unreachable!("a block has one of both"),
        };
        let x = x + attended;
        let inner = Gelu::new().forward(self.up.forward(self.after.forward(x.clone())));
        x + self.down.forward(inner)
    }
}

/// Says of each symbol which comes next.
#[derive(Module, Debug)]
pub(crate) struct Model {
    symbol: Embedding,
    position: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl Model {
    /// With our attention if there is a generator, else with Burn's.
    pub(crate) fn new(sizes: &Sizes, generator: Option<&Generator>, device: &Device) -> Self {
        let Sizes { symbols, seqlen, width, layers, .. } = *sizes;
        Self {
            symbol: EmbeddingConfig::new(symbols, width).init(device),
            position: EmbeddingConfig::new(seqlen, width).init(device),
            blocks: (0..layers).map(|_| Block::new(sizes, generator, device)).collect(),
            norm: LayerNormConfig::new(width).init(device),
            head: LinearConfig::new(width, symbols).init(device),
        }
    }

    /// (batch, seqlen) numbers of symbols; (batch, seqlen, symbols) logits.
    pub(crate) fn forward(&self, x: Tensor<2, Int>) -> Tensor<3> {
        let [_, seqlen] = x.dims();
        let positions = Tensor::<1, Int>::arange(0..seqlen as i64, &x.device()).unsqueeze::<2>();
        let mut x = self.symbol.forward(x) + self.position.forward(positions);
        for block in &self.blocks {
            x = block.forward(x);
        }
        self.head.forward(self.norm.forward(x))
    }

    /// The loss of rows of `seqlen + 1` symbols.
    pub(crate) fn loss(&self, rows: Tensor<2, Int>) -> Tensor<1> {
        let [batch, len] = rows.dims();
        let logits = self.forward(rows.clone().narrow(1, 0, len - 1));
        let next = rows.narrow(1, 1, len - 1).reshape([batch * (len - 1)]);
        let loss = CrossEntropyLossConfig::new().init(&logits.device());
        loss.forward(logits.flatten::<2>(0, 1), next)
    }
}
