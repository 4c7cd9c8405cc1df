//! PyTorch's tensors by its stable C interface, where no interpreter is asked.
//!
//! Nothing is linked: the functions are found at run time in the libtorch that Python has loaded. Their declarations are those
//! of `torch/csrc/stable/c/shim.h`, `torch/csrc/inductor/aoti_torch/c/shim.h` and `generated/c_shim_cuda.h` beside it, which
//! PyTorch promises to keep.

use crate::call::Place;
use crate::dims::Dims;
use crate::exchange::{Elements, Kind};
use crate::lent::Lent;
use crate::symbols::{Library, functions};
use signflash_core::{Dtype, contiguous_strides};
use std::ffi::{CStr, c_char, c_void};
use std::mem::ManuallyDrop;
use std::ptr::null_mut;

/// `AtenTensorHandle` and `TorchLibraryHandle`.
pub(crate) type Handle = *mut c_void;
/// `AOTITorchError`: 0 where all is well.
pub(crate) type Status = i32;
/// `StableIValue`: a number, a handle, or the address of another such value, which may be missing.
pub(crate) type Value = u64;
/// What PyTorch calls: its arguments, their number and that of results, which take the place of arguments.
pub(crate) type Kernel = unsafe extern "C-unwind" fn(*mut Value, u64, u64);

type Out = *mut Handle;

functions! {
    /// What kernels of PyTorch's operators take: there since PyTorch 2.10.
    pub(crate) struct Stable {
        begin_library: c"aoti_torch_library_init_impl"
            = fn(*const c_char, *const c_char, *const c_char, u32, Out) -> Status;
        add_kernel: c"torch_library_impl" = fn(Handle, *const c_char, Kernel, u64) -> Status;
        end_library: c"aoti_torch_delete_library_object" = fn(Handle) -> Status;
        refuse: c"aoti_torch_check" = fn(bool, *const c_char, *const c_char, u32, *const c_char);
        delete: c"aoti_torch_delete_tensor_object" = fn(Handle) -> Status;
        undefined: c"aoti_torch_new_uninitialized_tensor" = fn(Out) -> Status;
        is_defined: c"aoti_torch_is_defined" = fn(Handle, *mut bool) -> Status;
        address: c"aoti_torch_get_data_ptr" = fn(Handle, *mut *mut c_void) -> Status;
        dims: c"aoti_torch_get_dim" = fn(Handle, *mut i64) -> Status;
        sizes: c"aoti_torch_get_sizes" = fn(Handle, *mut *mut i64) -> Status;
        strides: c"aoti_torch_get_strides" = fn(Handle, *mut *mut i64) -> Status;
        dtype: c"aoti_torch_get_dtype" = fn(Handle, *mut i32) -> Status;
        device: c"aoti_torch_get_device_type" = fn(Handle, *mut i32) -> Status;
        device_index: c"aoti_torch_get_device_index" = fn(Handle, *mut i32) -> Status;
        storage_offset: c"aoti_torch_get_storage_offset" = fn(Handle, *mut i64) -> Status;
        storage_bytes: c"aoti_torch_get_storage_size" = fn(Handle, *mut i64) -> Status;
        empty: c"aoti_torch_empty_strided"
            = fn(i64, *const i64, *const i64, i32, i32, i32, Out) -> Status;
        view: c"aoti_torch__reinterpret_tensor" = fn(Handle, i64, *const i64, *const i64, i64, Out) -> Status;
        view_dtype: c"aoti_torch_view_dtype" = fn(Handle, i32, Out) -> Status;
        copy: c"aoti_torch_copy_" = fn(Handle, Handle, i32) -> Status;
        zero: c"aoti_torch_zero_" = fn(Handle) -> Status;
        threads: c"torch_get_num_threads" = fn(*mut u32) -> Status;
        list_item: c"torch_list_get_item" = fn(Handle, usize, *mut Value) -> Status;
        delete_list: c"torch_delete_list" = fn(Handle) -> Status;
        float32: c"aoti_torch_dtype_float32" = fn() -> i32;
        float16: c"aoti_torch_dtype_float16" = fn() -> i32;
        bfloat16: c"aoti_torch_dtype_bfloat16" = fn() -> i32;
        int64: c"aoti_torch_dtype_int64" = fn() -> i32;
        uint64: c"aoti_torch_dtype_uint64" = fn() -> i32;
        uint8: c"aoti_torch_dtype_uint8" = fn() -> i32;
        cpu: c"aoti_torch_device_type_cpu" = fn() -> i32;
        cuda: c"aoti_torch_device_type_cuda" = fn() -> i32;
        // PyTorch's own for CUDA, without its dispatcher.
        stream: c"aoti_torch_get_current_cuda_stream" = fn(i32, *mut *mut c_void) -> Status;
        randint: c"aoti_torch_cuda_randint_low_out" = fn(Handle, i64, i64, *const i64, i64) -> Status;
        efficient: c"aoti_torch_cuda__scaled_dot_product_efficient_attention"
            = fn(Handle, Handle, Handle, *mut Handle, i32, f64, i32, *mut f64, Out, Out, Out, Out) -> Status;
        efficient_backward: c"aoti_torch_cuda__scaled_dot_product_efficient_attention_backward"
            = fn(Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle, f64, *const i32, i64, i32, *mut f64,
                Out, Out, Out, Out) -> Status;
        cudnn: c"aoti_torch_cuda__scaled_dot_product_cudnn_attention"
            = fn(Handle, Handle, Handle, *mut Handle, i32, f64, i32, i32, *mut f64, Out, Out, Out, Out, *mut i64, *mut i64,
                Out, Out, Out) -> Status;
        cudnn_backward: c"aoti_torch_cuda__scaled_dot_product_cudnn_attention_backward"
            = fn(Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle, i64, i64, f64, i32,
                *mut f64, Out, Out, Out) -> Status;
    }
    optional {
        // What the latest error said, since 2.13; PyTorch writes it to stderr before.
        said: c"torch_exception_get_what_without_backtrace" = fn() -> *const c_char;
        delete_value: c"torch_delete_stable_ivalue" = fn(*mut Value) -> Status;
        // C++'s operator delete, which 2.13's function stands for.
        delete_memory: c"_ZdlPv" = fn(*mut c_void);
    }
}

