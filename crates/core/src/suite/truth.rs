//! What the oracle says of a case.

use super::inputs::{Values, as_f32};
use super::layout::Layout;
use super::reach::Reach;
use super::scores::ScoreStorage;
use super::storage::Storage;
use crate::judge::{self, Backward};
use crate::{Dtype, Element, Inputs, Problem, contiguous_strides, oracle};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

type Known = HashMap<(String, Dtype), Arc<Truth>>;

/// What was found out about named cases. The oracle takes longer than most engines that it judges, and a test program
/// has several: it is asked once for all of them.
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// The oracle's results on the rounded operands.
#[derive(Clone)]
pub(super) struct Truth {
    pub(super) results: judge::Truth,
    pub(super) probs: Vec<f64>,
    /// Where the implementation in question can have p; everywhere, until it is asked.
    pub(super) reach: Reach,
}

impl Truth {
    /// Of the suite's own case of this name.
    pub(super) fn of_named<T: Element>(name: &str, problem: &Problem, values: &Values) -> Arc<Self> {
        let key = (name.to_string(), T::DTYPE);
        // Whole values come and go: a panic elsewhere leaves nothing half done.
        let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(truth) = known().get(&key) {
            return truth.clone();
        }
        let truth = Arc::new(Self::of::<T>(problem, values));
        known().insert(key, truth.clone());
        truth
    }

    pub(super) fn of<T: Element>(problem: &Problem, values: &Values) -> Self {
        let shape = problem.shape();
        let storage = |shape, dense| Storage::<T>::holding(shape, contiguous_strides(shape), dense);
        let (q, dout) = (storage(shape.q(), &values.q), storage(shape.out(), &values.dout));
        let (k, v) = (storage(shape.k(), &values.k), storage(shape.v(), &values.v));
        let scores = ScoreStorage::of(problem, Layout::Bshd, values);
        let inputs = Inputs::new(q.tensor(), k.tensor(), v.tensor()).scores(scores.inputs());
        let dlse = values.dlse.as_deref().map(as_f32);
        let backward = Backward { dout: dout.tensor(), dlse: dlse.as_deref() };
        let results = judge::Truth::of(problem, &inputs, Some(backward)).expect("the suite's operands fit");
        let probs = oracle::probs(problem, &inputs, &results.lse().values).expect("the suite's operands fit");
        let reach = Reach::of(&results.lse().values, None);
        Self { results, probs, reach }
    }
}
