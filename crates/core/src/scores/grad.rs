//! The gradient of a bias, with memory of its own.

use super::{Bias, BiasMut};
use crate::dtype::{Dtype, Element};
use crate::tensor::TensorMut;
use half::{bf16, f16};

/// The gradient of a bias, dense, in the bias's dtype.
///
/// ```
/// use signflash_core::{Bias, BiasGrad, Dtype};
/// let bias = Bias { dtype: Dtype::F32, shape: [1, 1, 2, 3] };
/// let mut dbias = BiasGrad::zeros(&bias);
/// dbias.as_mut(&bias).set([0, 0, 1, 0], 0.5);
/// assert_eq!(dbias, BiasGrad::F32(vec![0.0, 0.0, 0.0, 0.5, 0.0, 0.0]));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum BiasGrad {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl BiasGrad {
    /// As large as the bias, zero.
    pub fn zeros(bias: &Bias) -> Self {
        match bias.dtype {
            Dtype::F16 => Self::F16(zeros(bias.shape)),
            Dtype::Bf16 => Self::Bf16(zeros(bias.shape)),
            _ => Self::F32(zeros(bias.shape)),
        }
    }

    /// To be written by the backward of a problem with this bias, the one that it was made for.
    pub fn as_mut(&mut self, bias: &Bias) -> BiasMut<'_> {
        match self {
            Self::F32(data) => BiasMut::F32(TensorMut::bshd(data, bias.shape)),
            Self::F16(data) => BiasMut::F16(TensorMut::bshd(data, bias.shape)),
            Self::Bf16(data) => BiasMut::Bf16(TensorMut::bshd(data, bias.shape)),
        }
    }
}

fn zeros<T: Element>(shape: [usize; 4]) -> Vec<T> {
    vec![T::default(); shape.iter().product()]
}
