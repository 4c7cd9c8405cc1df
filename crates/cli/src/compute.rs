//! One call of the engine, from operands in a file's layout to results in the same layout.

use crate::engine::Engine;
use crate::errors::Error;
use crate::files::{Data, FileElement, Tensor};
use crate::input::Operands;
use crate::joined;
use crate::memory;
use crate::progress::Progress;
use crate::sequences;
use crate::settings::Layout;
use signflash_core::{
    GradInputs, Gradients, Outputs, Piece, Problem, TensorMut, TensorName, contiguous_strides,
};
use std::collections::BTreeMap;
use std::ops::Range;

/// What attention gave, in the file's layout.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Results<T> {
    pub out: Vec<T>,
    pub lse: Vec<f32>,
    pub probs: Option<Vec<T>>,
    pub gradients: Option<Grads<T>>,
}

/// The gradients, in the file's layout.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Grads<T> {
    pub dq: Vec<T>,
    pub dk: Vec<T>,
    pub dv: Vec<T>,
    /// In the bias's dtype, if there is one.
    pub dbias: Option<Data>,
    /// One number a head, if there are sinks.
    pub dsinks: Option<Vec<f32>>,
}

/// An engine and how it is to be used.
#[derive(Clone, Copy, Debug)]
pub struct Compute<'a> {
    /// The engine.
    pub engine: &'a Engine,
    /// What to compute.
    pub problem: &'a Problem,
    /// How operands and results are stored.
    pub layout: Layout,
    /// Whether to show no progress.
    pub quiet: bool,
}

impl Compute<'_> {
    /// The forward, and the backward if there is a dout.
    ///
    /// # Errors
    /// [`Error::Problem`], [`Error::Memory`].
    pub fn run<T: FileElement>(&self, operands: &Operands<T>, probs: bool) -> Result<Results<T>, Error> {
        let Self { engine, problem, layout, quiet } = *self;
        let shape = problem.shape();
        let [len_q, len_k, len_v, len_out] = [shape.q(), shape.k(), shape.v(), shape.out()].map(len);
        let len_probs = len(problem.probs());
        let bytes = |elements: &[usize]| {
            elements.iter().fold(0u64, |sum, &n| sum.saturating_add(n.saturating_mul(size_of::<T>()) as u64))
        };
        let mut needed = bytes(&[len_out]).saturating_add(4 * shape.lse_len() as u64);
        if operands.dout.is_some() {
            needed = needed.saturating_add(bytes(&[len_q, len_k, len_v]));
        }
        memory::check(
            "holding the results (out, lse, dq, dk, dv)",
            needed,
            "split the batch, or use a larger machine",
        )?;
        if probs {
            memory::check(
                "probs (--probs, or signbit to --verify)",
                needed.saturating_add(bytes(&[len_probs])),
                "leave it out, or use a larger machine",
            )?;
        }
        let mut out = vec![T::default(); len_out];
        let mut lse = vec![0.0; shape.lse_len()];
        let mut probs = probs.then(|| vec![T::default(); len_probs]);
        let inputs = operands.inputs(problem, layout);
        let progress = Progress::spinner("forward", quiet);
        let mut outputs = Outputs::new(layout.view_mut(&mut out, shape.out()), &mut lse)
            .probs(probs.as_mut().map(|probs| TensorMut::bshd(probs, problem.probs())));
        engine.forward(problem, &inputs, &mut outputs)?;
        drop(progress);
        let gradients = match operands.dout(problem, layout) {
            None => None,
            Some(dout) => {
                let _progress = Progress::spinner("backward", quiet);
                let mut grads = Grads {
                    dq: vec![T::default(); len_q],
                    dk: vec![T::default(); len_k],
                    dv: vec![T::default(); len_v],
                    dbias: joined::room_for_dbias(problem),
                    dsinks: problem.sinks().then(|| vec![0.0; shape.num_heads]),
                };
                let out = layout.view(&out, shape.out());
                engine.backward(
                    problem,
                    &GradInputs::new(inputs, out, &lse, dout).dlse(operands.dlse.as_deref()),
                    &mut Gradients::new(
                        layout.view_mut(&mut grads.dq, shape.q()),
                        layout.view_mut(&mut grads.dk, shape.k()),
                        layout.view_mut(&mut grads.dv, shape.v()),
                    )
                    .dbias(grads.dbias.as_mut().and_then(|dbias| joined::dbias(problem, dbias)))
                    .dsinks(grads.dsinks.as_deref_mut()),
                )?;
                Some(grads)
            }
        };
        Ok(Results { out, lse, probs, gradients })
    }

    /// The sign-encoded probabilities of some rows of one head, (rows, seqlen_k), without computing the others. Of packed
    /// sequences rows and keys are those of the tensors, and each row has zeros where the keys are another sequence's.
    ///
    /// # Errors
    /// [`Error::Problem`].
    pub fn probs_rows<T: FileElement>(
        &self,
        operands: &Operands<T>,
        (batch, head): (usize, usize),
        rows: Range<usize>,
    ) -> Result<Vec<T>, Error> {
        let (whole, seqlen_k) = (self.problem, self.problem.shape().seqlen_k);
        let all_inputs = operands.inputs(whole, self.layout);
        let mut probs = vec![T::default(); rows.len() * seqlen_k];
        for (sequence, own) in sequences::among(whole, batch, rows.clone()) {
            let alone = whole.alone(&sequence)?;
            // What none of them sees stays 0.
            let seen = alone.visibility().keys_of_all(own.start as i64, own.end as i64 - 1).some.positions();
            if seen.is_empty() {
                continue;
            }
            // Sinks go with the first keys.
            let seen = if whole.sinks() { 0..seen.end } else { seen };
            let first =
                (sequence.first_q + own.start - rows.start) * seqlen_k + sequence.first_k + seen.start;
            let piece = Piece { heads: head..head + 1, rows: own, columns: seen, ..Piece::of(&alone) };
            let part = alone.piece(&piece)?;
            let inputs = piece.inputs(&alone, &sequence.inputs(whole, &all_inputs));
            let shape = part.shape();
            let (mut out, mut lse) = (vec![T::default(); len(shape.out())], vec![0.0; shape.lse_len()]);
            let strides = contiguous_strides([1, 1, shape.seqlen_q, seqlen_k]);
            let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse)
                .probs(TensorMut::strided(&mut probs[first..], shape.probs(), strides));
            self.engine.forward(&part, &inputs, &mut outputs)?;
        }
        Ok(probs)
    }
}

