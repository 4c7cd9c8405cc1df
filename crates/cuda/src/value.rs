//! The values of a kernel's parameters, where they are.

use crate::device::Device;
use crate::error::CudaError;
use crate::tensor::EncodedTensor;
use signflash_kernels::Arg;
use std::ffi::c_void;
use std::marker::PhantomData;

/// Where the value of a parameter is, and how wide it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'a> {
    pub(crate) address: *mut c_void,
    pub(crate) bytes: usize,
    /// What is at the address lives so long.
    lives: PhantomData<&'a ()>,
}

impl<'a> Value<'a> {
    pub(crate) fn of<T>(value: &'a T) -> Self {
        let address = std::ptr::from_ref(value).cast_mut().cast();
        Self { address, bytes: size_of::<T>(), lives: PhantomData }
    }
}

/// The arguments of a launch. Tensors are encoded for the driver, numbers stay where the plan has them: copying all
/// to one list would take as long as the launch.
pub(crate) struct PlanValues<'a> {
    args: &'a [Arg],
    tensors: Vec<EncodedTensor>,
}

impl<'a> PlanValues<'a> {
    /// # Errors
    /// Those of [`EncodedTensor::new`].
    pub(crate) fn new(device: &Device, args: &'a [Arg]) -> Result<Self, CudaError> {
        let maps = || args.iter().filter_map(|arg| if let Arg::Tensor(map) = arg { Some(map) } else { None });
        let mut tensors = Vec::with_capacity(maps().count());
        for map in maps() {
            tensors.push(EncodedTensor::new(device, map)?);
        }
        Ok(Self { args, tensors })
    }

    /// In the order of the arguments.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Value<'_>> + Clone {
        let mut tensors = self.tensors.iter();
        self.args.iter().map(move |arg| match arg {
            Arg::U32(value) => Value::of(value),
            Arg::U64(value) => Value::of(value),
            Arg::F32(value) => Value::of(value),
            Arg::Tensor(_) => Value::of(tensors.next().expect("each tensor was encoded")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_where_the_plan_has_them() {
        let args = [Arg::U64(7), Arg::F32(1.5)];
        let values = PlanValues { args: &args, tensors: vec![] };
        let found: Vec<Value<'_>> = values.iter().collect();
        assert_eq!(found.iter().map(|value| value.bytes).collect::<Vec<_>>(), [8, 4]);
        // SAFETY: the addresses are those of the numbers inside `args`, which is alive.
        unsafe {
            assert_eq!(*found[0].address.cast::<u64>(), 7);
            assert_eq!(*found[1].address.cast::<f32>(), 1.5);
        }
    }
}
