//! Launching a kernel with checked arguments.

use crate::buffer::DeviceBuffer;
use crate::device::Device;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::function::Function;
use crate::stream::Stream;
use crate::tensor::EncodedTensor;
use crate::value::Value;
use crate::workspace::Workspace;
use cudarc::driver::sys;
use std::ffi::c_void;

/// The value of one parameter of a kernel.
///
/// ```
/// use signflash_cuda::Arg;
/// assert_eq!(Arg::from(7u32), Arg::U32(7));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Arg {
    /// `.u32` or `.b32`.
    U32(u32),
    /// `.s32`.
    I32(i32),
    /// `.u64` or `.b64`; addresses too.
    U64(u64),
    /// `.f32`.
    F32(f32),
    /// 128 bytes, aligned to 64: a tensor for the copy engine.
    Tensor(EncodedTensor),
}

impl Arg {
    /// A kernel's argument as this GPU's driver takes it.
    ///
    /// # Errors
    /// Those of [`EncodedTensor::new`].
    pub fn encode(device: &Device, arg: &signflash_kernels::Arg) -> Result<Self, CudaError> {
        Ok(match arg {
            signflash_kernels::Arg::U32(value) => Self::U32(*value),
            signflash_kernels::Arg::U64(value) => Self::U64(*value),
            signflash_kernels::Arg::F32(value) => Self::F32(*value),
            signflash_kernels::Arg::Tensor(map) => Self::Tensor(EncodedTensor::new(device, map)?),
        })
    }

    /// How wide it is.
    pub fn bytes(&self) -> usize {
        self.value().bytes
    }

    /// Where its value is.
    fn value(&self) -> Value<'_> {
        match self {
            Self::U32(value) => Value::of(value),
            Self::I32(value) => Value::of(value),
            Self::U64(value) => Value::of(value),
            Self::F32(value) => Value::of(value),
            Self::Tensor(value) => Value::of(value),
        }
    }
}

macro_rules! arg_from {
    ($($from:ty => $variant:ident),*) => {$(
        impl From<$from> for Arg {
            fn from(value: $from) -> Self {
                Self::$variant(value)
            }
        }
    )*};
}
arg_from!(u32 => U32, i32 => I32, u64 => U64, f32 => F32);

impl From<&DeviceBuffer> for Arg {
    fn from(buffer: &DeviceBuffer) -> Self {
        Self::U64(buffer.ptr())
    }
}

impl From<&Workspace<'_>> for Arg {
    fn from(workspace: &Workspace<'_>) -> Self {
        Self::U64(workspace.ptr())
    }
}

impl Function {
    /// Puts the kernel into `stream` with so many blocks, in one dimension; does not wait for it. With 0 blocks there
    /// is nothing to run, and nothing is.
    ///
    /// # Errors
    /// [`CudaError::ArgumentCount`], [`CudaError::ArgumentWidth`], [`CudaError::OtherDevice`], or the driver's. What
    /// goes wrong while the kernel runs is reported by a later call, such as [`Stream::synchronize`].
    ///
    /// # Safety
    /// Number and width of the arguments are checked, their meaning cannot be. Every address that the kernel reads or
    /// writes with these arguments must be valid on this GPU, and used by nobody else in a way that races, until the
    /// kernel has ended; so must `self`. If the stream is being captured, that holds for each replay of the graph.
    pub unsafe fn launch(&self, stream: &Stream, grid_blocks: u32, args: &[Arg]) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_values(stream, grid_blocks, args.iter().map(Arg::value)) }
    }

    /// The same, with arguments that stay where they are.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    pub(crate) unsafe fn launch_values<'a>(
        &self,
        stream: &Stream,
        grid_blocks: u32,
        args: impl ExactSizeIterator<Item = Value<'a>> + Clone,
    ) -> Result<(), CudaError> {
        let doing = || Doing::Launch { kernel: self.entry().into() };
        check_args(self.entry(), self.parameter_bytes(), args.clone())?;
        self.device().require_same(stream.device(), doing)?;
        if grid_blocks == 0 {
            return Ok(());
        }
        let mut addresses: Vec<*mut c_void> = args.map(|value| value.address).collect();
        let (threads, shared) = (self.block_threads(), self.dynamic_smem_bytes());
        let (values, none) = (addresses.as_mut_ptr(), std::ptr::null_mut());
        let (function, queue) = (self.handle(), stream.handle());
        let _bound = self.device().bind()?;
        // SAFETY: function and stream are live and of the device whose context is current, as checked above. `values`
        // holds the address of one value for each parameter, as wide as declared (`check_args`) and alive (`Value`); the
        // driver copies them before it returns. What the kernel does with them is the caller's promise.
        let result = unsafe {
            sys::cuLaunchKernel(function, grid_blocks, 1, 1, threads, 1, 1, shared, queue, values, none)
        };
        check(result, doing)
    }
}

/// That `args` are as many and as wide as the kernel declares.
fn check_args<'a>(
    kernel: &str,
    parameter_bytes: &[usize],
    args: impl ExactSizeIterator<Item = Value<'a>>,
) -> Result<(), CudaError> {
    if args.len() != parameter_bytes.len() {
        let (expected, got) = (parameter_bytes.len(), args.len());
        return Err(CudaError::ArgumentCount { kernel: kernel.into(), expected, got });
    }
    for (index, (&expected, arg)) in parameter_bytes.iter().zip(args).enumerate() {
        if arg.bytes != expected {
            return Err(CudaError::ArgumentWidth { kernel: kernel.into(), index, expected, got: arg.bytes });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(parameter_bytes: &[usize], args: &[Arg]) -> Result<(), CudaError> {
        check_args("add", parameter_bytes, args.iter().map(Arg::value))
    }

    #[test]
    fn arguments_as_declared_pass() {
        assert_eq!(check(&[8, 4, 4, 4], &[1u64.into(), 2u32.into(), 3i32.into(), 4f32.into()]), Ok(()));
    }

    #[test]
    fn a_missing_argument_is_counted() {
        assert_eq!(
            check(&[8, 4], &[Arg::U64(1)]).unwrap_err().to_string(),
            "kernel `add` takes 2 arguments, got 1; pass one for each .param of its .entry"
        );
    }

    #[test]
    fn an_argument_of_the_wrong_width_is_named() {
        assert_eq!(
            check(&[8, 8], &[Arg::U64(1), Arg::U32(1)]).unwrap_err().to_string(),
            "argument 1 of kernel `add` takes 8 bytes, got 4; pass U64 for a pointer or .b64, U32, I32 or F32 for 32 \
             bits"
        );
    }

    #[test]
    fn the_address_of_an_argument_holds_its_value() {
        let arg = Arg::F32(1.5);
        // SAFETY: the address is that of the f32 inside `arg`, which is alive.
        assert_eq!(unsafe { *arg.value().address.cast::<f32>() }, 1.5);
    }
}
