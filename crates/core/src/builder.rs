//! Collects the settings of a problem, and judges them.

use crate::dropout::Dropout;
use crate::dtype::Dtype;
use crate::error::ProblemError;
use crate::lengths::{Lengths, Packed};
use crate::problem::Problem;
use crate::scores::{Bias, Scores, Slopes};
use crate::shape::{Shape, Shard};
use crate::window::Window;
use std::sync::Arc;

/// The largest head_dim of any implementation.
pub const MAX_HEAD_DIM: usize = 256;

/// The largest seqlen, batch and head count: indices must survive being doubled and multiplied by a head_dim.
pub(crate) const MAX_SIZE: usize = (u32::MAX / 2) as usize;

/// The furthest that a sequence may reach, also behind the place where it faces the other one: positions in tiles
/// that begin or end outside of it must be numbers of 32 bits with a sign.
const MAX_REACH: usize = MAX_SIZE - 1023;

/// Collects the settings of a [`Problem`]; [`build`](Self::build) judges them.
#[derive(Clone, Debug)]
pub struct ProblemBuilder {
    pub(crate) shape: Shape,
    pub(crate) lengths: Lengths,
    pub(crate) causal: bool,
    pub(crate) window: Window,
    pub(crate) softmax_scale: Option<f64>,
    pub(crate) dropout: Option<Dropout>,
    pub(crate) diagonal: Option<i64>,
    pub(crate) shard: Shard,
    pub(crate) scores: Scores,
}

impl ProblemBuilder {
    /// Another shape than the one it was started with.
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Whether query i sees only keys `j <= i + diagonal`, whatever the [`window`](Self::window)'s right side. Default:
    /// it sees all of the window.
    pub fn causal(mut self, causal: bool) -> Self {
        self.causal = causal;
        self
    }

