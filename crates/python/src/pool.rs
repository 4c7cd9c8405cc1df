//! Threads for the CPU engine, in every process that there is one of.

use crate::error::CallError;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::thread::available_parallelism;

/// More threads than this for each core only take turns: `RAYON_NUM_THREADS` is not followed beyond it.
const MOST_PER_CORE: usize = 4;

/// Runs `work` where rayon has threads. A process that was forked (as Python's `multiprocessing` does on Linux)
/// inherits rayon's pool without its threads and would wait for them for ever: it gets a pool of its own.
///
/// # Errors
/// [`CallError::Threads`] where the system gives none.
pub(crate) fn run<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, CallError> {
    let forks = forks::behind();
    if forks == 0 && rayons_own() {
        return Ok(work());
    }
    Ok(after(forks)?.install(work))
}

/// Makes rayon's own pool, once, and says whether it could be made. (Left to itself rayon panics if it cannot.)
fn rayons_own() -> bool {
    static MADE: OnceLock<bool> = OnceLock::new();
    *MADE.get_or_init(|| builder().build_global().is_ok())
}

/// A pool, and how many forks lie behind the process that it was made in.
struct Owned {
    forks: u64,
    pool: ThreadPool,
}

/// The pool of this process. There is no lock: the one of a thread that a fork left behind would never be opened.
fn after(forks: u64) -> Result<&'static ThreadPool, CallError> {
    static POOL: AtomicPtr<Owned> = AtomicPtr::new(null_mut());
    let known = POOL.load(Ordering::Acquire);
    // SAFETY: what is stored is null or a leaked box, which nobody frees or changes.
    if let Some(owned) = unsafe { known.as_ref() }
        && owned.forks == forks
    {
        return Ok(&owned.pool);
    }
    let pool = builder().build().map_err(|error| CallError::Threads(error.to_string()))?;
    let made = Box::into_raw(Box::new(Owned { forks, pool }));
    // A pool of the parent's has no threads here that could be stopped: it is forgotten, not dropped.
    let owned = match POOL.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => made,
        Err(others) => {
            // SAFETY: `made` was boxed above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(made) });
            others
        }
    };
    // SAFETY: as above; another thread of this process can only have stored a pool of this process.
    Ok(unsafe { &(*owned).pool })
}

fn builder() -> ThreadPoolBuilder {
    ThreadPoolBuilder::new().num_threads(most_threads())
}

/// How many threads a call may use, whoever's they are: what `RAYON_NUM_THREADS` says, else one for each core that this
/// process may use, by its affinity and its cgroup. Looked up once, since that takes the system longer than a short call; by
/// whom does not matter, and nobody waits for anybody.
pub(crate) fn most_threads() -> usize {
    static MOST: AtomicUsize = AtomicUsize::new(0);
    match MOST.load(Ordering::Relaxed) {
        0 => {
            let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|asked| asked.parse().ok());
            let most = threads(asked, available_parallelism().map_or(1, usize::from));
            MOST.store(most, Ordering::Relaxed);
            most
        }
        most => most,
    }
}

fn threads(asked: Option<usize>, cores: usize) -> usize {
    let most = cores * MOST_PER_CORE;
    match asked.filter(|&asked| asked > 0) {
        Some(asked) if asked > most => {
            log::warn!("RAYON_NUM_THREADS is {asked}, far above {cores} cores: {most} threads are used");
            most
        }
        Some(asked) => asked,
        None => cores,
    }
}

/// How often the process was forked since this code was loaded. Process ids would not tell: they are given out again.
pub(crate) mod forks {
    use std::sync::atomic::{AtomicU64, Ordering};

    static BEHIND: AtomicU64 = AtomicU64::new(0);

    #[cfg(unix)]
    extern "C" fn in_child() {
        BEHIND.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of forks; what is the same in two moments of one process, and another in each of its children.
    pub(crate) fn behind() -> u64 {
        #[cfg(unix)]
        {
            static WATCHED: std::sync::Once = std::sync::Once::new();
            WATCHED.call_once(|| {
                // SAFETY: the handler adds to an atomic number and does nothing else, which is allowed in the child
                // of a process with threads.
                let refused = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
                assert_eq!(refused, 0, "the system has no memory to watch forks");
            });
        }
        BEHIND.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_not_asked_for_far_above_the_cores() {
        assert_eq!(threads(Some(100_000), 2), 8);
        assert_eq!(threads(Some(8), 2), 8);
        assert_eq!(threads(Some(1), 2), 1);
        assert_eq!([threads(None, 2), threads(Some(0), 2)], [2, 2]);
    }

    #[test]
    fn work_is_run_in_a_pool_of_each_fork() {
        assert_eq!(run(|| 1).unwrap(), 1);
        let of = |forks| std::ptr::from_ref(after(forks).unwrap());
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }
}
