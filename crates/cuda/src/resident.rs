//! Attention whose tensors stay on the GPU from call to call.

use crate::buffer::DeviceBuffer;
use crate::doing::Doing;
use crate::engine::{CudaEngine, EngineError};
use crate::error::CudaError;
use crate::host::OnGpu;
use signflash_core::{Bias, Element, Problem, ScoreInputs, contiguous_strides};
use signflash_kernels::{
    BackwardCall, DeviceScoreTensor, DeviceTensor, ForwardCall, Half, HeldScores, Order, half_of,
};
use std::marker::PhantomData;

/// Operands and results of one problem in the GPU's memory, stored as (batch, heads, seqlen, head_dim) without gaps.
/// Calls put work into the engine's stream and do not wait; reading a result waits.
///
/// ```no_run
/// use signflash_core::{Problem, Shape, bf16};
/// use signflash_cuda::{CudaEngine, Device, Resident};
/// let shape = Shape::new(1, 3, 5).heads(2, 1).head_dim(8);
/// let engine = CudaEngine::new(&Device::open(0)?)?;
/// let (q, k) = ([bf16::ONE; 48], [bf16::ONE; 40]);
/// let resident = Resident::new(&engine, Problem::builder(shape).build()?, [&q, &k, &k, &q])?;
/// resident.forward()?;
/// resident.backward()?;
/// assert_eq!(resident.out()?, [bf16::ONE; 48]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Resident<'a, T> {
    engine: &'a CudaEngine,
    problem: Problem,
    half: Half,
    q: DeviceBuffer,
    k: DeviceBuffer,
    v: DeviceBuffer,
    dout: DeviceBuffer,
    dlse: Option<DeviceBuffer>,
    out: DeviceBuffer,
    lse: DeviceBuffer,
    dq: DeviceBuffer,
    dk: DeviceBuffer,
    dv: DeviceBuffer,
    workspace: DeviceBuffer,
    forward_workspace: DeviceBuffer,
    /// Of packed sequences: cu_seqlens_q and cu_seqlens_k.
    begins: Option<[DeviceBuffer; 2]>,
    scores: Option<HeldScores<DeviceBuffer>>,
    /// Dense, in its dtype, where it is asked for.
    dbias: Option<DeviceBuffer>,
    /// Of every problem with sinks.
    dsinks: Option<DeviceBuffer>,
    element: PhantomData<T>,
}

impl<'a, T: Element> Resident<'a, T> {
    /// Uploads q, k, v and dout, in this order, and where packed sequences begin, and makes room for the results.
    ///
    /// # Errors
    /// [`EngineError::Dtype`]; [`CudaError::Length`] if a tensor has not the problem's size; the driver's. Of packed
    /// sequences the host must know the lengths: [`CallError::NoCuSeqlens`](signflash_kernels::CallError) comes with the
    /// calls otherwise.
    pub fn new(
        engine: &'a CudaEngine,
        problem: Problem,
        [q, k, v, dout]: [&[T]; 4],
    ) -> Result<Self, EngineError> {
        let half = half_of(T::DTYPE).ok_or(EngineError::Dtype(T::DTYPE))?;
        let shape = problem.shape();
        let bytes = |shape: [usize; 4]| shape.into_iter().product::<usize>() * size_of::<T>();
        let [of_q, of_k, of_v, of_out] = [shape.q(), shape.k(), shape.v(), shape.out()].map(bytes);
        let up = |data: &[T], device: usize| upload(engine, bytemuck::cast_slice(data), device);
        let room = |bytes: usize| DeviceBuffer::alloc(engine.device(), bytes);
        let workspace = engine.backward_workspace_bytes(&problem, engine.is_deterministic());
        let forward_workspace = engine.forward_workspace_bytes(&problem);
        let up_begins = |numbers: &[u32]| upload(engine, bytemuck::cast_slice(numbers), size_of_val(numbers));
        let begins = match problem.cu_seqlens() {
            Some([q, k]) => Some([up_begins(q)?, up_begins(k)?]),
            None => None,
        };
        Ok(Self {
            engine,
            half,
            q: up(q, of_q)?,
            k: up(k, of_k)?,
            v: up(v, of_v)?,
            dout: up(dout, of_out)?,
            dlse: None,
            out: room(of_out)?,
            lse: room(4 * shape.lse_len())?,
            dq: room(of_q)?,
            dk: room(of_k)?,
            dv: room(of_v)?,
            workspace: room(workspace as usize)?,
            forward_workspace: room(forward_workspace as usize)?,
            begins,
            scores: None,
            dbias: None,
            dsinks: problem.sinks().then(|| room(4 * shape.num_heads)).transpose()?,
            problem,
            element: PhantomData,
        })
    }

