//! One call: results that own their memory, and what follows from them.

use crate::engine::Engine;
use signflash_core::{
    BiasGrad, Element, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError, TensorMut, TensorName,
    TensorRef,
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

/// Attention by an engine of your choice, of tensors with any strides whose last is 1, and of what else scores are made
/// of ([`Inputs::scores`](signflash_core::Inputs::scores)).
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

/// Gradients, dense: dq (batch, seqlen_q, num_heads, head_dim), dk (batch, seqlen_k, num_heads_k, head_dim), dv (batch,
/// seqlen_k, num_heads_k, head_dim_v).
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct Grads<T> {
    pub dq: Vec<T>,
    pub dk: Vec<T>,
    pub dv: Vec<T>,
    /// Of the bias, in its shape and dtype, if it was asked for.
    pub dbias: Option<BiasGrad>,
    /// Of the sinks, (num_heads), if it was asked for.
    pub dsinks: Option<Vec<f32>>,
}

/// What a backward has to do with besides q, k, v and out; the default is nothing.
///
/// ```
/// use signflash::prelude::*;
/// use signflash::{BackwardWith, BiasGrad, BiasRef, Dtype, ScoreInputs};
///
/// let shape = Shape::new(1, 2, 3).heads(1, 1).head_dim(8);
/// let problem = Problem::builder(shape).bias(Dtype::F32, [1, 1, 2, 3]).build()?;
/// let (q, k, bias) = (vec![0.1f32; 16], vec![0.2f32; 24], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
/// let (q, k) = (TensorRef::bshd(&q, shape.q()), TensorRef::bshd(&k, shape.k()));
/// let bias = BiasRef::F32(TensorRef::bshd(&bias, [1, 1, 2, 3]));
/// let inputs = Inputs::new(q, k, k).scores(ScoreInputs::default().bias(bias));
/// let attended = attention_with(CpuEngine::new(), &problem, inputs)?;
/// let gradients = attended.backward_with(&[1.0; 16], BackwardWith { dbias: true, ..Default::default() })?;
/// assert!(matches!(gradients.dbias, Some(BiasGrad::F32(dbias)) if dbias.len() == 6));
/// # Ok::<(), ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct BackwardWith<'a> {
    /// The gradient of lse, (batch, num_heads, seqlen_q), dense, if the loss depends on it.
    pub dlse: Option<&'a [f32]>,
    /// Whether to compute the gradient of the bias, which is as large as the bias.
    pub dbias: bool,
    /// Whether to compute the gradient of the sinks.
    pub dsinks: bool,
}

impl<T: Element, E: Engine> Attended<'_, T, E> {
    /// The gradients of a loss whose gradient of `out` is `dout`, dense and of `out`'s shape. What the forward dropped
    /// is drawn again from the problem's seed.
    ///
    /// # Errors
    /// A [`ProblemError`] if `dout` has another size, or the engine's.
    pub fn backward(&self, dout: &[T]) -> Result<Grads<T>, E::Error> {
        self.backward_with(dout, BackwardWith::default())
    }

    /// The same if the loss depends on `lse`, or with the gradients of what else scores are made of.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), and if there is no such bias, or no sinks.
    pub fn backward_with(&self, dout: &[T], with: BackwardWith<'_>) -> Result<Grads<T>, E::Error> {
        let (problem, shape) = (self.problem, self.problem.shape());
        let out = TensorRef::bshd(&self.out, shape.out());
        let dout = dense(TensorName::Dout, dout, shape.out())?;
        let inputs = GradInputs::new(self.inputs, out, &self.lse, dout).dlse(with.dlse);
        let (mut dq, mut dk, mut dv) = (zeros(shape.q()), zeros(shape.k()), zeros(shape.v()));
        let missing = ProblemError::ScoreUndeclared { tensor: TensorName::Dbias };
        let bias = if with.dbias { Some(problem.bias().ok_or(missing)?) } else { None };
        let mut dbias = bias.as_ref().map(BiasGrad::zeros);
        let mut dsinks = with.dsinks.then(|| vec![0.0; shape.num_heads]);
        let mut gradients = Gradients::new(
            TensorMut::bshd(&mut dq, shape.q()),
            TensorMut::bshd(&mut dk, shape.k()),
            TensorMut::bshd(&mut dv, shape.v()),
        )
        .dbias(dbias.as_mut().zip(bias).map(|(dbias, bias)| dbias.as_mut(&bias)))
        .dsinks(dsinks.as_deref_mut());
        self.engine.backward(problem, &inputs, &mut gradients)?;
        Ok(Grads { dq, dk, dv, dbias, dsinks })
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
