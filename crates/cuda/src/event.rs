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
        let _bound = stream.device().bind()?;
        let event = Self::new(stream.device(), CUevent_flags::CU_EVENT_DEFAULT, || Doing::Time)?;
        // SAFETY: the event was just created in the context of the stream, which is live.
        check(unsafe { sys::cuEventRecord(event.handle, stream.handle()) }, || Doing::Time)?;
        Ok(event)
    }

    /// One that nobody has recorded.
    pub(crate) fn new(
        device: &Device,
        flags: CUevent_flags,
        doing: impl FnOnce() -> Doing,
    ) -> Result<Self, CudaError> {
        let _bound = device.bind()?;
        let mut handle: CUevent = std::ptr::null_mut();
        // SAFETY: the device's context is current; `handle` is valid for a write.
        check(unsafe { sys::cuEventCreate(&mut handle, flags.0) }, doing)?;
        Ok(Self { device: device.clone(), handle })
    }

    /// The handle, for the calls of this crate.
    pub(crate) fn handle(&self) -> CUevent {
        self.handle
    }

    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// The driver's; a kernel that failed before is reported here.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _bound = self.device.bind()?;
        // SAFETY: `new` made the event in the context that is current.
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
            // SAFETY: `new` made it and nothing else destroys it; the driver keeps it while work waits for it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
