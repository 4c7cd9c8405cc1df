//! The driver's library: found, initialised, and how old.

use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::sys::{self, CUresult};
use std::ffi::c_int;
use std::sync::OnceLock;

/// The first with stream-ordered memory, graphs as used here and PTX 7.4.
const OLDEST_DRIVER: (u32, u32) = (11, 4);

/// Loads and initialises the driver; false if it sees no GPU.
pub(crate) fn require_driver() -> Result<bool, CudaError> {
    // Only success is kept: a driver may be installed, or a GPU attached, while a process runs.
    static READY: OnceLock<()> = OnceLock::new();
    if READY.get().is_some() {
        return Ok(true);
    }
    if sys::library().is_none() {
        return Err(CudaError::NoDriver);
    }
    let version = driver_version()?;
    if version < OLDEST_DRIVER {
        return Err(CudaError::OldDriver { version, needed: OLDEST_DRIVER });
    }
    // SAFETY: the library is present, as seen above.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => Ok(false),
        result => {
            check(result, || Doing::LoadDriver)?;
            let _ = READY.set(());
            Ok(true)
        }
    }
}

/// The CUDA version that the driver, which must be present, supports.
pub(crate) fn driver_version() -> Result<(u32, u32), CudaError> {
    let mut version: c_int = 0;
    // SAFETY: callers have seen the library present, and this call needs no initialisation; `version` is valid for a
    // write.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, || Doing::LoadDriver)?;
    let version = version.max(0) as u32;
    Ok((version / 1000, version % 1000 / 10))
}

/// The driver's own build, which may change while its CUDA version stays; empty where the system does not say.
pub(crate) fn driver_build() -> &'static str {
    static BUILD: OnceLock<String> = OnceLock::new();
    BUILD.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    })
}
