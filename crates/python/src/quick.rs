//! The short way of a plain call of PyTorch's tensors: everything between the package's Python function and the kernel at
//! one place, where PyTorch has the functions of [`libtorch`](crate::libtorch).
//!
//! What is not plain, or does not fit, is answered with `None`: then nothing was computed, and the package's Python half
//! goes the long way, which computes it or says what is wrong. So nothing is refused here.

use crate::call::{self, Backward, Forward, Place};
use crate::ending::detached;
use crate::foreign::ForeignTensor;
use crate::joined::{Declared, Joined};
use crate::lengths::Lengths;
use crate::lent::{Layout, Lent};
use crate::libtorch::{Functions, Room, Tensor};
use crate::settings::{RandomState, Settings, shape_of};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};
use pyo3::{ffi, intern};
use signflash_core::{Dtype, contiguous_strides};
use std::sync::{Mutex, PoisonError};

/// What PyTorch has for us, told once.
struct Torch {
    functions: Functions,
    /// `torch.Tensor` and `torch.nn.Parameter`: subclasses are others.
    plain: [Py<PyType>; 2],
    /// Functions that answer something false where nobody is to see an operator in place of memory.
    watchers: Vec<Py<PyAny>>,
    /// Answers (of `False`) None where what autograd saves stays what it is.
    hooks: Py<PyAny>,
    /// Whether everybody is to compute the same in every run.
    deterministic: Py<PyAny>,
    /// The current stream of a GPU, by its number; without it, tensors on GPUs are not taken.
    stream: Option<Py<PyAny>>,
    /// `apply` of the autograd function whose forward is [`record`].
    apply: Py<PyAny>,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

/// Whether there is a short way from now on: whether the library at `path`, which is loaded, has all that it takes.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // named, at the one place that calls it
#[pyo3(signature = (*, path, plain, watchers, hooks, deterministic, stream, apply))]
pub(crate) fn have_short_way(
    py: Python<'_>,
    path: &str,
    plain: [Py<PyType>; 2],
    watchers: Vec<Py<PyAny>>,
    hooks: Py<PyAny>,
    deterministic: Py<PyAny>,
    stream: Option<Py<PyAny>>,
    apply: Py<PyAny>,
) -> bool {
    let Some(functions) = Functions::find(path) else { return false };
    TORCH.get_or_init(py, || Torch { functions, plain, watchers, hooks, deterministic, stream, apply });
    true
}

impl Torch {
    /// Whether this is a plain tensor, and not of a class that may do otherwise.
    fn is_plain(&self, object: &Bound<'_, PyAny>) -> bool {
        // SAFETY: a live object.
        let class = unsafe { ffi::Py_TYPE(object.as_ptr()) };
        self.plain.iter().any(|plain| plain.as_ptr().cast() == class)
    }

