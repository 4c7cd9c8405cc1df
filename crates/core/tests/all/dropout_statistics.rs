//! The dropout mask as a random variable: how much is kept, and that no two places know of each other.
//!
//! Seeds are fixed, so nothing here is a matter of luck. Bounds are 4 standard deviations, which chance alone keeps
//! all but once in 16 000 times.

use signflash_core::{Dropout, DropoutGenerator, KeepRule, Problem, Shape};

const SIZE: usize = 512;
const SHAPE: Shape = Shape::new(3, 2 * SIZE, 2 * SIZE).heads(4, 4).head_dim(64);

fn rule(dropout: Dropout) -> KeepRule {
    Problem::builder(SHAPE).dropout(dropout).build().unwrap().keep_rule().expect("p is not 0")
}

/// A window of 512 x 512 entries, packed.
fn window(rule: &KeepRule, batch: usize, head: usize, row: usize, column: usize) -> Vec<u8> {
    let block = rule.keep_block(batch, head, row..row + SIZE, column..column + SIZE);
    let bit = |n: usize| u8::from(block.keep(n / SIZE, n % SIZE)) << (n % 8);
    (0..SIZE * SIZE / 8).map(|byte| (8 * byte..8 * byte + 8).map(bit).sum()).collect()
}

fn ones(bits: impl Iterator<Item = u8>) -> f64 {
    bits.map(|byte| f64::from(byte.count_ones())).sum()
}

/// How many standard deviations `count` of `n` trials lies from its expectation.
fn z_score(count: f64, n: f64, probability: f64) -> f64 {
    (count - n * probability) / (n * probability * (1.0 - probability)).sqrt()
}

const ENTRIES: f64 = (SIZE * SIZE) as f64;

#[test]
fn the_kept_fraction_is_the_exact_expectation() {
    for p in [1e-3, 0.1, 0.125, 0.17, 0.5, 0.6, 0.9, 0.999] {
        let dropout = Dropout::new(p, 20_261_123, 5).unwrap();
        let rule = rule(dropout);
        let heads = (0..3).flat_map(|b| (0..4).map(move |h| (b, h)));
        let kept: f64 = heads.map(|(b, h)| ones(window(&rule, b, h, 0, 0).into_iter())).sum();
        let z = z_score(kept, 12.0 * ENTRIES, dropout.keep_probability());
        assert!(z.abs() < 4.0, "p = {p}: {kept} kept, {z:.2} standard deviations from the expectation");
    }
}

#[test]
fn the_kept_fraction_is_not_1_minus_p() {
    // 230 / 256 at p = 0.1: the test above would see the difference of 0.17 %.
    let dropout = Dropout::new(0.1, 1, 0).unwrap();
    let kept: f64 = (0..4).map(|h| ones(window(&rule(dropout), 0, h, 0, 0).into_iter())).sum();
    assert!(z_score(kept, 4.0 * ENTRIES, 0.9).abs() > 4.0);
}

/// Two dropout masks that know nothing of each other agree in a binomial number of entries.
fn assert_independent(p: f32, a: &[u8], b: &[u8], what: &str) {
    let keep = Dropout::new(p, 0, 0).unwrap().keep_probability();
    let both = ones(a.iter().zip(b).map(|(a, b)| a & b));
    let differ = ones(a.iter().zip(b).map(|(a, b)| a ^ b));
    let z_both = z_score(both, ENTRIES, keep * keep);
    let z_differ = z_score(differ, ENTRIES, 2.0 * keep * (1.0 - keep));
    assert!(z_both.abs() < 4.0, "{what}, p = {p}: both kept {z_both:.2} standard deviations off");
    assert!(z_differ.abs() < 4.0, "{what}, p = {p}: different {z_differ:.2} standard deviations off");
}

/// Within a lane, from lane to lane, from block to block.
const DISTANCES: [usize; 10] = [1, 2, 7, 8, 9, 16, 31, 32, 33, 64];

#[test]
fn rows_are_independent() {
    for p in [0.1, 0.5] {
        let rule = rule(Dropout::new(p, 11, 0).unwrap());
        let first = window(&rule, 1, 2, 0, 0);
        for distance in DISTANCES {
            let other = window(&rule, 1, 2, distance, 0);
            assert_independent(p, &first, &other, &format!("rows {distance} apart"));
        }
    }
}

