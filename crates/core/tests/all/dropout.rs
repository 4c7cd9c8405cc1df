//! The dropout mask against its formulas, written down a second time, and against itself.

use proptest::prelude::*;
use signflash_core::dropout::philox::philox4x32;
use signflash_core::{Dropout, KeepRule, Problem, Shape, Shard};

/// `spec/fa2_mask.py` transcribed line by line, sharing nothing with the crate: 64-bit arithmetic cut to 32 bits where
/// the crate uses 32-bit words, a shift where it uses bytes.
mod transcription {
    const M32: u64 = 0xffff_ffff;

    fn philox4x32_7(key: (u64, u64), counter: (u64, u64, u64, u64)) -> [u64; 4] {
        let (mut k0, mut k1) = key;
        let (mut c0, mut c1, mut c2, mut c3) = counter;
        for _ in 0..7 {
            let (p0, p1) = (0xd251_1f53 * c0, 0xcd9e_8d57 * c2);
            (c0, c1, c2, c3) = ((p1 >> 32) ^ c1 ^ k0, p1 & M32, (p0 >> 32) ^ c3 ^ k1, p0 & M32);
            (k0, k1) = ((k0 + 0x9e37_79b9) & M32, (k1 + 0xbb67_ae85) & M32);
        }
        [c0, c1, c2, c3]
    }

    fn threshold(p: f32) -> u64 {
        (f64::from(1.0f32 - p) * 255.0).floor() as u64
    }

    /// Where an entry lies: batch, head, number of heads, row, column.
    pub(crate) type Place = (u64, u64, u64, u64, u64);

    pub(crate) fn keep(seed: u64, offset: u64, (batch, head, num_heads, i, j): Place, p: f32) -> bool {
        let lane = (i % 8) * 4 + (j % 8) / 2;
        let byte = 8 * ((j / 16) % 2) + 4 * ((j / 8) % 2) + 2 * ((i / 8) % 2) + j % 2;
        let o = offset.wrapping_add((batch * num_heads + head) * 32).wrapping_add(lane);
        let words = philox4x32_7((seed & M32, seed >> 32), (o & M32, o >> 32, i / 16, j / 32));
        (words[(byte / 4) as usize] >> (8 * (byte % 4))) & 255 <= threshold(p)
    }
}

const SHAPE: Shape = Shape::new(4, 90, 150).heads(6, 2).head_dim(8);

fn rule(dropout: Dropout, shape: Shape, shard: Shard) -> KeepRule {
    Problem::builder(shape).dropout(dropout).shard(shard).build().unwrap().keep_rule().expect("p is not 0")
}

fn dropouts() -> impl Strategy<Value = Dropout> {
    // Offsets of which most carry from one counter word to the next within the problem, or wrap around.
    let near_carry =
        (any::<u32>(), 0..1000u64).prop_map(|(high, low)| (u64::from(high) << 32).wrapping_sub(low));
    let offset = prop_oneof![any::<u64>(), near_carry, 0..64u64];
    let p = prop_oneof![1e-6f32..0.999_999, Just(0.1), Just(0.6), Just(0.125), Just(0.999)];
    (p, any::<u64>(), offset).prop_map(|(p, seed, offset)| Dropout::new(p, seed, offset).unwrap())
}

