//! The end of the interpreter, while threads may still be calling.
//!
//! A daemon thread that asks for the interpreter's lock after its end is ended by CPython itself (before 3.14), in a
//! way that Rust's functions on its stack cannot take: the process would abort. So the end waits for calls that run
//! without the lock, and later ones keep it.

use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

static ENDING: AtomicBool = AtomicBool::new(false);
/// Calls that run without the lock.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// The process whose calls are counted: those of its parent's threads do not run in a forked one.
static COUNTED_IN: AtomicU64 = AtomicU64::new(0);

struct Running;

impl Running {
    fn new() -> Self {
        let forks = crate::pool::forks::behind();
        if COUNTED_IN.swap(forks, Ordering::Relaxed) != forks {
            RUNNING.store(0, Ordering::Relaxed);
        }
        RUNNING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `work` without the interpreter's lock, unless the interpreter is ending.
///
/// Whatever may wait for another call belongs in here: that one may be waiting for the interpreter's lock, to tell
/// the log something.
pub(crate) fn detached<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> R {
    if ENDING.load(Ordering::Relaxed) {
        return work();
    }
    let _running = Running::new();
    py.detach(work)
}

/// Runs `work` with the interpreter's lock, in a thread that does not have it; nothing if the interpreter is ending.
///
/// The end waits for it, as for calls that run without the lock: so the lock is there to be had.
pub(crate) fn attached<R>(work: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    let _running = Running::new();
    if ENDING.load(Ordering::SeqCst) {
        return None;
    }
    Python::try_attach(work)
}

/// Waits for the calls that run, and keeps the lock in those that come.
#[pyfunction]
fn end(py: Python<'_>) {
    ENDING.store(true, Ordering::SeqCst);
    let here = COUNTED_IN.load(Ordering::Relaxed) == crate::pool::forks::behind();
    while here && RUNNING.load(Ordering::SeqCst) > 0 {
        py.detach(|| std::thread::sleep(Duration::from_millis(1)));
    }
}

/// Has [`end`] called at the interpreter's end.
pub(crate) fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let end = wrap_pyfunction!(end, module)?;
    module.py().import("atexit")?.call_method1("register", (end,))?;
    Ok(())
}
