//! What becomes of scores, on the GPU's kernels in the interpreter: against the oracle, by cases that are small and take
//! every way through the stage of scores.

mod common;

use common::On;
use signflash_core::suite::{Case, Extent, run_case};
use signflash_core::{Dtype, Slopes};
use signflash_kernels::{Gpu, Interpreted};

fn case(queries: usize, keys: usize) -> Case {
    Case::new(queries, keys).heads(2, 1).head_dim(64).dtypes(&[Dtype::Bf16])
}

/// Runs cases on a GPU's kernels.
fn check(gpu: Gpu, deterministic: bool, cases: &[(&str, Case)]) {
    let on = On::all(Interpreted { gpu, seed: 0, deterministic });
    for (name, case) in cases {
        let report = run_case(name, case, &on);
        assert_eq!((report.ran, report.failures.len()), (1, 0), "{name}: {report}");
    }
}

/// Scores that a cap of 2 bends, and those that one of 30 hardly does; two heads whose slopes are large.
fn each_alone() -> Vec<(&'static str, Case)> {
    vec![
        ("small softcap", case(70, 150).softcap(1.5).dropout(0.2)),
        ("large softcap", case(70, 150).softcap(30.0).causal()),
        ("alibi", case(150, 150).alibi(Slopes::PerHead)),
        ("alibi of each sequence", case(40, 200).batch(2).alibi(Slopes::PerSequence).causal().dropout(0.2)),
        ("sinks", case(70, 40).sinks().causal().dropout(0.2)),
    ]
}

/// Beside what is added, and hidden, by tensors.
fn with_tensors() -> Vec<(&'static str, Case)> {
    let (each, one) = ([Extent::One, Extent::Each, Extent::Each], [Extent::Each, Extent::One, Extent::Each]);
    vec![
        ("softcap and bias", case(40, 70).softcap(1.5).bias(Dtype::Bf16, each).dropout(0.2)),
        ("softcap and mask", case(70, 40).softcap(1.5).mask(one).causal()),
        (
            "all",
            case(40, 70)
                .softcap(4.0)
                .alibi(Slopes::PerHead)
                .bias(Dtype::F32, each)
                .mask(one)
                .sinks()
                .dropout(0.2),
        ),
        ("alibi and bias", case(70, 60).alibi(Slopes::PerHead).bias(Dtype::Bf16, each).softmax_scale(-0.2)),
    ]
}

/// In pairs, with windows, negative scales and packed sequences.
fn together() -> Vec<(&'static str, Case)> {
    vec![
        ("softcap and alibi", case(100, 140).softcap(4.0).alibi(Slopes::PerHead).window(50, 3).dropout(0.2)),
        ("softcap and sinks", case(100, 60).softcap(1.5).sinks().causal()),
        ("alibi and sinks, negative", case(60, 100).alibi(Slopes::PerHead).sinks().softmax_scale(-0.2)),
        (
            "packed",
            case(9, 3)
                .packed(&[30, 0, 65, 20], &[50, 20, 40, 0])
                .softcap(4.0)
                .alibi(Slopes::PerSequence)
                .sinks(),
        ),
    ]
}

#[test]
fn hopper_s_kernels_make_each_kind_of_score() {
    check(Gpu::HOPPER, false, &each_alone());
}

/// Of three steps of keys, that of the diagonal is each in turn the first. Slopes are so large that a step's largest score
/// is far from the next one's.
#[test]
fn hopper_s_forward_begins_at_the_diagonal() {
    let of = |diagonal| case(300, 300).heads(1, 1).alibi(Slopes::PerHead).diagonal(diagonal);
    check(Gpu::HOPPER, false, &[("middle", of(0)), ("before", of(-400).dropout(0.1))]);
}

/// Further steps weigh products as they are: near 0 all of them, near a cap none that come after the first that fails, and at
/// the diagonal, where keys are hidden, none. Biases hide by -inf, also where the scale is negative.
#[test]
fn hopper_s_forward_weighs_products() {
    let each = [Extent::One, Extent::Each, Extent::Each];
    let cases = [
        ("far from the cap", case(70, 400).softcap(30.0).causal()),
        ("close to the cap", case(70, 400).softcap(8.0).dropout(0.2)),
        ("beyond it, negative", case(200, 300).softcap(0.5).softmax_scale(-0.2).causal().dropout(0.2)),
        ("a cap that none comes close to", case(40, 300).softcap(1e30)),
        ("a cap of nothing", case(40, 300).softcap(1e-20).causal()),
        ("slopes and a negative scale", case(70, 400).alibi(Slopes::PerHead).softmax_scale(-0.2).causal()),
        ("a bias and a negative scale", case(40, 300).bias(Dtype::Bf16, each).softmax_scale(-0.2).causal()),
    ];
    check(Gpu::HOPPER, false, &cases);
}

#[test]
fn hopper_s_kernels_make_kinds_of_scores_together() {
    check(Gpu::HOPPER, true, &together());
}

#[test]
fn portable_kernels_make_each_kind_of_score() {
    check(Gpu::AMPERE, false, &each_alone());
}

#[test]
fn portable_kernels_make_kinds_of_scores_together() {
    check(Gpu::SMALL, true, &together());
}

#[test]
fn shared_keys_of_large_heads_make_bent_scores() {
    let large = |case: Case| case.heads(1, 1).head_dim(160);
    let cases = [
        ("softcap", large(case(40, 70)).softcap(1.5).causal().dropout(0.2)),
        ("both", large(case(70, 40)).softcap(4.0).alibi(Slopes::PerHead)),
    ];
    check(Gpu::HOPPER, false, &cases);
}

#[test]
fn hopper_s_kernels_add_tensors_to_each_kind_of_score() {
    check(Gpu::HOPPER, false, &with_tensors());
}

#[test]
fn portable_kernels_add_tensors_to_each_kind_of_score() {
    check(Gpu::SMALL, true, &with_tensors());
}
