//! Types and numbers of the driver's interface (`cuda.h`), as far as this crate uses them.
//!
//! What C calls an enumeration is a number here: a newer driver may answer one that no list has.

use std::ffi::c_void;

/// An address on a GPU.
pub(crate) type CUdeviceptr = u64;
/// A GPU's number for the driver.
pub(crate) type CUdevice = i32;

macro_rules! handles {
    ($($name:ident)*) => {$(
        /// A handle, which only the driver looks into.
        pub(crate) type $name = *mut c_void;
    )*};
}

handles!(CUcontext CUmodule CUfunction CUstream CUevent CUgraph CUgraphExec CUlinkState);

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident { $($value:ident = $number:literal,)* })*) => {$(
        $(#[$doc])*
        #[allow(non_camel_case_types)] // the driver's name
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(transparent)]
        pub(crate) struct $name(pub(crate) u32);

        impl $name {
            $(pub(crate) const $value: Self = Self($number);)*
        }
    )*};
}

numbers! {
    /// What a call answers.
    CUresult {
        CUDA_SUCCESS = 0,
        CUDA_ERROR_OUT_OF_MEMORY = 2,
        CUDA_ERROR_NOT_INITIALIZED = 3,
        CUDA_ERROR_DEINITIALIZED = 4,
        CUDA_ERROR_STUB_LIBRARY = 34,
        CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER = 36,
        CUDA_ERROR_NO_DEVICE = 100,
        CUDA_ERROR_INVALID_IMAGE = 200,
        CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
        CUDA_ERROR_INVALID_PTX = 218,
        CUDA_ERROR_JIT_COMPILER_NOT_FOUND = 221,
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
        CUDA_ERROR_NOT_FOUND = 500,
        CUDA_ERROR_ILLEGAL_ADDRESS = 700,
        CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
        CUDA_ERROR_ILLEGAL_INSTRUCTION = 715,
        CUDA_ERROR_MISALIGNED_ADDRESS = 716,
        CUDA_ERROR_LAUNCH_FAILED = 719,
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803,
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804,
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
        CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
    }
    /// What a GPU is asked about itself.
    CUdevice_attribute {
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
        CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED = 115,
    }
    /// What a kernel is asked and told.
    CUfunction_attribute {
        CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
        CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
        CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
        CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
        CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
    }
    /// What the compiler is told.
    CUjit_option {
        CU_JIT_INFO_LOG_BUFFER = 3,
        CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES = 4,
        CU_JIT_ERROR_LOG_BUFFER = 5,
        CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
        CU_JIT_LOG_VERBOSE = 12,
    }
    /// What the linker is given.
    CUjitInputType {
        CU_JIT_INPUT_PTX = 1,
    }
    /// Kinds of streams.
    CUstream_flags {
        CU_STREAM_NON_BLOCKING = 1,
    }
    /// Kinds of events.
    CUevent_flags {
        CU_EVENT_DEFAULT = 0,
        CU_EVENT_DISABLE_TIMING = 2,
    }
    /// What other calls may do while a stream is recorded.
    CUstreamCaptureMode {
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    }
    /// The elements of a tensor for the copy engine.
    CUtensorMapDataType {
        CU_TENSOR_MAP_DATA_TYPE_UINT16 = 1,
    }
    /// How a tensor's elements are interleaved.
    CUtensorMapInterleave {
        CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
    }
    /// How rows are swizzled in shared memory.
    CUtensorMapSwizzle {
        CU_TENSOR_MAP_SWIZZLE_128B = 3,
    }
    /// How much the second-level cache reads at a time.
    CUtensorMapL2promotion {
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3,
    }
    /// What stands beyond a tensor's edge.
    CUtensorMapFloatOOBfill {
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0,
    }
}

/// A tensor as the copy engine reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(128))]
pub(crate) struct CUtensorMap {
    pub(crate) opaque: [u64; 16],
}
