//! How large results would be without cancelling, and what rounding alone makes of them.

use super::Backward;
use crate::oracle::{Entry, Forward, Gradients, Head, Heads, dense, dense_index, dot};
use crate::{Dtype, Element, Inputs, Problem, TensorName, bf16, f16};
use std::ops::Range;

/// Scores above this allow a larger error only where their last bits decide something.
const LARGE_SCORE: f64 = 1024.0;
/// Scores above this allow no larger error: their last bits may already decide everything, and a larger bound would let
/// results of nothing but zeros pass.
const LARGEST_SCORE: f64 = 6e6;
/// How far a score computed in f32 may be off, relative to the row's largest, after a sum over head_dim.
const SCORE_ERROR: f64 = 1.0 / 1048576.0;
/// A key whose score is so far behind another's has no probability that counts in f32: e^-20.
const FAR_BEHIND: f64 = 20.0;

/// How large one tensor is, as far as its error is judged by that.
#[derive(Clone, Debug, Default)]
pub(super) struct Size {
    /// The sum of the squares of the terms of each row, in the order of the tensor; 0 where there are none.
    pub(super) terms: Vec<f64>,
    /// The sum of the squares of what rounding changes.
    pub(super) rounding: f64,
}

/// The sizes of all tensors of a call.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pub(super) out: Size,
    pub(super) lse: Size,
    /// Of the gradients that there are.
    pub(super) gradients: Vec<(TensorName, Size)>,
    /// The largest magnitude of a finite score.
    pub(super) max_score: f64,
    /// The same, as far as the last bits of scores [decide](deciding) anything.
    pub(super) deciding_score: f64,
}

/// A number as a dtype stores it.
type Round = fn(f64) -> f64;

/// What is right, and of which gradients of the results, if there are any.
struct Exact<'a> {
    forward: &'a Forward,
    dout: Option<&'a [f64]>,
    dlse: Option<&'a [f32]>,
    gradients: Option<&'a Gradients>,
}

/// The terms of a row, summed, and the row itself from rounded p and ds.
#[derive(Default)]
struct Rows {
    terms: Vec<f64>,
    rounded: Vec<f64>,
    dim: usize,
}

impl Rows {
    fn new(shape: [usize; 4]) -> Self {
        let [batch, seqlen, heads, dim] = shape;
        let rows = batch * seqlen * heads;
        Self { terms: vec![0.0; rows], rounded: vec![0.0; rows * dim], dim }
    }

    /// One term: `size` is what its factor is computed from, `factor` its rounded self.
    fn add(&mut self, at: Range<usize>, size: f64, factor: f64, x: &[f64]) {
        self.terms[at.start / self.dim] += size * size * dot(x, x);
        for (sum, x) in self.rounded[at].iter_mut().zip(x) {
            *sum += factor * x;
        }
    }

    /// A term that is a number, not a row.
    fn add_number(&mut self, at: usize, size: f64, number: f64) {
        self.terms[at / self.dim] += size * size;
        self.rounded[at] += number;
    }

    fn size(self, round: Round, exact: &[f64]) -> Size {
        let lost = |(rounded, exact): (&f64, &f64)| (round(*rounded) - exact).powi(2);
        let rounding = self.rounded.iter().zip(exact).map(lost).filter(|x| x.is_finite()).sum();
        Size { terms: self.terms, rounding }
    }
}

impl Sizes {
    /// The sizes for these operands and exact results. `gradients` must be given if `backward` is, and only then.
    pub(super) fn of<T: Element>(
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        backward: Option<Backward<'_, T>>,
        forward: &Forward,
        gradients: Option<&Gradients>,
    ) -> Self {
        let dout = backward.map(|backward| dense(&backward.dout));
        let exact = Exact {
            forward,
            dout: dout.as_deref(),
            dlse: backward.and_then(|backward| backward.dlse),
            gradients,
        };
        Self::of_heads(problem, Head::all(problem, inputs), exact, stored::<T>)
    }

