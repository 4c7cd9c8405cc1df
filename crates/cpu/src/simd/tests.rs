//! Each operation whose meaning is more than its name, on every instruction set.

use super::Simd;
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use crate::isa::Isa;
use crate::philox::RowPhilox;
use crate::simd::portable::Portable;
use crate::simd::tanh::Tanh;
use half::{bf16, f16};
use signflash_core::{Dropout, Problem, Shape};

/// Runs a generic check on every instruction set that this machine has.
macro_rules! on_every_isa {
    ($($name:ident => $check:ident;)*) => {$(
        #[test]
        fn $name() {
            $check::<Portable>();
            #[cfg(target_arch = "aarch64")]
            $check::<Neon>();
            #[cfg(target_arch = "x86_64")]
            {
                if Isa::Avx2.is_available() {
                    $check::<Avx2>();
                }
                if Isa::Avx512.is_available() {
                    $check::<Avx512<false>>();
                }
                if Isa::Avx512Bf16.is_available() {
                    $check::<Avx512<true>>();
                    $check::<Avx512<true, true>>();
                }
            }
        }
    )*};
}

on_every_isa! {
    exp2_is_exact_at_zero_and_close_elsewhere => exp2_is_close;
    exp2_of_minus_infinity_is_zero_and_nan_stays => exp2_of_the_extremes;
    tanh_and_its_slope_are_close_in_every_binade => tanh_is_close;
    tanh_of_the_extremes_is_one_and_nan_stays => tanh_of_the_extremes;
    a_block_drops_as_the_rule_says => drop_block_is_the_rule_s;
    words_are_transposed => transpose_turns_rows_to_columns;
    every_f16_and_bf16_converts_both_ways => half_floats_round_trip;
    conversion_rounds_to_nearest_even => conversion_rounds_like_half;
    sign_bits_are_set_read_and_cleared => sign_bits;
    maximum_takes_the_second_of_nan => maximum_of_nan;
}

/// One operation on lanes that all hold `x`.
fn map<S: Simd>(x: f32, f: impl Fn(S::V) -> S::V) -> f32 {
    let mut lanes = [0.0f32; 16];
    // SAFETY: the caller saw the instruction set available; 16 lanes are room for any vector.
    unsafe { S::store(lanes.as_mut_ptr(), f(S::splat(x))) };
    assert!(lanes[..S::LANES].iter().all(|lane| lane.to_bits() == lanes[0].to_bits()));
    lanes[0]
}

fn exp2<S: Simd>(x: f32) -> f32 {
    // SAFETY: as in `map`.
    map::<S>(x, |x| unsafe { S::exp2(x) })
}

fn exp2_is_close<S: Simd>() {
    assert_eq!(exp2::<S>(0.0).to_bits(), 1.0f32.to_bits());
    let bound = if S::PAIRS { 2e-7 } else { 1e-7 };
    for i in 0..=25_200 {
        let x = i as f32 * -0.005;
        let (got, want) = (f64::from(exp2::<S>(x)), f64::from(x).exp2());
        assert!((got / want - 1.0).abs() < bound + 6e-8, "2^{x} is {want}, got {got}");
    }
}

fn exp2_of_the_extremes<S: Simd>() {
    for x in [f32::NEG_INFINITY, -1e30, -150.0, -127.0] {
        assert_eq!(exp2::<S>(x).to_bits(), 0, "2^{x}");
    }
    for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
        assert!(exp2::<S>(nan).is_nan());
    }
}

/// tanh(x) and its slope.
fn tanh<S: Simd>(x: f32) -> [f32; 2] {
    // SAFETY: as in `map`.
    [map::<S>(x, |x| unsafe { Tanh::<S>::of(x).value }), map::<S>(x, |x| unsafe { Tanh::<S>::of(x).slope })]
}

