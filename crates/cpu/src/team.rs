//! Whose threads compute.

/// Threads that belong to somebody else, and are there already: those of the framework whose tensors these are. Where its
/// threads go on spinning after their own work, as OpenMP's do, others beside them would have to wait for the cores.
///
/// ```
/// use signflash_cpu::{CpuEngine, Team};
///
/// fn on_two(_threads: usize, work: &(dyn Fn() + Sync)) {
///     std::thread::scope(|scope| {
///         scope.spawn(work);
///         work();
///     });
/// }
/// let engine = CpuEngine::new().with_team(Team { threads: 2, run: on_two });
/// assert_eq!(engine.threads(), 2);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Team {
    /// How many they are, the calling thread included. It is given to `run` as it is, however many of them a call needs:
    /// what a team costs may depend on its size being always the same.
    pub threads: usize,
    /// Calls `work` once on each thread, at the same time, and returns when all have returned; one of them may be
    /// the calling thread. It may be fewer threads, down to one: whoever comes shares the work. `work` does not unwind.
    pub run: fn(threads: usize, work: &(dyn Fn() + Sync)),
}

/// Below this many floating-point operations waking other threads takes longer than the work.
const SERIAL_OPERATIONS: f64 = 5e6;

/// Who computes a pass: at most so many threads of a team, or else of the current rayon pool.
#[derive(Clone, Copy)]
pub(crate) struct Crew {
    pub(crate) threads: usize,
    pub(crate) team: Option<Team>,
}

impl Crew {
    /// The calling thread alone.
    pub(crate) const ALONE: Self = Self { threads: 1, team: None };

    /// So many threads for a pass of so many floating-point operations.
    pub(crate) fn of(threads: usize, team: Option<Team>, operations: f64) -> Self {
        if operations < SERIAL_OPERATIONS { Self::ALONE } else { Self { threads, team } }
    }
}
