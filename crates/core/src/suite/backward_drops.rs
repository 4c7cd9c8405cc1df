//! What a backward drops, read from dv.

use super::erased::{Erased, Of};
use super::{Implementation, RunError};
use crate::tensor::dense_row;
use crate::{
    Dropout, Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, Sequence, Shape, TensorMut,
    TensorRef, bf16, f16,
};
use std::io::Write;
use std::ops::Range;

const HEAD_DIM: usize = 64;

/// Fails unless the backward drops exactly what the forward and the formula drop. What is not supported is skipped, and
/// says so on stderr. Returns how many problems ran.
///
/// dv = p^T dout, so a dout of unit rows makes dv columns of p: entry (key j, column c) is what query c gave key j,
/// which is 0 where it was dropped. Queries take turns, as many at once as there are columns, and so do the heads
/// that share keys.
///
/// # Panics
/// With the entries that differ.
///
/// ```
/// use signflash_core::suite::{Reference, check_backward_drops};
/// assert_eq!(check_backward_drops::<f32, _>(&Reference), 4);
/// ```
pub fn check_backward_drops<T: Element, I: Implementation>(implementation: &I) -> usize {
    check_dtype(T::DTYPE, implementation)
}

fn check_dtype(dtype: Dtype, implementation: &dyn Erased) -> usize {
    match dtype {
        Dtype::F32 => check_of::<f32>(implementation),
        Dtype::F16 => check_of::<f16>(implementation),
        Dtype::Bf16 => check_of::<bf16>(implementation),
    }
}

fn check_of<T: Element>(implementation: &dyn Of<T>) -> usize {
    let mut ran = 0;
    for problem in problems() {
        let queries = problem.shape().seqlen_q;
        if let Err(why) = implementation.supports(T::DTYPE, &problem) {
            // Not by println!, which tests that pass do not show; and the other problems may be supported.
            let name = implementation.name();
            let _ = writeln!(std::io::stderr(), "skipped {queries} queries of {} on {name}: {why}", T::DTYPE);
            continue;
        }
        let wrong = wrong_entries(implementation, &problem);
        let wrong = wrong.unwrap_or_else(|error| panic!("{}: {error}", implementation.name()));
        let first = wrong.first();
        assert!(
            wrong.is_empty(),
            "{}, {}: {} wrong, {first:?}",
            implementation.name(),
            T::DTYPE,
            wrong.len()
        );
        ran += 1;
    }
    ran
}

/// Everything seen, causal, a window, and packed sequences.
fn problems() -> impl Iterator<Item = Problem> {
    let of = |batch, seqlen_q, seqlen_k| {
        let shape = Shape::new(batch, seqlen_q, seqlen_k).heads(4, 2).head_dim(HEAD_DIM);
        Problem::builder(shape).dropout(Dropout::new(0.3, 8, 2).expect("valid"))
    };
    let builders = [
        of(2, 130, 170),
        of(2, 97, 140).causal(true),
        of(1, 61, 90).window(Some(40), Some(3)),
        of(1, 64, 83).packed(&[0, 3, 3, 45, 64], &[0, 9, 16, 73, 83]),
    ];
    builders.into_iter().map(|builder| builder.build().expect("valid"))
}

/// (sequence, head, query, key) that one of the passes takes for kept and another does not.
fn wrong_entries<T: Element>(
    implementation: &dyn Of<T>,
    problem: &Problem,
) -> Result<Vec<[usize; 4]>, RunError> {
    let (shape, rule) = (*problem.shape(), problem.keep_rule().expect("with dropout"));
    let Shape { num_heads_k, head_dim, .. } = shape;
    let probs_shape @ [_, _, seqlen_q, _] = problem.probs();
    let numbers = |dims: [usize; 4]| -> Vec<T> {
        (0..dims.iter().product()).map(|i: usize| T::from_f32((i * 37 % 101) as f32 / 101.0 - 0.5)).collect()
    };
    let zeros = |dims: [usize; 4]| vec![T::from_f32(0.0); dims.iter().product()];
    let (q, k, v) = (numbers(shape.q()), numbers(shape.k()), numbers(shape.v()));
    let inputs = Inputs::new(
        TensorRef::bshd(&q, shape.q()),
        TensorRef::bshd(&k, shape.k()),
        TensorRef::bshd(&v, shape.v()),
    );
    let (mut out, mut lse) = (zeros(shape.out()), vec![0.0; shape.lse_len()]);
    let mut probs = zeros(probs_shape);
    let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse)
        .probs(TensorMut::bshd(&mut probs, probs_shape));
    implementation.forward(problem, &inputs, &mut outputs)?;

    let group = shape.group_size();
    let mut wrong = vec![];
    for (first, member) in
        (0..seqlen_q).step_by(head_dim).flat_map(|first| (0..group).map(move |m| (first, m)))
    {
        let rows = first..seqlen_q.min(first + head_dim);
        let mut dout = zeros(shape.out());
        for (sequence, i, h) in product(problem, rows.clone(), num_heads_k) {
            let row = dense_row(shape.out(), sequence.query(i, h * group + member));
            dout[row][i - first] = T::from_f32(1.0);
        }
        let dv = dv_of(implementation, problem, &inputs, [&out, &dout], &lse)?;
        for (sequence, i, h) in product(problem, rows, num_heads_k) {
            let head = h * group + member;
            for j in problem.visibility_in(&sequence).keys_of(i as i64).positions() {
                let dv_j = &dv[dense_row(shape.v(), sequence.key(j, h))];
                let in_backward = dv_j[i - first].to_f32() != 0.0;
                let p = probs[dense_row(probs_shape, sequence.probs(i, head)).start + j];
                let expected = rule.keep(sequence.stream, head, i, j);
                if in_backward != expected || p.is_dropped() == expected {
                    wrong.push([sequence.stream, head, i, j]);
                }
            }
        }
    }
    Ok(wrong)
}

fn product(
    problem: &Problem,
    rows: Range<usize>,
    heads: usize,
) -> impl Iterator<Item = (Sequence, usize, usize)> {
    let of_sequence = move |sequence: Sequence| {
        let rows = rows.start..rows.end.min(sequence.seqlen_q);
        rows.flat_map(move |i| (0..heads).map(move |h| (sequence, i, h)))
    };
    problem.sequences().flat_map(of_sequence)
}

fn dv_of<T: Element>(
    implementation: &dyn Of<T>,
    problem: &Problem,
    inputs: &Inputs<'_, T>,
    [out, dout]: [&[T]; 2],
    lse: &[f32],
) -> Result<Vec<T>, RunError> {
    let shape = problem.shape();
    let [mut dq, mut dk, mut dv] =
        [shape.q(), shape.k(), shape.v()].map(|dims| vec![T::from_f32(0.0); dims.iter().product()]);
    let mut gradients = Gradients::new(
        TensorMut::bshd(&mut dq, shape.q()),
        TensorMut::bshd(&mut dk, shape.k()),
        TensorMut::bshd(&mut dv, shape.v()),
    );
    let (out, dout) = (TensorRef::bshd(out, shape.out()), TensorRef::bshd(dout, shape.out()));
    implementation.backward(problem, &GradInputs::new(*inputs, out, lse, dout), &mut gradients)?;
    Ok(dv)
}
