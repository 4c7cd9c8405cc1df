//! Values by GPU and name, each made once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One value, once it is made; locked while it is being made.
type Slot<V> = Arc<Mutex<Option<V>>>;

/// Values by GPU and name. Who asks for one that another thread is making waits for it; other names go on.
pub(super) struct OnceMap<V> {
    slots: Mutex<HashMap<u32, HashMap<String, Slot<V>>>>,
}

impl<V> Default for OnceMap<V> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<V> fmt::Debug for OnceMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = lock(&self.slots).values().map(HashMap::len).sum::<usize>();
        write!(f, "OnceMap({names})")
    }
}

impl<V: Clone> OnceMap<V> {
    /// The value of this name, made by `make` if it is not there. An error or a panic of `make` leaves no value.
    pub(super) fn get_or_try_insert<E>(
        &self,
        ordinal: u32,
        name: &str,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, E> {
        let slot = self.slot(ordinal, name);
        let mut value = lock(&slot);
        if let Some(value) = &*value {
            return Ok(value.clone());
        }
        Ok(value.insert(make()?).clone())
    }

    fn slot(&self, ordinal: u32, name: &str) -> Slot<V> {
        let mut slots = lock(&self.slots);
        let of_device = slots.entry(ordinal).or_default();
        if let Some(slot) = of_device.get(name) {
            return slot.clone();
        }
        of_device.entry(name.to_owned()).or_default().clone()
    }
}

/// A panic elsewhere left either no value or a whole one, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn threads_that_ask_for_one_name_make_it_once() {
        let (map, made, barrier) = (OnceMap::default(), AtomicU32::new(0), Barrier::new(8));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let value = map.get_or_try_insert(0, "kernel", || {
                        thread::sleep(Duration::from_millis(20));
                        Ok::<_, Infallible>(made.fetch_add(1, Ordering::Relaxed) + 7)
                    });
                    assert_eq!(value, Ok(7));
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn another_name_can_be_made_meanwhile() {
        let map = OnceMap::default();
        let outer = map.get_or_try_insert(0, "a", || {
            let inner = map.get_or_try_insert(0, "b", || Ok::<_, Infallible>(1))?;
            Ok::<_, Infallible>(inner + 1)
        });
        assert_eq!(outer, Ok(2));
    }

    #[test]
    fn devices_have_values_of_their_own() {
        let map = OnceMap::default();
        assert_eq!(map.get_or_try_insert(0, "a", || Ok::<_, Infallible>(1)), Ok(1));
        assert_eq!(map.get_or_try_insert(1, "a", || Ok::<_, Infallible>(2)), Ok(2));
        assert_eq!(map.get_or_try_insert(0, "a", || Ok::<_, Infallible>(3)), Ok(1));
    }

    #[test]
    fn an_error_or_a_panic_is_tried_again() {
        let map = OnceMap::default();
        assert_eq!(map.get_or_try_insert(0, "a", || Err::<u32, _>("no")), Err("no"));
        let panicked = thread::scope(|scope| {
            scope
                .spawn(|| map.get_or_try_insert(0, "a", || -> Result<u32, &str> { panic!("on purpose") }))
                .join()
        });
        assert!(panicked.is_err());
        assert_eq!(map.get_or_try_insert(0, "a", || Ok::<_, &str>(5)), Ok(5));
    }
}
