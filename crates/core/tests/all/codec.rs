//! The sign-bit codec on every bit pattern of 16 bits, and on many of 32 and 64.

use proptest::prelude::*;
use signflash_core::{Element, Problem, Probs, Shape, SignBit, TensorRef, bf16, f16};

/// What must hold of any bit pattern.
macro_rules! assert_codec {
    ($float:ty, $bits:expr) => {{
        let bits = $bits;
        let sign = (-<$float>::from(0u8)).to_bits();
        let x = <$float>::from_bits(bits);
        let (magnitude, dropped) = x.decode();
        assert_eq!(magnitude.to_bits(), bits & !sign, "{bits:#x}");
        assert_eq!(dropped, bits & sign != 0, "{bits:#x}");
        assert_eq!((x.probability().to_bits(), x.is_dropped()), (bits & !sign, dropped), "{bits:#x}");
        assert_eq!(magnitude.encode(dropped).to_bits(), bits, "{bits:#x}: decode, then encode");
        for flag in [false, true] {
            let encoded = x.encode(flag);
            assert_eq!(encoded.is_dropped(), flag, "{bits:#x}: encode, then decode");
            assert_eq!(encoded.probability().to_bits(), bits & !sign, "{bits:#x}: encode, then decode");
        }
    }};
}

#[test]
fn every_bit_pattern_of_f16_and_bf16_comes_back() {
    for bits in 0..=u16::MAX {
        assert_codec!(f16, bits);
        assert_codec!(bf16, bits);
    }
}

#[test]
fn the_special_bit_patterns_of_f32_come_back() {
    let special = [0.0, f32::MIN_POSITIVE, 1e-45, 1.0, f32::MAX, f32::INFINITY, f32::NAN];
    for x in special.into_iter().chain(special.map(|x| -x)) {
        assert_codec!(f32, x.to_bits());
        assert_codec!(f64, f64::from(x).to_bits());
    }
}

proptest! {
    #[test]
    fn any_bit_pattern_of_f32_comes_back(bits: u32) {
        assert_codec!(f32, bits);
    }

    #[test]
    fn any_bit_pattern_of_f64_comes_back(bits: u64) {
        assert_codec!(f64, bits);
    }

    /// The sign survives the conversions that kernels make, whatever the magnitude rounds to.
    #[test]
    fn rounding_keeps_the_sign_bit(p in 0.0f32..=1.0, exponent in -140i32..=0, dropped: bool) {
        let p = p * 2f32.powi(exponent);
        prop_assert_eq!(f16::from_f32(p.encode(dropped)).is_dropped(), dropped);
        prop_assert_eq!(bf16::from_f32(p.encode(dropped)).is_dropped(), dropped);
        prop_assert_eq!(f16::from_f32(p).encode(dropped).to_f32().is_dropped(), dropped);
    }
}

fn assert_minus_zero_is_dropped<T: Element + PartialOrd>() {
    let zero = T::from_f32(0.0);
    let dropped = zero.encode(true);
    assert!(dropped >= zero, "{}: a comparison takes a dropped zero for kept", T::DTYPE);
    assert!(dropped.is_dropped(), "{}: -0.0 decodes as dropped", T::DTYPE);
    assert_eq!(dropped.decode(), (zero, true), "{}", T::DTYPE);
    assert!(!zero.is_dropped(), "{}: +0.0 decodes as kept", T::DTYPE);
}

#[test]
fn a_dropped_minus_zero_decodes_as_dropped() {
    assert_minus_zero_is_dropped::<f32>();
    assert_minus_zero_is_dropped::<f16>();
    assert_minus_zero_is_dropped::<bf16>();
}

#[test]
fn probs_read_minus_zero_as_dropped() {
    let shape = Shape::new(1, 1, 4).heads(1, 1).head_dim(8);
    let problem = Problem::builder(shape).build().unwrap();
    let stored = [-0.0f32, 0.0, 1.0, -1e-30].map(f16::from_f32); // the last underflows to -0.0
    let probs = Probs::new(&problem, TensorRef::bshd(&stored, shape.probs())).unwrap();
    let dropped: Vec<bool> = probs.row(0, 0, 0).map(|entry| entry.dropped).collect();
    assert_eq!(dropped, [true, false, false, true]);
    assert_eq!(probs.kept_fraction(), Some(0.5)); // `>= 0` would count all four
    assert_eq!(probs.iter().map(|entry| entry.probability).collect::<Vec<_>>(), [0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn probs_leave_out_what_is_not_visible() {
    let shape = Shape::new(2, 3, 2).heads(1, 1).head_dim(8);
    let problem = Problem::builder(shape).causal(true).build().unwrap();
    let stored = [0.0f32, 0.0, 1.0, 0.0, 0.5, -0.5, 0.0, 0.0, -1.0, 0.0, -0.5, 0.5];
    let probs = Probs::new(&problem, TensorRef::bshd(&stored, shape.probs())).unwrap();
    let seen: Vec<[usize; 4]> = probs.iter().map(|entry| entry.index).collect();
    assert_eq!(seen, [[0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 2, 1], [1, 0, 1, 0], [1, 0, 2, 0], [1, 0, 2, 1]]);
    assert_eq!(probs.kept_fraction(), Some(0.5));
    let nothing = Problem::builder(shape.seqlen_k(0)).build().unwrap();
    let none = Probs::new(&nothing, TensorRef::bshd(&[] as &[f32], nothing.shape().probs())).unwrap();
    assert_eq!(none.kept_fraction(), None);
}

#[test]
#[should_panic(expected = "[0, 0, 0, 4] lies outside probs of shape [1, 1, 1, 4]")]
fn probs_refuse_an_index_outside() {
    let shape = Shape::new(1, 1, 4).heads(1, 1).head_dim(8);
    let problem = Problem::builder(shape).build().unwrap();
    let probs = Probs::new(&problem, TensorRef::bshd(&[0.25f32; 4], shape.probs())).unwrap();
    probs.entry([0, 0, 0, 4]);
}