    fn of_heads(problem: &Problem, heads: Heads<'_>, exact: Exact<'_>, round: Round) -> Self {
        let Exact { forward, dout, dlse, gradients } = exact;
        let shape = problem.shape();
        let keep_scale = problem.keep_scale();
        let with_gradients = |shape: [usize; 4]| Rows::new(if dout.is_some() { shape } else { [0; 4] });
        let (mut out, mut dq) = (Rows::new(shape.out()), with_gradients(shape.q()));
        let (mut dk, mut dv) = (with_gradients(shape.k()), with_gradients(shape.v()));
        let bias = problem.shape_of(TensorName::Dbias);
        let mut dbias = with_gradients(bias);
        let mut dsinks = with_gradients([1, 1, if problem.sinks() { shape.num_heads } else { 0 }, 1]);
        let (mut max_score, mut deciding_score, mut lse) = (0.0f64, 0.0f64, vec![0.0; forward.lse.len()]);
        for head in heads {
            let flushed = head.map(flush);
            for i in head.queries() {
                let (scores, lse_i) = (head.scores(i), forward.lse[head.lse_index(i)]);
                let row_max = scores.magnitude(FAR_BEHIND);
                max_score = max_score.max(row_max);
                let entries = scores.entries(lse_i);
                let keys = entries.iter().map(|entry| (head.k(entry.j), entry.score.value));
                deciding_score = deciding_score.max(deciding(&keys.collect::<Vec<_>>(), row_max));
                // What counts of lse is how far it moves p, its absolute error: near 0 it need not be relatively exact.
                lse[head.lse_index(i)] = if lse_i.is_finite() { 4.0 * row_max.max(1.0).powi(2) } else { 0.0 };
                let p_sink = scores.sink(lse_i);
                let dout_i = dout.map(|dout| head.out_row(i, dout));
                let out_i = head.out_row(i, &forward.out);
                let delta = dout_i.map(|dout_i| {
                    let dlse = head.dlse(i, dlse);
                    // dp's sums lose as much in all keys if the keys are alike: as in the heaviest.
                    let heaviest = entries.iter().max_by(|a, b| a.p.total_cmp(&b.p));
                    let of_dp = heaviest.map_or(0.0, |x| keep_scale * lost_in_order(dout_i, head.v(x.j)));
                    Delta::of(dout_i, out_i, dlse, of_dp, round)
                });
                if let (Some(delta), true) = (&delta, p_sink != 0.0) {
                    dsinks.add_number(head.number(), p_sink * delta.size, -p_sink * delta.rounded);
                }
                for Entry { j, score, p, kept } in entries {
                    if p == 0.0 {
                        continue;
                    }
                    let kept_p = round(p) * keep_scale;
                    if kept {
                        out.add(head.out_places(i), keep_scale * p, kept_p, flushed.v(j));
                    }
                    let (Some(dout_i), Some(delta)) = (dout_i, &delta) else { continue };
                    let dp_size = if kept { keep_scale * size_of_dot(dout_i, head.v(j)) } else { 0.0 };
                    let size = p * (dp_size + delta.size);
                    let ds = p * (head.dp(j, kept, dout_i) - delta.rounded);
                    if problem.bias().is_some() {
                        dbias.add_number(dense_index(bias, head.bias_index(bias, i, j)), size, ds);
                    }
                    let (size, ds) = (score.slope * size, score.slope * round(ds));
                    dq.add(head.query_places(i), size, ds, flushed.k(j));
                    dk.add(head.key_places(j), size, ds, flushed.q(i));
                    if kept {
                        dv.add(head.value_places(j), keep_scale * p, kept_p, dout_i);
                    }
                }
            }
        }
        let of_bias = match problem.bias().map(|bias| bias.dtype) {
            Some(Dtype::F16) => stored::<f16>,
            Some(Dtype::Bf16) => stored::<bf16>,
            Some(Dtype::F32) | None => stored::<f32>,
        };
        let gradient = |(tensor, exact): (TensorName, &Vec<f64>)| {
            let size = match tensor {
                TensorName::Dq => std::mem::take(&mut dq).size(round, exact),
                TensorName::Dk => std::mem::take(&mut dk).size(round, exact),
                TensorName::Dv => std::mem::take(&mut dv).size(round, exact),
                TensorName::Dbias => std::mem::take(&mut dbias).size(of_bias, exact),
                _ => std::mem::take(&mut dsinks).size(stored::<f32>, exact),
            };
            (tensor, size)
        };
        Self {
            out: out.size(round, &forward.out),
            lse: Size { terms: lse, rounding: 0.0 },
            gradients: gradients.into_iter().flat_map(Gradients::tensors).map(gradient).collect(),
            max_score,
            deciding_score,
        }
    }
}

/// The magnitude of a row's scores, as far as their last bits decide anything: a key far ahead of the others, and
/// those equal to it, have all of the probability whatever these bits are. A bound that grew with every large score
/// would call anything right.
fn deciding(keys: &[(&[f64], f64)], row_max: f64) -> f64 {
    if row_max <= LARGE_SCORE {
        return row_max;
    }
    let finite = || keys.iter().filter(|(_, score)| score.is_finite());
    let Some((first, largest)) = finite().max_by(|a, b| a.1.total_cmp(&b.1)) else { return LARGE_SCORE };
    let close = largest - FAR_BEHIND - row_max * SCORE_ERROR;
    let contested = finite().any(|(key, score)| *score >= close && key != first);
    row_max.min(if contested { LARGEST_SCORE } else { LARGE_SCORE })
}

/// `<dout, out>` of one query.
struct Delta {
    /// Computed from out as it is stored, plus what sums in f32 lose.
    rounded: f64,
    size: f64,
}

impl Delta {
    /// delta of a row whose sums of dp lose `lost_in_dp`.
    fn of(dout: &[f64], out: &[f64], dlse: f64, lost_in_dp: f64, round: Round) -> Self {
        let stored: Vec<f64> = out.iter().map(|&x| round(x)).collect();
        let lost = lost_in_dp + lost_in_order(dout, &stored);
        Self { rounded: dot(dout, &stored) - dlse + lost, size: size_of_dot(dout, out) + dlse.abs() }
    }
}

/// What the error of a dot product is relative to: itself, or what its terms give if they cancel.
fn size_of_dot(a: &[f64], b: &[f64]) -> f64 {
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (a * b) * (a * b)).sum();
    dot(a, b).abs().max(squares.sqrt())
}

/// How much a dot product loses if it is added in f32 in order: most where all terms are alike.
fn lost_in_order(a: &[f64], b: &[f64]) -> f64 {
    let in_order = a.iter().zip(b).fold(0f32, |sum, (a, b)| (f64::from(sum) + a * b) as f32);
    (f64::from(in_order) - dot(a, b)).abs()
}

/// `x` as the dtype stores it.
fn stored<T: Element>(x: f64) -> f64 {
    flush(T::from_f32(x as f32).to_f64())
}

/// A number that is subnormal in f32 counts as 0: some processors' instructions for bf16 take it so.
fn flush(x: f64) -> f64 {
    if x.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { x }
}
