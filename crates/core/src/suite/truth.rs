//! What the oracle says of a case.

use super::inputs::{Values, as_f32};
use super::storage::Storage;
use crate::judge::{self, Backward};
use crate::{Element, Inputs, Problem, contiguous_strides, oracle};

/// The oracle's results on the rounded operands.
pub(super) struct Truth {
    pub(super) results: judge::Truth,
    pub(super) probs: Vec<f64>,
}

impl Truth {
    pub(super) fn of<T: Element>(problem: &Problem, values: &Values) -> Self {
        let shape = problem.shape();
        let storage = |shape, dense| Storage::<T>::holding(shape, contiguous_strides(shape), dense);
        let (q, dout) = (storage(shape.q(), &values.q), storage(shape.q(), &values.dout));
        let (k, v) = (storage(shape.k(), &values.k), storage(shape.k(), &values.v));
        let inputs = Inputs { q: q.tensor(), k: k.tensor(), v: v.tensor() };
        let dlse = values.dlse.as_deref().map(as_f32);
        let backward = Backward { dout: dout.tensor(), dlse: dlse.as_deref() };
        let results = judge::Truth::of(problem, &inputs, Some(backward)).expect("the suite's operands fit");
        let probs = oracle::probs(problem, &inputs, &results.lse().values).expect("the suite's operands fit");
        Self { results, probs }
    }
}
