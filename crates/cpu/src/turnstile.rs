//! Lets the chunks of one head add to dq in their order, whoever computes them: sums in a fixed order are the same
//! bits for any number of threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// One chunk's place in the queue of its head. Every chunk walks the same steps; at each it may pass only after the
/// chunk before it has.
///
/// Nobody waits for ever: units of work are handed out in the order of the chunks, so the chunk waited for is done or
/// being computed by another thread, and the first of those waits for nobody. A unit that panics is never done, but
/// says so ([`TellsOfPanic`]), and whoever waits then panics, too: the call ends with a panic and not never.
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    /// Steps that the chunk before has done; `None` for the first.
    pub(crate) before: Option<&'a AtomicUsize>,
    /// Steps that this chunk has done.
    pub(crate) own: &'a AtomicUsize,
    /// Whether a unit of the call has panicked.
    pub(crate) panicked: &'a AtomicBool,
}

/// Held while a unit is computed.
pub(crate) struct TellsOfPanic<'a>(pub(crate) &'a AtomicBool);

impl Drop for TellsOfPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Release);
        }
    }
}

impl Turn<'_> {
    /// Returns once the chunk before has done `step`.
    ///
    /// # Panics
    /// If a unit of the call has panicked, since the chunk before may be that one.
    pub(crate) fn wait(&self, step: usize) {
        let Some(before) = self.before else { return };
        let mut spins = 0u32;
        while before.load(Ordering::Acquire) <= step {
            spins += 1;
            if spins < 64 {
                std::hint::spin_loop();
            } else {
                assert!(!self.panicked.load(Ordering::Acquire), "another part of the same call panicked");
                std::thread::yield_now();
            }
        }
    }

    /// Says that this chunk has done `step`. Steps are done in order.
    pub(crate) fn done(&self, step: usize) {
        self.own.store(step + 1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule;
    use crate::team::Crew;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn who_waits_for_a_unit_that_panicked_panics() {
        let steps: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
        let panicked = AtomicBool::new(false);
        let work = |(): &mut (), unit: usize| {
            let before = (unit > 0).then(|| &steps[unit - 1]);
            let turn = Turn { before, own: &steps[unit], panicked: &panicked };
            let _tells_others = TellsOfPanic(&panicked);
            turn.wait(0);
            assert!(unit != 2, "the third unit fails");
            turn.done(0);
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().expect("threads");
        let run = || pool.install(|| schedule::run(Crew { threads: 4, team: None }, 8, || (), work));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        assert_eq!(steps[1].load(Ordering::Relaxed), 1);
        assert!(steps[2..].iter().all(|step| step.load(Ordering::Relaxed) == 0));
    }
}
