//! The functions that Python sees. They take numbers, never objects that own memory: the package's Python half keeps
//! tensors alive and allocates results.

use crate::call::{self, Backward, Forward, Place};
use crate::ending::detached;
use crate::error::CallError;
use crate::foreign::ForeignTensor;
use crate::settings::Settings;
use crate::{ending, kept, logger, pool};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use signflash_core::{Dtype, Shape, Shard};
use signflash_cuda::{Device, EngineError};

/// Four numbers as a tuple, which PyO3 reads in half the time of a sequence.
type Four = (usize, usize, usize, usize);
/// (address, shape, strides).
type Tensor = (u64, Four, Four);
/// (first_batch, first_head, first_row, first_column, num_heads_total).
type ShardArgs = (usize, usize, usize, usize, Option<usize>);
/// (causal, softmax_scale, dropout_p, seed, offset, nominal, shard).
type SettingsArgs = (bool, Option<f64>, f64, u64, u64, bool, Option<ShardArgs>);

/// (GPU or -1 for the CPU, stream or number of threads).
type PlaceArgs = (i64, u64);

fn tensor((address, shape, strides): Tensor) -> ForeignTensor {
    ForeignTensor { address, shape: shape.into(), strides: strides.into() }
}

fn settings((causal, softmax_scale, dropout_p, seed, offset, nominal, shard): SettingsArgs) -> Settings {
    let shard =
        shard.map_or_else(Shard::default, |(batch, head, first_row, first_column, num_heads_total)| Shard {
            first_batch: batch,
            first_head: head,
            first_row,
            first_column,
            num_heads_total,
        });
    Settings { causal, softmax_scale, dropout_p, seed, offset, nominal, shard }
}

fn place((device, argument): PlaceArgs) -> Place {
    match u32::try_from(device) {
        Ok(ordinal) => Place::Cuda { ordinal, stream: argument },
        Err(_) => Place::Cpu { threads: argument as usize },
    }
}

fn dtype(name: &str) -> PyResult<Dtype> {
    match name {
        "float32" => Ok(Dtype::F32),
        "float16" => Ok(Dtype::F16),
        "bfloat16" => Ok(Dtype::Bf16),
        other => Err(PyTypeError::new_err(format!(
            "dtype must be float32, float16 or bfloat16, got {other}; convert q, k and v"
        ))),
    }
}

fn raise(error: CallError) -> PyErr {
    let error = match error {
        CallError::Engine(error) => error,
        CallError::Threads(_) => return PyRuntimeError::new_err(error.to_string()),
    };
    match error {
        EngineError::Problem(error) => PyValueError::new_err(error.to_string()),
        EngineError::TooManyBlocks(error) => PyValueError::new_err(error.to_string()),
        EngineError::Dtype(_) => PyTypeError::new_err(error.to_string()),
        other => PyRuntimeError::new_err(other.to_string()),
    }
}

/// out, lse and, if there is room for them, probs.
#[pyfunction]
#[pyo3(name = "forward")]
#[allow(clippy::too_many_arguments)] // a call from Python costs less with plain arguments than with an object
fn py_forward(
    py: Python<'_>,
    at: PlaceArgs,
    dtype_name: &str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: u64,
    probs: Option<Tensor>,
    seed_and_offset: u64,
    settings_args: SettingsArgs,
) -> PyResult<()> {
    let call = Forward {
        dtype: dtype(dtype_name)?,
        q: tensor(q),
        k: tensor(k),
        v: tensor(v),
        out: tensor(out),
        lse,
        probs: probs.map(tensor),
        seed_and_offset,
    };
    let (at, settings) = (place(at), settings(settings_args));
    // SAFETY: the package's Python half gives addresses, shapes and strides of live tensors of this dtype and place,
    // and has just allocated those that are written.
    detached(py, || unsafe { call::forward(at, &call, &settings) }).map_err(raise)
}

