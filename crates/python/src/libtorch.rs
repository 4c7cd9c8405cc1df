//! Functions of PyTorch's stable C interface, found at run time in the libtorch that Python has loaded: through them a
//! tensor is looked at, and one allocated, in a fraction of the time that the same takes through Python.
//!
//! Nothing is linked. Where one of them is not there (before PyTorch 2.14), none is used. Their declarations are those of
//! `torch/csrc/stable/c/shim.h` and `torch/csrc/inductor/aoti_torch/c/shim.h`, which PyTorch promises to keep.

use crate::call::Place;
use crate::symbols::{Library, functions};
use pyo3::ffi;
use pyo3::prelude::*;
use signflash_core::{Dtype, contiguous_strides};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::null_mut;

/// `AtenTensorHandle`.
type Handle = *mut c_void;
/// `AOTITorchError`: 0 where all is well.
type Status = i32;

functions! {
    /// Those that the short way takes; without one of them, none is used.
    pub(crate) struct Functions {
        from_object: c"torch_tensor_from_pyobject" = fn(*mut c_void, *mut Handle) -> Status;
        to_object: c"torch_tensor_to_pyobject" = fn(Handle, *mut c_void, *mut *mut c_void) -> Status;
        delete: c"aoti_torch_delete_tensor_object" = fn(Handle) -> Status;
        address: c"aoti_torch_get_data_ptr" = fn(Handle, *mut *mut c_void) -> Status;
        storage_offset: c"aoti_torch_get_storage_offset" = fn(Handle, *mut i64) -> Status;
        storage_bytes: c"aoti_torch_get_storage_size" = fn(Handle, *mut i64) -> Status;
        empty: c"aoti_torch_empty_strided"
            = fn(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> Status;
        threads: c"torch_get_num_threads" = fn(*mut u32) -> Status;
        records: c"aoti_torch_grad_mode_is_enabled" = fn() -> bool;
        float32: c"aoti_torch_dtype_float32" = fn() -> i32;
        float16: c"aoti_torch_dtype_float16" = fn() -> i32;
        bfloat16: c"aoti_torch_dtype_bfloat16" = fn() -> i32;
        uint8: c"aoti_torch_dtype_uint8" = fn() -> i32;
        cpu: c"aoti_torch_device_type_cpu" = fn() -> i32;
        cuda: c"aoti_torch_device_type_cuda" = fn() -> i32;
    }
    optional {}
}

/// What becomes of elements that are allocated.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Room {
    Of(Dtype),
    Bytes,
}

impl Functions {
    /// Those that the extension module of PyTorch at this path, which is loaded, was linked with; nothing if one of them
    /// is not there.
    pub(crate) fn find(path: &str) -> Option<Self> {
        let library = Library::loaded(path)?;
        // SAFETY: it is PyTorch's: the path is that of its own module, as the Python half says.
        unsafe { Self::of(library) }
    }

    /// Whether autograd records what is computed.
    pub(crate) fn records(&self) -> bool {
        // SAFETY: it reads a variable of this thread.
        unsafe { (self.records)() }
    }

    /// How many threads PyTorch uses.
    pub(crate) fn threads(&self) -> Option<usize> {
        let mut count = 0;
        // SAFETY: it writes a number.
        let status = unsafe { (self.threads)(&raw mut count) };
        (status == 0).then_some(count as usize)
    }

    /// The tensor that a Python object is. Errors of PyTorch's would be written to the process's stderr: ask only of what
    /// is a tensor.
    pub(crate) fn of_object<'py>(&self, object: Borrowed<'_, 'py, PyAny>) -> Option<Tensor<'py>> {
        let mut handle = null_mut();
        // SAFETY: a live object, the interpreter's lock is held, and it writes a handle that is ours.
        let status = unsafe { (self.from_object)(object.as_ptr().cast(), &raw mut handle) };
        (status == 0).then(|| Tensor { handle, functions: *self, lock: PhantomData })
    }

    /// A dense tensor with room for these sizes.
    pub(crate) fn empty<'py>(
        &self,
        _: Python<'py>,
        sizes: &[usize],
        room: Room,
        at: Place,
    ) -> Option<Tensor<'py>> {
        let missing = 4usize.checked_sub(sizes.len())?;
        let mut all = [1; 4];
        all[missing..].copy_from_slice(sizes);
        let strides = contiguous_strides(all).map(|stride| stride as i64);
        let sizes = all.map(|size| size as i64);
        // SAFETY: they tell a number.
        let (dtype, (device, index)) = unsafe {
            let dtype = match room {
                Room::Of(Dtype::F32) => (self.float32)(),
                Room::Of(Dtype::F16) => (self.float16)(),
                Room::Of(Dtype::Bf16) => (self.bfloat16)(),
                Room::Bytes => (self.uint8)(),
                Room::Of(_) => return None,
            };
            let device = match at {
                Place::Cpu { .. } => ((self.cpu)(), 0),
                Place::Cuda { ordinal, .. } => ((self.cuda)(), ordinal as i32),
            };
            (dtype, device)
        };
        let (count, mut handle) = ((4 - missing) as i64, null_mut());
        // SAFETY: there are `count` sizes and as many strides, and it writes a handle that is ours.
        let status = unsafe {
            let (sizes, strides) = (sizes.as_ptr().add(missing), strides.as_ptr().add(missing));
            (self.empty)(count, sizes, strides, dtype, device, index, &raw mut handle)
        };
        (status == 0).then(|| Tensor { handle, functions: *self, lock: PhantomData })
    }
}

/// A tensor of PyTorch's, of which this is one more owner; while the interpreter's lock is held.
pub(crate) struct Tensor<'py> {
    handle: Handle,
    functions: Functions,
    lock: PhantomData<Python<'py>>,
}

impl<'py> Tensor<'py> {
    /// Where its elements are.
    pub(crate) fn address(&self) -> Option<u64> {
        let mut address = null_mut();
        // SAFETY: the handle is ours, and it writes an address.
        let status = unsafe { (self.functions.address)(self.handle, &raw mut address) };
        (status == 0).then(|| address.expose_provenance() as u64)
    }

    /// (place of the first element in its storage, bytes of the storage).
    pub(crate) fn within_storage(&self) -> Option<(usize, usize)> {
        let (mut first, mut bytes) = (0, 0);
        // SAFETY: the handle is ours, and they write a number each.
        let done = unsafe {
            (self.functions.storage_offset)(self.handle, &raw mut first) == 0
                && (self.functions.storage_bytes)(self.handle, &raw mut bytes) == 0
        };
        if done { Some((first.try_into().ok()?, bytes.try_into().ok()?)) } else { None }
    }

    /// The same as an object of Python's.
    pub(crate) fn object(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let mut object = null_mut();
        // SAFETY: the handle is ours, and it writes an object that is ours.
        let status = unsafe { (self.functions.to_object)(self.handle, null_mut(), &raw mut object) };
        // SAFETY: it was written; the reference is ours.
        (status == 0).then(|| unsafe { Bound::from_owned_ptr(py, object.cast::<ffi::PyObject>()) })
    }
}

impl Drop for Tensor<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and nobody uses it any more. That it cannot fail is PyTorch's to promise.
        let _ = unsafe { (self.functions.delete)(self.handle) };
    }
}
