//! Calls on a GPU.

use crate::call::{Backward, Forward};
use signflash_core::{Dtype, Problem};
use signflash_cuda::{CudaEngine, CudaError, Device, EngineError, Stream};
use signflash_kernels::{BackwardCall, ForwardCall, Half, half_of};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The engine of a GPU: made once, and kept with its compiled kernels for as long as the process lives.
pub(crate) fn engine(ordinal: u32) -> Result<CudaEngine, CudaError> {
    static ENGINES: Mutex<Option<HashMap<u32, CudaEngine>>> = Mutex::new(None);
    let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
    let engines = engines.get_or_insert_default();
    if let Some(engine) = engines.get(&ordinal) {
        return Ok(engine.clone());
    }
    let engine = CudaEngine::new(&Device::open(ordinal)?)?;
    engines.insert(ordinal, engine.clone());
    Ok(engine)
}

fn half(dtype: Dtype) -> Result<Half, EngineError> {
    half_of(dtype).ok_or(EngineError::Dtype(dtype))
}

/// # Safety
/// As [`crate::call::forward`]; `stream` is a stream of this GPU's primary context.
pub(crate) unsafe fn forward(
    ordinal: u32,
    stream: u64,
    call: &Forward,
    problem: &Problem,
) -> Result<(), EngineError> {
    let half = half(call.dtype)?;
    let engine = engine(ordinal)?;
    let call = ForwardCall {
        problem,
        half,
        q: call.q.rows_first(),
        k: call.k.rows_first(),
        v: call.v.rows_first(),
        out: call.out.rows_first(),
        lse: call.lse,
        probs: call.probs.map(|probs| probs.heads_first()),
        seed_and_offset_ptr: call.seed_and_offset,
    };
    // SAFETY: the stream is the caller's, who keeps it; the tensors are there by the caller's promise, and fit.
    unsafe { engine.forward_on(&Stream::from_raw(engine.device(), stream), &call) }
}

/// # Safety
/// As [`crate::call::backward`]; `stream` is a stream of this GPU's primary context.
pub(crate) unsafe fn backward(
    ordinal: u32,
    stream: u64,
    call: &Backward,
    problem: &Problem,
) -> Result<(), EngineError> {
    let half = half(call.dtype)?;
    let engine = engine(ordinal)?;
    let call = BackwardCall {
        problem,
        half,
        q: call.q.rows_first(),
        k: call.k.rows_first(),
        v: call.v.rows_first(),
        out: call.out.rows_first(),
        lse: call.lse,
        dout: call.dout.rows_first(),
        dlse: (call.dlse != 0).then_some(call.dlse),
        dq: call.dq.rows_first(),
        dk: call.dk.rows_first(),
        dv: call.dv.rows_first(),
        workspace: call.workspace,
        deterministic: call.deterministic,
        seed_and_offset_ptr: call.seed_and_offset,
    };
    // SAFETY: as in `forward`.
    unsafe { engine.backward_on(&Stream::from_raw(engine.device(), stream), &call) }
}

pub(crate) fn workspace_bytes(
    ordinal: u32,
    problem: &Problem,
    deterministic: bool,
) -> Result<u64, EngineError> {
    Ok(engine(ordinal)?.backward_workspace_bytes(problem, deterministic))
}
