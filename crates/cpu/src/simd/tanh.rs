//! The hyperbolic tangent, for softcap, on any instruction set.
#![allow(unsafe_op_in_unsafe_fn)]

use super::Simd;

/// From this magnitude on an exponential is asked; below it, where most scores under a softcap are, a polynomial does.
const LARGE: f32 = 0.625;

/// Minimax coefficients of `(tanh(x) / x - 1) / x^2` in x^2 up to [`LARGE`], highest first: 4.4e-9 of tanh (fitted by
/// Lawson iteration in f64). tanh(x) is then x, and what is rounded once is added to it.
const SMALL_DEGREE_4: [f32; 5] =
    [-5.704_985_5e-3, 2.063_908_6e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1];

/// Minimax coefficients of `(tanh(x) - 1) / y` in `y = e^-2x`, from [`LARGE`] on, highest first: 1.3e-7 of what is missing
/// to 1, and with that of the slope (fitted likewise).
const LARGE_DEGREE_5: [f32; 6] =
    [9.173_953e-1, -1.705_707_6, 1.959_698_7, -1.997_408_4, 1.999_937_8, -1.999_999_8];

/// tanh(x) and by how much it grows with x.
#[derive(Clone, Copy)]
pub(crate) struct Tanh<S: Simd> {
    /// Relative error below 3e-7, and 1e-7 up to [`LARGE`].
    pub(crate) value: S::V,
    /// `1 - tanh(x)^2`. Relative error below 6e-7, and beyond 8 below 2^-22 of x: it is an exponential there, and 0
    /// from about 43.7 on, where a quarter of it would be subnormal.
    pub(crate) slope: S::V,
}

impl<S: Simd> Tanh<S> {
    /// Of every lane; what a lane gets does not depend on the others. ±1 of infinities, NaN of NaN.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn of(x: S::V) -> Self {
        let one = S::splat(1.0);
        let square = S::mul(x, x);
        let value = S::fma(S::mul(x, square), polynomial::<S, 5>(&SMALL_DEGREE_4, square), x);
        let small = Self { value, slope: S::fma(S::sub(S::splat(0.0), value), value, one) };
        if !S::any_reaches(x, LARGE) {
            return small;
        }
        let magnitude = S::abs(x);
        let y = S::exp2(S::mul(magnitude, S::splat(-2.0 * std::f32::consts::LOG2_E)));
        let missing = S::mul(polynomial::<S, 6>(&LARGE_DEGREE_5, y), y);
        let minus = S::sub(S::splat(-1.0), missing);
        let value = S::by_sign(x, S::add(one, missing), minus);
        let slope = S::mul(S::sub(S::splat(0.0), missing), S::add(S::splat(2.0), missing));
        let limit = S::splat(LARGE);
        Self {
            value: S::where_less(magnitude, limit, small.value, value),
            slope: S::where_less(magnitude, limit, small.slope, slope),
        }
    }
}

#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(coefficients: &[f32; N], x: S::V) -> S::V {
    let mut y = S::splat(coefficients[0]);
    for &c in &coefficients[1..] {
        y = S::fma(y, x, S::splat(c));
    }
    y
}
