//! Parts of a problem that are problems themselves.

use crate::builder::MAX_SIZE;
use crate::error::{ProblemError, TensorName};
use crate::operands::Inputs;
use crate::problem::Problem;
use crate::scores::{ScoreInputs, place_of_piece};
use crate::shape::{Shape, Shard};
use crate::tensor::TensorRef;
use std::ops::Range;

/// Some batches, query heads, queries and keys of a problem, as one of several devices computes them.
///
/// ```
/// use signflash_core::{Piece, Problem, Shape, Span};
/// let whole = Problem::builder(Shape::new(1, 100, 120).heads(4, 2).head_dim(64)).causal(true).build()?;
/// // The second half of the keys, for all queries: each sees what it sees of them in the whole.
/// let keys = Piece { columns: 60..120, ..Piece::of(&whole) };
/// let half = whole.piece(&keys)?;
/// assert_eq!(half.shape().seqlen_k, 60);
/// assert_eq!(half.visibility().keys_of(50), Span { begin: 0, end: 11 }); // 60..71 of the whole
/// assert!(half.visibility().keys_of(30).is_empty());
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Of the whole's batches.
    pub batches: Range<usize>,
    /// Of its query heads: whole groups that share key heads, or some of one group.
    pub heads: Range<usize>,
    /// Of its queries.
    pub rows: Range<usize>,
    /// Of its keys.
    pub columns: Range<usize>,
}

impl Piece {
    /// All of a problem.
    pub fn of(whole: &Problem) -> Self {
        let Shape { batch, seqlen_q, seqlen_k, num_heads, .. } = *whole.shape();
        Self { batches: 0..batch, heads: 0..num_heads, rows: 0..seqlen_q, columns: 0..seqlen_k }
    }

    /// Where in a tensor of the whole it lies, by the [shape](Shape::of) of that.
    ///
    /// ```
    /// use signflash_core::{Piece, Problem, Shape, TensorName};
    /// let whole = Problem::builder(Shape::new(1, 8, 9).heads(4, 2).head_dim(16)).build()?;
    /// let piece = Piece { heads: 2..4, rows: 0..3, ..Piece::of(&whole) };
    /// assert_eq!(piece.place_in(&whole, TensorName::Q), [0..1, 0..3, 2..4, 0..16]);
    /// assert_eq!(piece.place_in(&whole, TensorName::K), [0..1, 0..9, 1..2, 0..16]);
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn place_in(&self, whole: &Problem, tensor: TensorName) -> [Range<usize>; 4] {
        let Self { batches, heads, rows, columns } = self.clone();
        let last = 0..whole.shape().of(tensor)[3];
        match tensor {
            TensorName::Q | TensorName::Dq | TensorName::Out | TensorName::Dout => {
                [batches, rows, heads, last]
            }
            TensorName::K | TensorName::V | TensorName::Dk | TensorName::Dv => {
                [batches, columns, self.heads_k(whole), last]
            }
            TensorName::Lse | TensorName::Dlse => [batches, heads, rows, last],
            TensorName::Probs if whole.is_packed() => {
                let [sequences, _, rows, columns] = whole.probs();
                [0..sequences, heads, 0..rows, 0..columns] // no piece is of less
            }
            TensorName::Probs => [batches, heads, rows, columns],
            TensorName::Bias | TensorName::Mask | TensorName::Dbias => {
                place_of_piece(whole.shape_of(tensor), self, whole.is_packed())
            }
            TensorName::AlibiSlopes => {
                let [_, _, of_sequences, _] = whole.shape_of(tensor);
                let all = of_sequences == 1 || whole.is_packed();
                [0..1, 0..1, if all { 0..of_sequences } else { batches }, heads]
            }
            TensorName::Sinks | TensorName::Dsinks => [0..1, 0..1, 0..1, heads],
        }
    }

