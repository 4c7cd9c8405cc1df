//! Borrowed, strided tensors of four dimensions.

use std::ops::Range;

/// A tensor to read: (batch, seqlen, num_heads, head_dim), or (batch, num_heads, seqlen_q, seqlen_k) for `probs`.
///
/// Element `[a, b, c, d]` is `data[a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3]]`. Strides are
/// in elements; any will do as long as the last one is 1, so (batch, num_heads, seqlen, head_dim) storage is a view
/// of permuted strides, not a copy. A stride may be 0 (a broadcast tensor).
///
/// The constructor judges nothing: a tensor is checked, by name, where it meets a [`Problem`](crate::Problem).
///
/// ```
/// use signflash_core::TensorRef;
/// let stored_bhsd = [0.0f32; 2 * 3 * 5 * 4]; // batch 2, heads 3, seqlen 5, head_dim 4
/// let q = TensorRef::bhsd(&stored_bhsd, [2, 5, 3, 4]);
/// assert_eq!(q.strides, [60, 4, 20, 1]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a, T> {
    /// The elements; may extend beyond what shape and strides address.
    pub data: &'a [T],
    /// Sizes of the four dimensions.
    pub shape: [usize; 4],
    /// Distance of neighbours along each dimension, in elements.
    pub strides: [usize; 4],
}

/// A tensor to write; shape and strides as in [`TensorRef`], but no two indices may name the same element.
///
/// ```
/// use signflash_core::TensorMut;
/// let mut stored = [0.0f32; 2 * 5 * 3 * 4];
/// let out = TensorMut::bshd(&mut stored, [2, 5, 3, 4]);
/// assert_eq!(out.strides, [60, 12, 4, 1]);
/// ```
#[derive(Debug)]
pub struct TensorMut<'a, T> {
    /// The elements; what shape and strides do not address is left alone.
    pub data: &'a mut [T],
    /// Sizes of the four dimensions.
    pub shape: [usize; 4],
    /// Distance of neighbours along each dimension, in elements.
    pub strides: [usize; 4],
}

/// Strides of a tensor stored densely in the order of its dimensions.
///
/// ```
/// assert_eq!(signflash_core::contiguous_strides([2, 5, 3, 4]), [60, 12, 4, 1]);
/// ```
pub const fn contiguous_strides(shape: [usize; 4]) -> [usize; 4] {
    let [_, b, c, d] = shape;
    [b.saturating_mul(c).saturating_mul(d), c.saturating_mul(d), d, 1]
}

/// Strides of (batch, seqlen, heads, dim) stored as (batch, heads, seqlen, dim).
const fn bhsd_strides(shape: [usize; 4]) -> [usize; 4] {
    let [_, seqlen, heads, dim] = shape;
    [heads.saturating_mul(seqlen).saturating_mul(dim), dim, seqlen.saturating_mul(dim), 1]
}

/// How many elements of storage shape and strides address; `None` beyond `usize`.
pub(crate) fn extent(shape: [usize; 4], strides: [usize; 4]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    for (size, stride) in shape.into_iter().zip(strides) {
        last = last.checked_add((size - 1).checked_mul(stride)?)?;
    }
    last.checked_add(1)
}

/// Whether two different indices may address the same element. Nested strides never do; exotic interleavings that
/// happen not to overlap are refused as well.
pub(crate) fn may_overlap(shape: [usize; 4], strides: [usize; 4]) -> bool {
    if shape.contains(&0) {
        return false; // without elements, whatever the strides
    }
    let mut dims: Vec<(usize, usize)> =
        strides.into_iter().zip(shape).filter(|&(_, size)| size > 1).collect();
    dims.sort_unstable();
    let mut reach = 0usize; // the largest distance that the dimensions so far can make
    for (stride, size) in dims {
        if stride <= reach {
            return true;
        }
        reach = reach.saturating_add(stride.saturating_mul(size - 1));
    }
    false
}

impl<'a, T> TensorRef<'a, T> {
    /// A tensor with strides of your own.
    pub const fn strided(data: &'a [T], shape: [usize; 4], strides: [usize; 4]) -> Self {
        Self { data, shape, strides }
    }

    /// (batch, seqlen, heads, dim), stored in that order.
    pub const fn bshd(data: &'a [T], shape: [usize; 4]) -> Self {
        Self { data, shape, strides: contiguous_strides(shape) }
    }

    /// (batch, seqlen, heads, dim), stored as (batch, heads, seqlen, dim). `shape` is in the logical order.
    pub const fn bhsd(data: &'a [T], shape: [usize; 4]) -> Self {
        Self { data, shape, strides: bhsd_strides(shape) }
    }

    /// The elements in these ranges of its indices, which are not copied.
    pub(crate) fn part(&self, place: [Range<usize>; 4]) -> Self {
        let first = place.each_ref().map(|range| range.start);
        let start: usize = first.into_iter().zip(self.strides).map(|(at, stride)| at * stride).sum();
        // An empty tensor has no element to start at.
        let start = start.min(self.data.len());
        Self { data: &self.data[start..], shape: place.map(|range| range.len()), strides: self.strides }
    }

    /// Where element `[a, b, c, 0]` lies in `data`.
    #[inline(always)]
    pub const fn row_offset(&self, a: usize, b: usize, c: usize) -> usize {
        a * self.strides[0] + b * self.strides[1] + c * self.strides[2]
    }
}

impl<T: Copy> TensorRef<'_, T> {
    /// The element `[a, b, c, d]`.
    ///
    /// # Panics
    /// If the index lies outside `data`.
    #[inline(always)]
    pub fn at(&self, [a, b, c, d]: [usize; 4]) -> T {
        self.data[self.row_offset(a, b, c) + d * self.strides[3]]
    }
}

impl<'a, T> TensorMut<'a, T> {
    /// A tensor with strides of your own.
    pub const fn strided(data: &'a mut [T], shape: [usize; 4], strides: [usize; 4]) -> Self {
        Self { data, shape, strides }
    }

    /// (batch, seqlen, heads, dim), stored in that order.
    pub const fn bshd(data: &'a mut [T], shape: [usize; 4]) -> Self {
        Self { data, shape, strides: contiguous_strides(shape) }
    }

    /// (batch, seqlen, heads, dim), stored as (batch, heads, seqlen, dim). `shape` is in the logical order.
    pub const fn bhsd(data: &'a mut [T], shape: [usize; 4]) -> Self {
        Self { data, shape, strides: bhsd_strides(shape) }
    }

    /// The same tensor, to read.
    pub fn as_ref(&self) -> TensorRef<'_, T> {
        TensorRef { data: self.data, shape: self.shape, strides: self.strides }
    }

    /// The element `[a, b, c, d]`, to write.
    ///
    /// # Panics
    /// If the index lies outside `data`.
    #[inline(always)]
    pub fn at_mut(&mut self, [a, b, c, d]: [usize; 4]) -> &mut T {
        let [sa, sb, sc, sd] = self.strides;
        &mut self.data[a * sa + b * sb + c * sc + d * sd]
    }
}

/// Where the row that starts at an index lies in a dense tensor.
pub(crate) fn dense_row(shape: [usize; 4], [a, b, c, _]: [usize; 4]) -> Range<usize> {
    let start = ((a * shape[1] + b) * shape[2] + c) * shape[3];
    start..start + shape[3]
}
