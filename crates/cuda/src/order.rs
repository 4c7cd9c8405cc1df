//! Order between one stream and all others of its GPU, of which nobody here knows any.

use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::event::Event;
use crate::stream::Stream;
use crate::sys::{self, CUevent_flags, CUresult};

/// Work among that of libraries whose memory one has, and whose streams one cannot ask for: what they write is read
/// [`after_all`](Self::after_all), and what is written for them is finished [`before_all`](Self::before_all).
///
/// ```no_run
/// use signflash_cuda::{Device, Stream};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// stream.after_all()?;
/// // ... launch kernels on `stream` that read what others' kernels are still writing ...
/// stream.before_all()?;
/// // ... others' kernels that are launched from here on read what these have written ...
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
///
/// Both order work of the primary context alone. The GPU waits, not the host, if the driver is of CUDA 12.5 or newer; with
/// an older one the host waits. Neither can be captured into a [`Graph`](crate::Graph).
impl Stream {
    /// What is put into this stream from now on waits for all that any thread has put into any stream of the GPU's primary
    /// context so far.
    ///
    /// # Errors
    /// The driver's, such as that a stream of the context is being captured.
    pub fn after_all(&self) -> Result<(), CudaError> {
        let _bound = self.device().bind()?;
        let event = self.mark()?;
        // SAFETY: the context is live while its device is, and the event was just created in it.
        match unsafe { sys::cuCtxRecordEvent(self.device().context(), event.handle()) } {
            CUresult::CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER => {
                // SAFETY: the device's context is the current one.
                check(unsafe { sys::cuCtxSynchronize() }, || Doing::Synchronize)
            }
            result => {
                check(result, || Doing::Order)?;
                // SAFETY: stream and event are live and of the current context; no flags are asked for.
                check(unsafe { sys::cuStreamWaitEvent(self.handle(), event.handle(), 0) }, || Doing::Order)
            }
        }
    }

    /// What any thread puts into any stream of the GPU's primary context from now on, those that are made later included,
    /// waits for all that this stream has now.
    ///
    /// # Errors
    /// As [`after_all`](Self::after_all).
    pub fn before_all(&self) -> Result<(), CudaError> {
        let _bound = self.device().bind()?;
        let event = self.mark()?;
        // SAFETY: the event was just created in the context of the stream, which is live.
        check(unsafe { sys::cuEventRecord(event.handle(), self.handle()) }, || Doing::Order)?;
        // SAFETY: the context is live while its device is, and the event is of it.
        match unsafe { sys::cuCtxWaitEvent(self.device().context(), event.handle()) } {
            CUresult::CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER => event.synchronize(),
            result => check(result, || Doing::Order),
        }
    }

    fn mark(&self) -> Result<Event, CudaError> {
        Event::new(self.device(), CUevent_flags::CU_EVENT_DISABLE_TIMING, || Doing::Order)
    }
}