    /// Its share of a tensor of the whole, which is not copied.
    ///
    /// ```
    /// use signflash_core::{Piece, Problem, Shape, TensorName, TensorRef};
    /// let shape = Shape::new(1, 2, 3).heads(1, 1).head_dim(2);
    /// let whole = Problem::builder(shape).build()?;
    /// let k = TensorRef::bshd(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], shape.k());
    /// let piece = Piece { columns: 1..3, ..Piece::of(&whole) };
    /// let share = piece.share(&whole, TensorName::K, &k);
    /// assert_eq!((share.shape, share.at([0, 0, 0, 1])), ([1, 2, 1, 2], 4.0));
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn share<'a, T>(
        &self,
        whole: &Problem,
        tensor: TensorName,
        x: &TensorRef<'a, T>,
    ) -> TensorRef<'a, T> {
        x.part(self.place_in(whole, tensor))
    }

    /// Its share of what the forward of the whole reads.
    pub fn inputs<'a, T>(&self, whole: &Problem, inputs: &Inputs<'a, T>) -> Inputs<'a, T> {
        Inputs::new(
            self.share(whole, TensorName::Q, &inputs.q),
            self.share(whole, TensorName::K, &inputs.k),
            self.share(whole, TensorName::V, &inputs.v),
        )
        .scores(self.scores(whole, &inputs.scores))
    }

    /// Its share of what else scores are made of. Sinks go with the first keys.
    fn scores<'a>(&self, whole: &Problem, scores: &ScoreInputs<'a>) -> ScoreInputs<'a> {
        let place = |tensor| self.place_in(whole, tensor);
        let sinks = scores.sinks.filter(|_| self.columns.start == 0);
        ScoreInputs::default()
            .alibi_slopes(scores.alibi_slopes.map(|slopes| slopes.part(place(TensorName::AlibiSlopes))))
            .bias(scores.bias.map(|bias| bias.part(place(TensorName::Bias))))
            .mask(scores.mask.map(|mask| mask.part(place(TensorName::Mask))))
            .sinks(sinks.map(|sinks| &sinks[self.heads.clone()]))
    }

    /// The key heads of its query heads.
    fn heads_k(&self, whole: &Problem) -> Range<usize> {
        let group = whole.shape().group_size();
        self.heads.start / group..self.heads.end.div_ceil(group)
    }

    fn check(&self, whole: &Problem) -> Result<(), ProblemError> {
        let all = Self::of(whole);
        let named = [
            ("piece.batches", &self.batches, all.batches.end),
            ("piece.heads", &self.heads, all.heads.end),
            ("piece.rows", &self.rows, all.rows.end),
            ("piece.columns", &self.columns, all.columns.end),
        ];
        for (argument, got, len) in named {
            if got.start > got.end || got.end > len {
                return Err(ProblemError::Piece { argument, got: got.clone(), len });
            }
        }
        // Of packed sequences only the heads can be cut: a piece is not asked where they begin.
        for (argument, range, len) in &named[2..] {
            if whole.is_packed() && (range.start, range.end) != (0, *len) {
                let (expected, got) = ("all rows", range.end as i64);
                return Err(ProblemError::Packed { argument, expected, got, remedy: "cut by heads instead" });
            }
        }
        let group = whole.shape().group_size();
        let whole_groups = self.heads.start.is_multiple_of(group) && self.heads.end.is_multiple_of(group);
        if whole_groups || self.heads_k(whole).len() == 1 {
            return Ok(());
        }
        Err(ProblemError::PieceHeads { got: self.heads.clone(), group })
    }
}

