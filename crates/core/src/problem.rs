//! What is to be computed, validated once.

use crate::builder::ProblemBuilder;
use crate::dropout::{Dropout, KeepRule};
use crate::error::ProblemError;
use crate::lengths::Lengths;
use crate::scores::Scores;
use crate::sequence::Sequence;
use crate::shape::{Shape, Shard};
use crate::visibility::Visibility;
use crate::window::Window;

/// A validated attention problem: sizes, visibility, scores, dropout, position in a larger whole.
///
/// Built by [`Problem::builder`]; what joins later becomes another method of the builder, so callers do not break.
///
/// ```
/// use signflash_core::{Dropout, Problem, Shape};
/// let shape = Shape::new(2, 100, 120).heads(8, 2).head_dim(64);
/// let problem = Problem::builder(shape).causal(true).dropout(Dropout::new(0.1, 42, 0)?).build()?;
/// assert_eq!(problem.softmax_scale(), 0.125);
/// let seen = |query| problem.visibility().keys_of(query).positions();
/// assert_eq!((seen(0), seen(99)), (0..21, 0..120)); // the last sees every key
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub(crate) shape: Shape,
    pub(crate) lengths: Lengths,
    pub(crate) window: Window,
    pub(crate) softmax_scale: f64,
    pub(crate) dropout: Option<Dropout>,
    pub(crate) diagonal: Option<i64>,
    pub(crate) shard: Shard,
    pub(crate) scores: Scores,
}

impl Problem {
    /// Starts a problem of this shape; see [`ProblemBuilder`] for what can be set.
    pub const fn builder(shape: Shape) -> ProblemBuilder {
        ProblemBuilder {
            shape,
            lengths: Lengths::Batch,
            causal: false,
            window: Window::FULL,
            softmax_scale: None,
            dropout: None,
            diagonal: None,
            shard: Shard {
                first_batch: 0,
                first_head: 0,
                first_row: 0,
                first_column: 0,
                num_heads_total: None,
            },
            scores: Scores::NONE,
        }
    }

    /// A builder of this very problem, to make one like it: what is not set again stays, the scale of the scores too.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// let problem = Problem::builder(Shape::new(1, 8, 8).heads(1, 1).head_dim(64)).softmax_scale(0.5).build()?;
    /// let causal = problem.to_builder().causal(true).build()?;
    /// assert!(causal.causal() && causal.softmax_scale() == 0.5);
    /// assert_eq!(problem.to_builder().build()?, problem);
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn to_builder(&self) -> ProblemBuilder {
        let causal = self.causal();
        let Self { shape, lengths, mut window, softmax_scale, dropout, diagonal, shard, scores } =
            self.clone();
        let softmax_scale = Some(softmax_scale);
        window.right = window.right.filter(|_| !causal); // so that `causal(false)` takes it back
        ProblemBuilder { shape, lengths, causal, window, softmax_scale, dropout, diagonal, shard, scores }
    }

    /// The sizes.
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Whether a query sees nothing behind the key that it faces, whatever it sees before it.
    pub fn causal(&self) -> bool {
        self.window.right == Some(0)
    }

    /// How far around the key that it faces a query sees.
    pub const fn window(&self) -> Window {
        self.window
    }

    /// The window without the sides that hide nothing here. Where only the device knows the lengths of sequences, it
    /// keeps those that hide something in one sequence of all queries and keys.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape, Window};
    /// let shape = Shape::new(1, 8, 8).heads(1, 1).head_dim(16);
    /// let sides = |left, right| Problem::builder(shape).window(left, right).build().map(|x| x.sides());
    /// assert_eq!(sides(Some(7), Some(6))?, Window { left: None, right: Some(6) });
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn sides(&self) -> Window {
        let mut hides = [false; 2];
        let mut look = |band: Visibility<i64>| {
            if band.queries > 0 && band.keys > 0 {
                hides[0] |= band.keys_of(band.queries - 1).begin > 0;
                hides[1] |= band.keys_of(0).end < band.keys;
            }
        };
        match self.lengths {
            // The last query of any of them faces its last key, and the first sees what it sees where keys are most.
            Lengths::OnDevice(_) => {
                let Shape { seqlen_q, seqlen_k, .. } = self.shape;
                look(self.visibility_of(1, seqlen_k));
                look(self.visibility_of(seqlen_q, 1));
            }
            Lengths::Batch => look(self.visibility()),
            Lengths::Packed(_) => self.sequences().for_each(|sequence| look(self.visibility_in(&sequence))),
        }
        let Window { left, right } = self.window;
        Window { left: left.filter(|_| hides[0]), right: right.filter(|_| hides[1]) }
    }

