//! Hands units of work to threads.

use crate::team::{Crew, Team};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `work` on units 0 to `units - 1`, handed out in this order to the calling thread and to as many others as the crew
/// has, each with a scratch of its own. A unit is begun only when all before it have been.
pub(crate) fn run<S>(
    crew: Crew,
    units: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) + Sync,
) {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut mine = None;
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            work(mine.get_or_insert_with(&scratch), unit);
        }
    };
    match (crew.threads.min(units), crew.team) {
        (0 | 1, _) => worker(),
        (threads, Some(team)) => run_on(team, threads, &worker),
        // In place: the caller begins at once, and does not wait for threads to wake up.
        (threads, None) => rayon::in_place_scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|_| worker());
            }
            worker();
        }),
    }
}

/// Runs `worker` on at most so many threads of a team. A panic stays on its thread until all have returned.
fn run_on(team: Team, threads: usize, worker: &(impl Fn() + Sync)) {
    let begun = AtomicUsize::new(0);
    let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
    (team.run)(team.threads, &|| {
        if begun.fetch_add(1, Ordering::Relaxed) < threads
            && let Err(payload) = catch_unwind(AssertUnwindSafe(worker))
            && let Ok(mut panic) = panic.lock()
        {
            *panic = Some(payload);
        }
    });
    if let Ok(Some(payload)) = panic.into_inner() {
        resume_unwind(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn on_scoped_threads(threads: usize, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(work)));
            work();
        });
    }

    fn on_the_caller(_: usize, work: &(dyn Fn() + Sync)) {
        work();
    }

    /// The units that were computed, and by how many threads.
    fn computed(crew: Crew, units: usize) -> (Vec<usize>, usize) {
        let (done, threads) = (Mutex::new(Vec::new()), Mutex::new(BTreeSet::new()));
        run(
            crew,
            units,
            || threads.lock().unwrap().insert(format!("{:?}", std::thread::current().id())),
            |_, unit| done.lock().unwrap().push(unit),
        );
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        (done, threads.into_inner().unwrap().len())
    }

    #[test]
    fn each_unit_is_computed_once_by_no_more_threads_than_were_allowed() {
        for run in [on_scoped_threads, on_the_caller] {
            for (threads, units) in [(3, 100), (2, 100), (8, 3), (1, 5), (2, 0)] {
                let (done, by) = computed(Crew { threads, team: Some(Team { threads: 8, run }) }, units);
                assert_eq!(done, (0..units).collect::<Vec<_>>());
                assert!(by <= threads.min(units), "{by} threads of {threads} for {units} units");
            }
        }
        assert_eq!(computed(Crew { threads: 4, team: None }, 50).0, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_on_a_team_s_thread_reaches_the_caller_when_all_have_returned() {
        let team = Team { threads: 4, run: on_scoped_threads };
        let done = AtomicUsize::new(0);
        let call = || {
            run(
                Crew { threads: 4, team: Some(team) },
                64,
                || (),
                |(), unit| {
                    assert!(unit != 7, "the eighth unit fails");
                    done.fetch_add(1, Ordering::Relaxed);
                },
            );
        };
        let payload = catch_unwind(AssertUnwindSafe(call)).expect_err("a unit failed");
        assert_eq!(payload.downcast_ref(), Some(&"the eighth unit fails"));
        assert_eq!(done.into_inner(), 63);
    }
}
