//! One forward or backward over somebody else's tensors.

use crate::error::CallError;
use crate::foreign::ForeignTensor;
use crate::joined::{Declared, ForeignBias, Joined};
use crate::lengths::{CuSeqlens, Lengths};
use crate::settings::{RandomState, Settings};
use crate::{cpu, cuda};
use signflash_core::{Description, Dtype, Problem, ProblemError, ScoreDescription, Shape, TensorName};

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This machine's processor.
    Cpu {
        /// The most threads that it may use; 0 is all.
        threads: usize,
    },
    /// A GPU, in the order of a stream; the call does not wait.
    Cuda {
        /// Its number among those that the process sees.
        ordinal: u32,
        /// A `CUstream` of its primary context.
        stream: u64,
    },
}

/// A forward's tensors; lse is (batch, num_heads, seqlen_q) f32, dense. Where sequences are packed, the batch is 1.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Forward {
    pub dtype: Dtype,
    /// Of out and probs: that of the inputs, or f32.
    pub results: Dtype,
    /// On a GPU: whether out and lse are those of other keys, to which these are added; of f32.
    pub adds: bool,
    pub q: ForeignTensor,
    pub k: ForeignTensor,
    pub v: ForeignTensor,
    /// Where packed sequences begin.
    pub cu_seqlens: Option<CuSeqlens>,
    /// What scores are made of besides q and k.
    pub joined: Joined,
    /// Written.
    pub out: ForeignTensor,
    /// Written.
    pub lse: u64,
    /// Written, if asked for.
    pub probs: Option<ForeignTensor>,
    pub state: RandomState,
    /// On a GPU, memory of [`forward_workspace_bytes`], which packed sequences and masks need; else 0.
    pub workspace: u64,
}

/// A backward's tensors.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Backward {
    pub dtype: Dtype,
    /// Of dq, dk and dv: that of the inputs, or f32.
    pub results: Dtype,
    /// On a GPU: whether dq, and dk with dv, are added to what is there, of f32.
    pub adds: [bool; 2],
    pub q: ForeignTensor,
    pub k: ForeignTensor,
    pub v: ForeignTensor,
    /// Where packed sequences begin.
    pub cu_seqlens: Option<CuSeqlens>,
    /// As the forward's.
    pub joined: Joined,
    pub out: ForeignTensor,
    pub lse: u64,
    pub dout: ForeignTensor,
    /// The gradient of lse, like it; 0 if it has none.
    pub dlse: u64,
    /// Written.
    pub dq: ForeignTensor,
    /// Written.
    pub dk: ForeignTensor,
    /// Written.
    pub dv: ForeignTensor,
    /// Written, if asked for: of the bias's dtype and shape.
    pub dbias: Option<ForeignBias>,
    /// (num_heads) f32, dense, written; 0 if it is not asked for.
    pub dsinks: u64,
    pub state: RandomState,
    /// On a GPU, memory of [`workspace_bytes`]; 0 on the CPU.
    pub workspace: u64,
    /// On a GPU, the same bits in every run.
    pub deterministic: bool,
}

impl Forward {
    /// The problem, if all tensors fit it.
    pub(crate) fn problem(&self, settings: &Settings, lengths: &Lengths) -> Result<Problem, ProblemError> {
        let inputs = [&self.q, &self.k, &self.v];
        let problem = settings.problem(&self.state, inputs, lengths, &self.joined.declared())?;
        let shape = problem.shape();
        self.joined.check(&problem)?;
        self.k.check(TensorName::K, shape.k(), self.dtype)?;
        self.v.check(TensorName::V, shape.v(), self.dtype)?;
        self.q.check(TensorName::Q, shape.q(), self.dtype)?;
        self.out.check(TensorName::Out, shape.out(), self.results)?;
        if let Some(probs) = self.probs {
            let expected = match lengths {
                // Nobody here knows the longest: a matrix is as large as it is, and kernels write no further.
                Lengths::OnDevice(sequences) => [*sequences, shape.num_heads, probs.shape[2], probs.shape[3]],
                Lengths::Batch | Lengths::Packed(_) => problem.probs(),
            };
            probs.check(TensorName::Probs, expected, self.results)?;
        }
        Ok(problem)
    }
}

