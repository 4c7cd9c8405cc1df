//! An implementation's results beside the oracle's.

use super::part::ForwardResults;
use super::report::{Entry, Finding};
use super::storage::index_of;
use super::tolerance::Tolerance;
use super::truth::Truth;
use crate::{Dtype, Problem, SignBit, TensorName, oracle};

/// What is wrong with which tensor.
pub(super) type Found = (Option<TensorName>, Finding);

/// A tensor of both.
struct Pair<'a> {
    got: &'a [f64],
    want: &'a [f64],
    shape: [usize; 4],
    /// The norm that errors are relative to is at least this.
    floor: f64,
    bound: f64,
}

/// Everything that is wrong with out, lse and, if there are any, probs.
pub(super) fn forward(problem: &Problem, dtype: Dtype, truth: &Truth, got: &ForwardResults) -> Vec<Found> {
    let shape = problem.shape();
    let Tolerance { out: out_bound, lse: lse_bound, .. } = Tolerance::of(dtype, truth.max_score);
    let oracle::Forward { out, lse } = &truth.forward;
    let finite_rows = lse.iter().filter(|lse| lse.is_finite()).count();
    let lse_shape = [shape.batch, shape.num_heads, shape.seqlen_q, 1];
    // What counts of lse is how far it moves p, which is its absolute error: near 0 it need not be relatively exact.
    let lse_floor = (finite_rows as f64).sqrt();
    let out = Pair { got: &got.out, want: out, shape: shape.q(), floor: 0.0, bound: out_bound };
    let lse = Pair { got: &got.lse, want: lse, shape: lse_shape, floor: lse_floor, bound: lse_bound };
    // Whatever the terms, an out of exactly 0 has none: no key is seen, or none is kept.
    let mut found = Vec::new();
    found.extend(out.finding(|n| out.want[n] == 0.0).map(|x| (Some(TensorName::Out), x)));
    found.extend(lse.finding(|_| false).map(|x| (Some(TensorName::Lse), x)));
    if !got.probs.is_empty() {
        found.extend(probs(problem, dtype, truth, &got.probs).map(|x| (Some(TensorName::Probs), x)));
    }
    found
}

/// Everything that is wrong with dq, dk and dv.
pub(super) fn backward(
    problem: &Problem,
    dtype: Dtype,
    truth: &Truth,
    got: &oracle::Gradients,
) -> Vec<Found> {
    let shape = problem.shape();
    let (dim, bound) = (shape.head_dim, Tolerance::of(dtype, truth.max_score).gradients);
    let (want, terms) = (&truth.gradients, &truth.terms);
    let dq = Pair { got: &got.dq, want: &want.dq, shape: shape.q(), floor: half_norm(&terms.dq), bound };
    let dk = Pair { got: &got.dk, want: &want.dk, shape: shape.k(), floor: half_norm(&terms.dk), bound };
    let dv = Pair { got: &got.dv, want: &want.dv, shape: shape.k(), floor: 0.0, bound };
    let findings = [
        (TensorName::Dq, dq.finding(|n| terms.dq[n / dim] == 0.0)),
        (TensorName::Dk, dk.finding(|n| terms.dk[n / dim] == 0.0)),
        (TensorName::Dv, dv.finding(|n| dv.want[n] == 0.0)),
    ];
    findings.into_iter().filter_map(|(tensor, x)| x.map(|x| (Some(tensor), x))).collect()
}

/// Where dq or dk cancel to less than half of what their terms would give, as with a single key (whose gradient is
/// exactly 0), rounding errors are judged by the terms.
fn half_norm(terms: &[f64]) -> f64 {
    0.5 * terms.iter().filter(|x| x.is_finite()).map(|x| x * x).sum::<f64>().sqrt()
}

impl Pair<'_> {
    fn entry(&self, n: usize) -> Entry {
        Entry { index: index_of(n, self.shape), got: self.got[n], expected: self.want[n] }
    }

    fn finding(&self, must_be_zero: impl Fn(usize) -> bool) -> Option<Finding> {
        self.special(must_be_zero).or_else(|| self.error())
    }

    /// NaN, infinities and zeros that must be exact.
    fn special(&self, must_be_zero: impl Fn(usize) -> bool) -> Option<Finding> {
        let differs = |n: &usize| {
            let (got, want) = (self.got[*n], self.want[*n]);
            let infinite = got.is_infinite() || want.is_infinite();
            got.is_nan() != want.is_nan() || infinite && got != want || must_be_zero(*n) && got != 0.0
        };
        let places: Vec<usize> = (0..self.want.len()).filter(differs).collect();
        let first = *places.first()?;
        Some(Finding::Special { count: places.len(), first: self.entry(first) })
    }

    /// The Frobenius norm of the difference of what is finite.
    fn error(&self) -> Option<Finding> {
        let finite = || (0..self.want.len()).filter(|&n| self.want[n].is_finite());
        let difference = |n: usize| (self.got[n] - self.want[n]).abs();
        let norm = |x: &dyn Fn(usize) -> f64| finite().map(|n| x(n) * x(n)).sum::<f64>().sqrt();
        let (distance, scale) = (norm(&difference), norm(&|n| self.want[n]).max(self.floor));
        let bound = self.bound * small_sample(self.want.len());
        if distance <= bound * scale {
            return None;
        }
        let worst = finite().max_by(|&a, &b| difference(a).total_cmp(&difference(b)))?;
        Some(Finding::Error { error: distance / scale, bound, worst: self.entry(worst) })
    }
}

/// The contract's bounds are of tensors in which thousands of rounding errors average. In fewer than 512 numbers one
/// large probability, rounded to 16 bits before a product, weighs more: by up to a quarter in the suite's smallest.
fn small_sample(numbers: usize) -> f64 {
    if numbers < 512 { 1.25 } else { 1.0 }
}

/// The mask to the bit, then every magnitude, then all of them together.
fn probs(problem: &Problem, dtype: Dtype, truth: &Truth, got: &[f64]) -> Option<Finding> {
    let tolerance = Tolerance::of(dtype, truth.max_score);
    let shape = problem.shape().probs();
    let want = &truth.probs;
    let entry = |n: usize| Entry { index: index_of(n, shape), got: got[n], expected: want[n] };

    let wrong_bit = |n: &usize| got[*n].is_dropped() != want[*n].is_dropped();
    let wrong_bits: Vec<usize> = (0..got.len()).filter(wrong_bit).collect();
    if let Some(&first) = wrong_bits.first() {
        return Some(Finding::Mask { count: wrong_bits.len(), first: entry(first) });
    }
    let invisible = |n: usize| {
        let [_, _, i, j] = index_of(n, shape);
        !problem.visible_keys(i).contains(&j)
    };
    let got: Vec<f64> = got.iter().map(|x| x.probability()).collect();
    let want: Vec<f64> = want.iter().map(|x| x.probability()).collect();
    let pair = Pair { got: &got, want: &want, shape, floor: 0.0, bound: tolerance.out };
    if let Some(special) = pair.special(invisible) {
        return Some(special);
    }
    let excess = |n: usize| {
        let bound = tolerance.probability * want[n] + tolerance.smallest_probability;
        if want[n].is_nan() { 0.0 } else { (got[n] - want[n]).abs() / bound }
    };
    let worst = (0..got.len()).max_by(|&a, &b| excess(a).total_cmp(&excess(b)))?;
    if excess(worst) > 1.0 {
        let (error, bound) = (excess(worst) * tolerance.probability, tolerance.probability);
        return Some(Finding::Error { error, bound, worst: entry(worst) });
    }
    pair.error()
}
