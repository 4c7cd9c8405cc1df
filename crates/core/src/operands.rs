//! The tensors of one call, judged by name against the problem.

use crate::Element;
use crate::description::Description;
use crate::error::{ProblemError, TensorName};
use crate::problem::Problem;
use crate::scores::{BiasMut, ScoreInputs, check_gradients};
use crate::tensor::{TensorMut, TensorRef};

/// What the forward reads: q (batch, seqlen_q, num_heads, head_dim), k (batch, seqlen_k, num_heads_k, head_dim), v
/// (batch, seqlen_k, num_heads_k, head_dim_v).
///
/// ```
/// use signflash_core::{Inputs, Problem, Shape, TensorRef};
/// let shape = Shape::new(1, 2, 3).heads(4, 2).head_dim(8);
/// let problem = Problem::builder(shape).build()?;
/// let (q, k) = ([0.0f32; 64], [0.0f32; 48]);
/// let v = TensorRef::bhsd(&k, shape.v()); // each tensor has strides of its own
/// let inputs = Inputs::new(TensorRef::bshd(&q, shape.q()), TensorRef::bshd(&k, shape.k()), v);
/// inputs.check(&problem)?;
///
/// let refused = Inputs::new(inputs.q, inputs.q, inputs.v).check(&problem).unwrap_err();
/// let why = "k has shape [1, 2, 4, 8], expected [1, 3, 2, 8] (batch, seqlen, num_heads, head_dim)";
/// assert_eq!(refused.to_string(), why);
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
#[non_exhaustive]
pub struct Inputs<'a, T> {
    pub q: TensorRef<'a, T>,
    pub k: TensorRef<'a, T>,
    pub v: TensorRef<'a, T>,
    /// What scores are made of besides q and k, as the problem declares.
    pub scores: ScoreInputs<'a>,
}

/// What the forward writes: every element of these, and nothing else of their storage.
///
/// ```
/// use signflash_core::{Outputs, Problem, Shape, TensorMut};
/// let shape = Shape::new(1, 2, 3).heads(4, 2).head_dim(8);
/// let problem = Problem::builder(shape).build()?;
/// let (mut out, mut lse, mut probs) = ([0.0f32; 64], vec![0.0; shape.lse_len()], [0.0f32; 24]);
/// let outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse); // nothing of it is quadratic
/// let outputs = outputs.probs(TensorMut::bshd(&mut probs, shape.probs())); // this is
/// outputs.check(&problem)?;
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Outputs<'a, T> {
    /// (batch, seqlen_q, num_heads, head_dim_v).
    pub out: TensorMut<'a, T>,
    /// (batch, num_heads, seqlen_q), dense, natural logarithm; -inf where a query sees no key.
    pub lse: &'a mut [f32],
    /// (batch, num_heads, seqlen_q, seqlen_k), if asked for: normalised probabilities, the sign bit set where
    /// dropped.
    pub probs: Option<TensorMut<'a, T>>,
}

/// What the backward reads: the forward's inputs and results, and the gradients of `out` and, if it has one, of
/// `lse`. The dropout mask is not among them: it is drawn again from the problem's seed.
///
/// ```
/// use signflash_core::{GradInputs, Inputs, Problem, Shape, TensorRef};
/// let shape = Shape::new(1, 2, 2).heads(4, 4).head_dim(8);
/// let problem = Problem::builder(shape).build()?;
/// let (stored, lse) = ([0.0f32; 64], vec![0.0; shape.lse_len()]);
/// let x = TensorRef::bshd(&stored, shape.q());
/// let grad_inputs = GradInputs::new(Inputs::new(x, x, x), x, &lse, x);
/// grad_inputs.check(&problem)?;
///
/// let through_lse = [1.0; 8]; // of a loss that lse is part of
/// grad_inputs.dlse(&through_lse[..]).check(&problem)?;
/// let refused = grad_inputs.dlse(&through_lse[1..]).check(&problem).unwrap_err();
/// assert!(refused.to_string().starts_with("dlse has shape [7], expected [1, 4, 2]"));
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct GradInputs<'a, T> {
    /// The forward's inputs.
    pub inputs: Inputs<'a, T>,
    /// The forward's `out`.
    pub out: TensorRef<'a, T>,
    /// The forward's `lse`: (batch, num_heads, seqlen_q), dense.
    pub lse: &'a [f32],
    /// The gradient of `out`, of its shape.
    pub dout: TensorRef<'a, T>,
    /// The gradient of `lse`, of its shape, dense; `None` if the loss does not depend on `lse` but through `out`.
    /// What it holds where a query sees no key does not matter, even if it is NaN.
    pub dlse: Option<&'a [f32]>,
}

