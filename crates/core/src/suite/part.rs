//! Pieces of a problem, as several devices would compute them, and how their results make the whole.

use super::case::Cuts;
use super::inputs::Values;
use super::storage::index_of;
use crate::{Piece, Problem, TensorName};
use std::ops::Range;

/// Dense results, of a piece or of the whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ForwardResults {
    pub(super) out: Vec<f64>,
    pub(super) lse: Vec<f64>,
    pub(super) probs: Vec<f64>,
}

/// All pieces; the whole alone if nothing is cut.
pub(super) fn pieces(whole: &Problem, cuts: &Cuts) -> Vec<Piece> {
    let all = Piece::of(whole);
    let mut pieces = Vec::new();
    for batches in between(&cuts.batches, all.batches.end) {
        for heads in between(&cuts.heads, all.heads.end) {
            for rows in between(&cuts.rows, all.rows.end) {
                for columns in between(&cuts.columns, all.columns.end) {
                    let (batches, heads, rows) = (batches.clone(), heads.clone(), rows.clone());
                    pieces.push(Piece { batches, heads, rows, columns });
                }
            }
        }
    }
    pieces
}

fn between(cuts: &[usize], end: usize) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain(std::iter::once(end));
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

/// The piece as a problem of its own; what is not cut stays as it is.
pub(super) fn problem_of(whole: &Problem, piece: &Piece) -> Problem {
    if *piece == Piece::of(whole) {
        return whole.clone();
    }
    whole.piece(piece).expect("cuts are at inner positions, of heads at whole groups")
}

/// The piece's share of the operands.
pub(super) fn values_of(whole: &Problem, piece: &Piece, values: &Values) -> Values {
    let share = |tensor, dense: &Vec<f64>| share_of(whole, piece, tensor, dense);
    Values {
        q: share(TensorName::Q, &values.q),
        k: share(TensorName::K, &values.k),
        v: share(TensorName::V, &values.v),
        dout: share(TensorName::Dout, &values.dout),
        dlse: values.dlse.as_ref().map(|dlse| share(TensorName::Dlse, dlse)),
        alibi_slopes: share(TensorName::AlibiSlopes, &values.alibi_slopes),
        bias: share(TensorName::Bias, &values.bias),
        mask: share(TensorName::Mask, &values.mask),
        sinks: if whole.sinks() { share(TensorName::Sinks, &values.sinks) } else { Vec::new() },
    }
}

/// The piece's share of a dense tensor of the whole.
pub(super) fn share_of(whole: &Problem, piece: &Piece, tensor: TensorName, dense: &[f64]) -> Vec<f64> {
    if dense.is_empty() {
        return Vec::new(); // a tensor that the problem does not have
    }
    places(whole.shape_of(tensor), piece.place_in(whole, tensor)).map(|at| dense[at]).collect()
}

/// Pieces normalised each by itself, weighed by `exp(lse of the piece - lse of the whole)`.
pub(super) fn combine(whole: &Problem, pieces: Vec<(&Piece, ForwardResults)>) -> ForwardResults {
    if let [(_, results)] = &pieces[..] {
        return results.clone();
    }
    let zeros = |tensor| vec![0.0; whole.shape_of(tensor).into_iter().product()];
    let mut lse = zeros(TensorName::Lse);
    lse.fill(f64::NEG_INFINITY);
    for (piece, results) in &pieces {
        merge(whole, piece, TensorName::Lse, &mut lse, &results.lse, log_add_exp);
    }
    let mut out = zeros(TensorName::Out);
    let asked_for = pieces.iter().any(|(_, results)| !results.probs.is_empty());
    let mut probs = if asked_for { zeros(TensorName::Probs) } else { Vec::new() };
    for (piece, results) in pieces {
        let ForwardResults { out: mut of_out, lse: of_lse, probs: mut of_probs } = results;
        let rows = share_of(whole, piece, TensorName::Lse, &lse);
        let weigh: Vec<f64> = of_lse.iter().zip(rows).map(|(&piece, row)| weight(piece, row)).collect();
        if !whole.is_packed() {
            // Pieces of packed sequences have whole rows.
            for (n, p) in of_probs.iter_mut().enumerate() {
                *p *= weigh[n / piece.columns.len()];
            }
        }
        let [_, rows, heads, dim] = piece.place_in(whole, TensorName::Out).map(|range| range.len());
        for (n, x) in of_out.iter_mut().enumerate() {
            let [b, i, h, _] = index_of(n, [0, rows, heads, dim]);
            *x *= weigh[(b * heads + h) * rows + i];
        }
        add_piece(whole, piece, TensorName::Out, &mut out, &of_out);
        merge(whole, piece, TensorName::Probs, &mut probs, &of_probs, |_, x| x);
    }
    ForwardResults { out, lse, probs }
}

/// Adds a piece's part of a sum, which lies where the piece lies in the whole.
pub(super) fn add_piece(whole: &Problem, piece: &Piece, tensor: TensorName, sum: &mut [f64], part: &[f64]) {
    merge(whole, piece, tensor, sum, part, |sum, x| sum + x);
}

fn merge(
    whole: &Problem,
    piece: &Piece,
    tensor: TensorName,
    dense: &mut [f64],
    part: &[f64],
    with: fn(f64, f64) -> f64,
) {
    let places = places(whole.shape_of(tensor), piece.place_in(whole, tensor));
    for (at, &x) in places.zip(part) {
        dense[at] = with(dense[at], x);
    }
}

fn weight(piece: f64, whole: f64) -> f64 {
    if piece == f64::NEG_INFINITY { 0.0 } else { (piece - whole).exp() }
}

fn log_add_exp(a: f64, b: f64) -> f64 {
    let max = a.max(b);
    if max == f64::NEG_INFINITY { max } else { max + ((a - max).exp() + (b - max).exp()).ln() }
}

/// Where the elements of a piece lie in the dense whole, in order.
fn places(shape: [usize; 4], [ra, rb, rc, rd]: [Range<usize>; 4]) -> impl Iterator<Item = usize> {
    let [_, nb, nc, nd] = shape;
    ra.flat_map(move |a| {
        let (rc, rd) = (rc.clone(), rd.clone());
        rb.clone().flat_map(move |b| {
            let rd = rd.clone();
            rc.clone().flat_map(move |c| rd.clone().map(move |d| ((a * nb + b) * nc + c) * nd + d))
        })
    })
}
