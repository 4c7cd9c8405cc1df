//! Calls: a problem and its tensors in a GPU's memory; and what a stream does for them.
use crate::config::{Config, Stored};
use crate::scores::{DeviceScoreTensor, DeviceScores};
use crate::tensor::{DeviceTensor, Order};
use signflash_core::{Dtype, Feature, Problem, ProblemError};
use signflash_ptx::{Arg, Half};

/// One thing that a stream does.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Runs a kernel.
    Launch {
        /// Which.
        config: Config,
        /// Blocks, along x.
        grid: u32,
        /// One value a parameter.
        args: Vec<Arg>,
    },
    /// Zeroes memory.
    Zero {
        /// Its first byte.
        ptr: u64,
        /// How many.
        bytes: u64,
    },
}

/// A forward, its tensors in device memory.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ForwardCall<'a> {
    /// Sizes, scale, dropout.
    pub problem: &'a Problem,
    /// Format of all tensors but lse.
    pub half: Half,
    /// How out is stored. Its strides count its own elements. Where it is added to others, so is lse.
    pub stored: Stored,
    /// (batch, seqlen_q, num_heads, head_dim).
    pub q: DeviceTensor,
    /// (batch, seqlen_k, num_heads_k, head_dim).
    pub k: DeviceTensor,
    /// As k.
    pub v: DeviceTensor,
    /// As q; written.
    pub out: DeviceTensor,
    /// (batch, num_heads, seqlen_q) f32, dense; written.
    pub lse: u64,
    /// (batch, num_heads, seqlen_q, seqlen_k), if asked for; written. Of its strides, the row's is that from query to
    /// query.
    pub probs: Option<DeviceTensor>,
    /// Of packed sequences: rows and columns of each matrix of probs, which is (sequences, num_heads, rows, columns). What
    /// lies behind a sequence's ends is zeroed, and what of a sequence lies behind these is left out.
    pub probs_sizes: Option<[usize; 2]>,
    /// Address of a seed and an offset (u64 each) that replace the problem's when the kernel runs, or 0.
    pub seed_and_offset_ptr: u64,
    /// Of packed sequences, the addresses of cu_seqlens_q and of cu_seqlens_k: int32, one more number than there are
    /// sequences, the first 0, none smaller than the one before it, the last at most the rows of q, and of k. Kernels
    /// read them when they run. Whatever they are, nothing outside of the tensors is read or written.
    pub cu_seqlens: Option<[u64; 2]>,
    /// What scores are made of besides q and k.
    pub scores: DeviceScores,
    /// Of [`forward_workspace_bytes`](crate::forward_workspace_bytes), a multiple of 16 as its address; packed sequences
    /// need it.
    pub workspace: u64,
}

impl<'a> ForwardCall<'a> {
    /// out and lse of q, k and v. What else there is joins by the methods below.
    pub fn new(
        problem: &'a Problem,
        half: Half,
        [q, k, v]: [DeviceTensor; 3],
        out: DeviceTensor,
        lse: u64,
    ) -> Self {
        ForwardCall {
            problem,
            half,
            stored: Stored::Rounded,
            q,
            k,
            v,
            out,
            lse,
            probs: None,
            probs_sizes: problem
                .cu_seqlens()
                .map(|_| problem.probs())
                .map(|[_, _, rows, columns]| [rows, columns]),
            seed_and_offset_ptr: 0,
            cu_seqlens: None,
            scores: DeviceScores::default(),
            workspace: 0,
        }
    }

    /// The call of dense tensors that nobody has yet: to ask which kernels it would get, not to be run.
    pub fn of_dense(problem: &'a Problem, half: Half) -> Self {
        let tensor = |sizes| DeviceTensor::dense(0, sizes, Order::RowsFirst);
        let shape = problem.shape();
        let inputs = [shape.q(), shape.k(), shape.v()].map(tensor);
        Self::new(problem, half, inputs, tensor(shape.out()), 0)
    }

    /// The same whose out is stored so. Without probs, if it is f32: these have the operands' format.
    pub fn with_stored(self, stored: Stored) -> Self {
        ForwardCall { stored, ..self }
    }

    /// out, its strides counted in halves.
    pub(crate) fn out_in_halves(&self) -> DeviceTensor {
        self.out.in_halves(self.stored.is_wide())
    }

    /// The same that writes probs, too, if there are some.
    pub fn with_probs(self, probs: Option<DeviceTensor>) -> Self {
        ForwardCall { probs, ..self }
    }

    /// The same where each matrix of packed sequences' probs has so many rows and columns. If the host knows the lengths,
    /// as many as the longest needs are meant without it.
    pub fn with_probs_sizes(self, sizes: [usize; 2]) -> Self {
        ForwardCall { probs_sizes: Some(sizes), ..self }
    }

    /// The same with seed and offset from memory, if this is not 0.
    pub fn with_seed_and_offset_ptr(self, seed_and_offset_ptr: u64) -> Self {
        ForwardCall { seed_and_offset_ptr, ..self }
    }

