//! NaNs and infinities, put where they belong and nowhere else.

use super::inputs::Values;
use crate::tensor::dense_row;
use crate::{Problem, Sequence, Shape};

/// The sequence whose operands change.
fn first(problem: &Problem) -> Sequence {
    problem.sequences().next().expect("the case has a sequence")
}

/// The elements of query `i` of head `h` of a dense tensor of q's shape.
fn query<'a>(problem: &Problem, x: &'a mut [f64], i: usize, h: usize) -> &'a mut [f64] {
    &mut x[dense_row(problem.shape().q(), first(problem).query(i, h))]
}

/// The elements of key `j` of key head `h` of a dense tensor of k's shape.
fn key<'a>(problem: &Problem, x: &'a mut [f64], j: usize, h: usize) -> &'a mut [f64] {
    &mut x[dense_row(problem.shape().k(), first(problem).key(j, h))]
}

pub(super) fn nan_in_one_query(problem: &Problem, values: &mut Values) {
    query(problem, &mut values.q, 5, 1)[3] = f64::NAN;
}

pub(super) fn nan_in_one_dout(problem: &Problem, values: &mut Values) {
    query(problem, &mut values.dout, 5, 1)[3] = f64::NAN;
}

pub(super) fn nan_in_one_dlse(_: &Problem, values: &mut Values) {
    values.dlse.as_mut().expect("the case has a gradient through lse")[5] = f64::NAN;
}

/// Causal with more queries than keys: the first queries see nothing.
pub(super) fn nan_in_blind_queries(problem: &Problem, values: &mut Values) {
    let visibility = problem.visibility_in(&first(problem));
    let blind = (0..visibility.queries).filter(|&i| visibility.keys_of(i).is_empty());
    for i in blind.map(|i| i as usize) {
        query(problem, &mut values.q, i, 0).fill(f64::NAN);
        query(problem, &mut values.q, i, 1).fill(f64::INFINITY);
        query(problem, &mut values.dout, i, 0).fill(f64::NEG_INFINITY);
        query(problem, &mut values.dout, i, 1).fill(f64::NAN);
    }
}

pub(super) fn nan_in_one_value(problem: &Problem, values: &mut Values) {
    key(problem, &mut values.v, 20, 0).fill(f64::NAN);
}

pub(super) fn inf_in_one_value(problem: &Problem, values: &mut Values) {
    key(problem, &mut values.v, 20, 1)[2] = f64::INFINITY;
}

pub(super) fn nan_in_one_key(problem: &Problem, values: &mut Values) {
    key(problem, &mut values.k, 20, 1)[0] = f64::NAN;
}

/// NaN and infinities in v of the keys that every query drops.
pub(super) fn nan_in_dropped_values(problem: &Problem, values: &mut Values) {
    let Shape { seqlen_q, seqlen_k, num_heads, .. } = *problem.shape();
    let rule = problem.keep_rule().expect("the case has dropout");
    let mut found = 0;
    for h in 0..num_heads {
        for j in (0..seqlen_k).filter(|&j| (0..seqlen_q).all(|i| !rule.keep(first(problem).stream, h, i, j)))
        {
            key(problem, &mut values.v, j, h).fill(if j % 2 == 0 { f64::NAN } else { f64::INFINITY });
            found += 1;
        }
    }
    assert!(found > 1, "the case must have keys that every query drops");
}

/// Every fifth key has a score of -inf, and a v that must not be seen.
pub(super) fn minus_inf_scores(problem: &Problem, values: &mut Values) {
    first_elements_positive(problem, values);
    for j in (0..problem.shape().seqlen_k).step_by(5) {
        for h in 0..problem.shape().num_heads_k {
            key(problem, &mut values.k, j, h)[0] = f64::NEG_INFINITY;
            key(problem, &mut values.v, j, h).fill(if h == 0 { f64::NAN } else { f64::INFINITY });
        }
    }
}

/// Causal: the first queries see keys, all with a score of -inf.
pub(super) fn minus_inf_rows(problem: &Problem, values: &mut Values) {
    first_elements_positive(problem, values);
    for j in 0..19 {
        for h in 0..problem.shape().num_heads_k {
            key(problem, &mut values.k, j, h)[0] = f64::NEG_INFINITY;
        }
    }
}

pub(super) fn plus_inf_score(problem: &Problem, values: &mut Values) {
    first_elements_positive(problem, values);
    key(problem, &mut values.k, 20, 0)[0] = f64::INFINITY;
}

fn first_elements_positive(problem: &Problem, values: &mut Values) {
    for x in values.q.iter_mut().step_by(problem.shape().head_dim) {
        *x = x.abs() + 0.5;
    }
}
