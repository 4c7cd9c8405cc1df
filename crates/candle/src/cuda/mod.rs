//! On NVIDIA GPUs: candle's memory, candle's stream, our kernels. Nothing waits for the GPU.

mod scores;

use crate::call::refused;
use crate::join::ScoreGradients;
use crate::op::{Found, Given, Lse, Op, Saved, unknown_dtype};
use crate::scores::Held;
use candle_core::backend::BackendStorage as _;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr as _, DevicePtrMut as _, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout as Lies, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use scores::{BiasRoom, Views};
use signflash_core::{Description, TensorName};
use signflash_cuda::{CudaEngine, Stream};
use signflash_kernels::{BackwardCall, DeviceScoreTensor, DeviceTensor, ForwardCall, Half, Order};

/// The names of the tensors of a call, in the order of its arguments.
const NAMES: [TensorName; 5] =
    [TensorName::Q, TensorName::K, TensorName::V, TensorName::Out, TensorName::Dout];

impl Op {
    pub(crate) fn cuda_forward(&self, tensors: [(&CudaStorage, &Lies); 3]) -> Result<CudaStorage> {
        match tensors[0].0.dtype() {
            DType::F16 => self.forward_of::<f16>(tensors, Half::F16),
            DType::BF16 => self.forward_of::<bf16>(tensors, Half::Bf16),
            other => unknown_dtype(other, "a GPU", "f16 or bf16"),
        }
    }

    pub(crate) fn cuda_backward(&self, device: &CudaDevice, given: &Given<'_>) -> Result<Found> {
        match given.q.dtype() {
            DType::F16 => self.backward_of::<f16>(device, given, Half::F16),
            DType::BF16 => self.backward_of::<bf16>(device, given, Half::Bf16),
            other => unknown_dtype(other, "a GPU", "f16 or bf16"),
        }
    }

    fn forward_of<T: CudaDType + DeviceRepr>(
        &self,
        tensors: [(&CudaStorage, &Lies); 3],
        half: Half,
    ) -> Result<CudaStorage> {
        let (problem, shape) = (&self.settings.problem, self.settings.problem.shape());
        if self.settings.probs && problem.is_packed() {
            bail!(
                "signflash: probs of packed sequences are not made on a GPU; ask for one sequence at a time"
            )
        }
        let device = tensors[0].0.device().clone();
        let (engine, stream) = (engine(&device)?, device.cuda_stream());
        let mut out = room::<T>(&device, shape.out().iter().product())?;
        let mut lse = room::<f32>(&device, shape.lse_len())?;
        let mut probs = match self.settings.probs {
            true => Some(room::<T>(&device, shape.probs().iter().product())?),
            false => None,
        };
        let mut workspace = room::<u8>(&device, engine.forward_workspace_bytes(problem) as usize)?;
        let lengths = self.lengths(&device)?;
        let held = self.operands.held();
        let score_views = Views::of(&held)?;
        {
            let scores = score_views.at(&stream);
            let views = [0, 1, 2].map(|n| view::<T>(tensors[n].0, tensors[n].1));
            let [q, k, v] = views;
            let (q, k, v) = (q?, k?, v?);
            let at = [&q, &k, &v].map(|view| view.device_ptr(&stream));
            let inputs = [0, 1, 2].map(|n| self.tensor(at[n].0, tensors[n].1, NAMES[n]));
            let [q, k, v] = inputs;
            let (out_at, _out) = out.device_ptr_mut(&stream);
            let (lse_at, _lse) = lse.device_ptr_mut(&stream);
            let (workspace_at, _workspace) = workspace.device_ptr_mut(&stream);
            let probs_at = probs.as_mut().map(|probs| probs.device_ptr_mut(&stream));
            let lengths_at =
                lengths.as_ref().map(|lengths| lengths.each_ref().map(|x| x.device_ptr(&stream)));
            let mut call =
                ForwardCall::new(problem, half, [q?, k?, v?], self.dense(out_at, shape.out()), lse_at)
                    .with_workspace(workspace_at)
                    .with_scores(scores.on_device(&held))
                    .with_probs(
                        probs_at
                            .as_ref()
                            .map(|at| DeviceTensor::dense(at.0, shape.probs(), Order::HeadsFirst)),
                    );
            if let Some([lengths_q, lengths_k]) = &lengths_at {
                call = call.with_cu_seqlens([lengths_q.0, lengths_k.0]);
            }
            // SAFETY: the stream is candle's, of the primary context, and lives while `stream` does.
            let on = unsafe { Stream::from_raw(engine.device(), stream.cu_stream() as u64) };
            // SAFETY: candle's layouts address its memory, `tensor` has judged them against the problem, and what is
            // written was made just now. The guards order this with work of other streams, and memory that is freed
            // later is freed in the stream's order.
            unsafe { engine.forward_on(&on, &call) }.map_err(refused)?;
        }
        let lse = tensor_of(lse, &device, &[shape.batch, shape.num_heads, shape.seqlen_q]);
        let probs = probs.map(|probs| tensor_of(probs, &device, &shape.probs()));
        self.save(Saved { lse: Lse::Cuda(lse), probs })?;
        Ok(CudaStorage::wrap_cuda_slice(out, device))
    }

