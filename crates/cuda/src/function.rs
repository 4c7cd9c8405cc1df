//! A kernel, loaded.

use crate::compile::{compile, is_whole_program, load_text};
use crate::device::Device;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::program::Program;
use crate::sys::{self, CUfunction, CUfunction_attribute, CUmodule, CUresult};
use std::ffi::{CString, c_int};

/// A kernel, compiled for a GPU and loaded there; unloaded on drop.
///
/// ```no_run
/// use signflash_cuda::{Device, Function, Program, Stream};
///
/// let ptx = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n";
/// let program = Program { entry: "nothing".into(), ptx: ptx.into(), block_threads: 32, ..Program::default() };
/// let device = Device::open(0)?;
/// let nothing = Function::compile(&device, &program)?;
/// println!("{} registers\n{}", nothing.registers(), nothing.jit_log());
///
/// let stream = Stream::new(&device)?;
/// // SAFETY: the kernel touches no memory.
/// unsafe { nothing.launch(&stream, 1, &[])? };
/// stream.synchronize()?;
/// # Ok::<(), signflash_cuda::CudaError>(())
/// ```
#[derive(Debug)]
pub struct Function {
    module: Module,
    handle: CUfunction,
    entry: String,
    parameter_bytes: Vec<usize>,
    block_threads: u32,
    dynamic_smem_bytes: u32,
    used: Used,
    jit_log: String,
}

// SAFETY: the driver's functions may be called from any thread with any function; `handle` is only handed to them.
unsafe impl Send for Function {}
// SAFETY: as above, and nothing here changes after loading.
unsafe impl Sync for Function {}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug)]
struct Used {
    registers: u32,
    local_bytes: u32,
    static_smem_bytes: u32,
    max_threads: u32,
}

impl Function {
    /// Compiles and loads `program`, past all caches; see [`ModuleCache`](crate::ModuleCache).
    ///
    /// # Errors
    /// [`CudaError::NoEntry`], [`CudaError::Compile`] with the compiler's log, [`CudaError::SharedMemory`],
    /// [`CudaError::Threads`], or the driver's.
    pub fn compile(device: &Device, program: &Program) -> Result<Self, CudaError> {
        if is_whole_program(program) {
            return Self::compile_whole(device, program);
        }
        let compiled = compile(device, program)?;
        Self::load(device, program, &compiled.cubin, compiled.log)
    }

    /// Compiles and loads a [whole program](is_whole_program) at once.
    pub(crate) fn compile_whole(device: &Device, program: &Program) -> Result<Self, CudaError> {
        let (handle, log) = load_text(device, program)?;
        Self::of(program, Module { device: device.clone(), handle }, log)
    }

    /// Loads `cubin`, the machine code of `program`.
    pub(crate) fn load(
        device: &Device,
        program: &Program,
        cubin: &[u8],
        jit_log: String,
    ) -> Result<Self, CudaError> {
        let doing = || Doing::Load { kernel: program.entry.clone() };
        let _bound = device.bind()?;
        Self::of(program, Module::load(device, cubin, doing)?, jit_log)
    }

