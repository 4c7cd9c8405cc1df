//! Judges the tensors of a call.

use crate::attention::or_panic;
use crate::inputs::{Inputs, ScoreInputs};
#[cfg(feature = "cuda")]
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Tensor};
#[cfg(feature = "cuda")]
use burn_cubecl::CubeDevice;
use signflash_core::{
    Description, Dtype, Problem, ProblemBuilder, ScoreDescription, Slopes, TensorName, contiguous_strides,
};

/// The tensors with the dtypes that engines take; sizes are the problem's to judge. Where a bias or a mask has one key for
/// `keys`, it is repeated.
///
/// # Panics
/// If dtypes differ or nothing here computes them, or slopes ask for a gradient.
pub(crate) fn judge(inputs: Inputs<4>, keys: Option<usize>) -> Inputs<4> {
    let Inputs { q, k, v, scores: ScoreInputs { alibi_slopes, bias, mask, sinks }, train } = inputs;
    for (name, x) in [("k", &k), ("v", &v)] {
        let (expected, got) = (q.dtype(), x.dtype());
        assert!(got == expected, "signflash: {name} must have q's dtype {expected:?}, got {got:?}; cast it");
    }
    judge_place(&q);
    let of_keys = |[a, b, c, d]: [usize; 4]| match keys {
        Some(keys) if d == 1 => [a, b, c, keys],
        _ => [a, b, c, d],
    };
    let alibi_slopes = alibi_slopes.map(|slopes| {
        assert!(
            !slopes.is_tracked(),
            "signflash: alibi_slopes must not require a gradient, got some that do; they have none: detach them"
        );
        single("alibi_slopes", slopes)
    });
    let bias = bias.map(|bias| {
        judge_float("bias", bias.dtype());
        let dims = bias.dims();
        if of_keys(dims) == dims { bias } else { bias.expand(of_keys(dims)) }
    });
    let mask = mask.map(|mask| {
        let dims = mask.dims();
        if of_keys(dims) == dims { mask } else { mask.expand(of_keys(dims)) }
    });
    let sinks = sinks.map(|sinks| single("sinks", sinks));
    Inputs { q, k, v, scores: ScoreInputs { alibi_slopes, bias, mask, sinks }, train }
}

/// That something here computes such tensors where they lie.
fn judge_place(q: &Tensor<4>) {
    #[cfg(feature = "cuda")]
    if let DispatchDevice::Cube(device) = q.device().without_autodiff().as_dispatch() {
        assert!(
            matches!(device, CubeDevice::Cuda(_)),
            "signflash: q, k and v must lie on a CPU (Device::flex()) or on an NVIDIA GPU (Device::cuda(0)), got {device:?}; \
             move them with to_device"
        );
        let dtype = q.dtype();
        assert!(
            matches!(dtype, DType::F16 | DType::BF16),
            "signflash: q, k and v must be f16 or bf16 on a GPU, got {dtype:?}; cast them, or have \
             MultiHeadAttention::attention_dtype cast them"
        );
    }
    #[cfg(not(feature = "cuda"))]
    let _ = q; // Flex says itself which dtypes it takes
}

fn judge_float(name: &str, got: DType) {
    let known = matches!(got, DType::F32 | DType::F16 | DType::BF16);
    assert!(known, "signflash: {name} must be f32, f16 or bf16, got {got:?}; cast it");
}

/// As f32.
fn single<const D: usize>(name: &str, tensor: Tensor<D>) -> Tensor<D> {
    judge_float(name, tensor.dtype());
    if tensor.dtype() == DType::F32 { tensor } else { tensor.cast(DType::F32) }
}

/// The problem of such scores.
pub(crate) fn declare(scores: &ScoreInputs, builder: ProblemBuilder) -> ProblemBuilder {
    let slopes = scores.alibi_slopes.as_ref().map(|slopes| match slopes.dims() {
        [1, _] => Slopes::PerHead,
        _ => Slopes::PerSequence,
    });
    let mut builder = builder.alibi(slopes).sinks(scores.sinks.is_some());
    if let Some(bias) = &scores.bias {
        builder = builder.bias(dtype_of(bias.dtype()), bias.dims());
    }
    match &scores.mask {
        Some(mask) => builder.mask(mask.dims()),
        None => builder,
    }
}

/// That tensors have the sizes that the problem says.
///
/// # Panics
/// In the words of the error, which names the tensor.
pub(crate) fn judge_fit(problem: &Problem, inputs: &Inputs<4>) {
    // Whatever their strides: what engines do not take is copied.
    let of = |tensor, shape| Description { tensor, shape, strides: contiguous_strides(shape) };
    let qkv = [(TensorName::Q, &inputs.q), (TensorName::K, &inputs.k), (TensorName::V, &inputs.v)];
    for (name, x) in qkv {
        let [batch, heads, seqlen, head_dim] = x.dims();
        or_panic(of(name, [batch, seqlen, heads, head_dim]).check(problem.shape_of(name)));
    }
    let ScoreInputs { alibi_slopes, bias, mask, sinks } = &inputs.scores;
    let slopes = alibi_slopes.as_ref().map(|slopes| slopes.dims());
    let given = ScoreDescription {
        alibi_slopes: slopes.map(|[sequences, heads]| of(TensorName::AlibiSlopes, [1, 1, sequences, heads])),
        bias: bias.as_ref().map(|bias| (dtype_of(bias.dtype()), of(TensorName::Bias, bias.dims()))),
        mask: mask.as_ref().map(|mask| of(TensorName::Mask, mask.dims())),
        sinks: sinks.as_ref().map(|sinks| sinks.dims()[0]),
    };
    or_panic(given.check(problem));
}

/// Of a dtype that was judged.
fn dtype_of(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::Bf16,
        _ => Dtype::F32,
    }
}
