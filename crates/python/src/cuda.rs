//! Calls on a GPU.

use crate::call::{Backward, Forward};
use crate::error::CallError;
use crate::foreign::ForeignTensor;
use crate::joined::Joined;
use crate::lengths::CuSeqlens;
use signflash_core::{Dtype, Problem};
#[cfg(feature = "extension")]
use signflash_cuda::CudaError;
use signflash_cuda::{CudaEngine, Device, EngineError, Stream};
use signflash_kernels::{
    BackwardCall, DeviceScoreTensor, DeviceScores, ForwardCall, Half, Order, Stored, half_of,
};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The engine of a GPU: made once, and kept with its compiled kernels for as long as the process lives.
pub(crate) fn engine(ordinal: u32) -> Result<CudaEngine, EngineError> {
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

/// The format of operands.
fn half(dtype: Dtype) -> Result<Half, EngineError> {
    half_of(dtype).ok_or(EngineError::Dtype(dtype))
}

/// How results of a dtype are stored. What is added is f32.
fn stored(dtype: Dtype, results: Dtype, adds: bool) -> Result<Stored, EngineError> {
    match (results, adds) {
        (Dtype::F32, true) => Ok(Stored::Added),
        (Dtype::F32, false) => Ok(Stored::Wide),
        (_, false) if results == dtype => Ok(Stored::Rounded),
        (other, _) => Err(EngineError::Dtype(other)),
    }
}

/// The call, of packed sequences if there are some.
fn begin<'a>(call: ForwardCall<'a>, cu_seqlens: Option<CuSeqlens>) -> ForwardCall<'a> {
    cu_seqlens.map_or(call, |starts| call.with_cu_seqlens([starts.q.address, starts.k.address]))
}

fn entries(tensor: ForeignTensor) -> DeviceScoreTensor {
    DeviceScoreTensor::of(tensor.address, tensor.strides)
}

fn scores(joined: &Joined) -> DeviceScores {
    let Joined { alibi_slopes, bias, mask, sinks } = *joined;
    let address = |tensor: Option<ForeignTensor>| tensor.map_or(0, |tensor| tensor.address);
    DeviceScores {
        alibi_slopes: address(alibi_slopes),
        bias: bias.map(|bias| entries(bias.tensor)),
        mask: mask.map(entries),
        sinks: address(sinks),
    }
}

/// # Safety
/// As [`crate::call::forward`]; `stream` is a stream of this GPU's primary context.
pub(crate) unsafe fn forward(
    ordinal: u32,
    stream: u64,
    call: &Forward,
    problem: &Problem,
) -> Result<(), CallError> {
    let (half, stored) = (half(call.dtype)?, stored(call.dtype, call.results, call.adds)?);
    let engine = engine(ordinal)?;
    let inputs = [call.q, call.k, call.v].map(|tensor| tensor.on_gpu(Order::RowsFirst));
    let forward = ForwardCall::new(problem, half, inputs, call.out.on_gpu(Order::RowsFirst), call.lse)
        .with_stored(stored)
        .with_probs(call.probs.map(|probs| probs.on_gpu(Order::HeadsFirst)))
        .with_seed_and_offset_ptr(call.state.address)
        .with_scores(scores(&call.joined))
        .with_workspace(call.workspace);
    let forward = begin(forward, call.cu_seqlens);
    // Of packed sequences each has a matrix, and only the tensor says how large.
    let forward = match call.probs {
        Some(ForeignTensor { shape: [_, _, rows, columns], .. }) if problem.is_packed() => {
            forward.with_probs_sizes([rows, columns])
        }
        _ => forward,
    };
    // SAFETY: the stream is the caller's, who keeps it; the tensors are there by the caller's promise, and fit.
    Ok(unsafe { engine.forward_on(&Stream::from_raw(engine.device(), stream), &forward) }?)
}

/// # Safety
/// As [`crate::call::backward`]; `stream` is a stream of this GPU's primary context.
pub(crate) unsafe fn backward(
    ordinal: u32,
    stream: u64,
    call: &Backward,
    problem: &Problem,
) -> Result<(), CallError> {
    let half = half(call.dtype)?;
    let [of_q, of_keys] = call.adds.map(|adds| stored(call.dtype, call.results, adds));
    let engine = engine(ordinal)?;
    let on_gpu = |tensor: &ForeignTensor| tensor.on_gpu(Order::RowsFirst);
    let inputs = [&call.q, &call.k, &call.v].map(on_gpu);
    let forward = ForwardCall::new(problem, half, inputs, on_gpu(&call.out), call.lse)
        .with_seed_and_offset_ptr(call.state.address)
        .with_scores(scores(&call.joined));
    let forward = begin(forward, call.cu_seqlens);
    let gradients = [&call.dq, &call.dk, &call.dv].map(on_gpu);
    let backward = BackwardCall::of(&forward, on_gpu(&call.dout), gradients, call.workspace)
        .with_stored([of_q?, of_keys?])
        .with_dlse((call.dlse != 0).then_some(call.dlse))
        .with_dbias(call.dbias.map(|dbias| entries(dbias.tensor)))
        .with_dsinks((call.dsinks != 0).then_some(call.dsinks))
        .with_deterministic(call.deterministic);
    // SAFETY: as in `forward`.
    Ok(unsafe { engine.backward_on(&Stream::from_raw(engine.device(), stream), &backward) }?)
}

pub(crate) fn forward_workspace_bytes(ordinal: u32, problem: &Problem) -> Result<u64, CallError> {
    Ok(engine(ordinal)?.forward_workspace_bytes(problem))
}

pub(crate) fn workspace_bytes(
    ordinal: u32,
    problem: &Problem,
    deterministic: bool,
) -> Result<u64, CallError> {
    Ok(engine(ordinal)?.backward_workspace_bytes(problem, deterministic))
}

/// Whether this GPU is older than what kernels run on. One that cannot be asked is not: a call on it says why.
#[cfg(feature = "extension")]
pub(crate) fn is_too_old(ordinal: u32) -> bool {
    static OLD: Mutex<Option<HashMap<u32, bool>>> = Mutex::new(None);
    let mut old = OLD.lock().unwrap_or_else(PoisonError::into_inner);
    *old.get_or_insert_default()
        .entry(ordinal)
        .or_insert_with(|| matches!(Device::open(ordinal), Err(CudaError::OldGpu { .. })))
}
