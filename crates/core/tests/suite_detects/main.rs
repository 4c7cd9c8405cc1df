//! The suite fails for implementations that are broken in one way each.

mod broken;
mod scores;

use broken::{Broken, Fault};
use signflash_core::suite::{Finding, Reference, Report, case, check_backward_drops, run_case};
use signflash_core::{Dtype, TensorName};

fn report(fault: Fault, name: &str) -> Report {
    let case = case(name).expect("the suite has it");
    run_case(name, &case, &Broken::by(fault))
}

/// The faulty implementation fails the case in every dtype, and on that tensor.
fn assert_detected(fault: Fault, name: &str, tensor: TensorName, expected: impl Fn(&Finding) -> bool) {
    let report = report(fault, name);
    let case = case(name).expect("the suite has it");
    assert!(run_case(name, &case, &Reference).failures.is_empty(), "{name} is passed by what is right");
    let on_tensor = |tensor_of: Option<TensorName>, finding| tensor_of == Some(tensor) && expected(finding);
    let detected =
        report.failures.iter().filter(|failure| on_tensor(failure.tensor, &failure.finding)).count();
    assert!(report.ran > 0 && detected >= report.ran, "{fault:?} in {name} {tensor}: {report}");
}

const SIGN_BITS: fn(&Finding) -> bool = |finding| matches!(finding, Finding::SignBits { .. });
const ERROR: fn(&Finding) -> bool = |finding| matches!(finding, Finding::Error { .. });
const SPECIAL: fn(&Finding) -> bool = |finding| matches!(finding, Finding::Special { .. });
const UNWRITTEN: fn(&Finding) -> bool = |finding| matches!(finding, Finding::Unwritten { .. });

#[test]
fn one_wrong_sign_bit() {
    let one = |finding: &Finding| matches!(finding, Finding::SignBits { count: 1, first } if first.index == [0, 1, 3, 2]);
    assert_detected(Fault::OneSignBit, "p_0_1", TensorName::Probs, one);
}

#[test]
fn reading_the_sign_bit_as_not_negative() {
    // Only where weights underflow does it matter, and only a case that has such weights can tell.
    let report = report(Fault::SignByComparison, "large_scores_causal");
    assert!(report.failures.iter().any(|failure| SIGN_BITS(&failure.finding)), "{report}");
}

#[test]
fn one_wrong_magnitude() {
    assert_detected(Fault::MagnitudeOfOneProbability, "p_0_1", TensorName::Probs, ERROR);
}

#[test]
fn something_where_nothing_is_visible() {
    assert_detected(Fault::MinusZeroWhereInvisible, "p_0_5", TensorName::Probs, SIGN_BITS);
    assert_detected(Fault::TinyWhereInvisible, "p_0_5", TensorName::Probs, SPECIAL);
}

#[test]
fn a_missing_keep_scale() {
    assert_detected(Fault::NoKeepScale, "p_0_001", TensorName::Out, ERROR);
    assert_detected(Fault::KeepScaleOfTheOtherRule, "p_0_9", TensorName::Out, ERROR);
}

