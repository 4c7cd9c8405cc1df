//! Attention of candle's tensors as a problem of Signflash's says.

use crate::inputs::Inputs;
use crate::join::join;
use crate::layout::Layout;
use crate::lse::lse_of;
use crate::op::{Attend, Op};
use crate::scores::{Operands, judge_device};
use candle_core::{D, Error, Result, Tensor, bail};
use signflash_core::{Description, Problem, Shape, TensorName};
use std::sync::Arc;

/// The attention that `problem` describes: q is (batch, seqlen_q, num_heads, head_dim), k and v are (batch, seqlen_k,
/// num_heads_k, head_dim), of one device and dtype, in the order of dimensions that `layout` says; what else scores are made of
/// must be what the problem declares. Differentiable in q, k, v, the bias and the sinks, as often as you like; a second
/// derivative is refused.
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use signflash_candle::{Dropout, Layout, Problem, Shape, attention};
///
/// # fn main() -> Result<()> {
/// let shape = Shape::new(1, 10, 12).heads(4, 2).head_dim(16);
/// let dropout = Dropout::new(0.1, 42, 0).unwrap(); // probability, seed, offset
/// let problem = Problem::builder(shape).dropout(dropout).build().unwrap();
/// let q = Var::randn(0f32, 1.0, &shape.q(), &Device::Cpu)?;
/// let k = Var::randn(0f32, 1.0, &shape.k(), &Device::Cpu)?;
/// let out = attention(&problem, [&q, &k, &k], Layout::Bshd)?;
/// let gradients = out.sqr()?.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&k).unwrap().dims(), k.dims());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// A tensor that does not fit the problem, by name; dtypes or devices that differ or that nothing here computes.
pub fn attention<'a>(problem: &Problem, inputs: impl Into<Inputs<'a>>, layout: Layout) -> Result<Tensor> {
    Ok(run_problem(Settings::new(problem, layout), &inputs.into())?.out)
}

/// The same, and lse, (batch, num_heads, seqlen_q), f32: the natural logarithm of each row's sum of exponentials, -inf where
/// a query sees no key. Differentiable, too; a loss that depends on both takes two backwards.
///
/// # Errors
/// As [`attention`].
pub fn attention_with_lse<'a>(
    problem: &Problem,
    inputs: impl Into<Inputs<'a>>,
    layout: Layout,
) -> Result<(Tensor, Tensor)> {
    let Attended { out, op, qkv: [q, k, v] } = run_problem(Settings::new(problem, layout), &inputs.into())?;
    Ok((out, lse_of(&op, [&q, &k, &v])?))
}

/// The probabilities, (batch, num_heads, seqlen_q, seqlen_k), of q's dtype, negative where dropped (test the sign *bit*: a
/// dropped probability may be -0.0). Not differentiable, and of memory that grows with the square of the length: to look at.
///
/// On a GPU tensors must not be packed.
///
/// # Errors
/// As [`attention`].
pub fn probs<'a>(problem: &Problem, inputs: impl Into<Inputs<'a>>, layout: Layout) -> Result<Tensor> {
    let settings = Settings { probs: true, ..Settings::new(problem, layout) };
    run_problem(settings, &inputs.into())?.op.probs()
}

/// What a call computes, and how.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) problem: Problem,
    pub(crate) layout: Layout,
    /// Whether the backward has the same bits in every run on a GPU, too.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))] // on a CPU it always has
    pub(crate) deterministic: bool,
    pub(crate) probs: bool,
}

impl Settings {
    pub(crate) fn new(problem: &Problem, layout: Layout) -> Self {
        Self { problem: problem.clone(), layout, deterministic: false, probs: false }
    }
}

/// What a forward leaves.
pub(crate) struct Attended {
    pub(crate) out: Tensor,
    op: Arc<Op>,
    /// With dense rows.
    qkv: [Tensor; 3],
}

/// Attention of tensors that nobody has looked at, as a problem says that did not come from them.
fn run_problem(settings: Settings, inputs: &Inputs<'_>) -> Result<Attended> {
    judge(inputs.qkv(), settings.layout)?;
    let operands = Operands::of(&inputs.scores, None)?;
    judge_fit(&settings.problem, inputs.qkv(), settings.layout, &operands)?;
    run(settings, inputs.qkv(), operands)
}

/// Computes out, and what the backward keeps, of tensors that were judged.
pub(crate) fn run(settings: Settings, inputs: [&Tensor; 3], operands: Operands) -> Result<Attended> {
    let [q, k, v] = inputs.map(dense_rows);
    let qkv = [q?, k?, v?];
    let op = Arc::new(Op::new(settings, operands));
    let (v, left) = join(&op, &qkv[2])?;
    let out = qkv[0].apply_op3(&qkv[1], &v, Attend { op: op.clone(), left })?;
    Ok(Attended { out, op, qkv })
}

/// That the tensors have one dtype, one device and four dimensions; their sizes are the problem's to judge.
pub(crate) fn judge(inputs: [&Tensor; 3], layout: Layout) -> Result<()> {
    for (name, tensor) in ["q", "k", "v"].iter().zip(inputs) {
        if tensor.dtype() != inputs[0].dtype() {
            let (expected, got) = (inputs[0].dtype(), tensor.dtype());
            bail!("signflash: {name} must have q's dtype {expected:?}, got {got:?}; convert it with to_dtype")
        }
        if tensor.rank() != 4 {
            bail!("signflash: {name} must be {}, got {:?}", layout.words(), tensor.dims())
        }
        judge_device(name, tensor, inputs[0])?;
    }
    Ok(())
}

/// That tensors have the sizes that the problem says, and that what scores are made of lies where q does.
pub(crate) fn judge_fit(
    problem: &Problem,
    inputs: [&Tensor; 3],
    layout: Layout,
    operands: &Operands,
) -> Result<()> {
    for (tensor, x) in [TensorName::Q, TensorName::K, TensorName::V].into_iter().zip(inputs) {
        let [shape, strides] = layout.read(x.layout())?;
        // Rows that are not dense will be copied.
        let described = Description { tensor, shape, strides: [strides[0], strides[1], strides[2], 1] };
        described.check(problem.shape_of(tensor)).map_err(refused)?;
    }
    operands.check_device(inputs[0])?;
    operands.check(problem)
}

/// The tensor, copied if its rows are not dense.
pub(crate) fn dense_rows(tensor: &Tensor) -> Result<Tensor> {
    if tensor.stride().last() == Some(&1) { Ok(tensor.clone()) } else { tensor.contiguous() }
}

/// The sizes of a problem of these tensors.
pub(crate) fn shape_of([q, k, v]: [&Tensor; 3], layout: Layout) -> Result<Shape> {
    let sizes = |tensor: &Tensor| layout.read(tensor.layout()).map(|[sizes, _]| sizes);
    let [batch, seqlen_q, num_heads, head_dim] = sizes(q)?;
    let [_, seqlen_k, num_heads_k, _] = sizes(k)?;
    let shape = Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim);
    Ok(shape.head_dim_v(v.dim(D::Minus1)?))
}

/// An error of Signflash's as one of candle's.
pub(crate) fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::wrap(error)
}
