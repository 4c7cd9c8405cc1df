//! What scores are made of, by the formulas, and what is refused.

use signflash_core::suite::{Case, Cuts, Extent, Layout, Reference, run_case};
use signflash_core::{BiasRef, Dtype, Inputs, Problem, ScoreInputs, Shape, Slopes, TensorRef, oracle};

const ALL: [Extent; 3] = [Extent::Each; 3];
const SHAPE: Shape = Shape::new(1, 1, 3).heads(1, 1).head_dim(1);

/// out and lse of one query of 1 and three keys, whose values are 1, 10 and 100.
fn of(problem: &Problem, k: [f32; 3], scores: ScoreInputs<'_>) -> [f64; 2] {
    let shape = *problem.shape();
    let (q, v) = ([1.0f32], [1.0f32, 10.0, 100.0]);
    let [k, v] = [TensorRef::bshd(&k, shape.k()), TensorRef::bshd(&v, shape.v())];
    let inputs = Inputs::new(TensorRef::bshd(&q, shape.q()), k, v).scores(scores);
    let forward = oracle::forward(problem, &inputs).unwrap();
    [forward.out[0], forward.lse[0]]
}

fn assert_weights(got: [f64; 2], scores: [f64; 3], sink: f64) {
    let weights = scores.map(f64::exp);
    let sum = weights.iter().sum::<f64>() + sink.exp();
    let out = (weights[0] + 10.0 * weights[1] + 100.0 * weights[2]) / sum;
    assert!(
        (got[0] - out).abs() < 1e-6 && (got[1] - sum.ln()).abs() < 1e-6,
        "{got:?}, not {out} {}",
        sum.ln()
    );
}

#[test]
fn scores_are_scaled_capped_and_added_to_in_this_order() {
    let none = f64::NEG_INFINITY;
    let capped = Problem::builder(SHAPE).softmax_scale(2.0).softcap(3.0).bias(Dtype::F32, [1, 1, 1, 3]);
    let problem = capped.alibi(Slopes::PerHead).diagonal(1).build().unwrap();
    let bias = BiasRef::F32(TensorRef::bshd(&[0.5, f32::NEG_INFINITY, -0.25], [1, 1, 1, 3]));
    let slopes = TensorRef::bshd(&[0.75f32], [1, 1, 1, 1]);
    let scores = ScoreInputs::default().bias(bias).alibi_slopes(slopes);
    let cap = |x: f64| 3.0 * (2.0 * x / 3.0).tanh();
    assert_weights(
        of(&problem, [1.0, 2.0, -4.0], scores),
        [cap(1.0) + 0.5 - 0.75, none, cap(-4.0) - 0.25 - 0.75],
        none,
    );

    let problem = Problem::builder(SHAPE).mask([1, 1, 1, 3]);
    let problem = problem.sinks(true).build().unwrap();
    let mask = |mask: [u8; 3]| {
        let stored = mask;
        let scores = ScoreInputs::default().mask(TensorRef::bshd(&stored, [1, 1, 1, 3])).sinks(&[0.5f32][..]);
        of(&problem, [1.0, 2.0, f32::NAN], scores)
    };
    assert_weights(mask([1, 7, 0]), [1.0, 2.0, none], 0.5);
    assert_eq!(mask([0; 3]), [0.0, 0.5]);
}

#[test]
fn the_reference_passes_cases_of_all_that_scores_are_made_of() {
    let case = || Case::new(9, 12).batch(2).heads(4, 2).head_dim(6).dropout(0.3).dlse();
    let heads = [Extent::One, Extent::Each, Extent::One];
    let cases = [
        case().head_dim_v(3).layout(Layout::Sbhd),
        case().softcap(0.9).alibi(Slopes::PerSequence).window(5, 2),
        case().bias(Dtype::Bf16, ALL).mask(ALL).layout(Layout::PaddedRows),
        case().bias(Dtype::F32, heads).sinks().causal_from(-3),
        case().mask([Extent::Each, Extent::One, Extent::One]).sinks().head_dim_v(8),
    ];
    let cuts = Cuts { batches: vec![1], heads: vec![2], rows: vec![4], columns: vec![5] };
    for case in cases {
        for case in [case.clone().cut(cuts.clone()), case] {
            let report = run_case("scores", &case, &Reference);
            assert!(report.failures.is_empty(), "{case:?}: {report}");
        }
    }
    let packed = Case::new(2, 1).heads(4, 2).head_dim(6).packed(&[3, 0, 5], &[4, 2, 7]).dropout(0.3);
    let packed = packed.softcap(0.9).alibi(Slopes::PerSequence).sinks().mask(ALL);
    for case in [packed.clone().bias(Dtype::F16, ALL), packed.bias(Dtype::F32, heads)] {
        let report = run_case("packed scores", &case, &Reference);
        assert!(report.failures.is_empty(), "{report}");
    }
}

#[test]
fn what_is_not_declared_or_not_given_is_refused_by_name() {
    let plain = Problem::builder(SHAPE).build().unwrap();
    let with_sinks = Problem::builder(SHAPE).sinks(true).build().unwrap();
    let x = TensorRef::bshd(&[0.0f32; 3], SHAPE.k());
    let inputs = Inputs::new(TensorRef::bshd(&[0.0f32], SHAPE.q()), x, x);
    let sinks = ScoreInputs::default().sinks(&[0.0f32][..]);
    let said = |problem, inputs: Inputs<'_, f32>| inputs.check(problem).unwrap_err().to_string();
    assert!(said(&plain, inputs.scores(sinks)).starts_with("sinks was given, and the problem has none"));
    assert!(said(&with_sinks, inputs).starts_with("the problem has sinks, and the inputs have none"));
    let two = ScoreInputs::default().sinks(&[0.0f32; 2][..]);
    assert_eq!(said(&with_sinks, inputs.scores(two)), "sinks has shape [2], expected [1] (num_heads), dense");
    let biased = Problem::builder(SHAPE).bias(Dtype::F16, [1, 1, 1, 3]).build().unwrap();
    let bias = BiasRef::F32(TensorRef::bshd(&[0.0; 3], [1, 1, 1, 3]));
    let refused = said(&biased, inputs.scores(ScoreInputs::default().bias(bias)));
    assert!(refused.starts_with("bias must be f16 as the problem says, got f32"), "{refused}");
    for got in [[2, 1, 1, 3], [1, 2, 1, 3], [1, 1, 2, 3], [1, 1, 1, 2]] {
        let refused = Problem::builder(SHAPE).mask(got).build().unwrap_err().to_string();
        assert!(refused.starts_with(&format!("mask has shape {got:?}, expected its dimension")), "{refused}");
    }
    for cap in [0.0, -1.0, f64::INFINITY, f64::NAN, 1e-60] {
        assert!(Problem::builder(SHAPE).softcap(cap).build().is_err(), "{cap}");
    }
    assert!(Problem::builder(SHAPE.head_dim_v(257)).build().is_err());
}