#[test]
fn columns_are_independent() {
    for p in [0.1, 0.5] {
        let rule = rule(Dropout::new(p, 12, 0).unwrap());
        let first = window(&rule, 1, 2, 0, 0);
        for distance in DISTANCES {
            let other = window(&rule, 1, 2, 0, distance);
            assert_independent(p, &first, &other, &format!("columns {distance} apart"));
            let diagonal = window(&rule, 1, 2, distance, distance);
            assert_independent(p, &first, &diagonal, &format!("diagonals {distance} apart"));
        }
    }
}

#[test]
fn heads_batches_seeds_and_calls_are_independent() {
    for p in [0.1, 0.5] {
        let mut generator = DropoutGenerator::new(13);
        let call = generator.next_dropout(p, &SHAPE).unwrap();
        let next_call = generator.next_dropout(p, &SHAPE).unwrap();
        let first = window(&rule(call), 0, 0, 0, 0);
        for head in 1..4 {
            assert_independent(p, &first, &window(&rule(call), 0, head, 0, 0), &format!("head {head}"));
        }
        for batch in 1..3 {
            assert_independent(p, &first, &window(&rule(call), batch, 0, 0, 0), &format!("batch {batch}"));
        }
        for (batch, head) in (0..3).flat_map(|b| (0..4).map(move |h| (b, h))) {
            let this = window(&rule(call), batch, head, 0, 0);
            let next = window(&rule(next_call), batch, head, 0, 0);
            assert_independent(p, &this, &next, &format!("next call, batch {batch}, head {head}"));
            assert_independent(p, &first, &next, &format!("batch {batch}, head {head} of the next call"));
        }
        for bit in [0, 1, 31, 32, 63] {
            let other = Dropout::new(p, 13 ^ (1 << bit), 0).unwrap();
            assert_independent(
                p,
                &first,
                &window(&rule(other), 0, 0, 0, 0),
                &format!("bit {bit} of the seed"),
            );
        }
    }
}

/// Patterns of four entries that one Philox word serves, and of four in different words: all 16 equally often.
#[test]
fn patterns_of_four_entries_are_equally_frequent() {
    let rule = rule(Dropout::new(0.5, 14, 0).unwrap()); // keeps exactly one half
    let block = rule.keep_block(2, 3, 0..2 * SIZE, 0..2 * SIZE);
    let word = [(0, 0), (0, 1), (8, 0), (8, 1)];
    let lanes = [(0, 0), (0, 2), (1, 0), (1, 2)];
    let words = [(0, 0), (0, 8), (0, 16), (0, 24)];
    for pattern in [word, lanes, words] {
        let mut counts = [0.0f64; 16];
        // One pattern of each 16 x 32 block and lane: no entry counts twice.
        for i in (0..2 * SIZE).filter(|i| i % 16 < 8 && i % 2 == 0) {
            for j in (0..2 * SIZE).filter(|j| j % 32 < 8 && j % 4 == 0) {
                let bits = pattern.iter().map(|(di, dj)| usize::from(block.keep(i + di, j + dj)));
                counts[bits.fold(0, |code, bit| 2 * code + bit)] += 1.0;
            }
        }
        let expected = counts.iter().sum::<f64>() / 16.0;
        let chi_square: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
        // 15 degrees of freedom: beyond 37.7 once in a thousand.
        assert!(chi_square < 37.7, "{pattern:?}: chi-square {chi_square:.1}, counts {counts:?}");
    }
}

/// The number kept in a row of 64 entries has the binomial variance: neither clustered nor spaced.
#[test]
fn row_sums_have_the_binomial_variance() {
    for p in [0.1, 0.5, 0.9] {
        let dropout = Dropout::new(p, 15, 0).unwrap();
        let (keep, bits) = (dropout.keep_probability(), window(&rule(dropout), 0, 1, 0, 0));
        let sums: Vec<f64> = bits.chunks(8).map(|run| ones(run.iter().copied())).collect();
        let mean = 64.0 * keep;
        let variance = sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>() / sums.len() as f64;
        let ratio = variance / (64.0 * keep * (1.0 - keep));
        let deviation = (2.0 / sums.len() as f64).sqrt();
        assert!((ratio - 1.0).abs() < 4.0 * deviation, "p = {p}: variance {ratio:.4} of the binomial one");
    }
}

#[test]
fn the_unbiased_scale_makes_the_expectation_exact() {
    for p in [1e-3f32, 0.1, 0.5, 0.6, 0.9, 0.999] {
        let dropout = Dropout::new(p, 0, 0).unwrap();
        assert!((dropout.keep_scale() * dropout.keep_probability() - 1.0).abs() < 1e-15, "p = {p}");
    }
}
