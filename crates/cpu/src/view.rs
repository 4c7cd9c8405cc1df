//! Tensors with their element type erased, so that kernels are compiled once an instruction set and not once a type.

use crate::raw::RawTensor;
use signflash_core::{Dtype, Element};
use std::marker::PhantomData;

/// A tensor to read.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    base: *const u8,
    pub(crate) shape: [usize; 4],
    strides: [usize; 4],
    pub(crate) dtype: Dtype,
    lifetime: PhantomData<&'a [u8]>,
}

/// A tensor to write, by several threads at once.
#[derive(Clone, Copy)]
pub(crate) struct ViewMut<'a> {
    base: *mut u8,
    strides: [usize; 4],
    pub(crate) dtype: Dtype,
    lifetime: PhantomData<&'a mut [u8]>,
}

// SAFETY: nobody writes what a `View` reads, by the promise to `View::new`, and elements are plain numbers.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}
// SAFETY: nobody else uses the elements, by the promise to `ViewMut::new`; distinct indices are distinct elements, as
// `Description::check_written` proved; and the schedule gives every row to one unit of work at a time.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> View<'a> {
    /// # Safety
    /// The elements stay, and nobody writes them, for `'a`; the tensor's shape and strides were checked.
    pub(crate) unsafe fn new<T: Element>(x: RawTensor<T>) -> Self {
        let RawTensor { first, shape, strides } = x;
        Self { base: first.cast(), shape, strides, dtype: T::DTYPE, lifetime: PhantomData }
    }

    /// Bytes from a row (third index fixed) to the next along the second dimension.
    pub(crate) fn row_stride_bytes(&self) -> usize {
        self.strides[1] * self.dtype.size_bytes()
    }

    /// The first element of `[a, b, c]`. Inside the tensor for indices inside its shape, as the checks of the operands
    /// proved; never read otherwise.
    pub(crate) fn row(&self, [a, b, c]: [usize; 3]) -> *const u8 {
        let [sa, sb, sc, _] = self.strides;
        self.base.wrapping_add((a * sa + b * sb + c * sc) * self.dtype.size_bytes())
    }
}

impl<'a> ViewMut<'a> {
    /// # Safety
    /// The elements stay, and nobody else uses them, for `'a`; what lies between them is not this view's. The tensor's
    /// shape and strides were checked.
    pub(crate) unsafe fn new<T: Element>(x: RawTensor<T>) -> Self {
        Self { base: x.first.cast(), strides: x.strides, dtype: T::DTYPE, lifetime: PhantomData }
    }

    /// As [`View::row_stride_bytes`].
    pub(crate) fn row_stride_bytes(&self) -> usize {
        self.strides[1] * self.dtype.size_bytes()
    }

    /// As [`View::row`].
    pub(crate) fn row(&self, [a, b, c]: [usize; 3]) -> *mut u8 {
        let [sa, sb, sc, _] = self.strides;
        self.base.wrapping_add((a * sa + b * sb + c * sc) * self.dtype.size_bytes())
    }
}

/// A shared f32 array that several threads write, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct FloatsMut<'a> {
    base: *mut f32,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the schedule gives every element to one unit of work.
unsafe impl Send for FloatsMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for FloatsMut<'_> {}

impl<'a> FloatsMut<'a> {
    pub(crate) fn new(x: &'a mut [f32]) -> Self {
        Self { base: x.as_mut_ptr(), lifetime: PhantomData }
    }

    /// # Safety
    /// The memory stays, and nobody else uses it, for `'a`.
    pub(crate) unsafe fn from_raw(base: *mut f32) -> Self {
        Self { base, lifetime: PhantomData }
    }

    /// The element `at`; inside for indices inside, as the checks proved.
    pub(crate) fn at(&self, at: usize) -> *mut f32 {
        self.base.wrapping_add(at)
    }
}
