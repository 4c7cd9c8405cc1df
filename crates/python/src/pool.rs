//! Threads for the CPU engine.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A pool, and the process that it was made in.
type Owned = (u32, Arc<ThreadPool>);

/// Runs `work` where rayon has threads. A process that was forked (as Python's `multiprocessing` does on Linux)
/// inherits rayon's pool without its threads and would wait for them for ever: it gets a pool of its own.
pub(crate) fn run<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    static FIRST: OnceLock<u32> = OnceLock::new();
    let process = std::process::id();
    if *FIRST.get_or_init(|| process) == process {
        return work();
    }
    match forked(process) {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// The pool of a forked process; none if it cannot have threads, and then rayon says so.
fn forked(process: u32) -> Option<Arc<ThreadPool>> {
    static POOL: Mutex<Option<Owned>> = Mutex::new(None);
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, pool)) = &*pool
        && *owner == process
    {
        return Some(pool.clone());
    }
    let made = Arc::new(ThreadPoolBuilder::new().build().ok()?);
    // A pool of the parent's has no threads here that could be stopped: it is forgotten, not dropped.
    if let Some(old) = pool.replace((process, made.clone())) {
        std::mem::forget(old);
    }
    Some(made)
}
