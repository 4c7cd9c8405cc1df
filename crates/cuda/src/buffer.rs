//! Memory on the GPU.

use crate::device::Device;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::stream::Stream;
use crate::sys::{self, CUdeviceptr};

/// Bytes of a GPU's memory, freed on drop. Freeing waits for work that may still use them.
///
/// ```no_run
/// use signflash_cuda::{Device, DeviceBuffer, Stream};
///
/// let device = Device::open(0)?;
/// let stream = Stream::new(&device)?;
/// let buffer = DeviceBuffer::from_host(&stream, &[1, 2, 3])?;
/// let mut back = [0; 3];
/// buffer.copy_to_host(&stream, &mut back)?;
/// assert_eq!(back, [1, 2, 3]);
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
#[derive(Debug)]
pub struct DeviceBuffer {
    device: Device,
    pointer: CUdeviceptr,
    len_bytes: usize,
}

impl DeviceBuffer {
    /// So many bytes, which hold anything. None at all is a buffer too, with the address 0.
    ///
    /// # Errors
    /// The driver's, such as that memory is short.
    pub fn alloc(device: &Device, len_bytes: usize) -> Result<Self, CudaError> {
        let mut pointer: CUdeviceptr = 0;
        if len_bytes > 0 {
            let _bound = device.bind()?;
            // SAFETY: the device's context is current; `pointer` is valid for a write.
            let result = unsafe { sys::cuMemAlloc_v2(&mut pointer, len_bytes) };
            check(result, || Doing::Allocate { bytes: len_bytes })?;
        }
        Ok(Self { device: device.clone(), pointer, len_bytes })
    }

    /// So many bytes of 0, written in the stream's order.
    ///
    /// # Errors
    /// The driver's.
    pub fn zeroed(stream: &Stream, len_bytes: usize) -> Result<Self, CudaError> {
        let mut buffer = Self::alloc(stream.device(), len_bytes)?;
        buffer.fill(stream, 0)?;
        Ok(buffer)
    }

    /// A copy of `host`.
    ///
    /// # Errors
    /// The driver's.
    pub fn from_host(stream: &Stream, host: &[u8]) -> Result<Self, CudaError> {
        let mut buffer = Self::alloc(stream.device(), host.len())?;
        buffer.copy_from_host(stream, host)?;
        Ok(buffer)
    }

    /// Sets every byte to `byte`, in the stream's order; does not wait for it.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], or the driver's.
    pub fn fill(&mut self, stream: &Stream, byte: u8) -> Result<(), CudaError> {
        let doing = || Doing::Fill { bytes: self.len_bytes };
        self.device.require_same(stream.device(), doing)?;
        if self.len_bytes == 0 {
            return Ok(());
        }
        let _bound = self.device.bind()?;
        // SAFETY: `alloc` made `pointer` with `len_bytes` on the device whose context is current, and the stream is of
        // that device, as checked above. Dropping the buffer waits for the write.
        check(unsafe { sys::cuMemsetD8Async(self.pointer, byte, self.len_bytes, stream.handle()) }, doing)
    }

    /// Copies all of `host` here, after the stream's earlier work, and waits until it is done.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::OtherDevice`], or the driver's.
    pub fn copy_from_host(&mut self, stream: &Stream, host: &[u8]) -> Result<(), CudaError> {
        if !self.copies(stream, host.len())? {
            return Ok(());
        }
        let _bound = self.device.bind()?;
        let (source, stream_handle) = (host.as_ptr().cast(), stream.handle());
        // SAFETY: `copies` found both sides `len_bytes` long and the stream on this device, whose context is current;
        // both sides outlive the copy because it is waited for below.
        let result =
            unsafe { sys::cuMemcpyHtoDAsync_v2(self.pointer, source, self.len_bytes, stream_handle) };
        check(result, || Doing::Copy { bytes: self.len_bytes })?;
        stream.synchronize()
    }

    /// Copies everything to `host`, after the stream's earlier work, and waits until it is done.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::OtherDevice`], or the driver's.
    pub fn copy_to_host(&self, stream: &Stream, host: &mut [u8]) -> Result<(), CudaError> {
        if !self.copies(stream, host.len())? {
            return Ok(());
        }
        let _bound = self.device.bind()?;
        let (target, stream_handle) = (host.as_mut_ptr().cast(), stream.handle());
        // SAFETY: as in `copy_from_host`, and `host` is borrowed for writing until the copy is done.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(target, self.pointer, self.len_bytes, stream_handle) };
        check(result, || Doing::Copy { bytes: self.len_bytes })?;
        stream.synchronize()
    }

    /// A copy of everything on the host.
    ///
    /// # Errors
    /// The driver's.
    pub fn to_host(&self, stream: &Stream) -> Result<Vec<u8>, CudaError> {
        let mut host = vec![0; self.len_bytes];
        self.copy_to_host(stream, &mut host)?;
        Ok(host)
    }

    /// The address on the GPU.
    pub fn ptr(&self) -> u64 {
        self.pointer
    }

    /// How many bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Whether there is something to copy between this and `host_bytes` of the host, if they fit.
    fn copies(&self, stream: &Stream, host_bytes: usize) -> Result<bool, CudaError> {
        let doing = || Doing::Copy { bytes: host_bytes };
        if host_bytes != self.len_bytes {
            return Err(CudaError::Length { doing: doing(), device: self.len_bytes, host: host_bytes });
        }
        self.device.require_same(stream.device(), doing)?;
        Ok(host_bytes > 0)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.len_bytes == 0 {
            return;
        }
        if let Ok(_bound) = self.device.bind() {
            // SAFETY: `alloc` made it and nothing else frees it; the driver waits for work that uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.pointer) };
        }
    }
}
