//! Tensors that describe themselves in one call, where their library has DLPack's table of functions for it
//! (PyTorch's `Tensor.__dlpack_c_exchange_api__`): a tenth of the time of asking for address, shape, strides, dtype
//! and device one by one.
//!
//! The layout is that of `dlpack.h`, version 1: <https://dmlc.github.io/dlpack/latest/c_api.html>.

use crate::call::Place;
use crate::dims::Dims;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyType};
use signflash_core::Dtype;
use std::ffi::c_void;

/// The version whose layout this is; later minor ones only add behind it.
const MAJOR: u32 = 1;
const CPU: i32 = 1;
const CUDA: i32 = 2;

#[repr(C)]
struct Header {
    major: u32,
    minor: u32,
    previous: *const Header,
}

#[repr(C)]
struct Table {
    header: Header,
    allocate: *const c_void,
    export: *const c_void,
    import: *const c_void,
    describe: Option<Describe>,
    current_stream: *const c_void,
}

type Describe = unsafe extern "C" fn(*mut c_void, *mut Description) -> i32;

/// `DLTensor`.
#[repr(C)]
struct Description {
    data: *mut c_void,
    device: i32,
    device_index: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// The class whose instances the function takes, and the function.
struct Exchange {
    class: Py<PyType>,
    describe: Describe,
}

static EXCHANGE: PyOnceLock<Exchange> = PyOnceLock::new();

/// What a tensor says of itself.
pub(crate) struct Described {
    pub(crate) address: u64,
    /// Nothing if there are more than anybody here takes, or a number is negative.
    pub(crate) dims: Option<Dims>,
    /// Nothing if it is of a dtype or on a device that we do not know.
    pub(crate) kind: Option<Kind>,
}

/// Elements of which type, on which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    elements: Elements,
    /// Its number, of a GPU.
    gpu: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elements {
    Float(Dtype),
    Int32,
    Bool,
}

impl Kind {
    /// That of a call.
    pub(crate) fn of(elements: Elements, at: Place) -> Self {
        let gpu = match at {
            Place::Cpu { .. } => None,
            Place::Cuda { ordinal, .. } => Some(ordinal),
        };
        Self { elements, gpu }
    }

    /// Floats of which dtype, and on which GPU.
    pub(crate) fn floats(self) -> Option<(Dtype, Option<u32>)> {
        match self.elements {
            Elements::Float(dtype) => Some((dtype, self.gpu)),
            Elements::Int32 | Elements::Bool => None,
        }
    }
}

/// Has tensors of this class describe themselves from now on. False, and nothing changes, if it is no such table, one
/// of another version or has no such function.
#[pyfunction]
pub(crate) fn exchange(class: &Bound<'_, PyType>, table: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Ok(table) = table.cast::<PyCapsule>() else { return Ok(false) };
    let Ok(table) = table.pointer_checked(Some(c"dlpack_exchange_api")) else { return Ok(false) };
    let table = table.cast::<Table>().as_ptr();
    // SAFETY: a capsule of this name holds a table that lives as long as the process, and begins with a header in every
    // version; of this major version it has these fields.
    let describe = unsafe { if (*table).header.major == MAJOR { (*table).describe } else { None } };
    let Some(describe) = describe else { return Ok(false) };
    EXCHANGE.get_or_init(class.py(), || Exchange { class: class.clone().unbind(), describe });
    Ok(true)
}

/// What the tensor says of itself; nothing if it cannot, or if it is none.
pub(crate) fn describe(tensor: Borrowed<'_, '_, PyAny>) -> Option<Described> {
    let py = tensor.py();
    let Exchange { class, describe } = EXCHANGE.get(py)?;
    // SAFETY: both are types. (A class may say otherwise of its instances; this asks for their memory.)
    let is_tensor = unsafe {
        ffi::PyType_IsSubtype(ffi::Py_TYPE(tensor.as_ptr()), class.as_ptr().cast::<ffi::PyTypeObject>())
    };
    if is_tensor == 0 {
        return None;
    }
    let mut description = std::mem::MaybeUninit::<Description>::uninit();
    // SAFETY: the function takes instances of the class, as just checked, and room for a description.
    if unsafe { describe(tensor.as_ptr().cast(), description.as_mut_ptr()) } != 0 {
        drop(PyErr::take(py)); // why it cannot is found out, and said, by the package's Python half
        return None;
    }
    // SAFETY: it has returned 0, so it has written all of it.
    let description = unsafe { description.assume_init() };
    Some(Described {
        address: (description.data as u64).wrapping_add(description.byte_offset),
        // SAFETY: there are `ndim` sizes and as many strides, which live as long as the tensor.
        dims: unsafe { dims(&description) },
        kind: kind(&description),
    })
}

/// # Safety
/// There are as many sizes and strides as the description says, unless their address is null.
unsafe fn dims(description: &Description) -> Option<Dims> {
    let count = usize::try_from(description.ndim).ok()?;
    if description.shape.is_null() || description.strides.is_null() {
        return None;
    }
    Dims::of(count, |dim| {
        // SAFETY: `dim` is below `count`; the rest is the caller's promise.
        let (size, stride) = unsafe { (*description.shape.add(dim), *description.strides.add(dim)) };
        Some((usize::try_from(size).ok()?, usize::try_from(stride).ok()?))
    })
}

fn kind(description: &Description) -> Option<Kind> {
    let elements = match (description.code, description.bits, description.lanes) {
        (0, 32, 1) => Elements::Int32,
        (2, 32, 1) => Elements::Float(Dtype::F32),
        (2, 16, 1) => Elements::Float(Dtype::F16),
        (4, 16, 1) => Elements::Float(Dtype::Bf16),
        (6, 8, 1) => Elements::Bool,
        _ => return None,
    };
    let gpu = match description.device {
        CPU => None,
        CUDA => Some(u32::try_from(description.device_index).ok()?),
        _ => return None,
    };
    Some(Kind { elements, gpu })
}
