//! A thread's current context, for the length of a call.

use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::sys::{self, CUcontext};
use std::marker::PhantomData;

/// A context made current on this thread; the one before returns when this is dropped, so that a caller who works on
/// another GPU (PyTorch's current device is the thread's current context) finds it as it was.
#[must_use]
pub(crate) struct Bound {
    /// What to set again; none if it was this context already.
    previous: Option<CUcontext>,
    /// A guard belongs to the thread that made it.
    _not_send: PhantomData<*const ()>,
}

impl Bound {
    /// Makes `context`, the primary one of GPU `ordinal`, current.
    pub(crate) fn new(context: CUcontext, ordinal: u32) -> Result<Self, CudaError> {
        let doing = || Doing::UseDevice { ordinal };
        let mut previous: CUcontext = std::ptr::null_mut();
        // SAFETY: a context only comes from an initialised driver; `previous` is valid for a write.
        check(unsafe { sys::cuCtxGetCurrent(&mut previous) }, doing)?;
        if previous == context {
            return Ok(Self { previous: None, _not_send: PhantomData });
        }
        // SAFETY: `Device::open` retained `context`, and the device that lends it here is still alive.
        check(unsafe { sys::cuCtxSetCurrent(context) }, doing)?;
        Ok(Self { previous: Some(previous), _not_send: PhantomData })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(previous) = self.previous {
            // SAFETY: it was this thread's current context a moment ago, or null, which sets none.
            let _ = unsafe { sys::cuCtxSetCurrent(previous) };
        }
    }
}
