//! Sizes and strides of up to four dimensions.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// The most dimensions of a tensor: (batch, seqlen, num_heads, head_dim). One of packed sequences has no batch, rows
/// have no head_dim.
const MOST: usize = 4;

/// The dimensions of a tensor. Those that it does not have are of size 1, and come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    /// How many it has.
    pub(crate) count: usize,
    pub(crate) shape: [usize; MOST],
    pub(crate) strides: [usize; MOST],
}

impl Dims {
    /// Of the sizes and strides of so many; nothing if these are too many, or if one is nothing.
    pub(crate) fn of(count: usize, of: impl Fn(usize) -> Option<(usize, usize)>) -> Option<Self> {
        let missing = MOST.checked_sub(count)?;
        let mut dims = Self { count, shape: [1; MOST], strides: [1; MOST] };
        for dim in missing..MOST {
            (dims.shape[dim], dims.strides[dim]) = of(dim - missing)?;
        }
        for dim in (0..missing.min(MOST - 1)).rev() {
            // As PyTorch's unsqueeze has it: what lies behind the whole.
            dims.strides[dim] = dims.shape[dim + 1].saturating_mul(dims.strides[dim + 1]);
        }
        Some(dims)
    }

    /// Of two tuples of Python's.
    pub(crate) fn of_tuples(
        shape: &Bound<'_, PyTuple>,
        strides: &Bound<'_, PyTuple>,
    ) -> PyResult<Option<Self>> {
        if shape.len() != strides.len() {
            return Ok(None);
        }
        let read = |tuple: &Bound<'_, PyTuple>, dim| tuple.get_borrowed_item(dim)?.extract::<usize>();
        let mut numbers = [(0, 0); MOST];
        for (dim, numbers) in numbers.iter_mut().enumerate().take(shape.len()) {
            *numbers = (read(shape, dim)?, read(strides, dim)?);
        }
        Ok(Self::of(shape.len(), |dim| Some(numbers[dim])))
    }
}

/// A shape alone, with the sizes that are not there before it as 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes(pub(crate) [usize; MOST]);

impl<'a, 'py> FromPyObject<'a, 'py> for Sizes {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let tuple = value.cast::<PyTuple>()?;
        let missing = MOST.checked_sub(tuple.len()).ok_or_else(|| {
            PyValueError::new_err(format!("a shape must have at most {MOST} sizes, got {}", tuple.len()))
        })?;
        let mut sizes = [1; MOST];
        for (dim, size) in sizes[missing..].iter_mut().enumerate() {
            *size = tuple.get_borrowed_item(dim)?.extract()?;
        }
        Ok(Self(sizes))
    }
}