    /// The same of packed sequences that begin where these numbers say: the addresses of cu_seqlens_q and cu_seqlens_k.
    pub fn with_cu_seqlens(self, cu_seqlens: [u64; 2]) -> Self {
        ForwardCall { cu_seqlens: Some(cu_seqlens), ..self }
    }

    /// The same with the operands of its scores.
    pub fn with_scores(self, scores: DeviceScores) -> Self {
        ForwardCall { scores, ..self }
    }

    /// The same with a workspace of [`forward_workspace_bytes`](crate::forward_workspace_bytes).
    pub fn with_workspace(self, workspace: u64) -> Self {
        ForwardCall { workspace, ..self }
    }
}

/// A backward, its tensors in device memory.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct BackwardCall<'a> {
    pub problem: &'a Problem,
    pub half: Half,
    /// How dq is stored, and how dk and dv are, as in [`ForwardCall`]; out and dout are of the operands' format always.
    pub stored: [Stored; 2],
    pub q: DeviceTensor,
    pub k: DeviceTensor,
    pub v: DeviceTensor,
    pub out: DeviceTensor,
    /// (batch, num_heads, seqlen_q) f32, dense.
    pub lse: u64,
    pub dout: DeviceTensor,
    /// The gradient of lse, like it, if it has one.
    pub dlse: Option<u64>,
    /// Written.
    pub dq: DeviceTensor,
    /// Written.
    pub dk: DeviceTensor,
    /// Written.
    pub dv: DeviceTensor,
    /// Of [`backward_workspace_bytes`](crate::backward_workspace_bytes), a multiple of 16 as its address.
    pub workspace: u64,
    /// The same bits in every run. On Hopper it takes 7 to 27 % longer (head_dim above 128 up to 46 %), elsewhere about
    /// a third.
    pub deterministic: bool,
    /// As in [`ForwardCall`].
    pub seed_and_offset_ptr: u64,
    /// As in [`ForwardCall`].
    pub cu_seqlens: Option<[u64; 2]>,
    /// As in [`ForwardCall`].
    pub scores: DeviceScores,
    /// The gradient of the bias, if it is asked for; written.
    pub dbias: Option<DeviceScoreTensor>,
    /// Address of the gradient of the sinks, f32 (num_heads), if it is asked for; written.
    pub dsinks: Option<u64>,
}

impl<'a> BackwardCall<'a> {
    /// The backward of a forward, whose results, random numbers, sequences and scores it takes: dq, dk and dv from dout. What
    /// else there is joins by the methods below.
    pub fn of(
        forward: &ForwardCall<'a>,
        dout: DeviceTensor,
        [dq, dk, dv]: [DeviceTensor; 3],
        workspace: u64,
    ) -> Self {
        let ForwardCall { problem, half, q, k, v, out, lse, seed_and_offset_ptr, cu_seqlens, scores, .. } =
            *forward;
        BackwardCall {
            problem,
            half,
            stored: [Stored::Rounded; 2],
            q,
            k,
            v,
            out,
            lse,
            dout,
            dlse: None,
            dq,
            dk,
            dv,
            workspace,
            deterministic: false,
            seed_and_offset_ptr,
            cu_seqlens,
            scores,
            dbias: None,
            dsinks: None,
        }
    }

    /// The call of dense tensors that nobody has yet: to ask which kernels it would get, not to be run.
    pub fn of_dense(problem: &'a Problem, half: Half) -> Self {
        let forward = ForwardCall::of_dense(problem, half);
        Self::of(&forward, forward.out, [forward.q, forward.k, forward.v], 0)
    }

    /// The same whose dq is stored so, and whose dk and dv are.
    pub fn with_stored(self, stored: [Stored; 2]) -> Self {
        BackwardCall { stored, ..self }
    }

    /// dq, dk and dv, their strides counted in halves.
    pub(crate) fn gradients_in_halves(&self) -> [DeviceTensor; 3] {
        let [dq, dkv] = self.stored.map(Stored::is_wide);
        [self.dq.in_halves(dq), self.dk.in_halves(dkv), self.dv.in_halves(dkv)]
    }

    /// The same of a loss that depends on lse, too, if there is a gradient of it.
    pub fn with_dlse(self, dlse: Option<u64>) -> Self {
        BackwardCall { dlse, ..self }
    }

    /// The same that writes the gradient of the bias, too, if there is a place for it.
    pub fn with_dbias(self, dbias: Option<DeviceScoreTensor>) -> Self {
        BackwardCall { dbias, ..self }
    }

    /// The same that writes the gradient of the sinks, too, if there is a place for it.
    pub fn with_dsinks(self, dsinks: Option<u64>) -> Self {
        BackwardCall { dsinks, ..self }
    }

    /// The same with one order of additions, or with any.
    pub fn with_deterministic(self, deterministic: bool) -> Self {
        BackwardCall { deterministic, ..self }
    }
}