fn tanh_is_close<S: Simd>() {
    let steps: u32 = if cfg!(miri) { 3 } else { 641 };
    for exponent in 1..=254u32 {
        for step in 0..steps {
            let mantissa = (u64::from(step) * (1 << 23) / u64::from(steps)) as u32;
            let x = f32::from_bits(exponent << 23 | mantissa);
            let exact = f64::from(x);
            // Without cancelling, which 1 - tanh^2 is full of.
            let y = (-2.0 * exact).exp();
            let [want, want_slope] = [exact.tanh(), 4.0 * y / (1.0 + y).powi(2)];
            for sign in [1.0f32, -1.0] {
                let [got, slope] = tanh::<S>(sign * x).map(f64::from);
                assert!(
                    (sign as f64 * got / want - 1.0).abs() < 3e-7,
                    "tanh({}) is {want}, got {got}",
                    sign * x
                );
                let far = 6e-7 + exact * f64::from(f32::EPSILON);
                // The slope is four times an exponential, which is 0 where it would be subnormal.
                let least = 4.0 * f64::from(f32::MIN_POSITIVE);
                let near = (slope - want_slope).abs() <= far * want_slope + least;
                assert!(near, "slope of {} is {want_slope}, got {slope}", sign * x);
            }
        }
    }
}

fn tanh_of_the_extremes<S: Simd>() {
    assert_eq!(tanh::<S>(f32::INFINITY), [1.0, 0.0]);
    assert_eq!(tanh::<S>(f32::NEG_INFINITY), [-1.0, 0.0]);
    assert_eq!(tanh::<S>(0.0).map(f32::to_bits), [0.0f32, 1.0].map(f32::to_bits));
    assert!([f32::NAN, -f32::NAN].iter().all(|nan| tanh::<S>(*nan).iter().all(|x| x.is_nan())));
    // What a lane gets does not depend on the others: the small one is computed with a large one beside it.
    let (mut lanes, mut alone) = ([0.1f32; 16], [0.1f32; 16]);
    lanes[1] = 3.0;
    // SAFETY: as in `map`.
    unsafe {
        let mixed = Tanh::<S>::of(S::load(lanes.as_ptr()));
        S::store(lanes.as_mut_ptr(), mixed.value);
        S::store(alone.as_mut_ptr(), Tanh::<S>::of(S::load(alone.as_ptr())).value);
    }
    assert_eq!(lanes[0].to_bits(), alone[0].to_bits());
}

fn drop_block_is_the_rule_s<S: Simd>() {
    // The last offset carries into the high counter word between lanes.
    for (p, seed, offset) in [(0.1, 7, 0), (0.5, u64::MAX, 1 << 40), (0.999, 1 << 33, 0xffff_fff0 - 3 * 32)] {
        let shape = Shape::new(2, 1, 1).heads(3, 3).head_dim(1);
        let dropout = Dropout::new(p, seed, offset).expect("p is below 1");
        let problem = Problem::builder(shape).dropout(dropout).build().expect("a small problem");
        let rule = problem.keep_rule().expect("p is not 0");
        for (block_row, block_column) in [(0, 0), (5, 3), (1 << 20, (1 << 26) + 1)] {
            let row = RowPhilox::new::<S>(&rule, 1, 0, block_row);
            let mut dropped = [0u16; 32];
            // SAFETY: as in `map`; the block has 32 columns.
            unsafe { S::drop_block(&row, block_column as u32, rule.threshold(), dropped.as_mut_ptr()) };
            assert_eq!(dropped.map(|bits| !bits), rule.block(1, 0, block_row, block_column));
        }
    }
}

fn transpose_turns_rows_to_columns<S: Simd>() {
    let src: Vec<u32> = (0..16 * 20).collect();
    let mut dst = vec![u32::MAX; 16 * 24];
    // SAFETY: as in `map`; both hold 16 rows of the leading dimension given.
    unsafe { S::transpose(src.as_ptr(), 20, dst.as_mut_ptr(), 24) };
    for r in 0..16 {
        for c in 0..16 {
            let inside = r < S::LANES && c < S::LANES;
            assert_eq!(dst[c * 24 + r], if inside { src[r * 20 + c] } else { u32::MAX });
        }
    }
}

