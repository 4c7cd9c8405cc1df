//! What the oracle says of a case.

use super::inputs::{Values, as_f32};
use super::storage::Storage;
use crate::oracle::{self, Head, Weight, dot};
use crate::{Element, Inputs, Problem, contiguous_strides};

/// The oracle's results on the rounded operands, and what is needed to judge others by them.
pub(super) struct Truth {
    pub(super) forward: oracle::Forward,
    pub(super) probs: Vec<f64>,
    pub(super) gradients: oracle::Gradients,
    pub(super) terms: Terms,
    /// The largest magnitude of a finite score.
    pub(super) max_score: f64,
}

/// How large dq and dk would be if their terms did not cancel: the root of the sum of the squares of
/// `softmax_scale p (|dp| + |<dout, out>| + |dlse|) |k|` over the keys of each query, and likewise over the queries of each key. Zero
/// where there are no terms at all.
pub(super) struct Terms {
    /// One for each query and head, in the order of q.
    pub(super) dq: Vec<f64>,
    /// One for each key and head, in the order of k.
    pub(super) dk: Vec<f64>,
}

impl Truth {
    pub(super) fn of<T: Element>(problem: &Problem, values: &Values) -> Self {
        let shape = problem.shape();
        let storage = |shape, dense| Storage::<T>::holding(shape, contiguous_strides(shape), dense);
        let (q, dout) = (storage(shape.q(), &values.q), storage(shape.q(), &values.dout));
        let (k, v) = (storage(shape.k(), &values.k), storage(shape.k(), &values.v));
        let inputs = Inputs { q: q.tensor(), k: k.tensor(), v: v.tensor() };
        let forward = oracle::forward(problem, &inputs).expect("the suite's operands fit");
        let probs = oracle::probs(problem, &inputs, &forward.lse).expect("the suite's operands fit");
        let dlse = values.dlse.as_deref().map(as_f32);
        let gradients = oracle::backward(problem, &inputs, &dout.tensor(), dlse.as_deref(), &forward);
        let gradients = gradients.expect("the suite's operands fit");
        let (terms, max_score) = terms(problem, &inputs, &dout.to_dense(), dlse.as_deref(), &forward);
        Self { forward, probs, gradients, terms, max_score }
    }
}

fn terms<T: Element>(
    problem: &Problem,
    inputs: &Inputs<'_, T>,
    dout: &[f64],
    dlse: Option<&[f32]>,
    forward: &oracle::Forward,
) -> (Terms, f64) {
    let shape = problem.shape();
    let (dim, mut max_score) = (shape.head_dim, 0.0f64);
    let norm2 = |x: &[f64]| dot(x, x);
    let mut dq = vec![0.0; shape.q().into_iter().product::<usize>() / dim];
    let mut dk = vec![0.0; shape.k().into_iter().product::<usize>() / dim];
    for head in Head::all(problem, inputs) {
        for i in 0..shape.seqlen_q {
            let dout_i = head.query_row(i, dout);
            let delta = dot(dout_i, head.query_row(i, &forward.out)).abs() + head.dlse(i, dlse).abs();
            let (scores, q2) = (head.scores(i), norm2(head.q(i)));
            max_score = scores.iter().filter(|s| s.is_finite()).fold(max_score, |max, s| max.max(s.abs()));
            for Weight { j, p, kept } in head.weights(i, &scores, forward.lse[head.lse_index(i)]) {
                if p == 0.0 {
                    continue;
                }
                let ds = problem.softmax_scale() * p * (head.dp(j, kept, dout_i).abs() + delta);
                dq[head.query(i) / dim] += ds * ds * norm2(head.k(j));
                dk[head.key(j) / dim] += ds * ds * q2;
            }
        }
    }
    let root = |x: Vec<f64>| x.into_iter().map(f64::sqrt).collect();
    (Terms { dq: root(dq), dk: root(dk) }, max_score)
}
