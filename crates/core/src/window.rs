//! How far around the key that it faces a query sees.

/// How many keys a query sees before, and behind, the one that it faces; a side that is `None` has no bound.
///
/// Query `i` faces key `i + diagonal` of its sequence, where the diagonal is `seqlen_k - seqlen_q` unless another one
/// is set: the last query faces the last key, as in FlashAttention-2, whose `window_size=(left, right)` this is, with
/// -1 for `None`. Causal attention is the window of right side 0.
///
/// ```
/// use signflash_core::{Problem, Shape, Span, Window};
/// let problem = Problem::builder(Shape::new(1, 8, 8).heads(1, 1).head_dim(16));
/// let window = problem.clone().window(Some(2), Some(1)).build()?;
/// assert_eq!(window.visibility().keys_of(5), Span { begin: 3, end: 7 });
/// let causal = problem.window(Some(2), None).causal(true).build()?;
/// assert_eq!(causal.window(), Window { left: Some(2), right: Some(0) });
/// assert_eq!(causal.visibility().keys_of(5), Span { begin: 3, end: 6 });
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Keys before the one that a query faces.
    pub left: Option<usize>,
    /// Keys behind it.
    pub right: Option<usize>,
}

impl Window {
    /// Everything.
    pub const FULL: Self = Self { left: None, right: None };
    /// What is not later.
    pub const CAUSAL: Self = Self { left: None, right: Some(0) };

    /// Its sides as the distances that [`Visibility`](crate::Visibility) counts in. No problem reaches as far as the
    /// bound at which they end.
    pub(crate) fn distances(self) -> [Option<i64>; 2] {
        const FAR: usize = 1 << 40;
        [self.left, self.right].map(|side| side.map(|side| side.min(FAR) as i64))
    }
}