#[test]
fn a_factor_of_1_percent_and_a_swapped_head() {
    let all = [TensorName::Out, TensorName::Dq, TensorName::Dk, TensorName::Dv];
    let cases = [
        ("p_0_1", &all[..]),
        ("length_2", &all),
        ("few_queries_of_many_keys", &all),
        ("many_queries_of_one_key", &[TensorName::Out, TensorName::Dv]),
    ];
    for fault in [Fault::OnePercent, Fault::SwapsHeads] {
        for (case, tensors) in cases {
            let report = report(fault, case);
            for tensor in tensors {
                let found =
                    |dtype| report.failures.iter().any(|x| x.tensor == Some(*tensor) && x.dtype == dtype);
                assert!(
                    [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().all(found),
                    "{case} {tensor}: {report}"
                );
            }
        }
    }
}

#[test]
fn too_few_bits() {
    let report = report(Fault::RoundsLikeBf16, "p_0_1");
    let dtypes: Vec<String> = report.failures.iter().map(|failure| failure.dtype.to_string()).collect();
    assert_eq!(dtypes, ["f32", "f32", "f16", "f16"], "{report}"); // without and with probs; bf16 may
}

#[test]
fn a_logarithm_of_another_base() {
    assert_detected(Fault::LseOfBase2, "p_0_1", TensorName::Lse, ERROR);
}

#[test]
fn an_element_that_was_not_written() {
    assert_detected(Fault::ForgetsTheLastElement, "layout_padded_rows", TensorName::Out, UNWRITTEN);
    assert_detected(Fault::ForgetsOneProbability, "layout_bhsd", TensorName::Probs, UNWRITTEN);
}

#[test]
fn a_write_beside_a_row() {
    let outside = |finding: &Finding| *finding == Finding::WrittenOutside { at: 40 };
    assert_detected(Fault::WritesBesideARow, "layout_padded_rows", TensorName::Out, outside);
}

#[test]
fn a_read_beside_a_row() {
    assert_detected(Fault::ReadsBesideARow, "layout_padded_rows", TensorName::Out, SPECIAL);
}

#[test]
fn what_another_place_drops() {
    let moved = "shard_drops_as_its_place_does";
    assert_detected(Fault::IgnoresTheShard, moved, TensorName::Probs, SIGN_BITS);
    assert_detected(Fault::IgnoresTheShard, "pieces_of_the_rows_inside_blocks", TensorName::Probs, SIGN_BITS);
    let carry = "offset_of_an_advanced_generator";
    assert_detected(Fault::IgnoresTheHighWordOfTheOffset, carry, TensorName::Probs, SIGN_BITS);
}

#[test]
fn missing_causality() {
    assert_detected(Fault::SeesTheFuture, "causal_fewer_queries_than_keys", TensorName::Dq, |_| true);
}

/// What sees other keys gives other results of every kind, in every dtype.
fn assert_all_are_wrong(fault: Fault, name: &str) {
    let report = report(fault, name);
    for tensor in [TensorName::Out, TensorName::Lse, TensorName::Probs, TensorName::Dq, TensorName::Dk] {
        let found = |dtype| report.failures.iter().any(|x| x.tensor == Some(tensor) && x.dtype == dtype);
        let all = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().all(found);
        assert!(all, "{fault:?} in {name} {tensor}: {report}");
    }
}

#[test]
fn a_wrong_diagonal() {
    let whole = ["diagonal_before_the_first_key", "diagonal_inside", "diagonal_behind_which_no_key_is_left"];
    let pieces = [
        "pieces_of_causal_rows",
        "pieces_of_causal_columns",
        "pieces_of_causal_columns_inside_blocks",
        "pieces_of_causal_columns_that_some_rows_do_not_see",
        "pieces_of_causal_rows_and_columns",
    ];
    whole.into_iter().chain(pieces).for_each(|case| assert_all_are_wrong(Fault::IgnoresTheDiagonal, case));
    for fault in [Fault::DiagonalOneTooFar, Fault::DiagonalOneTooNear] {
        [whole[1], pieces[2], pieces[4]].into_iter().for_each(|case| assert_all_are_wrong(fault, case));
    }
    // Diagonals beyond either end of the keys.
    let (every, none) = ("diagonal_that_shows_every_key", "diagonal_that_shows_no_key");
    assert_detected(Fault::IgnoresTheDiagonal, every, TensorName::Dq, |_| true);
    assert_detected(Fault::IgnoresTheDiagonal, none, TensorName::Out, SPECIAL);
}

#[test]
fn a_window_that_is_off_by_one() {
    for name in ["window_left", "window_causal", "packed_window", "pieces_of_window_columns"] {
        assert_all_are_wrong(Fault::LeftOneTooFar, name);
        assert_all_are_wrong(Fault::LeftOneTooNear, name);
    }
    for name in ["window_right", "packed_window", "pieces_of_window_rows", "window_before_the_first_key"] {
        assert_all_are_wrong(Fault::RightOneTooFar, name);
        assert_all_are_wrong(Fault::RightOneTooNear, name);
    }
}

#[test]
fn a_row_of_the_neighbour() {
    let beside = |finding: &Finding| matches!(finding, Finding::BesideNans { finding } if SPECIAL(finding));
    for name in ["packed_equal_lengths", "packed_unequal_lengths", "packed_keys_left_over", "packed_window"] {
        assert_detected(Fault::ReadsTheNextSequence, name, TensorName::Out, beside);
        let report = report(Fault::ReadsTheNextSequence, name);
        let all_beside = report.failures.iter().all(|failure| beside(&failure.finding));
        assert!(all_beside, "it is right but for that: {report}");
    }
}

#[test]
fn what_another_sequence_drops() {
    for name in ["packed_equal_lengths", "packed_shard_drops_as_its_place_does", "packed_one_sequence"] {
        assert_detected(Fault::DropsAsTheNextSequence, name, TensorName::Probs, SIGN_BITS);
        assert_detected(Fault::DropsAsTheNextSequence, name, TensorName::Dv, |_| true);
    }
}

#[test]
fn the_diagonal_of_all_sequences_together() {
    for name in ["packed_causal", "packed_window_causal"] {
        assert_detected(Fault::DiagonalOfTheWhole, name, TensorName::Lse, |_| true);
    }
}

#[test]
fn rows_behind_the_last_sequence_that_were_not_written() {
    for name in ["packed_rows_left_over", "packed_queries_left_over", "packed_no_sequence"] {
        assert_detected(Fault::ForgetsWhatIsLeftOver, name, TensorName::Out, UNWRITTEN);
    }
}

#[test]
fn rows_that_see_no_key() {
    let blind = "causal_rows_that_see_no_key";
    assert_detected(Fault::NanInBlindRows, blind, TensorName::Out, SPECIAL);
    assert_detected(Fault::GarbageInBlindRows, blind, TensorName::Out, SPECIAL);
}

#[test]
fn an_infinity_where_a_nan_belongs() {
    assert_detected(Fault::InfinityForNan, "nan_in_one_query", TensorName::Out, SPECIAL);
}

#[test]
fn results_that_change_from_run_to_run() {
    let changes = |finding: &Finding| *finding == Finding::NotReproducible;
    assert_detected(Fault::NotReproducible, "p_0_1", TensorName::Out, changes);
}

#[test]
fn wrong_gradients() {
    assert_detected(Fault::GradientsWithoutScale, "p_0_1", TensorName::Dk, ERROR);
    assert_detected(Fault::GradientsWithoutDropout, "p_0_1", TensorName::Dv, ERROR);
    assert_detected(Fault::DvOfHalfTheGroup, "one_key_head_for_2", TensorName::Dv, ERROR);
    assert_detected(Fault::ForgetsTheLastElement, "p_0_1", TensorName::Dk, ERROR);
}

#[test]
fn a_wrong_gradient_through_lse() {
    let dropout = "gradient_through_lse_with_dropout";
    for name in [dropout, "gradient_through_lse_of_head_groups", "gradient_through_lse_in_pieces"] {
        assert_detected(Fault::IgnoresDlse, name, TensorName::Dq, ERROR);
        assert_detected(Fault::IgnoresDlse, name, TensorName::Dk, ERROR);
        assert_detected(Fault::DlseTimesKeepScale, name, TensorName::Dq, ERROR);
        assert_detected(Fault::DlseTimesKeepScale, name, TensorName::Dk, ERROR);
    }
    let blind = "gradient_through_lse_of_rows_that_see_no_key";
    assert_detected(Fault::NanOfBlindDlse, blind, TensorName::Dq, SPECIAL);
}

#[test]
fn a_slope_of_softcap_that_is_left_out() {
    for name in ["softcap", "softcap_far_below_the_scores"] {
        assert_detected(Fault::SlopeLeftOut, name, TensorName::Dq, ERROR);
        assert_detected(Fault::SlopeLeftOut, name, TensorName::Dk, ERROR);
    }
}

#[test]
fn what_is_added_to_scores_in_the_wrong_place() {
    assert_all_are_wrong(Fault::SoftcapAfterTheBias, "softcap_and_bias");
    assert_all_are_wrong(Fault::BiasOfTheNextHead, "bias");
    assert_all_are_wrong(Fault::AlibiOneTooFar, "alibi");
    assert_all_are_wrong(Fault::InvertsTheMask, "mask_of_padding");
    assert_all_are_wrong(Fault::InvertsTheMask, "mask");
}

#[test]
fn a_sink_that_is_not_in_lse() {
    for name in ["sinks", "sinks_of_rows_that_see_no_key", "mask_and_sinks"] {
        assert_detected(Fault::SinkNotInLse, name, TensorName::Lse, |_| true);
    }
}

#[test]
fn the_head_dim_of_v_for_that_of_q() {
    assert_all_are_wrong(Fault::ScaleOfTheHeadDimOfV, "head_dim_v");
}

#[test]
fn wrong_gradients_of_what_scores_are_made_of() {
    for name in ["bias", "bias_and_mask"] {
        assert_detected(Fault::DbiasOfOneBatch, name, TensorName::Dbias, ERROR);
    }
    assert_detected(Fault::DsinksOfTheNextHead, "sinks", TensorName::Dsinks, ERROR);
}

#[test]
fn a_call_that_fails() {
    let report = report(Fault::Fails, "p_0_1");
    let message = report.failures[0].to_string();
    assert_eq!(message, "p_0_1 f32: out of luck");
}

#[test]
fn failures_say_what_where_and_by_how_much() {
    let report = report(Fault::NoKeepScale, "p_0_5");
    let message = report.to_string();
    for part in
        ["3 ran, 0 skipped, 6 failures", "p_0_5 f16 out: error 5.0", "exceeds 4.00e-4", "worst at [0, "]
    {
        assert!(message.contains(part), "{part:?} in {message}");
    }
}

#[test]
fn what_is_not_supported_is_skipped_with_its_reason() {
    let report = report(Fault::TakesNoF32, "p_0_1");
    assert_eq!((report.ran, report.skipped.len(), report.failures.len()), (2, 1, 0), "{report}");
    assert!(report.to_string().contains("skipped p_0_1 f32: no f32 here"), "{report}");
}

#[test]
#[should_panic(expected = "wrong, Some([0, 0, 0, ")]
fn a_backward_without_dropout_is_detected_by_its_dv() {
    check_backward_drops::<f32, _>(&Broken::by(Fault::GradientsWithoutDropout));
}

#[test]
fn drops_of_what_is_not_supported_are_not_checked_and_the_rest_is() {
    assert_eq!(check_backward_drops::<f32, _>(&Broken::by(Fault::TakesCausalAlone)), 1);
}
