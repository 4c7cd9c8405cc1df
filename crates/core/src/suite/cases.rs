//! The cases.

use super::adjust;
use super::case::{Case, Cuts};
use super::layout::Layout;
use super::named::named_cases;
use super::scores::Extent::{Each, One};
use crate::{Dtype, Shard, Slopes};

named_cases! { $
    // Every head_dim, most of them no multiple of a vector.
    head_dim_1 => Case::new(33, 50).head_dim(1).dropout(0.1),
    head_dim_7 => Case::new(65, 70).head_dim(7).causal().dropout(0.1),
    head_dim_32 => Case::new(65, 113).head_dim(32).dropout(0.1),
    head_dim_40 => Case::new(65, 113).head_dim(40).causal().dropout(0.1),
    head_dim_64 => Case::new(65, 113).head_dim(64).dropout(0.1),
    head_dim_80 => Case::new(65, 113).head_dim(80).causal(),
    head_dim_96 => Case::new(65, 113).head_dim(96).dropout(0.1),
    head_dim_128 => Case::new(65, 113).head_dim(128).causal().dropout(0.1),
    head_dim_192 => Case::new(65, 113).head_dim(192).dropout(0.1),
    head_dim_256 => Case::new(65, 113).head_dim(256).causal().dropout(0.1),

    // Lengths around the sizes of blocks, squares and thin ones.
    length_1 => Case::new(1, 1).batch(3).heads(4, 4).dropout(0.5),
    length_2 => Case::new(2, 2).batch(3).heads(4, 4).dropout(0.125),
    length_15 => Case::new(15, 15).batch(2).dropout(0.125),
    length_16 => Case::new(16, 16).batch(2).causal().dropout(0.125),
    length_17 => Case::new(17, 17).batch(2).dropout(0.125),
    length_113 => Case::new(113, 113).batch(2).causal().dropout(0.125),
    length_128 => Case::new(128, 128).batch(2).dropout(0.125),
    length_203 => Case::new(203, 203).dropout(0.125),
    length_257 => Case::new(257, 257).causal().dropout(0.125),
    length_1024 => Case::new(1024, 1024).heads(1, 1).dropout(0.1),
    length_1024_causal => Case::new(1024, 1024).heads(2, 1).head_dim(32).causal().dropout(0.1),
    length_1024_without_dropout => Case::new(1024, 1024).heads(1, 1).head_dim(128).causal(),
    one_query_of_many_keys => Case::new(1, 1024).heads(4, 2).causal().dropout(0.1),
    many_queries_of_one_key => Case::new(257, 1).dropout(0.1),
    few_queries_of_many_keys => Case::new(17, 257).batch(2).dropout(0.1),
    many_queries_of_few_keys => Case::new(257, 17).batch(2).dropout(0.1),

    // Causal, bottom-right aligned.
    causal_square => Case::new(128, 128).causal(),
    causal_fewer_queries_than_keys => Case::new(113, 203).causal().dropout(0.1),
    causal_rows_that_see_no_key => Case::new(203, 113).causal().dropout(0.1),
    causal_one_row_sees_one_key => Case::new(67, 1).causal().dropout(0.5),
    diagonal_before_the_first_key => Case::new(65, 113).causal_from(-20).dropout(0.1),
    diagonal_inside => Case::new(113, 203).head_dim(128).causal_from(37).dropout(0.1),
    diagonal_behind_which_no_key_is_left => Case::new(113, 70).heads(4, 2).causal_from(33).dropout(0.1),
    diagonal_behind_blocks_of_keys => Case::new(200, 330).causal_from(-80).dropout(0.1),
    diagonal_behind_blocks_of_keys_of_head_dim_192 => Case::new(200, 330).head_dim(192).heads(4, 2).causal_from(-80).dropout(0.1),
    diagonal_that_shows_every_key => Case::new(50, 70).causal_from(200).dropout(0.1),
    diagonal_that_shows_no_key => Case::new(50, 70).causal_from(-200).dropout(0.1),

    // Nothing at all.
    no_keys => Case::new(17, 0).dropout(0.1),
    no_keys_causal => Case::new(17, 0).causal(),
    no_queries => Case::new(0, 17).dropout(0.1),
    no_batch => Case::new(17, 17).batch(0).dropout(0.1),

    // Head groups.
    one_key_head_for_8 => Case::new(50, 70).batch(2).heads(8, 1).dropout(0.1),
    one_key_head_for_2 => Case::new(50, 70).batch(2).heads(4, 2).causal().dropout(0.1),
    one_key_head_for_8_of_16 => Case::new(40, 70).heads(16, 2).causal().dropout(0.1),
    one_key_head_for_3 => Case::new(40, 70).heads(6, 2),

    // Dropout.
    p_0 => Case::new(70, 70).dropout(0.0),
    p_0_nominal => Case::new(70, 70).dropout(0.0).nominal(),
    p_0_001 => Case::new(70, 70).dropout(1e-3),
    p_0_1 => Case::new(70, 70).dropout(0.1),
    p_0_1_nominal => Case::new(70, 70).dropout(0.1).nominal(),
    p_0_125 => Case::new(70, 70).dropout(0.125).nominal(),
    p_0_5 => Case::new(70, 70).causal().dropout(0.5),
    p_0_9 => Case::new(70, 70).dropout(0.9),
    p_0_9_nominal => Case::new(70, 70).dropout(0.9).nominal(),
    p_0_999 => Case::new(170, 170).dropout(0.999),
    p_0_999_nominal => Case::new(170, 170).dropout(0.999).nominal(),
    seed_of_64_bits => Case::new(70, 70).dropout_at(0.3, 0xdead_beef_0bad_cafe, 5),
    offset_low_word_overflows_within_a_block => Case::new(70, 70).dropout_at(0.3, 1, 0xffff_fff0),
    offset_wraps_around => Case::new(70, 70).batch(2).dropout_at(0.3, 1, u64::MAX - 7),
    offset_of_an_advanced_generator => Case::new(70, 70).dropout_at(0.3, 1, (3 << 32) + 12345),

    // Scales of the scores.
    softmax_scale_0 => Case::new(50, 70).softmax_scale(0.0).dropout(0.1),
    softmax_scale_negative => Case::new(50, 70).softmax_scale(-0.1).causal().dropout(0.1),
    softmax_scale_1 => Case::new(50, 70).head_dim(32).softmax_scale(1.0).dropout(0.1),

    // A gradient that arrives through lse, too.
    gradient_through_lse => Case::new(65, 113).dlse(),
    gradient_through_lse_with_dropout => Case::new(113, 113).head_dim(128).causal().dropout(0.3).dlse(),
    gradient_through_lse_of_rows_that_see_no_key =>
        Case::new(203, 113).causal().dropout(0.1).dlse(),
    gradient_through_lse_of_many_keys => Case::new(65, 600).causal().dropout(0.1).dlse(),
    gradient_through_lse_of_head_groups =>
        Case::new(40, 70).batch(2).heads(4, 2).head_dim(40).layout(Layout::Bhsd).dropout(0.5).dlse(),
    gradient_through_lse_in_pieces => Case::new(50, 70).batch(2).heads(4, 2).dropout(0.1).dlse().cut(Cuts {
        batches: vec![1],
        heads: vec![2],
        rows: vec![23],
        columns: vec![35],
    }),
    gradient_through_lse_without_keys => Case::new(17, 0).dropout(0.1).dlse(),

    // Storage.
    layout_bhsd => Case::new(50, 70).batch(2).heads(4, 2).layout(Layout::Bhsd).dropout(0.1),
    layout_sbhd => Case::new(50, 70).batch(2).heads(4, 2).layout(Layout::Sbhd).causal().dropout(0.1),
    layout_padded_rows =>
        Case::new(50, 70).batch(2).heads(4, 2).head_dim(40).layout(Layout::PaddedRows).dropout(0.1),
    layout_padded_rows_of_head_dim_1 =>
        Case::new(50, 70).batch(2).head_dim(1).layout(Layout::PaddedRows).dropout(0.1),
    layout_packed_qkv => Case::new(70, 70).batch(2).layout(Layout::PackedQkv).causal().dropout(0.1),
    layout_broadcast_heads => Case::new(50, 70).heads(4, 4).layout(Layout::BroadcastHeads).dropout(0.1),
    layout_broadcast_batch => Case::new(50, 70).batch(3).layout(Layout::BroadcastBatch).dropout(0.1),

    // Shards: one that drops what a place in a larger problem drops, and pieces that make the whole.
    shard_drops_as_its_place_does => Case::new(50, 70).batch(2).dropout(0.3).shard(Shard {
        first_batch: 3,
        first_head: 2,
        first_row: 5,
        first_column: 13,
        num_heads_total: Some(7),
    }),
    shard_far_down_a_long_sequence => Case::new(50, 70).causal().dropout(0.3).shard(Shard {
        first_row: 1_000_003,
        first_column: 2_000_017,
        ..Shard::default()
    }),
    pieces_of_the_batch =>
        Case::new(50, 70).batch(3).dropout(0.1).cut(Cuts { batches: vec![1], ..Cuts::default() }),
    pieces_of_the_heads =>
        Case::new(50, 70).heads(8, 4).causal().dropout(0.1).cut(Cuts { heads: vec![2, 6], ..Cuts::default() }),
    pieces_of_the_rows =>
        Case::new(80, 70).dropout(0.1).cut(Cuts { rows: vec![16, 64], ..Cuts::default() }),
    pieces_of_the_rows_inside_blocks =>
        Case::new(80, 70).dropout(0.1).cut(Cuts { rows: vec![5, 37, 42], ..Cuts::default() }),
    pieces_of_the_columns =>
        Case::new(50, 140).dropout(0.1).cut(Cuts { columns: vec![32, 96], ..Cuts::default() }),
    pieces_of_the_columns_inside_blocks =>
        Case::new(50, 140).dropout(0.1).cut(Cuts { columns: vec![13, 77], ..Cuts::default() }),
    pieces_of_causal_rows =>
        Case::new(90, 120).causal().dropout(0.1).cut(Cuts { rows: vec![31, 64], ..Cuts::default() }),
    pieces_of_causal_rows_that_see_no_key =>
        Case::new(120, 70).causal().dropout(0.1).cut(Cuts { rows: vec![20, 64], ..Cuts::default() }),
    pieces_of_causal_columns =>
        Case::new(90, 120).causal().dropout(0.1).cut(Cuts { columns: vec![32, 96], ..Cuts::default() }),
    pieces_of_causal_columns_inside_blocks =>
        Case::new(70, 140).causal().dropout(0.1).cut(Cuts { columns: vec![13, 77, 131], ..Cuts::default() }),
    pieces_of_causal_columns_that_some_rows_do_not_see =>
        Case::new(120, 70).causal().dropout(0.1).cut(Cuts { columns: vec![20, 64], ..Cuts::default() }),
    pieces_of_causal_rows_and_columns => Case::new(90, 120).heads(4, 2).causal().dropout(0.1).dlse().cut(Cuts {
        rows: vec![31, 64],
        columns: vec![35, 96],
        ..Cuts::default()
    }),
    pieces_of_everything => Case::new(50, 70).batch(2).heads(4, 2).dropout(0.1).cut(Cuts {
        batches: vec![1],
        heads: vec![2],
        rows: vec![23],
        columns: vec![35],
    }),

    // Windows: bounds on the left, on the right and on both sides, which begin and end inside tiles.
    window_left => Case::new(113, 150).head_dim(32).window(20, None).dropout(0.1),
    window_left_without_dropout => Case::new(150, 150).heads(1, 1).head_dim(128).window(33, None),
    window_right => Case::new(150, 113).head_dim(32).window(None, 11).dropout(0.1),
    window_right_without_dropout => Case::new(70, 113).head_dim(64).window(None, 11),
    window_of_both_sides => Case::new(260, 260).heads(1, 1).window(40, 17).dropout(0.1),
    window_of_both_sides_without_dropout => Case::new(150, 150).heads(1, 1).head_dim(128).window(9, 30),
    window_causal => Case::new(200, 200).head_dim(32).heads(2, 1).window(37, None).causal().dropout(0.1),
    window_causal_without_dropout => Case::new(150, 150).heads(1, 1).head_dim(128).window(64, None).causal(),
    window_of_fewer_queries_than_keys => Case::new(40, 203).head_dim(32).window(30, 5).dropout(0.1),
    window_of_more_queries_than_keys => Case::new(203, 40).head_dim(32).window(30, 5).dropout(0.1),
    window_of_one_key => Case::new(70, 90).head_dim(32).window(0, 0).dropout(0.5),
    window_wider_than_everything => Case::new(50, 70).head_dim(32).window(500, 1 << 40).dropout(0.1),
    window_of_head_groups => Case::new(70, 90).batch(2).heads(4, 2).head_dim(40).window(20, 9).dropout(0.1),
    window_of_head_dim_192 => Case::new(113, 140).heads(1, 1).head_dim(192).window(30, 0).dropout(0.1),
    window_of_head_dim_256 => Case::new(113, 140).heads(1, 1).head_dim(256).window(30, 20),
    window_with_a_gradient_through_lse => Case::new(150, 90).head_dim(32).window(20, 10).dropout(0.1).dlse(),
    window_before_the_first_key =>
        Case::new(150, 113).head_dim(32).window(20, 10).diagonal(-70).dropout(0.1),
    window_behind_the_last_key => Case::new(150, 113).head_dim(32).window(20, 10).diagonal(50).dropout(0.1),
    window_that_shows_no_key => Case::new(50, 70).head_dim(32).window(20, 10).diagonal(-200).dropout(0.1),
    pieces_of_window_rows =>
        Case::new(90, 120).head_dim(32).window(20, 10).dropout(0.1).cut(Cuts { rows: vec![31, 64], ..Cuts::default() }),
    pieces_of_window_columns => Case::new(90, 120).head_dim(32).window(20, 10).dropout(0.1).cut(Cuts {
        columns: vec![13, 64, 96],
        ..Cuts::default()
    }),
    pieces_of_window_rows_and_columns => Case::new(70, 90).heads(2, 1).head_dim(32).window(30, 5).dropout(0.1).dlse().cut(Cuts {
        rows: vec![31, 64],
        columns: vec![35],
        ..Cuts::default()
    }),

    // Packed sequences. Queries and keys that a case has without them are left over behind the last.
    packed_equal_lengths => Case::new(0, 0).packed(&[40; 3], &[40; 3]).dropout(0.1),
    packed_unequal_lengths => Case::new(0, 0).head_dim(32).packed(&[5, 70, 33, 1], &[5, 70, 33, 1]).dropout(0.1),
    packed_unequal_lengths_without_dropout =>
        Case::new(0, 0).heads(1, 1).head_dim(128).packed(&[20, 90, 7], &[20, 90, 7]),
    packed_other_lengths_of_keys =>
        Case::new(0, 0).head_dim(32).packed(&[30, 7, 70], &[20, 90, 9]).dropout(0.1),
    packed_empty_sequences =>
        Case::new(0, 0).head_dim(32).packed(&[0, 20, 0, 13, 0, 0], &[9, 0, 0, 25, 4, 0]).dropout(0.1),
    packed_nothing_at_all => Case::new(0, 0).packed(&[0, 0], &[0, 0]).dropout(0.1),
    packed_no_sequence => Case::new(5, 3).head_dim(32).packed(&[], &[]).dropout(0.1),
    packed_one_sequence => Case::new(0, 0).head_dim(32).packed(&[70], &[90]).causal().dropout(0.1),
    packed_many_sequences_of_one => Case::new(0, 0).heads(1, 1).head_dim(32).packed(&[1; 12], &[1; 12]).dropout(0.5),
    packed_rows_left_over => Case::new(3, 5).head_dim(32).packed(&[20, 9], &[16, 31]).dropout(0.1),
    packed_queries_left_over => Case::new(70, 0).head_dim(32).packed(&[20, 9], &[16, 31]).causal(),
    packed_keys_left_over => Case::new(0, 70).head_dim(32).packed(&[20, 9], &[16, 31]).dropout(0.1),
    packed_head_groups =>
        Case::new(0, 0).heads(4, 2).head_dim(40).packed(&[17, 40], &[17, 33]).layout(Layout::Bhsd).dropout(0.1),
    packed_causal => Case::new(0, 0).packed(&[33, 70, 12], &[50, 70, 40]).causal().dropout(0.1),
    packed_causal_rows_that_see_no_key =>
        Case::new(0, 0).head_dim(32).packed(&[90, 20], &[10, 25]).causal().dropout(0.1),
    packed_window =>
        Case::new(0, 0).head_dim(32).packed(&[33, 90, 12], &[50, 90, 40]).window(20, 5).dropout(0.1),
    packed_window_causal => Case::new(2, 1).head_dim(32).packed(&[90, 33], &[90, 20]).window(20, 0),
    packed_lengths_around_16_and_64 => Case::new(0, 0)
        .heads(1, 1)
        .head_dim(32)
        .packed(&[15, 16, 17, 63, 64, 65], &[17, 16, 15, 65, 64, 63])
        .dropout(0.1),
    packed_lengths_around_128 =>
        Case::new(0, 0).heads(1, 1).packed(&[127, 128, 129], &[129, 128, 127]).causal().dropout(0.1),
    packed_with_a_gradient_through_lse =>
        Case::new(4, 0).head_dim(32).packed(&[70, 9, 20], &[70, 9, 5]).causal().dropout(0.1).dlse(),
    packed_head_dim_192 => Case::new(0, 0).heads(1, 1).head_dim(192).packed(&[70, 33], &[70, 33]).causal().dropout(0.1),
    packed_head_dim_256 => Case::new(0, 0).heads(1, 1).head_dim(256).packed(&[20, 70], &[20, 60]).dropout(0.1),
    packed_layout_qkv =>
        Case::new(0, 0).head_dim(32).packed(&[25, 40], &[25, 40]).layout(Layout::PackedQkv).dropout(0.1),
    packed_layout_padded_rows =>
        Case::new(0, 0).head_dim(40).packed(&[25, 40], &[30, 9]).layout(Layout::PaddedRows).causal().dropout(0.1),
    packed_shard_drops_as_its_place_does =>
        Case::new(0, 0).head_dim(32).packed(&[25, 40], &[30, 9]).dropout(0.3).shard(Shard {
            first_batch: 3,
            first_head: 2,
            num_heads_total: Some(7),
            ..Shard::default()
        }),
    packed_pieces_of_the_heads => Case::new(3, 2).heads(4, 2).head_dim(32).packed(&[25, 40], &[30, 9]).dropout(0.1).cut(
        Cuts { heads: vec![2], ..Cuts::default() },
    ),

    // What becomes of a score: each feature alone, with dropout and without.
    softcap => Case::new(40, 70).head_dim(32).softcap(2.0).dropout(0.1),
    softcap_without_dropout => Case::new(65, 70).softcap(30.0).causal(),
    softcap_far_below_the_scores => Case::new(33, 70).head_dim(32).std(4.0, 4.0).softcap(1.5).dropout(0.1),
    softcap_of_a_negative_scale => Case::new(20, 33).head_dim(32).softmax_scale(-0.3).softcap(2.0).dropout(0.1),
    alibi => Case::new(40, 70).head_dim(32).heads(4, 2).alibi(Slopes::PerHead).dropout(0.1),
    alibi_without_dropout => Case::new(65, 70).batch(2).alibi(Slopes::PerSequence).causal(),
    alibi_before_the_first_key => Case::new(70, 40).head_dim(32).alibi(Slopes::PerHead).diagonal(-50).dropout(0.1),
    bias => Case::new(40, 70).batch(2).head_dim(32).bias(Dtype::F32, [One, Each, Each]).dropout(0.1),
    bias_without_dropout => Case::new(65, 70).bias(Dtype::Bf16, [Each; 3]).causal(),
    bias_of_keys => Case::new(70, 70).batch(2).head_dim(32).bias(Dtype::F16, [Each, One, One]).dropout(0.1),
    bias_of_everybody => Case::new(33, 90).batch(2).heads(4, 2).head_dim(32).bias(Dtype::F32, [One; 3]),
    bias_of_all_heads => Case::new(70, 33).heads(4, 1).head_dim(32).bias(Dtype::F16, [Each, One, Each]).dropout(0.1),
    bias_that_hides =>
        Case::new(40, 70).head_dim(32).bias(Dtype::F32, [One, Each, Each]).dropout(0.3)
            .arrange(adjust::minus_inf_in_a_bias),
    bias_of_each_score_in_a_window =>
        Case::new(140, 140).heads(1, 1).head_dim(32).bias(Dtype::F32, [Each; 3]).window(20, 5).dropout(0.1),
    mask => Case::new(40, 70).batch(2).head_dim(32).mask([Each; 3]).dropout(0.1),
    mask_without_dropout => Case::new(65, 70).mask([One, One, Each]).causal(),
    mask_of_padding =>
        Case::new(40, 203).batch(2).head_dim(32).mask([Each, One, One]).dropout(0.1).arrange(adjust::padding),
    mask_of_padding_without_dropout =>
        Case::new(130, 150).batch(2).heads(1, 1).mask([Each, One, One]).arrange(adjust::padding),
    mask_of_blocks => Case::new(150, 203).heads(1, 1).head_dim(32).mask([One, One, Each]).dropout(0.1).arrange(adjust::blocks),
    mask_that_hides_everything_from_some_rows =>
        Case::new(50, 70).head_dim(32).mask([One, Each, Each]).dropout(0.1).dlse().arrange(adjust::blind_rows),
    mask_that_hides_everything =>
        Case::new(17, 33).head_dim(32).mask([One; 3]).dropout(0.1).arrange(adjust::hide_everything),
    sinks => Case::new(40, 70).head_dim(32).sinks().dropout(0.1).dlse(),
    sinks_without_dropout => Case::new(65, 70).heads(4, 2).sinks().causal(),
    sinks_of_rows_that_see_no_key => Case::new(70, 40).head_dim(32).sinks().causal().dropout(0.1).dlse(),
    sinks_without_keys => Case::new(17, 0).head_dim(32).sinks().dropout(0.1),
    head_dim_v => Case::new(40, 70).head_dim(96).head_dim_v(64).dropout(0.1),
    head_dim_v_without_dropout => Case::new(65, 70).head_dim(192).head_dim_v(128).causal(),
    head_dim_v_larger => Case::new(65, 70).heads(4, 2).head_dim(64).head_dim_v(128).causal().dropout(0.1),
    head_dim_v_of_no_vector => Case::new(33, 50).head_dim(24).head_dim_v(7).dropout(0.1),

    // Every pair of them, among them every other setting.
    softcap_and_alibi => Case::new(40, 70).head_dim(32).softcap(2.0).alibi(Slopes::PerHead).causal().dropout(0.1),
    softcap_and_bias =>
        Case::new(50, 70).head_dim(32).softcap(2.0).bias(Dtype::F32, [One, Each, Each]).window(20, 5).dropout(0.1),
    softcap_and_mask =>
        Case::new(0, 0).head_dim(32).packed(&[20, 7, 40], &[33, 9, 40]).softcap(2.0).mask([Each, One, Each]).dropout(0.1),
    softcap_and_sinks =>
        Case::new(50, 70).head_dim(32).softcap(2.0).sinks().dropout(0.1)
            .cut(Cuts { rows: vec![23], columns: vec![35], ..Cuts::default() }),
    softcap_and_head_dim_v => Case::new(0, 3).head_dim(40).head_dim_v(24).packed(&[20, 33], &[20, 33]).softcap(5.0).causal(),
    alibi_and_bias =>
        Case::new(2, 0).head_dim(32).packed(&[20, 7, 40], &[33, 9, 40]).alibi(Slopes::PerSequence)
            .bias(Dtype::F16, [Each, One, Each]).dropout(0.1),
    alibi_and_mask =>
        Case::new(50, 70).batch(2).head_dim(32).alibi(Slopes::PerHead).mask([Each, One, One]).dropout(0.1)
            .cut(Cuts { batches: vec![1], rows: vec![23], columns: vec![35], ..Cuts::default() }),
    alibi_and_sinks =>
        Case::new(70, 50).heads(4, 2).head_dim(32).alibi(Slopes::PerHead).sinks().window(20, 0).dropout(0.1).dlse(),
    alibi_and_head_dim_v => Case::new(40, 70).head_dim(64).head_dim_v(128).alibi(Slopes::PerHead).causal().dropout(0.1),
    bias_and_mask =>
        Case::new(40, 70).batch(2).head_dim(32).bias(Dtype::Bf16, [One, Each, Each]).mask([Each, One, One])
            .dropout(0.1).arrange(adjust::padding),
    bias_and_sinks =>
        Case::new(50, 70).batch(2).heads(4, 2).head_dim(32).bias(Dtype::F32, [Each, Each, One]).sinks().causal()
            .dropout(0.1).dlse().cut(Cuts { heads: vec![2], rows: vec![23], columns: vec![35], ..Cuts::default() }),
    bias_and_head_dim_v =>
        Case::new(0, 0).heads(4, 2).head_dim(32).head_dim_v(16).packed(&[20, 0, 33], &[20, 9, 17])
            .bias(Dtype::F32, [One, Each, Each]).causal(),
    mask_and_sinks =>
        Case::new(50, 70).head_dim(32).mask([One, Each, Each]).sinks().dropout(0.1).dlse().arrange(adjust::blind_rows),
    mask_and_head_dim_v =>
        Case::new(40, 70).head_dim(40).head_dim_v(72).layout(Layout::Bhsd).mask([One, Each, Each]).window(30, 10)
            .dropout(0.1),
    sinks_and_head_dim_v =>
        Case::new(1, 2).head_dim(32).head_dim_v(64).packed(&[20, 33], &[9, 40]).sinks().causal().dropout(0.1),
    every_feature =>
        Case::new(70, 90).batch(2).heads(4, 2).head_dim(40).head_dim_v(24).softcap(3.0).alibi(Slopes::PerSequence)
            .bias(Dtype::F32, [One, Each, Each]).mask([Each, One, Each]).sinks().window(60, 30).dropout(0.2).dlse(),
    features_of_a_shard =>
        Case::new(50, 70).head_dim(32).alibi(Slopes::PerHead).bias(Dtype::F32, [One, Each, Each]).causal_from(7)
            .dropout(0.3)
            .shard(Shard { first_batch: 3, first_head: 2, first_row: 5, first_column: 13, num_heads_total: Some(7) }),

    // Large scores: weights underflow, dropped ones to -0.0.
    large_scores => Case::new(128, 203).std(5.0, 3.0).dropout(0.1),
    large_scores_causal => Case::new(203, 203).head_dim(128).std(5.0, 3.0).causal().dropout(0.1),
    large_scores_without_dropout => Case::new(113, 113).std(5.0, 3.0),

    // Far larger scores, of which one key's or those of some equal keys are all that counts.
    huge_scores => Case::new(65, 113).softmax_scale(1e9).dropout(0.1).dtypes(&[Dtype::F32, Dtype::Bf16]),
    huge_scores_causal => Case::new(113, 113).std(3e4, 3e4).causal().dtypes(&[Dtype::F32, Dtype::Bf16]),
    huge_scores_of_f16 => Case::new(65, 70).std(3000.0, 3000.0).dropout(0.1),
    huge_score_of_one_key => Case::new(3, 1).filled(20000.0),
    huge_equal_scores => Case::new(40, 70).causal().filled(20000.0),
    huge_scores_in_pieces =>
        Case::new(50, 70).std(3000.0, 3000.0).dropout(0.1).cut(Cuts { rows: vec![23], ..Cuts::default() }),

    // NaN and infinity, only where they belong.
    nan_in_one_query => Case::new(40, 50).causal().dropout(0.3).adjust(adjust::nan_in_one_query),
    nan_in_one_dout => Case::new(40, 50).causal().dropout(0.3).adjust(adjust::nan_in_one_dout),
    nan_in_one_dlse => Case::new(40, 50).causal().dropout(0.3).dlse().adjust(adjust::nan_in_one_dlse),
    nan_in_queries_that_see_no_key =>
        Case::new(90, 40).causal().dropout(0.3).adjust(adjust::nan_in_blind_queries),
    nan_in_a_value_that_some_rows_do_not_see =>
        Case::new(40, 40).causal().adjust(adjust::nan_in_one_value),
    nan_in_a_value_that_some_rows_drop => Case::new(40, 40).dropout(0.5).adjust(adjust::nan_in_one_value),
    nan_in_values_that_every_row_drops =>
        Case::new(8, 70).dropout(0.9).adjust(adjust::nan_in_dropped_values),
    nan_in_a_key_that_some_rows_do_not_see =>
        Case::new(40, 40).causal().dropout(0.3).adjust(adjust::nan_in_one_key),
    inf_in_a_value_that_some_rows_do_not_see =>
        Case::new(40, 40).causal().adjust(adjust::inf_in_one_value),
    nan_in_a_value_before_and_behind_some_windows =>
        Case::new(60, 60).window(10, 5).adjust(adjust::nan_in_one_value),
    nan_in_a_key_before_and_behind_some_windows =>
        Case::new(60, 60).window(10, 5).dropout(0.3).adjust(adjust::nan_in_one_key),
    inf_in_a_value_that_some_rows_drop => Case::new(40, 40).dropout(0.5).adjust(adjust::inf_in_one_value),
    minus_inf_scores => Case::new(50, 70).dropout(0.3).adjust(adjust::minus_inf_scores),
    minus_inf_scores_in_whole_rows => Case::new(40, 40).causal().dropout(0.3).adjust(adjust::minus_inf_rows),
    plus_inf_score => Case::new(40, 40).causal().dropout(0.3).adjust(adjust::plus_inf_score),

    nan_in_one_entry_of_a_bias =>
        Case::new(40, 50).head_dim(32).bias(Dtype::F32, [One, Each, Each]).mask([One, One, Each]).causal()
            .dropout(0.3).adjust(adjust::nan_in_one_bias),
    nan_and_inf_in_entries_of_a_bias_that_nobody_sees =>
        Case::new(40, 50).head_dim(32).bias(Dtype::F32, [One, Each, Each]).mask([One, One, Each]).causal()
            .dropout(0.3).adjust(adjust::nan_in_hidden_biases),
    nan_in_keys_that_a_mask_hides =>
        Case::new(40, 150).batch(2).head_dim(32).mask([Each, One, One]).dropout(0.3).adjust(adjust::nan_in_padding),
    nan_in_keys_that_a_bias_hides =>
        Case::new(40, 70).head_dim(32).softcap(2.0).bias(Dtype::F32, [One, One, One])
            .adjust(adjust::nan_in_keys_of_minus_inf),

    // FlashAttention-2's inputs on an H200; what it made of them is compared in the core's own tests.
    vector_a => Case::vector("a_f16_d64_p10.safetensors", Dtype::F16),
    vector_b => Case::vector("b_bf16_d128_p30_ragged.safetensors", Dtype::Bf16),
    vector_c => Case::vector("c_f16_d64_p20_causal.safetensors", Dtype::F16),
    vector_d => Case::vector("d_bf16_d64_p17_cross.safetensors", Dtype::Bf16),
    vector_e => Case::vector("e_f16_d32_p50_causal.safetensors", Dtype::F16),
    vector_f => Case::vector("f_f16_d128_p00.safetensors", Dtype::F16),
    vector_p1 => Case::vector("p1_f16_d64_packed_p10.safetensors", Dtype::F16),
    vector_p2 => Case::vector("p2_bf16_d128_packed_causal_gqa_p17.safetensors", Dtype::Bf16),
    vector_w1 => Case::vector("w1_f16_d64_window_p20.safetensors", Dtype::F16),
}