impl Problem {
    /// A piece of this problem, as a problem: its queries see of its keys what they see in the whole, and dropout keeps
    /// what it keeps there. Of several pieces of the same queries, out is the sum of theirs, weighed by
    /// `exp(lse of the piece - lse of the whole)`. Sinks, which count once, are with the piece that has the first keys.
    ///
    /// # Errors
    /// A [`ProblemError`] naming what of the piece does not lie in the whole.
    pub fn piece(&self, piece: &Piece) -> Result<Problem, ProblemError> {
        piece.check(self)?;
        let (shape, shard) = (self.shape(), self.shard());
        let of_piece = Shape::new(piece.batches.len(), piece.rows.len(), piece.columns.len())
            .heads(piece.heads.len(), piece.heads_k(self).len())
            .head_dim(shape.head_dim)
            .head_dim_v(shape.head_dim_v);
        let shard = Shard {
            first_batch: shard.first_batch + piece.batches.start,
            first_head: shard.first_head + piece.heads.start,
            first_row: shard.first_row + piece.rows.start,
            first_column: shard.first_column + piece.columns.start,
            num_heads_total: shard.num_heads_total.or(Some(shape.num_heads)),
        };
        let scores = self.scores.of_piece(piece, self.is_packed());
        let of_piece = self.to_builder().shape(of_piece).shard(shard).declared(scores);
        if self.is_packed() {
            return of_piece.build();
        }
        of_piece.diagonal(self.diagonal_of_piece(piece)).build()
    }

    /// The key of a piece that its first query faces. Where that is too far away for a problem, it is a nearer one from
    /// which everything is hidden, or nothing, just as well.
    fn diagonal_of_piece(&self, piece: &Piece) -> i64 {
        let [rows, columns] = [&piece.rows, &piece.columns];
        let diagonal = self.diagonal() + rows.start as i64 - columns.start as i64;
        if diagonal.unsigned_abs() <= MAX_SIZE as u64 {
            return diagonal;
        }
        let [left, right] = self.sides().distances().map(|side| side.unwrap_or(0));
        diagonal.clamp(-(rows.len() as i64 + right), columns.len() as i64 + left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(len: usize, diagonal: i64, [left, right]: [Option<usize>; 2]) -> Problem {
        let problem = Problem::builder(Shape::new(1, len, len).heads(1, 1).head_dim(8));
        problem.window(left, right).diagonal(diagonal).build().expect("a problem")
    }

    /// That a piece sees of its keys what it sees of them in the whole.
    fn check(whole: &Problem, rows: Range<usize>, columns: Range<usize>) {
        let piece = Piece { rows: rows.clone(), columns: columns.clone(), ..Piece::of(whole) };
        let part = whole.piece(&piece).unwrap_or_else(|error| panic!("{whole:?}, {piece:?}: {error}"));
        for (i, row) in rows.clone().enumerate() {
            for (j, column) in columns.clone().enumerate() {
                let expected = whole.visibility().keys_of(row as i64).contains(column as i64);
                let got = part.visibility().keys_of(i as i64).contains(j as i64);
                assert_eq!(got, expected, "{whole:?}, {piece:?}: query {row}, key {column}");
            }
        }
    }

    #[test]
    fn a_piece_sees_what_it_sees_in_the_whole() {
        let sides = [None, Some(0), Some(1), Some(3), Some(9)];
        let ranges = || (0..=4).flat_map(|begin| (begin..=4).map(move |end| begin..end));
        for diagonal in -9..=9 {
            for (left, right) in sides.into_iter().flat_map(|left| sides.map(|right| (left, right))) {
                let whole = square(4, diagonal, [left, right]);
                ranges().for_each(|rows| ranges().for_each(|columns| check(&whole, rows.clone(), columns)));
            }
        }
    }

    #[test]
    fn a_piece_may_lie_as_far_from_the_diagonal_as_a_problem_can() {
        let far = i64::from(i32::MAX);
        for (diagonal, side) in
            [(far, 0), (-far, 0), (far, 5), (-far, 5), (far, usize::MAX), (-far, usize::MAX)]
        {
            for window in [[None, None], [Some(side), None], [None, Some(side)], [Some(side); 2]] {
                let whole = square(6, diagonal, window);
                check(&whole, 3..6, 0..2);
                check(&whole, 0..2, 3..6);
            }
        }
    }
}
