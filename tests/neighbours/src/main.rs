//! One program in which candle and Signflash use the GPU, and cudarc has the features that cubecl asks for, too. Cargo
//! unites the features of what they share, so that it can be built says that nobody's choice is forced on another; run on
//! a GPU, it says that they work in turns. The driver's numbers as we declare them are compared with cudarc's.

#[path = "../../../crates/cuda/src/sys/values.rs"]
mod values;

use std::error::Error;

/// That ours is cudarc's number, while this is compiled.
macro_rules! same {
    ($($enumeration:ident { $($value:ident)* })*) => {$($(
        const _: () = assert!(values::$enumeration::$value.0 == cudarc::driver::sys::$enumeration::$value as u32);
    )*)*};
}

same! {
    CUresult {
        CUDA_SUCCESS CUDA_ERROR_OUT_OF_MEMORY CUDA_ERROR_NOT_INITIALIZED CUDA_ERROR_DEINITIALIZED
        CUDA_ERROR_STUB_LIBRARY CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER CUDA_ERROR_NO_DEVICE CUDA_ERROR_INVALID_IMAGE
        CUDA_ERROR_NO_BINARY_FOR_GPU CUDA_ERROR_INVALID_PTX CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION CUDA_ERROR_NOT_FOUND CUDA_ERROR_ILLEGAL_ADDRESS
        CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES CUDA_ERROR_ILLEGAL_INSTRUCTION CUDA_ERROR_MISALIGNED_ADDRESS
        CUDA_ERROR_LAUNCH_FAILED CUDA_ERROR_SYSTEM_DRIVER_MISMATCH CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
    }
    CUdevice_attribute {
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
    }
    CUfunction_attribute {
        CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES
        CU_FUNC_ATTRIBUTE_NUM_REGS CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
    }
    CUjit_option {
        CU_JIT_INFO_LOG_BUFFER CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES CU_JIT_ERROR_LOG_BUFFER
        CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES CU_JIT_LOG_VERBOSE
    }
    CUjitInputType { CU_JIT_INPUT_PTX }
    CUstream_flags { CU_STREAM_NON_BLOCKING }
    CUevent_flags { CU_EVENT_DEFAULT CU_EVENT_DISABLE_TIMING }
    CUstreamCaptureMode { CU_STREAM_CAPTURE_MODE_THREAD_LOCAL }
    CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_UINT16 }
    CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE }
    CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B }
    CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B }
    CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE }
}
const _: () = assert!(size_of::<values::CUtensorMap>() == size_of::<cudarc::driver::sys::CUtensorMap>());
// cudarc aligns it to 64 bytes, which the driver accepts; NVIDIA's header says 128.
const _: () = assert!(align_of::<values::CUtensorMap>() >= align_of::<cudarc::driver::sys::CUtensorMap>());

fn main() -> Result<(), Box<dyn Error>> {
    let bytes: Vec<u8> = (0..=255).collect();
    for turn in 0..2 {
        let candle = candle_core::Device::new_cuda(0)?;
        let theirs = candle_core::Tensor::new(bytes.as_slice(), &candle)?;
        assert_eq!(theirs.to_vec1::<u8>()?, bytes);

        let device = signflash_cuda::Device::open(0)?;
        let stream = signflash_cuda::Stream::new(&device)?;
        assert_eq!(signflash_cuda::DeviceBuffer::from_host(&stream, &bytes)?.to_host(&stream)?, bytes);
        println!("turn {turn}: candle and Signflash each had 256 bytes on {}", device.info().name);
    }
    Ok(())
}
