//! The kernels that an engine has used before.

use crate::error::CudaError;
use crate::function::Function;
use signflash_kernels::Config;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Kernels of one GPU by what they are. A call finds its kernels here in a tenth of the time that writing their names,
/// by which the [`ModuleCache`](crate::ModuleCache) knows them, takes.
#[derive(Default)]
pub(crate) struct KnownKernels(Mutex<HashMap<Config, Arc<Function>>>);

impl KnownKernels {
    /// The kernel; from `find` if this is the first time.
    pub(crate) fn get_or_find(
        &self,
        config: &Config,
        find: impl FnOnce() -> Result<Arc<Function>, CudaError>,
    ) -> Result<Arc<Function>, CudaError> {
        if let Some(function) = self.lock().get(config) {
            return Ok(function.clone());
        }
        // Not locked meanwhile: compiling takes long, and two threads that look for one kernel find the same.
        let function = find()?;
        self.lock().insert(*config, function.clone());
        Ok(function)
    }

    /// Nothing is left half done under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, HashMap<Config, Arc<Function>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for KnownKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KnownKernels({})", self.lock().len())
    }
}
