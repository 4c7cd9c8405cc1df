//! Attention in f64, written like the formulas: slow, and right.
//!
//! ```text
//! s[i,j]  = softmax_scale * <q[i], k[j]>                       of the keys j that query i sees
//! lse[i]  = log(sum_j exp(s[i,j]))                             of all of them, dropped or not
//! p[i,j]  = exp(s[i,j] - lse[i])
//! out[i]  = keep_scale * sum_{j kept} p[i,j] v[j]
//!
//! delta[i] = <dout[i], out[i]> - dlse[i]                     dlse is 0 if no gradient comes through lse
//! dv[j]    = keep_scale * sum_{i kept} p[i,j] dout[i]
//! dp[i,j]  = keep_scale * <dout[i], v[j]> where kept, else 0
//! ds[i,j]  = p[i,j] * (dp[i,j] - delta[i])
//! dq[i]    = softmax_scale * sum_j ds[i,j] k[j]                dk[j] = softmax_scale * sum_i ds[i,j] q[i]
//! ```
//!
//! # Infinities and NaNs
//! - A key that a query does not see, or whose weight p is exactly 0 (its score is -inf), contributes nothing to
//!   anything of that query, whatever its k and v hold.
//! - A dropped entry contributes nothing to out and dv, even if v is NaN. It still counts in lse, and through
//!   `ds = p * (0 - delta)` in dq and dk.
//! - A query that sees no key, or whose visible scores are all -inf, has out = 0, lse = -inf and zero gradients.
//! - Anything else is plain IEEE arithmetic: a score of NaN or +inf makes the whole row NaN (exp(inf - inf)).
//!
//! # Cost
//! O(seqlen_q * seqlen_k * head_dim) a head in one thread. Memory beyond the results is one head of q, k, v and dout
//! in f64 and one row of scores.

use crate::dropout::KeepRule;
use crate::operands::{GradInputs, Inputs, check_dlse, check_read};
use crate::problem::Problem;
use crate::shape::Shape;
use crate::sign_bit::SignBit;
use crate::tensor::TensorRef;
use crate::{Element, ProblemError, TensorName};

/// What the forward gives, dense.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// (batch, seqlen_q, num_heads, head_dim).
    pub out: Vec<f64>,
    /// (batch, num_heads, seqlen_q), natural logarithm.
    pub lse: Vec<f64>,
}

/// What the backward gives, each dense and of its tensor's shape.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Gradients {
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
}

impl Forward {
    /// The rounded results that an implementation's backward is handed, for a backward from exactly those.
    pub fn of_inputs<T: Element>(inputs: &GradInputs<'_, T>) -> Self {
        Self { out: dense(&inputs.out), lse: inputs.lse.iter().copied().map(f64::from).collect() }
    }
}

/// The forward of a problem; see the [module](self) for the formulas.
///
/// ```
/// use signflash_core::{Inputs, Problem, Shape, TensorRef, oracle};
/// let shape = Shape::new(1, 1, 2).heads(1, 1).head_dim(1);
/// let problem = Problem::builder(shape).build()?;
/// let (q, k, v) = ([1.0f32], [0.0f32, f32::ln(3.0)], [4.0f32, 8.0]); // weights 1/4 and 3/4
/// let inputs = Inputs::new(
///     TensorRef::bshd(&q, shape.q()),
///     TensorRef::bshd(&k, shape.k()),
///     TensorRef::bshd(&v, shape.v()),
/// );
/// let forward = oracle::forward(&problem, &inputs)?;
/// assert!((forward.out[0] - 7.0).abs() < 1e-6);
/// assert!((forward.lse[0] - 4f64.ln()).abs() < 1e-6);
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
///
/// # Errors
/// A [`ProblemError`] naming the tensor that does not fit `problem`.
pub fn forward<T: Element>(problem: &Problem, inputs: &Inputs<'_, T>) -> Result<Forward, ProblemError> {
    inputs.check(problem)?;
    let shape = problem.shape();
    let mut out = vec![0.0; shape.q().into_iter().product()];
    let mut lse = vec![f64::NEG_INFINITY; shape.lse_len()];
    for head in Head::all(problem, inputs) {
        for i in 0..shape.seqlen_q {
            let scores = head.scores(i);
            let lse_i = log_sum_exp(&scores);
            lse[head.lse_index(i)] = lse_i;
            let out_i = row_mut(&mut out, head.query(i), shape.head_dim);
            for Weight { j, p, kept } in head.weights(i, &scores, lse_i) {
                if kept && p != 0.0 {
                    add(out_i, problem.keep_scale() * p, head.v(j));
                }
            }
        }
    }
    Ok(Forward { out, lse })
}

