//! The operator that candle's graph holds.

use crate::call::{Settings, dense_rows};
use crate::join::{Left, ScoreGradients};
use crate::scores::{Operands, Wanted};
#[cfg(feature = "cuda")]
use candle_core::Device;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape as Dims, Tensor, bail};
use half::{bf16, f16};
use std::sync::{Arc, OnceLock};

/// One call. candle has no place for what a forward leaves to its backward, so it lies here: the graph keeps the operator
/// for as long as it can be differentiated, and nothing is recomputed.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) settings: Settings,
    pub(crate) operands: Operands,
    pub(crate) wanted: Wanted,
    saved: OnceLock<Saved>,
}

/// What a forward computes besides out.
#[derive(Debug)]
pub(crate) struct Saved {
    /// (batch, num_heads, seqlen_q), f32, dense.
    pub(crate) lse: Lse,
    /// (batch, num_heads, seqlen_q, seqlen_k), if it was asked for.
    pub(crate) probs: Option<Tensor>,
}

/// What a backward gives.
pub(crate) struct Found {
    pub(crate) dq: Tensor,
    pub(crate) dk: Tensor,
    pub(crate) dv: Tensor,
    pub(crate) scores: ScoreGradients,
}

/// What a backward reads besides what its operator holds.
pub(crate) struct Given<'a> {
    pub(crate) q: &'a Tensor,
    pub(crate) k: &'a Tensor,
    pub(crate) v: &'a Tensor,
    pub(crate) out: &'a Tensor,
    pub(crate) dout: &'a Tensor,
    /// (batch, num_heads, seqlen_q), f32, dense, if the loss depends on lse.
    pub(crate) dlse: Option<&'a Tensor>,
}

/// lse, where the forward ran.
#[derive(Debug)]
pub(crate) enum Lse {
    Cpu(Vec<f32>),
    #[cfg(feature = "cuda")]
    Cuda(Tensor),
}

impl Lse {
    pub(crate) fn on_cpu(&self) -> Result<&[f32]> {
        match self {
            Self::Cpu(lse) => Ok(lse),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => {
                bail!(
                    "signflash: the forward ran on a GPU, the backward's or lse's tensors lie in host memory"
                )
            }
        }
    }
}

impl Op {
    pub(crate) fn new(settings: Settings, operands: Operands) -> Self {
        Self { settings, wanted: operands.wanted(), operands, saved: OnceLock::new() }
    }

    pub(crate) fn probs(&self) -> Result<Tensor> {
        match &self.saved()?.probs {
            Some(probs) => Ok(probs.clone()),
            None => bail!("signflash: the forward made no probs"),
        }
    }

    pub(crate) fn saved(&self) -> Result<&Saved> {
        match self.saved.get() {
            Some(saved) => Ok(saved),
            None => bail!("signflash: the backward came before the forward"),
        }
    }

    pub(crate) fn save(&self, saved: Saved) -> Result<()> {
        match self.saved.set(saved) {
            Ok(()) => Ok(()),
            Err(_) => bail!("signflash: the forward of one call ran twice"),
        }
    }

    /// The gradients where the tensors lie.
    pub(crate) fn backward(&self, given: &Given<'_>) -> Result<Found> {
        match (given.q.device(), given.q.dtype()) {
            #[cfg(feature = "cuda")]
            (Device::Cuda(device), _) => self.cuda_backward(device, given),
            (_, DType::F32) => self.cpu_backward::<f32>(given),
            (_, DType::F16) => self.cpu_backward::<f16>(given),
            (_, DType::BF16) => self.cpu_backward::<bf16>(given),
            (_, other) => unknown_dtype(other, "a CPU", "f32, f16 or bf16"),
        }
    }

    /// The sizes of out in the order of the caller's dimensions.
    pub(crate) fn out_dims(&self) -> Dims {
        Dims::from(self.settings.layout.swap(self.settings.problem.shape().out()).as_slice())
    }
}

/// The dtypes that there are kernels for.
pub(crate) fn unknown_dtype<T>(dtype: DType, device: &str, known: &str) -> Result<T> {
    bail!("signflash: q, k and v must be {known} on {device}, got {dtype:?}; convert them with to_dtype")
}

/// The node of out in candle's graph.
pub(crate) struct Attend {
    pub(crate) op: Arc<Op>,
    /// For the gradients of a bias and of sinks.
    pub(crate) left: Option<Arc<Left>>,
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "signflash-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Dims)> {
        let tensors = [(q, q_layout), (k, k_layout), (v, v_layout)];
        let out = match q {
            CpuStorage::F32(_) => self.op.cpu_forward::<f32>(tensors),
            CpuStorage::F16(_) => self.op.cpu_forward::<f16>(tensors),
            CpuStorage::BF16(_) => self.op.cpu_forward::<bf16>(tensors),
            other => {
                unknown_dtype(candle_core::backend::BackendStorage::dtype(other), "a CPU", "f32, f16 or bf16")
            }
        }?;
        Ok((out, self.op.out_dims()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Dims)> {
        let out = self.op.cuda_forward([(q, q_layout), (k, k_layout), (v, v_layout)])?;
        Ok((out, self.op.out_dims()))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Dims)> {
        bail!(
            "signflash: tensors lie on a GPU, and signflash-candle was built without its feature cuda; turn it on"
        )
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dout = dense_rows(dout)?;
        let Found { dq, dk, dv, scores } =
            self.op.backward(&Given { q, k, v, out, dout: &dout, dlse: None })?;
        if let Some(left) = &self.left {
            left.leave(scores);
        }
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}
