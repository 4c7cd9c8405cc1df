//! An implementation's results beside the oracle's, judged as everything is: see [`judge`](crate::judge).

use super::part::ForwardResults;
use super::report::{Entry, Finding};
use super::storage::index_of;
use super::truth::Truth;
use crate::judge::{Bounds, Distance, Expected};
use crate::tensor::dense_row;
use crate::{Dtype, Problem, SignBit, TensorName, oracle};

/// What is wrong with which tensor.
pub(super) type Found = (Option<TensorName>, Finding);

/// Everything that is wrong with out, lse and, if there are any, probs.
pub(super) fn forward(problem: &Problem, dtype: Dtype, truth: &Truth, got: &ForwardResults) -> Vec<Found> {
    let mut found = Vec::new();
    found.extend(finding(truth, problem, TensorName::Out, &got.out));
    found.extend(finding(truth, problem, TensorName::Lse, &got.lse));
    if !got.probs.is_empty() {
        found.extend(probs(problem, dtype, truth, &got.probs).map(|x| (Some(TensorName::Probs), x)));
    }
    found
}

/// Everything that is wrong with the gradients.
pub(super) fn backward(problem: &Problem, truth: &Truth, got: &oracle::Gradients) -> Vec<Found> {
    let judged = |(tensor, got): (_, &Vec<f64>)| {
        let (mut got, expected) =
            (got.clone(), truth.results.tensor(tensor).expect("the suite runs both passes"));
        truth.reach.forgive(problem, tensor, &mut got, &expected.values);
        finding(truth, problem, tensor, &got)
    };
    got.tensors().filter_map(judged).collect()
}

fn finding(truth: &Truth, problem: &Problem, tensor: TensorName, got: &[f64]) -> Option<Found> {
    let shape = problem.shape_of(tensor);
    let expected = truth.results.tensor(tensor).expect("the suite runs both passes");
    let finding = special(expected, got, shape)
        .or_else(|| too_far(expected.distance(|n| got[n]), got, &expected.values, shape));
    finding.map(|finding| (Some(tensor), finding))
}

fn entry(n: usize, got: &[f64], want: &[f64], shape: [usize; 4]) -> Entry {
    Entry { index: index_of(n, shape), got: got[n], expected: want[n] }
}

/// NaN, infinities and zeros that must be exact.
fn special(expected: &Expected, got: &[f64], shape: [usize; 4]) -> Option<Finding> {
    let places: Vec<usize> = (0..got.len()).filter(|&n| expected.is_special(n, got[n])).collect();
    let first = entry(*places.first()?, got, &expected.values, shape);
    Some(Finding::Special { count: places.len(), first })
}

fn too_far(distance: Distance, got: &[f64], want: &[f64], shape: [usize; 4]) -> Option<Finding> {
    if distance.is_right() {
        return None;
    }
    let difference = |n: usize| (got[n] - want[n]).abs();
    let finite = (0..want.len()).filter(|&n| difference(n).is_finite());
    let worst = finite.max_by(|&a, &b| difference(a).total_cmp(&difference(b))).unwrap_or(0);
    let worst = entry(worst, got, want, shape);
    Some(Finding::Error { error: distance.error(), bound: distance.bound(), worst })
}

/// What a single entry of probs may be off.
struct EntryBound {
    /// Relative to itself.
    relative: f64,
    /// What may be added to that: the dtype's smallest step, or what flushes to 0.
    smallest: f64,
}

impl EntryBound {
    fn of(dtype: Dtype, max_score: f64) -> Self {
        let in_f32 = 8e-6 * (max_score / 8.0).max(1.0);
        let smallest_f32 = f64::from(f32::MIN_POSITIVE);
        match dtype {
            Dtype::F32 => Self { relative: in_f32, smallest: smallest_f32 },
            Dtype::F16 => Self { relative: 2f64.powi(-11) + in_f32, smallest: 2f64.powi(-24) },
            Dtype::Bf16 => Self { relative: 2f64.powi(-8) + in_f32, smallest: smallest_f32 },
        }
    }
}

/// The sign bits exactly, then every magnitude, then all of them together.
fn probs(problem: &Problem, dtype: Dtype, truth: &Truth, got: &[f64]) -> Option<Finding> {
    let (shape, want) = (problem.probs(), &truth.probs);
    let wrong_bit = |n: &usize| got[*n].is_dropped() != want[*n].is_dropped();
    let wrong_bits: Vec<usize> = (0..got.len()).filter(wrong_bit).collect();
    if let Some(&first) = wrong_bits.first() {
        return Some(Finding::SignBits { count: wrong_bits.len(), first: entry(first, got, want, shape) });
    }
    let want: Vec<f64> = want.iter().map(|x| x.probability()).collect();
    let mut got: Vec<f64> = got.iter().map(|x| x.probability()).collect();
    truth.reach.forgive(problem, TensorName::Probs, &mut got, &want);
    let visible = visible(problem);
    let differs = |n: &usize| {
        got[*n].is_nan() != want[*n].is_nan() || got[*n].is_infinite() || !visible[*n] && got[*n] != 0.0
    };
    let special: Vec<usize> = (0..got.len()).filter(differs).collect();
    if let Some(&first) = special.first() {
        return Some(Finding::Special { count: special.len(), first: entry(first, &got, &want, shape) });
    }
    let max_score = truth.results.max_score();
    let EntryBound { relative, smallest } = EntryBound::of(dtype, max_score);
    let relative = relative + truth.reach.error_of_p();
    let excess = |n: usize| {
        if want[n].is_nan() { 0.0 } else { (got[n] - want[n]).abs() / (relative * want[n] + smallest) }
    };
    let worst = (0..got.len()).max_by(|&a, &b| excess(a).total_cmp(&excess(b)))?;
    if excess(worst) > 1.0 {
        let (error, worst) = (excess(worst) * relative, entry(worst, &got, &want, shape));
        return Some(Finding::Error { error, bound: relative, worst });
    }
    let bound =
        Bounds::of(dtype).for_scores(max_score, problem.shape().head_dim).out + truth.reach.error_of_p();
    let pairs = got.iter().copied().zip(want.iter().copied());
    too_far(Distance::between(pairs, bound), &got, &want, shape)
}

/// Which entries of probs are of keys that their queries see.
fn visible(problem: &Problem) -> Vec<bool> {
    let shape = problem.probs();
    let mut visible = vec![false; shape.into_iter().product()];
    for (sequence, head, i) in problem.rows().filter(|(sequence, ..)| sequence.seqlen_k > 0) {
        let row = &mut visible[dense_row(shape, sequence.probs(i, head))];
        row[problem.visibility_in(&sequence).keys_of(i as i64).positions()].fill(true);
    }
    visible
}
