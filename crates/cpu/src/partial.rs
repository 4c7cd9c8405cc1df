//! Partial sums of dq for gradients of 16 bits: f32 rows of the heads being worked on, and of no others.

use crate::view::FloatsMut;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The buffers of all heads. A head takes one when its first unit begins and gives it back when its last one ends.
pub(crate) struct Partials {
    floats: usize,
    heads: Vec<Mutex<Head>>,
    free: Mutex<Vec<Vec<f32>>>,
}

struct Head {
    buffer: Option<Vec<f32>>,
    units_left: usize,
}

impl Partials {
    /// For heads of so many units each, and of so many floats at most.
    pub(crate) fn new(units: impl Iterator<Item = usize>, floats: usize) -> Self {
        let heads = units.map(|units_left| Mutex::new(Head { buffer: None, units_left })).collect();
        Self { floats, heads, free: Mutex::default() }
    }

    /// The head's buffer, its contents arbitrary at first. Valid until the head's last unit has called
    /// [`done`](Self::done).
    pub(crate) fn get(&self, head: usize) -> FloatsMut<'_> {
        let mut head = lock(&self.heads[head]);
        let buffer = head
            .buffer
            .get_or_insert_with(|| lock(&self.free).pop().unwrap_or_else(|| vec![0.0; self.floats]));
        // SAFETY: the buffer stays with its head, and its floats where they are, until the head's last unit is
        // `done`; only units of that head ask for it.
        unsafe { FloatsMut::from_raw(buffer.as_mut_ptr()) }
    }

    /// One unit of the head has ended.
    pub(crate) fn done(&self, head: usize) {
        let mut head = lock(&self.heads[head]);
        head.units_left -= 1;
        if head.units_left == 0 {
            lock(&self.free).extend(head.buffer.take());
        }
    }
}

/// A panic elsewhere leaves nothing half-done behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
