//! Element types.

use crate::sign_bit::SignBit;
use half::{bf16, f16};
use std::fmt;

/// The element type of a tensor.
///
/// ```
/// use signflash_core::{Dtype, Element, bf16};
/// assert_eq!(bf16::DTYPE, Dtype::Bf16);
/// assert_eq!((Dtype::F16.size_bytes(), Dtype::F32.to_string()), (2, "f32".to_string()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// A type that tensors can hold: `f32`, [`f16`](struct@f16) or [`bf16`]. Sealed: kernels know these three.
///
/// Conversions round to nearest, ties to even, and keep the sign of zero and of NaN.
///
/// ```
/// use signflash_core::{Element, f16};
/// assert!(f16::from_f32(-1e-30).is_sign_negative()); // underflows to -0.0, not to 0.0
/// ```
pub trait Element:
    sealed::Sealed
    + ResultOf<Self>
    + SignBit
    + bytemuck::Pod
    + Default
    + Send
    + Sync
    + fmt::Debug
    + PartialEq
    + 'static
{
    /// Which type this is.
    const DTYPE: Dtype;
    /// From f32, rounded to nearest even.
    fn from_f32(x: f32) -> Self;
    /// To f32, exact.
    fn to_f32(self) -> f32;
    /// To f64, exact.
    fn to_f64(self) -> f64 {
        f64::from(self.to_f32())
    }
}

/// What results of operands of type `T` can be stored as: `T`, or f32, in which they are computed. f32 is for partial
/// results, which somebody adds to others before rounding.
///
/// ```
/// use signflash_core::{ResultOf, bf16};
/// fn stores<T, R: ResultOf<T>>() {}
/// stores::<bf16, bf16>();
/// stores::<bf16, f32>();
/// ```
pub trait ResultOf<T>: sealed::Sealed {}

impl ResultOf<f32> for f32 {}
impl ResultOf<f16> for f16 {}
impl ResultOf<bf16> for bf16 {}
impl ResultOf<f16> for f32 {}
impl ResultOf<bf16> for f32 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}
