//! What Hopper's own kernels take, and in words what about a call they do not.
use crate::call::{BackwardCall, ForwardCall};
use crate::gpu::Gpu;
use crate::tensor::DeviceTensor;
use signflash_core::{Problem, Shape};
use signflash_ptx::TensorMap;
use std::fmt;

/// Why a call, or a part of it, is left to the portable kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotHopper {
    /// The GPU is another one.
    Gpu(Gpu),
    /// Nobody wants them.
    NotWanted,
    /// This tensor of the call is empty: there is hardly anything to compute, and the copy engine takes no such tensor.
    Empty(&'static str),
    /// They do not take this about the call.
    Call(String),
}

impl NotHopper {
    /// Whether a call with as much to compute could have had Hopper's kernels, on this GPU and with these settings.
    pub fn is_of_call(&self) -> bool {
        matches!(self, NotHopper::Call(_))
    }
}

impl fmt::Display for NotHopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotHopper::Gpu(Gpu { compute_capability: (major, minor), .. }) => {
                write!(
                    f,
                    "the GPU's compute capability is {major}.{minor}, and Hopper's own kernels need 9.0"
                )
            }
            NotHopper::NotWanted => f.write_str("the portable kernels were asked for"),
            NotHopper::Empty(name) => write!(f, "{name} is empty"),
            NotHopper::Call(reason) => f.write_str(reason),
        }
    }
}

/// Whether they take a forward.
pub(crate) fn forward(call: &ForwardCall<'_>) -> Result<(), NotHopper> {
    let shape = call.problem.shape();
    has_work(call.problem)?;
    // Its first tile would begin with rows before the tensor, and the copy engine stores no box from there.
    if call.problem.keep_rule().is_some_and(|rule| !rule.first_row().is_multiple_of(16)) {
        return refuse("the shard starts inside a block of 16 rows of the dropout mask".into());
    }
    let tensors = [
        ("q", call.q, shape.q()),
        ("k", call.k, shape.k()),
        ("v", call.v, shape.v()),
        ("out", call.out_in_halves(), shape.out()),
    ];
    copy_engine(call.problem, &tensors)
}

/// Whether they write probs, where they take the forward.
pub(crate) fn probs(problem: &Problem, probs: DeviceTensor) -> Result<(), NotHopper> {
    if problem.is_packed() {
        return refuse("packed sequences have a matrix of probs each".into());
    }
    let seqlen_k = problem.shape().seqlen_k;
    if !seqlen_k.is_multiple_of(8) {
        return refuse(format!("seqlen_k is {seqlen_k}, and rows of probs are written in pieces of 8"));
    }
    if !probs.is_aligned() {
        return refuse("the rows of probs do not all start at multiples of 16 bytes".into());
    }
    starts_with_a_block_of_columns(problem)
}

/// Whether they take a backward.
pub(crate) fn backward(call: &BackwardCall<'_>) -> Result<(), NotHopper> {
    let shape = call.problem.shape();
    has_work(call.problem)?;
    starts_with_a_block_of_columns(call.problem)?;
    if !call.workspace.is_multiple_of(16) {
        return refuse("the workspace does not start at a multiple of 16 bytes".into());
    }
    let [dq, dk, dv] = call.gradients_in_halves();
    let tensors = [
        ("q", call.q, shape.q()),
        ("k", call.k, shape.k()),
        ("v", call.v, shape.v()),
        ("dout", call.dout, shape.out()),
        ("dq", dq, shape.q()), // which the copy engine does not touch, but `convert_dq` writes in pieces of 16 bytes
        ("dk", dk, shape.k()),
        ("dv", dv, shape.v()),
    ];
    copy_engine(call.problem, &tensors)
}

fn refuse(reason: String) -> Result<(), NotHopper> {
    Err(NotHopper::Call(reason))
}

fn has_work(problem: &Problem) -> Result<(), NotHopper> {
    let shape = problem.shape();
    let overlays = [("bias", problem.bias().map(|bias| bias.shape)), ("mask", problem.mask())];
    let overlays = overlays.into_iter().filter_map(|(name, shape)| Some((name, shape?)));
    let empty = [("q", shape.q()), ("k", shape.k()), ("v", shape.v())]
        .into_iter()
        .chain(overlays)
        .find(|(_, sizes)| sizes.contains(&0));
    empty.map_or(Ok(()), |(name, _)| Err(NotHopper::Empty(name)))
}

fn starts_with_a_block_of_columns(problem: &Problem) -> Result<(), NotHopper> {
    match problem.keep_rule() {
        Some(rule) if !rule.first_column().is_multiple_of(32) => {
            refuse("the shard starts inside a block of 32 columns of the dropout mask".into())
        }
        _ => Ok(()),
    }
}

/// Whether the copy engine takes tensors of these sizes.
fn copy_engine(problem: &Problem, tensors: &[(&str, DeviceTensor, [usize; 4])]) -> Result<(), NotHopper> {
    let Shape { head_dim, head_dim_v, .. } = *problem.shape();
    if !head_dim.is_multiple_of(8) {
        return refuse(format!("head_dim is {head_dim}, and rows are written in pieces of 8"));
    }
    if !head_dim_v.is_multiple_of(8) {
        return refuse(format!("head_dim of v is {head_dim_v}, and rows are written in pieces of 8"));
    }
    for (name, tensor, [batch, seqlen, heads, _]) in tensors.iter().copied() {
        if !tensor.is_aligned() {
            return refuse(format!("the rows of {name} do not all start at multiples of 16 bytes"));
        }
        let used = [(batch, tensor.batch_stride), (seqlen, tensor.row_stride), (heads, tensor.head_stride)];
        let unfit = |(size, stride): &(usize, u64)| *size > 1 && !(1..1 << 39).contains(stride);
        if let Some((_, stride)) = used.into_iter().find(unfit) {
            return refuse(format!("{name} has a stride of {stride} elements"));
        }
        if problem.is_packed() {
            packed_rows(name, seqlen, tensor)?;
        }
    }
    Ok(())
}

/// Whether it takes packed sequences of so many rows in all, as [`TensorMap::packed`] says.
fn packed_rows(name: &str, rows: usize, tensor: DeviceTensor) -> Result<(), NotHopper> {
    let most = TensorMap::PACKED_END;
    if rows > most as usize {
        return refuse(format!("{name} has {rows} rows of packed sequences, and {most} is the most"));
    }
    if rows > 1 && 2 * tensor.row_stride >= TensorMap::WRAP_BYTES {
        return refuse(format!("{name} has a stride of {} elements between packed rows", tensor.row_stride));
    }
    Ok(())
}
