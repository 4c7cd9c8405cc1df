//! The engine as an implementation that the suite's cases run on.

use signflash_core::suite::{Implementation, RunError};
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem};
use signflash_cpu::{CpuEngine, Isa, IsaError};

/// The engine as one of these tests sets it up.
pub(crate) enum Engine {
    On(Isa),
    /// The fastest, its dq of 16 bits always in a pass of its own.
    InTwoPasses,
}

impl Engine {
    fn engine(&self) -> Result<CpuEngine, IsaError> {
        match self {
            Self::On(isa) => CpuEngine::new().with_isa(*isa),
            Self::InTwoPasses => Ok(CpuEngine::new().with_partial_bytes(0)),
        }
    }
}

impl Implementation for Engine {
    fn name(&self) -> String {
        self.engine().map_or_else(|error| error.to_string(), |engine| format!("{engine:?}"))
    }

    /// A thousand queries of as many keys are slow without vector units, and are for `SIGNFLASH_TEST=full` there, which
    /// `.ci/run` sets.
    fn supports(&self, _: Dtype, problem: &Problem) -> Result<(), String> {
        let is_large = problem.shape().seqlen_q * problem.shape().seqlen_k >= 1 << 20;
        let is_full = matches!(std::env::var("SIGNFLASH_TEST").as_deref(), Ok("full" | "all"));
        if matches!(self, Self::On(Isa::Portable)) && is_large && !is_full {
            return Err("SIGNFLASH_TEST=full runs it".into());
        }
        self.engine().map(drop).map_err(|error| error.to_string())
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.engine()?.forward(problem, inputs, outputs)?)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.engine()?.backward(problem, inputs, gradients)?)
    }
}