    /// How many keys a query sees before the one that it faces, and how many behind; `None` for all there are. Default:
    /// all.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape, Span};
    /// let shape = Shape::new(1, 3, 8).heads(1, 1).head_dim(16);
    /// let window = Problem::builder(shape).window(Some(1), Some(0)).build()?.visibility();
    /// assert_eq!(window.keys_of(0), Span { begin: 4, end: 6 }); // query 2 faces key 7
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        self.window = Window { left, right };
        self
    }

    /// Sequences of different lengths, one behind the other: sequence `b` has the queries from `cu_seqlens_q[b]` up to
    /// `cu_seqlens_q[b + 1]`, likewise its keys. The shape's batch must be 1, its lengths are those of the tensors, and
    /// lse is (1, num_heads, all queries): FlashAttention-2's layout for sequences of variable length.
    ///
    /// Each sequence attends to itself alone, with a diagonal of its own, and draws the dropout mask of its index.
    /// Queries behind the last sequence see nothing, and keys behind it are seen by none.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(16);
    /// let problem = Problem::builder(shape).causal(true).packed(&[0, 2, 5], &[0, 4, 7]).build()?;
    /// let second = problem.sequence(1).unwrap();
    /// assert_eq!((second.first_q, second.seqlen_q, second.first_k, second.seqlen_k), (2, 3, 4, 3));
    /// let refused = Problem::builder(shape).packed(&[0, 2, 6], &[0, 4, 7]).build().unwrap_err().to_string();
    /// assert!(refused.starts_with("cu_seqlens_q[2] must be at most 5, the rows of q, got 6"), "{refused}");
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn packed(mut self, cu_seqlens_q: &[u32], cu_seqlens_k: &[u32]) -> Self {
        self.lengths = Lengths::Packed(Arc::new(Packed::new(cu_seqlens_q, cu_seqlens_k)));
        self
    }

    /// So many [`packed`](Self::packed) sequences, of which only the device that computes them knows where they begin.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let problem = Problem::builder(Shape::new(1, 5, 7).heads(2, 1).head_dim(16)).packed_on_device(2).build()?;
    /// assert_eq!((problem.sequence_count(), problem.cu_seqlens()), (2, None));
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn packed_on_device(mut self, sequences: usize) -> Self {
        self.lengths = Lengths::OnDevice(sequences);
        self
    }

    /// Scores that are made of these.
    pub(crate) fn declared(mut self, scores: Scores) -> Self {
        self.scores = scores;
        self
    }

    /// Sequences that lie in a batch again.
    pub(crate) fn unpacked(mut self) -> Self {
        self.lengths = Lengths::Batch;
        self
    }

    /// The key that query 0 faces, of any sign. Default: `seqlen_k - seqlen_q`, so that the last query faces the last
    /// key.
    ///
    /// A piece of a larger problem faces the keys of the whole: a piece whose first query is `r` and whose first key
    /// is `c` in a whole of diagonal `d` has the diagonal `d + r - c`.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape, Span};
    /// // The last four of eight keys, and all eight queries.
    /// let shape = Shape::new(1, 8, 4).heads(1, 1).head_dim(16);
    /// let piece = Problem::builder(shape).causal(true).diagonal(-4).build()?;
    /// assert!(piece.visibility().keys_of(3).is_empty());
    /// assert_eq!(piece.visibility().keys_of(5), Span { begin: 0, end: 2 });
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn diagonal(mut self, diagonal: i64) -> Self {
        self.diagonal = Some(diagonal);
        self
    }

    /// The factor of the scores. Default: `1 / sqrt(head_dim)`.
    pub fn softmax_scale(mut self, scale: f64) -> Self {
        self.softmax_scale = Some(scale);
        self
    }

    /// Dropout on the probabilities. Default: none.
    pub fn dropout(mut self, dropout: Dropout) -> Self {
        self.dropout = Some(dropout);
        self
    }

    /// The position in a larger whole. Default: this is the whole.
    pub fn shard(mut self, shard: Shard) -> Self {
        self.shard = shard;
        self
    }

    /// Scores saturate: they become `softcap * tanh(score / softcap)`, before anything is added to them. `None` for
    /// none, the default.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let shape = Shape::new(1, 3, 8).heads(1, 1).head_dim(16);
    /// assert_eq!(Problem::builder(shape).softcap(50.0).build()?.softcap(), Some(50.0));
    /// let refused = Problem::builder(shape).softcap(0.0).build().unwrap_err().to_string();
    /// assert!(refused.starts_with("softcap must be positive and finite"), "{refused}");
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn softcap(mut self, softcap: impl Into<Option<f64>>) -> Self {
        self.scores.softcap = softcap.into();
        self
    }

    /// ALiBi: a score loses `slope * |i + diagonal - j|`, the more the further its key is from the one that the query
    /// faces. The slopes are an [input](crate::ScoreInputs). Default: none.
    pub fn alibi(mut self, slopes: impl Into<Option<Slopes>>) -> Self {
        self.scores.alibi = slopes.into();
        self
    }

    /// A bias of this dtype and shape is added to the scores: (1 or batch, 1 or num_heads, 1 or seqlen_q, seqlen_k), an
    /// [input](crate::ScoreInputs). Where it is -inf, a key is hidden. Default: none.
    ///
    /// With [packed](Self::packed) sequences it is (1 or sequences, 1 or num_heads, 1 or queries, keys), where query i and
    /// key j are counted from their sequence's first, and there are as many as the longest has or more. Where only the
    /// device knows the lengths, what lies beyond the bias is hidden.
    ///
    /// ```
    /// use signflash_core::{Dtype, Problem, Shape};
    /// let shape = Shape::new(2, 3, 8).heads(4, 4).head_dim(16);
    /// let problem = Problem::builder(shape).bias(Dtype::Bf16, [1, 4, 3, 8]).build()?;
    /// assert_eq!(problem.bias().map(|bias| bias.shape), Some([1, 4, 3, 8]));
    /// let refused = Problem::builder(shape).bias(Dtype::F32, [1, 2, 3, 8]).build().unwrap_err().to_string();
    /// assert_eq!(refused, "bias has shape [1, 2, 3, 8], expected its dimension 1 to be 1 or 4, num_heads");
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn bias(mut self, dtype: Dtype, shape: [usize; 4]) -> Self {
        self.scores.bias = Some(Bias { dtype, shape });
        self
    }

    /// A mask of this shape, one of a [bias](Self::bias)'s, hides the keys at which it is 0. It is an
    /// [input](crate::ScoreInputs). Default: none.
    pub fn mask(mut self, shape: [usize; 4]) -> Self {
        self.scores.mask = Some(shape);
        self
    }

    /// Whether every row has one more score, its head's sink, an [input](crate::ScoreInputs): it counts in lse and has no
    /// value. It is never hidden or dropped: of a row that sees no key lse is the sink, and out is 0. Default: no.
    pub fn sinks(mut self, sinks: bool) -> Self {
        self.scores.sinks = sinks;
        self
    }

    /// The problem, if it makes sense.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the first argument that does not.
    pub fn build(self) -> Result<Problem, ProblemError> {
        let Self { shape, lengths, causal, mut window, softmax_scale, dropout, diagonal, shard, scores } =
            self;
        if causal {
            window.right = Some(0);
        }
        check_sizes(&shape)?;
        check_shard(&shape, &shard)?;
        check_diagonal(&shape, window, diagonal)?;
        check_lengths(&shape, &lengths, diagonal, &shard)?;
        scores.check(&shape, &lengths)?;
        let softmax_scale = softmax_scale.unwrap_or_else(|| 1.0 / (shape.head_dim as f64).sqrt());
        if !softmax_scale.is_finite() || !(softmax_scale as f32).is_finite() {
            return Err(ProblemError::SoftmaxScale { got: softmax_scale });
        }
        Ok(Problem { shape, lengths, window, softmax_scale, dropout, diagonal, shard, scores })
    }
}

