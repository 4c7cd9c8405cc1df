//! Lets the chunks of one head add to dq in their order, whoever computes them: sums in a fixed order are the same
//! bits for any number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// One chunk's place in the queue of its head. Every chunk walks the same steps; at each it may pass only after the
/// chunk before it has.
///
/// Nobody waits for ever: units of work are handed out in the order of the chunks, so the chunk waited for is done or
/// being computed by another thread, and the first of those waits for nobody.
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    /// Steps that the chunk before has done; `None` for the first.
    pub(crate) before: Option<&'a AtomicUsize>,
    /// Steps that this chunk has done.
    pub(crate) own: &'a AtomicUsize,
}

impl Turn<'_> {
    /// Returns once the chunk before has done `step`.
    pub(crate) fn wait(&self, step: usize) {
        let Some(before) = self.before else { return };
        let mut spins = 0u32;
        while before.load(Ordering::Acquire) <= step {
            spins += 1;
            if spins < 64 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Says that this chunk has done `step`. Steps are done in order.
    pub(crate) fn done(&self, step: usize) {
        self.own.store(step + 1, Ordering::Release);
    }
}
