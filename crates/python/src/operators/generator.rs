//! PyTorch's generators, where nothing unusual is at work: the same as `signflash._torch.random.draw_on`, in a third of the time.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// What has to be so, and where generators are; else Python decides.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Told {
    /// Functions, and the very object that each then answers.
    answers: Vec<(Py<PyAny>, Py<PyAny>)>,
    /// `sys.modules`, and those that must not be there.
    modules: Py<PyDict>,
    absent: Vec<Py<PyString>>,
    /// The module that has `default_generators`, by the number of the GPU, which live as long as the process.
    cuda: Py<PyAny>,
    /// By how much a head of a sequence advances the generator.
    lanes: u64,
}

/// Functions of a generator.
struct Generator {
    seed: Py<PyAny>,
    offset: Py<PyAny>,
    set_offset: Py<PyAny>,
}

impl Generator {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        let Self { seed, offset, set_offset } = self;
        Self { seed: seed.clone_ref(py), offset: offset.clone_ref(py), set_offset: set_offset.clone_ref(py) }
    }
}

pub(crate) struct Usual {
    told: Told,
    generators: Mutex<HashMap<u32, Generator>>,
}

impl<'a, 'py> FromPyObject<'a, 'py> for Usual {
    type Error = PyErr;

    fn extract(told: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self { told: told.extract()?, generators: Mutex::default() })
    }
}

impl Usual {
    /// (seed, offset) of a call with so many heads of sequences, by which the generator is advanced; nothing, and nothing is
    /// advanced, where Python has to decide.
    ///
    /// Nobody else reads the generator in between: who does it in Python is asked about first, and none of these functions
    /// lets go of the interpreter's lock.
    pub(crate) fn draw(&self, py: Python<'_>, ordinal: u32, heads: u64) -> PyResult<Option<(u64, u64)>> {
        if !self.is_so(py)? {
            return Ok(None);
        }
        let Generator { seed, offset, set_offset } = self.generator(py, ordinal)?;
        let offset: u64 = offset.bind(py).call0()?.extract()?;
        let seed = seed.bind(py).call0()?.extract()?;
        set_offset.bind(py).call1((offset.wrapping_add(heads.wrapping_mul(self.told.lanes)),))?;
        Ok(Some((seed, offset)))
    }

    fn is_so(&self, py: Python<'_>) -> PyResult<bool> {
        for (ask, expected) in &self.told.answers {
            if !ask.bind(py).call0()?.is(expected) {
                return Ok(false);
            }
        }
        self.may_drop(py)
    }

    /// Whether no module is there that must not be where something is dropped.
    pub(crate) fn may_drop(&self, py: Python<'_>) -> PyResult<bool> {
        let modules = self.told.modules.bind(py);
        for name in &self.told.absent {
            if modules.contains(name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn generator(&self, py: Python<'_>, ordinal: u32) -> PyResult<Generator> {
        // Nothing of Python's runs while this is locked: it could wait for a thread that waits for this.
        let locked = || self.generators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = locked().get(&ordinal) {
            return Ok(known.clone_ref(py));
        }
        let generator =
            self.told.cuda.bind(py).getattr(intern!(py, "default_generators"))?.get_item(ordinal)?;
        let function = |name| Ok::<_, PyErr>(generator.getattr(name)?.unbind());
        let (seed, offset) = (function("initial_seed")?, function("get_offset")?);
        let found = Generator { seed, offset, set_offset: function("set_offset")? };
        let replaced = locked().insert(ordinal, found.clone_ref(py));
        drop(replaced);
        Ok(found)
    }
}