impl Backward {
    /// The problem, if all tensors fit it.
    pub(crate) fn problem(&self, settings: &Settings, lengths: &Lengths) -> Result<Problem, ProblemError> {
        let inputs = [&self.q, &self.k, &self.v];
        let problem = settings.problem(&self.state, inputs, lengths, &self.joined.declared())?;
        let shape = problem.shape();
        self.joined.check(&problem)?;
        let tensors = [
            (TensorName::Q, self.q, self.dtype),
            (TensorName::Out, self.out, self.dtype),
            (TensorName::Dout, self.dout, self.dtype),
            (TensorName::Dq, self.dq, self.results),
            (TensorName::K, self.k, self.dtype),
            (TensorName::V, self.v, self.dtype),
            (TensorName::Dk, self.dk, self.results),
            (TensorName::Dv, self.dv, self.results),
        ];
        for (name, tensor, dtype) in tensors {
            tensor.check(name, shape.of(name), dtype)?;
        }
        let describe = |ForeignBias { dtype, tensor: ForeignTensor { shape, strides, .. } }| {
            (dtype, Description { tensor: TensorName::Dbias, shape, strides })
        };
        let dsinks = (self.dsinks != 0).then_some(shape.num_heads);
        ScoreDescription::check_gradients(&problem, self.dbias.map(describe), dsinks)?;
        Ok(problem)
    }
}

/// # Safety
/// As [`CuSeqlens::lengths`].
unsafe fn lengths(place: Place, cu_seqlens: Option<CuSeqlens>) -> Result<Lengths, CallError> {
    // SAFETY: the caller's promise.
    cu_seqlens.map_or(Ok(Lengths::Batch), |starts| unsafe { starts.lengths(place) })
}

/// Computes out, lse and, where asked for, probs.
///
/// # Errors
/// An [`CallError`] naming what does not fit, or the driver's.
///
/// # Safety
/// Every tensor must be where its description says, in this process's memory or on the GPU that [`Place`] names, with
/// elements of the call's dtype; nobody else may write what is read, or use what is written, until the call is done (on
/// a GPU: until the stream is). The workspace is as long as [`forward_workspace_bytes`] says.
pub unsafe fn forward(place: Place, call: &Forward, settings: &Settings) -> Result<(), CallError> {
    // SAFETY: the caller's promise.
    let lengths = unsafe { lengths(place, call.cu_seqlens) }?;
    let problem = call.problem(settings, &lengths)?;
    match place {
        // SAFETY: the tensors fit the problem, as just checked; that they are there is the caller's promise.
        Place::Cpu { threads } => unsafe { cpu::forward(threads, call, &problem) },
        // SAFETY: as above.
        Place::Cuda { ordinal, stream } => unsafe { cuda::forward(ordinal, stream, call, &problem) },
    }
}

/// Computes dq, dk and dv, and where asked for dbias and dsinks.
///
/// # Errors
/// As [`forward`].
///
/// # Safety
/// As [`forward`]; the workspace is as long as [`workspace_bytes`] says.
pub unsafe fn backward(place: Place, call: &Backward, settings: &Settings) -> Result<(), CallError> {
    // SAFETY: the caller's promise.
    let lengths = unsafe { lengths(place, call.cu_seqlens) }?;
    let problem = call.problem(settings, &lengths)?;
    match place {
        // SAFETY: the tensors fit the problem, as just checked; that they are there is the caller's promise.
        Place::Cpu { threads } => unsafe { cpu::backward(threads, call, &problem) },
        // SAFETY: as above.
        Place::Cuda { ordinal, stream } => unsafe { cuda::backward(ordinal, stream, call, &problem) },
    }
}

/// Bytes of [`Forward::workspace`]: 0 on the CPU, and where sequences are not packed and no mask hides the same keys from
/// all queries.
///
/// # Errors
/// That there is no such GPU.
pub fn forward_workspace_bytes(place: Place, problem: &Problem) -> Result<u64, CallError> {
    match place {
        Place::Cpu { .. } => Ok(0),
        Place::Cuda { ordinal, .. } => cuda::forward_workspace_bytes(ordinal, problem),
    }
}

/// Bytes of [`Backward::workspace`]: 0 on the CPU, which has its own.
///
/// # Errors
/// That there is no such GPU.
pub fn workspace_bytes(place: Place, problem: &Problem, deterministic: bool) -> Result<u64, CallError> {
    match place {
        Place::Cpu { .. } => Ok(0),
        Place::Cuda { ordinal, .. } => cuda::workspace_bytes(ordinal, problem, deterministic),
    }
}

/// The shape of [`Forward::probs`] where sequences are packed: (sequences, num_heads, the most queries of any, the most
/// keys of any).
///
/// # Errors
/// As [`forward`]; and that only the GPU knows the lengths.
///
/// # Safety
/// As [`forward`], of `cu_seqlens`.
pub unsafe fn packed_probs(
    place: Place,
    shape: Shape,
    cu_seqlens: &CuSeqlens,
    settings: &Settings,
) -> Result<[usize; 4], CallError> {
    // SAFETY: the caller's promise.
    let lengths = unsafe { cu_seqlens.lengths(place) }?;
    if let Lengths::OnDevice(sequences) = lengths {
        return Err(ProblemError::LengthsOnDevice { sequences }.into());
    }
    Ok(settings.of_shape(&RandomState::default(), shape, &lengths, &Declared::default())?.probs())
}
