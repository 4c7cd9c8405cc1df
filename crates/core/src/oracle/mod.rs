//! Attention in f64, written like the formulas: slow, and right.
//!
//! ```text
//! s[i,j]  = softmax_scale * <q[i], k[j]>                       of the keys j that query i sees
//! s[i,j]  = softcap * tanh(s[i,j] / softcap)                   if there is one
//! s[i,j] += bias[i,j] - slope * |i + diagonal - j|             if there are such; a bias of -inf hides, as a mask of 0 does
//! lse[i]  = log(exp(sink) + sum_j exp(s[i,j]))                 of all of them, dropped or not, and of the sink, if any
//! p[i,j]  = exp(s[i,j] - lse[i])
//! out[i]  = keep_scale * sum_{j kept} p[i,j] v[j]
//!
//! delta[i] = <dout[i], out[i]> - dlse[i]                     dlse is 0 if no gradient comes through lse
//! dv[j]    = keep_scale * sum_{i kept} p[i,j] dout[i]
//! dp[i,j]  = keep_scale * <dout[i], v[j]> where kept, else 0
//! ds[i,j]  = p[i,j] * (dp[i,j] - delta[i])
//! dbias    = sum of ds over what the bias is the same for      dsink = -sum_i exp(sink - lse[i]) delta[i]
//! ds[i,j] *= 1 - tanh^2                                        with a softcap
//! dq[i]    = softmax_scale * sum_j ds[i,j] k[j]                dk[j] = softmax_scale * sum_i ds[i,j] q[i]
//! ```
//!
//! # Infinities and NaNs
//! - A key that a query does not see, or whose weight p is exactly 0 (its score is -inf), contributes nothing to
//!   anything of that query, whatever its k and v hold.
//! - A dropped entry contributes nothing to out and dv, even if v is NaN. It still counts in lse, and through
//!   `ds = p * (0 - delta)` in dq and dk.
//! - A query that sees no key, or whose visible scores are all -inf, has out = 0, lse = -inf (or its sink) and zero
//!   gradients.
//! - Anything else is plain IEEE arithmetic: a score of NaN or +inf makes the whole row NaN (exp(inf - inf)).
//!
//! # Cost
//! O(seqlen_q * seqlen_k * head_dim) a head in one thread. Memory beyond the results is one head of q, k, v and dout
//! in f64 and one row of scores.

mod head;

use crate::operands::{GradInputs, Inputs, check_dlse, check_read};
use crate::problem::Problem;
use crate::sign_bit::SignBit;
use crate::tensor::{TensorRef, dense_row};
use crate::{Element, ProblemError, TensorName};
pub(crate) use head::{Entry, Head, Heads, dot};

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
#[non_exhaustive]
pub struct Gradients {
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
    /// Empty if there is no bias.
    pub dbias: Vec<f64>,
    /// Empty if there are no sinks.
    pub dsinks: Vec<f64>,
}

impl Gradients {
    /// Of a problem, all 0.
    pub(crate) fn zeros(problem: &Problem) -> Self {
        let zeros = |tensor| vec![0.0; problem.shape_of(tensor).into_iter().product()];
        Self {
            dq: zeros(TensorName::Dq),
            dk: zeros(TensorName::Dk),
            dv: zeros(TensorName::Dv),
            dbias: zeros(TensorName::Dbias),
            dsinks: if problem.sinks() { zeros(TensorName::Dsinks) } else { Vec::new() },
        }
    }

    /// Those that there are, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (TensorName, &Vec<f64>)> {
        let Self { dq, dk, dv, dbias, dsinks } = self;
        let named = [
            (TensorName::Dq, dq),
            (TensorName::Dk, dk),
            (TensorName::Dv, dv),
            (TensorName::Dbias, dbias),
            (TensorName::Dsinks, dsinks),
        ];
        let is_there = |(tensor, x): &(TensorName, &Vec<f64>)| match tensor {
            TensorName::Dbias | TensorName::Dsinks => !x.is_empty(),
            _ => true,
        };
        named.into_iter().filter(is_there)
    }
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
    Ok(forward_of(problem, Head::all(problem, inputs)))
}

