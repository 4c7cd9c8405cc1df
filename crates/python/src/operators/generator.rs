//! PyTorch's generators, where nothing unusual is at work: the same as `signflash._torch.random.draw_on`, in a third of the time.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// What has to be so, and how a generator is found and held; else Python decides.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Usual {
    /// Functions, and the very object that each then answers.
    answers: Vec<(Py<PyAny>, Py<PyAny>)>,
    /// `sys.modules`, and those that must not be there.
    modules: Py<PyDict>,
    absent: Vec<Py<PyString>>,
    /// Between reading a generator and advancing it no other thread may read it.
    lock: Py<PyAny>,
    /// The module that has `default_generators`, by the number of the GPU.
    cuda: Py<PyAny>,
    /// By how much a head of a sequence advances the generator.
    lanes: u64,
}

impl Usual {
    /// (seed, offset) of a call with so many heads of sequences, by which the generator is advanced; nothing, and nothing is
    /// advanced, where Python has to decide.
    pub(crate) fn draw(&self, py: Python<'_>, ordinal: u32, heads: u64) -> PyResult<Option<(u64, u64)>> {
        if !self.is_so(py)?
            || !self.lock.bind(py).call_method1(intern!(py, "acquire"), (false,))?.is_truthy()?
        {
            return Ok(None);
        }
        let drawn = self.advanced(py, ordinal, heads);
        self.lock.bind(py).call_method0(intern!(py, "release"))?;
        drawn.map(Some)
    }

    fn is_so(&self, py: Python<'_>) -> PyResult<bool> {
        for (ask, expected) in &self.answers {
            if !ask.bind(py).call0()?.is(expected) {
                return Ok(false);
            }
        }
        let modules = self.modules.bind(py);
        for name in &self.absent {
            if modules.contains(name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn advanced(&self, py: Python<'_>, ordinal: u32, heads: u64) -> PyResult<(u64, u64)> {
        let generators = self.cuda.bind(py).getattr(intern!(py, "default_generators"))?;
        let generator = generators.get_item(ordinal)?;
        let offset: u64 = generator.call_method0(intern!(py, "get_offset"))?.extract()?;
        let seed = generator.call_method0(intern!(py, "initial_seed"))?.extract()?;
        let next = offset.wrapping_add(heads.wrapping_mul(self.lanes));
        generator.call_method1(intern!(py, "set_offset"), (next,))?;
        Ok((seed, offset))
    }
}
