//! The contract's numbers.

use crate::{Dtype, TensorName};

/// Scores of this magnitude and below are what the bounds of f32 were measured on.
const ORDINARY_SCORE: f64 = 8.0;
/// The head_dim from which on lse's bound grows.
const ORDINARY_HEAD_DIM: f64 = 64.0;

/// The contract's bounds on the relative distance from the f64 [oracle](crate::oracle), in the Frobenius norm, on the
/// same rounded operands. [`Distance`](super::Distance) says what they are relative to.
///
/// ```
/// use signflash_core::{Bounds, Dtype};
/// assert_eq!(Bounds::of(Dtype::Bf16), Bounds { out: 3e-3, gradients: 4e-3, lse: 1e-6 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Of out.
    pub out: f64,
    /// Of dq, dk and dv.
    pub gradients: f64,
    /// Of lse.
    pub lse: f64,
}

impl Bounds {
    /// The bounds for tensors of `dtype` where scores and head_dim are ordinary: up to 8 and 64.
    pub const fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self { out: 1e-6, gradients: 3e-6, lse: 1e-6 },
            Dtype::F16 => Self { out: 4e-4, gradients: 5e-4, lse: 1e-6 },
            Dtype::Bf16 => Self { out: 3e-3, gradients: 4e-3, lse: 1e-6 },
        }
    }

    /// The bounds for a problem whose largest finite score has this magnitude.
    ///
    /// Rounding a score s to f32 moves it by `|s| * 2^-24`, and with it p by as much relative to itself. In f32 that is
    /// the error that counts, so its bounds grow with the largest score beyond 8. In f16 and bf16 the rounding of what
    /// is stored is larger, up to the scores at which the bound of f32 has grown to theirs. lse's bound grows with
    /// head_dim, since a sum of products of one sign, in order, rounds again and again in the same direction.
    ///
    /// ```
    /// use signflash_core::{Bounds, Dtype};
    /// assert_eq!(Bounds::of(Dtype::F32).for_scores(3.0, 64).out, 1e-6);
    /// assert_eq!(Bounds::of(Dtype::F32).for_scores(32.0, 64).out, 4e-6);
    /// assert_eq!(Bounds::of(Dtype::F16).for_scores(80.0, 64).out, 4e-4);
    /// assert_eq!(Bounds::of(Dtype::F16).for_scores(8e3, 64).out, 1e-3);
    /// ```
    pub fn for_scores(self, max_score: f64, head_dim: usize) -> Self {
        let stretch = (max_score / ORDINARY_SCORE).max(1.0);
        let in_f32 = Self::of(Dtype::F32);
        Self {
            out: self.out.max(in_f32.out * stretch),
            gradients: self.gradients.max(in_f32.gradients * stretch),
            lse: self.lse * (head_dim as f64 / ORDINARY_HEAD_DIM).max(1.0),
        }
    }

    /// The one of a tensor; probs has that of out.
    pub const fn of_tensor(&self, tensor: TensorName) -> f64 {
        match tensor {
            TensorName::Lse => self.lse,
            TensorName::Out | TensorName::Probs => self.out,
            _ => self.gradients,
        }
    }
}
