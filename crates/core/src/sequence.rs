//! The sequences of a problem: where each lies in its tensors.

use crate::error::TensorName;
use crate::lengths::{Lengths, Packed};
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
    /// What dropout takes for its batch: [`KeepRule::keep`](crate::KeepRule::keep) draws from there. It is the
    /// sequence's number, also in probs; that of rows behind the last of packed sequences, which have no
    /// probabilities, is the number of sequences.
    pub stream: usize,
}

impl Sequence {
    /// The `index`-th of a problem whose sequences lie in a batch.
    const fn of(shape: &Shape, index: usize) -> Self {
        let Shape { seqlen_q, seqlen_k, .. } = *shape;
        Self { batch: index, first_q: 0, first_k: 0, seqlen_q, seqlen_k, stream: index }
    }

    /// The `index`-th of packed ones; behind the last, the queries left over, and then the keys.
    fn packed(shape: &Shape, packed: &Packed, index: usize) -> Self {
        let (count, [end_q, end_k]) = (packed.count(), packed.ends());
        if index < count {
            let [[first_q, seqlen_q], [first_k, seqlen_k]] = packed.places(index);
            return Self { batch: 0, first_q, first_k, seqlen_q, seqlen_k, stream: index };
        }
        let none = Self { batch: 0, first_q: end_q, first_k: end_k, seqlen_q: 0, seqlen_k: 0, stream: count };
        match index - count {
            0 if end_q < shape.seqlen_q => Self { seqlen_q: shape.seqlen_q - end_q, ..none },
            _ => Self { seqlen_k: shape.seqlen_k - end_k, ..none },
        }
    }

    /// The index of the first element of query `i` of a head, in q, out and their gradients.
    pub const fn query(&self, i: usize, head: usize) -> [usize; 4] {
        [self.batch, self.first_q + i, head, 0]
    }

    /// The index of the first element of key `j` of a key head, in k, v and their gradients.
    pub const fn key(&self, j: usize, head_k: usize) -> [usize; 4] {
        [self.batch, self.first_k + j, head_k, 0]
    }

    /// The index of the first entry of query `i` of a head, in probs; of a sequence that has keys.
    pub const fn probs(&self, i: usize, head: usize) -> [usize; 4] {
        [self.stream, head, i, 0]
    }

    /// Where query `i` of a head lies in lse and its gradient.
    pub const fn lse(&self, shape: &Shape, i: usize, head: usize) -> usize {
        (self.batch * shape.num_heads + head) * shape.seqlen_q + self.first_q + i
    }
}

impl Problem {
    /// The sequences, in the order in which they lie in the tensors. Where packed sequences do not fill their tensors,
    /// the queries left over follow as one without keys, and the keys left over as one without queries.
    ///
    /// # Panics
    /// If only a device knows their lengths ([`packed_on_device`](crate::ProblemBuilder::packed_on_device)), which
    /// [`Inputs::check`](crate::Inputs::check) refuses.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = Sequence> + Clone + use<> {
        let (shape, lengths) = (*self.shape(), self.lengths().clone());
        (0..self.sequence_places()).map(move |index| place(&shape, &lengths, index))
    }

    /// The `index`-th of the [`sequences`](Self::sequences); none behind the last.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let problem = Problem::builder(Shape::new(2, 5, 7).heads(3, 1).head_dim(8)).build()?;
    /// assert_eq!((problem.sequence(1), problem.sequence(2)), (problem.sequences().nth(1), None));
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    ///
    /// # Panics
    /// As [`sequences`](Self::sequences).
    pub fn sequence(&self, index: usize) -> Option<Sequence> {
        (index < self.sequence_places()).then(|| place(self.shape(), self.lengths(), index))
    }

    /// Whether these are the rows left over behind the last of packed sequences, which have no keys or no queries.
    pub fn is_left_over(&self, sequence: &Sequence) -> bool {
        sequence.stream == self.sequence_count()
    }

    /// How many sequences there are, not counting what is left over behind packed ones.
    pub fn sequence_count(&self) -> usize {
        match self.lengths() {
            Lengths::Batch => self.shape().batch,
            Lengths::Packed(packed) => packed.count(),
            Lengths::OnDevice(sequences) => *sequences,
        }
    }

    /// The shape of probs: (sequences, num_heads, queries, keys), of packed sequences as many as the longest has.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(16);
    /// let problem = Problem::builder(shape).packed(&[0, 2, 5], &[0, 4, 7]).build()?;
    /// assert_eq!(problem.probs(), [2, 2, 3, 4]);
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    ///
    /// # Panics
    /// As [`sequences`](Self::sequences).
    pub fn probs(&self) -> [usize; 4] {
        let shape = self.shape();
        match self.lengths() {
            Lengths::Batch => shape.probs(),
            Lengths::Packed(packed) => {
                let [queries, keys] = packed.longest();
                [packed.count(), shape.num_heads, queries, keys]
            }
            Lengths::OnDevice(_) => panic!("{ON_DEVICE}"),
        }
    }

    /// The shape of a tensor of this name: as [`Shape::of`] says, but for probs of packed sequences, which are as
    /// [`probs`](Self::probs) says, and for bias, mask and slopes, which are as declared (zeros if there are none).
    ///
    /// ```
    /// use signflash_core::{Problem, Shape, TensorName};
    /// let shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(16);
    /// let problem = Problem::builder(shape).packed(&[0, 2, 5], &[0, 4, 7]).build()?;
    /// assert_eq!(problem.shape_of(TensorName::Lse), [1, 2, 5, 1]);
    /// assert_eq!(problem.shape_of(TensorName::Probs), [2, 2, 3, 4]);
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    ///
    /// # Panics
    /// Of probs, as [`sequences`](Self::sequences).
    pub fn shape_of(&self, tensor: TensorName) -> [usize; 4] {
        match tensor {
            TensorName::Probs => self.probs(),
            TensorName::Bias | TensorName::Dbias => self.bias().map_or([0; 4], |bias| bias.shape),
            TensorName::Mask => self.mask().unwrap_or_default(),
            TensorName::AlibiSlopes => {
                self.scores.slopes_shape(self.sequence_count(), self.shape().num_heads)
            }
            _ => self.shape().of(tensor),
        }
    }

    /// The sequences, and what is left over.
    fn sequence_places(&self) -> usize {
        let Shape { batch, seqlen_q, seqlen_k, .. } = *self.shape();
        match self.lengths() {
            Lengths::Batch => batch,
            Lengths::Packed(packed) => {
                let [end_q, end_k] = packed.ends();
                packed.count() + usize::from(end_q < seqlen_q) + usize::from(end_k < seqlen_k)
            }
            Lengths::OnDevice(_) => panic!("{ON_DEVICE}"),
        }
    }

    /// Every query of every head of every sequence; in the order of lse, where sequences are not packed.
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

const ON_DEVICE: &str = "the lengths of these sequences lie on a device";

fn place(shape: &Shape, lengths: &Lengths, index: usize) -> Sequence {
    match lengths {
        Lengths::Packed(packed) => Sequence::packed(shape, packed, index),
        Lengths::Batch | Lengths::OnDevice(_) => Sequence::of(shape, index),
    }
}