    /// The same with a gradient of lse, (batch, num_heads, seqlen_q), which is uploaded: the loss depends on lse, too.
    ///
    /// ```no_run
    /// use signflash_core::{Problem, Shape, bf16};
    /// use signflash_cuda::{CudaEngine, Device, Resident};
    /// let shape = Shape::new(1, 3, 5).heads(2, 1).head_dim(8);
    /// let engine = CudaEngine::new(&Device::open(0)?)?;
    /// let (q, k) = ([bf16::ONE; 48], [bf16::ONE; 40]);
    /// let resident = Resident::new(&engine, Problem::builder(shape).build()?, [&q, &k, &k, &q])?;
    /// let resident = resident.with_dlse(&[1.0; 6])?;
    /// resident.forward()?;
    /// resident.backward()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`CudaError::Length`] if it has not lse's size; the driver's.
    pub fn with_dlse(self, dlse: &[f32]) -> Result<Self, CudaError> {
        let dlse = upload(self.engine, bytemuck::cast_slice(dlse), self.lse.len_bytes())?;
        Ok(Self { dlse: Some(dlse), ..self })
    }

    /// The same with what else the problem's scores are made of, which is uploaded; and with dbias, if asked for.
    ///
    /// # Errors
    /// [`EngineError::Problem`] if it does not fit the problem; the driver's.
    pub fn with_scores(self, scores: &ScoreInputs<'_>, dbias: bool) -> Result<Self, EngineError> {
        scores.check(&self.problem)?;
        let bias = self.problem.bias().filter(|_| dbias);
        let bytes = |bias: Bias| bias.shape.into_iter().product::<usize>() * bias.dtype.size_bytes();
        let dbias = bias.map(|bias| DeviceBuffer::alloc(self.engine.device(), bytes(bias))).transpose()?;
        let scores = Some(HeldScores::upload(&mut OnGpu(self.engine), scores)?);
        Ok(Self { scores, dbias, ..self })
    }

