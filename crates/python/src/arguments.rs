//! What the package's Python half passes: numbers and tuples of them, as types of this crate.

use crate::call::Place;
use crate::settings::RandomState;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use signflash_core::{Dtype, Shard};

/// The fields of a tuple, in order.
pub(crate) struct Fields<'a, 'py> {
    tuple: Borrowed<'a, 'py, PyTuple>,
    next: usize,
}

impl<'a, 'py> Fields<'a, 'py> {
    pub(crate) fn of(tuple: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self { tuple: tuple.cast()?, next: 0 })
    }

    pub(crate) fn take<T: Field>(&mut self) -> PyResult<T> {
        let field = self.tuple.get_borrowed_item(self.next)?;
        self.next += 1;
        T::read(field)
    }
}

/// What a field of Python's settings can be.
pub(crate) trait Field: Sized {
    fn read(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self>;
}

impl Field for f64 {
    fn read(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        value.extract()
    }
}

impl Field for bool {
    fn read(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        value.extract()
    }
}

impl Field for i64 {
    fn read(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        value.extract()
    }
}

impl Field for Option<i64> {
    fn read(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        value.extract()
    }
}

impl Field for Option<f64> {
    fn read(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        value.extract()
    }
}

/// `None` is the whole.
impl Field for Shard {
    fn read(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if value.is_none() {
            return Ok(Self::default());
        }
        let (first_batch, first_head, first_row, first_column, num_heads_total) = value.extract()?;
        Ok(Self { first_batch, first_head, first_row, first_column, num_heads_total })
    }
}

/// (seed, offset, address of both or 0).
impl<'a, 'py> FromPyObject<'a, 'py> for RandomState {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let (seed, offset, address) = tuple.extract()?;
        Ok(Self { seed, offset, address })
    }
}

/// (GPU or -1 for the CPU, stream or number of threads).
impl<'a, 'py> FromPyObject<'a, 'py> for Place {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let (device, argument): (i64, u64) = tuple.extract()?;
        Ok(match u32::try_from(device) {
            Ok(ordinal) => Self::Cuda { ordinal, stream: argument },
            Err(_) => Self::Cpu { threads: argument as usize },
        })
    }
}

/// An element type by its name.
pub(crate) fn dtype(name: &str) -> PyResult<Dtype> {
    match name {
        "float32" => Ok(Dtype::F32),
        "float16" => Ok(Dtype::F16),
        "bfloat16" => Ok(Dtype::Bf16),
        other => Err(PyTypeError::new_err(format!(
            "dtype must be float32, float16 or bfloat16, got {other}; convert q, k and v"
        ))),
    }
}

/// The dtypes of operands and of results: one name for both, or a pair of names; and then, whether results are added to what is
/// there: out, or dq, and dk with dv.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dtypes {
    pub(crate) operands: Dtype,
    pub(crate) results: Dtype,
    pub(crate) adds: [bool; 2],
}

impl<'a, 'py> FromPyObject<'a, 'py> for Dtypes {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if value.cast::<PyTuple>().is_err() {
            let both = dtype(&value.extract::<String>()?)?;
            return Ok(Self { operands: both, results: both, adds: [false; 2] });
        }
        let (operands, results, adds): (String, String, (bool, bool)) = value.extract()?;
        Ok(Self { operands: dtype(&operands)?, results: dtype(&results)?, adds: adds.into() })
    }
}
