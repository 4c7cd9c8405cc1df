//! How much memory there is, has been used, and would be needed.

use crate::errors::Error;
use crate::files::{FileError, listing};
use std::fs;

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

/// Memory that could be had without swapping; `None` where the system does not tell.
pub fn available() -> Option<u64> {
    kib_field("/proc/meminfo", "MemAvailable:")
}

/// Resident memory of this process.
pub fn resident() -> Option<u64> {
    kib_field("/proc/self/status", "VmRSS:")
}

/// The largest resident memory of this process since [`reset_peak`].
pub fn peak() -> Option<u64> {
    kib_field("/proc/self/status", "VmHWM:")
}

/// Starts a new measurement of [`peak`]; `None` where the system cannot.
pub fn reset_peak() -> Option<()> {
    fs::write("/proc/self/clear_refs", "5").ok()
}

fn kib_field(path: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Refuses to read more than the machine can hold: a sparse file or a zip bomb of true sizes is larger than any limit
/// on the file itself would notice.
pub(crate) fn check_file(names: &[&str], bytes: u64) -> Result<(), FileError> {
    match available() {
        Some(there) if bytes > there => Err(FileError::Memory {
            names: listing(names),
            needed: readable(bytes),
            available: readable(there),
        }),
        _ => Ok(()),
    }
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
