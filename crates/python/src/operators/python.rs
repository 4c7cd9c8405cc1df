//! What only the package's Python half knows: generators, who listens, and what is said of a call.

use super::generator::Usual;
use super::given::{Given, Left};
use super::stable::{Failure, Outcome};
use crate::ending::attached;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyTuple};

/// Functions of `signflash._sdpa.native`.
pub(crate) struct Hooks {
    /// (number of the GPU or -1, batch, num_heads, dropout_p) to (seed, offset); or None while a CUDA graph is captured.
    pub(crate) draw: Py<PyAny>,
    /// Told of a call and why it is left alone, or None.
    pub(crate) hear: Py<PyAny>,
    /// Raises where dropout must not be, which only code of some modules makes.
    pub(crate) refuse: Py<PyAny>,
    /// Those who want to know of every call.
    pub(crate) listeners: Py<PyList>,
    pub(crate) deterministic: Py<PyAny>,
    pub(crate) usual: Usual,
}

pub(crate) static HOOKS: PyOnceLock<Hooks> = PyOnceLock::new();

const ENDS: &str = "the interpreter ends while attention is computed";

/// Asks the Python half.
fn asked<T>(ask: impl FnOnce(Python<'_>, &Hooks) -> PyResult<T>) -> Outcome<T> {
    let answer = attached(|py| {
        let hooks = HOOKS.get(py).ok_or_else(|| Failure("kernels were not prepared".to_owned()))?;
        ask(py, hooks).map_err(|error| {
            // The words alone: PyTorch makes a RuntimeError of them.
            Failure(error.value(py).str().map_or_else(|_| error.to_string(), |text| text.to_string()))
        })
    });
    answer.unwrap_or_else(|| Err(Failure(ENDS.to_owned())))
}

/// Before a forward of ours: (seed, offset), or nothing while a CUDA graph is captured.
pub(crate) fn draw(given: &Given) -> Outcome<Option<(u64, u64)>> {
    asked(|py, hooks| {
        tell_listeners(py, hooks, given, None)?;
        if given.dropout_p == 0.0 {
            return Ok(Some((0, 0)));
        }
        let [batch, num_heads, ..] = given.q.shape();
        if let Some(ordinal) = given.q.gpu {
            let usual = hooks.usual.draw(py, ordinal, batch as u64 * num_heads as u64)?;
            if usual.is_some() {
                return Ok(usual);
            }
        }
        let index = given.q.gpu.map_or(-1, i64::from);
        hooks.draw.bind(py).call1((index, batch, num_heads, given.dropout_p))?.extract()
    })
}

/// Before a forward that stays with PyTorch.
pub(crate) fn leave(given: &Given, why: Left) -> Outcome<()> {
    asked(|py, hooks| {
        if given.dropout_p > 0.0 && !hooks.usual.may_drop(py)? {
            hooks.refuse.bind(py).call0()?;
        }
        if why.is_silent() {
            tell_listeners(py, hooks, given, Some(why))
        } else {
            hear(py, hooks, given, Some(why))
        }
    })
}

fn tell_listeners(py: Python<'_>, hooks: &Hooks, given: &Given, why: Option<Left>) -> PyResult<()> {
    if hooks.listeners.bind(py).is_empty() { Ok(()) } else { hear(py, hooks, given, why) }
}

fn hear(py: Python<'_>, hooks: &Hooks, given: &Given, why: Option<Left>) -> PyResult<()> {
    let shape =
        |operand: &super::operand::Operand| PyTuple::new(py, &operand.shape()[4 - operand.dims.count..]);
    let bias = given.bias.as_ref().map(shape).transpose()?;
    let shapes = (shape(&given.q)?, shape(&given.k)?, shape(&given.v)?, bias);
    let dtype = given.dtype().map(|dtype| dtype.to_string());
    let call = (dtype, given.q.gpu.is_some(), given.dropout_p, given.is_causal, given.scale);
    hooks.hear.bind(py).call1((why.map(Left::name), shapes, call))?;
    Ok(())
}

/// Whether everybody is to compute the same in every run.
pub(crate) fn is_deterministic() -> Outcome<bool> {
    asked(|py, hooks| hooks.deterministic.bind(py).call0()?.is_truthy())
}
