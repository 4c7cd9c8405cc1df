//! Attention of host tensors: upload, run, download.

use crate::buffer::DeviceBuffer;
use crate::engine::{CudaEngine, EngineError};
use crate::error::CudaError;
use signflash_core::{Element, GradInputs, Gradients, Inputs, Outputs, Problem, TensorMut, TensorRef};
use signflash_kernels::{BackwardCall, DeviceTensor, ForwardCall, Half, half_of};

/// A host tensor's storage on the GPU, gaps included.
struct Uploaded {
    buffer: DeviceBuffer,
    strides: [usize; 4],
}

impl Uploaded {
    fn new<T: Element>(engine: &CudaEngine, tensor: &TensorRef<'_, T>) -> Result<Self, CudaError> {
        let buffer = DeviceBuffer::from_host(engine.stream(), bytemuck::cast_slice(tensor.data))?;
        Ok(Self { buffer, strides: tensor.strides })
    }

    /// As (batch, row, head, column).
    fn rows_first(&self) -> DeviceTensor {
        let [batch_stride, row_stride, head_stride] = [0, 1, 2].map(|i| self.strides[i] as u64);
        DeviceTensor { ptr: self.buffer.ptr(), batch_stride, row_stride, head_stride }
    }

    /// As (batch, head, row, column), which probs are.
    fn heads_first(&self) -> DeviceTensor {
        let [batch_stride, head_stride, row_stride] = [0, 1, 2].map(|i| self.strides[i] as u64);
        DeviceTensor { ptr: self.buffer.ptr(), batch_stride, row_stride, head_stride }
    }

    fn download<T: Element>(&self, engine: &CudaEngine, to: &mut TensorMut<'_, T>) -> Result<(), CudaError> {
        self.buffer.copy_to_host(engine.stream(), bytemuck::cast_slice_mut(to.data))
    }
}

fn half<T: Element>() -> Result<Half, EngineError> {
    half_of(T::DTYPE).ok_or(EngineError::Dtype(T::DTYPE))
}

impl CudaEngine {
    /// out, lse and, if asked for, probs of host tensors; waits for them. Tensors as in [`Outputs`].
    ///
    /// # Errors
    /// An [`EngineError`]. Nothing is written then, unless the driver fails between two downloads.
    pub fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), EngineError> {
        let half = half::<T>()?;
        inputs.check(problem)?;
        outputs.check(problem)?;
        let up = |tensor: &TensorRef<'_, T>| Uploaded::new(self, tensor);
        let (q, k, v, out) = (up(&inputs.q)?, up(&inputs.k)?, up(&inputs.v)?, up(&outputs.out.as_ref())?);
        let lse = DeviceBuffer::alloc(self.device(), size_of_val(outputs.lse))?;
        let probs = outputs.probs.as_ref().map(|probs| up(&probs.as_ref())).transpose()?;
        let call = ForwardCall {
            problem,
            half,
            q: q.rows_first(),
            k: k.rows_first(),
            v: v.rows_first(),
            out: out.rows_first(),
            lse: lse.ptr(),
            probs: probs.as_ref().map(Uploaded::heads_first),
            seed_and_offset_ptr: 0,
        };
        // SAFETY: each tensor has its own storage on this GPU, as long as the host's, which `check` found long enough;
        // they live until the stream is done, which the downloads wait for.
        unsafe { self.forward_on(self.stream(), &call)? };
        self.stream().synchronize()?;
        out.download(self, &mut outputs.out)?;
        lse.copy_to_host(self.stream(), bytemuck::cast_slice_mut(outputs.lse))?;
        if let (Some(from), Some(to)) = (&probs, &mut outputs.probs) {
            from.download(self, to)?;
        }
        Ok(())
    }

    /// dq, dk and dv of host tensors; waits for them. Tensors as in [`Gradients`].
    ///
    /// # Errors
    /// An [`EngineError`]. Nothing is written then, unless the driver fails between two downloads.
    pub fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), EngineError> {
        let half = half::<T>()?;
        inputs.check(problem)?;
        gradients.check(problem)?;
        let up = |tensor: &TensorRef<'_, T>| Uploaded::new(self, tensor);
        let (q, k, v) = (up(&inputs.inputs.q)?, up(&inputs.inputs.k)?, up(&inputs.inputs.v)?);
        let (out, dout) = (up(&inputs.out)?, up(&inputs.dout)?);
        let up_rows = |rows| DeviceBuffer::from_host(self.stream(), bytemuck::cast_slice::<f32, u8>(rows));
        let (lse, dlse) = (up_rows(inputs.lse)?, inputs.dlse.map(up_rows).transpose()?);
        let Gradients { dq: to_dq, dk: to_dk, dv: to_dv, .. } = gradients;
        let (dq, dk, dv) = (up(&to_dq.as_ref())?, up(&to_dk.as_ref())?, up(&to_dv.as_ref())?);
        let deterministic = self.is_deterministic();
        let workspace = self.workspace(self.backward_workspace_bytes(problem, deterministic))?;
        let call = BackwardCall {
            problem,
            half,
            q: q.rows_first(),
            k: k.rows_first(),
            v: v.rows_first(),
            out: out.rows_first(),
            lse: lse.ptr(),
            dout: dout.rows_first(),
            dlse: dlse.as_ref().map(DeviceBuffer::ptr),
            dq: dq.rows_first(),
            dk: dk.rows_first(),
            dv: dv.rows_first(),
            workspace: workspace.ptr(),
            deterministic,
            seed_and_offset_ptr: 0,
        };
        // SAFETY: as in `forward`; the workspace is as large as the plan asks.
        unsafe { self.backward_on(self.stream(), &call)? };
        self.stream().synchronize()?;
        dq.download(self, to_dq)?;
        dk.download(self, to_dk)?;
        Ok(dv.download(self, to_dv)?)
    }
}
