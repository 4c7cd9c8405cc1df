//! Why a call was not computed.

use signflash_core::ProblemError;
use signflash_cuda::EngineError;

/// Names the argument, or what the system refused.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Of a GPU's engine, or what both engines judge alike.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No threads for the CPU's engine.
    #[error(
        "the system refused threads to compute with ({0}); allow this process more threads or memory, or set \
         RAYON_NUM_THREADS to fewer"
    )]
    Threads(String),
}

impl From<ProblemError> for CallError {
    fn from(error: ProblemError) -> Self {
        Self::Engine(error.into())
    }
}
