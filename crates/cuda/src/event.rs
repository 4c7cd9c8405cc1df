//! Time as the GPU measures it.

use crate::device::Device;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::stream::Stream;
use crate::sys::{self, CUevent, CUevent_flags};

/// A point in a stream's work.
///
/// ```no_run
/// use signflash_cuda::{Device, Event, Stream};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let start = Event::record(&stream)?;
/// // ... launch kernels on `stream` ...
/// let end = Event::record(&stream)?;
/// println!("{} ms", end.ms_since(&start)?);
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
#[derive(Debug)]
pub struct Event {
    device: Device,
    handle: CUevent,
}

// SAFETY: the driver's functions may be called from any thread with any event; `handle` is only handed to them.
unsafe impl Send for Event {}
// SAFETY: as above, and an event is recorded only before others can see it.
unsafe impl Sync for Event {}

impl Event {
    /// The point after all work that the stream has now.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(stream: &Stream) -> Result<Self, CudaError> {
        let device = stream.device().clone();
        let _bound = device.bind()?;
        let mut handle: CUevent = std::ptr::null_mut();
        // SAFETY: the stream's context is current; `handle` is valid for a write.
        let result = unsafe { sys::cuEventCreate(&mut handle, CUevent_flags::CU_EVENT_DEFAULT.0) };
        check(result, || Doing::Time)?;
        let event = Self { device: device.clone(), handle };
        // SAFETY: the event was just created in the context of the stream, which is live.
        check(unsafe { sys::cuEventRecord(event.handle, stream.handle()) }, || Doing::Time)?;
        Ok(event)
    }

    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// The driver's; a kernel that failed before is reported here.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _bound = self.device.bind()?;
        // SAFETY: `record` made the event in the context that is current.
        check(unsafe { sys::cuEventSynchronize(self.handle) }, || Doing::Synchronize)
    }

    /// Milliseconds from `start` to this, to about half a microsecond; waits for both.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], or the driver's.
    pub fn ms_since(&self, start: &Event) -> Result<f32, CudaError> {
        self.device.require_same(&start.device, || Doing::Time)?;
        start.synchronize()?;
        self.synchronize()?;
        let _bound = self.device.bind()?;
        let mut ms = 0f32;
        // SAFETY: both events were recorded in the context that is current; `ms` is valid for a write.
        check(unsafe { sys::cuEventElapsedTime(&mut ms, start.handle, self.handle) }, || Doing::Time)?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_bound) = self.device.bind() {
            // SAFETY: `record` made it and nothing else destroys it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
