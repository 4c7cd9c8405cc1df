//! The interpreter as an implementation that the suite's cases run on, whatever they ask for.

use signflash_core::suite::{Implementation, RunError};
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem};
use signflash_kernels::Interpreted;

/// One GPU, schedule and order of additions.
pub(crate) struct On {
    pub(crate) interpreted: Interpreted,
    /// Which cases it runs.
    pub(crate) supports: fn(&Interpreted, Dtype, &Problem) -> Result<(), String>,
    /// As [`Implementation::binades_apart`].
    pub(crate) binades_apart: usize,
}

impl On {
    /// Runs every case.
    pub(crate) fn all(interpreted: Interpreted) -> Self {
        On { interpreted, supports: |_, _, _| Ok(()), binades_apart: 1 }
    }
}

impl Implementation for On {
    fn name(&self) -> String {
        format!("{:?}", self.interpreted)
    }

    fn supports(&self, dtype: Dtype, problem: &Problem) -> Result<(), String> {
        (self.supports)(&self.interpreted, dtype, problem)
    }

    fn binades_apart(&self) -> usize {
        self.binades_apart
    }

    fn spreads_non_finite(&self) -> bool {
        true
    }

    fn has_deterministic_backward(&self) -> bool {
        self.interpreted.deterministic
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
        Ok(self.interpreted.forward(problem, inputs, outputs)?)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.interpreted.backward(problem, inputs, gradients)?)
    }
}