fn forward_of(problem: &Problem, heads: Heads<'_>) -> Forward {
    let shape = problem.shape();
    let mut out = vec![0.0; shape.out().into_iter().product()];
    let mut lse = vec![f64::NEG_INFINITY; shape.lse_len()];
    for head in heads {
        for i in head.queries() {
            let scores = head.scores(i);
            let lse_i = scores.lse();
            lse[head.lse_index(i)] = lse_i;
            let out_i = &mut out[head.out_places(i)];
            for Entry { j, p, kept, .. } in scores.entries(lse_i) {
                if kept && p != 0.0 {
                    add(out_i, problem.keep_scale() * p, head.v(j));
                }
            }
        }
    }
    Forward { out, lse }
}

/// The probabilities with the dropout mask in the sign bit, of the shape that [`Problem::probs`] says, dense.
///
/// +0.0 where a query does not see a key, and behind the ends of packed sequences. `lse` is the forward's, or that of a larger problem which this is a shard
/// of.
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
    Ok(probs_of(problem, Head::all(problem, inputs), lse))
}

fn probs_of(problem: &Problem, heads: Heads<'_>, lse: &[f64]) -> Vec<f64> {
    let shape = problem.probs();
    let mut probs = vec![0.0; shape.into_iter().product()];
    for head in heads {
        for i in head.queries() {
            for Entry { j, p, kept, .. } in head.scores(i).entries(lse[head.lse_index(i)]) {
                probs[dense_row(shape, head.probs_row(i)).start + j] = p.encode(!kept);
            }
        }
    }
    probs
}

/// The gradients of `<out, dout> + <lse, dlse>`, the same entries dropped; the [module](self) has the formulas.
/// Without `dlse`, (batch, num_heads, seqlen_q), those of `<out, dout>`.
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
    Ok(backward_of(problem, Head::all(problem, inputs), (&dense(dout), dlse), forward))
}

/// With the gradients of out and lse.
fn backward_of(
    problem: &Problem,
    heads: Heads<'_>,
    (dout, dlse): (&[f64], Option<&[f32]>),
    forward: &Forward,
) -> Gradients {
    let bias = problem.shape_of(TensorName::Dbias);
    let mut gradients = Gradients::zeros(problem);
    for head in heads {
        for i in head.queries() {
            let dout_i = head.out_row(i, dout);
            let delta = dot(dout_i, head.out_row(i, &forward.out)) - head.dlse(i, dlse);
            let (scores, lse_i) = (head.scores(i), forward.lse[head.lse_index(i)]);
            let p_sink = scores.sink(lse_i);
            if p_sink != 0.0 {
                gradients.dsinks[head.number()] -= p_sink * delta;
            }
            for Entry { j, score, p, kept } in scores.entries(lse_i) {
                if p == 0.0 {
                    continue;
                }
                let ds = p * (head.dp(j, kept, dout_i) - delta);
                add(&mut gradients.dq[head.query_places(i)], score.slope * ds, head.k(j));
                add(&mut gradients.dk[head.key_places(j)], score.slope * ds, head.q(i));
                if kept {
                    add(&mut gradients.dv[head.value_places(j)], problem.keep_scale() * p, dout_i);
                }
                if problem.bias().is_some() {
                    gradients.dbias[dense_index(bias, head.bias_index(bias, i, j))] += ds;
                }
            }
        }
    }
    gradients
}

/// Where an element of a dense tensor lies.
pub(crate) fn dense_index(shape: [usize; 4], index: [usize; 4]) -> usize {
    dense_row(shape, index).start + index[3]
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

/// `sum += factor * x`.
fn add(sum: &mut [f64], factor: f64, x: &[f64]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}