/// dq, dk and dv, of q, k, v, out and dout; dlse is 0 if lse has no gradient.
#[pyfunction]
#[pyo3(name = "backward")]
#[allow(clippy::too_many_arguments)] // as above
fn py_backward(
    py: Python<'_>,
    at: PlaceArgs,
    dtype_name: &str,
    read: (Tensor, Tensor, Tensor, Tensor, Tensor),
    lse: u64,
    dlse: u64,
    written: (Tensor, Tensor, Tensor),
    workspace: u64,
    deterministic: bool,
    seed_and_offset: u64,
    settings_args: SettingsArgs,
) -> PyResult<()> {
    let ([q, k, v, out, dout], [dq, dk, dv]) =
        (<[Tensor; 5]>::from(read).map(tensor), <[Tensor; 3]>::from(written).map(tensor));
    let dtype = dtype(dtype_name)?;
    let call = Backward {
        dtype,
        q,
        k,
        v,
        out,
        lse,
        dout,
        dlse,
        dq,
        dk,
        dv,
        seed_and_offset,
        workspace,
        deterministic,
    };
    let (at, settings) = (place(at), settings(settings_args));
    // SAFETY: as in `py_forward`; the workspace has the length that `workspace_bytes` told.
    detached(py, || unsafe { call::backward(at, &call, &settings) }).map_err(raise)
}

/// Bytes of scratch memory that a backward needs on a GPU.
#[pyfunction]
fn workspace_bytes(
    py: Python<'_>,
    ordinal: u32,
    q_shape: Four,
    k_shape: Four,
    deterministic: bool,
    settings_args: SettingsArgs,
) -> PyResult<u64> {
    let (batch, seqlen_q, num_heads, head_dim) = q_shape;
    let (_, seqlen_k, num_heads_k, _) = k_shape;
    let shape = Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim);
    let problem = settings(settings_args).of_shape(shape).map_err(|error| raise(error.into()))?;
    let at = Place::Cuda { ordinal, stream: 0 };
    detached(py, || call::workspace_bytes(at, &problem, deterministic)).map_err(raise)
}

/// Which entries are kept, of (batch, num_heads, seqlen_q, seqlen_k), a byte an entry.
#[pyfunction]
fn dropout_mask(py: Python<'_>, to: u64, shape: Four, settings_args: SettingsArgs) -> PyResult<()> {
    let settings = settings(settings_args);
    // SAFETY: the package's Python half has just allocated one byte an entry at this address.
    detached(py, || unsafe { kept::write(to, shape.into(), &settings) }).map_err(raise)
}

/// The factor of kept probabilities.
#[pyfunction]
fn keep_scale(dropout_p: f64, nominal: bool) -> PyResult<f64> {
    let settings = (false, None, dropout_p, 0, 0, nominal, None);
    let shape = Shape::new(1, 1, 1).heads(1, 1).head_dim(1);
    let problem = self::settings(settings).of_shape(shape).map_err(|error| raise(error.into()))?;
    Ok(problem.keep_scale())
}

/// What would run: the instruction set of the CPU, its threads, the names of the GPUs, and why there are none.
#[pyfunction]
fn info(py: Python<'_>) -> PyResult<(String, usize, Vec<String>, Option<String>)> {
    let engine = signflash_cpu::CpuEngine::new();
    let threads = detached(py, || pool::run(|| engine.threads())).map_err(raise)?;
    let name = |ordinal| Device::open(ordinal).map(|gpu| gpu.info().name.clone());
    let gpus = Device::count().and_then(|count| (0..count).map(name).collect::<Result<Vec<_>, _>>());
    let (names, why) = match gpus {
        Ok(names) => (names, None),
        Err(error) => (vec![], Some(error.to_string())),
    };
    Ok((engine.isa().to_string(), threads, names, why))
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    logger::install();
    ending::install(module)?;
    pool::forks::behind(); // from now on they are counted
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(py_forward, module)?)?;
    module.add_function(wrap_pyfunction!(py_backward, module)?)?;
    module.add_function(wrap_pyfunction!(workspace_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(dropout_mask, module)?)?;
    module.add_function(wrap_pyfunction!(keep_scale, module)?)?;
    module.add_function(wrap_pyfunction!(info, module)?)?;
    Ok(())
}