fn half_floats_round_trip<S: Simd>() {
    for bits in 0..=u16::MAX {
        let (src, mut wide, mut back) = ([bits; 16], [0.0f32; 16], [0u16; 16]);
        // SAFETY: as in `map`.
        unsafe { S::store(wide.as_mut_ptr(), S::load_f16(src.as_ptr())) };
        let want = f16::from_bits(bits);
        assert!(wide[0] == want.to_f32() || (wide[0].is_nan() && want.is_nan()), "f16 {bits:#x}");
        // SAFETY: as in `map`.
        unsafe { S::store_f16(back.as_mut_ptr(), S::load(wide.as_ptr())) };
        assert!(back[0] == bits || (want.is_nan() && f16::from_bits(back[0]).is_nan()), "f16 {bits:#x}");
        // SAFETY: as in `map`.
        unsafe { S::store(wide.as_mut_ptr(), S::load_bf16(src.as_ptr())) };
        let want = f32::from_bits(u32::from(bits) << 16);
        assert!(wide[0].to_bits() == want.to_bits() || (wide[0].is_nan() && want.is_nan()), "bf16 {bits:#x}");
        // SAFETY: as in `map`.
        unsafe { S::store_bf16(back.as_mut_ptr(), S::load(wide.as_ptr())) };
        let want = bf16::from_bits(bits);
        assert!(back[0] == bits || (want.is_nan() && bf16::from_bits(back[0]).is_nan()), "bf16 {bits:#x}");
    }
}

fn conversion_rounds_like_half<S: Simd>() {
    for step in 0..200_000u32 {
        let x = f32::from_bits(step.wrapping_mul(0x9E37_79B9));
        let mut back = [0u16; 16];
        // SAFETY: as in `map`.
        unsafe { S::store_bf16(back.as_mut_ptr(), S::splat(x)) };
        assert!(x.is_nan() || back[0] == bf16::from_f32(x).to_bits(), "{x:e} to bf16");
        // SAFETY: as in `map`.
        unsafe { S::store_f16(back.as_mut_ptr(), S::splat(x)) };
        assert!(x.is_nan() || back[0] == f16::from_f32(x).to_bits(), "{x:e} to f16");
    }
}

fn sign_bits<S: Simd>() {
    let drop = 0b1010_0110_0101_1001u16;
    for first in (0..16).step_by(S::LANES) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: as in `map`.
        unsafe { S::store(lanes.as_mut_ptr(), S::sign_where(S::splat(0.0), &drop, first as u32)) };
        for (lane, x) in lanes[..S::LANES].iter().enumerate() {
            assert_eq!(x.is_sign_negative(), drop >> (first + lane) & 1 != 0, "-0.0 is a dropped zero");
        }
    }
    // SAFETY: as in `map`.
    let pick = |x| map::<S>(x, |x| unsafe { S::by_sign(x, S::splat(1.0), S::splat(2.0)) });
    assert_eq!([0.0, -0.0, f32::NAN.copysign(1.0), f32::NAN.copysign(-1.0)].map(pick), [1.0, 2.0, 1.0, 2.0]);
    // SAFETY: as in `map`.
    let abs = |x| map::<S>(x, |x| unsafe { S::abs(x) }).to_bits();
    assert_eq!(abs(-0.0), 0);
    assert_eq!(abs(f32::from_bits(0xffc0_0001)), 0x7fc0_0001);
}

fn maximum_of_nan<S: Simd>() {
    // SAFETY: as in `map`.
    assert!(map::<S>(f32::NAN, |x| unsafe { S::max(S::splat(0.0), x) }).is_nan());
    // SAFETY: as in `map`.
    assert_eq!(map::<S>(f32::NAN, |x| unsafe { S::max(x, S::splat(0.0)) }), 0.0);
}
