//! How much memory there is, has been used, and would be needed.

mod allocator;
mod limits;

use crate::errors::Error;

/// Bytes in a unit that reads well.
pub fn readable(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// How many bytes more than before were allocated at some time during `work`.
pub fn extra_bytes<R>(work: impl FnOnce() -> R) -> (R, usize) {
    allocator::reset_peak();
    let before = allocator::used();
    let result = work();
    (result, allocator::peak().saturating_sub(before))
}

/// Memory that could be had without swapping, within the limits of the process and of its container; `None` where the
/// system does not tell.
pub fn available() -> Option<u64> {
    limits::available()
}

/// Refuses what the machine cannot hold, before the system kills the process for it.
///
/// # Errors
/// [`Error::Memory`].
pub fn check(what: &str, bytes: u64, remedy: &'static str) -> Result<(), Error> {
    match available() {
        Some(there) if bytes > there => Err(Error::Memory {
            what: what.to_string(),
            needed: readable(bytes),
            available: readable(there),
            remedy,
        }),
        _ => Ok(()),
    }
}
