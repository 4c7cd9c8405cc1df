//! The threads that a command runs with, and what the machine is called.

use crate::errors::Error;
use std::fs;

/// More threads than cores gain nothing, and so many more cost: they wait for each other.
const THREADS_PER_CORE: usize = 4;
/// On any machine so many threads may be asked for, to try what they do.
const FEW_THREADS: usize = 64;
/// What rayon reads where nothing else is said.
const THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// Starts the process's thread pool: `None` leaves it at what the environment says, else one thread a core.
///
/// # Errors
/// [`Error::Argument`] for a number that cannot help; [`Error::Threads`] if the system starts none.
pub fn set_threads(threads: Option<usize>) -> Result<(), Error> {
    // What is no number, and 0, are nothing to rayon either.
    let from_environment =
        || std::env::var(THREADS_VARIABLE).ok()?.parse().ok().filter(|&threads| threads > 0);
    let (argument, threads) = match threads {
        Some(threads) => ("--threads", threads),
        None => (THREADS_VARIABLE, from_environment().unwrap_or_else(cores)),
    };
    let most = FEW_THREADS.max(THREADS_PER_CORE * cores());
    if !(1..=most).contains(&threads) {
        let expected = format!("from 1 to {most} on a machine of {} cores", cores());
        return Err(Error::Argument { argument, expected, got: threads.to_string() });
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Error::Threads { threads, why: error.to_string() })
}

/// The CPU's name, or its architecture where the system does not tell.
pub fn cpu_model() -> String {
    let named = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_string())
    });
    named.unwrap_or_else(|| format!("{} ({})", std::env::consts::ARCH, std::env::consts::OS))
}

/// Hardware threads that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