    /// The kernel in a loaded module.
    fn of(program: &Program, module: Module, jit_log: String) -> Result<Self, CudaError> {
        let no_entry = || CudaError::NoEntry { kernel: program.entry.clone() };
        let name = CString::new(program.entry.as_str()).map_err(|_| no_entry())?;
        let doing = || Doing::Load { kernel: program.entry.clone() };
        let _bound = module.device.bind()?;
        let mut handle: CUfunction = std::ptr::null_mut();
        // SAFETY: `module` was loaded in the context that is current; `handle` is valid for a write.
        match unsafe { sys::cuModuleGetFunction(&mut handle, module.handle, name.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => return Err(no_entry()),
            result => check(result, doing)?,
        }
        let function = Self {
            used: Used::read(handle, doing)?,
            module,
            handle,
            entry: program.entry.clone(),
            parameter_bytes: program.parameter_bytes.clone(),
            block_threads: program.block_threads,
            dynamic_smem_bytes: program.dynamic_smem_bytes,
            jit_log,
        };
        function.check_fits()?;
        function.reserve_shared_memory()?;
        Ok(function)
    }

    /// The kernel's name.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Its GPU.
    pub fn device(&self) -> &Device {
        &self.module.device
    }

    /// Threads of a block.
    pub fn block_threads(&self) -> u32 {
        self.block_threads
    }

    /// Shared memory of a block that is given at launch.
    pub fn dynamic_smem_bytes(&self) -> u32 {
        self.dynamic_smem_bytes
    }

    /// Registers of a thread.
    pub fn registers(&self) -> u32 {
        self.used.registers
    }

    /// Local memory of a thread; more than its arrays need means that registers were spilled.
    pub fn local_bytes(&self) -> u32 {
        self.used.local_bytes
    }

    /// What the compiler said; empty if the machine code came from the cache on disk.
    pub fn jit_log(&self) -> &str {
        &self.jit_log
    }

    /// How many blocks run on a multiprocessor at a time.
    ///
    /// # Errors
    /// The driver's.
    pub fn blocks_per_sm(&self) -> Result<u32, CudaError> {
        let _bound = self.device().bind()?;
        let (mut blocks, threads) = (0, self.block_threads as c_int);
        let dynamic = self.dynamic_smem_bytes as usize;
        // SAFETY: the function is loaded in the current context; `blocks` is valid for a write.
        let result = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, self.handle, threads, dynamic)
        };
        check(result, || Doing::Load { kernel: self.entry.clone() })?;
        Ok(blocks.max(0) as u32)
    }

    /// The bytes of each parameter.
    pub(crate) fn parameter_bytes(&self) -> &[usize] {
        &self.parameter_bytes
    }

    /// The handle, for the calls of this crate.
    pub(crate) fn handle(&self) -> CUfunction {
        self.handle
    }

    /// That a block fits into a multiprocessor.
    fn check_fits(&self) -> Result<(), CudaError> {
        let kernel = || self.entry.clone();
        let needed = u64::from(self.used.static_smem_bytes) + u64::from(self.dynamic_smem_bytes);
        let available = u64::from(self.device().info().smem_per_block_optin_bytes);
        if needed > available {
            return Err(CudaError::SharedMemory { kernel: kernel(), needed, available });
        }
        let (got, max) = (self.block_threads, self.used.max_threads);
        if got == 0 || got > max {
            return Err(CudaError::Threads { kernel: kernel(), got, max });
        }
        Ok(())
    }

    /// Allows the dynamic shared memory, and prefers shared memory to first-level cache; needs a current context.
    fn reserve_shared_memory(&self) -> Result<(), CudaError> {
        use CUfunction_attribute as A;
        if self.dynamic_smem_bytes == 0 {
            return Ok(());
        }
        let percent = 100;
        for (attribute, value) in [
            (A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, self.dynamic_smem_bytes as c_int),
            (A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, percent),
        ] {
            // SAFETY: the function is loaded in the current context, and `check_fits` has seen that the memory exists.
            let result = unsafe { sys::cuFuncSetAttribute(self.handle, attribute, value) };
            check(result, || Doing::Load { kernel: self.entry.clone() })?;
        }
        Ok(())
    }
}

impl Used {
    /// Reads it of a loaded function whose context is current.
    fn read(handle: CUfunction, doing: impl Fn() -> Doing) -> Result<Self, CudaError> {
        use CUfunction_attribute as A;
        let get = |attribute| {
            let mut value: c_int = 0;
            // SAFETY: the caller has just loaded the function; `value` is valid for a write.
            check(unsafe { sys::cuFuncGetAttribute(&mut value, attribute, handle) }, &doing)?;
            Ok(value.max(0) as u32)
        };
        Ok(Self {
            registers: get(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: get(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            static_smem_bytes: get(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            max_threads: get(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }
}

/// Loaded machine code.
#[derive(Debug)]
struct Module {
    device: Device,
    handle: CUmodule,
}

impl Module {
    /// Loads `cubin` in the device's context, which must be current.
    fn load(device: &Device, cubin: &[u8], doing: impl Fn() -> Doing) -> Result<Self, CudaError> {
        if !cubin.starts_with(b"\x7fELF") {
            check(CUresult::CUDA_ERROR_INVALID_IMAGE, &doing)?;
        }
        let mut handle: CUmodule = std::ptr::null_mut();
        // SAFETY: the context is current; `cubin` begins as an ELF file does, and is whole: it came from the driver's
        // linker, now or through the store. The store's checks of length and checksum find accidents, and its checks
        // that file and directory are this user's and nobody else may write them (`cache/trust.rs`) keep forgeries
        // out: who can pass those can run code as this user anyway. `handle` is valid for a write.
        check(unsafe { sys::cuModuleLoadData(&mut handle, cubin.as_ptr().cast()) }, &doing)?;
        Ok(Self { device: device.clone(), handle })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_bound) = self.device.bind() {
            // SAFETY: `load` made it and nothing else unloads it; `launch` was promised that its kernels have ended.
            let _ = unsafe { sys::cuModuleUnload(self.handle) };
        }
    }
}
