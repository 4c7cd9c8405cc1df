//! Work recorded once and replayed.

use crate::device::Device;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::stream::Stream;
use crate::sys::{self, CUgraph, CUgraphExec, CUstreamCaptureMode};

/// What a stream was given, recorded; replayed with one call.
///
/// Arguments of kernels are part of the recording, what lies in memory is not: a seed that is to change from replay to
/// replay must be read from memory.
///
/// ```no_run
/// use signflash_cuda::{DeviceBuffer, Device, Graph, Stream};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let mut buffer = DeviceBuffer::zeroed(&stream, 1024)?;
/// let graph = Graph::capture(&stream, || buffer.fill(&stream, 7))?;
/// // SAFETY: `buffer` is still there, and nothing else uses it.
/// unsafe { graph.launch(&stream)? };
/// assert_eq!(buffer.to_host(&stream)?, [7; 1024]);
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
#[derive(Debug)]
pub struct Graph {
    device: Device,
    handle: CUgraphExec,
}

// SAFETY: the driver's functions may be called from any thread with a graph; `handle` is only handed to them.
unsafe impl Send for Graph {}
// SAFETY: as above; two launches at a time are put in order by the driver.
unsafe impl Sync for Graph {}

impl Graph {
    /// Records what `record` gives to `stream`; none of it runs. The default stream cannot be recorded.
    ///
    /// Meanwhile this thread must not allocate [`DeviceBuffer`](crate::DeviceBuffer)s, copy from or to the host, or
    /// wait for the stream: compile kernels and allocate before. A [`Workspace`](crate::Workspace) may be made if it is
    /// also dropped within.
    ///
    /// # Errors
    /// What `record` returned, or the driver's.
    pub fn capture(
        stream: &Stream,
        record: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Self, CudaError> {
        let device = stream.device();
        let _bound = device.bind()?;
        // Calls of other threads, such as allocations, stay allowed.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live and its context current.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream.handle(), mode) }, || Doing::Capture)?;
        let capture = Capture { stream, ended: false };
        record()?;
        let recorded = capture.end()?;
        let mut handle: CUgraphExec = std::ptr::null_mut();
        // SAFETY: `recorded` is a graph that the driver has just made; `handle` is valid for a write.
        check(unsafe { sys::cuGraphInstantiateWithFlags(&mut handle, recorded.0, 0) }, || Doing::Capture)?;
        Ok(Self { device: device.clone(), handle })
    }

    /// Replays everything in `stream`, which may be another than the recorded one; does not wait for it.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], or the driver's.
    ///
    /// # Safety
    /// What was promised when it was recorded must hold again: buffers and [`Function`](crate::Function)s are still
    /// there until the replay has ended, and nobody else uses the memory in a way that races.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        self.device.require_same(stream.device(), || Doing::Replay)?;
        let _bound = self.device.bind()?;
        // SAFETY: graph and stream are live and of the device whose context is current, as checked above; what the
        // recorded kernels touch is the caller's promise.
        check(unsafe { sys::cuGraphLaunch(self.handle, stream.handle()) }, || Doing::Replay)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_bound) = self.device.bind() {
            // SAFETY: `capture` made it and nothing else destroys it; the driver lets a running replay end first.
            let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
        }
    }
}

/// A recording under way; dropped, by an error or a panic, it is ended and forgotten.
struct Capture<'a> {
    stream: &'a Stream,
    ended: bool,
}

impl Capture<'_> {
    fn end(mut self) -> Result<Recorded, CudaError> {
        self.ended = true;
        let mut recorded = Recorded(std::ptr::null_mut());
        // SAFETY: `Graph::capture` began the capture on this live stream and still holds its context current.
        let result = unsafe { sys::cuStreamEndCapture(self.stream.handle(), &mut recorded.0) };
        check(result, || Doing::Capture)?;
        Ok(recorded)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let mut recorded = Recorded(std::ptr::null_mut());
            // SAFETY: as in `end`, which has not been called.
            let _ = unsafe { sys::cuStreamEndCapture(self.stream.handle(), &mut recorded.0) };
        }
    }
}

/// A graph as recorded, not yet made ready to run.
struct Recorded(CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: cuStreamEndCapture made it, and nothing else destroys it.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}
