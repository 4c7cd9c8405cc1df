//! Calls: a problem and its tensors in a GPU's memory; and what a stream does for them.
use crate::config::Config;
use crate::tensor::{DeviceTensor, Order};
use signflash_core::{Dtype, Problem};
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
    /// Address of a seed and an offset (u64 each) that replace the problem's when the kernel runs, or 0.
    pub seed_and_offset_ptr: u64,
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
        ForwardCall { problem, half, q, k, v, out, lse, probs: None, seed_and_offset_ptr: 0 }
    }

    /// The call of dense tensors that nobody has yet: to ask which kernels it would get, not to be run.
    pub fn of_dense(problem: &'a Problem, half: Half) -> Self {
        let tensor = |sizes| DeviceTensor::dense(0, sizes, Order::RowsFirst);
        let shape = problem.shape();
        let inputs = [shape.q(), shape.k(), shape.v()].map(tensor);
        Self::new(problem, half, inputs, tensor(shape.out()), 0)
    }

    /// The same that writes probs, too, if there are some.
    pub fn with_probs(self, probs: Option<DeviceTensor>) -> Self {
        ForwardCall { probs, ..self }
    }

    /// The same with seed and offset from memory, if this is not 0.
    pub fn with_seed_and_offset_ptr(self, seed_and_offset_ptr: u64) -> Self {
        ForwardCall { seed_and_offset_ptr, ..self }
    }
}

/// A backward, its tensors in device memory.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct BackwardCall<'a> {
    pub problem: &'a Problem,
    pub half: Half,
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
}

impl<'a> BackwardCall<'a> {
    /// The backward of a forward, whose results and random numbers it takes: dq, dk and dv from dout. What else there
    /// is joins by the methods below.
    pub fn of(
        forward: &ForwardCall<'a>,
        dout: DeviceTensor,
        [dq, dk, dv]: [DeviceTensor; 3],
        workspace: u64,
    ) -> Self {
        let ForwardCall { problem, half, q, k, v, out, lse, seed_and_offset_ptr, .. } = *forward;
        BackwardCall {
            problem,
            half,
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
        }
    }

    /// The call of dense tensors that nobody has yet: to ask which kernels it would get, not to be run.
    pub fn of_dense(problem: &'a Problem, half: Half) -> Self {
        let forward = ForwardCall::of_dense(problem, half);
        Self::of(&forward, forward.out, [forward.q, forward.k, forward.v], 0)
    }

    /// The same of a loss that depends on lse, too, if there is a gradient of it.
    pub fn with_dlse(self, dlse: Option<u64>) -> Self {
        BackwardCall { dlse, ..self }
    }

    /// The same with one order of additions, or with any.
    pub fn with_deterministic(self, deterministic: bool) -> Self {
        BackwardCall { deterministic, ..self }
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
