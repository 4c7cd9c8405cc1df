//! The suite fails for implementations that are broken in one way each.

use signflash_core::suite::{Finding, Implementation, Reference, Report, RunError, case, run_case};
use signflash_core::{
    Dropout, Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, Shard, TensorMut, TensorName,
    bf16,
};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is wrong with [`Broken`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    OneSignBit,
    /// Reads the sign bit as `x >= 0`: a dropped -0.0 counts as kept.
    SignByComparison,
    MagnitudeOfOneProbability,
    MinusZeroWhereInvisible,
    TinyWhereInvisible,
    NoKeepScale,
    KeepScaleOfTheOtherRule,
    OnePercent,
    SwapsHeads,
    RoundsLikeBf16,
    LseOfBase2,
    ForgetsTheLastElement,
    ForgetsOneProbability,
    WritesBesideARow,
    ReadsBesideARow,
    IgnoresTheShard,
    IgnoresTheHighWordOfTheOffset,
    SeesTheFuture,
    /// Lets the last query face the last key, whatever the problem says.
    IgnoresTheDiagonal,
    DiagonalOneTooFar,
    DiagonalOneTooNear,
    NanInBlindRows,
    GarbageInBlindRows,
    InfinityForNan,
    NotReproducible,
    GradientsWithoutScale,
    GradientsWithoutDropout,
    DvOfHalfTheGroup,
    IgnoresDlse,
    /// As if delta, of which it is part, were already divided by the keep scale.
    DlseTimesKeepScale,
    NanOfBlindDlse,
    Fails,
}

#[derive(Debug)]
struct Broken {
    fault: Fault,
    calls: AtomicUsize,
}

