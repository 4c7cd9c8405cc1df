//! The suite accepts the oracle itself, rounded. A thousand queries of as many keys, of which the oracle's loops make
//! nothing that they do not make of fewer, and f16 beside bf16, are for `SIGNFLASH_TEST=full`, which `.ci/run` sets.

use signflash_core::suite::{Implementation, Reference, RunError};
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem};

struct Oracle;

impl Implementation for Oracle {
    fn name(&self) -> String {
        Reference.name()
    }

    fn supports(&self, dtype: Dtype, problem: &Problem) -> Result<(), String> {
        let is_large = problem.shape().seqlen_q * problem.shape().seqlen_k >= 1 << 20;
        let is_full = matches!(std::env::var("SIGNFLASH_TEST").as_deref(), Ok("full" | "all"));
        if !is_full && (is_large || dtype == Dtype::F16) {
            Err("SIGNFLASH_TEST=full runs it".into())
        } else {
            Ok(())
        }
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        Reference.forward(problem, inputs, outputs)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        Reference.backward(problem, inputs, gradients)
    }
}

mod reference {
    signflash_core::test_implementation!(super::Oracle);
}