/// The probabilities with the dropout mask in the sign bit: (batch, num_heads, seqlen_q, seqlen_k), dense.
///
/// +0.0 where a query does not see a key. `lse` is the forward's, or that of a larger problem which this is a shard of.
///
/// ```
/// use signflash_core::{Dropout, Inputs, Problem, Shape, SignBit, TensorRef, oracle};
/// let shape = Shape::new(1, 4, 4).heads(1, 1).head_dim(2);
/// let problem = Problem::builder(shape).dropout(Dropout::new(0.5, 1, 0)?).build()?;
/// let x = [0.5f32; 8];
/// let x = TensorRef::bshd(&x, shape.q());
/// let inputs = Inputs::new(x, x, x);
/// let probs = oracle::probs(&problem, &inputs, &oracle::forward(&problem, &inputs)?.lse)?;
/// let rule = problem.keep_rule().expect("p is 0.5");
/// assert!((probs[5].probability() - 0.25).abs() < 1e-12); // four equal scores
/// assert_eq!(probs[5].is_dropped(), !rule.keep(0, 0, 1, 1));
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
///
/// # Errors
/// A [`ProblemError`] naming the tensor that does not fit `problem`.
pub fn probs<T: Element>(
    problem: &Problem,
    inputs: &Inputs<'_, T>,
    lse: &[f64],
) -> Result<Vec<f64>, ProblemError> {
    inputs.check(problem)?;
    let shape = problem.shape();
    let mut probs = vec![0.0; shape.probs().into_iter().product()];
    for head in Head::all(problem, inputs) {
        for i in 0..shape.seqlen_q {
            let row = row_mut(&mut probs, head.lse_index(i) * shape.seqlen_k, shape.seqlen_k);
            for Weight { j, p, kept } in head.weights(i, &head.scores(i), lse[head.lse_index(i)]) {
                row[j] = p.encode(!kept);
            }
        }
    }
    Ok(probs)
}

/// The gradients of `<out, dout> + <lse, dlse>`, the same entries dropped; the [module](self) has the formulas. Without
/// `dlse`, (batch, num_heads, seqlen_q), those of `<out, dout>`.
///
/// `forward` is what [`forward`] gave for the truth, or [`Forward::of_inputs`] for what the rounded results imply, or
/// the results of the whole for a shard of its keys.
///
/// ```
/// use signflash_core::{Inputs, Problem, Shape, TensorRef, oracle};
/// let shape = Shape::new(1, 1, 2).heads(1, 1).head_dim(1);
/// let problem = Problem::builder(shape).build()?;
/// let (q, k, v, dout) = ([1.0f32], [0.0f32, f32::ln(3.0)], [4.0f32, 8.0], [1.0f32]);
/// let inputs = Inputs::new(
///     TensorRef::bshd(&q, shape.q()),
///     TensorRef::bshd(&k, shape.k()),
///     TensorRef::bshd(&v, shape.v()),
/// );
/// let forward = oracle::forward(&problem, &inputs)?;
/// let dout = TensorRef::bshd(&dout, shape.out());
/// let gradients = oracle::backward(&problem, &inputs, &dout, None, &forward)?;
/// assert!((gradients.dv[1] - 0.75).abs() < 1e-6); // the weight itself
/// assert!((gradients.dk[1] - 0.75 * (8.0 - 7.0)).abs() < 1e-6); // p * (dp - delta) * q
///
/// let through_lse = oracle::backward(&problem, &inputs, &dout, Some(&[2.0]), &forward)?;
/// assert!((through_lse.dk[1] - 0.75 * (8.0 - 7.0 + 2.0)).abs() < 1e-6); // d lse / d s = p
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
///
/// # Errors
/// A [`ProblemError`] naming the tensor that does not fit `problem`.
///
/// # Panics
/// If `forward` is not of `problem`'s shape.
pub fn backward<T: Element>(
    problem: &Problem,
    inputs: &Inputs<'_, T>,
    dout: &TensorRef<'_, T>,
    dlse: Option<&[f32]>,
    forward: &Forward,
) -> Result<Gradients, ProblemError> {
    inputs.check(problem)?;
    check_read(TensorName::Dout, dout, problem.shape().out())?;
    check_dlse(problem, dlse)?;
    let shape = problem.shape();
    let (dim, dout) = (shape.head_dim, dense(dout));
    let len = |shape: [usize; 4]| shape.into_iter().product();
    let mut dq = vec![0.0; len(shape.q())];
    let mut dk = vec![0.0; len(shape.k())];
    let mut dv = vec![0.0; len(shape.k())];
    for head in Head::all(problem, inputs) {
        for i in 0..shape.seqlen_q {
            let (query, dout_i) = (head.query(i), head.query_row(i, &dout));
            let delta = dot(dout_i, head.query_row(i, &forward.out)) - head.dlse(i, dlse);
            for Weight { j, p, kept } in head.weights(i, &head.scores(i), forward.lse[head.lse_index(i)]) {
                if p == 0.0 {
                    continue;
                }
                let (key, ds) = (head.key(j), p * (head.dp(j, kept, dout_i) - delta));
                add(row_mut(&mut dq, query, dim), problem.softmax_scale() * ds, head.k(j));
                add(row_mut(&mut dk, key, dim), problem.softmax_scale() * ds, head.q(i));
                if kept {
                    add(row_mut(&mut dv, key, dim), problem.keep_scale() * p, dout_i);
                }
            }
        }
    }
    Ok(Gradients { dq, dk, dv })
}

