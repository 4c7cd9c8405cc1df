//! Why a call was not computed.

use signflash_core::ProblemError;
use signflash_cpu::IsaError;
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
    /// No such instruction set, or not here.
    #[error("SIGNFLASH_ISA: {0}; leave it out for the fastest")]
    Isa(#[from] IsaError),
    /// The CPU's engine adds to nothing.
    #[error("results are added to others on a GPU only; on the CPU add what the call returns")]
    Adds,
    /// A number that no sequence can begin at.
    #[error(
        "{argument}[{index}] must not be negative, got {got}; it is where a sequence begins, and the last ends"
    )]
    NegativeStart {
        /// Of queries, or of keys.
        argument: &'static str,
        /// Which of its numbers.
        index: usize,
        /// What came.
        got: i32,
    },
}

impl From<ProblemError> for CallError {
    fn from(error: ProblemError) -> Self {
        Self::Engine(error.into())
    }
}
