//! The functions of NVIDIA's driver that this crate calls, found in the driver's library when first called.
//!
//! They are declared here and not taken from a crate of bindings, since those decide by features, which Cargo unites
//! over a whole program, whether to link or to load and which version's declarations there are: two users of one such
//! crate that decide differently cannot be built together. Nothing here depends on what else a program contains.
//! Names are the driver's, with the suffix that `cuda.h` gives them.

mod library;
mod values;

pub(crate) use library::library;
pub(crate) use values::*;

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {$(
        /// The driver's function of this name; an error that asks for a newer driver where it has none.
        ///
        /// # Safety
        /// What the driver's manual asks for: handles are live, addresses valid, and a context is current where the
        /// function needs one.
        #[allow(non_snake_case, clippy::too_many_arguments)] // the driver's
        pub(crate) unsafe fn $name($($argument: $type),*) -> CUresult {
            type Function = unsafe extern "system" fn($($type),*) -> CUresult;
            static KNOWN: OnceLock<Function> = OnceLock::new();
            // SAFETY: `Function` is what `cuda.h` declares under this name.
            match unsafe { library::function(&KNOWN, stringify!($name)) } {
                // SAFETY: the caller's promise.
                Some(function) => unsafe { function($($argument),*) },
                None => CUresult::CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER,
            }
        }
    )*};
}

// Driver, devices and contexts.
functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuGetErrorName(error: CUresult, text: *mut *const c_char);
    cuGetErrorString(error: CUresult, text: *mut *const c_char);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuCtxGetCurrent(context: *mut CUcontext);
    cuCtxSetCurrent(context: CUcontext);
    cuCtxSynchronize();
    cuCtxRecordEvent(context: CUcontext, event: CUevent);
    cuCtxWaitEvent(context: CUcontext, event: CUevent);
}

// Memory.
functions! {
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemAllocAsync(address: *mut CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemFreeAsync(address: CUdeviceptr, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemsetD8Async(to: CUdeviceptr, byte: c_uchar, count: usize, stream: CUstream);
}

// Kernels: compiled, loaded, launched.
functions! {
    cuLinkCreate_v2(count: c_uint, options: *mut CUjit_option, values: *mut *mut c_void, state: *mut CUlinkState);
    cuLinkAddData_v2(
        state: CUlinkState,
        kind: CUjitInputType,
        data: *mut c_void,
        bytes: usize,
        name: *const c_char,
        count: c_uint,
        options: *mut CUjit_option,
        values: *mut *mut c_void,
    );
    cuLinkComplete(state: CUlinkState, code: *mut *mut c_void, bytes: *mut usize);
    cuLinkDestroy(state: CUlinkState);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleLoadDataEx(
        module: *mut CUmodule,
        image: *const c_void,
        count: c_uint,
        options: *mut CUjit_option,
        values: *mut *mut c_void,
    );
    cuModuleUnload(module: CUmodule);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: CUfunction,
        block_threads: c_int,
        dynamic_smem_bytes: usize,
    );
    cuTensorMapEncodeTiled(
        map: *mut CUtensorMap,
        elements: CUtensorMapDataType,
        rank: c_uint,
        address: *mut c_void,
        sizes: *const u64,
        strides_bytes: *const u64,
        box_sizes: *const u32,
        steps: *const u32,
        interleave: CUtensorMapInterleave,
        swizzle: CUtensorMapSwizzle,
        promotion: CUtensorMapL2promotion,
        fill: CUtensorMapFloatOOBfill,
    );
    cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        dynamic_smem_bytes: c_uint,
        stream: CUstream,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
}

// Streams, events and graphs.
functions! {
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuEventElapsedTime(ms: *mut f32, start: CUevent, end: CUevent);
    cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    cuGraphExecDestroy(executable: CUgraphExec);
    cuGraphDestroy(graph: CUgraph);
}