    /// Whether nobody looks at operators: no mode, no tracer, no transform.
    fn is_unwatched(&self, py: Python<'_>) -> PyResult<bool> {
        for watcher in &self.watchers {
            if watcher.bind(py).call0()?.is_truthy()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// These tensors as they lie, if all are plain.
    fn lent<const N: usize>(&self, tensors: [&Bound<'_, PyAny>; N]) -> PyResult<Option<[Lent; N]>> {
        if !tensors.iter().all(|tensor| self.is_plain(tensor)) {
            return Ok(None);
        }
        let mut all = [Lent::UNREADABLE; N];
        for (lent, tensor) in all.iter_mut().zip(tensors) {
            *lent = Lent::of(tensor.as_borrowed(), &self.functions)?;
        }
        Ok(Some(all))
    }

    /// How tensors lie that are as this one.
    fn layout(&self, py: Python<'_>, q: &Lent) -> PyResult<Option<Layout>> {
        let Some((dtype, gpu)) = q.floats() else { return Ok(None) };
        let at = match gpu {
            None => self.functions.threads().map(|threads| Place::Cpu { threads }),
            Some(_) if dtype == Dtype::F32 => None,
            Some(ordinal) => match &self.stream {
                Some(stream) => {
                    let stream = stream.bind(py).call1((ordinal,))?.extract()?;
                    Some(Place::Cuda { ordinal, stream })
                }
                None => None,
            },
        };
        Ok(at.map(|at| Layout { dtype, at, is_packed: false }))
    }

    /// Room for a result: what a kernel has to know of it, and the tensor.
    fn room<'py>(&self, py: Python<'py>, shape: [usize; 4], layout: &Layout) -> Option<Written<'py>> {
        let tensor = self.functions.empty(py, &shape, Room::Of(layout.dtype), layout.at)?;
        let address = tensor.address()?;
        Some(Written { lies: ForeignTensor { address, shape, strides: contiguous_strides(shape) }, tensor })
    }

    /// (out, lse) of q, k and v.
    fn forward<'py>(
        &self,
        py: Python<'py>,
        tensors: [&Bound<'py, PyAny>; 3],
        settings: &Settings,
        state: RandomState,
    ) -> PyResult<Option<[Bound<'py, PyAny>; 2]>> {
        let Some(lent) = self.lent(tensors)? else { return Ok(None) };
        let Some(layout) = self.layout(py, &lent[0])? else { return Ok(None) };
        let [Some(q), Some(k), Some(v)] = lent.map(|tensor| tensor.readable(layout)) else { return Ok(None) };
        let [batch, seqlen_q, num_heads, _] = q.shape;
        let out = self.room(py, [batch, seqlen_q, num_heads, v.shape[3]], &layout);
        let rows = [batch, num_heads, seqlen_q];
        let lse = self.functions.empty(py, &rows, Room::Of(Dtype::F32), layout.at);
        let (Some(out), Some(lse)) = (out, lse) else { return Ok(None) };
        let Some(address) = lse.address() else { return Ok(None) };
        let call = Forward {
            dtype: layout.dtype,
            results: layout.dtype,
            adds: false,
            q,
            k,
            v,
            cu_seqlens: None,
            joined: Joined::default(),
            out: out.lies,
            lse: address,
            probs: None,
            state,
            workspace: 0,
        };
        // SAFETY: the caller keeps the tensors alive, `readable` has judged how they lie, of which dtype and where, and
        // what is written has just been allocated, as long as it says.
        if detached(py, || unsafe { call::forward(layout.at, &call, settings) }).is_err() {
            return Ok(None);
        }
        Ok(out.tensor.object(py).zip(lse.object(py)).map(<[_; 2]>::from))
    }
}

/// A result.
struct Written<'py> {
    lies: ForeignTensor,
    tensor: Tensor<'py>,
}

/// A forward that autograd knows: what its backward has to know beside tensors.
#[pyclass(frozen, module = "signflash._native")]
pub(crate) struct Recorded {
    settings: Settings,
    /// As Python knows them.
    #[pyo3(get, name = "settings")]
    told: Py<PyAny>,
    /// (seed, offset).
    #[pyo3(get)]
    state: (u64, u64),
    #[pyo3(get)]
    deterministic: bool,
    wants_lse: bool,
    /// Which of dq, dk and dv are asked for.
    #[pyo3(get)]
    wanted: [bool; 3],
    /// (out, lse), until they are recorded.
    results: Mutex<Option<[Py<PyAny>; 2]>>,
}

/// (out, lse) of q, k and v, which are recorded where that is asked for; lse has a gradient only if it `wants_lse`.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // a call from Python costs less with plain arguments than with an object
pub(crate) fn attend<'py>(
    py: Python<'py>,
    q: Bound<'py, PyAny>,
    k: Bound<'py, PyAny>,
    v: Bound<'py, PyAny>,
    told: Bound<'py, PyAny>,
    state: (u64, u64),
    deterministic: bool,
    wants_lse: bool,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(torch) = TORCH.get(py) else { return Ok(None) };
    let tensors = [&q, &k, &v];
    if !tensors.iter().all(|tensor| torch.is_plain(tensor)) || !torch.is_unwatched(py)? {
        return Ok(None);
    }
    let settings = told.extract()?;
    let wanted = if torch.functions.records() { asked_for(&tensors)? } else { [false; 3] };
    let records = wanted.contains(&true);
    if records && !torch.hooks.bind(py).call1((false,))?.is_none() {
        return Ok(None);
    }
    let (seed, offset) = state;
    let random = RandomState { seed, offset, address: 0 };
    let Some([out, lse]) = torch.forward(py, tensors, &settings, random)? else { return Ok(None) };
    if !records {
        return Ok(Some(PyTuple::new(py, [out, lse])?.into_any()));
    }
    let call = Recorded {
        settings,
        told: told.unbind(),
        state,
        deterministic: deterministic || torch.deterministic.bind(py).call0()?.is_truthy()?,
        wants_lse,
        wanted,
        results: Mutex::new(Some([out.unbind(), lse.unbind()])),
    };
    let results = torch.apply.bind(py).call1((Bound::new(py, call)?, q, k, v))?;
    Ok(Some(if wants_lse { results } else { (results, py.None()).into_pyobject(py)?.into_any() }))
}

/// Which of these ask for a gradient.
fn asked_for(tensors: &[&Bound<'_, PyAny>; 3]) -> PyResult<[bool; 3]> {
    let mut asked = [false; 3];
    for (asked, tensor) in asked.iter_mut().zip(tensors) {
        *asked = tensor.getattr(intern!(tensor.py(), "requires_grad"))?.is_truthy()?;
    }
    Ok(asked)
}

/// The forward of the autograd function: of what was computed already it is told, so that errors come before.
#[pyfunction]
pub(crate) fn record<'py>(
    ctx: Bound<'py, PyAny>,
    call: Bound<'py, Recorded>,
    q: Bound<'py, PyAny>,
    k: Bound<'py, PyAny>,
    v: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = ctx.py();
    let results = call.get().results.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some([out, lse]) = results else { return Err(PyRuntimeError::new_err("it was recorded before")) };
    let (out, lse) = (out.into_bound(py), lse.into_bound(py));
    // What save_for_backward and set_materialize_grads do. The tensors as they were given, not copies: a second
    // derivative must find its way to them.
    ctx.setattr(intern!(py, "to_save"), PyTuple::new(py, [&q, &k, &v, &out, &lse])?)?;
    ctx.setattr(intern!(py, "materialize_grads"), false)?;
    ctx.setattr(intern!(py, "call"), &call)?;
    if call.get().wants_lse { Ok((out, lse).into_pyobject(py)?.into_any()) } else { Ok(out) }
}

