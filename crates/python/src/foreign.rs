//! Tensors that somebody else owns.

use signflash_core::{Description, Dtype, ProblemError, TensorName};
use signflash_cpu::raw::RawTensor;
use signflash_kernels::{DeviceTensor, Order};
use std::ptr::NonNull;

/// A tensor as its owner describes it: where its first element is, how many there are, how far apart. It may lie in
/// the memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignTensor {
    /// Address of element `[0, 0, 0, 0]`.
    pub address: u64,
    /// Sizes of the four dimensions.
    pub shape: [usize; 4],
    /// Distance of neighbours along each dimension, in elements; 0 in a broadcast tensor.
    pub strides: [usize; 4],
}

impl ForeignTensor {
    /// That it has the shape that the problem asks for, is dense in its last dimension, and has memory for its
    /// elements: an address that is one, and an end that is not beyond what a process can address. Whether that
    /// memory is as long as shape and strides say only its owner knows.
    ///
    /// # Errors
    /// [`ProblemError::Shape`], [`ProblemError::LastStride`] or [`ProblemError::Address`], with the tensor's name.
    pub fn check(&self, tensor: TensorName, expected: [usize; 4], dtype: Dtype) -> Result<(), ProblemError> {
        let description = Description { tensor, shape: self.shape, strides: self.strides };
        description.check(expected)?;
        description.check_address(self.address as usize, dtype.size_bytes())
    }

    /// The tensor as the CPU's engine takes it. An address is all that this makes: who dereferences it promises that
    /// it is one.
    pub fn raw<T>(&self) -> RawTensor<T> {
        let first = std::ptr::with_exposed_provenance_mut(self.address as usize);
        RawTensor { first, shape: self.shape, strides: self.strides }
    }

    /// The tensor as the GPU's kernels take it, in the memory of a GPU.
    pub fn on_gpu(&self, order: Order) -> DeviceTensor {
        DeviceTensor::of(self.address, self.strides, order)
    }
}

/// One number a row, dense: lse, or its gradient.
///
/// # Errors
/// [`ProblemError::Address`] with the tensor's name.
///
/// # Safety
/// So many f32 must be there, which nobody writes while the result lives.
pub unsafe fn floats<'a>(tensor: TensorName, address: u64, len: usize) -> Result<&'a [f32], ProblemError> {
    let first = first_of(tensor, address, len)?;
    // SAFETY: aligned, not null and not beyond all memory, as just checked; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(first, len) })
}

/// The same to write.
///
/// # Errors
/// As [`floats`].
///
/// # Safety
/// As [`floats`], and nobody else may use them.
pub unsafe fn floats_mut<'a>(
    tensor: TensorName,
    address: u64,
    len: usize,
) -> Result<&'a mut [f32], ProblemError> {
    let first = first_of(tensor, address, len)?;
    // SAFETY: as above.
    Ok(unsafe { std::slice::from_raw_parts_mut(first, len) })
}

/// A byte an entry, dense, to write: the dropout mask that Python asked for.
///
/// # Errors
/// [`ProblemError::Address`] with the tensor's name.
///
/// # Safety
/// So many bytes must be there, which nobody else uses while the result lives.
pub unsafe fn bytes_mut<'a>(
    tensor: TensorName,
    address: u64,
    len: usize,
) -> Result<&'a mut [u8], ProblemError> {
    let first = first_of(tensor, address, len)?;
    // SAFETY: not null and not beyond all memory, as just checked; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(first, len) })
}

/// Without elements the owner may give no address, but a slice wants one.
fn first_of<T>(tensor: TensorName, address: u64, len: usize) -> Result<*mut T, ProblemError> {
    let dense = Description { tensor, shape: [1, 1, 1, len], strides: [0, 0, 0, 1] };
    dense.check_address(address as usize, size_of::<T>())?;
    let first = std::ptr::with_exposed_provenance_mut(address as usize);
    Ok(if len == 0 { NonNull::dangling().as_ptr() } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIDED: ForeignTensor =
        ForeignTensor { address: 64, shape: [2, 3, 1, 4], strides: [100, 10, 999, 1] };

    #[test]
    fn another_shape_is_refused_by_name() {
        assert_eq!(
            STRIDED.check(TensorName::K, [2, 3, 1, 5], Dtype::F32).unwrap_err().to_string(),
            "k has shape [2, 3, 1, 4], expected [2, 3, 1, 5] (batch, seqlen, num_heads, head_dim)"
        );
    }

    #[test]
    fn elements_without_memory_are_refused() {
        let refused = |tensor: ForeignTensor| {
            tensor.check(TensorName::V, tensor.shape, Dtype::F32).unwrap_err().to_string()
        };
        assert!(STRIDED.check(TensorName::V, STRIDED.shape, Dtype::F32).is_ok());
        let freed = refused(ForeignTensor { address: 0, ..STRIDED });
        assert!(freed.starts_with("v has 24 elements at address 0x0, where nothing is"), "{freed}");
        let unaligned = refused(ForeignTensor { address: 66, ..STRIDED });
        assert!(unaligned.contains("address 0x42, which is no multiple"), "{unaligned}");
        assert!(
            ForeignTensor { address: 66, ..STRIDED }.check(TensorName::V, STRIDED.shape, Dtype::F16).is_ok()
        );
        for stride in [usize::MAX, isize::MAX as usize / 4] {
            let far = refused(ForeignTensor { strides: [stride, 10, 999, 1], ..STRIDED });
            assert!(far.contains("beyond all memory"), "{far}");
        }
    }

    #[test]
    fn nothing_needs_no_memory() {
        let tensor = ForeignTensor { address: 0, shape: [0, 2, 3, 4], strides: [24, 12, 4, 1] };
        assert!(tensor.check(TensorName::Q, tensor.shape, Dtype::F32).is_ok());
        // SAFETY: there is no element.
        assert!(unsafe { floats(TensorName::Lse, 0, 0) }.unwrap().is_empty());
        // SAFETY: it is refused.
        assert!(unsafe { floats(TensorName::Lse, 0, 1) }.is_err());
    }
}
