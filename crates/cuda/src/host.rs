//! Attention of host tensors: upload, run, download.

use crate::buffer::DeviceBuffer;
use crate::engine::{CudaEngine, EngineError};
use crate::error::CudaError;
use signflash_core::{Element, GradInputs, Gradients, Inputs, Outputs, Problem, ResultOf};
use signflash_kernels::{Half, HostBackward, HostForward, Memory, half_of};

/// Buffers for one call, and copies in the order of the engine's stream.
pub(crate) struct OnGpu<'a>(pub(crate) &'a CudaEngine);

impl Memory for OnGpu<'_> {
    type Buffer = DeviceBuffer;
    type Error = CudaError;

    fn upload(&mut self, _name: &'static str, bytes: &[u8]) -> Result<DeviceBuffer, CudaError> {
        DeviceBuffer::from_host(self.0.stream(), bytes)
    }

    fn reserve(&mut self, _name: &'static str, bytes: usize) -> Result<DeviceBuffer, CudaError> {
        DeviceBuffer::alloc(self.0.device(), bytes)
    }

    fn address(&self, buffer: &DeviceBuffer) -> u64 {
        buffer.ptr()
    }

    fn download(&self, buffer: &DeviceBuffer, to: &mut [u8]) -> Result<(), CudaError> {
        buffer.copy_to_host(self.0.stream(), to)
    }
}

fn half<T: Element>() -> Result<Half, EngineError> {
    half_of(T::DTYPE).ok_or(EngineError::Dtype(T::DTYPE))
}

impl CudaEngine {
    /// out, lse and, if asked for, probs of host tensors; waits for them. Tensors as in [`Outputs`]; results may be f32, but
    /// not with probs.
    ///
    /// # Errors
    /// An [`EngineError`]. Nothing is written then, unless the driver fails between two downloads.
    pub fn forward<T: Element, R: Element + ResultOf<T>>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, R>,
    ) -> Result<(), EngineError> {
        let half = half::<T>()?;
        inputs.check(problem)?;
        outputs.check(problem)?;
        let mut memory = OnGpu(self);
        let held = HostForward::upload(&mut memory, (problem, half, false), inputs, outputs)?;
        let workspace = self.workspace(self.forward_workspace_bytes(problem))?;
        // SAFETY: `held` has for each tensor a buffer of its own on this GPU, as long as the host's storage, which
        // `check` found long enough; it lives until the stream is done, as the workspace does.
        unsafe { self.forward_on(self.stream(), &held.call(workspace.ptr())) }?;
        self.stream().synchronize()?;
        Ok(held.download(&memory, outputs)?)
    }

    /// dq, dk and dv of host tensors; waits for them. Tensors as in [`Gradients`], which may be f32.
    ///
    /// # Errors
    /// An [`EngineError`]. Nothing is written then, unless the driver fails between two downloads.
    pub fn backward<T: Element, R: Element + ResultOf<T>>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, R>,
    ) -> Result<(), EngineError> {
        let half = half::<T>()?;
        inputs.check(problem)?;
        gradients.check(problem)?;
        let mut memory = OnGpu(self);
        let held = HostBackward::upload(&mut memory, (problem, half, false), inputs, gradients)?;
        let deterministic = self.is_deterministic();
        let workspace = self.workspace(self.backward_workspace_bytes(problem, deterministic))?;
        // SAFETY: as in `forward`; the workspace is as large as the plan asks, and lives as long.
        unsafe { self.backward_on(self.stream(), &held.call(workspace.ptr(), deterministic)) }?;
        self.stream().synchronize()?;
        Ok(held.download(&memory, gradients)?)
    }
}
