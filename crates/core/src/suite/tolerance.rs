//! How far from the oracle is right.

use crate::{Bounds, Dtype};

/// Scores of this magnitude and below are what the contract's bounds of f32 were measured on.
const ORDINARY_SCORE: f64 = 8.0;

/// The bounds of one dtype: of relative errors in the Frobenius norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Of out and probs.
    pub out: f64,
    /// Of dq, dk and dv.
    pub gradients: f64,
    /// Of lse.
    pub lse: f64,
    /// Of every single entry of probs, relative to itself.
    pub probability: f64,
    /// What may be added to that: the dtype's smallest step, or what flushes to 0.
    pub smallest_probability: f64,
}

impl Tolerance {
    /// The contract's bounds, for a problem whose largest finite score has this magnitude.
    ///
    /// Rounding a score s to f32 moves it by `|s| * 2^-24`, and with it p by as much relative to itself. In f32 that
    /// is the error that counts, so its bounds grow with the largest score beyond 8. Those of f16 and bf16 do not:
    /// there the rounding of what is stored is larger by far.
    ///
    /// ```
    /// use signflash_core::{Dtype, suite::Tolerance};
    /// assert_eq!(Tolerance::of(Dtype::F32, 3.0).out, 1e-6);
    /// assert_eq!(Tolerance::of(Dtype::F32, 32.0).out, 4e-6);
    /// assert_eq!(Tolerance::of(Dtype::F16, 80.0).out, 4e-4);
    /// ```
    pub fn of(dtype: Dtype, max_score: f64) -> Self {
        let stretch = (max_score / ORDINARY_SCORE).max(1.0);
        let Bounds { out, gradients, lse } = Bounds::of(dtype);
        let f32_entry = 8e-6 * stretch;
        match dtype {
            Dtype::F32 => Self {
                out: out * stretch,
                gradients: gradients * stretch,
                lse,
                probability: f32_entry,
                smallest_probability: f64::from(f32::MIN_POSITIVE),
            },
            Dtype::F16 => Self {
                out,
                gradients,
                lse,
                probability: 2f64.powi(-11) + f32_entry,
                smallest_probability: 2f64.powi(-24),
            },
            Dtype::Bf16 => Self {
                out,
                gradients,
                lse,
                probability: 2f64.powi(-8) + f32_entry,
                smallest_probability: f64::from(f32::MIN_POSITIVE),
            },
        }
    }
}
