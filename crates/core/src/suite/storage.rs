//! Strided tensors between guards: a read or write outside them is seen.

use super::implementation::read;
use super::report::Finding;
use crate::tensor::extent;
use crate::{Dtype, Element, TensorMut, TensorRef};

/// Elements before and after a tensor that nothing may touch. Odd, so that tensors lie at no comfortable address.
const GUARD: usize = 33;

/// A tensor and its surroundings. Around an input lie NaNs, which spread into the results of whoever reads them.
/// Outputs are poisoned, in and around them: with a NaN that no computation gives, to show what was written.
pub(super) struct Storage<T> {
    data: Vec<T>,
    shape: [usize; 4],
    strides: [usize; 4],
}

impl<T: Element> Storage<T> {
    /// To be written.
    pub(super) fn poisoned(shape: [usize; 4], strides: [usize; 4]) -> Self {
        Self::full_of(poison(), shape, strides)
    }

    fn full_of(x: T, shape: [usize; 4], strides: [usize; 4]) -> Self {
        let len = extent(shape, strides).expect("the suite's tensors are small");
        Self { data: vec![x; len + 2 * GUARD], shape, strides }
    }

    /// To be read: dense elements, rounded to T.
    pub(super) fn holding(shape: [usize; 4], strides: [usize; 4], dense: &[f64]) -> Self {
        let mut storage = Self::full_of(T::from_f32(f32::NAN), shape, strides);
        let mut tensor = storage.tensor_mut();
        for (n, &x) in dense.iter().enumerate() {
            *tensor.at_mut(index_of(n, shape)) = T::from_f32(x as f32);
        }
        storage
    }

    pub(super) fn tensor(&self) -> TensorRef<'_, T> {
        let inner = GUARD..self.data.len() - GUARD;
        TensorRef::strided(&self.data[inner], self.shape, self.strides)
    }

    pub(super) fn tensor_mut(&mut self) -> TensorMut<'_, T> {
        let inner = GUARD..self.data.len() - GUARD;
        TensorMut::strided(&mut self.data[inner], self.shape, self.strides)
    }

    pub(super) fn to_dense(&self) -> Vec<f64> {
        read(&self.tensor())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }

    /// Whether every element of the tensor was written and none beside it.
    pub(super) fn check_written(&self) -> Result<(), Finding> {
        let mut addressed = vec![false; self.data.len()];
        let tensor = self.tensor();
        for n in 0..self.shape.into_iter().product() {
            let index @ [a, b, c, d] = index_of(n, self.shape);
            let at = GUARD + tensor.row_offset(a, b, c) + d * self.strides[3];
            addressed[at] = true;
            if is_poison(self.data[at]) {
                return Err(Finding::Unwritten { index });
            }
        }
        match (0..self.data.len()).find(|&at| !addressed[at] && !is_poison(self.data[at])) {
            None => Ok(()),
            Some(at) => Err(Finding::WrittenOutside { at: at as isize - GUARD as isize }),
        }
    }
}

/// The index of the n-th element in the order of the dimensions.
pub(super) fn index_of(n: usize, [_, b, c, d]: [usize; 4]) -> [usize; 4] {
    [n / d / c / b, n / d / c % b, n / d % c, n % d]
}

fn poison<T: Element>() -> T {
    match T::DTYPE {
        Dtype::F32 => bytemuck::pod_read_unaligned(&0xffe5_a5a5u32.to_ne_bytes()),
        Dtype::F16 => bytemuck::pod_read_unaligned(&0xfea5u16.to_ne_bytes()),
        Dtype::Bf16 => bytemuck::pod_read_unaligned(&0xffe5u16.to_ne_bytes()),
    }
}

fn is_poison<T: Element>(x: T) -> bool {
    bytemuck::bytes_of(&x) == bytemuck::bytes_of(&poison::<T>())
}