    fn backward_of<T: CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        given: &Given<'_>,
        half: Half,
    ) -> Result<Found> {
        let (problem, shape) = (&self.settings.problem, self.settings.problem.shape());
        let Lse::Cuda(lse) = &self.saved()?.lse else {
            bail!("signflash: the forward ran on a CPU, the backward's tensors lie on a GPU")
        };
        let (engine, stream) = (engine(device)?, device.cuda_stream());
        let sizes = [shape.q(), shape.k(), shape.v()];
        let [dq, dk, dv] = sizes.map(|sizes| room::<T>(device, sizes.iter().product()));
        let (mut dq, mut dk, mut dv) = (dq?, dk?, dv?);
        let bytes = engine.backward_workspace_bytes(problem, self.settings.deterministic);
        let mut workspace = room::<u8>(device, bytes as usize)?;
        let lengths = self.lengths(device)?;
        let guards = [given.q, given.k, given.v, given.out, given.dout].map(Held::of);
        let lse_guard = Held::of(lse);
        let dlse_guard = given.dlse.map(Held::of);
        let held = self.operands.held();
        let score_views = Views::of(&held)?;
        let bias = problem.bias().filter(|_| self.wanted.dbias);
        let mut dbias = bias.as_ref().map(|bias| BiasRoom::of(device, bias)).transpose()?;
        let mut dsinks = match self.wanted.dsinks {
            true => Some(room::<f32>(device, shape.num_heads)?),
            false => None,
        };
        {
            let scores = score_views.at(&stream);
            let views = guards.each_ref().map(|held| view::<T>(on_gpu(held.storage())?, held.lies));
            let [q, k, v, out, dout] = views;
            let views = [q?, k?, v?, out?, dout?];
            let at = views.each_ref().map(|view| view.device_ptr(&stream));
            let [q, k, v, out, dout] =
                [0, 1, 2, 3, 4].map(|n| self.tensor(at[n].0, guards[n].lies, NAMES[n]));
            let lse = on_gpu(lse_guard.storage())?.as_cuda_slice::<f32>()?;
            let (lse_at, _lse) = lse.device_ptr(&stream);
            let (dq_at, _dq) = dq.device_ptr_mut(&stream);
            let (dk_at, _dk) = dk.device_ptr_mut(&stream);
            let (dv_at, _dv) = dv.device_ptr_mut(&stream);
            let (workspace_at, _workspace) = workspace.device_ptr_mut(&stream);
            let lengths_at =
                lengths.as_ref().map(|lengths| lengths.each_ref().map(|x| x.device_ptr(&stream)));
            let dlse = dlse_guard.as_ref().map(|held| view::<f32>(on_gpu(held.storage())?, held.lies));
            let dlse = dlse.transpose()?;
            let dlse_at = dlse.as_ref().map(|dlse| dlse.device_ptr(&stream));
            let dbias_at = dbias.as_mut().map(|dbias| dbias.at(&stream));
            let dsinks_at = dsinks.as_mut().map(|dsinks| dsinks.device_ptr_mut(&stream));
            let mut forward = ForwardCall::new(problem, half, [q?, k?, v?], out?, lse_at)
                .with_scores(scores.on_device(&held));
            if let Some([lengths_q, lengths_k]) = &lengths_at {
                forward = forward.with_cu_seqlens([lengths_q.0, lengths_k.0]);
            }
            let written = [(dq_at, sizes[0]), (dk_at, sizes[1]), (dv_at, sizes[2])];
            let written = written.map(|(at, sizes)| self.dense(at, sizes));
            let dbias_at = dbias_at.as_ref().zip(bias).map(|((at, _), bias)| {
                DeviceScoreTensor::of(*at, signflash_core::contiguous_strides(bias.shape))
            });
            let call = BackwardCall::of(&forward, dout?, written, workspace_at)
                .with_dlse(dlse_at.as_ref().map(|at| at.0))
                .with_dbias(dbias_at)
                .with_dsinks(dsinks_at.as_ref().map(|at| at.0))
                .with_deterministic(self.settings.deterministic);
            // SAFETY: as in the forward.
            let on = unsafe { Stream::from_raw(engine.device(), stream.cu_stream() as u64) };
            // SAFETY: as in the forward; out and lse are that forward's, and the gradients were made just now.
            unsafe { engine.backward_on(&on, &call) }.map_err(refused)?;
        }
        let dims = sizes.map(|sizes| self.settings.layout.swap(sizes));
        let dbias = dbias.zip(bias).map(|(dbias, bias)| dbias.tensor(device, &bias.shape));
        let dsinks = dsinks.map(|dsinks| tensor_of(dsinks, device, &[shape.num_heads]));
        Ok(Found {
            dq: tensor_of(dq, device, &dims[0]),
            dk: tensor_of(dk, device, &dims[1]),
            dv: tensor_of(dv, device, &dims[2]),
            scores: ScoreGradients { dbias, dsinks },
        })
    }

    /// A tensor of candle's at an address, judged against the problem.
    fn tensor(&self, ptr: u64, lies: &Lies, name: TensorName) -> Result<DeviceTensor> {
        let [sizes, strides] = self.settings.layout.read(lies)?;
        let description = Description { tensor: name, shape: sizes, strides };
        description.check(self.settings.problem.shape_of(name)).map_err(refused)?;
        Ok(DeviceTensor::of(ptr, strides, Order::RowsFirst))
    }

    /// A dense tensor of (batch, seqlen, heads, head_dim) elements, stored in the layout's order.
    fn dense(&self, ptr: u64, sizes: [usize; 4]) -> DeviceTensor {
        let layout = self.settings.layout;
        let strides = signflash_core::contiguous_strides(layout.swap(sizes));
        DeviceTensor::of(ptr, layout.swap(strides), Order::RowsFirst)
    }

    /// Where packed sequences begin, on the GPU.
    fn lengths(&self, device: &CudaDevice) -> Result<Option<[CudaSlice<u32>; 2]>> {
        match self.settings.problem.cu_seqlens() {
            Some([q, k]) => Ok(Some([device.clone_htod(q)?, device.clone_htod(k)?])),
            None => Ok(None),
        }
    }
}

/// The engine of a GPU. It uses the primary context, as candle does.
fn engine(device: &CudaDevice) -> Result<CudaEngine> {
    CudaEngine::shared(device.cuda_stream().context().ordinal() as u32).map_err(refused)
}

/// Memory for so many elements; of none, for one, since the driver gives no memory of no bytes.
fn room<T: DeviceRepr>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: numbers of any bits are numbers, and the kernels write every element before others read it.
    unsafe { device.alloc::<T>(len.max(1)) }
}

fn on_gpu(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("signflash: the tensors of one call lie on different devices"),
    }
}

/// What a layout addresses begins here.
fn view<'a, T: CudaDType>(
    storage: &'a CudaStorage,
    lies: &Lies,
) -> Result<candle_core::cuda_backend::cudarc::driver::CudaView<'a, T>> {
    Ok(storage.as_cuda_slice::<T>()?.slice(lies.start_offset()..))
}

/// A dense tensor that no gradient flows through.
fn tensor_of<T: CudaDType>(slice: CudaSlice<T>, device: &CudaDevice, dims: &[usize]) -> Tensor {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Tensor::from_storage(storage, dims, BackpropOp::none(), false)
}