/// What the backward writes: the gradients, each of its tensor's shape; every element of them, and nothing else of
/// their storage. dk and dv of a key head sum over its query heads.
///
/// ```
/// use signflash_core::{Gradients, Problem, Shape, TensorMut};
/// let shape = Shape::new(1, 2, 3).heads(4, 2).head_dim(8);
/// let problem = Problem::builder(shape).build()?;
/// let (mut dq, mut dk, mut dv) = ([0.0f32; 64], [0.0f32; 48], [0.0f32; 48]);
/// let gradients = Gradients::new(
///     TensorMut::bshd(&mut dq, shape.q()),
///     TensorMut::bshd(&mut dk, shape.k()),
///     TensorMut::bshd(&mut dv, shape.v()),
/// );
/// gradients.check(&problem)?;
///
/// let mut one_head = [0.0f32; 24];
/// let shared = Gradients::new(
///     gradients.dq,
///     TensorMut::strided(&mut one_head, shape.k(), [24, 8, 0, 1]),
///     gradients.dv,
/// );
/// assert!(shared.check(&problem).is_err()); // read through a stride of 0, but never write
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Debug)]
#[allow(missing_docs)]
#[non_exhaustive]
pub struct Gradients<'a, T> {
    pub dq: TensorMut<'a, T>,
    pub dk: TensorMut<'a, T>,
    pub dv: TensorMut<'a, T>,
    /// The gradient of a bias, if it is asked for.
    pub dbias: Option<BiasMut<'a>>,
    /// (num_heads): the gradient of sinks, if it is asked for.
    pub dsinks: Option<&'a mut [f32]>,
}

impl<'a, T> Inputs<'a, T> {
    /// Of these three.
    pub const fn new(q: TensorRef<'a, T>, k: TensorRef<'a, T>, v: TensorRef<'a, T>) -> Self {
        Self { q, k, v, scores: ScoreInputs { alibi_slopes: None, bias: None, mask: None, sinks: None } }
    }

    /// With more that scores are made of.
    pub fn scores(self, scores: ScoreInputs<'a>) -> Self {
        Self { scores, ..self }
    }
}

impl<T: Element> Inputs<'_, T> {
    /// Judges shapes, strides and storage. An implementation calls this once and then trusts its indices.
    ///
    /// # Errors
    /// The first [`ProblemError`], naming the tensor.
    pub fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let shape = problem.shape();
        problem.check_lengths_known()?;
        check_read(TensorName::Q, &self.q, shape.q())?;
        check_read(TensorName::K, &self.k, shape.k())?;
        check_read(TensorName::V, &self.v, shape.v())?;
        self.scores.check(problem)
    }
}

impl<'a, T> Outputs<'a, T> {
    /// Of these two, without probs.
    pub const fn new(out: TensorMut<'a, T>, lse: &'a mut [f32]) -> Self {
        Self { out, lse, probs: None }
    }

    /// With probs, or with an `Option` of them.
    pub fn probs(self, probs: impl Into<Option<TensorMut<'a, T>>>) -> Self {
        Self { probs: probs.into(), ..self }
    }
}

impl<T: Element> Outputs<'_, T> {
    /// Judges shapes, strides and storage, and that no two indices share an element.
    ///
    /// # Errors
    /// The first [`ProblemError`], naming the tensor.
    pub fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let shape = problem.shape();
        problem.check_lengths_known()?;
        check_write(TensorName::Out, &self.out, shape.out())?;
        check_rows(TensorName::Lse, problem, self.lse.len())?;
        self.probs.as_ref().map_or(Ok(()), |probs| check_write(TensorName::Probs, probs, problem.probs()))
    }
}

