//! Tensors that are not borrowed, for memory that a framework owns.
//!
//! A slice from a tensor's first element to its last holds what lies between its rows, too. Of q, k and v interleaved
//! in one buffer, or of an out that is a view of something larger, that is somebody else's, and two `&mut [T]` over
//! it would be undefined behaviour even if nobody wrote there. So a strided tensor of somebody else's is an address
//! up to the kernels, which touch its elements and nothing else. This lives here and not in `signflash-core`, which
//! has no unsafe code: only who computes dereferences.

use signflash_core::{
    Description, Element, Inputs, Problem, ProblemError, TensorMut, TensorName, TensorRef, check_rows,
};

/// A tensor as an address: element `[a, b, c, d]` lies
/// `a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3]` elements behind the first. Shapes are those of
/// [`Inputs`] and [`Outputs`](signflash_core::Outputs).
#[derive(Clone, Copy, Debug)]
pub struct RawTensor<T> {
    /// Element `[0, 0, 0, 0]`; anything if there is no element. It is written only where a call says so.
    pub first: *mut T,
    /// Sizes of the four dimensions.
    pub shape: [usize; 4],
    /// Distance of neighbours along each dimension, in elements.
    pub strides: [usize; 4],
}

// SAFETY: it is an address and nothing more. Who dereferences it does so by the promise to `forward_raw` or
// `backward_raw`.
unsafe impl<T: Element> Send for RawTensor<T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for RawTensor<T> {}

/// What a forward reads.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
#[non_exhaustive]
pub struct RawInputs<T> {
    pub q: RawTensor<T>,
    pub k: RawTensor<T>,
    pub v: RawTensor<T>,
}

/// What a forward writes.
#[derive(Debug)]
#[non_exhaustive]
pub struct RawOutputs<'a, T> {
    /// (batch, seqlen_q, num_heads, head_dim).
    pub out: RawTensor<T>,
    /// (batch, num_heads, seqlen_q), dense.
    pub lse: &'a mut [f32],
    /// Of the shape that [`Problem::probs`] says, if asked for.
    pub probs: Option<RawTensor<T>>,
}

/// What a backward reads.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
#[non_exhaustive]
pub struct RawGradInputs<'a, T> {
    pub inputs: RawInputs<T>,
    pub out: RawTensor<T>,
    /// (batch, num_heads, seqlen_q), dense.
    pub lse: &'a [f32],
    pub dout: RawTensor<T>,
    /// As lse.
    pub dlse: Option<&'a [f32]>,
}

/// What a backward writes. They may lie interleaved in one buffer.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
#[non_exhaustive]
pub struct RawGradients<T> {
    pub dq: RawTensor<T>,
    pub dk: RawTensor<T>,
    pub dv: RawTensor<T>,
}

impl<T> RawInputs<T> {
    /// Of these three.
    pub const fn new(q: RawTensor<T>, k: RawTensor<T>, v: RawTensor<T>) -> Self {
        Self { q, k, v }
    }
}

impl<'a, T> RawOutputs<'a, T> {
    /// Of these two, without probs.
    pub const fn new(out: RawTensor<T>, lse: &'a mut [f32]) -> Self {
        Self { out, lse, probs: None }
    }

    /// With probs, or with an `Option` of them.
    pub fn probs(self, probs: impl Into<Option<RawTensor<T>>>) -> Self {
        Self { probs: probs.into(), ..self }
    }
}

impl<'a, T> RawGradInputs<'a, T> {
    /// The forward's inputs and results, and the gradient of `out`; none arrives through lse.
    pub const fn new(inputs: RawInputs<T>, out: RawTensor<T>, lse: &'a [f32], dout: RawTensor<T>) -> Self {
        Self { inputs, out, lse, dout, dlse: None }
    }

    /// With a gradient of lse, or with an `Option` of one.
    pub fn dlse(self, dlse: impl Into<Option<&'a [f32]>>) -> Self {
        Self { dlse: dlse.into(), ..self }
    }
}

impl<T> RawGradients<T> {
    /// Of these three.
    pub const fn new(dq: RawTensor<T>, dk: RawTensor<T>, dv: RawTensor<T>) -> Self {
        Self { dq, dk, dv }
    }
}

impl<T: Element> RawTensor<T> {
    pub(crate) fn of(x: &TensorRef<'_, T>) -> Self {
        Self { first: x.data.as_ptr().cast_mut(), shape: x.shape, strides: x.strides }
    }

    pub(crate) fn of_mut(x: &mut TensorMut<'_, T>) -> Self {
        Self { first: x.data.as_mut_ptr(), shape: x.shape, strides: x.strides }
    }

    fn description(&self, tensor: TensorName) -> Description {
        Description { tensor, shape: self.shape, strides: self.strides }
    }

    /// Shape, last stride, and an address that can hold elements.
    pub(crate) fn check_read(&self, tensor: TensorName, expected: [usize; 4]) -> Result<(), ProblemError> {
        self.description(tensor).check(expected)?;
        self.description(tensor).check_address(self.first.addr(), size_of::<T>())
    }

    /// And that no two indices name the same element.
    pub(crate) fn check_written(&self, tensor: TensorName, expected: [usize; 4]) -> Result<(), ProblemError> {
        self.description(tensor).check_written(expected)?;
        self.description(tensor).check_address(self.first.addr(), size_of::<T>())
    }
}

impl<T: Element> RawInputs<T> {
    pub(crate) fn of(inputs: &Inputs<'_, T>) -> Self {
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(RawTensor::of);
        Self { q, k, v }
    }

    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        problem.check_lengths_known()?;
        let shape = problem.shape();
        self.q.check_read(TensorName::Q, shape.q())?;
        self.k.check_read(TensorName::K, shape.k())?;
        self.v.check_read(TensorName::V, shape.v())
    }
}

impl<T: Element> RawOutputs<'_, T> {
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let shape = problem.shape();
        self.out.check_written(TensorName::Out, shape.out())?;
        check_rows(TensorName::Lse, problem, self.lse.len())?;
        let probs = |probs: &RawTensor<T>| probs.check_written(TensorName::Probs, problem.probs());
        self.probs.as_ref().map_or(Ok(()), probs)
    }
}

impl<T: Element> RawGradInputs<'_, T> {
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        self.inputs.check(problem)?;
        self.out.check_read(TensorName::Out, problem.shape().out())?;
        self.dout.check_read(TensorName::Dout, problem.shape().out())?;
        check_rows(TensorName::Lse, problem, self.lse.len())?;
        self.dlse.map_or(Ok(()), |dlse| check_rows(TensorName::Dlse, problem, dlse.len()))
    }
}

impl<T: Element> RawGradients<T> {
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let shape = problem.shape();
        self.dq.check_written(TensorName::Dq, shape.q())?;
        self.dk.check_written(TensorName::Dk, shape.k())?;
        self.dv.check_written(TensorName::Dv, shape.v())
    }
}
