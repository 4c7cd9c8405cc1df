//! What the driver answers, and what to do about it.

use crate::sys::{self, CUresult};
use std::ffi::{CStr, c_char};
use std::fmt;

/// What the driver answered: its number, name and text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverCode {
    /// The number of the `CUresult`.
    pub number: u32,
    /// Its name, such as `CUDA_ERROR_OUT_OF_MEMORY`.
    pub name: String,
    /// The driver's description of it.
    pub text: String,
}

impl fmt::Display for DriverCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.text)
    }
}

impl DriverCode {
    /// Asks the driver, which must have been loaded, what `result` is called.
    pub(crate) fn new(result: CUresult) -> Self {
        let (mut name, mut text): (*const c_char, *const c_char) = (std::ptr::null(), std::ptr::null());
        // SAFETY: a CUresult only comes from a loaded driver; both pointers are valid for a write.
        unsafe {
            let _ = sys::cuGetErrorName(result, &mut name);
            let _ = sys::cuGetErrorString(result, &mut text);
        }
        let read = |text: *const c_char, otherwise: String| {
            if text.is_null() {
                return otherwise;
            }
            // SAFETY: not null, and then the driver wrote the address of a static string that ends in NUL.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let number = result.0;
        Self { number, name: read(name, format!("CUDA error {number}")), text: read(text, "no text".into()) }
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        const fn is(number: u32, result: CUresult) -> bool {
            number == result.0
        }
        match self.number {
            n if is(n, CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                "free memory of the GPU (nvidia-smi shows who holds it) or split the problem"
            }
            n if is(n, CUresult::CUDA_ERROR_STUB_LIBRARY) => {
                "the library found is the CUDA toolkit's stub; put the driver's libcuda first in LD_LIBRARY_PATH"
            }
            n if is(n, CUresult::CUDA_ERROR_NO_DEVICE) => "check nvidia-smi and CUDA_VISIBLE_DEVICES",
            n if is(n, CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)
                || is(n, CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE) =>
            {
                "the driver's library and kernel module differ in version; reboot, or remove the other library"
            }
            n if is(n, CUresult::CUDA_ERROR_NOT_INITIALIZED) || is(n, CUresult::CUDA_ERROR_DEINITIALIZED) => {
                "CUDA does not survive fork; start worker processes with spawn"
            }
            n if is(n, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
                || is(n, CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND) =>
            {
                "update the driver, and install its PTX compiler (libnvidia-ptxjitcompiler) beside it"
            }
            n if is(n, CUresult::CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER) => "update the driver",
            n if is(n, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU) => {
                "the kernel is written for another generation of GPUs; choose one for this GPU"
            }
            n if is(n, CUresult::CUDA_ERROR_INVALID_PTX) => {
                "the kernel's text is wrong, please report it with what follows"
            }
            n if is(n, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)
                || is(n, CUresult::CUDA_ERROR_MISALIGNED_ADDRESS)
                || is(n, CUresult::CUDA_ERROR_LAUNCH_FAILED)
                || is(n, CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION) =>
            {
                "a kernel that ran earlier failed and this process can no longer use the GPU; restart it, and find \
                 the kernel with compute-sanitizer"
            }
            n if is(n, CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES) => "use fewer threads a block",
            n if is(n, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
                || is(n, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
                || is(n, CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) =>
            {
                "while a stream is captured do not allocate, copy or synchronise, and do not use the default stream"
            }
            _ => "see the CUDA driver's manual for this code",
        }
    }
}
