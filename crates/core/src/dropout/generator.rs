//! The random state that calls share, so that no two of them draw the same dropout mask.

use super::{Dropout, LANES};
use crate::error::ProblemError;
use crate::shape::Shape;

/// Seed and offset: all there is to save of a [`DropoutGenerator`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GeneratorState {
    /// The Philox key.
    pub seed: u64,
    /// Counter blocks used so far.
    pub offset: u64,
}

/// Hands out the dropout of successive calls. The offset advances by `batch * num_heads * 32` a call, as
/// FlashAttention-2's does, so two calls never share a dropout mask; it wraps around at 2^64.
///
/// ```
/// use signflash_core::{DropoutGenerator, Shape};
/// let shape = Shape::new(2, 9, 9).heads(4, 4).head_dim(8);
/// let mut generator = DropoutGenerator::new(42);
/// let saved = generator.state();
/// let first = generator.next_dropout(0.1, &shape)?;
/// let second = generator.next_dropout(0.1, &shape)?;
/// assert_eq!((first.offset(), second.offset()), (0, 256));
/// assert_eq!(DropoutGenerator::from_state(saved).next_dropout(0.1, &shape)?, first);
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropoutGenerator {
    state: GeneratorState,
}

impl DropoutGenerator {
    /// A generator at offset 0.
    pub const fn new(seed: u64) -> Self {
        Self { state: GeneratorState { seed, offset: 0 } }
    }

    /// Goes on where `state` was saved.
    pub const fn from_state(state: GeneratorState) -> Self {
        Self { state }
    }

    /// What to save to go on from here later.
    pub const fn state(&self) -> GeneratorState {
        self.state
    }

    /// The dropout of the next call on a problem of this shape. For a shard, pass the shape of the whole: every
    /// shard's generator must advance alike. An inactive `dropout_p` of 0 draws nothing and does not advance.
    ///
    /// # Errors
    /// [`ProblemError::DropoutP`]; the state is then unchanged.
    pub fn next_dropout(&mut self, dropout_p: f32, whole: &Shape) -> Result<Dropout, ProblemError> {
        let dropout = Dropout::new(dropout_p, self.state.seed, self.state.offset)?;
        if dropout.is_active() {
            let used = (whole.batch as u64).wrapping_mul(whole.num_heads as u64).wrapping_mul(LANES as u64);
            self.state.offset = self.state.offset.wrapping_add(used);
        }
        Ok(dropout)
    }
}