    /// Whether sequences lie one behind the other.
    pub fn is_packed(&self) -> bool {
        self.lengths != Lengths::Batch
    }

    /// Refuses lengths that only a device knows: for whoever computes on the host.
    ///
    /// # Errors
    /// [`ProblemError::LengthsOnDevice`].
    pub fn check_lengths_known(&self) -> Result<(), ProblemError> {
        match self.lengths {
            Lengths::OnDevice(sequences) => Err(ProblemError::LengthsOnDevice { sequences }),
            Lengths::Batch | Lengths::Packed(_) => Ok(()),
        }
    }

    pub(crate) const fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// Where [`packed`](ProblemBuilder::packed) sequences begin, of queries and of keys, if they are packed and the host
    /// knows.
    pub fn cu_seqlens(&self) -> Option<[&[u32]; 2]> {
        match &self.lengths {
            Lengths::Packed(packed) => Some(packed.cu_seqlens()),
            Lengths::Batch | Lengths::OnDevice(_) => None,
        }
    }

    /// The factor of the scores.
    pub const fn softmax_scale(&self) -> f64 {
        self.softmax_scale
    }

    /// The dropout setting, as given.
    pub const fn dropout(&self) -> Option<&Dropout> {
        self.dropout.as_ref()
    }

    /// The position in a larger whole.
    pub const fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The key that query 0 faces, where sequences are not packed.
    pub const fn diagonal(&self) -> i64 {
        self.diagonal_of(self.shape.seqlen_q, self.shape.seqlen_k)
    }

    const fn diagonal_of(&self, queries: usize, keys: usize) -> i64 {
        match self.diagonal {
            Some(diagonal) => diagonal,
            None => keys as i64 - queries as i64,
        }
    }

    /// Which keys a query sees, and which queries see a key, where sequences are not packed.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape, Span};
    /// let shape = Shape::new(2, 100, 120).heads(8, 2).head_dim(64);
    /// let causal = Problem::builder(shape).causal(true).build()?.visibility();
    /// assert_eq!(causal.keys_of(0), Span { begin: 0, end: 21 }); // the last sees every key
    /// assert_eq!(causal.queries_of(119), Span { begin: 99, end: 100 });
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn visibility(&self) -> Visibility<i64> {
        self.visibility_of(self.shape.seqlen_q, self.shape.seqlen_k)
    }

    /// The same of one sequence; queries and keys are counted from its first.
    pub fn visibility_in(&self, sequence: &Sequence) -> Visibility<i64> {
        self.visibility_of(sequence.seqlen_q, sequence.seqlen_k)
    }

    fn visibility_of(&self, queries: usize, keys: usize) -> Visibility<i64> {
        let [left, right] = self.window.distances();
        Visibility {
            left,
            right,
            diagonal: self.diagonal_of(queries, keys),
            queries: queries as i64,
            keys: keys as i64,
        }
    }

    /// Which entries survive dropout; `None` if there is no dropout (none was set, or dropout_p is 0).
    pub fn keep_rule(&self) -> Option<KeepRule> {
        self.dropout
            .filter(Dropout::is_active)
            .map(|dropout| KeepRule::new(dropout, &self.shape, &self.shard))
    }

    /// The factor of kept probabilities: 1 without dropout.
    pub fn keep_scale(&self) -> f64 {
        self.dropout.map_or(1.0, |dropout| dropout.keep_scale())
    }
}
