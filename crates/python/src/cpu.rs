//! Calls on the CPU.

use crate::call::{Backward, Forward};
use crate::pool;
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, bf16, f16};
use signflash_cpu::CpuEngine;
use signflash_cuda::EngineError;

fn engine(threads: usize) -> CpuEngine {
    let engine = CpuEngine::new();
    if threads == 0 { engine } else { engine.with_threads(threads) }
}

/// # Safety
/// As [`crate::call::forward`].
pub(crate) unsafe fn forward(threads: usize, call: &Forward, problem: &Problem) -> Result<(), EngineError> {
    // SAFETY: the elements are of the call's dtype, by the caller's promise.
    unsafe {
        match call.dtype {
            Dtype::F32 => forward_of::<f32>(threads, call, problem),
            Dtype::F16 => forward_of::<f16>(threads, call, problem),
            Dtype::Bf16 => forward_of::<bf16>(threads, call, problem),
            other => Err(EngineError::Dtype(other)),
        }
    }
}

/// # Safety
/// As [`crate::call::forward`], for elements of type `T`.
unsafe fn forward_of<T: Element>(
    threads: usize,
    call: &Forward,
    problem: &Problem,
) -> Result<(), EngineError> {
    // SAFETY: the tensors are there and nobody else writes them, by the caller's promise.
    let (inputs, mut outputs) = unsafe {
        let inputs = Inputs { q: call.q.to_read::<T>(), k: call.k.to_read(), v: call.v.to_read() };
        let lse = lse(call.lse, problem).to_write::<f32>().data;
        let probs = call.probs.map(|probs| probs.to_write());
        (inputs, Outputs { out: call.out.to_write(), lse, probs })
    };
    Ok(pool::run(|| engine(threads).forward(problem, &inputs, &mut outputs))?)
}

/// # Safety
/// As [`crate::call::backward`].
pub(crate) unsafe fn backward(threads: usize, call: &Backward, problem: &Problem) -> Result<(), EngineError> {
    // SAFETY: the elements are of the call's dtype, by the caller's promise.
    unsafe {
        match call.dtype {
            Dtype::F32 => backward_of::<f32>(threads, call, problem),
            Dtype::F16 => backward_of::<f16>(threads, call, problem),
            Dtype::Bf16 => backward_of::<bf16>(threads, call, problem),
            other => Err(EngineError::Dtype(other)),
        }
    }
}

/// # Safety
/// As [`crate::call::backward`], for elements of type `T`.
unsafe fn backward_of<T: Element>(
    threads: usize,
    call: &Backward,
    problem: &Problem,
) -> Result<(), EngineError> {
    // SAFETY: the tensors are there and nobody else writes them, by the caller's promise.
    let (inputs, mut gradients) = unsafe {
        let inputs = Inputs { q: call.q.to_read::<T>(), k: call.k.to_read(), v: call.v.to_read() };
        let dlse = (call.dlse != 0).then(|| lse(call.dlse, problem).to_read::<f32>().data);
        let lse = lse(call.lse, problem).to_read::<f32>().data;
        let inputs = GradInputs { inputs, out: call.out.to_read(), lse, dout: call.dout.to_read(), dlse };
        let gradients =
            Gradients { dq: call.dq.to_write::<T>(), dk: call.dk.to_write(), dv: call.dv.to_write() };
        (inputs, gradients)
    };
    Ok(pool::run(|| engine(threads).backward(problem, &inputs, &mut gradients))?)
}

/// lse is dense.
fn lse(address: u64, problem: &Problem) -> crate::foreign::ForeignTensor {
    let shape = [1, 1, 1, problem.shape().lse_len()];
    crate::foreign::ForeignTensor { address, shape, strides: [0, 0, 0, 1] }
}
