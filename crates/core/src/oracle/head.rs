//! One head of one sequence in f64, and its rows of scores.

use crate::dropout::KeepRule;
use crate::problem::Problem;
use crate::scores::{Score, ScoreInputs};
use crate::sequence::Sequence;
use crate::tensor::{TensorRef, dense_row};
use crate::visibility::Visibility;
use crate::{Element, Inputs};
use std::ops::Range;

/// From this magnitude on an lse says less of a row's weights than its scores do.
const LARGE_LSE: f64 = 1024.0;

/// Heads of operands of any dtype: what goes on with them knows f64 only, and is compiled once, here.
pub(crate) type Heads<'a> = Box<dyn Iterator<Item = Head<'a>> + 'a>;

/// One query head of one sequence with its operands.
pub(crate) struct Head<'a> {
    problem: &'a Problem,
    visibility: Visibility<i64>,
    keep: Option<KeepRule>,
    sequence: Sequence,
    operands: ScoreInputs<'a>,
    head: usize,
    head_k: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl<'a> Head<'a> {
    /// All heads in the order of (sequences, num_heads).
    pub(crate) fn all<T: Element>(problem: &'a Problem, inputs: &'a Inputs<'a, T>) -> Heads<'a> {
        let num_heads = problem.shape().num_heads;
        // Without queries nothing is to be done, however many heads there are.
        let sequences = problem.sequences().filter(|sequence| sequence.seqlen_q > 0);
        let heads = sequences.flat_map(move |sequence| (0..num_heads).map(move |head| (sequence, head)));
        Box::new(heads.map(move |(sequence, head)| {
            let head_k = head / problem.shape().group_size();
            let keys = sequence.seqlen_k;
            Head {
                problem,
                visibility: problem.visibility_in(&sequence),
                keep: problem.keep_rule(),
                operands: if problem.is_left_over(&sequence) {
                    ScoreInputs::default()
                } else {
                    inputs.scores
                },
                sequence,
                head,
                head_k,
                q: matrix(&inputs.q, (0..sequence.seqlen_q).map(|i| sequence.query(i, head))),
                k: matrix(&inputs.k, (0..keys).map(|j| sequence.key(j, head_k))),
                v: matrix(&inputs.v, (0..keys).map(|j| sequence.key(j, head_k))),
            }
        }))
    }

    /// The same with other operands.
    pub(crate) fn map(&self, change: fn(f64) -> f64) -> Self {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| x.iter().map(|&x| change(x)).collect());
        Head { q, k, v, ..*self }
    }

    /// The numbers of its queries.
    pub(crate) fn queries(&self) -> Range<usize> {
        0..self.sequence.seqlen_q
    }

    pub(crate) fn q(&self, i: usize) -> &[f64] {
        row(&self.q, i, self.problem.shape().q()[3])
    }

    pub(crate) fn k(&self, j: usize) -> &[f64] {
        row(&self.k, j, self.problem.shape().k()[3])
    }

    pub(crate) fn v(&self, j: usize) -> &[f64] {
        row(&self.v, j, self.problem.shape().v()[3])
    }

    /// The scores of the keys that query i sees.
    pub(crate) fn scores(&self, i: usize) -> Scores<'_> {
        let visible = self.visibility.keys_of(i as i64).positions();
        let seen = |j: &usize| self.is_unmasked(i, *j) && self.bias(i, *j) != f64::NEG_INFINITY;
        let score = |j| (j, self.problem.score(dot(self.q(i), self.k(j)), self.addend(i, j)));
        let scores = visible.clone().filter(seen).map(score).collect();
        Scores { head: self, query: i, visible, scores, sink: self.sink() }
    }

    /// What is added to a score.
    fn addend(&self, i: usize, j: usize) -> f64 {
        let distance = (i as i64 + self.visibility.diagonal - j as i64).unsigned_abs();
        let slope = self.operands.alibi_slopes.map_or(0.0, |slopes| {
            f64::from(slopes.at([0, 0, self.sequence.one_of(slopes.shape[2]).start, self.head]))
        });
        self.bias(i, j) - slope * distance as f64
    }

    fn bias(&self, i: usize, j: usize) -> f64 {
        self.operands.bias.map_or(0.0, |bias| bias.at(self.bias_index(bias.layout()[0], i, j)))
    }

    fn is_unmasked(&self, i: usize, j: usize) -> bool {
        self.operands.mask.is_none_or(|mask| mask.at(self.bias_index(mask.shape, i, j)) != 0)
    }

    /// Where the entry of query i and key j lies in a bias or a mask of this shape.
    pub(crate) fn bias_index(
        &self,
        [sequences, heads, queries, _]: [usize; 4],
        i: usize,
        j: usize,
    ) -> [usize; 4] {
        let own = |size, at| if size == 1 { 0 } else { at };
        [self.sequence.one_of(sequences).start, own(heads, self.head), own(queries, i), j]
    }

    /// The head's number, where sinks and their gradient have it.
    pub(crate) fn number(&self) -> usize {
        self.head
    }

    /// The score that every query has besides its keys', if there is one.
    pub(crate) fn sink(&self) -> Option<f64> {
        self.operands.sinks.map(|sinks| sinks[self.head].into())
    }

    /// `dp[i,j]` of query i, whose dout this is.
    pub(crate) fn dp(&self, j: usize, kept: bool, dout_i: &[f64]) -> f64 {
        if kept { self.problem.keep_scale() * dot(dout_i, self.v(j)) } else { 0.0 }
    }

    /// The gradient of query i's lse: 0 if there is none.
    pub(crate) fn dlse(&self, i: usize, dlse: Option<&[f32]>) -> f64 {
        dlse.map_or(0.0, |dlse| dlse[self.lse_index(i)].into())
    }

    /// Query i of a dense tensor of out's shape.
    pub(crate) fn out_row<'x>(&self, i: usize, x: &'x [f64]) -> &'x [f64] {
        &x[self.out_places(i)]
    }

    /// Where query i lies in a dense dq.
    pub(crate) fn query_places(&self, i: usize) -> Range<usize> {
        dense_row(self.problem.shape().q(), self.sequence.query(i, self.head))
    }

    /// Where query i lies in a dense out.
    pub(crate) fn out_places(&self, i: usize) -> Range<usize> {
        dense_row(self.problem.shape().out(), self.sequence.query(i, self.head))
    }

    /// Where key j lies in a dense dk.
    pub(crate) fn key_places(&self, j: usize) -> Range<usize> {
        dense_row(self.problem.shape().k(), self.sequence.key(j, self.head_k))
    }

    /// Where key j lies in a dense dv.
    pub(crate) fn value_places(&self, j: usize) -> Range<usize> {
        dense_row(self.problem.shape().v(), self.sequence.key(j, self.head_k))
    }

    /// The index of the first entry of query i in probs; of a query that sees a key.
    pub(crate) fn probs_row(&self, i: usize) -> [usize; 4] {
        self.sequence.probs(i, self.head)
    }

    /// Where query i lies in lse.
    pub(crate) fn lse_index(&self, i: usize) -> usize {
        self.sequence.lse(self.problem.shape(), i, self.head)
    }
}

