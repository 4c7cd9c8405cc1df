//! What a row takes, on the CPU; `gpu` measures on a GPU.

use super::case::{Case, Measured};
use super::tensors::Tensors;
use super::{check, gpu};
use crate::args::Pass;
use crate::engine::Engine;
use crate::errors::Error;
use crate::files::FileElement;
use crate::memory;
use std::time::Instant;

/// Without --reps: so long, and so many.
const SECONDS: f64 = 1.0;
const REPS: std::ops::RangeInclusive<usize> = 3..=30;

/// Runs a case.
pub(super) fn measure<T: FileElement>(
    case: &Case,
    engine: &Engine,
    reps: Option<usize>,
    calls: usize,
) -> Result<Measured, Error> {
    if let Engine::Cuda(engine) = engine {
        return gpu::measure::<T>(case, engine, reps, calls);
    }
    let problem = case.problem()?;
    let mut tensors = Tensors::<T>::random(&problem, &case.joins);
    if case.pass == Pass::Bwd {
        tensors.call(engine, &problem, Pass::Fwd)?;
    }
    let (called, extra_bytes) = memory::extra_bytes(|| tensors.call(engine, &problem, case.pass));
    called?;
    check::check(case, &problem, &tensors)?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while match reps {
        Some(reps) => times.len() < reps.max(1),
        None => {
            times.len() < *REPS.start()
                || (times.len() < *REPS.end() && begin.elapsed().as_secs_f64() < SECONDS)
        }
    } {
        let (start, calls) = (Instant::now(), calls.max(1));
        (0..calls).try_for_each(|_| tensors.call(engine, &problem, case.pass))?;
        times.push(start.elapsed().as_secs_f64() * 1e3 / calls as f64);
    }
    times.sort_by(f64::total_cmp);
    let (median_ms, min_ms) = (times[times.len() / 2], times[0]);
    Ok(Measured { median_ms, min_ms, reps: times.len(), extra_bytes, first_ms: None })
}
