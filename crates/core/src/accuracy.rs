//! How exact results must be.

use crate::dtype::Dtype;

/// The contract's bounds on the distance from the f64 [oracle](crate::oracle) on the same rounded operands:
/// `||x - oracle|| / ||oracle||` in the Frobenius norm.
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
    /// The bounds for tensors of `dtype`.
    pub const fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self { out: 1e-6, gradients: 3e-6, lse: 1e-6 },
            Dtype::F16 => Self { out: 4e-4, gradients: 5e-4, lse: 1e-6 },
            Dtype::Bf16 => Self { out: 3e-3, gradients: 4e-3, lse: 1e-6 },
        }
    }
}
