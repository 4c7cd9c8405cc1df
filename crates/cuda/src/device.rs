//! A GPU and its primary context.

use crate::bound::Bound;
use crate::doing::Doing;
use crate::driver::{driver_version, require_driver};
use crate::error::{CudaError, check};
use crate::sys::{self, CUcontext, CUdevice, CUdevice_attribute};
use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

/// The oldest compute capability that the kernels run on.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// A GPU, open.
///
/// It uses the device's primary context, the one that the CUDA runtime and so PyTorch use: pointers and streams of
/// one work with the other. Clones are cheap and name the same GPU. Every call may be made from any thread, and leaves
/// the thread's current device as it was.
///
/// ```no_run
/// use signflash_cuda::Device;
///
/// let device = Device::open(0)?;
/// let info = device.info();
/// println!("{} with {} SMs", info.name, info.sm_count);
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Device {
    primary: Arc<Primary>,
}

/// What a GPU is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Major and minor compute capability: (9, 0) is Hopper.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// The most shared memory that a block can have, static and dynamic together.
    pub smem_per_block_optin_bytes: u32,
    /// Shared memory of a multiprocessor.
    pub smem_per_sm_bytes: u32,
    /// Global memory.
    pub memory_bytes: u64,
    /// The CUDA version that the driver supports: (12, 8) is 12.8.
    pub driver_version: (u32, u32),
}

#[derive(Debug)]
struct Primary {
    ordinal: u32,
    handle: CUdevice,
    context: CUcontext,
    memory_pools: bool,
    info: DeviceInfo,
}

// SAFETY: the driver's functions may be called from any thread with any context; `context` is only handed to them.
unsafe impl Send for Primary {}
// SAFETY: as above, and nothing here changes after `Device::open`.
unsafe impl Sync for Primary {}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: `Device::open` retained the context once for this value. At exit the driver may be gone; then it
        // answers with an error, and there is nothing left to release.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

impl Device {
    /// How many GPUs this process sees. `CUDA_VISIBLE_DEVICES` decides.
    ///
    /// ```
    /// use signflash_cuda::{CudaError, Device};
    /// match Device::count() {
    ///     Ok(count) => println!("{count} GPUs"),
    ///     Err(CudaError::NoDriver) => println!("no driver"),
    ///     Err(other) => println!("{other}"),
    /// }
    /// ```
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::OldDriver`], or that the driver could not be initialised. A driver that
    /// works but sees no GPU is no error.
    pub fn count() -> Result<u32, CudaError> {
        if !require_driver()? {
            return Ok(0);
        }
        let mut count: c_int = 0;
        // SAFETY: `require_driver` has loaded and initialised the driver; `count` is valid for a write.
        check(unsafe { sys::cuDeviceGetCount(&mut count) }, || Doing::LoadDriver)?;
        Ok(count as u32)
    }

    /// Opens GPU number `ordinal`, from 0.
    ///
    /// # Errors
    /// Those of [`count`](Self::count), [`CudaError::NoGpu`], [`CudaError::OldGpu`], or the driver's.
    pub fn open(ordinal: u32) -> Result<Self, CudaError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(CudaError::NoGpu { ordinal, count });
        }
        let doing = || Doing::OpenDevice { ordinal };
        let mut handle: CUdevice = 0;
        // SAFETY: `count` has initialised the driver; `handle` is valid for a write.
        check(unsafe { sys::cuDeviceGet(&mut handle, ordinal as c_int) }, doing)?;
        let query = Query { ordinal, handle };
        let info = query.info()?;
        if info.compute_capability < OLDEST_CAPABILITY {
            let (name, capability) = (info.name, info.compute_capability);
            return Err(CudaError::OldGpu { name, capability, needed: OLDEST_CAPABILITY });
        }
        let pools = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
        let memory_pools = query.attribute(pools)? != 0;
        let mut context: CUcontext = std::ptr::null_mut();
        // SAFETY: `handle` came from cuDeviceGet; `context` is valid for a write.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, handle) }, doing)?;
        Ok(Self { primary: Arc::new(Primary { ordinal, handle, context, memory_pools, info }) })
    }

    /// Its number.
    pub fn ordinal(&self) -> u32 {
        self.primary.ordinal
    }

    /// What it is and has.
    pub fn info(&self) -> &DeviceInfo {
        &self.primary.info
    }

    /// Runs `work` with this GPU as the calling thread's current one: for libraries that ask the thread, as NCCL and cuBLAS
    /// do. What was current before is so again afterwards.
    ///
    /// # Errors
    /// The driver's; `work` does not run then.
    pub fn while_current<T>(&self, work: impl FnOnce() -> T) -> Result<T, CudaError> {
        let _bound = self.bind()?;
        Ok(work())
    }

    /// Whether it allocates in the order of a stream.
    pub(crate) fn memory_pools(&self) -> bool {
        self.primary.memory_pools
    }

    /// The primary context, for the calls of this crate.
    pub(crate) fn context(&self) -> CUcontext {
        self.primary.context
    }

    /// Makes this GPU the thread's current one until the guard is dropped.
    pub(crate) fn bind(&self) -> Result<Bound, CudaError> {
        Bound::new(self.primary.context, self.primary.ordinal)
    }

    /// That `stream` belongs to this GPU.
    pub(crate) fn require_same(
        &self,
        stream: &Device,
        doing: impl FnOnce() -> Doing,
    ) -> Result<(), CudaError> {
        let (stream, other) = (stream.ordinal(), self.ordinal());
        if stream == other { Ok(()) } else { Err(CudaError::OtherDevice { doing: doing(), stream, other }) }
    }
}

/// Asks the driver about one GPU.
struct Query {
    ordinal: u32,
    handle: CUdevice,
}

impl Query {
    fn info(&self) -> Result<DeviceInfo, CudaError> {
        use CUdevice_attribute as A;
        Ok(DeviceInfo {
            name: self.name()?,
            compute_capability: (
                self.attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                self.attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            sm_count: self.attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            smem_per_block_optin_bytes: self
                .attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            smem_per_sm_bytes: self.attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            memory_bytes: self.memory_bytes()?,
            driver_version: driver_version()?,
        })
    }

    fn doing(&self) -> Doing {
        Doing::OpenDevice { ordinal: self.ordinal }
    }

    fn attribute(&self, attribute: CUdevice_attribute) -> Result<u32, CudaError> {
        let mut value: c_int = 0;
        // SAFETY: `handle` came from cuDeviceGet in `Device::open`; `value` is valid for a write.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.handle) }, || self.doing())?;
        Ok(value.max(0) as u32)
    }

    fn memory_bytes(&self) -> Result<u64, CudaError> {
        let mut bytes = 0usize;
        // SAFETY: as in `attribute`.
        check(unsafe { sys::cuDeviceTotalMem_v2(&mut bytes, self.handle) }, || self.doing())?;
        Ok(bytes as u64)
    }

    fn name(&self) -> Result<String, CudaError> {
        let mut name = [0 as c_char; 256];
        // SAFETY: as in `attribute`; the driver writes at most the length given, its NUL included.
        let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, self.handle) };
        check(result, || self.doing())?;
        let last = name.len() - 1;
        name[last] = 0;
        // SAFETY: the last byte was just made NUL.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }
}
