//! The functions that Python sees. They take numbers, and tensors only to ask them where they lie: the package's Python
//! half keeps them alive and allocates results.

use crate::arguments::{Dtypes, dtype};
use crate::call::{self, Backward, Forward, Place};
use crate::dims::Sizes;
use crate::ending::detached;
use crate::error::CallError;
use crate::joined::{Declared, ForeignBias, Joined};
use crate::lengths::Lengths;
use crate::lent::{Layout, Lent, LentScores, LentStarts, Written};
use crate::settings::{RandomState, Settings, shape_of};
use crate::{cpu, ending, exchange, kept, logger, operators, pool, quick};
use pyo3::exceptions::{PyNotImplementedError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use signflash_core::{Problem, ProblemError, Shape, Slopes};
use signflash_cuda::{Device, EngineError};

fn raise(error: CallError) -> PyErr {
    let error = match error {
        CallError::Engine(error) => error,
        CallError::Threads(_) => return PyRuntimeError::new_err(error.to_string()),
        CallError::Isa(_) => return PyValueError::new_err(error.to_string()),
        CallError::NegativeStart { .. } | CallError::Adds => return PyValueError::new_err(error.to_string()),
    };
    if let EngineError::Problem(error @ ProblemError::NotComputed { .. })
    | EngineError::Call(signflash_kernels::CallError::NotComputed(error)) = &error
    {
        return PyNotImplementedError::new_err(error.to_string());
    }
    match error {
        EngineError::Problem(error) => PyValueError::new_err(error.to_string()),
        EngineError::Call(error) => PyValueError::new_err(error.to_string()),
        EngineError::Dtype(_) => PyTypeError::new_err(error.to_string()),
        other => PyRuntimeError::new_err(other.to_string()),
    }
}

/// (the dimensions of alibi_slopes, (dtype and shape of bias), shape of mask, whether there are sinks).
type DeclaredScores = (Option<usize>, Option<(String, Sizes)>, Option<Sizes>, bool);

fn declared(scores: Option<DeclaredScores>) -> PyResult<Declared> {
    let Some((slopes, bias, mask, sinks)) = scores else { return Ok(Declared::default()) };
    let bias = bias.map(|(name, shape)| Ok::<_, PyErr>((dtype(&name)?, shape.0))).transpose()?;
    let slopes_of = |dims| if dims == 1 { Slopes::PerHead } else { Slopes::PerSequence };
    Ok(Declared { alibi: slopes.map(slopes_of), bias, mask: mask.map(|shape| shape.0), sinks })
}

/// What can be read where it lies; nothing if there is something that cannot.
fn joined(scores: Option<LentScores>, at: Place) -> Option<Joined> {
    scores.map_or(Some(Joined::default()), |scores| scores.readable(at))
}

/// out, lse and, if there is room for them, probs, of (q, k, v). False if a tensor cannot be read where it lies: then nothing was
/// computed.
#[pyfunction]
#[pyo3(name = "forward")]
#[allow(clippy::too_many_arguments)] // a call from Python costs less with plain arguments than with an object
fn py_forward(
    py: Python<'_>,
    at: Place,
    dtypes: Dtypes,
    read: (Lent, Lent, Lent),
    cu_seqlens: Option<LentStarts>,
    scores: Option<LentScores>,
    out: Written,
    lse: u64,
    probs: Option<Written>,
    workspace: u64,
    state: RandomState,
    settings: Settings,
) -> PyResult<bool> {
    let Dtypes { operands: dtype, results, adds: [adds, _] } = dtypes;
    let layout = Layout { dtype, at, is_packed: cu_seqlens.is_some() };
    let [Some(q), Some(k), Some(v)] = <[Lent; 3]>::from(read).map(|tensor| tensor.readable(layout)) else {
        return Ok(false);
    };
    let Some(joined) = joined(scores, at) else { return Ok(false) };
    let cu_seqlens = cu_seqlens.map(|starts| starts.readable(at));
    if cu_seqlens == Some(None) {
        return Ok(false);
    }
    let out = out.beside(&q);
    let probs = probs.map(Written::alone).transpose()?;
    let cu_seqlens = cu_seqlens.flatten();
    let call =
        Forward { dtype, results, adds, q, k, v, cu_seqlens, joined, out, lse, probs, state, workspace };
    // SAFETY: the package's Python half gives live tensors, and has just allocated those that are written. That those
    // that are read lie in their storage `readable` has judged, and their dtype and place where they tell; where they
    // do not, Python has.
    detached(py, || unsafe { call::forward(at, &call, &settings) }).map_err(raise)?;
    Ok(true)
}

/// dq, dk, dv and, if there is room for them, dbias and dsinks, of (q, k, v, out, dout) and of (lse, its gradient or
/// `None`). False as in `forward`.
#[pyfunction]
#[pyo3(name = "backward")]
#[allow(clippy::too_many_arguments)] // as above
fn py_backward(
    py: Python<'_>,
    at: Place,
    dtypes: Dtypes,
    read: (Lent, Lent, Lent, Lent, Lent),
    rows: (Lent, Option<Lent>),
    cu_seqlens: Option<LentStarts>,
    scores: Option<LentScores>,
    written: (Written, Written, Written, Option<Written>, Option<u64>),
    workspace: u64,
    deterministic: bool,
    state: RandomState,
    settings: Settings,
) -> PyResult<bool> {
    let Dtypes { operands: dtype, results, adds } = dtypes;
    let layout = Layout { dtype, at, is_packed: cu_seqlens.is_some() };
    let [Some(q), Some(k), Some(v), Some(out), Some(dout)] =
        <[Lent; 5]>::from(read).map(|tensor| tensor.readable(layout))
    else {
        return Ok(false);
    };
    let (Some(lse), Some(dlse)) =
        (rows.0.rows(&q, layout), rows.1.map_or(Some(0), |dlse| dlse.rows(&q, layout)))
    else {
        return Ok(false);
    };
    let cu_seqlens = cu_seqlens.map(|starts| starts.readable(at));
    if cu_seqlens == Some(None) {
        return Ok(false);
    }
    let Some(joined) = joined(scores, at) else { return Ok(false) };
    let cu_seqlens = cu_seqlens.flatten();
    let (dq, dk, dv) = (written.0.beside(&q), written.1.beside(&k), written.2.beside(&v));
    let dbias = match (written.3.map(Written::alone).transpose()?, joined.bias) {
        (Some(tensor), Some(bias)) => Some(ForeignBias { tensor, ..bias }),
        (None, _) => None,
        (Some(_), None) => return Err(PyValueError::new_err("dbias was asked for without a bias")),
    };
    let dsinks = written.4.unwrap_or(0);
    let call = Backward {
        dtype,
        results,
        adds,
        q,
        k,
        v,
        cu_seqlens,
        joined,
        out,
        lse,
        dout,
        dlse,
        dq,
        dk,
        dv,
        dbias,
        dsinks,
        state,
        workspace,
        deterministic,
    };
    // SAFETY: as in `py_forward`; the workspace has the length that `workspace_bytes` told.
    detached(py, || unsafe { call::backward(at, &call, &settings) }).map_err(raise)?;
    Ok(true)
}

/// Bytes of scratch memory that a forward needs on a GPU: of packed sequences, or with a mask.
#[pyfunction]
fn forward_workspace_bytes(
    py: Python<'_>,
    ordinal: u32,
    shapes: (Sizes, Sizes, Sizes),
    sequences: Option<usize>,
    scores: Option<DeclaredScores>,
    settings: Settings,
) -> PyResult<u64> {
    let problem = on_device(&settings, shapes, sequences, &declared(scores)?)?;
    let at = Place::Cuda { ordinal, stream: 0 };
    detached(py, || call::forward_workspace_bytes(at, &problem)).map_err(raise)
}

/// The problem of these shapes on a GPU, of so many packed sequences if they are.
fn on_device(
    settings: &Settings,
    shapes: (Sizes, Sizes, Sizes),
    sequences: Option<usize>,
    declared: &Declared,
) -> PyResult<Problem> {
    let lengths = sequences.map_or(Lengths::Batch, Lengths::OnDevice);
    let problem = settings.of_shape(&RandomState::default(), sizes(shapes), &lengths, declared);
    problem.map_err(|error| raise(error.into()))
}

/// The sizes of (q, k, v).
fn sizes(shapes: (Sizes, Sizes, Sizes)) -> Shape {
    shape_of(<[Sizes; 3]>::from(shapes).map(|sizes| sizes.0))
}

/// Bytes of scratch memory that a backward needs on a GPU.
#[pyfunction]
fn workspace_bytes(
    py: Python<'_>,
    ordinal: u32,
    shapes: (Sizes, Sizes, Sizes),
    sequences: Option<usize>,
    scores: Option<DeclaredScores>,
    deterministic: bool,
    settings: Settings,
) -> PyResult<u64> {
    let problem = on_device(&settings, shapes, sequences, &declared(scores)?)?;
    let at = Place::Cuda { ordinal, stream: 0 };
    detached(py, || call::workspace_bytes(at, &problem, deterministic)).map_err(raise)
}

/// The shape of a forward's probs where sequences are packed, (sequences, num_heads, the most queries, the most keys);
/// nothing if `cu_seqlens` cannot be read where they lie.
#[pyfunction]
fn packed_probs(
    py: Python<'_>,
    at: Place,
    shapes: (Sizes, Sizes, Sizes),
    cu_seqlens: LentStarts,
    settings: Settings,
) -> PyResult<Option<[usize; 4]>> {
    let Some(cu_seqlens) = cu_seqlens.readable(at) else { return Ok(None) };
    let shape = sizes(shapes);
    // SAFETY: as in `py_forward`.
    let found = detached(py, || unsafe { call::packed_probs(at, shape, &cu_seqlens, &settings) });
    found.map(Some).map_err(raise)
}

/// Which entries are kept, of (batch, num_heads, seqlen_q, seqlen_k), a byte an entry.
#[pyfunction]
fn dropout_mask(
    py: Python<'_>,
    to: u64,
    shape: Sizes,
    state: RandomState,
    settings: Settings,
) -> PyResult<()> {
    // SAFETY: the package's Python half has just allocated one byte an entry at this address.
    detached(py, || unsafe { kept::write(to, shape.0, &state, &settings) }).map_err(raise)
}

/// The factor of kept probabilities.
#[pyfunction]
fn keep_scale(dropout_p: f64, nominal: bool) -> PyResult<f64> {
    let settings = Settings { dropout_p, nominal, ..Settings::default() };
    let shape = Shape::new(1, 1, 1).heads(1, 1).head_dim(1);
    let problem = settings
        .of_shape(&RandomState::default(), shape, &Lengths::Batch, &Declared::default())
        .map_err(|error| raise(error.into()))?;
    Ok(problem.keep_scale())
}

/// (the CPU's instruction set, why it, how many threads, the names of the GPUs, why there are none).
type Info = (String, String, usize, Vec<String>, Option<String>);

/// What would run.
#[pyfunction]
fn info(py: Python<'_>) -> PyResult<Info> {
    let isa = cpu::engine().map_err(raise)?.isa();
    let threads = detached(py, pool::most_threads);
    let name = |ordinal| Device::open(ordinal).map(|gpu| gpu.info().name.clone());
    let gpus = Device::count().and_then(|count| (0..count).map(name).collect::<Result<Vec<_>, _>>());
    let (names, why) = match gpus {
        Ok(names) => (names, None),
        Err(error) => (vec![], Some(error.to_string())),
    };
    Ok((isa.to_string(), cpu::why(isa), threads, names, why))
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    logger::install();
    ending::install(module)?;
    pool::forks::behind(); // from now on they are counted
    let _ = cpu::engine(); // what it says is said where something is computed
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("SETTINGS", PyTuple::new(module.py(), Settings::NAMES)?)?;
    module.add_function(wrap_pyfunction!(exchange::exchange, module)?)?;
    module.add_function(wrap_pyfunction!(py_forward, module)?)?;
    module.add_function(wrap_pyfunction!(py_backward, module)?)?;
    module.add_function(wrap_pyfunction!(quick::have_short_way, module)?)?;
    module.add_function(wrap_pyfunction!(quick::attend, module)?)?;
    module.add_function(wrap_pyfunction!(quick::record, module)?)?;
    module.add_function(wrap_pyfunction!(quick::gradients, module)?)?;
    module.add_function(wrap_pyfunction!(operators::have_operators, module)?)?;
    module.add_function(wrap_pyfunction!(operators::register_operators, module)?)?;
    module.add_function(wrap_pyfunction!(forward_workspace_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(workspace_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(packed_probs, module)?)?;
    module.add_function(wrap_pyfunction!(dropout_mask, module)?)?;
    module.add_function(wrap_pyfunction!(keep_scale, module)?)?;
    module.add_function(wrap_pyfunction!(info, module)?)?;
    Ok(())
}
