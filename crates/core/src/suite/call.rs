//! One call of an implementation: operands and results as they lie in memory, and what is asked of results before they are
//! judged.

use super::compare::Found;
use super::erased::Of;
use super::inputs::{Values, as_f32};
use super::layout::Layout;
use super::part::ForwardResults;
use super::report::Finding;
use super::scores::{BiasStorage, ScoreStorage};
use super::storage::Storage;
use crate::{
    Element, GradInputs, Gradients, Inputs, Outputs, Problem, TensorName, contiguous_strides, oracle,
};

/// The operands of one call.
pub(super) struct Call<T> {
    problem: Problem,
    q: Storage<T>,
    k: Storage<T>,
    v: Storage<T>,
    dout: Storage<T>,
    out: Storage<T>,
    lse: Vec<f32>,
    dlse: Option<Vec<f32>>,
    scores: ScoreStorage,
}

pub(super) struct ForwardBuffers<T> {
    out: Storage<T>,
    lse: Storage<f32>,
    probs: Option<Storage<T>>,
}

pub(super) struct BackwardBuffers<T> {
    dq: Storage<T>,
    dk: Storage<T>,
    dv: Storage<T>,
    dbias: Option<BiasStorage>,
    dsinks: Option<Storage<f32>>,
}

impl<T: Element> Call<T> {
    /// Of dense operands, and of the forward's dense results.
    pub(super) fn of(problem: Problem, layout: Layout, values: &Values, [out, lse]: [&[f64]; 2]) -> Self {
        let shape = problem.shape();
        let of_query = |shape, dense| Storage::holding(shape, layout.strides(shape), dense);
        let of_key = |shape, dense| Storage::holding(shape, layout.key_strides(shape), dense);
        Self {
            q: of_query(shape.q(), &values.q),
            k: of_key(shape.k(), &values.k),
            v: of_key(shape.v(), &values.v),
            dout: of_query(shape.out(), &values.dout),
            out: of_query(shape.out(), out),
            lse: as_f32(lse),
            dlse: values.dlse.as_deref().map(as_f32),
            scores: ScoreStorage::of(&problem, layout, values),
            problem,
        }
    }

    fn inputs(&self) -> Inputs<'_, T> {
        Inputs::new(self.q.tensor(), self.k.tensor(), self.v.tensor()).scores(self.scores.inputs())
    }

    pub(super) fn forward(
        &self,
        implementation: &dyn Of<T>,
        layout: Layout,
        with_probs: bool,
    ) -> Result<ForwardBuffers<T>, Found> {
        let shape = self.problem.shape();
        let (lse_shape, probs_shape) = (shape.of(TensorName::Lse), self.problem.probs());
        let mut out = Storage::poisoned(shape.out(), layout.strides(shape.out()));
        let mut lse = Storage::poisoned(lse_shape, contiguous_strides(lse_shape));
        let mut probs = with_probs.then(|| Storage::poisoned(probs_shape, layout.probs_strides(probs_shape)));
        let mut outputs = Outputs::new(out.tensor_mut(), lse.tensor_mut().data)
            .probs(probs.as_mut().map(Storage::tensor_mut));
        implementation.forward(&self.problem, &self.inputs(), &mut outputs).map_err(call_failed)?;
        written(&out, TensorName::Out)?;
        written(&lse, TensorName::Lse)?;
        probs.iter().try_for_each(|probs| written(probs, TensorName::Probs))?;
        Ok(ForwardBuffers { out, lse, probs })
    }

    pub(super) fn backward(
        &self,
        implementation: &dyn Of<T>,
        layout: Layout,
    ) -> Result<BackwardBuffers<T>, Found> {
        let shape = self.problem.shape();
        let [mut dq, mut dk, mut dv] =
            [shape.q(), shape.k(), shape.v()].map(|shape| Storage::poisoned(shape, layout.strides(shape)));
        let mut dbias = self
            .problem
            .bias()
            .map(|bias| BiasStorage::poisoned(bias.dtype, bias.shape, layout.probs_strides(bias.shape)));
        let of_sinks = shape.of(TensorName::Dsinks);
        let mut dsinks =
            self.problem.sinks().then(|| Storage::<f32>::poisoned(of_sinks, contiguous_strides(of_sinks)));
        let inputs = GradInputs::new(self.inputs(), self.out.tensor(), &self.lse, self.dout.tensor())
            .dlse(self.dlse.as_deref());
        let mut gradients = Gradients::new(dq.tensor_mut(), dk.tensor_mut(), dv.tensor_mut())
            .dbias(dbias.as_mut().map(BiasStorage::tensor_mut))
            .dsinks(dsinks.as_mut().map(|dsinks| dsinks.tensor_mut().data));
        implementation.backward(&self.problem, &inputs, &mut gradients).map_err(call_failed)?;
        written(&dq, TensorName::Dq)?;
        written(&dk, TensorName::Dk)?;
        written(&dv, TensorName::Dv)?;
        if let Some(dbias) = &dbias {
            dbias.check_written().map_err(|finding| (Some(TensorName::Dbias), finding))?;
        }
        dsinks.iter().try_for_each(|dsinks| written(dsinks, TensorName::Dsinks))?;
        Ok(BackwardBuffers { dq, dk, dv, dbias, dsinks })
    }
}