/// Why a call cannot be run as it is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// There are no kernels for what the problem asks.
    #[error(transparent)]
    NotComputed(#[from] ProblemError),
    /// It is too large for one launch.
    #[error(transparent)]
    TooManyBlocks(#[from] TooManyBlocks),
    /// Nobody says where packed sequences begin.
    #[error(
        "the problem's sequences are packed, and the call has no cu_seqlens; give it their addresses with ForwardCall::with_cu_seqlens"
    )]
    NoCuSeqlens,
    /// There is nothing that cu_seqlens could say.
    #[error(
        "the call has cu_seqlens, and the problem's sequences are not packed; build it with ProblemBuilder::packed_on_device, or leave cu_seqlens out"
    )]
    NotPacked,
    /// An address is none, or none of what should be there.
    #[error("{argument} must be an address, a multiple of {multiple}, got {got:#x}")]
    Address {
        /// Whose.
        argument: &'static str,
        /// Of how many bytes it must be a multiple.
        multiple: u64,
        /// What came.
        got: u64,
    },
    /// What the problem's scores are made of is not there.
    #[error(
        "the problem has {tensor}, and the call has none; give its address with ForwardCall::with_scores"
    )]
    NoScores {
        /// What.
        tensor: &'static str,
    },
    /// There is something of scores that the problem knows nothing of.
    #[error(
        "the call has {tensor}, and the problem has none; declare it with ProblemBuilder, or leave it out"
    )]
    ScoresNotDeclared {
        /// What.
        tensor: &'static str,
    },
    /// Results are f32, and probs would not be.
    #[error(
        "the call has probs, and its out is f32, which probs are not; ask for them in a call without ForwardCall::with_stored"
    )]
    WideProbs,
    /// Nobody says how large probs of packed sequences are.
    #[error(
        "the call has probs of packed sequences, and nobody says how large; give rows and columns with ForwardCall::with_probs_sizes"
    )]
    NoProbsSizes,
}

/// Refuses what no kernel computes, of whatever tensors.
///
/// # Errors
/// [`ProblemError::NotComputed`].
pub fn check_features(problem: &Problem) -> Result<(), ProblemError> {
    let computed =
        [Feature::HeadDimV, Feature::Softcap, Feature::Alibi, Feature::Bias, Feature::Mask, Feature::Sinks];
    problem.check_features("the GPU's kernels", &computed)
}

impl BackwardCall<'_> {
    /// Whether gradients are asked for of what scores are made of, and of nothing else.
    pub(crate) fn check_score_gradients(&self) -> Result<(), CallError> {
        if self.dbias.is_some() && self.problem.bias().is_none() {
            return Err(CallError::ScoresNotDeclared { tensor: "dbias" });
        }
        match self.dsinks {
            Some(_) if !self.problem.sinks() => Err(CallError::ScoresNotDeclared { tensor: "dsinks" }),
            Some(got) if got == 0 || !got.is_multiple_of(4) => {
                Err(CallError::Address { argument: "dsinks", multiple: 4, got })
            }
            _ => Ok(()),
        }
    }
}

/// Whether a call says where its sequences begin, if and only if they are packed, and has room to list their tiles.
pub(crate) fn check_packed(
    problem: &Problem,
    cu_seqlens: Option<[u64; 2]>,
    workspace: u64,
) -> Result<(), CallError> {
    let [q, k] = match (problem.is_packed(), cu_seqlens) {
        (false, None) => return Ok(()),
        (false, Some(_)) => return Err(CallError::NotPacked),
        (true, None) => return Err(CallError::NoCuSeqlens),
        (true, Some(cu_seqlens)) => cu_seqlens,
    };
    let addresses = [("cu_seqlens_q", 4, q), ("cu_seqlens_k", 4, k), ("workspace", 16, workspace)];
    let is_wrong = |(_, multiple, got): &(_, u64, u64)| *got == 0 || !got.is_multiple_of(*multiple);
    match addresses.into_iter().find(is_wrong) {
        Some((argument, multiple, got)) => Err(CallError::Address { argument, multiple, got }),
        None => Ok(()),
    }
}

/// Whether this is the address of a workspace.
pub(crate) fn check_workspace(workspace: u64) -> Result<(), CallError> {
    let multiple = 16;
    match workspace != 0 && workspace.is_multiple_of(multiple) {
        true => Ok(()),
        false => Err(CallError::Address { argument: "workspace", multiple, got: workspace }),
    }
}

/// Why no kernel can be launched: the grid would have too many blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the call needs {blocks} blocks, a launch takes 2147483647; split the batch or the heads")]
pub struct TooManyBlocks {
    /// How many it would need.
    pub blocks: u64,
}

/// The 16-bit format of a dtype, if it is one.
pub fn half_of(dtype: Dtype) -> Option<Half> {
    match dtype {
        Dtype::F16 => Some(Half::F16),
        Dtype::Bf16 => Some(Half::Bf16),
        _ => None,
    }
}
