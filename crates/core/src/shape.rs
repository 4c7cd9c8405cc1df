//! The sizes of a problem, and where it lies in a larger one.

use crate::error::TensorName;

/// The sizes of an attention problem.
///
/// [`new`](Self::new) leaves out heads and head_dim, which are then 0:
/// [`ProblemBuilder::build`](crate::ProblemBuilder::build) refuses a shape without them. Each size has a method that
/// returns the shape with another one.
///
/// Query head h reads key head `h / (num_heads / num_heads_k)`. batch and the lengths may be 0.
///
/// ```
/// use signflash_core::{Problem, Shape};
/// let shape = Shape::new(2, 100, 120).heads(8, 2).head_dim(64);
/// assert_eq!((shape.q(), shape.k()), ([2, 100, 8, 64], [2, 120, 2, 64]));
/// assert_eq!((shape.v(), shape.out()), (shape.k(), shape.q()));
/// assert_eq!(shape.batch(1).seqlen_q(7).q(), [1, 7, 8, 64]);
///
/// let unfinished = Problem::builder(Shape::new(2, 100, 120).heads(8, 2)).build().unwrap_err();
/// assert_eq!(unfinished.to_string(), "head_dim must be from 1 to 256, got 0");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shape {
    /// Number of independent sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub seqlen_q: usize,
    /// Keys per sequence.
    pub seqlen_k: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides num_heads.
    pub num_heads_k: usize,
    /// Elements of one query or key; 1 to 256.
    pub head_dim: usize,
    /// Elements of one value, and of a row of out; 1 to 256.
    pub head_dim_v: usize,
}

impl Shape {
    /// So many sequences of so many queries and keys each; [`heads`](Self::heads) and [`head_dim`](Self::head_dim)
    /// must follow.
    pub const fn new(batch: usize, seqlen_q: usize, seqlen_k: usize) -> Self {
        Self { batch, seqlen_q, seqlen_k, num_heads: 0, num_heads_k: 0, head_dim: 0, head_dim_v: 0 }
    }

    /// With so many query heads, and so many heads of keys and values.
    pub const fn heads(self, num_heads: usize, num_heads_k: usize) -> Self {
        Self { num_heads, num_heads_k, ..self }
    }

    /// With so many elements in a query, key or value.
    pub const fn head_dim(self, head_dim: usize) -> Self {
        Self { head_dim, head_dim_v: head_dim, ..self }
    }

    /// With so many elements in a value, and in a row of out, whatever queries and keys have.
    ///
    /// ```
    /// use signflash_core::Shape;
    /// let shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(192).head_dim_v(128);
    /// assert_eq!((shape.k(), shape.v(), shape.out()), ([1, 7, 1, 192], [1, 7, 1, 128], [1, 5, 2, 128]));
    /// ```
    pub const fn head_dim_v(self, head_dim_v: usize) -> Self {
        Self { head_dim_v, ..self }
    }

    /// With so many sequences.
    pub const fn batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// With so many queries per sequence.
    pub const fn seqlen_q(self, seqlen_q: usize) -> Self {
        Self { seqlen_q, ..self }
    }

    /// With so many keys per sequence.
    pub const fn seqlen_k(self, seqlen_k: usize) -> Self {
        Self { seqlen_k, ..self }
    }

    /// Query heads per key head.
    pub const fn group_size(&self) -> usize {
        self.num_heads / self.num_heads_k
    }

    /// The shape of q and dq: (batch, seqlen_q, num_heads, head_dim).
    pub const fn q(&self) -> [usize; 4] {
        [self.batch, self.seqlen_q, self.num_heads, self.head_dim]
    }

    /// The shape of k and dk: (batch, seqlen_k, num_heads_k, head_dim).
    pub const fn k(&self) -> [usize; 4] {
        [self.batch, self.seqlen_k, self.num_heads_k, self.head_dim]
    }