/// The logarithm of the sum of the exponentials; -inf of nothing, or of nothing but -inf.
fn log_sum_exp(scores: &[f64]) -> f64 {
    if scores.iter().all(|&s| s == f64::NEG_INFINITY) {
        return f64::NEG_INFINITY;
    }
    max_and_log_sum(scores).into_iter().sum()
}

/// The largest score, and the logarithm of the sum of the exponentials relative to it.
fn max_and_log_sum(scores: &[f64]) -> [f64; 2] {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [max, scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln()]
}

/// From this magnitude on an lse says less of a row's weights than its scores do.
const LARGE_LSE: f64 = 1024.0;

/// What to subtract from scores, one after the other, before they are exponents.
///
/// That is lse, unless it is large and the scores' own up to its rounding: to f64, or up to the contract's bound if it is a
/// number of f32. The rounding would move weights by as much as itself, at 10^9 of f32 out of all bounds; so then the scores
/// themselves say.
fn reference(scores: &[f64], lse: f64) -> [f64; 2] {
    if lse.is_finite() && lse.abs() >= LARGE_LSE {
        let own = max_and_log_sum(scores);
        let rounding = if f64::from(lse as f32) == lse { 1e-6 } else { 4.0 * f64::EPSILON };
        if (own[0] + own[1] - lse).abs() <= rounding * lse.abs() {
            return own;
        }
    }
    [lse, 0.0]
}

/// `exp(s - lse)`; 0 in a row without weights.
fn weight(score: f64, [base, log_sum]: [f64; 2]) -> f64 {
    if base == f64::NEG_INFINITY { 0.0 } else { (score - base - log_sum).exp() }
}

/// A key that a query sees.
pub(crate) struct Weight {
    pub(crate) j: usize,
    pub(crate) p: f64,
    pub(crate) kept: bool,
}

