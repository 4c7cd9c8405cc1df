//! The oracle against what can be known without it: finite differences, closed forms, and its own rules for infinities.

use signflash_core::suite::{Case, Extent, Values};
use signflash_core::{
    BiasRef, Dtype, Inputs, Problem, ScoreInputs, Shape, SignBit, Slopes, TensorName, TensorRef, oracle,
};

/// f32 operands of which the oracle's results are wanted.
#[derive(Clone)]
struct Operands {
    problem: Problem,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
    dlse: Option<Vec<f32>>,
    slopes: Vec<f32>,
    bias: Vec<f32>,
    mask: Vec<u8>,
    sinks: Vec<f32>,
}

impl Operands {
    fn of(case: &Case) -> Self {
        let Values { q, k, v, dout, dlse, alibi_slopes, bias, mask, sinks } = case.values();
        let round = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        Self {
            problem: case.problem(),
            q: round(q),
            k: round(k),
            v: round(v),
            dout: round(dout),
            dlse: dlse.map(round),
            slopes: round(alibi_slopes),
            bias: round(bias),
            mask: mask.into_iter().map(|x| x as u8).collect(),
            sinks: round(sinks),
        }
    }

    fn shape(&self) -> &Shape {
        self.problem.shape()
    }

    fn inputs(&self) -> Inputs<'_, f32> {
        let (shape, declared) = (self.shape(), |tensor| self.problem.shape_of(tensor));
        let slopes = TensorRef::bshd(&self.slopes, declared(TensorName::AlibiSlopes));
        let bias = BiasRef::F32(TensorRef::bshd(&self.bias, declared(TensorName::Bias)));
        let mask = TensorRef::bshd(&self.mask, declared(TensorName::Mask));
        let scores = ScoreInputs::default()
            .alibi_slopes(self.problem.alibi().map(|_| slopes))
            .bias(self.problem.bias().map(|_| bias))
            .mask(self.problem.mask().map(|_| mask))
            .sinks(self.problem.sinks().then_some(&self.sinks[..]));
        let [q, k] = [TensorRef::bshd(&self.q, shape.q()), TensorRef::bshd(&self.k, shape.k())];
        Inputs::new(q, k, TensorRef::bshd(&self.v, shape.v())).scores(scores)
    }

    fn forward(&self) -> oracle::Forward {
        oracle::forward(&self.problem, &self.inputs()).unwrap()
    }

    fn backward(&self) -> oracle::Gradients {
        let dout = TensorRef::bshd(&self.dout, self.shape().out());
        let dlse = self.dlse.as_deref();
        oracle::backward(&self.problem, &self.inputs(), &dout, dlse, &self.forward()).unwrap()
    }

    /// `<out, dout> + <lse, dlse>`, of which the backward gives the gradients. lse of a row without keys is a constant.
    fn loss(&self) -> f64 {
        let oracle::Forward { out, lse } = self.forward();
        let dot = |x: &[f64], dx: &[f32]| -> f64 {
            x.iter().zip(dx).filter(|(x, _)| x.is_finite()).map(|(x, dx)| x * f64::from(*dx)).sum()
        };
        dot(&out, &self.dout) + self.dlse.as_ref().map_or(0.0, |dlse| dot(&lse, dlse))
    }
}

/// Central differences of every element of one operand. The seed is the operand's own, so the same is dropped.
fn differences(operands: &Operands, of: fn(&mut Operands) -> &mut Vec<f32>) -> Vec<f64> {
    let len = of(&mut operands.clone()).len();
    (0..len)
        .map(|n| {
            let step = |sign: f32| {
                let mut moved = operands.clone();
                let x = &mut of(&mut moved)[n];
                *x += sign * 2f32.powi(-10);
                let moved_to = f64::from(*x); // rounded, so not exactly by the step
                (moved.loss(), moved_to)
            };
            let ((above, x_above), (below, x_below)) = (step(1.0), step(-1.0));
            (above - below) / (x_above - x_below)
        })
        .collect()
}

