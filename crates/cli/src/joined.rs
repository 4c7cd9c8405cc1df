//! What scores are made of besides q and k, as tensors of a file: alibi_slopes, bias, mask and sinks; and the gradients of
//! two of them.

use crate::compute::len;
use crate::errors::Error;
use crate::files::{Archive, Data, FileElement, Kind, Tensor};
use signflash_core::{
    Bias, BiasMut, BiasRef, Problem, ProblemBuilder, ScoreInputs, Slopes, TensorMut, TensorName, TensorRef,
    bf16, f16,
};

/// The tensors. Those of entries are (batch or sequences, num_heads, seqlen_q, seqlen_k) in every layout, as probs are.
pub const JOINED: [&str; 4] = ["alibi_slopes", "bias", "mask", "sinks"];

const ENTRIES: &str = "(1 or batch, 1 or num_heads, 1 or seqlen_q, seqlen_k), whatever the layout";

/// Out of a file.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Joined {
    pub alibi_slopes: Option<Vec<f32>>,
    pub bias: Option<Data>,
    pub mask: Option<Vec<u8>>,
    pub sinks: Option<Vec<f32>>,
}

/// The same of a problem: which there are, and of which shapes.
///
/// # Errors
/// [`Error::TensorShape`] and [`Error::TensorDtype`]; what does not fit q and k, the problem judges.
pub fn declare(
    archive: &Archive,
    mut builder: ProblemBuilder,
    num_heads: usize,
) -> Result<ProblemBuilder, Error> {
    let tensor = |name: &str| archive.tensors.get(name);
    if let Some(slopes) = tensor("alibi_slopes") {
        expect_f32("alibi_slopes", slopes)?;
        builder = builder.alibi(match slopes.shape[..] {
            [_] => Slopes::PerHead,
            [_, _] => Slopes::PerSequence,
            _ => return Err(wrong_shape("alibi_slopes", slopes, "one or two dimensions", SLOPES)),
        });
    }
    if let Some(bias) = tensor("bias") {
        let Kind::Float(dtype) = bias.data.kind() else {
            return Err(wrong_dtype("bias", bias, "f32, f16 or bf16; what hides keys is a mask"));
        };
        builder = builder.bias(dtype, entries("bias", bias)?);
    }
    if let Some(mask) = tensor("mask") {
        if mask.data.kind() != Kind::U8 {
            return Err(wrong_dtype(
                "mask",
                mask,
                "bool or u8, not 0 where a key is seen; what is added is a bias",
            ));
        }
        builder = builder.mask(entries("mask", mask)?);
    }
    if let Some(sinks) = tensor("sinks") {
        expect_f32("sinks", sinks)?;
        if sinks.shape != [num_heads] {
            return Err(wrong_shape("sinks", sinks, &format!("[{num_heads}]"), "(num_heads)"));
        }
        builder = builder.sinks(true);
    }
    Ok(builder)
}

const SLOPES: &str = "(num_heads) or (batch, num_heads)";

/// Judges what a builder does not: that there are as many slopes as the problem asks for.
///
/// # Errors
/// [`Error::TensorShape`].
pub fn check_slopes(archive: &Archive, problem: &Problem) -> Result<(), Error> {
    let Some(slopes) = archive.tensors.get("alibi_slopes") else { return Ok(()) };
    let [_, _, sequences, heads] = problem.shape_of(TensorName::AlibiSlopes);
    let expected = if slopes.shape.len() == 1 { vec![heads] } else { vec![sequences, heads] };
    if slopes.shape == expected {
        return Ok(());
    }
    Err(wrong_shape("alibi_slopes", slopes, &format!("{expected:?}"), SLOPES))
}

fn expect_f32(name: &'static str, tensor: &Tensor) -> Result<(), Error> {
    match tensor.data {
        Data::F32(_) => Ok(()),
        _ => Err(wrong_dtype(name, tensor, "f32")),
    }
}

fn entries(name: &'static str, tensor: &Tensor) -> Result<[usize; 4], Error> {
    let shape = <[usize; 4]>::try_from(&tensor.shape[..]);
    shape.map_err(|_| wrong_shape(name, tensor, "four dimensions", ENTRIES))
}

fn wrong_shape(name: &'static str, tensor: &Tensor, expected: &str, meaning: &'static str) -> Error {
    Error::TensorShape { tensor: name, got: tensor.shape.clone(), expected: expected.into(), meaning }
}

fn wrong_dtype(name: &'static str, tensor: &Tensor, expected: &str) -> Error {
    Error::TensorDtype { tensor: name, got: tensor.data.name(), expected: expected.into() }
}

impl Joined {
    /// Takes the tensors out of `archive`; [`declare`] has judged them.
    pub fn take(archive: &mut Archive) -> Self {
        let mut take = |name: &str| archive.tensors.remove(name).map(|tensor| tensor.data);
        let floats = |data: Option<Data>| data.and_then(|data| f32::take(data).ok());
        let (alibi_slopes, sinks) = (floats(take("alibi_slopes")), floats(take("sinks")));
        let mask = take("mask").and_then(|data| match data {
            Data::U8(mask) => Some(mask),
            _ => None,
        });
        Self { alibi_slopes, bias: take("bias"), mask, sinks }
    }

    /// As views of the problem's shapes.
    pub fn scores(&self, problem: &Problem) -> ScoreInputs<'_> {
        let shape = |name| problem.shape_of(name);
        let slopes = self.alibi_slopes.as_deref();
        let bias = self.bias.as_ref().and_then(|bias| match bias {
            Data::F32(bias) => Some(BiasRef::F32(TensorRef::bshd(bias, shape(TensorName::Bias)))),
            Data::F16(bias) => Some(BiasRef::F16(TensorRef::bshd(bias, shape(TensorName::Bias)))),
            Data::Bf16(bias) => Some(BiasRef::Bf16(TensorRef::bshd(bias, shape(TensorName::Bias)))),
            _ => None,
        });
        ScoreInputs::default()
            .alibi_slopes(slopes.map(|slopes| TensorRef::bshd(slopes, shape(TensorName::AlibiSlopes))))
            .bias(bias)
            .mask(self.mask.as_deref().map(|mask| TensorRef::bshd(mask, shape(TensorName::Mask))))
            .sinks(self.sinks.as_deref())
    }
}

/// Room for the gradient of a problem's bias, if there is one, in the bias's dtype.
pub fn room_for_dbias(problem: &Problem) -> Option<Data> {
    let Bias { dtype, shape } = problem.bias()?;
    match dtype {
        signflash_core::Dtype::F16 => Some(Data::F16(vec![f16::ZERO; len(shape)])),
        signflash_core::Dtype::Bf16 => Some(Data::Bf16(vec![bf16::ZERO; len(shape)])),
        _ => Some(Data::F32(vec![0.0; len(shape)])),
    }
}

/// That as a tensor to write.
pub fn dbias<'a>(problem: &Problem, data: &'a mut Data) -> Option<BiasMut<'a>> {
    let shape = problem.bias()?.shape;
    match data {
        Data::F32(dbias) => Some(BiasMut::F32(TensorMut::bshd(dbias, shape))),
        Data::F16(dbias) => Some(BiasMut::F16(TensorMut::bshd(dbias, shape))),
        Data::Bf16(dbias) => Some(BiasMut::Bf16(TensorMut::bshd(dbias, shape))),
        _ => None,
    }
}
