//! The suite of named cases on the GPU's kernels, run by the interpreter.

use signflash_core::suite::{Implementation, RunError};
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem};
use signflash_kernels::{Gpu, Interpreted};

/// The interpreter as one of these tests sets it up.
struct On(Interpreted);

impl Implementation for On {
    fn name(&self) -> String {
        format!("{:?}", self.0)
    }

    fn supports(&self, dtype: Dtype, _: &Problem) -> Result<(), String> {
        if dtype == Dtype::F32 { Err("the kernels are of 16-bit formats".into()) } else { Ok(()) }
    }

    fn has_deterministic_backward(&self) -> bool {
        self.0.deterministic
    }

    fn spreads_non_finite(&self) -> bool {
        true
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

/// Hopper's tiles; dq added up in any order.
mod hopper {
    use super::{Gpu, Interpreted, On};
    signflash_core::test_implementation!(On(Interpreted::new(Gpu::HOPPER)));
}

/// Another schedule, and dq in a pass of its own.
mod hopper_deterministic {
    use super::{Gpu, Interpreted, On};
    signflash_core::test_implementation!(On(Interpreted { gpu: Gpu::HOPPER, seed: 1, deterministic: true }));
}

/// The portable forward's tiles on a large GPU, as Hopper takes them for tensors that its own kernels do not.
mod ampere {
    use super::{Gpu, Interpreted, On};
    signflash_core::test_implementation!(On(Interpreted { gpu: Gpu::AMPERE, seed: 3, deterministic: false }));
}

/// The smallest GPU's tiles, one float added at a time.
mod small {
    use super::{Gpu, Interpreted, On};
    signflash_core::test_implementation!(On(Interpreted { gpu: Gpu::SMALL, seed: 2, deterministic: false }));
}
