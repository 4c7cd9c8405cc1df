//! Tensors that Python lends: where they lie, judged in every call.

use crate::arguments::dtype;
use crate::call::Place;
use crate::dims::Dims;
use crate::exchange::{self, Described, Elements, Kind};
use crate::foreign::ForeignTensor;
use crate::joined::{ForeignBias, Joined};
use crate::lengths::{CuSeqlens, Starts};
use crate::libtorch::Functions;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use signflash_core::{Dtype, contiguous_strides};

/// How the tensors of a call lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) dtype: Dtype,
    pub(crate) at: Place,
    /// Whether sequences lie one behind the other, in tensors without a batch.
    pub(crate) is_packed: bool,
}

impl Layout {
    /// How many dimensions one has that has so many in a batch.
    const fn dims(self, in_batch: usize) -> usize {
        in_batch - self.is_packed as usize
    }
}

/// A tensor that is read: (address, shape, strides, place of the first element in its storage, bytes of the storage);
/// or the tensor instead of the first three, if it describes itself.
///
/// Its owner may have done anything to it before it is read, so where it lies is judged here, in every call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent {
    address: u64,
    /// Nothing if it has none that are taken here.
    dims: Option<Dims>,
    first: usize,
    bytes: usize,
    /// What the elements are and where; nothing if the package's Python half has judged that.
    kind: Option<Kind>,
}

impl<'a, 'py> FromPyObject<'a, 'py> for Lent {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let tuple = tuple.cast::<PyTuple>()?;
        if tuple.len() == 3 {
            let (first, bytes) =
                (tuple.get_borrowed_item(1)?.extract()?, tuple.get_borrowed_item(2)?.extract()?);
            let described = exchange::describe(tuple.get_borrowed_item(0)?);
            return Ok(
                described.map_or(Self::UNREADABLE, |described| Self::described(&described, first, bytes))
            );
        }
        let (address, shape, strides, first, bytes): (_, Bound<'_, PyTuple>, Bound<'_, PyTuple>, _, _) =
            tuple.extract()?;
        Ok(Self { address, dims: Dims::of_tuples(&shape, &strides)?, first, bytes, kind: None })
    }
}

impl Lent {
    /// What cannot be read where it lies.
    pub(crate) const UNREADABLE: Self = Self { address: 0, dims: None, first: 0, bytes: 0, kind: None };

    /// A tensor of this kind that lies so, and (place of its first element in its storage, bytes of the storage).
    pub(crate) fn lying(address: u64, dims: Dims, (first, bytes): (usize, usize), kind: Kind) -> Self {
        Self { address, dims: Some(dims), first, bytes, kind: Some(kind) }
    }

    fn described(described: &Described, first: usize, bytes: usize) -> Self {
        Self {
            dims: described.dims.filter(|_| described.kind.is_some()),
            address: described.address,
            first,
            bytes,
            kind: described.kind,
        }
    }

    /// A tensor of PyTorch's that tells all of this itself.
    pub(crate) fn of(tensor: Borrowed<'_, '_, PyAny>, functions: &Functions) -> PyResult<Self> {
        // This first: it fails without a word, where functions of the stable interface would write to stderr.
        let Some(described) = exchange::describe(tensor) else { return Ok(Self::UNREADABLE) };
        // The sign may be to be turned when somebody reads it.
        if tensor.call_method0(intern!(tensor.py(), "is_neg"))?.is_truthy()? {
            return Ok(Self::UNREADABLE);
        }
        let within = functions.of_object(tensor).and_then(|tensor| tensor.within_storage());
        Ok(within.map_or(Self::UNREADABLE, |(first, bytes)| Self::described(&described, first, bytes)))
    }

    /// The floats that it holds, and the number of the GPU that they are on, if this is known here.
    pub(crate) fn floats(&self) -> Option<(Dtype, Option<u32>)> {
        self.kind.and_then(|kind| kind.floats())
    }