fn check_sizes(shape: &Shape) -> Result<(), ProblemError> {
    let Shape { batch, seqlen_q, seqlen_k, num_heads, num_heads_k, head_dim, head_dim_v } = *shape;
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(ProblemError::HeadDim { got: head_dim });
    }
    if !(1..=MAX_HEAD_DIM).contains(&head_dim_v) {
        return Err(ProblemError::HeadDimV { got: head_dim_v });
    }
    if num_heads == 0 || num_heads_k == 0 || !num_heads.is_multiple_of(num_heads_k) {
        return Err(ProblemError::HeadGroups { num_heads, num_heads_k });
    }
    let sizes = [
        ("batch", batch, MAX_SIZE),
        ("seqlen_q", seqlen_q, MAX_REACH),
        ("seqlen_k", seqlen_k, MAX_REACH),
        ("num_heads", num_heads, MAX_SIZE),
    ];
    for (argument, got, max) in sizes {
        if got > max {
            return Err(ProblemError::TooLarge { argument, got, max });
        }
    }
    let rows = batch.checked_mul(num_heads).and_then(|x| x.checked_mul(seqlen_q.max(seqlen_k).max(1)));
    match rows.and_then(|x| x.checked_mul(MAX_HEAD_DIM * 4)) {
        Some(_) => Ok(()),
        None => Err(ProblemError::TooLarge {
            argument: "batch * num_heads * seqlen",
            got: usize::MAX,
            max: usize::MAX / (MAX_HEAD_DIM * 4),
        }),
    }
}

fn check_diagonal(shape: &Shape, window: Window, diagonal: Option<i64>) -> Result<(), ProblemError> {
    if let Some(got) = diagonal.filter(|got| got.unsigned_abs() > MAX_SIZE as u64) {
        return Err(ProblemError::Diagonal { got, max: MAX_SIZE as i64 });
    }
    let (queries, keys) = (shape.seqlen_q as i64, shape.seqlen_k as i64);
    let facing = diagonal.unwrap_or(keys - queries);
    let [left, right] = window.distances();
    // The keys at which a query's begin, and end, as far as that hides some from the last, or from the first.
    let begin = left.map(|left| facing - left).filter(|begin| queries - 1 + begin > 0);
    let end = right.map(|right| facing + right).filter(|end| *end < keys - 1);
    // Kernels that hide keys on the left take those behind the last for the others.
    let end = end.or(begin.map(|_| keys));
    // Further away everything is seen, or nothing, just as well.
    let reach = |line: i64| (queries + line.clamp(0, keys)).max(keys + (-line).clamp(0, queries)) as usize;
    match [begin, end].into_iter().flatten().map(reach).max() {
        Some(got) if got > MAX_REACH => {
            let argument = "a sequence's length and the diagonal and the window together";
            Err(ProblemError::TooLarge { argument, got, max: MAX_REACH })
        }
        _ => Ok(()),
    }
}

/// Whether packed sequences fit their tensors, and what else is set.
fn check_lengths(
    shape: &Shape,
    lengths: &Lengths,
    diagonal: Option<i64>,
    shard: &Shard,
) -> Result<(), ProblemError> {
    let refuse =
        |argument, expected, got, remedy| Err(ProblemError::Packed { argument, expected, got, remedy });
    match lengths {
        Lengths::Batch => return Ok(()),
        Lengths::Packed(packed) => packed.check([shape.seqlen_q, shape.seqlen_k])?,
        Lengths::OnDevice(sequences) if *sequences > MAX_SIZE => {
            return Err(ProblemError::TooLarge { argument: "sequences", got: *sequences, max: MAX_SIZE });
        }
        Lengths::OnDevice(_) => {}
    }
    if shape.batch != 1 {
        return refuse("batch", "1", shape.batch as i64, "all sequences lie in the rows of one");
    }
    if let Some(diagonal) = diagonal {
        return refuse(
            "diagonal",
            "left out",
            diagonal,
            "each sequence has one of its own, seqlen_k - seqlen_q",
        );
    }
    for (argument, got) in [("shard.first_row", shard.first_row), ("shard.first_column", shard.first_column)]
    {
        if got > 0 {
            return refuse(argument, "0", got as i64, "cut by sequences or by heads instead");
        }
    }
    Ok(())
}

fn check_shard(shape: &Shape, shard: &Shard) -> Result<(), ProblemError> {
    let named = [
        ("shard.first_batch", shard.first_batch),
        ("shard.first_head", shard.first_head),
        ("shard.first_row", shard.first_row),
        ("shard.first_column", shard.first_column),
        ("shard.num_heads_total", shard.num_heads_total.unwrap_or(0)),
    ];
    for (argument, got) in named {
        if got > MAX_SIZE {
            return Err(ProblemError::TooLarge { argument, got, max: MAX_SIZE });
        }
    }
    let (first, end) = (shard.first_head, shard.first_head + shape.num_heads);
    match shard.num_heads_total {
        Some(total) if total < end => Err(ProblemError::ShardHeads { total, first, end }),
        None if first > 0 => Err(ProblemError::ShardHeads { total: shape.num_heads, first, end }),
        _ => Ok(()),
    }
}
