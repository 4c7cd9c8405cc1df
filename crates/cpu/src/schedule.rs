//! Hands units of work to threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `work` on units 0 to `units - 1`, handed out in this order to at most `threads` threads of the current rayon
/// pool, each with a scratch of its own. A unit is begun only when all before it have been.
pub(crate) fn run<S>(
    threads: usize,
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
    match threads.min(units) {
        0 | 1 => worker(),
        threads => rayon::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|_| worker());
            }
            worker();
        }),
    }
}