/// The gradients of [`record`]'s four arguments, from those of what it returned: (dout) or (dout, dlse).
#[pyfunction]
pub(crate) fn gradients<'py>(
    ctx: Bound<'py, PyAny>,
    given: Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let py = ctx.py();
    let Some(torch) = TORCH.get(py) else { return Ok(None) };
    // Where a second derivative can be asked for, gradients are results of another function.
    if torch.functions.records() || !torch.is_unwatched(py)? {
        return Ok(None);
    }
    let call = ctx.getattr(intern!(py, "call"))?.cast_into::<Recorded>()?;
    let saved = ctx.getattr(intern!(py, "saved_tensors"))?.cast_into::<PyTuple>()?;
    let [q, k, v, out, lse] = saved.extract::<[Bound<'py, PyAny>; 5]>()?;
    let dout = given.get_item(0)?;
    let dlse = if given.len() > 1 { Some(given.get_item(1)?).filter(|dlse| !dlse.is_none()) } else { None };
    // Without a gradient of lse, lse stands for it: what is looked at need not be another number of tensors.
    let rows = dlse.as_ref().unwrap_or(&lse);
    let Some([q, k, v, out, dout, lse, rows]) = torch.lent([&q, &k, &v, &out, &dout, &lse, rows])? else {
        return Ok(None);
    };
    let Some(layout) = torch.layout(py, &q)? else { return Ok(None) };
    let [Some(q), Some(k), Some(v), Some(out), Some(dout)] =
        [q, k, v, out, dout].map(|tensor| tensor.readable(layout))
    else {
        return Ok(None);
    };
    let (Some(lse), Some(rows)) = (lse.rows(&q, layout), rows.rows(&q, layout)) else { return Ok(None) };
    let [Some(dq), Some(dk), Some(dv)] = [q, k, v].map(|like| torch.room(py, like.shape, &layout)) else {
        return Ok(None);
    };
    let Recorded { settings, state: (seed, offset), deterministic, wanted, .. } = call.get();
    let Some((_alive, workspace)) = torch.workspace(py, layout.at, [&q, &k, &v], settings, *deterministic)
    else {
        return Ok(None);
    };
    let backward = Backward {
        dtype: layout.dtype,
        results: layout.dtype,
        adds: [false; 2],
        q,
        k,
        v,
        cu_seqlens: None,
        joined: Joined::default(),
        out,
        lse,
        dout,
        dlse: if dlse.is_some() { rows } else { 0 },
        dq: dq.lies,
        dk: dk.lies,
        dv: dv.lies,
        dbias: None,
        dsinks: 0,
        state: RandomState { seed: *seed, offset: *offset, address: 0 },
        workspace,
        deterministic: *deterministic,
    };
    // SAFETY: as in `forward`; the workspace is as long as was asked for.
    if detached(py, || unsafe { call::backward(layout.at, &backward, settings) }).is_err() {
        return Ok(None);
    }
    let mut found = [const { None }; 4];
    for ((found, written), wanted) in found[1..].iter_mut().zip([dq, dk, dv]).zip(wanted) {
        if *wanted {
            let Some(object) = written.tensor.object(py) else { return Ok(None) };
            *found = Some(object);
        }
    }
    PyTuple::new(py, found).map(Some)
}

impl Torch {
    /// (what has to live as long, its address) of the workspace of a backward; of nothing on the CPU.
    fn workspace<'py>(
        &self,
        py: Python<'py>,
        at: Place,
        [q, k, v]: [&ForeignTensor; 3],
        settings: &Settings,
        deterministic: bool,
    ) -> Option<(Option<Tensor<'py>>, u64)> {
        if matches!(at, Place::Cpu { .. }) {
            return Some((None, 0));
        }
        let shape = shape_of([q.shape, k.shape, v.shape]);
        let problem =
            settings.of_shape(&RandomState::default(), shape, &Lengths::Batch, &Declared::default());
        let problem = problem.ok()?;
        let bytes = detached(py, || call::workspace_bytes(at, &problem, deterministic)).ok()?;
        let workspace = self.functions.empty(py, &[bytes as usize], Room::Bytes, at)?;
        let address = workspace.address()?;
        Some((Some(workspace), address))
    }
}