fn report(fault: Fault, name: &str) -> Report {
    let case = case(name).expect("the suite has it");
    run_case(name, &case, &Broken { fault, calls: AtomicUsize::new(0) })
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

impl Broken {
    fn problem(&self, problem: &Problem) -> Problem {
        let mut shard = *problem.shard();
        let mut dropout = *problem.dropout().expect("the faults are tried with dropout");
        let rule = dropout.scale_rule();
        let fault_is = |fault| self.fault == fault;
        if fault_is(Fault::IgnoresTheShard) {
            shard = Shard { num_heads_total: Some(problem.shape().num_heads), ..Shard::default() };
        }
        if fault_is(Fault::IgnoresTheHighWordOfTheOffset) {
            let low = u64::from(dropout.offset() as u32);
            dropout = Dropout::new(dropout.p(), dropout.seed(), low).expect("as valid").with_scale_rule(rule);
        }
        let builder = Problem::builder(*problem.shape());
        let builder = match self.fault {
            Fault::IgnoresTheDiagonal => builder,
            Fault::DiagonalOneTooFar => builder.diagonal(problem.diagonal() + 1),
            Fault::DiagonalOneTooNear => builder.diagonal(problem.diagonal() - 1),
            _ => builder.diagonal(problem.diagonal()),
        };
        builder
            .causal(problem.causal())
            .softmax_scale(problem.softmax_scale())
            .dropout(dropout)
            .shard(shard)
            .build()
            .expect("as valid as it came")
    }
}

/// Every element, with its index.
fn each<T: Element>(tensor: &mut TensorMut<'_, T>, change: impl Fn([usize; 4], T) -> T) {
    let [na, nb, nc, nd] = tensor.shape;
    for a in 0..na {
        for b in 0..nb {
            for c in 0..nc {
                for d in 0..nd {
                    let x = tensor.at_mut([a, b, c, d]);
                    *x = change([a, b, c, d], *x);
                }
            }
        }
    }
}

/// Heads 0 and 1 of all rows.
fn swap_heads<T: Element>(tensor: &mut TensorMut<'_, T>) {
    let [batch, rows, _, dim] = tensor.shape;
    for (b, i) in (0..batch).flat_map(|b| (0..rows).map(move |i| (b, i))) {
        for d in 0..dim {
            let first = *tensor.at_mut([b, i, 0, d]);
            let second = std::mem::replace(tensor.at_mut([b, i, 1, d]), first);
            *tensor.at_mut([b, i, 0, d]) = second;
        }
    }
}

fn scaled<T: Element>(x: T, factor: f64) -> T {
    T::from_f32((x.to_f64() * factor) as f32)
}

impl Implementation for Broken {
    fn name(&self) -> String {
        format!("{:?}", self.fault)
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let last = outputs.out.shape.map(|size| size - 1);
        let before = *outputs.out.at_mut(last);
        let probs_before = outputs.probs.as_mut().map(|probs| *probs.at_mut([0, 1, 3, 2]));
        Reference.forward(&self.problem(problem), inputs, outputs)?;
        let out = &mut outputs.out;
        let blind = |i: usize| problem.visibility().keys_of(i as i64).is_empty();
        match self.fault {
            Fault::NoKeepScale => each(out, |_, x| scaled(x, 1.0 / problem.keep_scale())),
            Fault::KeepScaleOfTheOtherRule => {
                let nominal = 1.0 / (1.0 - f64::from(problem.dropout().expect("it has dropout").p()));
                each(out, |_, x| scaled(x, nominal / problem.keep_scale()));
            }
            Fault::OnePercent => each(out, |_, x| scaled(x, 1.01)),
            Fault::SwapsHeads => swap_heads(out),
            Fault::RoundsLikeBf16 => each(out, |_, x| T::from_f32(bf16::from_f32(x.to_f32()).to_f32())),
            Fault::LseOfBase2 => outputs.lse.iter_mut().for_each(|x| *x *= std::f32::consts::LOG2_E),
            Fault::ForgetsTheLastElement => *out.at_mut(last) = before,
            Fault::WritesBesideARow => out.data[out.shape[3]] = T::default(),
            Fault::ReadsBesideARow => {
                let beside = inputs.v.data[inputs.v.shape[3]].to_f32() * 0.0; // "padding, it cannot matter"
                each(out, |_, x| T::from_f32(x.to_f32() + beside));
            }
            Fault::NanInBlindRows => {
                each(out, |[_, i, ..], x| if blind(i) { T::from_f32(f32::NAN) } else { x });
            }
            Fault::GarbageInBlindRows => {
                each(out, |[_, i, ..], x| if blind(i) { T::from_f32(1e-6) } else { x });
            }
            Fault::InfinityForNan => {
                each(out, |_, x| if x.to_f32().is_nan() { T::from_f32(f32::INFINITY) } else { x });
            }
            Fault::NotReproducible if calls % 2 == 1 => {
                *out.at_mut(last) = scaled(*out.at_mut(last), 1.01);
            }
            Fault::Fails => return Err("out of luck".into()),
            _ => {}
        }
        let Some(probs) = &mut outputs.probs else { return Ok(()) };
        let visible = |i: usize, j: usize| problem.visibility().keys_of(i as i64).contains(j as i64);
        match self.fault {
            Fault::OneSignBit => {
                each(probs, |index, x| if index == [0, 1, 3, 2] { x.encode(!x.is_dropped()) } else { x })
            }
            Fault::SignByComparison => each(probs, |_, x| x.encode(x.to_f32() < 0.0)),
            Fault::MagnitudeOfOneProbability => {
                each(probs, |index, x| if index == [0, 1, 3, 2] { scaled(x, 1.03) } else { x })
            }
            Fault::MinusZeroWhereInvisible => {
                each(probs, |[_, _, i, j], x| if visible(i, j) { x } else { x.encode(true) });
            }
            Fault::TinyWhereInvisible => {
                each(probs, |[_, _, i, j], x| if visible(i, j) { x } else { T::from_f32(1e-7) });
            }
            Fault::ForgetsOneProbability => {
                *probs.at_mut([0, 1, 3, 2]) = probs_before.expect("there are probs");
            }
            _ => {}
        }
        Ok(())
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        let problem = self.problem(problem);
        let problem = match self.fault {
            Fault::GradientsWithoutDropout => {
                Problem::builder(*problem.shape()).causal(problem.causal()).build()?
            }
            Fault::SeesTheFuture => {
                Problem::builder(*problem.shape()).dropout(*problem.dropout().unwrap()).build()?
            }
            _ => problem,
        };
        let scaled_dlse: Option<Vec<f32>> = inputs.dlse.map(|dlse| {
            let keep_scale = problem.keep_scale() as f32;
            dlse.iter().map(|x| x * keep_scale).collect()
        });
        let inputs = &match self.fault {
            Fault::IgnoresDlse => GradInputs::new(inputs.inputs, inputs.out, inputs.lse, inputs.dout),
            Fault::DlseTimesKeepScale => inputs.dlse(scaled_dlse.as_deref()),
            _ => *inputs,
        };
        Reference.backward(&problem, inputs, gradients)?;
        match self.fault {
            Fault::GradientsWithoutScale => {
                each(&mut gradients.dk, |_, x| scaled(x, 1.0 / problem.softmax_scale()))
            }
            Fault::OnePercent => {
                for gradient in [&mut gradients.dq, &mut gradients.dk, &mut gradients.dv] {
                    each(gradient, |_, x| scaled(x, 1.01));
                }
            }
            Fault::SwapsHeads => {
                [&mut gradients.dq, &mut gradients.dk, &mut gradients.dv].into_iter().for_each(swap_heads);
            }
            Fault::DvOfHalfTheGroup => each(&mut gradients.dv, |_, x| scaled(x, 0.5)),
            Fault::NanOfBlindDlse => {
                let dlse = inputs.dlse.expect("the case has one");
                let shape = *problem.shape();
                each(&mut gradients.dq, |[b, i, h, _], x| {
                    let row = (b * shape.num_heads + h) * shape.seqlen_q + i;
                    T::from_f32(x.to_f32() + 0.0 * dlse[row]) // "its p is 0, it cannot matter"
                });
            }
            Fault::ForgetsTheLastElement => {
                let last = gradients.dk.shape.map(|size| size - 1);
                *gradients.dk.at_mut(last) = T::from_f32(0.0);
            }
            _ => {}
        }
        Ok(())
    }
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
    let tensors = [TensorName::Out, TensorName::Lse, TensorName::Probs, TensorName::Dq, TensorName::Dk];
    let detected = |fault, case: &str| {
        let report = report(fault, case);
        for tensor in tensors {
            let found = |dtype| report.failures.iter().any(|x| x.tensor == Some(tensor) && x.dtype == dtype);
            let all = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().all(found);
            assert!(all, "{fault:?} in {case} {tensor}: {report}");
        }
    };
    whole.into_iter().chain(pieces).for_each(|case| detected(Fault::IgnoresTheDiagonal, case));
    for fault in [Fault::DiagonalOneTooFar, Fault::DiagonalOneTooNear] {
        [whole[1], pieces[2], pieces[4]].into_iter().for_each(|case| detected(fault, case));
    }
    // Diagonals beyond either end of the keys.
    let (every, none) = ("diagonal_that_shows_every_key", "diagonal_that_shows_no_key");
    assert_detected(Fault::IgnoresTheDiagonal, every, TensorName::Dq, |_| true);
    assert_detected(Fault::IgnoresTheDiagonal, none, TensorName::Out, SPECIAL);
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
    struct Half;
    impl Implementation for Half {
        fn name(&self) -> String {
            "half".to_string()
        }
        fn supports(&self, dtype: signflash_core::Dtype, _: &Problem) -> Result<(), String> {
            if dtype == signflash_core::Dtype::F32 { Err("no f32 here".to_string()) } else { Ok(()) }
        }
        fn forward<T: Element>(
            &self,
            problem: &Problem,
            inputs: &Inputs<'_, T>,
            outputs: &mut Outputs<'_, T>,
        ) -> Result<(), RunError> {
            Reference.forward(problem, inputs, outputs)
        }
        fn backward<T: Element>(
            &self,
            problem: &Problem,
            inputs: &GradInputs<'_, T>,
            gradients: &mut Gradients<'_, T>,
        ) -> Result<(), RunError> {
            Reference.backward(problem, inputs, gradients)
        }
    }
    let report = run_case("p_0_1", &case("p_0_1").expect("the suite has it"), &Half);
    assert_eq!((report.ran, report.skipped.len(), report.failures.len()), (2, 1, 0), "{report}");
    assert!(report.to_string().contains("skipped p_0_1 f32: no f32 here"), "{report}");
}

#[test]
#[should_panic(expected = "wrong, Some([0, 0, 0, ")]
fn a_backward_without_dropout_is_detected_by_its_dv() {
    let broken = Broken { fault: Fault::GradientsWithoutDropout, calls: AtomicUsize::new(0) };
    signflash_core::suite::check_backward_drops::<f32, _>(&broken);
}

#[test]
fn drops_of_what_is_not_supported_are_not_checked_and_the_rest_is() {
    struct Causal;
    impl Implementation for Causal {
        fn name(&self) -> String {
            "causal".to_string()
        }
        fn supports(&self, _: signflash_core::Dtype, problem: &Problem) -> Result<(), String> {
            if problem.causal() { Ok(()) } else { Err("causal only".to_string()) }
        }
        fn forward<T: Element>(
            &self,
            problem: &Problem,
            inputs: &Inputs<'_, T>,
            outputs: &mut Outputs<'_, T>,
        ) -> Result<(), RunError> {
            Reference.forward(problem, inputs, outputs)
        }
        fn backward<T: Element>(
            &self,
            problem: &Problem,
            inputs: &GradInputs<'_, T>,
            gradients: &mut Gradients<'_, T>,
        ) -> Result<(), RunError> {
            Reference.backward(problem, inputs, gradients)
        }
    }
    assert_eq!(signflash_core::suite::check_backward_drops::<f32, _>(&Causal), 1);
}
