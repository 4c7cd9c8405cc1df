//! What the package's Python half passes: numbers and tuples of them, as types of this crate.

use crate::call::Place;
use crate::exchange::{self, Described, Kind};
use crate::foreign::ForeignTensor;
use crate::settings::RandomState;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use signflash_core::{Dtype, Shard, contiguous_strides};

/// Four numbers as a tuple, which PyO3 reads in half the time of a sequence.
pub(crate) type Four = (usize, usize, usize, usize);

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

/// A tensor that is read: (address, shape, strides, place of the first element in its storage, bytes of the storage);
/// or the tensor instead of the first three, if it describes itself.
///
/// Its owner may have done anything to it before it is read, so where it lies is judged here, in every call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent<const N: usize> {
    address: u64,
    /// Shape and strides; nothing if it has another number of dimensions.
    dims: Option<[[usize; N]; 2]>,
    first: usize,
    bytes: usize,
    /// What the elements are and where; nothing if the package's Python half has judged that.
    kind: Option<Kind>,
}

impl<'a, 'py, const N: usize> FromPyObject<'a, 'py> for Lent<N> {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let tuple = tuple.cast::<PyTuple>()?;
        if tuple.len() == 3 {
            let (first, bytes) =
                (tuple.get_borrowed_item(1)?.extract()?, tuple.get_borrowed_item(2)?.extract()?);
            let described = exchange::describe(tuple.get_borrowed_item(0)?);
            return Ok(described.map_or(Self::UNREADABLE, |Described { address, dims, kind }| Self {
                dims: dims.filter(|_| kind.is_some()),
                address,
                first,
                bytes,
                kind,
            }));
        }
        let (address, shape, strides, first, bytes): (_, Bound<'_, PyTuple>, Bound<'_, PyTuple>, _, _) =
            tuple.extract()?;
        let dims = match (shape.len(), strides.len()) {
            (shapes, sizes) if shapes == N && sizes == N => Some([numbers(&shape)?, numbers(&strides)?]),
            _ => None,
        };
        Ok(Self { address, dims, first, bytes, kind: None })
    }
}

fn numbers<const N: usize>(tuple: &Bound<'_, PyTuple>) -> PyResult<[usize; N]> {
    let mut numbers = [0; N];
    for (index, number) in numbers.iter_mut().enumerate() {
        *number = tuple.get_borrowed_item(index)?.extract()?;
    }
    Ok(numbers)
}

impl<const N: usize> Lent<N> {
    const UNREADABLE: Self = Self { address: 0, dims: None, first: 0, bytes: 0, kind: None };

    /// Shape and strides, if the elements are of this kind.
    fn dims(&self, kind: Kind) -> Option<[[usize; N]; 2]> {
        self.dims.filter(|_| self.kind.is_none_or(|of| of == kind))
    }

    /// Whether so many elements of so many bytes, from the first to the last, lie aligned in the tensor's own storage.
    fn has_room(&self, extent: Option<usize>, element_bytes: usize) -> bool {
        let room = self.bytes / element_bytes;
        let fits = extent.and_then(|extent| extent.checked_add(self.first)).is_some_and(|end| end <= room);
        fits && self.address != 0 && self.address.is_multiple_of(element_bytes as u64)
    }
}

/// How many elements lie between the first and one past the last of a tensor that has any.
fn extent(shape: &[usize], strides: &[usize]) -> Option<usize> {
    let mut sizes = shape.iter().zip(strides);
    sizes.try_fold(1usize, |extent, (size, stride)| extent.checked_add((size - 1).checked_mul(*stride)?))
}

impl Lent<4> {
    /// The tensor, if it can be read where it lies: four dimensions, neighbours of the last beside each other,
    /// aligned, and all of it in its storage. Without elements it lies anywhere.
    pub(crate) fn readable(&self, dtype: Dtype, at: Place) -> Option<ForeignTensor> {
        let [shape, strides] = self.dims(Kind::of(dtype, at))?;
        if shape.contains(&0) {
            return Some(ForeignTensor { address: 0, shape, strides: contiguous_strides(shape) });
        }
        let dense = strides[3] == 1 || shape[3] == 1;
        let readable = dense && self.has_room(extent(&shape, &strides), dtype.size_bytes());
        readable.then_some(ForeignTensor { address: self.address, shape, strides })
    }
}

impl Lent<3> {
    /// The address of one f32 a row of q, (batch, num_heads, seqlen_q) without gaps, if that is what this is.
    pub(crate) fn rows(&self, q: &ForeignTensor, at: Place) -> Option<u64> {
        let [shape, strides] = self.dims(Kind::of(Dtype::F32, at))?;
        let [batch, seqlen_q, num_heads, _] = q.shape;
        if shape != [batch, num_heads, seqlen_q] {
            return None;
        }
        if shape.contains(&0) {
            return Some(0);
        }
        let expected = [num_heads * seqlen_q, seqlen_q, 1];
        let dense = (0..3).all(|dim| shape[dim] == 1 || strides[dim] == expected[dim]);
        (dense && self.has_room(extent(&shape, &strides), 4)).then_some(self.address)
    }
}

/// A tensor that is written, and has just been allocated for it: (address, shape, strides), or an address alone of
/// one that lies as the tensor that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Written {
    Alike(u64),
    Strided(ForeignTensor),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Written {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if value.cast::<PyTuple>().is_err() {
            return Ok(Self::Alike(value.extract()?));
        }
        let (address, shape, strides): (u64, Four, Four) = value.extract()?;
        Ok(Self::Strided(ForeignTensor { address, shape: shape.into(), strides: strides.into() }))
    }
}

impl Written {
    /// The tensor, which belongs to `like`.
    pub(crate) fn beside(self, like: &ForeignTensor) -> ForeignTensor {
        match self {
            Self::Alike(address) => ForeignTensor { address, ..*like },
            Self::Strided(tensor) => tensor,
        }
    }

    /// The tensor, which belongs to none.
    pub(crate) fn alone(self) -> PyResult<ForeignTensor> {
        match self {
            Self::Alike(_) => {
                Err(PyValueError::new_err("probs must be (address, shape, strides), got an address"))
            }
            Self::Strided(tensor) => Ok(tensor),
        }
    }
}