/// What one query has to do with the keys that it sees.
pub(crate) struct Scores<'a> {
    head: &'a Head<'a>,
    query: usize,
    /// The keys of its window, of which a mask or a bias of -inf may hide some.
    visible: Range<usize>,
    /// Those that it sees.
    scores: Vec<(usize, Score)>,
    sink: Option<f64>,
}

/// A key that a query sees.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) j: usize,
    /// Its score.
    pub(crate) score: Score,
    /// Its probability.
    pub(crate) p: f64,
    /// Whether dropout keeps it.
    pub(crate) kept: bool,
}

impl Scores<'_> {
    /// The scores themselves, key by key.
    pub(crate) fn values(&self) -> impl Iterator<Item = f64> + Clone {
        self.scores.iter().map(|(_, score)| score.value)
    }

    /// How large what scores are made of is, of those that have a probability: less than `far_behind` below the largest.
    /// Rounding moves a score by a part of that, even if it is small itself. Where nothing is added to scores, it is the
    /// largest of them all.
    pub(crate) fn magnitude(&self, far_behind: f64) -> f64 {
        let added = self.head.operands.bias.is_some() || self.head.operands.alibi_slopes.is_some();
        let max = self.values().fold(f64::NEG_INFINITY, f64::max);
        let size = |(j, score): &(usize, Score)| match added {
            true if score.value < max - far_behind => 0.0,
            true => {
                let addend = self.head.addend(self.query, *j);
                score.value.abs().max(addend.abs()).max((score.value - addend).abs())
            }
            false => score.value.abs(),
        };
        self.scores.iter().map(size).filter(|s| s.is_finite()).fold(0.0, f64::max)
    }

    /// What counts in lse: the scores, and the sink.
    fn exponents(&self) -> impl Iterator<Item = f64> + Clone {
        self.values().chain(self.sink)
    }

    /// The logarithm of the sum of the exponentials; -inf of nothing, or of nothing but -inf.
    pub(crate) fn lse(&self) -> f64 {
        if self.exponents().all(|s| s == f64::NEG_INFINITY) {
            return f64::NEG_INFINITY;
        }
        self.max_and_log_sum().into_iter().sum()
    }

    /// The keys with their probabilities, relative to this lse.
    pub(crate) fn entries(&self, lse: f64) -> Vec<Entry> {
        let Self { head, query, visible, scores, .. } = self;
        let (stream, queries) = (head.sequence.stream, *query..query + 1);
        let kept = head.keep.map(|rule| rule.keep_block(stream, head.head, queries, visible.clone()));
        let base = self.base(lse);
        let entry = |&(j, score): &(usize, Score)| Entry {
            j,
            score,
            p: probability(score.value, base),
            kept: kept.as_ref().is_none_or(|kept| kept.keep(0, j - visible.start)),
        };
        scores.iter().map(entry).collect()
    }

    /// The probability of the sink, relative to this lse; 0 if there is none.
    pub(crate) fn sink(&self, lse: f64) -> f64 {
        self.sink.map_or(0.0, |sink| probability(sink, self.base(lse)))
    }

    /// The largest of what counts in lse, and the logarithm of the sum of the exponentials relative to it.
    fn max_and_log_sum(&self) -> [f64; 2] {
        let max = self.exponents().fold(f64::NEG_INFINITY, f64::max);
        [max, self.exponents().map(|s| (s - max).exp()).sum::<f64>().ln()]
    }

    /// What to subtract from scores, one after the other, before they are exponents.
    ///
    /// That is lse, unless it is large and the scores' own up to its rounding: to f64, or up to the contract's bound
    /// if it is a number of f32. The rounding would move probabilities by as much as itself, at 10^9 of f32 out of
    /// all bounds; so then the scores themselves say.
    fn base(&self, lse: f64) -> [f64; 2] {
        if lse.is_finite() && lse.abs() >= LARGE_LSE {
            let own = self.max_and_log_sum();
            let rounding = if f64::from(lse as f32) == lse { 1e-6 } else { 4.0 * f64::EPSILON };
            if (own[0] + own[1] - lse).abs() <= rounding * lse.abs() {
                return own;
            }
        }
        [lse, 0.0]
    }
}

/// `exp(s - lse)`; 0 in a row without any.
fn probability(score: f64, [base, log_sum]: [f64; 2]) -> f64 {
    if base == f64::NEG_INFINITY { 0.0 } else { (score - base - log_sum).exp() }
}

/// Rows of a tensor, one behind the other.
fn matrix<T: Element>(x: &TensorRef<'_, T>, rows: impl Iterator<Item = [usize; 4]>) -> Vec<f64> {
    let dim = x.shape[3];
    rows.flat_map(|[b, s, h, _]| (0..dim).map(move |d| x.at([b, s, h, d]).to_f64())).collect()
}

fn row(matrix: &[f64], i: usize, len: usize) -> &[f64] {
    &matrix[i * len..(i + 1) * len]
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
