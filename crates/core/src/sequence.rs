//! The sequences of a problem: where each lies in its tensors.

use crate::problem::Problem;
use crate::shape::Shape;

/// One sequence of a problem: where its queries and keys lie in the tensors, and which random stream is its own.
///
/// Whatever goes through a problem goes through its [`sequences`](Problem::sequences), and finds rows, keys and lse
/// by what a sequence says of them. Each one attends to itself alone.
///
/// ```
/// use signflash_core::{Problem, Sequence, Shape, Span};
/// let shape = Shape::new(2, 100, 120).heads(8, 2).head_dim(64);
/// let problem = Problem::builder(shape).causal(true).build()?;
/// let second = problem.sequences().nth(1).unwrap();
/// assert_eq!((second.seqlen_q, second.seqlen_k, second.stream), (100, 120, 1));
/// assert_eq!(second.query(7, 3), [1, 7, 3, 0]); // of q, query 7 of head 3
/// assert_eq!(second.lse(&shape, 7, 3), (1 * 8 + 3) * 100 + 7);
/// assert_eq!(problem.visibility_in(&second).keys_of(0), Span { begin: 0, end: 21 });
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sequence {
    /// Its index in the first dimension of all tensors.
    pub batch: usize,
    /// Where its first query lies among the rows of q and all that is of q's kind.
    pub first_q: usize,
    /// Where its first key lies among the rows of k and all that is of k's kind.
    pub first_k: usize,
    /// Its queries.
    pub seqlen_q: usize,
    /// Its keys.
    pub seqlen_k: usize,
    /// What dropout takes for its batch: [`KeepRule::keep`](crate::KeepRule::keep) draws from there.
    pub stream: usize,
}

impl Sequence {
    /// The `index`-th of a problem whose sequences lie in a batch.
    const fn of(shape: &Shape, index: usize) -> Self {
        let Shape { seqlen_q, seqlen_k, .. } = *shape;
        Self { batch: index, first_q: 0, first_k: 0, seqlen_q, seqlen_k, stream: index }
    }

    /// The index of the first element of query `i` of a head, in q, out and their gradients.
    pub const fn query(&self, i: usize, head: usize) -> [usize; 4] {
        [self.batch, self.first_q + i, head, 0]
    }

    /// The index of the first element of key `j` of a key head, in k, v and their gradients.
    pub const fn key(&self, j: usize, head_k: usize) -> [usize; 4] {
        [self.batch, self.first_k + j, head_k, 0]
    }

    /// Where query `i` of a head lies in lse and its gradient.
    pub const fn lse(&self, shape: &Shape, i: usize, head: usize) -> usize {
        (self.batch * shape.num_heads + head) * shape.seqlen_q + self.first_q + i
    }
}

impl Problem {
    /// The sequences, in the order in which they lie in the tensors.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = Sequence> + Clone + use<> {
        let shape = *self.shape();
        (0..shape.batch).map(move |index| Sequence::of(&shape, index))
    }

    /// The `index`-th of the [`sequences`](Self::sequences); none behind the last.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let problem = Problem::builder(Shape::new(2, 5, 7).heads(3, 1).head_dim(8)).build()?;
    /// assert_eq!((problem.sequence(1), problem.sequence(2)), (problem.sequences().nth(1), None));
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn sequence(&self, index: usize) -> Option<Sequence> {
        let shape = self.shape();
        (index < shape.batch).then(|| Sequence::of(shape, index))
    }

    /// Every query of every head of every sequence, in the order of lse.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let shape = Shape::new(2, 5, 7).heads(3, 1).head_dim(8);
    /// let problem = Problem::builder(shape).build()?;
    /// let places = problem.rows().map(|(sequence, head, i)| sequence.lse(&shape, i, head));
    /// assert!(places.eq(0..shape.lse_len()));
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn rows(&self) -> impl Iterator<Item = (Sequence, usize, usize)> + use<> {
        let num_heads = self.shape().num_heads;
        // There may be very many heads of nothing.
        self.sequences().filter(|sequence| sequence.seqlen_q > 0).flat_map(move |sequence| {
            (0..num_heads).flat_map(move |head| (0..sequence.seqlen_q).map(move |i| (sequence, head, i)))
        })
    }
}
