//! Streams: queues of work on a GPU.

use crate::device::Device;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::sys::{self, CUstream, CUstream_flags};

/// A queue of work on a GPU; what is put into it runs in order.
///
/// ```no_run
/// use signflash_cuda::{Device, Stream};
///
/// let device = Device::open(0)?;
/// let stream = Stream::new(&device)?;
/// stream.synchronize()?;
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
#[derive(Debug)]
pub struct Stream {
    device: Device,
    handle: CUstream,
    owned: bool,
}

// SAFETY: the driver's functions may be called from any thread with any stream; `handle` is only handed to them.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of its own. It does not wait for the default stream, nor that for it.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let _bound = device.bind()?;
        let mut handle: CUstream = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING.0;
        // SAFETY: the device's context is current; `handle` is valid for a write.
        check(unsafe { sys::cuStreamCreate(&mut handle, flags) }, || Doing::CreateStream)?;
        Ok(Self { device: device.clone(), handle, owned: true })
    }

    /// The device's default stream, the one that PyTorch uses unless told otherwise. It cannot be captured.
    pub fn default_of(device: &Device) -> Self {
        Self { device: device.clone(), handle: std::ptr::null_mut(), owned: false }
    }

    /// A caller's stream, such as `torch.cuda.current_stream().cuda_stream`. It is not destroyed here.
    ///
    /// ```no_run
    /// # fn example(handle_from_pytorch: u64) -> Result<(), signflash_cuda::CudaError> {
    /// use signflash_cuda::{Device, Stream};
    /// let device = Device::open(0)?;
    /// // SAFETY: PyTorch keeps its streams for as long as the process lives, and made this one on GPU 0.
    /// let stream = unsafe { Stream::from_raw(&device, handle_from_pytorch) };
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Safety
    /// `handle` must be a `CUstream` (or `cudaStream_t`) of this device's primary context, or 0, 1 or 2, CUDA's names
    /// of its default streams, and must outlive the result.
    pub unsafe fn from_raw(device: &Device, handle: u64) -> Self {
        Self { device: device.clone(), handle: handle as usize as CUstream, owned: false }
    }

    /// The `CUstream`; valid for as long as this is.
    pub fn raw(&self) -> u64 {
        self.handle as usize as u64
    }

    /// Its GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until all of its work is done.
    ///
    /// # Errors
    /// The driver's; a kernel that failed before is reported here.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _bound = self.device.bind()?;
        // SAFETY: the context is current; `handle` is a live stream of it, as `new` made or `from_raw` was promised.
        check(unsafe { sys::cuStreamSynchronize(self.handle) }, || Doing::Synchronize)
    }

    /// The handle, for the calls of this crate.
    pub(crate) fn handle(&self) -> CUstream {
        self.handle
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (true, Ok(_bound)) = (self.owned, self.device.bind()) {
            // SAFETY: `new` made it and nobody else destroys it; the driver finishes its work first.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}