/// Elements of a shape.
pub fn len(shape: [usize; 4]) -> usize {
    shape.into_iter().product()
}

impl<T: FileElement> Results<T> {
    /// Out of the tensors that [`into_tensors`](Self::into_tensors) made.
    pub fn from_tensors(mut tensors: BTreeMap<String, Tensor>) -> Self {
        let floats = |tensor: Option<Tensor>| tensor.and_then(|tensor| f32::take(tensor.data).ok());
        let (lse, dsinks) = (floats(tensors.remove("lse")), floats(tensors.remove("dsinks")));
        let dbias = tensors.remove("dbias").map(|dbias| dbias.data);
        let mut take = |name| tensors.remove(name).and_then(|tensor| T::take(tensor.data).ok());
        let (out, probs) = (take("out"), take("probs"));
        let gradients = match (take("dq"), take("dk"), take("dv")) {
            (Some(dq), Some(dk), Some(dv)) => Some(Grads { dq, dk, dv, dbias, dsinks }),
            _ => None,
        };
        Self { out: out.unwrap_or_default(), lse: lse.unwrap_or_default(), probs, gradients }
    }

    /// As tensors of a file.
    pub fn into_tensors(self, problem: &Problem, layout: Layout) -> BTreeMap<String, Tensor> {
        let tensor = |name, data| Tensor { shape: layout.shape_of(problem, name), data };
        let mut tensors = BTreeMap::from([
            ("out".to_string(), tensor(TensorName::Out, T::wrap(self.out))),
            ("lse".to_string(), tensor(TensorName::Lse, f32::wrap(self.lse))),
        ]);
        tensors.extend(self.probs.map(|probs| ("probs".into(), tensor(TensorName::Probs, T::wrap(probs)))));
        if let Some(Grads { dq, dk, dv, dbias, dsinks }) = self.gradients {
            tensors.extend(dbias.map(|dbias| ("dbias".into(), tensor(TensorName::Dbias, dbias))));
            tensors.extend(
                dsinks.map(|dsinks| ("dsinks".into(), tensor(TensorName::Dsinks, f32::wrap(dsinks)))),
            );
            for (name, like, data) in
                [("dq", TensorName::Dq, dq), ("dk", TensorName::Dk, dk), ("dv", TensorName::Dv, dv)]
            {
                tensors.insert(name.into(), tensor(like, T::wrap(data)));
            }
        }
        tensors
    }
}
