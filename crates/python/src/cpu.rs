//! Calls on the CPU.

use crate::call::{Backward, Forward};
use crate::error::CallError;
use crate::foreign::{floats, floats_mut};
use crate::joined::{ForeignBias, Joined};
use crate::pool;
use signflash_core::{Dtype, Element, Problem, ResultOf, TensorName, bf16, f16};
use signflash_cpu::CpuEngine;
use signflash_cpu::raw::{RawBias, RawGradInputs, RawGradients, RawInputs, RawOutputs, RawScoreInputs};
use signflash_cuda::EngineError;

fn engine(threads: usize) -> CpuEngine {
    let engine = CpuEngine::new();
    if threads == 0 { engine } else { engine.with_threads(threads) }
}

fn bias(bias: &ForeignBias) -> Result<RawBias, EngineError> {
    match bias.dtype {
        Dtype::F32 => Ok(RawBias::F32(bias.tensor.raw())),
        Dtype::F16 => Ok(RawBias::F16(bias.tensor.raw())),
        Dtype::Bf16 => Ok(RawBias::Bf16(bias.tensor.raw())),
        other => Err(EngineError::Dtype(other)),
    }
}

/// # Safety
/// As [`crate::call::forward`].
unsafe fn scores<'a>(joined: &Joined, problem: &Problem) -> Result<RawScoreInputs<'a>, CallError> {
    let Joined { alibi_slopes, bias: added, mask, sinks } = joined;
    let sinks = sinks.map(|sinks| {
        // SAFETY: so many f32 are there, dense, and nobody writes them, by the caller's promise.
        unsafe { floats(TensorName::Sinks, sinks.address, problem.shape().num_heads) }
    });
    let scores = RawScoreInputs::default()
        .alibi_slopes(alibi_slopes.map(|slopes| slopes.raw()))
        .bias(added.as_ref().map(bias).transpose()?)
        .mask(mask.map(|mask| mask.raw()))
        .sinks(sinks.transpose()?);
    Ok(scores)
}

/// # Safety
/// As [`crate::call::forward`].
pub(crate) unsafe fn forward(threads: usize, call: &Forward, problem: &Problem) -> Result<(), CallError> {
    // SAFETY: the elements are of the call's dtype, by the caller's promise.
    unsafe {
        match (call.dtype, call.results) {
            (Dtype::F32, Dtype::F32) => forward_of::<f32, f32>(threads, call, problem),
            (Dtype::F16, Dtype::F16) => forward_of::<f16, f16>(threads, call, problem),
            (Dtype::F16, Dtype::F32) => forward_of::<f16, f32>(threads, call, problem),
            (Dtype::Bf16, Dtype::Bf16) => forward_of::<bf16, bf16>(threads, call, problem),
            (Dtype::Bf16, Dtype::F32) => forward_of::<bf16, f32>(threads, call, problem),
            (other, _) => Err(EngineError::Dtype(other).into()),
        }
    }
}

/// # Safety
/// As [`crate::call::forward`], for elements of type `T` and results of type `R`.
unsafe fn forward_of<T: Element, R: Element + ResultOf<T>>(
    threads: usize,
    call: &Forward,
    problem: &Problem,
) -> Result<(), CallError> {
    // SAFETY: the caller's promise.
    let scores = unsafe { scores(&call.joined, problem) }?;
    let inputs = RawInputs::new(call.q.raw::<T>(), call.k.raw(), call.v.raw()).scores(scores);
    // SAFETY: lse is there, (batch, num_heads, seqlen_q) of f32, and nobody else uses it, by the caller's promise.
    let lse = unsafe { floats_mut(TensorName::Lse, call.lse, problem.shape().lse_len()) }?;
    let outputs = RawOutputs::new(call.out.raw::<R>(), lse).probs(call.probs.map(|probs| probs.raw()));
    // SAFETY: the tensors are there and nobody else writes them, by the caller's promise.
    Ok(pool::run(|| unsafe { engine(threads).forward_raw(problem, &inputs, outputs) })??)
}

/// # Safety
/// As [`crate::call::backward`].
pub(crate) unsafe fn backward(threads: usize, call: &Backward, problem: &Problem) -> Result<(), CallError> {
    // SAFETY: the elements are of the call's dtype, by the caller's promise.
    unsafe {
        match (call.dtype, call.results) {
            (Dtype::F32, Dtype::F32) => backward_of::<f32, f32>(threads, call, problem),
            (Dtype::F16, Dtype::F16) => backward_of::<f16, f16>(threads, call, problem),
            (Dtype::F16, Dtype::F32) => backward_of::<f16, f32>(threads, call, problem),
            (Dtype::Bf16, Dtype::Bf16) => backward_of::<bf16, bf16>(threads, call, problem),
            (Dtype::Bf16, Dtype::F32) => backward_of::<bf16, f32>(threads, call, problem),
            (other, _) => Err(EngineError::Dtype(other).into()),
        }
    }
}

/// # Safety
/// As [`crate::call::backward`], for elements of type `T` and results of type `R`.
unsafe fn backward_of<T: Element, R: Element + ResultOf<T>>(
    threads: usize,
    call: &Backward,
    problem: &Problem,
) -> Result<(), CallError> {
    let len = problem.shape().lse_len();
    let rows = |tensor, address| {
        // SAFETY: (batch, num_heads, seqlen_q) of f32 are there, and nobody writes them, by the caller's promise.
        unsafe { floats(tensor, address, len) }
    };
    // SAFETY: the caller's promise.
    let scores = unsafe { scores(&call.joined, problem) }?;
    let inputs = RawInputs::new(call.q.raw::<T>(), call.k.raw(), call.v.raw()).scores(scores);
    let lse = rows(TensorName::Lse, call.lse)?;
    let dlse = (call.dlse != 0).then(|| rows(TensorName::Dlse, call.dlse)).transpose()?;
    let inputs = RawGradInputs::new(inputs, call.out.raw(), lse, call.dout.raw()).dlse(dlse);
    let dsinks = (call.dsinks != 0).then(|| {
        // SAFETY: so many f32 have just been allocated, and nobody else uses them, by the caller's promise.
        unsafe { floats_mut(TensorName::Dsinks, call.dsinks, problem.shape().num_heads) }
    });
    let gradients = RawGradients::new(call.dq.raw::<R>(), call.dk.raw(), call.dv.raw())
        .dbias(call.dbias.as_ref().map(bias).transpose()?)
        .dsinks(dsinks.transpose()?);
    // SAFETY: the tensors are there and nobody else writes them, by the caller's promise.
    Ok(pool::run(|| unsafe { engine(threads).backward_raw(problem, &inputs, gradients) })??)
}
