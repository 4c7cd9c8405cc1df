//! Tensors that somebody else owns.

use signflash_core::{ProblemError, TensorMut, TensorName, TensorRef};
use signflash_kernels::DeviceTensor;
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

const QKV: &str = "(batch, seqlen, num_heads, head_dim)";
const PROBS: &str = "(batch, num_heads, seqlen_q, seqlen_k)";

impl ForeignTensor {
    /// That it has the shape that the problem asks for and is dense in its last dimension.
    ///
    /// # Errors
    /// [`ProblemError::Shape`] or [`ProblemError::LastStride`], with the tensor's name.
    pub fn check(&self, tensor: TensorName, expected: [usize; 4]) -> Result<(), ProblemError> {
        if self.shape != expected {
            let meaning = if tensor == TensorName::Probs { PROBS } else { QKV };
            let (expected, got) = (expected.to_vec(), self.shape.to_vec());
            return Err(ProblemError::Shape { tensor, expected, got, meaning });
        }
        if self.shape[3] > 1 && self.strides[3] != 1 {
            return Err(ProblemError::LastStride { tensor, got: self.strides[3] });
        }
        Ok(())
    }

    /// How many elements lie between the first and one past the last; none if there is no element.
    pub fn extent(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        let reach = |(size, stride): (usize, usize)| (size - 1).saturating_mul(stride);
        self.shape.into_iter().zip(self.strides).map(reach).fold(1, usize::saturating_add)
    }

    /// The tensor, to read.
    ///
    /// # Safety
    /// Address, shape and strides must describe elements of type `T` in this process's memory that stay and are not
    /// written while the result lives.
    pub unsafe fn to_read<'a, T>(&self) -> TensorRef<'a, T> {
        // SAFETY: the caller's promise, for all elements between the first and the last.
        let data = unsafe { std::slice::from_raw_parts(self.pointer::<T>(), self.extent()) };
        TensorRef::strided(data, self.shape, self.strides)
    }

    /// The tensor, to write.
    ///
    /// # Safety
    /// As [`to_read`](Self::to_read), and nobody else may use the memory while the result lives.
    pub unsafe fn to_write<'a, T>(&self) -> TensorMut<'a, T> {
        // SAFETY: the caller's promise, for all elements between the first and the last.
        let data = unsafe { std::slice::from_raw_parts_mut(self.pointer::<T>(), self.extent()) };
        TensorMut::strided(data, self.shape, self.strides)
    }

    /// Without elements the owner may give no address, but a slice wants one.
    fn pointer<T>(&self) -> *mut T {
        if self.extent() == 0 { NonNull::dangling().as_ptr() } else { self.address as usize as *mut T }
    }

    /// A (batch, seqlen, heads, head_dim) on a GPU.
    pub fn rows_first(&self) -> DeviceTensor {
        let [batch_stride, row_stride, head_stride, _] = self.strides.map(|stride| stride as u64);
        DeviceTensor { ptr: self.address, batch_stride, row_stride, head_stride }
    }

    /// A (batch, heads, seqlen_q, seqlen_k) on a GPU, which probs are.
    pub fn heads_first(&self) -> DeviceTensor {
        let [batch_stride, head_stride, row_stride, _] = self.strides.map(|stride| stride as u64);
        DeviceTensor { ptr: self.address, batch_stride, row_stride, head_stride }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_reaches_to_its_last_element() {
        let tensor = ForeignTensor { address: 0, shape: [2, 3, 1, 4], strides: [100, 10, 999, 1] };
        assert_eq!(tensor.extent(), 100 + 20 + 3 + 1);
        assert_eq!(ForeignTensor { shape: [2, 0, 1, 4], ..tensor }.extent(), 0);
    }

    #[test]
    fn another_shape_is_refused_by_name() {
        let tensor = ForeignTensor { address: 0, shape: [1, 2, 3, 4], strides: [24, 12, 4, 1] };
        assert_eq!(
            tensor.check(TensorName::K, [1, 2, 3, 5]).unwrap_err().to_string(),
            "k has shape [1, 2, 3, 4], expected [1, 2, 3, 5] (batch, seqlen, num_heads, head_dim)"
        );
    }

    #[test]
    fn nothing_is_read_through_an_address_of_zero() {
        let tensor = ForeignTensor { address: 0, shape: [0, 2, 3, 4], strides: [24, 12, 4, 1] };
        // SAFETY: there is no element.
        assert!(unsafe { tensor.to_read::<f32>() }.data.is_empty());
    }
}