    /// The forward's call.
    fn call(&self) -> ForwardCall<'_> {
        let (shape, problem) = (self.problem.shape(), &self.problem);
        let inputs = [bhsd(&self.q, shape.q()), bhsd(&self.k, shape.k()), bhsd(&self.v, shape.v())];
        let call = ForwardCall::new(problem, self.half, inputs, bhsd(&self.out, shape.out()), self.lse.ptr())
            .with_workspace(self.forward_workspace.ptr());
        let call = match &self.scores {
            Some(held) => call.with_scores(held.scores()),
            None => call,
        };
        match &self.begins {
            Some(begins) => call.with_cu_seqlens(begins.each_ref().map(DeviceBuffer::ptr)),
            None => call,
        }
    }

    /// out and lse.
    ///
    /// # Errors
    /// As [`CudaEngine::forward_on`].
    pub fn forward(&self) -> Result<(), EngineError> {
        // SAFETY: `new` made each buffer with the size of its shape, for its own use. Freeing a buffer waits for the
        // GPU.
        unsafe { self.engine.forward_on(self.engine.stream(), &self.call()) }
    }

    /// dq, dk and dv, from the results of the last forward.
    ///
    /// # Errors
    /// As [`CudaEngine::backward_on`].
    pub fn backward(&self) -> Result<(), EngineError> {
        let shape = self.problem.shape();
        let gradients = [bhsd(&self.dq, shape.q()), bhsd(&self.dk, shape.k()), bhsd(&self.dv, shape.v())];
        let dout = bhsd(&self.dout, shape.out());
        let call = BackwardCall::of(&self.call(), dout, gradients, self.workspace.ptr())
            .with_dlse(self.dlse.as_ref().map(DeviceBuffer::ptr))
            .with_dbias(
                self.dbias
                    .as_ref()
                    .zip(self.problem.bias())
                    .map(|(dbias, bias)| DeviceScoreTensor::of(dbias.ptr(), contiguous_strides(bias.shape))),
            )
            .with_dsinks(self.dsinks.as_ref().map(DeviceBuffer::ptr))
            .with_deterministic(self.engine.is_deterministic());
        // SAFETY: as in `forward`; the workspace is as large as the engine asks.
        unsafe { self.engine.backward_on(self.engine.stream(), &call) }
    }

    /// Bytes beyond operands and results.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.len_bytes() + self.forward_workspace.len_bytes()
    }

    /// out, when it is there.
    ///
    /// # Errors
    /// The driver's.
    pub fn out(&self) -> Result<Vec<T>, CudaError> {
        read(self.engine, &self.out)
    }

    /// lse, when it is there.
    ///
    /// # Errors
    /// The driver's.
    pub fn lse(&self) -> Result<Vec<f32>, CudaError> {
        read(self.engine, &self.lse)
    }

    /// dq, when it is there.
    ///
    /// # Errors
    /// The driver's.
    pub fn dq(&self) -> Result<Vec<T>, CudaError> {
        read(self.engine, &self.dq)
    }

    /// dk, when it is there.
    ///
    /// # Errors
    /// The driver's.
    pub fn dk(&self) -> Result<Vec<T>, CudaError> {
        read(self.engine, &self.dk)
    }

    /// dv, when it is there.
    ///
    /// # Errors
    /// The driver's.
    pub fn dv(&self) -> Result<Vec<T>, CudaError> {
        read(self.engine, &self.dv)
    }

    /// dbias, when it is there, of the bias's dtype, which is `B`; empty if it was not asked for.
    ///
    /// # Errors
    /// The driver's.
    pub fn dbias<B: Element>(&self) -> Result<Vec<B>, CudaError> {
        self.dbias.as_ref().map_or(Ok(vec![]), |dbias| read(self.engine, dbias))
    }

    /// dsinks, when it is there; empty if there are no sinks.
    ///
    /// # Errors
    /// The driver's.
    pub fn dsinks(&self) -> Result<Vec<f32>, CudaError> {
        self.dsinks.as_ref().map_or(Ok(vec![]), |dsinks| read(self.engine, dsinks))
    }
}

/// A buffer's elements, when they are there.
fn read<T: Element>(engine: &CudaEngine, buffer: &DeviceBuffer) -> Result<Vec<T>, CudaError> {
    let mut host = vec![T::default(); buffer.len_bytes() / size_of::<T>()];
    buffer.copy_to_host(engine.stream(), bytemuck::cast_slice_mut(&mut host))?;
    Ok(host)
}

/// Host bytes in a buffer that should have so many.
fn upload(engine: &CudaEngine, data: &[u8], device: usize) -> Result<DeviceBuffer, CudaError> {
    let host = data.len();
    if host != device {
        return Err(CudaError::Length { doing: Doing::Copy { bytes: host }, device, host });
    }
    DeviceBuffer::from_host(engine.stream(), data)
}

/// A tensor (batch, seqlen, heads, head_dim) that is stored as (batch, heads, seqlen, head_dim).
fn bhsd(buffer: &DeviceBuffer, [batch, seqlen, heads, head_dim]: [usize; 4]) -> DeviceTensor {
    DeviceTensor::dense(buffer.ptr(), [batch, heads, seqlen, head_dim], Order::HeadsFirst)
}
