//! Pieces of a problem, as several devices would compute them, and how their results make the whole.

use super::case::Cuts;
use super::inputs::Values;
use super::storage::index_of;
use crate::{Problem, Shape, Shard};
use std::ops::Range;

/// One piece: its place in the whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    batches: Range<usize>,
    heads: Range<usize>,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Dense results, of a piece or of the whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ForwardResults {
    pub(super) out: Vec<f64>,
    pub(super) lse: Vec<f64>,
    pub(super) probs: Vec<f64>,
}

/// All pieces; the whole alone if nothing is cut.
pub(super) fn parts(whole: &Problem, cuts: &Cuts) -> Vec<Part> {
    let Shape { batch, seqlen_q, seqlen_k, num_heads, .. } = *whole.shape();
    let mut parts = Vec::new();
    for batches in between(&cuts.batches, batch) {
        for heads in between(&cuts.heads, num_heads) {
            for rows in between(&cuts.rows, seqlen_q) {
                for columns in between(&cuts.columns, seqlen_k) {
                    // A causal piece is aligned to its own last key, which must be the last that its rows see.
                    let cut = whole.causal() && !cuts.rows.is_empty();
                    let columns = if cut { whole.visible_keys(rows.end - 1) } else { columns };
                    let (batches, heads, rows) = (batches.clone(), heads.clone(), rows.clone());
                    parts.push(Part { batches, heads, rows, columns });
                }
            }
        }
    }
    parts
}

fn between(cuts: &[usize], end: usize) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain(std::iter::once(end));
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

impl Part {
    /// The piece as a problem of its own.
    pub(super) fn problem(&self, whole: &Problem) -> Problem {
        let (shape, shard) = (whole.shape(), whole.shard());
        let [batch, seqlen_q, num_heads, head_dim] = self.q(whole).map(|range| range.len());
        let [_, seqlen_k, num_heads_k, _] = self.k(whole).map(|range| range.len());
        let shape_of_part =
            Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim);
        if shape_of_part == *shape {
            return whole.clone();
        }
        let problem = Problem::builder(shape_of_part)
            .causal(whole.causal())
            .softmax_scale(whole.softmax_scale())
            .shard(Shard {
                first_batch: shard.first_batch + self.batches.start,
                first_head: shard.first_head + self.heads.start,
                first_row: shard.first_row + self.rows.start,
                first_column: shard.first_column + self.columns.start,
                num_heads_total: shard.num_heads_total.or(Some(shape.num_heads)),
            });
        let problem = match whole.dropout() {
            Some(dropout) => problem.dropout(*dropout),
            None => problem,
        };
        problem.build().expect("a piece of a valid problem is valid")
    }

    pub(super) fn values(&self, whole: &Problem, values: &Values) -> Values {
        let (q_shape, k_shape) = (whole.shape().q(), whole.shape().k());
        Values {
            q: gather(&values.q, q_shape, &self.q(whole)),
            k: gather(&values.k, k_shape, &self.k(whole)),
            v: gather(&values.v, k_shape, &self.k(whole)),
            dout: gather(&values.dout, q_shape, &self.q(whole)),
            dlse: values.dlse.as_ref().map(|dlse| gather(dlse, lse_shape(whole), &self.lse())),
        }
    }

    /// The piece's share of out and lse.
    pub(super) fn forward(&self, whole: &Problem, out: &[f64], lse: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let out = gather(out, whole.shape().out(), &self.q(whole));
        (out, gather(lse, lse_shape(whole), &self.lse()))
    }

    /// Where in q.
    pub(super) fn q(&self, whole: &Problem) -> [Range<usize>; 4] {
        [self.batches.clone(), self.rows.clone(), self.heads.clone(), 0..whole.shape().head_dim]
    }

    /// Where in k.
    pub(super) fn k(&self, whole: &Problem) -> [Range<usize>; 4] {
        let group = whole.shape().group_size();
        let heads = self.heads.start / group..self.heads.end / group;
        [self.batches.clone(), self.columns.clone(), heads, 0..whole.shape().head_dim]
    }

    fn lse(&self) -> [Range<usize>; 4] {
        [self.batches.clone(), self.heads.clone(), self.rows.clone(), 0..1]
    }

    fn probs(&self) -> [Range<usize>; 4] {
        [self.batches.clone(), self.heads.clone(), self.rows.clone(), self.columns.clone()]
    }
}