impl<'a, T> GradInputs<'a, T> {
    /// Of the forward's inputs and results and the gradient of `out`, where the loss depends on `lse` only through
    /// `out`.
    pub const fn new(
        inputs: Inputs<'a, T>,
        out: TensorRef<'a, T>,
        lse: &'a [f32],
        dout: TensorRef<'a, T>,
    ) -> Self {
        Self { inputs, out, lse, dout, dlse: None }
    }

    /// With a gradient of `lse`, or with an `Option` of one.
    pub fn dlse(self, dlse: impl Into<Option<&'a [f32]>>) -> Self {
        Self { dlse: dlse.into(), ..self }
    }
}

impl<T: Element> GradInputs<'_, T> {
    /// As [`Inputs::check`].
    ///
    /// # Errors
    /// The first [`ProblemError`], naming the tensor.
    pub fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        self.inputs.check(problem)?;
        check_read(TensorName::Out, &self.out, problem.shape().out())?;
        check_rows(TensorName::Lse, problem, self.lse.len())?;
        check_read(TensorName::Dout, &self.dout, problem.shape().out())?;
        check_dlse(problem, self.dlse)
    }
}

impl<'a, T> Gradients<'a, T> {
    /// Of these three.
    pub const fn new(dq: TensorMut<'a, T>, dk: TensorMut<'a, T>, dv: TensorMut<'a, T>) -> Self {
        Self { dq, dk, dv, dbias: None, dsinks: None }
    }

    /// With the gradient of a bias, or with an `Option` of one.
    pub fn dbias(self, dbias: impl Into<Option<BiasMut<'a>>>) -> Self {
        Self { dbias: dbias.into(), ..self }
    }

    /// With the gradient of sinks, or with an `Option` of one.
    pub fn dsinks(self, dsinks: impl Into<Option<&'a mut [f32]>>) -> Self {
        Self { dsinks: dsinks.into(), ..self }
    }
}

impl<T: Element> Gradients<'_, T> {
    /// As [`Outputs::check`].
    ///
    /// # Errors
    /// The first [`ProblemError`], naming the tensor.
    pub fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let shape = problem.shape();
        check_write(TensorName::Dq, &self.dq, shape.q())?;
        check_write(TensorName::Dk, &self.dk, shape.k())?;
        check_write(TensorName::Dv, &self.dv, shape.v())?;
        check_gradients(problem, self.dbias.as_ref(), self.dsinks.as_deref())
    }
}

pub(crate) fn check_read<T>(
    tensor: TensorName,
    x: &TensorRef<'_, T>,
    expected: [usize; 4],
) -> Result<(), ProblemError> {
    let description = Description { tensor, shape: x.shape, strides: x.strides };
    description.check(expected)?;
    description.check_storage(x.data.len())
}

fn check_write<T>(
    tensor: TensorName,
    x: &TensorMut<'_, T>,
    expected: [usize; 4],
) -> Result<(), ProblemError> {
    let description = Description { tensor, shape: x.shape, strides: x.strides };
    description.check(expected)?;
    description.check_storage(x.data.len())?;
    description.check_written(expected)
}

/// Judges the gradient of lse, if there is one.
pub(crate) fn check_dlse(problem: &Problem, dlse: Option<&[f32]>) -> Result<(), ProblemError> {
    dlse.map_or(Ok(()), |dlse| check_rows(TensorName::Dlse, problem, dlse.len()))
}

/// Judges a tensor of one number a row: lse, or its gradient.
pub fn check_rows(tensor: TensorName, problem: &Problem, len: usize) -> Result<(), ProblemError> {
    let shape = problem.shape();
    if len == shape.lse_len() {
        return Ok(());
    }
    let meaning = match tensor {
        TensorName::Dlse => "(batch, num_heads, seqlen_q), dense; pass None if lse has no gradient",
        _ => "(batch, num_heads, seqlen_q), dense",
    };
    let expected = vec![shape.batch, shape.num_heads, shape.seqlen_q];
    Err(ProblemError::Shape { tensor, expected, got: vec![len], meaning })
}
