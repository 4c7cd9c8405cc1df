//! What a tensor says of itself: to judge one wherever its elements lie.

use crate::error::{ProblemError, TensorName};
use crate::tensor::{extent, may_overlap};

const QKV_DIMS: &str = "(batch, seqlen, num_heads, head_dim)";
const PROBS_DIMS: &str = "(batch, num_heads, seqlen_q, seqlen_k)";
const SLOPES_DIMS: &str = "(1, 1, 1 or batch, num_heads)";

/// What a tensor says of itself, wherever its elements lie: to judge one that is not borrowed.
///
/// ```
/// use signflash_core::{Description, TensorName};
/// // q of an interleaved (batch, seqlen, 3, num_heads, head_dim).
/// let q = Description { tensor: TensorName::Q, shape: [2, 5, 4, 8], strides: [480, 96, 8, 1] };
/// q.check_written([2, 5, 4, 8])?;
/// assert_eq!(q.extent(), Some(480 + 4 * 96 + 4 * 8));
/// assert!(Description { strides: [480, 96, 0, 1], ..q }.check_written([2, 5, 4, 8]).is_err());
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// For messages.
    pub tensor: TensorName,
    /// Sizes of the four dimensions.
    pub shape: [usize; 4],
    /// Distance of neighbours along each dimension, in elements.
    pub strides: [usize; 4],
}

impl Description {
    /// Checks that it has this shape and is dense in its last dimension.
    ///
    /// # Errors
    /// [`ProblemError::Shape`] or [`ProblemError::LastStride`].
    pub fn check(&self, expected: [usize; 4]) -> Result<(), ProblemError> {
        let Self { tensor, shape, strides } = *self;
        if shape != expected {
            let meaning = match tensor {
                TensorName::Probs => PROBS_DIMS,
                TensorName::AlibiSlopes => SLOPES_DIMS,
                _ => QKV_DIMS,
            };
            let (expected, got) = (expected.to_vec(), shape.to_vec());
            return Err(ProblemError::Shape { tensor, expected, got, meaning });
        }
        if shape[3] > 1 && strides[3] != 1 {
            return Err(ProblemError::LastStride { tensor, got: strides[3] });
        }
        Ok(())
    }

    /// Checks that it has this shape, whatever its strides.
    pub(crate) fn check_shape(&self, expected: [usize; 4]) -> Result<(), ProblemError> {
        let Self { tensor, shape, .. } = *self;
        if shape != expected {
            let (expected, got) = (expected.to_vec(), shape.to_vec());
            return Err(ProblemError::Shape { tensor, expected, got, meaning: "as the problem says" });
        }
        Ok(())
    }

    /// Checks that no two of its indices name the same element.
    pub(crate) fn check_no_overlap(&self) -> Result<(), ProblemError> {
        let Self { tensor, shape, strides } = *self;
        if may_overlap(shape, strides) {
            return Err(ProblemError::Overlap { tensor, shape: shape.to_vec(), strides: strides.to_vec() });
        }
        Ok(())
    }

    /// Checks the same as [`check`](Self::check), and that no two of its indices name the same element.
    ///
    /// # Errors
    /// As [`check`](Self::check), and [`ProblemError::Overlap`].
    pub fn check_written(&self, expected: [usize; 4]) -> Result<(), ProblemError> {
        self.check(expected)?;
        self.check_no_overlap()
    }

    /// Checks that its elements, of `element_bytes` each, can lie from this address on: that the address is not 0 and
    /// is aligned, and that the last element is not beyond what a process can address. Whether memory is there only
    /// its owner knows.
    ///
    /// # Errors
    /// [`ProblemError::Address`].
    pub fn check_address(&self, address: usize, element_bytes: usize) -> Result<(), ProblemError> {
        let Self { tensor, shape, .. } = *self;
        let in_reach = |extent: usize| {
            extent.checked_mul(element_bytes).is_some_and(|bytes| isize::try_from(bytes).is_ok())
        };
        let why = if shape.contains(&0) {
            return Ok(()); // without elements there need be no memory
        } else if address == 0 {
            "where nothing is"
        } else if !address.is_multiple_of(element_bytes) {
            "which is no multiple of an element's size"
        } else if !self.extent().is_some_and(in_reach) {
            "from where its strides reach beyond all memory"
        } else {
            return Ok(());
        };
        let elements = shape.into_iter().fold(1, usize::saturating_mul);
        Err(ProblemError::Address { tensor, elements, address, why })
    }

    /// How many elements lie between the first and one past the last; none if there is no element, `None` beyond
    /// `usize`.
    pub fn extent(&self) -> Option<usize> {
        extent(self.shape, self.strides)
    }

    /// Checks that a storage of `got` elements holds it.
    pub(crate) fn check_storage(&self, got: usize) -> Result<(), ProblemError> {
        let needed = self.extent().unwrap_or(usize::MAX);
        if needed > got {
            return Err(ProblemError::Storage { tensor: self.tensor, needed, got });
        }
        Ok(())
    }
}
