//! Calls on the CPU.

use crate::call::{Backward, Forward};
use crate::error::CallError;
use crate::foreign::{floats, floats_mut};
use crate::joined::{ForeignBias, Joined};
use crate::{openmp, pool};
use signflash_core::{Dtype, Element, Problem, ResultOf, TensorName, bf16, f16};
use signflash_cpu::raw::{RawBias, RawGradInputs, RawGradients, RawInputs, RawOutputs, RawScoreInputs};
use signflash_cpu::{CpuEngine, Isa, IsaError};
use signflash_cuda::EngineError;
use std::sync::OnceLock;

/// The engine of every call: on the instruction set that `SIGNFLASH_ISA` names, else on the fastest.
///
/// # Errors
/// [`CallError::Isa`].
pub(crate) fn engine() -> Result<CpuEngine, CallError> {
    static CHOSEN: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| match std::env::var("SIGNFLASH_ISA") {
        Ok(name) if !name.is_empty() => name.parse::<Isa>()?.require(),
        _ => Ok(Isa::best()),
    });
    Ok(CpuEngine::new().with_isa(chosen.clone()?)?)
}

/// Why calls use this instruction set.
#[cfg(feature = "extension")]
pub(crate) fn why(isa: Isa) -> String {
    let best = Isa::choice();
    if isa == best.isa { best.because } else { format!("SIGNFLASH_ISA says so; {} is the fastest", best.isa) }
}

/// Runs `work` with an engine of at most so many threads: PyTorch's own if they can be had; 0 is all of ours.
fn on_threads<R: Send>(threads: usize, work: impl FnOnce(CpuEngine) -> R + Send) -> Result<R, CallError> {
    let engine = engine()?;
    match threads {
        0 => pool::run(|| work(engine)),
        1 => Ok(work(engine.with_threads(1))),
        _ => {
            let engine = engine.with_threads(threads.min(pool::most_threads()));
            match openmp::team(threads) {
                Some(team) => Ok(work(engine.with_team(team))),
                None => pool::run(|| work(engine)),
            }
        }
    }
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
    if call.adds {
        return Err(CallError::Adds);
    }
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
    Ok(on_threads(threads, |engine| unsafe { engine.forward_raw(problem, &inputs, outputs) })??)
}

/// # Safety
/// As [`crate::call::backward`].
pub(crate) unsafe fn backward(threads: usize, call: &Backward, problem: &Problem) -> Result<(), CallError> {
    if call.adds != [false; 2] {
        return Err(CallError::Adds);
    }
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
    Ok(on_threads(threads, |engine| unsafe { engine.backward_raw(problem, &inputs, gradients) })??)
}
