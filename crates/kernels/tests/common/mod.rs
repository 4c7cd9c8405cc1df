//! The interpreter as an implementation that the suite's cases run on, whatever they ask for.

use signflash_core::suite::{Implementation, RunError};
use signflash_core::{Element, GradInputs, Gradients, Inputs, Outputs, Problem};
use signflash_kernels::Interpreted;

/// One GPU, schedule and order of additions.
pub(crate) struct On(pub(crate) Interpreted);

impl Implementation for On {
    fn name(&self) -> String {
        format!("{:?}", self.0)
    }

    fn spreads_non_finite(&self) -> bool {
        true
    }

    fn has_deterministic_backward(&self) -> bool {
        self.0.deterministic
    }

    fn largest_lse_of_p(&self) -> Option<f64> {
        Some(1_048_576.0)
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.0.forward(problem, inputs, outputs)?)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.0.backward(problem, inputs, gradients)?)
    }
}
