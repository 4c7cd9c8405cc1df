//! What tiles compute, and that this machine's compute the same.

use super::*;
use crate::gemm::{Left, Right};
use half::bf16;

/// Operands and sums of a product of `depth` words, their numbers made by `number` of a place.
struct Operands {
    a: Vec<bf16>,
    b: Vec<bf16>,
    sums: Vec<f32>,
    depth: usize,
}

/// Rows of a product: of three tiles.
const ROW_COUNT: usize = 3 * ROWS;

/// Numbers that lie between a row's end and the next row.
const GAP: usize = 6;

impl Operands {
    fn new(depth: usize, mut number: impl FnMut() -> f32) -> Self {
        let mut numbers = |count: usize| (0..count).map(|_| bf16::from_f32(number())).collect::<Vec<_>>();
        let (a, b) = (numbers(ROW_COUNT * (2 * depth + GAP)), numbers(depth * (2 * SIDE + GAP)));
        let sums = numbers(ROW_COUNT * (SIDE + GAP)).iter().map(|x| x.to_f32() * 1.001).collect();
        Self { a, b, sums, depth }
    }

    fn product<const ADD: bool>(&self, tiles: Tiles) -> Vec<f32> {
        let mut sums = self.sums.clone();
        let a = Left { p: self.a.as_ptr().cast(), row: self.depth + GAP / 2, step: 1 };
        let b = Right { p: self.b.as_ptr().cast(), step: SIDE + GAP / 2 };
        let to = Sums { p: sums.as_mut_ptr(), row: SIDE + GAP };
        let _held = tiles.hold();
        // SAFETY: tiles are held, and the operands have these rows.
        unsafe { tiles.product::<ADD>(ROW_COUNT, self.depth, a, b, to) };
        sums
    }

    /// Pairs of row m of the left and column n of the right operand.
    fn pairs(&self, m: usize, n: usize) -> impl Iterator<Item = (f64, f64)> {
        (0..2 * self.depth).map(move |k| {
            let b = self.b[k / 2 * (2 * SIDE + GAP) + 2 * n + k % 2];
            (self.a[m * (2 * self.depth + GAP) + k].into(), b.into())
        })
    }
}

/// Numbers of a generator, between -1 and 1.
fn random() -> impl FnMut() -> f32 {
    let mut state = 1u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
    }
}

#[test]
fn a_product_is_one_of_pairs_and_writes_nothing_else() {
    let operands = Operands::new(48, random());
    for (sums, adds) in [
        (operands.product::<false>(Tiles::Emulated), false),
        (operands.product::<true>(Tiles::Emulated), true),
    ] {
        for m in 0..ROW_COUNT {
            for n in 0..SIDE {
                let at = m * (SIDE + GAP) + n;
                let before = if adds { f64::from(operands.sums[at]) } else { 0.0 };
                let truth = before + operands.pairs(m, n).map(|(a, b)| a * b).sum::<f64>();
                assert!((f64::from(sums[at]) - truth).abs() < 2e-5, "{m} {n}: {} for {truth}", sums[at]);
            }
            let gap = m * (SIDE + GAP) + SIDE..(m + 1) * (SIDE + GAP);
            assert_eq!(sums[gap.clone()], operands.sums[gap], "row {m}");
        }
    }
}

/// The sum of one place whose operands are 0 but for these pairs, the first of each step's.
fn one_sum(pairs: &[[f32; 2]], before: f32) -> f32 {
    let mut operands = Operands::new(STEP_WORDS * pairs.len().div_ceil(2 * STEP_WORDS), || 0.0);
    for (k, [a, b]) in pairs.iter().enumerate() {
        operands.a[k] = bf16::from_f32(*a);
        operands.b[k / 2 * (2 * SIDE + GAP) + k % 2] = bf16::from_f32(*b);
    }
    operands.sums[0] = before;
    operands.product::<true>(Tiles::here())[0]
}

#[test]
fn even_and_odd_numbers_are_added_by_themselves_and_rounded_to_even() {
    let tiny = 2f32.powi(-24);
    // 1 + 2^-24 rounds to 1 each time, but two odd numbers are one sum of 2^-23.
    assert_eq!(one_sum(&[[1.0, 1.0], [0.0, 0.0], [tiny, 1.0], [0.0, 0.0], [tiny, 1.0]], 0.0), 1.0);
    assert_eq!(one_sum(&[[1.0, 1.0], [tiny, 1.0], [0.0, 0.0], [tiny, 1.0]], 0.0), 1.0 + 2.0 * tiny);
    // Halves round to even, and the sum that was there comes last.
    assert_eq!(one_sum(&[[3.0 * tiny, 1.0]], 1.0), 1.0 + 4.0 * tiny);
    assert_eq!(one_sum(&[[tiny, 1.0]], 1.0), 1.0);
    assert_eq!(one_sum(&[[1.0, 1.0], [tiny, 1.0]], -1.0), 0.0);
}

#[test]
fn subnormal_numbers_are_zeros() {
    let least = f32::MIN_POSITIVE;
    assert_eq!(one_sum(&[[least, 0.5]], 0.0), 0.0);
    assert_eq!(one_sum(&[[least / 2.0, 2f32.powi(100)]], 0.0), 0.0);
    assert_eq!(one_sum(&[[2f32.powi(100), least / 2.0]], 0.0), 0.0);
    assert_eq!(one_sum(&[[least, 1.0]], least / 2.0), least);
    assert_eq!(one_sum(&[[least, 1.0]], -least * 1.5), 0.0);
    assert_eq!(one_sum(&[[least, 1.0]], least), 2.0 * least);
}

#[test]
fn this_machine_s_tiles_and_their_emulation_write_the_same_bits() {
    let Ok(tiles) = Tiles::of_this_machine() else { return };
    let bits = |x: Vec<f32>| -> Vec<u32> {
        x.into_iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
    };
    for depth in [16, 32, 80] {
        // All binades, so that sums overflow, vanish and cancel.
        for (least, most) in [(0, 0), (-3, 3), (-70, -60), (-133, -100), (-120, 120), (60, 66), (-66, -60)] {
            let (mut number, mut power) = (random(), random());
            let scaled =
                || number() * 2f32.powf((least as f32 + power().abs() * (most - least) as f32).round());
            let operands = Operands::new(depth, scaled);
            let of = |tiles| (bits(operands.product::<false>(tiles)), bits(operands.product::<true>(tiles)));
            assert!(of(tiles) == of(Tiles::Emulated), "depth {depth}, 2^{least} to 2^{most}");
        }
    }
}
