//! What computes: one trait for the engines.

use signflash_core::{Element, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError};
use signflash_cpu::CpuEngine;

/// Something that computes attention of tensors in the host's memory. Results of different engines are within the
/// contract's bounds of each other, and the same entries are dropped.
pub trait Engine {
    /// Why it did not.
    type Error: std::error::Error + From<ProblemError>;

    /// Writes every element of `outputs`.
    ///
    /// # Errors
    /// What does not fit the problem, by name, or what this engine does not compute.
    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), Self::Error>;

    /// Writes every element of `gradients`; dropout is drawn again.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), Self::Error>;
}

macro_rules! engine {
    ($name:ty, $error:ty) => {
        impl Engine for $name {
            type Error = $error;

            fn forward<T: Element>(
                &self,
                problem: &Problem,
                inputs: &Inputs<'_, T>,
                outputs: &mut Outputs<'_, T>,
            ) -> Result<(), $error> {
                self.forward(problem, inputs, outputs)
            }

            fn backward<T: Element>(
                &self,
                problem: &Problem,
                inputs: &GradInputs<'_, T>,
                gradients: &mut Gradients<'_, T>,
            ) -> Result<(), $error> {
                self.backward(problem, inputs, gradients)
            }
        }
    };
}

engine!(CpuEngine, ProblemError);
#[cfg(feature = "cuda")]
engine!(signflash_cuda::CudaEngine, signflash_cuda::EngineError);