/// Why a kernel did not compute: what it says to who called.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// PyTorch's numbers for dtypes and devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes {
    pub(crate) int64: i32,
    pub(crate) uint64: i32,
    pub(crate) uint8: i32,
    floats: [(i32, Dtype); 3],
    cpu: i32,
    cuda: i32,
}

/// PyTorch, as kernels see it.
pub(crate) struct Torch {
    pub(crate) functions: Stable,
    pub(crate) codes: Codes,
}

impl Torch {
    /// The one that the extension module at this path, which is loaded, was linked with; nothing if it has not all of it.
    pub(crate) fn find(path: &str) -> Option<Self> {
        let library = Library::loaded(path)?;
        // SAFETY: it is PyTorch's: the path is that of its own module, as the Python half says.
        let functions = unsafe { Stable::of(library) }?;
        functions.delete_value.map(drop).or(functions.delete_memory.map(drop))?;
        // SAFETY: they tell a number each.
        let codes = unsafe {
            Codes {
                int64: (functions.int64)(),
                uint64: (functions.uint64)(),
                uint8: (functions.uint8)(),
                floats: [
                    ((functions.float32)(), Dtype::F32),
                    ((functions.float16)(), Dtype::F16),
                    ((functions.bfloat16)(), Dtype::Bf16),
                ],
                cpu: (functions.cpu)(),
                cuda: (functions.cuda)(),
            }
        };
        Some(Self { functions, codes })
    }

    /// That a function of PyTorch's did what it was asked for.
    pub(crate) fn check(&self, status: Status) -> Outcome<()> {
        if status == 0 {
            return Ok(());
        }
        Err(Failure(self.said().unwrap_or_else(|| {
            "PyTorch could not do its part of an attention; it has written why to stderr".to_owned()
        })))
    }

    /// What the latest error said, if this PyTorch can tell.
    fn said(&self) -> Option<String> {
        // SAFETY: it tells the address of text of this thread, or none.
        let text = unsafe { self.functions.said?() };
        // SAFETY: text that ends, which nobody changes before PyTorch is called again.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        text.filter(|text| !text.is_empty())
    }