impl<T: Element> ForwardBuffers<T> {
    pub(super) fn results(&self) -> ForwardResults {
        let probs = self.probs.as_ref().map(Storage::to_dense).unwrap_or_default();
        ForwardResults { out: self.out.to_dense(), lse: self.lse.to_dense(), probs }
    }

    pub(super) fn same_bits(&self, other: &Self) -> Result<(), Found> {
        same_bits(self.out.bytes(), other.out.bytes(), TensorName::Out)?;
        same_bits(self.lse.bytes(), other.lse.bytes(), TensorName::Lse)?;
        let probs = [self, other].map(|x| x.probs.as_ref().map_or(&[][..], Storage::bytes));
        same_bits(probs[0], probs[1], TensorName::Probs)
    }
}

impl<T: Element> BackwardBuffers<T> {
    pub(super) fn gradients(&self) -> oracle::Gradients {
        oracle::Gradients {
            dq: self.dq.to_dense(),
            dk: self.dk.to_dense(),
            dv: self.dv.to_dense(),
            dbias: self.dbias.as_ref().map(BiasStorage::to_dense).unwrap_or_default(),
            dsinks: self.dsinks.as_ref().map(Storage::to_dense).unwrap_or_default(),
        }
    }

    pub(super) fn same_bits(&self, other: &Self) -> Result<(), Found> {
        same_bits(self.dq.bytes(), other.dq.bytes(), TensorName::Dq)?;
        same_bits(self.dk.bytes(), other.dk.bytes(), TensorName::Dk)?;
        same_bits(self.dv.bytes(), other.dv.bytes(), TensorName::Dv)?;
        let dbias = [self, other].map(|x| x.dbias.as_ref().map_or(&[][..], BiasStorage::bytes));
        same_bits(dbias[0], dbias[1], TensorName::Dbias)?;
        let dsinks = [self, other].map(|x| x.dsinks.as_ref().map_or(&[][..], Storage::bytes));
        same_bits(dsinks[0], dsinks[1], TensorName::Dsinks)
    }
}

fn call_failed(error: super::RunError) -> Found {
    (None, Finding::Call { message: error.to_string() })
}

fn written<T: Element>(storage: &Storage<T>, tensor: TensorName) -> Result<(), Found> {
    storage.check_written().map_err(|finding| (Some(tensor), finding))
}

fn same_bits(first: &[u8], second: &[u8], tensor: TensorName) -> Result<(), Found> {
    if first == second { Ok(()) } else { Err((Some(tensor), Finding::NotReproducible)) }
}
