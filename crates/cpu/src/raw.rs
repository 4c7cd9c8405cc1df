//! Tensors that are not borrowed, for memory that a framework owns.
//!
//! A slice from a tensor's first element to its last holds what lies between its rows, too. Of q, k and v interleaved
//! in one buffer, or of an out that is a view of something larger, that is somebody else's, and two `&mut [T]` over
//! it would be undefined behaviour even if nobody wrote there. So a strided tensor of somebody else's is an address
//! up to the kernels, which touch its elements and nothing else. This lives here and not in `signflash-core`, which
//! has no unsafe code: only who computes dereferences.

use bytemuck::Pod;
use signflash_core::{
    BiasMut, BiasRef, Description, Dtype, Element, Inputs, Problem, ProblemError, ScoreDescription,
    ScoreInputs, TensorMut, TensorName, TensorRef, bf16, check_rows, f16,
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
unsafe impl<T: Pod> Send for RawTensor<T> {}
// SAFETY: as above.
unsafe impl<T: Pod> Sync for RawTensor<T> {}

/// What a forward reads.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
#[non_exhaustive]
pub struct RawInputs<'a, T> {
    pub q: RawTensor<T>,
    pub k: RawTensor<T>,
    pub v: RawTensor<T>,
    pub scores: RawScoreInputs<'a>,
}

/// What scores are made of besides q and k: [`ScoreInputs`] that are not borrowed. The default has none.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RawScoreInputs<'a> {
    /// (1, 1, 1, num_heads) or (1, 1, batch, num_heads), dense in the last dimension.
    pub alibi_slopes: Option<RawTensor<f32>>,
    /// Of the shape that the problem declares, with any strides.
    pub bias: Option<RawBias>,
    /// Likewise; 0 hides.
    pub mask: Option<RawTensor<u8>>,
    /// (num_heads), dense.
    pub sinks: Option<&'a [f32]>,
}

/// A bias or its gradient, in a dtype of its own.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum RawBias {
    F32(RawTensor<f32>),
    F16(RawTensor<f16>),
    Bf16(RawTensor<bf16>),
}

/// What a forward writes.
#[derive(Debug)]
#[non_exhaustive]
pub struct RawOutputs<'a, T> {
    /// (batch, seqlen_q, num_heads, head_dim_v).
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
    pub inputs: RawInputs<'a, T>,
    pub out: RawTensor<T>,
    /// (batch, num_heads, seqlen_q), dense.
    pub lse: &'a [f32],
    pub dout: RawTensor<T>,
    /// As lse.
    pub dlse: Option<&'a [f32]>,
}

/// What a backward writes. They may lie interleaved in one buffer.
#[derive(Debug)]
#[allow(missing_docs)]
#[non_exhaustive]
pub struct RawGradients<'a, T> {
    pub dq: RawTensor<T>,
    pub dk: RawTensor<T>,
    pub dv: RawTensor<T>,
    /// The gradient of a bias, of its shape and dtype, with any strides, if it is asked for.
    pub dbias: Option<RawBias>,
    /// (num_heads): the gradient of sinks, if it is asked for.
    pub dsinks: Option<&'a mut [f32]>,
}

impl<'a, T> RawInputs<'a, T> {
    /// Of these three.
    pub const fn new(q: RawTensor<T>, k: RawTensor<T>, v: RawTensor<T>) -> Self {
        Self { q, k, v, scores: RawScoreInputs { alibi_slopes: None, bias: None, mask: None, sinks: None } }
    }

    /// With more that scores are made of.
    pub fn scores(self, scores: RawScoreInputs<'a>) -> Self {
        Self { scores, ..self }
    }
}

impl<'a> RawScoreInputs<'a> {
    /// With slopes of ALiBi.
    pub fn alibi_slopes(self, slopes: impl Into<Option<RawTensor<f32>>>) -> Self {
        Self { alibi_slopes: slopes.into(), ..self }
    }

    /// With a bias.
    pub fn bias(self, bias: impl Into<Option<RawBias>>) -> Self {
        Self { bias: bias.into(), ..self }
    }

    /// With a mask.
    pub fn mask(self, mask: impl Into<Option<RawTensor<u8>>>) -> Self {
        Self { mask: mask.into(), ..self }
    }

    /// With sinks.
    pub fn sinks(self, sinks: impl Into<Option<&'a [f32]>>) -> Self {
        Self { sinks: sinks.into(), ..self }
    }

    pub(crate) fn of(scores: &ScoreInputs<'a>) -> Self {
        Self {
            alibi_slopes: scores.alibi_slopes.as_ref().map(RawTensor::of),
            bias: scores.bias.as_ref().map(RawBias::of),
            mask: scores.mask.as_ref().map(RawTensor::of),
            sinks: scores.sinks,
        }
    }

    fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let slopes = self.alibi_slopes.map(|slopes| slopes.description(TensorName::AlibiSlopes));
        let mask = self.mask.map(|mask| mask.description(TensorName::Mask));
        let given = ScoreDescription {
            alibi_slopes: slopes,
            bias: self.bias.map(|bias| (bias.dtype(), bias.description(TensorName::Bias))),
            mask,
            sinks: self.sinks.map(<[f32]>::len),
        };
        given.check(problem)?;
        self.alibi_slopes.map_or(Ok(()), |slopes| slopes.check_address(TensorName::AlibiSlopes))?;
        self.mask.map_or(Ok(()), |mask| mask.check_address(TensorName::Mask))?;
        self.bias.map_or(Ok(()), |bias| bias.check_address(TensorName::Bias))
    }
}

/// Does the same with a bias of any dtype.
macro_rules! of_bias {
    ($enum:ident, $bias:expr, $x:ident => $do:expr) => {
        match $bias {
            $enum::F32($x) => $do,
            $enum::F16($x) => $do,
            $enum::Bf16($x) => $do,
        }
    };
}
pub(crate) use of_bias;

impl RawBias {
    fn of(bias: &BiasRef<'_>) -> Self {
        match bias {
            BiasRef::F32(x) => Self::F32(RawTensor::of(x)),
            BiasRef::F16(x) => Self::F16(RawTensor::of(x)),
            BiasRef::Bf16(x) => Self::Bf16(RawTensor::of(x)),
        }
    }

    pub(crate) fn of_mut(bias: &mut BiasMut<'_>) -> Self {
        match bias {
            BiasMut::F32(x) => Self::F32(RawTensor::of_mut(x)),
            BiasMut::F16(x) => Self::F16(RawTensor::of_mut(x)),
            BiasMut::Bf16(x) => Self::Bf16(RawTensor::of_mut(x)),
        }
    }

    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
        }
    }

    fn description(&self, tensor: TensorName) -> Description {
        of_bias!(RawBias, self, x => x.description(tensor))
    }

    fn check_address(&self, tensor: TensorName) -> Result<(), ProblemError> {
        of_bias!(RawBias, self, x => x.check_address(tensor))
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
    pub const fn new(
        inputs: RawInputs<'a, T>,
        out: RawTensor<T>,
        lse: &'a [f32],
        dout: RawTensor<T>,
    ) -> Self {
        Self { inputs, out, lse, dout, dlse: None }
    }

    /// With a gradient of lse, or with an `Option` of one.
    pub fn dlse(self, dlse: impl Into<Option<&'a [f32]>>) -> Self {
        Self { dlse: dlse.into(), ..self }
    }
}

impl<'a, T> RawGradients<'a, T> {
    /// Of these three.
    pub const fn new(dq: RawTensor<T>, dk: RawTensor<T>, dv: RawTensor<T>) -> Self {
        Self { dq, dk, dv, dbias: None, dsinks: None }
    }

    /// With the gradient of a bias, or with an `Option` of one.
    pub fn dbias(self, dbias: impl Into<Option<RawBias>>) -> Self {
        Self { dbias: dbias.into(), ..self }
    }

    /// With the gradient of sinks, or with an `Option` of one.
    pub fn dsinks(self, dsinks: impl Into<Option<&'a mut [f32]>>) -> Self {
        Self { dsinks: dsinks.into(), ..self }
    }
}

impl<T: Pod> RawTensor<T> {
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
        self.check_address(tensor)
    }

    fn check_address(&self, tensor: TensorName) -> Result<(), ProblemError> {
        self.description(tensor).check_address(self.first.addr(), size_of::<T>())
    }

    /// And that no two indices name the same element.
    pub(crate) fn check_written(&self, tensor: TensorName, expected: [usize; 4]) -> Result<(), ProblemError> {
        self.description(tensor).check_written(expected)?;
        self.check_address(tensor)
    }
}

impl<'a, T: Element> RawInputs<'a, T> {
    pub(crate) fn of(inputs: &Inputs<'a, T>) -> Self {
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(RawTensor::of);
        Self { q, k, v, scores: RawScoreInputs::of(&inputs.scores) }
    }

    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        problem.check_lengths_known()?;
        let shape = problem.shape();
        self.q.check_read(TensorName::Q, shape.q())?;
        self.k.check_read(TensorName::K, shape.k())?;
        self.v.check_read(TensorName::V, shape.v())?;
        self.scores.check(problem)
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

impl<T: Element> RawGradients<'_, T> {
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let shape = problem.shape();
        self.dq.check_written(TensorName::Dq, shape.q())?;
        self.dk.check_written(TensorName::Dk, shape.k())?;
        self.dv.check_written(TensorName::Dv, shape.v())?;
        let dbias = self.dbias.map(|dbias| (dbias.dtype(), dbias.description(TensorName::Dbias)));
        ScoreDescription::check_gradients(problem, dbias, self.dsinks.as_deref().map(<[f32]>::len))?;
        self.dbias.map_or(Ok(()), |dbias| dbias.check_address(TensorName::Dbias))
    }
}
