//! The driver's compiler: PTX to machine code.

use crate::device::Device;
use crate::error::{CudaError, compile_error};
use crate::program::Program;
use crate::sys::{self, CUjit_option, CUjitInputType, CUlinkState, CUmodule, CUresult};
use std::ffi::c_void;

/// Machine code for one GPU's architecture.
pub(crate) struct Compiled {
    /// An ELF file.
    pub(crate) cubin: Vec<u8>,
    /// What the compiler said.
    pub(crate) log: String,
}

/// Compiles `program` for `device`, whose context must be current on this thread.
pub(crate) fn compile(device: &Device, program: &Program) -> Result<Compiled, CudaError> {
    let _bound = device.bind()?;
    let mut linker = Linker::new();
    match linker.run(&program.ptx) {
        CUresult::CUDA_SUCCESS => Ok(Compiled { cubin: linker.cubin(), log: linker.info.text() }),
        result => {
            let log = [linker.error.text(), linker.info.text()].join("\n");
            Err(compile_error(result, &program.entry, log.trim().into()))
        }
    }
}

/// Whether a program must be compiled as it is loaded.
///
/// The driver's linker compiles each text as if others could call its functions. A kernel that moves registers between
/// its warps (`setmaxnreg`, in programs for one architecture) then keeps those it starts with: the compiler says C7504,
/// spills, and puts wgmma's products one behind the other (measured: 350 instead of 650 TFLOP/s). Loading a text
/// compiles it as a whole.
pub(crate) fn is_whole_program(program: &Program) -> bool {
    program.is_accelerated
}

/// Compiles `program` and loads it for `device`, and what the compiler said. The driver keeps the machine code in its
/// own cache on disk (`CUDA_CACHE_PATH`), and does not hand it out.
pub(crate) fn load_text(device: &Device, program: &Program) -> Result<(CUmodule, String), CudaError> {
    let _bound = device.bind()?;
    let (mut info, mut error) = (Log::new(), Log::new());
    let (mut options, mut values): (Vec<_>, Vec<_>) = log_settings(&mut info, &mut error).into_iter().unzip();
    let mut text = Vec::with_capacity(program.ptx.len() + 1);
    text.extend_from_slice(program.ptx.as_bytes());
    text.push(0);
    let mut handle: CUmodule = std::ptr::null_mut();
    let count = options.len() as u32;
    let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
    // SAFETY: the context is current; `text` ends in NUL; options and values are equally long and, with the logs that
    // they point to, outlive the call, which keeps none of them; `handle` is valid for a write.
    let result =
        unsafe { sys::cuModuleLoadDataEx(&mut handle, text.as_ptr().cast(), count, options, values) };
    if result != CUresult::CUDA_SUCCESS {
        let log = [error.text(), info.text()].join("\n");
        return Err(compile_error(result, &program.entry, log.trim().into()));
    }
    Ok((handle, info.text()))
}

/// The options that have the compiler's messages written down.
fn log_settings(info: &mut Log, error: &mut Log) -> Vec<(CUjit_option, *mut c_void)> {
    let number = |value: usize| value as *mut c_void;
    vec![
        (CUjit_option::CU_JIT_INFO_LOG_BUFFER, info.0.as_mut_ptr().cast()),
        (CUjit_option::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES, number(LOG_BYTES)),
        (CUjit_option::CU_JIT_ERROR_LOG_BUFFER, error.0.as_mut_ptr().cast()),
        (CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, number(LOG_BYTES)),
        (CUjit_option::CU_JIT_LOG_VERBOSE, number(1)),
    ]
}

/// Bytes for the messages of one compilation; verbose ones of large kernels are some KiB.
const LOG_BYTES: usize = 64 << 10;

/// Text that the driver writes.
struct Log(Vec<u8>);

impl Log {
    fn new() -> Self {
        Self(vec![0; LOG_BYTES])
    }

    fn text(&self) -> String {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        String::from_utf8_lossy(&self.0[..end]).trim().to_owned()
    }
}

/// One use of the driver's linker. It compiles as loading does, and hands out the machine code.
///
/// The driver keeps the addresses of `options`, `values` and both logs until the linker is destroyed, which `drop`
/// does first; all are on the heap and never grow.
struct Linker {
    state: CUlinkState,
    options: Vec<CUjit_option>,
    values: Vec<*mut c_void>,
    info: Log,
    error: Log,
    /// The machine code, the driver's until the linker is destroyed.
    code: (*mut c_void, usize),
}

impl Linker {
    fn new() -> Self {
        let (mut info, mut error) = (Log::new(), Log::new());
        let settings = log_settings(&mut info, &mut error);
        let (options, values) = settings.into_iter().unzip();
        let (state, code) = (std::ptr::null_mut(), (std::ptr::null_mut(), 0));
        Self { state, options, values, info, error, code }
    }

    /// Compiles `ptx`; needs a current context.
    fn run(&mut self, ptx: &str) -> CUresult {
        let mut text = Vec::with_capacity(ptx.len() + 1);
        text.extend_from_slice(ptx.as_bytes());
        text.push(0);
        let (options, values) = (self.options.as_mut_ptr(), self.values.as_mut_ptr());
        let count = self.options.len() as u32;
        // SAFETY: `compile` made a context current; options and values are equally long and, with the logs they point
        // to, live until `drop` has destroyed the linker.
        let mut result = unsafe { sys::cuLinkCreate_v2(count, options, values, &mut self.state) };
        if result == CUresult::CUDA_SUCCESS {
            let (kind, data, name) = (CUjitInputType::CU_JIT_INPUT_PTX, text.as_mut_ptr(), c"signflash.ptx");
            let none = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: the linker was just created; `text` has the length given, ends in NUL, and is not kept.
            result = unsafe {
                let (data, length) = (data.cast(), text.len());
                sys::cuLinkAddData_v2(self.state, kind, data, length, name.as_ptr(), 0, none.0, none.1)
            };
        }
        if result == CUresult::CUDA_SUCCESS {
            // SAFETY: as above; both parts of `code` are valid for a write.
            result = unsafe { sys::cuLinkComplete(self.state, &mut self.code.0, &mut self.code.1) };
        }
        result
    }

    /// The machine code, after `run` succeeded.
    fn cubin(&self) -> Vec<u8> {
        let (start, length) = self.code;
        if start.is_null() {
            return Vec::new();
        }
        // SAFETY: cuLinkComplete wrote address and length, and keeps the bytes until `drop` destroys the linker.
        unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) }.to_vec()
    }
}

impl Drop for Linker {
    fn drop(&mut self) {
        if !self.state.is_null() {
            // SAFETY: cuLinkCreate made it, and nothing else destroys it.
            let _ = unsafe { sys::cuLinkDestroy(self.state) };
        }
    }
}
