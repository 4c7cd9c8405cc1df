//! Scratch memory in the order of a stream.

use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::stream::Stream;
use crate::sys::{self, CUdeviceptr};

/// Scratch memory of the work on one stream: there for what the stream gets after it was made and before it is
/// dropped. Neither waits for the GPU where the device has memory pools; elsewhere freeing does.
///
/// ```no_run
/// use signflash_cuda::{Device, Stream, Workspace};
///
/// let device = Device::open(0)?;
/// let stream = Stream::new(&device)?;
/// let scratch = Workspace::new(&stream, 1 << 20)?;
/// // ... launch kernels on `stream` that use `scratch.ptr()` ...
/// drop(scratch); // freed once they are done
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
#[derive(Debug)]
pub struct Workspace<'a> {
    stream: &'a Stream,
    pointer: CUdeviceptr,
    len_bytes: usize,
}

impl<'a> Workspace<'a> {
    /// So many bytes, which hold anything. None at all is a workspace too, with the address 0.
    ///
    /// # Errors
    /// The driver's, such as that memory is short.
    pub fn new(stream: &'a Stream, len_bytes: usize) -> Result<Self, CudaError> {
        let mut pointer: CUdeviceptr = 0;
        if len_bytes > 0 {
            let device = stream.device();
            let _bound = device.bind()?;
            // SAFETY: the stream's context is current and the stream live; `pointer` is valid for a write.
            let result = unsafe {
                if device.memory_pools() {
                    sys::cuMemAllocAsync(&mut pointer, len_bytes, stream.handle())
                } else {
                    sys::cuMemAlloc_v2(&mut pointer, len_bytes)
                }
            };
            check(result, || Doing::Allocate { bytes: len_bytes })?;
        }
        Ok(Self { stream, pointer, len_bytes })
    }

    /// Sets every byte to `byte`, in the stream's order.
    ///
    /// # Errors
    /// The driver's.
    pub fn fill(&mut self, byte: u8) -> Result<(), CudaError> {
        if self.len_bytes == 0 {
            return Ok(());
        }
        let _bound = self.stream.device().bind()?;
        // SAFETY: `new` made `pointer` with `len_bytes` in the order of this live stream, whose context is current.
        let result =
            unsafe { sys::cuMemsetD8Async(self.pointer, byte, self.len_bytes, self.stream.handle()) };
        check(result, || Doing::Fill { bytes: self.len_bytes })
    }

    /// The address on the GPU.
    pub fn ptr(&self) -> u64 {
        self.pointer
    }

    /// How many bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        let device = self.stream.device();
        if self.len_bytes == 0 {
            return;
        }
        if let Ok(_bound) = device.bind() {
            // SAFETY: `new` made it the same way, and nothing else frees it; the stream is still borrowed.
            let _ = unsafe {
                if device.memory_pools() {
                    sys::cuMemFreeAsync(self.pointer, self.stream.handle())
                } else {
                    sys::cuMemFree_v2(self.pointer)
                }
            };
        }
    }
}