/// An operand, to be moved.
type Of = fn(&mut Operands) -> &mut Vec<f32>;

fn assert_gradients_are_the_differences(case: Case) {
    let operands = Operands::of(&case);
    let gradients = operands.backward();
    for (name, gradient) in gradients.tensors() {
        let of: Of = match name {
            TensorName::Dq => |x| &mut x.q,
            TensorName::Dk => |x| &mut x.k,
            TensorName::Dv => |x| &mut x.v,
            TensorName::Dbias => |x| &mut x.bias,
            _ => |x| &mut x.sinks,
        };
        assert_eq!(gradient.len(), of(&mut operands.clone()).len(), "{name}");
        for (n, (got, expected)) in gradient.iter().zip(differences(&operands, of)).enumerate() {
            let bound = 2e-5 * (1.0 + expected.abs());
            assert!((got - expected).abs() < bound, "{name}[{n}] is {got}, differences say {expected}");
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    assert_gradients_are_the_differences(Case::new(5, 7).head_dim(4));
}

#[test]
fn gradients_are_finite_differences_with_the_same_entries_dropped() {
    assert_gradients_are_the_differences(Case::new(5, 7).head_dim(4).dropout(0.4));
    assert_gradients_are_the_differences(Case::new(5, 7).head_dim(4).dropout(0.4).nominal());
}

#[test]
fn gradients_are_finite_differences_of_causal_head_groups() {
    let groups = Case::new(4, 6).batch(2).heads(4, 2).head_dim(3).causal();
    assert_gradients_are_the_differences(groups.clone().dropout(0.3));
    assert_gradients_are_the_differences(groups.softmax_scale(-0.7));
    assert_gradients_are_the_differences(Case::new(7, 4).head_dim(3).causal().dropout(0.3));
}

#[test]
fn gradients_are_finite_differences_of_windows_and_packed_sequences() {
    assert_gradients_are_the_differences(Case::new(5, 7).head_dim(4).window(2, 1).dropout(0.3).dlse());
    assert_gradients_are_the_differences(Case::new(7, 5).head_dim(3).window(1, 0).diagonal(-1));
    let packed = Case::new(1, 2).heads(4, 2).head_dim(3).packed(&[3, 0, 4], &[2, 3, 4]);
    assert_gradients_are_the_differences(packed.clone().dropout(0.3).dlse());
    assert_gradients_are_the_differences(packed.window(2, 0));
}

#[test]
fn gradients_are_finite_differences_whatever_scores_are_made_of() {
    const ALL: [Extent; 3] = [Extent::Each; 3];
    const HEADS: [Extent; 3] = [Extent::One, Extent::Each, Extent::One];
    let case = || Case::new(4, 6).batch(2).heads(4, 2).head_dim(3).dropout(0.3).dlse();
    let all = [
        case().head_dim_v(5),
        case().softcap(0.7),
        case().alibi(Slopes::PerSequence).causal(),
        case().bias(Dtype::F32, ALL),
        case().bias(Dtype::F32, HEADS).softcap(0.7),
        case().mask(ALL),
        case().mask([Extent::Each, Extent::One, Extent::One]).sinks(),
        case().sinks().causal_from(-2),
    ];
    all.into_iter().for_each(assert_gradients_are_the_differences);
    let packed = Case::new(1, 2).heads(2, 1).head_dim(3).packed(&[3, 0, 2], &[2, 3, 4]).dropout(0.3).dlse();
    let packed = packed.head_dim_v(2).softcap(0.7).alibi(Slopes::PerSequence).sinks().mask(ALL).window(2, 1);
    assert_gradients_are_the_differences(packed.clone().bias(Dtype::F32, ALL));
    assert_gradients_are_the_differences(packed.bias(Dtype::F32, HEADS));
}

#[test]
fn gradients_are_finite_differences_of_a_loss_that_lse_is_part_of() {
    assert_gradients_are_the_differences(Case::new(5, 7).head_dim(4).dlse());
    assert_gradients_are_the_differences(Case::new(5, 7).head_dim(4).dropout(0.4).dlse());
    assert_gradients_are_the_differences(Case::new(5, 7).head_dim(4).dropout(0.4).nominal().dlse());
    let groups = Case::new(4, 6).batch(2).heads(4, 2).head_dim(3).causal().dlse();
    assert_gradients_are_the_differences(groups.clone().dropout(0.3));
    assert_gradients_are_the_differences(groups.softmax_scale(-0.7));
}

/// Seven queries of four keys: the first three see none, and their dlse is NaN.
#[test]
fn gradients_are_finite_differences_where_rows_without_keys_have_a_nan_for_the_gradient_of_their_lse() {
    let case = Case::new(7, 4).head_dim(3).causal().dropout(0.3).dlse();
    let dlse = case.values().dlse.expect("the case has one");
    assert!(dlse.iter().enumerate().all(|(n, x)| x.is_nan() == (n % 7 < 3)), "{dlse:?}");
    assert_gradients_are_the_differences(case);
}

/// d lse / d s is p, dropped or not: with dout = 0 dropout has no say.
#[test]
fn the_gradient_through_lse_alone_knows_no_dropout() {
    let alone = |case: Case| Operands { dout: vec![0.0; 5 * 2 * 4], ..Operands::of(&case) }.backward();
    let case = || Case::new(5, 7).head_dim(4).dlse();
    let (with, without) = (alone(case().dropout(0.4)), alone(case()));
    assert_eq!(with, without);
    assert!(with.dq.iter().any(|&x| x != 0.0) && with.dv.iter().all(|&x| x == 0.0));
}

#[test]
fn equal_scores_give_the_mean_of_the_kept_values() {
    let operands = Operands::of(&Case::new(3, 64).softmax_scale(0.0).dropout(0.5));
    let (shape, rule) = (*operands.shape(), operands.problem.keep_rule().unwrap());
    let forward = operands.forward();
    assert!(forward.lse.iter().all(|lse| (lse - 64f64.ln()).abs() < 1e-14));
    for h in 0..2 {
        let kept = (0..64).filter(|&j| rule.keep(0, h, 2, j));
        let sum: f64 = kept.map(|j| f64::from(operands.inputs().v.at([0, j, h, 5]))).sum();
        let out = forward.out[(2 * shape.num_heads + h) * shape.head_dim + 5];
        assert!((out - 2.0 * sum / 64.0).abs() < 1e-14); // keep_scale is 2
    }
}

#[test]
fn probs_are_normalised_and_say_what_was_dropped() {
    let operands = Operands::of(&Case::new(20, 30).causal().dropout(0.3));
    let probs = oracle::probs(&operands.problem, &operands.inputs(), &operands.forward().lse).unwrap();
    let rule = operands.problem.keep_rule().unwrap();
    for (row, probs) in probs.chunks(30).enumerate() {
        let (h, i) = (row / 20, row % 20);
        let sum: f64 = probs.iter().map(|p| p.probability()).sum();
        assert!((sum - 1.0).abs() < 1e-14, "row {row} sums to {sum}");
        for (j, p) in probs.iter().enumerate() {
            let visible = operands.problem.visibility().keys_of(i as i64).contains(j as i64);
            assert_eq!(p.is_dropped(), visible && !rule.keep(0, h, i, j), "row {row}, column {j}");
            assert!(visible || p.to_bits() == 0, "row {row}, column {j} is not visible, but {p}");
        }
    }
}

#[test]
fn scores_far_apart_overflow_nothing() {
    let mut operands = Operands::of(&Case::new(2, 3).heads(1, 1).head_dim(1).softmax_scale(1.0));
    operands.q = vec![1e4, -1e4];
    operands.k = vec![3.0, 0.0, -3.0];
    operands.v = vec![1.0, 10.0, 100.0];
    let forward = operands.forward();
    assert_eq!((&forward.out[..], &forward.lse[..]), (&[1.0, 100.0][..], &[3e4, 3e4][..]));
}

#[test]
fn a_row_without_weights_is_zero_and_its_lse_minus_infinity() {
    // Seven queries of three keys: the first four see none.
    let operands = Operands::of(&Case::new(7, 3).head_dim(4).causal().dropout(0.2));
    let (forward, gradients) = (operands.forward(), operands.backward());
    let row = 2 * 4; // heads times head_dim
    assert!(
        forward.out[..4 * row].iter().all(|&x| x == 0.0) && forward.out[4 * row..].iter().any(|&x| x != 0.0)
    );
    assert!(gradients.dq[..4 * row].iter().all(|&x| x == 0.0));
    for (n, lse) in forward.lse.iter().enumerate() {
        assert_eq!(*lse == f64::NEG_INFINITY, n % 7 < 4, "row {n} has lse {lse}");
    }
    let without_keys = Operands::of(&Case::new(2, 0).dropout(0.2));
    assert!(without_keys.forward().out.iter().all(|&x| x == 0.0));
    assert!(without_keys.backward().dq.iter().all(|&x| x == 0.0));
}

#[test]
fn a_score_of_minus_infinity_is_a_key_that_is_not_there() {
    let mut operands = Operands::of(&Case::new(2, 3).heads(1, 1).head_dim(1).softmax_scale(1.0));
    operands.q = vec![1.0, 2.0];
    operands.k = vec![0.5, f32::NEG_INFINITY, 0.25];
    operands.v = vec![1.0, f32::NAN, 3.0];
    let mut without = Operands::of(&Case::new(2, 2).heads(1, 1).head_dim(1).softmax_scale(1.0));
    (without.q, without.k, without.v) = (operands.q.clone(), vec![0.5, 0.25], vec![1.0, 3.0]);
    without.dout = operands.dout.clone();
    assert_eq!(operands.forward(), without.forward());
    let (with, without) = (operands.backward(), without.backward());
    assert_eq!(with.dq, without.dq);
    assert_eq!((with.dk[1], with.dv[1]), (0.0, 0.0));
    assert_eq!((with.dk[2], with.dv[2]), (without.dk[1], without.dv[1]));
}

#[test]
fn a_nan_stays_in_the_rows_that_keep_it() {
    let mut operands = Operands::of(&Case::new(16, 16).heads(1, 1).head_dim(1).dropout(0.5));
    operands.v[3] = f32::NAN;
    let rule = operands.problem.keep_rule().unwrap();
    let (forward, gradients) = (operands.forward(), operands.backward());
    for i in 0..16 {
        let keeps = rule.keep(0, 0, i, 3);
        assert_eq!(forward.out[i].is_nan(), keeps, "out[{i}]");
        assert_eq!(gradients.dq[i].is_nan(), keeps, "dq[{i}]");
    }
    assert!(forward.lse.iter().all(|x| x.is_finite()) && gradients.dv.iter().all(|x| x.is_finite()));
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let operands = Operands::of(&Case::new(4, 4));
    let wrong = TensorRef::bshd(&operands.dout, [1, 4, 1, 128]);
    let refused = oracle::backward(&operands.problem, &operands.inputs(), &wrong, None, &operands.forward())
        .unwrap_err();
    assert!(refused.to_string().starts_with("dout has shape [1, 4, 1, 128]"), "{refused}");
    let dout = TensorRef::bshd(&operands.dout, operands.shape().out());
    let (inputs, dlse) = (operands.inputs(), Some(&[0.0f32; 7][..]));
    let refused = oracle::backward(&operands.problem, &inputs, &dout, dlse, &operands.forward()).unwrap_err();
    assert!(refused.to_string().starts_with("dlse has shape [7], expected [1, 2, 4]"), "{refused}");
    let inputs = Inputs::new(operands.inputs().q, wrong, operands.inputs().v);
    let refused = oracle::forward(&operands.problem, &inputs).unwrap_err();
    assert!(refused.to_string().starts_with("k has shape"), "{refused}");
}
