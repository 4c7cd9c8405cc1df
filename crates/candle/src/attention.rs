//! Attention as a layer: what does not change from call to call.

use crate::call::{Settings, judge, judge_fit, refused, run, shape_of};
use crate::inputs::Inputs;
use crate::layout::Layout;
use crate::scores::Operands;
use candle_core::{Result, Tensor, bail};
use signflash_core::{Dropout, Problem, ProblemBuilder, Shape, SharedGenerator as Generator};

/// Attention with settings that stay from call to call. It has no weights; [`MultiHeadAttention`](crate::MultiHeadAttention)
/// does.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use signflash_candle::{Attention, Generator, Layout};
///
/// # fn main() -> Result<()> {
/// let generator = Generator::new(42);
/// let attention = Attention::new()
///     .causal(true)
///     .window(Some(256), None) // each query sees 256 keys before its own
///     .dropout(0.1, &generator)
///     .layout(Layout::Bhsd);
/// let q = Tensor::randn(0f32, 1.0, (2, 8, 100, 64), &Device::Cpu)?; // (batch, num_heads, seqlen_q, head_dim)
/// let k = Tensor::randn(0f32, 1.0, (2, 2, 120, 64), &Device::Cpu)?; // each key head serves four query heads
/// let v = k.clone();
/// assert_eq!(attention.forward(&q, &k, &v, true)?.dims(), &[2, 8, 100, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Attention {
    causal: bool,
    window: [Option<usize>; 2],
    softcap: Option<f64>,
    softmax_scale: Option<f64>,
    dropout: Option<(f32, Generator)>,
    layout: Layout,
    deterministic: bool,
}

impl Attention {
    /// Every query sees every key, nothing is dropped, tensors are (batch, seqlen, num_heads, head_dim).
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

    /// The order of dimensions of q, k, v and out.
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Whether gradients have the same bits in every run on a GPU, too, where that takes longer. On a CPU they always do.
    pub fn deterministic(self, deterministic: bool) -> Self {
        Self { deterministic, ..self }
    }

    /// Attention of q, k and v, whose dimensions are in the order of [`layout`](Self::layout), of any strides and one
    /// dtype; v may have another head_dim than q and k. Differentiable in all three. `train` says whether to drop, as
    /// `candle_nn::Dropout` is told.
    ///
    /// # Errors
    /// A tensor that does not fit the others, by name; dtypes or devices that differ or that nothing here computes.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_with([q, k, v], train)
    }

    /// The same of tensors with more that scores are made of: slopes of ALiBi, a bias, a mask, sinks. Differentiable in the
    /// bias and the sinks, too; their gradients are computed only if a variable leads to them.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_with<'a>(&self, inputs: impl Into<Inputs<'a>>, train: bool) -> Result<Tensor> {
        self.run(&inputs.into(), self.layout, None, train)
    }

    /// Attention of sequences of different lengths, one behind the other: q is (all queries, num_heads, head_dim), k and v
    /// are (all keys, num_heads_k, head_dim). Sequence `b` has the queries from `cu_seqlens_q[b]` up to
    /// `cu_seqlens_q[b + 1]`, likewise its keys, and attends to itself alone. The layout does not matter here.
    ///
    /// ```
    /// use candle_core::{Device, Result, Tensor};
    /// use signflash_candle::Attention;
    ///
    /// # fn main() -> Result<()> {
    /// let q = Tensor::randn(0f32, 1.0, (30, 8, 64), &Device::Cpu)?; // sequences of 10, 17 and 3 tokens
    /// let cu_seqlens = [0, 10, 27, 30];
    /// let out = Attention::new().causal(true).forward_packed([&q, &q, &q], &cu_seqlens, &cu_seqlens, true)?;
    /// assert_eq!(out.dims(), q.dims());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and numbers that no sequence can begin or end at.
    pub fn forward_packed<'a>(
        &self,
        inputs: impl Into<Inputs<'a>>,
        cu_seqlens_q: &[u32],
        cu_seqlens_k: &[u32],
        train: bool,
    ) -> Result<Tensor> {
        let inputs = inputs.into();
        for (name, tensor) in ["q", "k", "v"].iter().zip(inputs.qkv()) {
            if tensor.rank() != 3 {
                let got = tensor.dims();
                bail!("signflash: packed {name} must be (tokens, heads, head_dim), got {got:?}")
            }
        }
        let [q, k, v] = inputs.qkv().map(|tensor| tensor.unsqueeze(0));
        let (q, k, v) = (q?, k?, v?);
        let inputs = Inputs { q: &q, k: &k, v: &v, ..inputs };
        self.run(&inputs, Layout::Bshd, Some([cu_seqlens_q, cu_seqlens_k]), train)?.squeeze(0)
    }

    fn run(
        &self,
        inputs: &Inputs<'_>,
        layout: Layout,
        cu_seqlens: Option<[&[u32]; 2]>,
        train: bool,
    ) -> Result<Tensor> {
        judge(inputs.qkv(), layout)?;
        let shape = shape_of(inputs.qkv(), layout)?;
        let mut builder = self.builder(shape);
        let mut drawn_for = shape; // a packed batch draws as many masks as it has sequences
        let mut keys = shape.seqlen_k;
        if let Some([cu_seqlens_q, cu_seqlens_k]) = cu_seqlens {
            builder = builder.packed(cu_seqlens_q, cu_seqlens_k);
            drawn_for = shape.batch(cu_seqlens_q.len().saturating_sub(1));
            let len = |ends: &[u32]| ends[1].saturating_sub(ends[0]) as usize;
            keys = cu_seqlens_k.windows(2).map(len).max().unwrap_or(0);
        }
        let operands = Operands::of(&inputs.scores, Some(keys))?;
        // Judged first, so that a call that is refused uses up no random numbers.
        let mut problem = operands.declare(builder).build().map_err(refused)?;
        judge_fit(&problem, inputs.qkv(), layout, &operands)?;
        if let Some(dropout) = self.next_dropout(&drawn_for, train)? {
            problem = problem.to_builder().dropout(dropout).build().map_err(refused)?;
        }
        let settings = Settings { deterministic: self.deterministic, ..Settings::new(&problem, layout) };
        Ok(run(settings, inputs.qkv(), operands)?.out)
    }

    fn builder(&self, shape: Shape) -> ProblemBuilder {
        let builder = Problem::builder(shape).causal(self.causal).window(self.window[0], self.window[1]);
        let builder = builder.softcap(self.softcap);
        match self.softmax_scale {
            Some(scale) => builder.softmax_scale(scale),
            None => builder,
        }
    }

    fn next_dropout(&self, shape: &Shape, train: bool) -> Result<Option<Dropout>> {
        match &self.dropout {
            Some((dropout_p, generator)) if train => {
                generator.next_dropout(*dropout_p, shape).map(Some).map_err(refused)
            }
            _ => Ok(None),
        }
    }
}