fn lse_shape(whole: &Problem) -> [usize; 4] {
    let Shape { batch, num_heads, seqlen_q, .. } = *whole.shape();
    [batch, num_heads, seqlen_q, 1]
}

/// Pieces normalised each by itself, weighed by `exp(lse of the piece - lse of the whole)`.
pub(super) fn combine(whole: &Problem, pieces: Vec<(&Part, ForwardResults)>) -> ForwardResults {
    if let [(_, results)] = &pieces[..] {
        return results.clone();
    }
    let shape = whole.shape();
    let mut lse = vec![f64::NEG_INFINITY; shape.lse_len()];
    for (part, piece) in &pieces {
        scatter(&mut lse, lse_shape(whole), &part.lse(), &piece.lse, log_add_exp);
    }
    let mut out = vec![0.0; shape.q().into_iter().product()];
    let asked_for = pieces.iter().any(|(_, piece)| !piece.probs.is_empty());
    let mut probs = vec![0.0f64; if asked_for { shape.probs().into_iter().product() } else { 0 }];
    for (part, ForwardResults { out: out_piece, lse: lse_piece, probs: mut probs_piece }) in pieces {
        let rows = gather(&lse, lse_shape(whole), &part.lse());
        let weigh: Vec<f64> = lse_piece.iter().zip(rows).map(|(&piece, row)| weight(piece, row)).collect();
        let columns = part.columns.len();
        for (n, p) in probs_piece.iter_mut().enumerate() {
            *p *= weigh[n / columns];
        }
        let [_, rows, heads, dim] = part.q(whole).map(|range| range.len());
        let mut weighed = out_piece;
        for (n, x) in weighed.iter_mut().enumerate() {
            let [b, i, h, _] = index_of(n, [0, rows, heads, dim]);
            *x *= weigh[(b * heads + h) * rows + i];
        }
        scatter(&mut out, shape.out(), &part.q(whole), &weighed, |sum, x| sum + x);
        scatter(&mut probs, shape.probs(), &part.probs(), &probs_piece, |_, x| x);
    }
    ForwardResults { out, lse, probs }
}

/// Adds a piece's gradient, which lies at `ranges` of the whole's.
pub(super) fn add_gradient(sum: &mut [f64], shape: [usize; 4], ranges: &[Range<usize>; 4], piece: &[f64]) {
    scatter(sum, shape, ranges, piece, |sum, x| sum + x);
}

fn weight(piece: f64, whole: f64) -> f64 {
    if piece == f64::NEG_INFINITY { 0.0 } else { (piece - whole).exp() }
}

fn log_add_exp(a: f64, b: f64) -> f64 {
    let max = a.max(b);
    if max == f64::NEG_INFINITY { max } else { max + ((a - max).exp() + (b - max).exp()).ln() }
}

fn gather(dense: &[f64], shape: [usize; 4], ranges: &[Range<usize>; 4]) -> Vec<f64> {
    places(shape, ranges).map(|at| dense[at]).collect()
}

fn scatter(
    dense: &mut [f64],
    shape: [usize; 4],
    ranges: &[Range<usize>; 4],
    piece: &[f64],
    with: impl Fn(f64, f64) -> f64,
) {
    for (at, &x) in places(shape, ranges).zip(piece) {
        dense[at] = with(dense[at], x);
    }
}

/// Where the elements of a piece lie in the dense whole, in order.
fn places(shape: [usize; 4], ranges: &[Range<usize>; 4]) -> impl Iterator<Item = usize> {
    let [_, nb, nc, nd] = shape;
    let [ra, rb, rc, rd] = ranges.clone();
    ra.flat_map(move |a| {
        let (rc, rd) = (rc.clone(), rd.clone());
        rb.clone().flat_map(move |b| {
            let rd = rd.clone();
            rc.clone().flat_map(move |c| rd.clone().map(move |d| ((a * nb + b) * nc + c) * nd + d))
        })
    })
}
