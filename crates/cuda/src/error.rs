//! Why something on the GPU could not be done.

use crate::code::DriverCode;
use crate::doing::Doing;
use crate::sys::CUresult;

/// Why something could not be done. Every message says what was being done, what the driver answered and the remedy.
///
/// ```
/// use signflash_cuda::CudaError;
/// let error = CudaError::OldGpu { name: "Tesla T4".into(), capability: (7, 5), needed: (8, 0) };
/// assert_eq!(
///     error.to_string(),
///     "Tesla T4 has compute capability 7.5, but the kernels need 8.0 or newer (Ampere and later); use the CPU engine"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library cannot be loaded.
    #[error(
        "this machine has no CUDA driver: libcuda (nvcuda on Windows) was not found; install the NVIDIA driver, make \
         it visible in the container, or use the CPU engine"
    )]
    NoDriver,
    /// The driver is too old for the kernels' PTX.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, but the kernels need {}.{} or newer; update the driver",
        version.0, version.1, needed.0, needed.1
    )]
    OldDriver {
        /// The CUDA version that the driver supports.
        version: (u32, u32),
        /// The oldest that works.
        needed: (u32, u32),
    },
    /// There is no GPU of this number.
    #[error(
        "there is no GPU {ordinal}: this process sees {count}; give a smaller number, or check nvidia-smi and \
         CUDA_VISIBLE_DEVICES"
    )]
    NoGpu {
        /// What was asked for.
        ordinal: u32,
        /// How many GPUs this process sees.
        count: u32,
    },
    /// The GPU is older than the kernels support.
    #[error(
        "{name} has compute capability {}.{}, but the kernels need {}.{} or newer (Ampere and later); use the CPU engine",
        capability.0, capability.1, needed.0, needed.1
    )]
    OldGpu {
        /// The GPU's name.
        name: String,
        /// What it has.
        capability: (u32, u32),
        /// The oldest that works.
        needed: (u32, u32),
    },
    /// A call of the driver failed.
    #[error("{doing} failed: {code}; {}", code.remedy())]
    Driver {
        /// What was being done.
        doing: Doing,
        /// What the driver answered.
        code: DriverCode,
    },
    /// The driver's compiler refused a kernel.
    #[error("{doing} failed: {code}; {}; the driver's compiler said:\n{log}", code.remedy())]
    Compile {
        /// What was being done, with the kernel's name.
        doing: Doing,
        /// What the driver answered.
        code: DriverCode,
        /// The compiler's own messages, line by line.
        log: String,
    },
    /// The PTX does not declare the kernel that it should hold.
    #[error("the PTX declares no kernel `{kernel}`; give the name that follows .entry")]
    NoEntry {
        /// The name that was looked for.
        kernel: String,
    },
    /// A kernel got more or fewer arguments than it declares.
    #[error(
        "kernel `{kernel}` takes {expected} arguments, got {got}; pass one for each .param of its .entry"
    )]
    ArgumentCount {
        /// The kernel.
        kernel: String,
        /// How many it declares.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// An argument is wider or narrower than the kernel declares it.
    #[error(
        "argument {index} of kernel `{kernel}` takes {expected} bytes, got {got}; pass U64 for a pointer or .b64, U32 or F32 for 32 bits"
    )]
    ArgumentWidth {
        /// The kernel.
        kernel: String,
        /// Which argument, from 0.
        index: usize,
        /// Bytes of the declared parameter.
        expected: usize,
        /// Bytes of what came.
        got: usize,
    },
    /// A kernel asks for more shared memory than a block can have on this GPU.
    #[error(
        "kernel `{kernel}` needs {needed} bytes of shared memory a block, but this GPU has {available}; choose smaller \
         tiles"
    )]
    SharedMemory {
        /// The kernel.
        kernel: String,
        /// Static and dynamic bytes together.
        needed: u64,
        /// The most a block can have.
        available: u64,
    },
    /// A kernel cannot run with so many threads a block.
    #[error(
        "kernel `{kernel}` is to run with {got} threads a block, but as compiled it can run with 1 to {max}; use fewer \
         threads, or declare .maxntid so that the compiler uses fewer registers"
    )]
    Threads {
        /// The kernel.
        kernel: String,
        /// What was asked for.
        got: u32,
        /// The most that its registers allow.
        max: u32,
    },
    /// Host and device memory of a copy differ in length.
    #[error(
        "{doing}: the buffer on the GPU has {device} bytes, the host's has {host}; they must be equally long"
    )]
    Length {
        /// What was being done.
        doing: Doing,
        /// Bytes on the GPU.
        device: usize,
        /// Bytes on the host.
        host: usize,
    },
    /// Two things that should be on one GPU are not.
    #[error(
        "{doing}: the stream is of GPU {stream}, the rest is on GPU {other}; use a stream of GPU {other}"
    )]
    OtherDevice {
        /// What was being done.
        doing: Doing,
        /// The stream's GPU.
        stream: u32,
        /// The other's.
        other: u32,
    },
}

/// `Ok` for success; otherwise the error that `doing` failed.
pub(crate) fn check(result: CUresult, doing: impl FnOnce() -> Doing) -> Result<(), CudaError> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(CudaError::Driver { doing: doing(), code: DriverCode::new(result) }),
    }
}

/// The same for a compilation, with the compiler's log.
pub(crate) fn compile_error(result: CUresult, kernel: &str, log: String) -> CudaError {
    CudaError::Compile {
        doing: Doing::Compile { kernel: kernel.into() },
        code: DriverCode::new(result),
        log: if log.is_empty() { "(nothing)".into() } else { log },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: CUresult, name: &str, text: &str) -> DriverCode {
        DriverCode { number: result.0, name: name.into(), text: text.into() }
    }

    #[test]
    fn a_driver_error_says_what_was_done_what_came_and_the_remedy() {
        let error = CudaError::Driver {
            doing: Doing::Allocate { bytes: 1 << 40 },
            code: code(CUresult::CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
        };
        assert_eq!(
            error.to_string(),
            "allocating 1099511627776 bytes on the GPU failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory); free memory \
             of the GPU (nvidia-smi shows who holds it) or split the problem"
        );
    }

    #[test]
    fn a_compile_error_ends_with_the_compilers_log() {
        let error = CudaError::Compile {
            doing: Doing::Compile { kernel: "forward".into() },
            code: code(
                CUresult::CUDA_ERROR_INVALID_PTX,
                "CUDA_ERROR_INVALID_PTX",
                "a PTX JIT compilation failed",
            ),
            log: "ptxas application ptx input, line 7; error : Unknown symbol 'x'".into(),
        };
        assert_eq!(
            error.to_string(),
            "compiling kernel `forward` failed: CUDA_ERROR_INVALID_PTX (a PTX JIT compilation failed); the kernel's \
             text is wrong, please report it with what follows; the driver's compiler said:\nptxas application ptx \
             input, line 7; error : Unknown symbol 'x'"
        );
    }

    #[test]
    fn a_code_without_a_remedy_of_its_own_points_to_the_manual() {
        let error = CudaError::Driver {
            doing: Doing::Synchronize,
            code: code(CUresult(999), "CUDA_ERROR_UNKNOWN", "unknown error"),
        };
        assert!(error.to_string().ends_with("; see the CUDA driver's manual for this code"));
    }
}
