//! Compiled kernels, kept: in memory for the process, on disk for the next.

mod directory;
mod disk;
mod key;
mod limit;
mod once_map;
mod room;
mod store;
mod trust;

pub use directory::CacheDirectory;
pub use disk::CacheStatus;
pub use key::StoreKey;
pub use store::{CubinStore, StoreError};

use crate::compile::{compile, is_whole_program};
use crate::device::Device;
use crate::driver::driver_build;
use crate::error::CudaError;
use crate::function::Function;
use crate::program::Program;
use disk::Disk;
use once_map::OnceMap;
use std::sync::Arc;

/// Kernels by name, compiled when first asked for.
///
/// A kernel asked for again is found by its key alone: its PTX is not even written. Two threads that ask for one
/// kernel compile it once. Machine code is also kept on disk, where the next process finds it; see [`CacheDirectory`]
/// for where and [`CubinStore`] for how. A disk that cannot be used costs the compilation and nothing else:
/// [`status`](Self::status) says so, and a warning goes to the `log` once.
///
/// ```no_run
/// use signflash_cuda::{Device, ModuleCache, Program};
///
/// let cache = ModuleCache::new();
/// let device = Device::open(0)?;
/// let nothing = cache.get_or_compile(&device, "nothing", || Program {
///     entry: "nothing".into(),
///     ptx: ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n".into(),
///     block_threads: 32,
///     ..Program::default()
/// })?;
/// println!("{}: {:?}", nothing.entry(), cache.status());
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
#[derive(Debug)]
pub struct ModuleCache {
    functions: OnceMap<Arc<Function>>,
    disk: Disk,
}

impl Default for ModuleCache {
    fn default() -> Self {
        Self::new()
    }
}

impl ModuleCache {
    /// Empty, and on disk where, and as far as, the environment says.
    pub fn new() -> Self {
        let disk = match limit::from_environment() {
            Ok(0) => Disk::new(CacheDirectory::Off, 0),
            Ok(limit_bytes) => Disk::new(CacheDirectory::from_environment(), limit_bytes),
            Err(problem) => {
                let limit_bytes = CubinStore::DEFAULT_LIMIT_BYTES;
                Disk::new(CacheDirectory::from_environment(), limit_bytes).with_problem(&problem)
            }
        };
        Self { functions: OnceMap::default(), disk }
    }

    /// Empty, and on disk there, up to [`CubinStore::DEFAULT_LIMIT_BYTES`].
    ///
    /// ```
    /// use signflash_cuda::{CacheDirectory, ModuleCache};
    /// let cache = ModuleCache::at(CacheDirectory::Off);
    /// assert_eq!(cache.status().directory, None);
    /// ```
    pub fn at(directory: CacheDirectory) -> Self {
        let disk = Disk::new(directory, CubinStore::DEFAULT_LIMIT_BYTES);
        Self { functions: OnceMap::default(), disk }
    }

    /// The kernel of this key on this GPU; `program` writes it if it is not there yet.
    ///
    /// A key must name everything that the text depends on, but neither GPU nor driver. `program` must not ask this
    /// cache for the same key. A kernel that failed is tried again the next time.
    ///
    /// # Errors
    /// Those of [`Function::compile`].
    pub fn get_or_compile(
        &self,
        device: &Device,
        key: &str,
        program: impl FnOnce() -> Program,
    ) -> Result<Arc<Function>, CudaError> {
        self.functions.get_or_try_insert(device.ordinal(), key, || {
            self.load_or_compile(device, &program()).map(Arc::new)
        })
    }

    /// Whether and where machine code is kept on disk, and what became of it so far.
    pub fn status(&self) -> CacheStatus {
        self.disk.status()
    }

    fn load_or_compile(&self, device: &Device, program: &Program) -> Result<Function, CudaError> {
        if is_whole_program(program) {
            // Its machine code is not to be had from the driver, which keeps it in a cache of its own.
            let function = Function::compile_whole(device, program)?;
            self.disk.count_compiled();
            return Ok(function);
        }
        let key = store_key(device, program);
        if let Some(cubin) = self.disk.read(&key) {
            match Function::load(device, program, &cubin, String::new()) {
                Ok(function) => {
                    self.disk.count_loaded();
                    return Ok(function);
                }
                Err(CudaError::Driver { .. }) => {} // whole, but nothing that this driver takes: replaced below
                Err(other) => return Err(other),
            }
        }
        let compiled = compile(device, program)?;
        self.disk.count_compiled();
        let function = Function::load(device, program, &compiled.cubin, compiled.log)?;
        self.disk.write(&key, &compiled.cubin);
        Ok(function)
    }
}

/// Everything that machine code depends on.
fn store_key(device: &Device, program: &Program) -> StoreKey {
    let info = device.info();
    let numbers = format!("driver {:?} capability {:?}", info.driver_version, info.compute_capability);
    StoreKey::of(&[env!("CARGO_PKG_VERSION"), &numbers, driver_build(), &program.ptx])
}