    /// That there was memory. Programs that try again with less look for these words.
    fn check_memory(&self, status: Status, gpu: Option<u32>) -> Outcome<()> {
        if status == 0 || self.functions.said.is_some() || gpu.is_none() {
            return self.check(status);
        }
        let words = "CUDA out of memory. PyTorch could not allocate what attention takes, and has written why to stderr";
        Err(Failure(words.to_owned()))
    }

    pub(crate) fn code(&self, dtype: Dtype) -> Outcome<i32> {
        let found = self.codes.floats.iter().find(|(_, of)| *of == dtype);
        found.map(|(code, _)| *code).ok_or_else(|| Failure(format!("PyTorch has no {dtype} here")))
    }

    pub(crate) fn float_of(&self, code: i32) -> Option<Dtype> {
        self.codes.floats.iter().find(|(of, _)| *of == code).map(|(_, dtype)| *dtype)
    }

    /// A tensor with room for these sizes, laid out so, on this GPU or the CPU.
    pub(crate) fn empty(
        &'static self,
        sizes: &[i64],
        strides: &[i64],
        dtype: i32,
        gpu: Option<u32>,
    ) -> Outcome<Tensor> {
        debug_assert_eq!(sizes.len(), strides.len());
        let (device, index) = gpu.map_or((self.codes.cpu, 0), |gpu| (self.codes.cuda, gpu as i32));
        let mut handle = null_mut();
        // SAFETY: there are as many strides as sizes, and it writes a handle that is ours.
        let status = unsafe {
            let (count, sizes, strides) = (sizes.len() as i64, sizes.as_ptr(), strides.as_ptr());
            (self.functions.empty)(count, sizes, strides, dtype, device, index, &raw mut handle)
        };
        self.check_memory(status, gpu)?;
        self.made(0, handle)
    }

    /// A dense one of four dimensions.
    pub(crate) fn dense(&'static self, shape: [usize; 4], dtype: i32, gpu: Option<u32>) -> Outcome<Tensor> {
        self.empty(&signed(shape), &signed(contiguous_strides(shape)), dtype, gpu)
    }

    /// A dense row.
    pub(crate) fn row(&'static self, len: usize, dtype: i32, gpu: Option<u32>) -> Outcome<Tensor> {
        self.empty(&[len as i64], &[1], dtype, gpu)
    }

    /// PyTorch's tensor that is none.
    pub(crate) fn nothing(&'static self) -> Outcome<Tensor> {
        let mut handle = null_mut();
        // SAFETY: it writes a handle that is ours.
        let status = unsafe { (self.functions.undefined)(&raw mut handle) };
        self.made(status, handle)
    }

    /// A tensor that a function of PyTorch's has made.
    pub(crate) fn made(&'static self, status: Status, handle: Handle) -> Outcome<Tensor> {
        self.check(status)?;
        Ok(Tensor { handle, torch: self })
    }
}

pub(crate) fn signed<const N: usize>(sizes: [usize; N]) -> [i64; N] {
    sizes.map(|size| size as i64)
}

/// A tensor of PyTorch's, of which this is an owner.
pub(crate) struct Tensor {
    handle: Handle,
    torch: &'static Torch,
}

impl Tensor {
    /// # Safety
    /// The value is a handle, which becomes ours.
    pub(crate) unsafe fn of_value(value: Value, torch: &'static Torch) -> Self {
        Self { handle: std::ptr::with_exposed_provenance_mut(value as usize), torch }
    }

    /// The handle, which is whose that takes it.
    pub(crate) fn into_value(self) -> Value {
        ManuallyDrop::new(self).handle.expose_provenance() as Value
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    pub(crate) fn torch(&self) -> &'static Torch {
        self.torch
    }

    /// What one of PyTorch's functions writes about it.
    fn told<T>(&self, ask: unsafe extern "C-unwind" fn(Handle, *mut T) -> Status, mut told: T) -> Outcome<T> {
        // SAFETY: the handle is ours, and there is room for what it writes.
        let status = unsafe { ask(self.handle, &raw mut told) };
        self.torch.check(status)?;
        Ok(told)
    }

    pub(crate) fn is_defined(&self) -> Outcome<bool> {
        self.told(self.torch.functions.is_defined, false)
    }

    pub(crate) fn dtype(&self) -> Outcome<i32> {
        self.told(self.torch.functions.dtype, 0)
    }

