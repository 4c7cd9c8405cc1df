//! A generator that the layers of a model share.

use super::{Dropout, DropoutGenerator, GeneratorState};
use crate::{ProblemError, Shape};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A [`DropoutGenerator`] of which clones are the same one: the layers of a model hold one each, every call gets a
/// dropout mask of its own, and a checkpoint of the model has two numbers more.
///
/// ```
/// use signflash_core::{Shape, SharedGenerator};
/// let generator = SharedGenerator::new(42);
/// let shape = Shape::new(2, 100, 100).heads(4, 4).head_dim(64);
/// let saved = generator.state();
/// let [first, second] = [generator.clone(), generator.clone()].map(|layer| layer.next_dropout(0.1, &shape));
/// let (first, second) = (first?, second?);
/// assert_ne!(first.offset(), second.offset());
/// generator.restore(saved);
/// assert_eq!(generator.next_dropout(0.1, &shape)?, first);
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SharedGenerator(Arc<Mutex<DropoutGenerator>>);

impl SharedGenerator {
    /// A generator at offset 0.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(DropoutGenerator::new(seed))))
    }

    /// What to save to go on from here later.
    pub fn state(&self) -> GeneratorState {
        self.lock().state()
    }

    /// Goes on where `state` was saved, for all who share this generator.
    pub fn restore(&self, state: GeneratorState) {
        *self.lock() = DropoutGenerator::from_state(state);
    }

    /// As [`DropoutGenerator::next_dropout`].
    ///
    /// # Errors
    /// [`ProblemError::DropoutP`]; the state is then unchanged.
    pub fn next_dropout(&self, dropout_p: f32, whole: &Shape) -> Result<Dropout, ProblemError> {
        self.lock().next_dropout(dropout_p, whole)
    }

    fn lock(&self) -> MutexGuard<'_, DropoutGenerator> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // two numbers, which nothing leaves half written
    }
}
