//! The driver's library, loaded while the program runs.

use libloading::Library;
use std::sync::OnceLock;

#[cfg(windows)]
const NAMES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// The library, loaded if it was not yet; `None` if this machine has none. It is never unloaded.
pub(crate) fn library() -> Option<&'static Library> {
    // Only success is kept: a driver may be installed while a process runs.
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    if LIBRARY.get().is_none() {
        // SAFETY: loading libcuda runs its initialisers, which NVIDIA makes safe to run in any process.
        let found = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok())?;
        // Another thread may have been faster; the system counts how often a library was loaded.
        let _ = LIBRARY.set(found);
    }
    LIBRARY.get()
}

/// The function of this name, looked up once; `None` where the driver is older than the function, or absent.
///
/// # Safety
/// `F` must be the pointer to a function that the driver's manual declares under this name.
pub(super) unsafe fn function<F: Copy>(known: &OnceLock<F>, name: &str) -> Option<F> {
    if let Some(function) = known.get() {
        return Some(*function);
    }
    // SAFETY: the caller's promise about `F`; the library is never unloaded.
    let found = unsafe { library()?.get::<F>(name) }.ok()?;
    Some(*known.get_or_init(|| *found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_no_driver_has_is_not_found() {
        let known: OnceLock<unsafe extern "system" fn()> = OnceLock::new();
        // SAFETY: no driver has a function of this name, and the pointer is not called.
        assert!(unsafe { function(&known, "cuNobodyHasThis") }.is_none());
        assert!(known.get().is_none());
    }
}