    /// The number of the GPU that it is on, or nothing on the CPU.
    pub(crate) fn gpu(&self) -> Outcome<Option<u32>> {
        let device = self.told(self.torch.functions.device, 0)?;
        if device == self.torch.codes.cpu {
            return Ok(None);
        }
        if device != self.torch.codes.cuda {
            return Err(Failure("attention of tensors that are neither on the CPU nor on CUDA".to_owned()));
        }
        Ok(Some(self.told(self.torch.functions.device_index, 0)? as u32))
    }

    /// Its sizes and strides, of which there are at most four.
    pub(crate) fn dims(&self) -> Outcome<Dims> {
        let functions = &self.torch.functions;
        let count = self.told(functions.dims, 0)?;
        let sizes = self.told(functions.sizes, null_mut())?;
        let strides = self.told(functions.strides, null_mut())?;
        let dims = usize::try_from(count).ok().and_then(|count| {
            Dims::of(count, |dim| {
                // SAFETY: there are `count` of each, which live as long as the tensor.
                let (size, stride) = unsafe { (*sizes.add(dim), *strides.add(dim)) };
                Some((usize::try_from(size).ok()?, usize::try_from(stride).ok()?))
            })
        });
        dims.ok_or_else(|| Failure(format!("a tensor has {count} dimensions, where attention has four")))
    }

    pub(crate) fn address(&self) -> Outcome<u64> {
        Ok(self.told(self.torch.functions.address, null_mut())?.expose_provenance() as u64)
    }

    /// (place of the first element in its storage, bytes of the storage).
    pub(crate) fn within_storage(&self) -> Outcome<(usize, usize)> {
        let first = self.told(self.torch.functions.storage_offset, 0)?;
        let bytes = self.told(self.torch.functions.storage_bytes, 0)?;
        Ok((usize::try_from(first)?, usize::try_from(bytes)?))
    }

    /// Where it lies, with dimensions that are the tensor's in some order.
    pub(crate) fn lent(&self, dims: Dims, gpu: Option<u32>) -> Outcome<Lent> {
        let (first, bytes) = self.within_storage()?;
        let at = place_of(gpu);
        let kind = self.torch.float_of(self.dtype()?).map(|dtype| Kind::of(Elements::Float(dtype), at));
        Ok(kind.map_or(Lent::UNREADABLE, |kind| {
            // An empty tensor has no memory, and its address may be anything.
            Lent::lying(self.address().unwrap_or(0), dims, (first, bytes), kind)
        }))
    }

    /// The same numbers, laid out otherwise.
    pub(crate) fn view(&self, sizes: &[i64], strides: &[i64], first: i64) -> Outcome<Tensor> {
        debug_assert_eq!(sizes.len(), strides.len());
        let mut handle = null_mut();
        // SAFETY: there are as many strides as sizes; it writes a handle that is ours.
        let status = unsafe {
            let (count, sizes, strides) = (sizes.len() as i64, sizes.as_ptr(), strides.as_ptr());
            (self.torch.functions.view)(self.handle, count, sizes, strides, first, &raw mut handle)
        };
        self.torch.made(status, handle)
    }

    /// The same bits as another dtype of their size.
    pub(crate) fn view_as(&self, dtype: i32) -> Outcome<Tensor> {
        let mut handle = null_mut();
        // SAFETY: the handle is ours, and it writes another.
        let status = unsafe { (self.torch.functions.view_dtype)(self.handle, dtype, &raw mut handle) };
        self.torch.made(status, handle)
    }

    /// Writes another's numbers to it.
    pub(crate) fn copy_from(&self, other: &Tensor) -> Outcome<()> {
        // SAFETY: both handles are ours.
        self.torch.check(unsafe { (self.torch.functions.copy)(self.handle, other.handle, 0) })
    }

    pub(crate) fn zero(&self) -> Outcome<()> {
        // SAFETY: the handle is ours.
        self.torch.check(unsafe { (self.torch.functions.zero)(self.handle) })
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and nobody uses it any more. That it cannot fail is PyTorch's to promise.
        let _ = unsafe { (self.torch.functions.delete)(self.handle) };
    }
}

/// Where kinds are compared: no stream and no number of threads.
fn place_of(gpu: Option<u32>) -> Place {
    gpu.map_or(Place::Cpu { threads: 0 }, |ordinal| Place::Cuda { ordinal, stream: 0 })
}
