//! An implementation behind a pointer, so that what runs and judges cases is compiled once, in this crate, and not in every
//! test program for every type that it tests.

use super::{Implementation, RunError};
use crate::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, bf16, f16};

/// What an [`Implementation`] says of itself.
pub(super) trait Described {
    fn name(&self) -> String;
    fn supports(&self, dtype: Dtype, problem: &Problem) -> Result<(), String>;
    fn has_deterministic_backward(&self) -> bool;
    fn spreads_non_finite(&self) -> bool;
    fn largest_lse_of_p(&self) -> Option<f64>;
    fn binades_apart(&self) -> usize;
}

/// What it computes of one dtype.
pub(super) trait Of<T: Element>: Described {
    fn forward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError>;
    fn backward(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError>;
}

/// An [`Implementation`] whose type is forgotten.
pub(super) trait Erased: Of<f32> + Of<f16> + Of<bf16> {}

impl<I: Implementation> Erased for I {}

impl<I: Implementation> Described for I {
    fn name(&self) -> String {
        Implementation::name(self)
    }

    fn supports(&self, dtype: Dtype, problem: &Problem) -> Result<(), String> {
        Implementation::supports(self, dtype, problem)
    }

    fn has_deterministic_backward(&self) -> bool {
        Implementation::has_deterministic_backward(self)
    }

    fn spreads_non_finite(&self) -> bool {
        Implementation::spreads_non_finite(self)
    }

    fn largest_lse_of_p(&self) -> Option<f64> {
        Implementation::largest_lse_of_p(self)
    }

    fn binades_apart(&self) -> usize {
        Implementation::binades_apart(self)
    }
}

impl<T: Element, I: Implementation> Of<T> for I {
    fn forward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        Implementation::forward(self, problem, inputs, outputs)
    }

    fn backward(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        Implementation::backward(self, problem, inputs, gradients)
    }
}
