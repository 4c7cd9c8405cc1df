//! Launching a kernel with checked arguments.

use crate::buffer::DeviceBuffer;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::function::Function;
use crate::stream::Stream;
use crate::sys;
use crate::value::{PlanValues, Value};
use crate::workspace::Workspace;
use signflash_kernels::Arg;
use std::ffi::c_void;

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
    /// [`CudaError::ArgumentCount`], [`CudaError::ArgumentWidth`], [`CudaError::OtherDevice`], or the driver's, which
    /// also refuses tensors that the copy engine cannot take. What goes wrong while the kernel runs is reported by a
    /// later call, such as [`Stream::synchronize`].
    ///
    /// # Safety
    /// Number and width of the arguments are checked, their meaning cannot be. Every address that the kernel reads or
    /// writes with these arguments must be valid on this GPU, and used by nobody else in a way that races, until the
    /// kernel has ended; so must `self`. If the stream is being captured, that holds for each replay of the graph.
    pub unsafe fn launch(&self, stream: &Stream, grid_blocks: u32, args: &[Arg]) -> Result<(), CudaError> {
        let values = PlanValues::new(self.device(), args)?;
        let doing = || Doing::Launch { kernel: self.entry().into() };
        check_args(self.entry(), self.parameter_bytes(), values.iter())?;
        self.device().require_same(stream.device(), doing)?;
        if grid_blocks == 0 {
            return Ok(());
        }
        let mut addresses: Vec<*mut c_void> = values.iter().map(|value| value.address).collect();
        let (threads, shared) = (self.block_threads(), self.dynamic_smem_bytes());
        let (values, none) = (addresses.as_mut_ptr(), std::ptr::null_mut());
        let (function, queue) = (self.handle(), stream.handle());
        let _bound = self.device().bind()?;
        // SAFETY: function and stream are live and of the device whose context is current, as checked above. `values`
        // holds the address of one value for each parameter, as wide as declared (`check_args`) and alive
        // (`PlanValues`); the driver copies them before it returns. What the kernel does with them is the caller's
        // promise.
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

    fn check(parameter_bytes: &[usize], args: &[Value<'_>]) -> Result<(), CudaError> {
        check_args("add", parameter_bytes, args.iter().copied())
    }

    #[test]
    fn arguments_as_declared_pass() {
        assert_eq!(check(&[8, 4, 4], &[Value::of(&1u64), Value::of(&2u32), Value::of(&4f32)]), Ok(()));
    }

    #[test]
    fn a_missing_argument_is_counted() {
        assert_eq!(
            check(&[8, 4], &[Value::of(&1u64)]).unwrap_err().to_string(),
            "kernel `add` takes 2 arguments, got 1; pass one for each .param of its .entry"
        );
    }

    #[test]
    fn an_argument_of_the_wrong_width_is_named() {
        assert_eq!(
            check(&[8, 8], &[Value::of(&1u64), Value::of(&1u32)]).unwrap_err().to_string(),
            "argument 1 of kernel `add` takes 8 bytes, got 4; pass U64 for a pointer or .b64, U32 or F32 for 32 bits"
        );
    }
}
