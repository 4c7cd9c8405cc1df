//! One call: results that own their memory, and what follows from them.

use crate::engine::Engine;
use signflash_core::{
    Element, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError, TensorMut, TensorName, TensorRef,
};
use signflash_cpu::CpuEngine;

/// Attention on this machine's CPU: q is (batch, seqlen_q, num_heads, head_dim), k and v are (batch, seqlen_k,
/// num_heads_k, head_dim), each dense and of f32, f16 or bf16, with the sizes of the problem's shape.
///
/// Nothing of seqlen x seqlen is made: memory grows with the lengths, forward and backward.
///
/// ```
/// use signflash::prelude::*;
///
/// let shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(8);
/// let problem = Problem::builder(shape).dropout(Dropout::new(0.1, 42, 0)?).build()?;
/// let (q, k, v) = (vec![0.1f32; 80], vec![0.2f32; 56], vec![0.3f32; 56]);
/// let attended = attention(&problem, &q, &k, &v)?;
/// assert_eq!((attended.out.len(), attended.lse.len()), (80, 10));
/// let gradients = attended.backward(&[1.0; 80])?;
/// assert_eq!((gradients.dq.len(), gradients.dk.len(), gradients.dv.len()), (80, 56, 56));
/// # Ok::<(), ProblemError>(())
/// ```
///
/// # Errors
/// A [`ProblemError`] naming the tensor that does not have the size of its shape.
pub fn attention<'a, T: Element>(
    problem: &'a Problem,
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
) -> Result<Attended<'a, T, CpuEngine>, ProblemError> {
    let shape = problem.shape();
    let inputs = Inputs::new(
        dense(TensorName::Q, q, shape.q())?,
        dense(TensorName::K, k, shape.k())?,
        dense(TensorName::V, v, shape.v())?,
    );
    attention_with(CpuEngine::new(), problem, inputs)
}

/// Attention by an engine of your choice, of tensors with any strides whose last is 1.
///
/// ```
/// use signflash::prelude::*;
///
/// // Stored as (batch, num_heads, seqlen, head_dim).
/// let shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(8);
/// let problem = Problem::builder(shape).causal(true).build()?;
/// let (q, k) = (vec![0.1f32; 80], vec![0.2f32; 56]);
/// let k = TensorRef::bhsd(&k, shape.k());
/// let inputs = Inputs::new(TensorRef::bhsd(&q, shape.q()), k, k);
/// let one_thread = CpuEngine::new().with_threads(1);
/// let attended = attention_with(one_thread, &problem, inputs)?;
/// assert!((attended.out[0] - 0.2).abs() < 1e-6);
/// # Ok::<(), ProblemError>(())
/// ```
///
/// # Errors
/// What does not fit the problem, by name, or what the engine does not compute.
pub fn attention_with<'a, T: Element, E: Engine>(
    engine: E,
    problem: &'a Problem,
    inputs: Inputs<'a, T>,
) -> Result<Attended<'a, T, E>, E::Error> {
    let shape = problem.shape();
    let (mut out, mut lse) = (zeros(shape.out()), vec![0.0; shape.lse_len()]);
    let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
    engine.forward(problem, &inputs, &mut outputs)?;
    Ok(Attended { out, lse, engine, problem, inputs })
}

/// What [`attention`] computed, and what it was computed of, for the backward.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Attended<'a, T, E = CpuEngine> {
    /// (batch, seqlen_q, num_heads, head_dim), dense.
    pub out: Vec<T>,
    /// (batch, num_heads, seqlen_q), dense: the natural logarithm of each row's sum of exponentials, -inf where a query
    /// sees no key.
    pub lse: Vec<f32>,
    engine: E,
    problem: &'a Problem,
    inputs: Inputs<'a, T>,
}

/// Gradients, dense: dq (batch, seqlen_q, num_heads, head_dim), dk and dv (batch, seqlen_k, num_heads_k, head_dim).
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct Grads<T> {
    pub dq: Vec<T>,
    pub dk: Vec<T>,
    pub dv: Vec<T>,
}

impl<T: Element, E: Engine> Attended<'_, T, E> {
    /// The gradients of a loss whose gradient of `out` is `dout`, dense and of `out`'s shape. What the forward dropped
    /// is drawn again from the problem's seed.
    ///
    /// # Errors
    /// A [`ProblemError`] if `dout` has another size, or the engine's.
    pub fn backward(&self, dout: &[T]) -> Result<Grads<T>, E::Error> {
        self.backward_of(dout, None)
    }

    /// The same if the loss depends on `lse`, too: `dlse` is its gradient, (batch, num_heads, seqlen_q), dense.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_with_dlse(&self, dout: &[T], dlse: &[f32]) -> Result<Grads<T>, E::Error> {
        self.backward_of(dout, Some(dlse))
    }

    /// The probabilities, (batch, num_heads, seqlen_q, seqlen_k), dense, negative where dropped; read them with
    /// [`Probs`](signflash_core::Probs). They are computed by a second forward, and are the only thing here whose memory
    /// grows with the square of the length.
    ///
    /// # Errors
    /// The engine's.
    pub fn probs(&self) -> Result<Vec<T>, E::Error> {
        let shape = self.problem.shape();
        let (mut out, mut lse) = (zeros(shape.out()), vec![0.0; shape.lse_len()]);
        let mut probs = zeros(shape.probs());
        let outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
        let mut outputs = outputs.probs(TensorMut::bshd(&mut probs, shape.probs()));
        self.engine.forward(self.problem, &self.inputs, &mut outputs)?;
        Ok(probs)
    }

    fn backward_of(&self, dout: &[T], dlse: Option<&[f32]>) -> Result<Grads<T>, E::Error> {
        let shape = self.problem.shape();
        let out = TensorRef::bshd(&self.out, shape.out());
        let dout = dense(TensorName::Dout, dout, shape.out())?;
        let inputs = GradInputs::new(self.inputs, out, &self.lse, dout).dlse(dlse);
        let (mut dq, mut dk, mut dv) = (zeros(shape.q()), zeros(shape.k()), zeros(shape.v()));
        let mut gradients = Gradients::new(
            TensorMut::bshd(&mut dq, shape.q()),
            TensorMut::bshd(&mut dk, shape.k()),
            TensorMut::bshd(&mut dv, shape.v()),
        );
        self.engine.backward(self.problem, &inputs, &mut gradients)?;
        Ok(Grads { dq, dk, dv })
    }
}

fn zeros<T: Element>(shape: [usize; 4]) -> Vec<T> {
    vec![T::default(); shape.iter().product()]
}

/// A dense tensor that fills its slice: one that is longer was made for another shape.
fn dense<T>(tensor: TensorName, data: &[T], shape: [usize; 4]) -> Result<TensorRef<'_, T>, ProblemError> {
    if data.len() == shape.iter().product::<usize>() {
        return Ok(TensorRef::bshd(data, shape));
    }
    let (expected, got) = (shape.to_vec(), vec![data.len()]);
    let meaning = "(batch, seqlen, num_heads, head_dim), dense";
    Err(ProblemError::Shape { tensor, expected, got, meaning })
}
