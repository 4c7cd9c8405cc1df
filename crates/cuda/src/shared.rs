//! One engine a GPU for a whole process.

use crate::device::Device;
use crate::engine::CudaEngine;
use crate::error::CudaError;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

impl CudaEngine {
    /// The engine of GPU number `ordinal` that all of this process share: its kernels are compiled once, whoever asks. It is
    /// made when it is first asked for, and kept until the process ends.
    ///
    /// ```no_run
    /// use signflash_cuda::CudaEngine;
    ///
    /// println!("{}", CudaEngine::shared(0)?.device().info().name);
    /// # Ok::<(), signflash_cuda::CudaError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Device::open`], or the driver's; the next call tries again.
    pub fn shared(ordinal: u32) -> Result<Self, CudaError> {
        static ENGINES: Mutex<Option<HashMap<u32, CudaEngine>>> = Mutex::new(None);
        // Nothing is left half done under the lock, so a poisoned one is as good as any.
        let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
        let engines = engines.get_or_insert_default();
        if let Some(engine) = engines.get(&ordinal) {
            return Ok(engine.clone());
        }
        let engine = Self::new(&Device::open(ordinal)?)?;
        engines.insert(ordinal, engine.clone());
        Ok(engine)
    }
}