/// One (batch, query head) with its operands in f64.
pub(crate) struct Head<'a> {
    problem: &'a Problem,
    keep: Option<KeepRule>,
    batch: usize,
    head: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl<'a> Head<'a> {
    /// All heads in the order of (batch, num_heads).
    pub(crate) fn all<T: Element>(
        problem: &'a Problem,
        inputs: &'a Inputs<'a, T>,
    ) -> impl Iterator<Item = Head<'a>> {
        let Shape { batch, num_heads, seqlen_q, .. } = *problem.shape();
        // Without queries nothing is to be done, however many heads there are.
        let batch = if seqlen_q == 0 { 0 } else { batch };
        let heads = (0..batch).flat_map(move |b| (0..num_heads).map(move |h| (b, h)));
        heads.map(move |(batch, head)| {
            let head_k = head / problem.shape().group_size();
            let matrix = |x: &TensorRef<'_, T>, head| {
                let [_, rows, _, dim] = x.shape;
                let entries = (0..rows).flat_map(|s| (0..dim).map(move |d| [batch, s, head, d]));
                entries.map(|index| x.at(index).to_f64()).collect()
            };
            Head {
                problem,
                keep: problem.keep_rule(),
                batch,
                head,
                q: matrix(&inputs.q, head),
                k: matrix(&inputs.k, head_k),
                v: matrix(&inputs.v, head_k),
            }
        })
    }

    /// The same with other operands.
    pub(crate) fn map(&self, change: fn(f64) -> f64) -> Self {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| x.iter().map(|&x| change(x)).collect());
        Head { q, k, v, ..*self }
    }

    pub(crate) fn q(&self, i: usize) -> &[f64] {
        row(&self.q, i, self.problem.shape().head_dim)
    }

    pub(crate) fn k(&self, j: usize) -> &[f64] {
        row(&self.k, j, self.problem.shape().head_dim)
    }

    pub(crate) fn v(&self, j: usize) -> &[f64] {
        row(&self.v, j, self.problem.shape().head_dim)
    }

    /// The scores of the keys that query i sees.
    pub(crate) fn scores(&self, i: usize) -> Vec<f64> {
        let scale = self.problem.softmax_scale();
        self.problem.visible_keys(i).map(|j| scale * dot(self.q(i), self.k(j))).collect()
    }

    /// The keys that query i sees, whose scores are these.
    pub(crate) fn weights(&self, i: usize, scores: &[f64], lse: f64) -> Vec<Weight> {
        let (visible, reference) = (self.problem.visible_keys(i), reference(scores, lse));
        let block = self.keep.map(|rule| rule.keep_block(self.batch, self.head, i..i + 1, visible.clone()));
        let kept = |n| block.as_ref().is_none_or(|block| block.keep(0, n));
        let keys = visible.zip(scores).enumerate();
        keys.map(|(n, (j, &score))| Weight { j, p: weight(score, reference), kept: kept(n) }).collect()
    }

    /// `dp[i,j]` of query i, whose dout this is.
    pub(crate) fn dp(&self, j: usize, kept: bool, dout_i: &[f64]) -> f64 {
        if kept { self.problem.keep_scale() * dot(dout_i, self.v(j)) } else { 0.0 }
    }

    /// The gradient of query i's lse: 0 if there is none.
    pub(crate) fn dlse(&self, i: usize, dlse: Option<&[f32]>) -> f64 {
        dlse.map_or(0.0, |dlse| dlse[self.lse_index(i)].into())
    }

    /// Query i of a dense tensor of q's shape.
    pub(crate) fn query_row<'x>(&self, i: usize, x: &'x [f64]) -> &'x [f64] {
        &x[self.query(i)..][..self.problem.shape().head_dim]
    }

    /// Where query i lies in a dense tensor of q's shape.
    pub(crate) fn query(&self, i: usize) -> usize {
        let Shape { seqlen_q, num_heads, head_dim, .. } = *self.problem.shape();
        ((self.batch * seqlen_q + i) * num_heads + self.head) * head_dim
    }

    /// Where key j lies in a dense tensor of k's shape.
    pub(crate) fn key(&self, j: usize) -> usize {
        let Shape { seqlen_k, num_heads_k, head_dim, .. } = *self.problem.shape();
        let head_k = self.head / self.problem.shape().group_size();
        ((self.batch * seqlen_k + j) * num_heads_k + head_k) * head_dim
    }

    /// Where query i lies in lse.
    pub(crate) fn lse_index(&self, i: usize) -> usize {
        let Shape { seqlen_q, num_heads, .. } = *self.problem.shape();
        (self.batch * num_heads + self.head) * seqlen_q + i
    }
}

/// A tensor's elements in the order of its dimensions.
pub(crate) fn dense<T: Element>(x: &TensorRef<'_, T>) -> Vec<f64> {
    let [na, nb, nc, nd] = if x.shape.contains(&0) { [0; 4] } else { x.shape };
    let mut elements = Vec::with_capacity(na * nb * nc * nd);
    for a in 0..na {
        for b in 0..nb {
            for c in 0..nc {
                elements.extend((0..nd).map(|d| x.at([a, b, c, d]).to_f64()));
            }
        }
    }
    elements
}

fn row(matrix: &[f64], i: usize, len: usize) -> &[f64] {
    &matrix[i * len..(i + 1) * len]
}

fn row_mut(x: &mut [f64], start: usize, len: usize) -> &mut [f64] {
    &mut x[start..start + len]
}

/// Eight sums side by side, so that it vectorises: most of the oracle's time is here.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_eights, b_eights) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a_eights.remainder().iter().zip(b_eights.remainder()).map(|(a, b)| a * b).sum::<f64>();
    for (a, b) in a_eights.zip(b_eights) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    rest + sums.into_iter().sum::<f64>()
}

/// `sum += factor * x`.
fn add(sum: &mut [f64], factor: f64, x: &[f64]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}
