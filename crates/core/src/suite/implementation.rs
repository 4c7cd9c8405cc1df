//! What the suite asks of an implementation, and the slowest one.

use crate::{
    Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, SignBit, TensorMut, TensorRef, oracle,
};

/// Why a call failed, in the implementation's own words.
pub type RunError = Box<dyn std::error::Error>;

/// Something that computes attention. See [`test_implementation`](crate::test_implementation) for a whole one.
pub trait Implementation {
    /// Its name in failures.
    fn name(&self) -> String;

    /// Whether it takes this problem, and if not why. A case that is not supported is skipped, and says so.
    ///
    /// # Errors
    /// The reason.
    fn supports(&self, dtype: Dtype, problem: &Problem) -> Result<(), String> {
        let _ = (dtype, problem);
        Ok(())
    }

    /// Whether two backwards of the same operands are the same to the bit; the forward always is.
    fn has_deterministic_backward(&self) -> bool {
        true
    }

    /// Whether a NaN or an infinity may reach results from which a weight of 0 should keep it, as on tensor cores,
    /// where 0 * NaN is NaN. The cases that place such values are then skipped.
    fn spreads_non_finite(&self) -> bool {
        false
    }

    /// Up to which magnitude of lse its probs and its backward have p, if they recompute it from an lse in f32, as
    /// GPUs do. There the suite allows for lse's rounding, which changes p by up to 2^-23 of lse. Probs and gradients
    /// to which a row beyond contributes must be NaN, or right all the same. `None` asks for what is right at any
    /// size.
    fn largest_lse_of_p(&self) -> Option<f64> {
        None
    }

    /// How far apart the sizes are that [scores of any size](super::check_binades) are tried at, in powers of two: 1,
    /// or more where every call takes long.
    fn binades_apart(&self) -> usize {
        1
    }

    /// Writes every element of `outputs`, and nothing else of their storage.
    ///
    /// # Errors
    /// Any is a failure of the case.
    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError>;

    /// Writes every element of `gradients`, and nothing else of their storage.
    ///
    /// # Errors
    /// Any is a failure of the case.
    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError>;
}

/// The oracle, its results rounded to the dtype: no implementation of that dtype can be closer.
///
/// ```
/// use signflash_core::suite::{self, Reference};
/// suite::check("length_2", &Reference);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Implementation for Reference {
    fn name(&self) -> String {
        "reference".to_string()
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        outputs.check(problem)?;
        let oracle::Forward { out, lse } = oracle::forward(problem, inputs)?;
        if let Some(probs) = &mut outputs.probs {
            write(probs, &oracle::probs(problem, inputs, &lse)?);
        }
        write(&mut outputs.out, &out);
        for (to, from) in outputs.lse.iter_mut().zip(lse) {
            *to = from as f32;
        }
        Ok(())
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        inputs.check(problem)?;
        gradients.check(problem)?;
        let forward = oracle::Forward::of_inputs(inputs);
        let oracle::Gradients { dq, dk, dv, dbias, dsinks } =
            oracle::backward(problem, &inputs.inputs, &inputs.dout, inputs.dlse, &forward)?;
        write(&mut gradients.dq, &dq);
        write(&mut gradients.dk, &dk);
        write(&mut gradients.dv, &dv);
        if let Some(bias) = &mut gradients.dbias {
            let [shape, _] = bias.layout();
            dbias
                .iter()
                .enumerate()
                .for_each(|(n, &x)| bias.set(super::storage::index_of(n, shape), x as f32));
        }
        for (to, from) in gradients.dsinks.iter_mut().flat_map(|dsinks| dsinks.iter_mut()).zip(dsinks) {
            *to = from as f32;
        }
        Ok(())
    }
}

/// Rounds dense elements into a tensor, signs of zeros and NaNs included.
fn write<T: Element>(tensor: &mut TensorMut<'_, T>, dense: &[f64]) {
    for (n, &x) in dense.iter().enumerate() {
        let index = super::storage::index_of(n, tensor.shape);
        *tensor.at_mut(index) = T::from_f32(x.probability() as f32).encode(x.is_dropped());
    }
}

/// The elements of a tensor in the order of its dimensions.
pub(super) fn read<T: Element>(tensor: &TensorRef<'_, T>) -> Vec<f64> {
    oracle::dense(tensor)
}
