//! NaNs and infinities, put where they belong and nowhere else.

use super::inputs::Values;
use super::storage::index_of;
use crate::tensor::dense_row;
use crate::{Problem, Sequence, Shape, TensorName};

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

/// Every entry of a bias or a mask, with its place.
fn each(shape: [usize; 4], dense: &mut [f64], change: impl Fn([usize; 4], &mut f64)) {
    dense.iter_mut().enumerate().for_each(|(n, x)| change(index_of(n, shape), x));
}

/// Every fifth key, all of some queries, and from the second head on a whole tile of keys.
pub(super) fn minus_inf_in_a_bias(problem: &Problem, values: &mut Values) {
    each(problem.shape_of(TensorName::Bias), &mut values.bias, |[_, h, i, j], x| {
        if j % 5 == 0 || i % 11 == 3 || h > 0 && j >= 16 && i < 32 {
            *x = f64::NEG_INFINITY;
        }
    });
}

/// A mask of keys: of batch b those from the middle on are hidden, and b more.
pub(super) fn padding(problem: &Problem, values: &mut Values) {
    let shape = problem.shape_of(TensorName::Mask);
    each(shape, &mut values.mask, |[b, _, _, j], x| *x = f64::from(j + b < shape[3] / 2));
}

/// Queries see the keys of their own third alone.
pub(super) fn blocks(problem: &Problem, values: &mut Values) {
    let shape = problem.shape_of(TensorName::Mask);
    each(shape, &mut values.mask, |[_, _, i, j], x| *x = f64::from(3 * i / shape[2] == 3 * j / shape[3]));
}

/// Every third query sees nothing, the first tile of the second head neither.
pub(super) fn blind_rows(problem: &Problem, values: &mut Values) {
    each(problem.shape_of(TensorName::Mask), &mut values.mask, |[_, h, i, _], x| {
        if i % 3 == 1 || h == 1 && i < 16 {
            *x = 0.0;
        }
    });
    // As autograd gives it where an lse of -inf is subtracted from itself.
    let blind = |row: usize| row % problem.shape().seqlen_q % 3 == 1;
    if let Some(dlse) = values.dlse.as_mut().filter(|_| !problem.sinks()) {
        dlse.iter_mut().enumerate().filter(|(row, _)| blind(*row)).for_each(|(_, dlse)| *dlse = f64::NAN);
    }
}

pub(super) fn hide_everything(_: &Problem, values: &mut Values) {
    values.mask.fill(0.0);
}

/// Of a query that sees the key, which the mask shows.
pub(super) fn nan_in_one_bias(problem: &Problem, values: &mut Values) {
    each(problem.shape_of(TensorName::Bias), &mut values.bias, |[_, h, i, j], x| {
        if [h, i, j] == [1, 20, 25] {
            *x = f64::NAN;
        }
    });
    each(problem.shape_of(TensorName::Mask), &mut values.mask, |[_, _, i, j], x| {
        if [i, j] == [20, 25] {
            *x = 1.0;
        }
    });
}

/// Behind the diagonal, and where the mask is 0.
pub(super) fn nan_in_hidden_biases(problem: &Problem, values: &mut Values) {
    let (visibility, of_mask) = (problem.visibility(), problem.shape_of(TensorName::Mask));
    let mask = &values.mask;
    each(problem.shape_of(TensorName::Bias), &mut values.bias, |[_, h, i, j], x| {
        let is_seen = visibility.keys_of(i as i64).contains(j as i64) && mask[i * of_mask[3] + j] != 0.0;
        if !is_seen {
            *x = if h == 0 { f64::NAN } else { f64::INFINITY };
        }
    });
}

/// k and v of the keys that [`padding`] hides.
pub(super) fn nan_in_padding(problem: &Problem, values: &mut Values) {
    padding(problem, values);
    let shape = *problem.shape();
    for (sequence, j) in problem.sequences().flat_map(|x| (0..x.seqlen_k).map(move |j| (x, j))) {
        for h in (0..shape.num_heads_k).filter(|_| j + sequence.stream >= shape.seqlen_k / 2) {
            values.k[dense_row(shape.k(), sequence.key(j, h))].fill(f64::NAN);
            values.v[dense_row(shape.v(), sequence.key(j, h))].fill(if h == 0 {
                f64::NAN
            } else {
                f64::INFINITY
            });
        }
    }
}

/// k and v of some keys, whose bias is -inf.
pub(super) fn nan_in_keys_of_minus_inf(problem: &Problem, values: &mut Values) {
    for j in (0..problem.shape().seqlen_k).step_by(7) {
        values.bias[j] = f64::NEG_INFINITY;
        for h in 0..problem.shape().num_heads_k {
            key(problem, &mut values.k, j, h).fill(f64::NAN);
            key(problem, &mut values.v, j, h).fill(f64::NAN);
        }
    }
}