proptest! {
    #[test]
    fn keep_is_what_the_formulas_say(
        dropout in dropouts(),
        (batch, head) in (0..4usize, 0..6usize),
        (i, j) in (0..90usize, 0..150usize),
    ) {
        let place = (batch as u64, head as u64, 6, i as u64, j as u64);
        let expected = transcription::keep(dropout.seed(), dropout.offset(), place, dropout.p());
        prop_assert_eq!(rule(dropout, SHAPE, Shard::default()).keep(batch, head, i, j), expected);
    }

    #[test]
    fn a_shard_draws_what_the_formulas_say_of_its_place(
        dropout in dropouts(),
        shard in (0..99usize, 0..9usize, 0..1_000_000usize, 0..1_000_000usize),
        (batch, head, i, j) in (0..4usize, 0..6usize, 0..90usize, 0..150usize),
    ) {
        let (first_batch, first_head, first_row, first_column) = shard;
        let shard = Shard { first_batch, first_head, first_row, first_column, num_heads_total: Some(15) };
        let place = (first_batch + batch, first_head + head, 15, first_row + i, first_column + j);
        let place = (place.0 as u64, place.1 as u64, place.2, place.3 as u64, place.4 as u64);
        let expected = transcription::keep(dropout.seed(), dropout.offset(), place, dropout.p());
        prop_assert_eq!(rule(dropout, SHAPE, shard).keep(batch, head, i, j), expected);
    }

    #[test]
    fn keep_block_and_block_are_keep(
        dropout in dropouts(),
        (first_row, first_column) in (0..40usize, 0..40usize),
        (row, rows) in (0..40usize, 0..50usize),
        (column, columns) in (0..80usize, 0..70usize),
    ) {
        let shard = Shard { first_row, first_column, ..Shard::default() };
        let rule = rule(dropout, SHAPE, shard);
        let block = rule.keep_block(3, 5, row..row + rows, column..column + columns);
        prop_assert_eq!((block.rows(), block.columns()), (rows, columns));
        let mut kept = 0;
        for i in 0..rows {
            for j in 0..columns {
                let keep = rule.keep(3, 5, row + i, column + j);
                let (i_whole, j_whole) = (first_row + row + i, first_column + column + j);
                let columns_of_16 = rule.block(3, 5, i_whole / 16, j_whole / 32);
                prop_assert_eq!(block.keep(i, j), keep);
                prop_assert_eq!(columns_of_16[j_whole % 32] >> (i_whole % 16) & 1 != 0, keep);
                kept += u64::from(keep);
            }
        }
        prop_assert_eq!(block.kept(), kept);
    }

    #[test]
    fn shards_together_drop_what_the_whole_drops(
        dropout in dropouts(),
        (batch, head) in (0..=4usize, 0..=6usize),
        (row, column) in (0..=90usize, 0..=150usize),
    ) {
        let whole = rule(dropout, SHAPE, Shard::default());
        for (b, batches) in [(0, batch), (batch, 4 - batch)] {
            for (h, num_heads) in [(0, head), (head, 6 - head)] {
                for (i, rows) in [(0, row), (row, 90 - row)] {
                    for (j, columns) in [(0, column), (column, 150 - column)] {
                        if batches == 0 || num_heads == 0 {
                            continue;
                        }
                        let shape = Shape::new(batches, rows, columns).heads(num_heads, num_heads).head_dim(8);
                        let shard = Shard {
                            first_batch: b,
                            first_head: h,
                            first_row: i,
                            first_column: j,
                            num_heads_total: Some(6),
                        };
                        let part = rule(dropout, shape, shard);
                        let expected =
                            whole.keep_block(b + batches - 1, h + num_heads - 1, i..i + rows, j..j + columns);
                        prop_assert_eq!(part.keep_block(batches - 1, num_heads - 1, 0..rows, 0..columns), expected);
                    }
                }
            }
        }
    }

    /// Neither causality, head_dim, lengths nor key heads matter.
    #[test]
    fn nothing_but_the_place_matters(dropout in dropouts(), head_dim in 1..=256usize, causal: bool) {
        let shape = SHAPE.batch(9).seqlen_q(500).heads(SHAPE.num_heads, 6).head_dim(head_dim);
        let other = Problem::builder(shape).causal(causal).softmax_scale(3.0).dropout(dropout).build().unwrap();
        let (this, other) = (rule(dropout, SHAPE, Shard::default()), other.keep_rule().unwrap());
        prop_assert_eq!(this.keep_block(2, 4, 7..50, 9..90), other.keep_block(2, 4, 7..50, 9..90));
    }
}

#[test]
fn a_counter_carries_from_word_to_word_and_wraps_around() {
    for offset in [0xffff_fff0, 0x7_ffff_ffff, u64::MAX, u64::MAX - 40] {
        let rule = rule(Dropout::new(0.5, 3, offset).unwrap(), SHAPE, Shard::default());
        for head in 0..6 {
            for i in 0..90 {
                for j in 0..150 {
                    let place = (1, head as u64, 6, i as u64, j as u64);
                    let expected = transcription::keep(3, offset, place, 0.5);
                    assert_eq!(rule.keep(1, head, i, j), expected, "offset {offset:#x} at {place:?}");
                }
            }
        }
    }
}

#[test]
fn thresholds_are_rounded_as_flash_attention_2_rounds_them() {
    let cases =
        [(0.1, 229), (0.5, 127), (0.6, 101), (0.125, 223), (1e-3, 254), (0.9, 25), (0.999, 0), (0.17, 211)];
    for (p, threshold) in cases {
        assert_eq!(Dropout::new(p, 0, 0).unwrap().threshold(), threshold, "p = {p}");
    }
}

#[test]
fn without_dropout_there_is_no_rule_and_everything_is_kept() {
    let dropout = Dropout::new(0.0, 7, 7).unwrap();
    assert!(!dropout.is_active());
    assert_eq!((dropout.keep_probability(), dropout.keep_scale()), (1.0, 1.0));
    assert!(Problem::builder(SHAPE).dropout(dropout).build().unwrap().keep_rule().is_none());
    assert!(Problem::builder(SHAPE).build().unwrap().keep_rule().is_none());
}

/// The known answers that are published with the generator (Random123, `tests/kat_vectors`).
#[test]
fn philox_with_10_rounds_gives_the_published_answers() {
    let zeros = philox4x32::<10>([0; 2], [0; 4]);
    assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let ones = philox4x32::<10>([u32::MAX; 2], [u32::MAX; 4]);
    assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi =
        philox4x32::<10>([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

/// Likewise for 7 rounds, which dropout takes.
#[test]
fn philox_with_7_rounds_gives_the_published_answers() {
    let zeros = philox4x32::<7>([0; 2], [0; 4]);
    assert_eq!(zeros, [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
    let ones = philox4x32::<7>([u32::MAX; 2], [u32::MAX; 4]);
    assert_eq!(ones, [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]);
    let pi =
        philox4x32::<7>([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
    assert_eq!(pi, [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a]);
}

#[test]
#[should_panic(expected = "(2, 0) outside 2 x 3")]
fn a_block_refuses_an_entry_outside() {
    rule(Dropout::new(0.5, 0, 0).unwrap(), SHAPE, Shard::default()).keep_block(0, 0, 0..2, 0..3).keep(2, 0);
}