    /// Shape and strides, if the elements are of this kind and it has so many dimensions.
    fn dims(&self, count: usize, elements: Elements, at: Place) -> Option<Dims> {
        let fits = self.kind.is_none_or(|of| of == Kind::of(elements, at));
        self.dims.filter(|dims| fits && dims.count == count)
    }

    /// Whether the elements of so many bytes, from the first to the last, lie aligned in the tensor's own storage.
    fn has_room(&self, dims: &Dims, element_bytes: usize) -> bool {
        self.is_within(dims, element_bytes) && self.address.is_multiple_of(element_bytes as u64)
    }

    /// Whether they lie in the tensor's own storage.
    fn is_within(&self, dims: &Dims, element_bytes: usize) -> bool {
        let room = self.bytes / element_bytes;
        let end = extent(dims).and_then(|extent| extent.checked_add(self.first));
        end.is_some_and(|end| end <= room) && self.address != 0
    }

    /// Whether there is memory for all elements of so many bytes, however they lie in it.
    pub(crate) fn is_in_memory(&self, element_bytes: usize) -> bool {
        self.dims.is_some_and(|dims| dims.shape.contains(&0) || self.is_within(&dims, element_bytes))
    }

    /// The tensor, if it can be read where it lies: (batch, seqlen, num_heads, head_dim), or without a batch where
    /// sequences are packed; neighbours of the last dimension beside each other, aligned, and all of it in its storage.
    /// Without elements it lies anywhere.
    pub(crate) fn readable(&self, layout: Layout) -> Option<ForeignTensor> {
        let Layout { dtype, at, .. } = layout;
        let dims = self.dims(layout.dims(4), Elements::Float(dtype), at)?;
        let Dims { shape, strides, .. } = dims;
        if shape.contains(&0) {
            return Some(ForeignTensor { address: 0, shape, strides: contiguous_strides(shape) });
        }
        let dense = strides[3] == 1 || shape[3] == 1;
        let readable = dense && self.has_room(&dims, dtype.size_bytes());
        readable.then_some(ForeignTensor { address: self.address, shape, strides })
    }

    /// The address of one f32 a row of q, (batch, num_heads, seqlen_q) without gaps, if that is what this is.
    pub(crate) fn rows(&self, q: &ForeignTensor, layout: Layout) -> Option<u64> {
        let dims = self.dims(layout.dims(3), Elements::Float(Dtype::F32), layout.at)?;
        let [batch, seqlen_q, num_heads, _] = q.shape;
        if dims.shape != [1, batch, num_heads, seqlen_q] {
            return None;
        }
        if dims.shape.contains(&0) {
            return Some(0);
        }
        let expected = [num_heads * seqlen_q, seqlen_q, 1];
        let dense = (0..3).all(|dim| dims.shape[1 + dim] == 1 || dims.strides[1 + dim] == expected[dim]);
        (dense && self.has_room(&dims, 4)).then_some(self.address)
    }

    /// Entries of scores, (batch, num_heads, seqlen_q, seqlen_k) or 1 for any but the last, with any strides: aligned, and all
    /// of it in its storage.
    pub(crate) fn entries(
        &self,
        elements: Elements,
        element_bytes: usize,
        at: Place,
    ) -> Option<ForeignTensor> {
        let dims = self.dims(4, elements, at)?;
        let Dims { shape, strides, .. } = dims;
        if shape.contains(&0) {
            return Some(ForeignTensor { address: 0, shape, strides: contiguous_strides(shape) });
        }
        let readable = self.has_room(&dims, element_bytes);
        readable.then_some(ForeignTensor { address: self.address, shape, strides })
    }

    /// f32 a head, or a head of each sequence, without gaps.
    fn heads(&self, at: Place) -> Option<ForeignTensor> {
        let elements = Elements::Float(Dtype::F32);
        let dims = self.dims(1, elements, at).or_else(|| self.dims(2, elements, at))?;
        let [_, _, sequences, heads] = dims.shape;
        let strides = contiguous_strides([1, 1, sequences, heads]);
        let dense = (2..4).all(|dim| dims.shape[dim] == 1 || dims.strides[dim] == strides[dim]);
        if dims.shape.contains(&0) {
            return Some(ForeignTensor { address: 0, shape: dims.shape, strides });
        }
        let readable = dense && self.has_room(&dims, 4);
        readable.then_some(ForeignTensor { address: self.address, shape: dims.shape, strides })
    }

