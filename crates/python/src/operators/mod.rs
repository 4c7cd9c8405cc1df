//! Kernels of PyTorch's operators for attention that PyTorch calls without an interpreter in between.
//!
//! | module | what |
//! |---|---|
//! | `stable` | PyTorch's tensors, by its stable C interface |
//! | `stack` | arguments and results |
//! | `operand` | how kernels read and write a tensor |
//! | `given` | a call: whether it is ours, forward and backward |
//! | `drawn`, `generator` | its random state, and where it comes from |
//! | `flash`, `efficient`, `cudnn` | the operators |
//! | `python` | what is asked of the package's Python half |

mod cudnn;
mod drawn;
mod efficient;
mod flash;
mod generator;
mod given;
mod operand;
mod python;
mod stable;
mod stack;

use given::LEAST_PAIRS;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;
use python::{HOOKS, Hooks};
use stable::{Failure, Handle, Kernel, Outcome, Torch, Value};
use stack::{Arguments, Found};
use std::ffi::{CStr, CString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The version of PyTorch's whose interface is used; later ones speak it, too.
const VERSION: u64 = (2 << 56) | (10 << 48);

static TORCH: OnceLock<Torch> = OnceLock::new();

type Body = fn(&'static Torch, Arguments<'_>) -> Outcome<Vec<Found>>;

/// Runs a kernel. What it cannot compute becomes an error of PyTorch's.
///
/// # Safety
/// The stack has so many arguments, of the operator's schema, and room for as many results.
unsafe fn run(stack: *mut Value, arguments: u64, results: u64, body: Body) {
    let torch = TORCH.get().expect("kernels are registered after that");
    let (arguments, results) = (arguments as usize, results as usize);
    // SAFETY: the caller's promise.
    let values = unsafe { std::slice::from_raw_parts(stack, arguments) };
    let computed = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the body reads the arguments of its operator's schema.
        let found = body(torch, unsafe { Arguments::new(values, torch) })?;
        assert_eq!(found.len(), results, "an operator of other results");
        found.into_iter().map(|found| found.into_value(torch)).collect::<Outcome<Vec<_>>>()
    }));
    let failure = match computed {
        Ok(Ok(found)) => {
            // SAFETY: there is room for all results.
            unsafe { std::slice::from_raw_parts_mut(stack, results) }.copy_from_slice(&found);
            return;
        }
        Ok(Err(Failure(failure))) => failure,
        Err(_) => {
            "a kernel of signflash failed, and has written why to stderr; please report this".to_owned()
        }
    };
    let words = CString::new(failure.replace('\0', " ")).unwrap_or_default();
    // SAFETY: texts that end. It throws a C++ exception, which passes through functions that allow it, and frees the text.
    unsafe {
        (torch.functions.refuse)(false, c"attention".as_ptr(), c"signflash".as_ptr(), 0, words.as_ptr())
    };
}

/// Declares the operators once: its name, and a C function that runs its body.
macro_rules! operators {
    ($($function:ident: $name:literal = $body:path;)*) => {
        $(
            /// # Safety
            /// PyTorch calls it for its operator.
            unsafe extern "C-unwind" fn $function(stack: *mut Value, arguments: u64, results: u64) {
                // SAFETY: PyTorch's promise.
                unsafe { run(stack, arguments, results, $body) }
            }
        )*

        const OPERATORS: &[(&CStr, Kernel)] = &[$(($name, $function)),*];
    };
}

operators! {
    run_flash: c"_scaled_dot_product_flash_attention" = flash::forward;
    run_flash_backward: c"_scaled_dot_product_flash_attention_backward" = flash::backward;
    run_efficient: c"_scaled_dot_product_efficient_attention" = efficient::forward;
    run_efficient_backward: c"_scaled_dot_product_efficient_attention_backward" = efficient::backward;
    run_cudnn: c"_scaled_dot_product_cudnn_attention" = cudnn::forward;
    run_cudnn_backward: c"_scaled_dot_product_cudnn_attention_backward" = cudnn::backward;
}

/// Whether kernels can be registered from now on: whether the library at `path`, which is loaded, has all that they take.
#[pyfunction]
#[pyo3(signature = (*, path, draw, hear, refuse, listeners, deterministic, usual))]
#[allow(clippy::too_many_arguments)] // named, at the one place that calls it
pub(crate) fn have_operators(
    py: Python<'_>,
    path: &str,
    draw: Py<PyAny>,
    hear: Py<PyAny>,
    refuse: Py<PyAny>,
    listeners: Py<PyList>,
    deterministic: Py<PyAny>,
    usual: generator::Usual,
) -> bool {
    let Some(torch) = Torch::find(path) else { return false };
    TORCH.get_or_init(|| torch);
    HOOKS.get_or_init(py, || Hooks { draw, hear, refuse, listeners, deterministic, usual });
    true
}

/// Kernels that are registered, until they are removed.
#[pyclass(frozen, module = "signflash._native")]
pub(crate) struct Registered {
    library: Mutex<Option<usize>>,
}

/// Registers kernels of these operators of PyTorch's (`aten::`) for a dispatch key. On a GPU calls of fewer pairs than the least
/// stay with PyTorch's own.
#[pyfunction]
pub(crate) fn register_operators(key: &str, names: Vec<String>, least_pairs: u64) -> PyResult<Registered> {
    let torch = TORCH.get().ok_or_else(|| PyRuntimeError::new_err("have_operators comes before"))?;
    LEAST_PAIRS.store(least_pairs, Ordering::Relaxed);
    let raise = |Failure(text): Failure| PyRuntimeError::new_err(text);
    let (key, mut library): (_, Handle) = (CString::new(key)?, null_mut());
    // SAFETY: texts that end; it writes a library that is ours.
    let status = unsafe {
        let (namespace, file) = (c"aten".as_ptr(), c"signflash".as_ptr());
        (torch.functions.begin_library)(namespace, key.as_ptr(), file, 0, &raw mut library)
    };
    torch.check(status).map_err(raise)?;
    let registered = Registered { library: Mutex::new(Some(library.expose_provenance())) };
    for name in names {
        let found = OPERATORS.iter().find(|(of, _)| of.to_bytes() == name.as_bytes());
        let (name, kernel) =
            found.ok_or_else(|| PyValueError::new_err(format!("there is no kernel for {name}")))?;
        // SAFETY: a library that is ours, and a kernel of this operator.
        let status = unsafe { (torch.functions.add_kernel)(library, name.as_ptr(), *kernel, VERSION) };
        torch.check(status).map_err(raise)?;
    }
    Ok(registered)
}

#[pymethods]
impl Registered {
    /// Brings PyTorch's own back.
    fn remove(&self) {
        let library = self.library.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(library), Some(torch)) = (library, TORCH.get()) {
            // SAFETY: it is ours, and nobody uses it any more.
            let _ = unsafe { (torch.functions.end_library)(std::ptr::with_exposed_provenance_mut(library)) };
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.remove();
    }
}