    /// The shape of v and dv: (batch, seqlen_k, num_heads_k, head_dim_v).
    pub const fn v(&self) -> [usize; 4] {
        [self.batch, self.seqlen_k, self.num_heads_k, self.head_dim_v]
    }

    /// The shape of out and dout: (batch, seqlen_q, num_heads, head_dim_v).
    pub const fn out(&self) -> [usize; 4] {
        [self.batch, self.seqlen_q, self.num_heads, self.head_dim_v]
    }

    /// The shape of probs: (batch, num_heads, seqlen_q, seqlen_k).
    pub const fn probs(&self) -> [usize; 4] {
        [self.batch, self.num_heads, self.seqlen_q, self.seqlen_k]
    }

    /// The shape of a tensor of this name; lse and dlse count as (batch, num_heads, seqlen_q, 1), slopes and sinks as
    /// (1, 1, batch, num_heads) and (1, 1, 1, num_heads). Of a bias or a mask, whose sizes may be 1 but for the last, it
    /// is the largest: [`Problem::shape_of`](crate::Problem::shape_of) says what was declared.
    ///
    /// ```
    /// use signflash_core::{Shape, TensorName};
    /// let shape = Shape::new(2, 100, 120).heads(8, 2).head_dim(64);
    /// assert_eq!(shape.of(TensorName::Dv), shape.v());
    /// assert_eq!(shape.of(TensorName::Lse), [2, 8, 100, 1]);
    /// ```
    pub const fn of(&self, tensor: TensorName) -> [usize; 4] {
        match tensor {
            TensorName::Q | TensorName::Dq => self.q(),
            TensorName::K | TensorName::Dk => self.k(),
            TensorName::V | TensorName::Dv => self.v(),
            TensorName::Out | TensorName::Dout => self.out(),
            TensorName::Lse | TensorName::Dlse => [self.batch, self.num_heads, self.seqlen_q, 1],
            TensorName::Probs | TensorName::Bias | TensorName::Mask | TensorName::Dbias => self.probs(),
            TensorName::AlibiSlopes => [1, 1, self.batch, self.num_heads],
            TensorName::Sinks | TensorName::Dsinks => [1, 1, 1, self.num_heads],
        }
    }

    /// Elements of lse, which is (batch, num_heads, seqlen_q), dense.
    pub const fn lse_len(&self) -> usize {
        self.batch * self.num_heads * self.seqlen_q
    }
}

/// Where this problem lies in a larger one, so that a piece draws the dropout mask of the whole.
///
/// Only the dropout mask depends on it: what queries see is the problem's own, whose
/// [`diagonal`](crate::ProblemBuilder::diagonal) a causal piece needs as well
/// ([`Problem::piece`](crate::Problem::piece) gives both). The default is the whole.
///
/// ```
/// use signflash_core::{Dropout, Problem, Shape, Shard};
/// let shape = Shape::new(1, 8, 8).heads(4, 4).head_dim(16);
/// let dropout = Dropout::new(0.5, 7, 0)?;
/// let whole = Problem::builder(shape).dropout(dropout).build()?;
/// // Heads 2 and 3 of the same four, on another device:
/// let shard = Shard { first_head: 2, num_heads_total: Some(4), ..Shard::default() };
/// let half = Problem::builder(shape.heads(2, 2)).dropout(dropout).shard(shard).build()?;
/// let (whole, half) = (whole.keep_rule().unwrap(), half.keep_rule().unwrap());
/// assert_eq!(whole.keep(0, 3, 5, 6), half.keep(0, 1, 5, 6));
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shard {
    /// Index in the whole of this problem's batch 0.
    pub first_batch: usize,
    /// Index in the whole of this problem's query head 0.
    pub first_head: usize,
    /// Index in the whole of this problem's query 0.
    pub first_row: usize,
    /// Index in the whole of this problem's key 0.
    pub first_column: usize,
    /// Query heads of the whole; `None` means this problem's num_heads.
    pub num_heads_total: Option<usize>,
}