    /// int32 without gaps, if that is what this is.
    pub(crate) fn starts(&self, at: Place) -> Option<Starts> {
        let dims = self.dims(1, Elements::Int32, at)?;
        let len = dims.shape[3];
        let readable = len == 0 || (len == 1 || dims.strides[3] == 1) && self.has_room(&dims, 4);
        readable.then_some(Starts { address: self.address, len })
    }
}

/// How many elements lie between the first and one past the last of a tensor that has any.
fn extent(dims: &Dims) -> Option<usize> {
    let mut sizes = dims.shape.iter().zip(dims.strides);
    sizes.try_fold(1usize, |extent, (size, stride)| extent.checked_add((size - 1).checked_mul(stride)?))
}

/// `cu_seqlens_q` and `cu_seqlens_k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LentStarts {
    q: Lent,
    k: Lent,
}

impl<'a, 'py> FromPyObject<'a, 'py> for LentStarts {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let (q, k) = tuple.extract()?;
        Ok(Self { q, k })
    }
}

impl LentStarts {
    /// Both, if they can be read where they lie.
    pub(crate) fn readable(&self, at: Place) -> Option<CuSeqlens> {
        Some(CuSeqlens { q: self.q.starts(at)?, k: self.k.starts(at)? })
    }
}

/// What scores are made of besides q and k: (alibi_slopes, (bias, its dtype), mask, sinks), each or `None`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LentScores {
    alibi_slopes: Option<Lent>,
    bias: Option<(Lent, Dtype)>,
    mask: Option<Lent>,
    sinks: Option<Lent>,
}

impl<'a, 'py> FromPyObject<'a, 'py> for LentScores {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let (alibi_slopes, bias, mask, sinks) = tuple.extract()?;
        let bias: Option<(Lent, String)> = bias;
        let bias = bias.map(|(bias, name)| Ok::<_, PyErr>((bias, dtype(&name)?))).transpose()?;
        Ok(Self { alibi_slopes, bias, mask, sinks })
    }
}

impl LentScores {
    /// All of them, if they can be read where they lie.
    pub(crate) fn readable(&self, at: Place) -> Option<Joined> {
        let Self { alibi_slopes, bias, mask, sinks } = self;
        let bias = bias.as_ref().map(|(bias, dtype)| {
            let tensor = bias.entries(Elements::Float(*dtype), dtype.size_bytes(), at)?;
            Some(ForeignBias { dtype: *dtype, tensor })
        });
        Some(Joined {
            alibi_slopes: each(alibi_slopes.map(|slopes| slopes.heads(at)))?,
            bias: each(bias)?,
            mask: each(mask.map(|mask| mask.entries(Elements::Bool, 1, at)))?,
            sinks: each(sinks.map(|sinks| sinks.heads(at)))?,
        })
    }
}

/// What is there must be readable; what is not there need not be.
fn each<T>(found: Option<Option<T>>) -> Option<Option<T>> {
    found.map_or(Some(None), |found| found.map(Some))
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
        let (address, shape, strides): (u64, Bound<'_, PyTuple>, Bound<'_, PyTuple>) = value.extract()?;
        let dims = Dims::of_tuples(&shape, &strides)?;
        let Dims { shape, strides, .. } = dims
            .ok_or_else(|| PyValueError::new_err("a result must have as many strides as sizes, at most 4"))?;
        Ok(Self::Strided(ForeignTensor { address, shape, strides }))
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
                Err(PyValueError::new_err("a result must be (address, shape, strides), got an address"))
            }
            Self::Strided(tensor) => Ok(tensor),
        }
    }
}
