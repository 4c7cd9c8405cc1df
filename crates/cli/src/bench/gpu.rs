//! A row on a GPU: tensors stay there, events time.

use super::case::{Case, Measured};
use super::check;
use super::tensors::Tensors;
use crate::args::Pass;
use crate::errors::Error;
use crate::files::{Data, FileElement};
use signflash_cuda::{CudaEngine, DeviceBuffer, EngineError, Event, Resident};
use std::time::Instant;

const WARM_UP: usize = 5;
const REPS: usize = 20;
/// Bytes that are filled, and how often, before several calls are timed as one: about 2 ms of an H200.
const HOLD_BYTES: usize = 64 << 20;
const HOLD_FILLS: usize = 100;

/// Runs a case.
pub(super) fn measure<T: FileElement>(
    case: &Case,
    engine: &CudaEngine,
    reps: Option<usize>,
    calls: usize,
) -> Result<Measured, Error> {
    let problem = case.problem()?;
    let mut tensors = Tensors::<T>::random(&problem, &case.joins);
    let operands = [&tensors.q, &tensors.k, &tensors.v, &tensors.dout].map(Vec::as_slice);
    let resident = Resident::new(engine, problem.clone(), operands)?;
    let resident = resident.with_scores(&tensors.joined.scores(&problem), case.joins.dbias)?;
    let call = || match case.pass {
        Pass::Fwd => resident.forward(),
        Pass::Bwd => resident.backward(),
    };
    let start = Instant::now();
    resident.forward()?;
    call()?;
    engine.stream().synchronize().map_err(EngineError::from)?;
    let first_ms = start.elapsed().as_secs_f64() * 1e3;
    tensors.out = resident.out().map_err(EngineError::from)?;
    tensors.lse = resident.lse().map_err(EngineError::from)?;
    if case.pass == Pass::Bwd {
        tensors.dq = resident.dq().map_err(EngineError::from)?;
        tensors.dk = resident.dk().map_err(EngineError::from)?;
        tensors.dv = resident.dv().map_err(EngineError::from)?;
        match &mut tensors.dbias {
            Some(Data::F32(dbias)) => *dbias = resident.dbias().map_err(EngineError::from)?,
            Some(Data::F16(dbias)) => *dbias = resident.dbias().map_err(EngineError::from)?,
            Some(Data::Bf16(dbias)) => *dbias = resident.dbias().map_err(EngineError::from)?,
            _ => {}
        }
        if let Some(dsinks) = &mut tensors.dsinks {
            *dsinks = resident.dsinks().map_err(EngineError::from)?;
        }
    }
    check::check(case, &problem, &tensors)?;
    for _ in 1..WARM_UP {
        call()?;
    }
    let mut hold = match calls {
        0 | 1 => None,
        _ => Some(DeviceBuffer::alloc(engine.device(), HOLD_BYTES).map_err(EngineError::from)?),
    };
    let mut times = Vec::new();
    for _ in 0..reps.unwrap_or(REPS).max(1) {
        times.push(timed(engine, &call, calls.max(1), hold.as_mut())?);
    }
    times.sort_by(f64::total_cmp);
    let (median_ms, min_ms) = (times[times.len() / 2], times[0]);
    let extra_bytes = if case.pass == Pass::Bwd { resident.workspace_bytes() } else { 0 };
    Ok(Measured { median_ms, min_ms, reps: times.len(), extra_bytes, first_ms: Some(first_ms) })
}

/// The share of one of so many calls. Several queue up behind other work, so that kernels are timed and not the host.
fn timed(
    engine: &CudaEngine,
    call: &impl Fn() -> Result<(), EngineError>,
    calls: usize,
    hold: Option<&mut DeviceBuffer>,
) -> Result<f64, EngineError> {
    if let Some(buffer) = hold {
        (0..HOLD_FILLS).try_for_each(|_| buffer.fill(engine.stream(), 0))?;
    }
    let start = Event::record(engine.stream())?;
    (0..calls).try_for_each(|_| call())?;
    let end = Event::record(engine.stream())?;
    end.synchronize()?;
    Ok(f64::from(end.ms_since(&start)?) / calls as f64)
}
