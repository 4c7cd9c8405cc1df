//! lse as a result that gradients flow through.

#[cfg(feature = "cuda")]
use crate::join::dense;
use crate::join::{Left, join};
#[cfg(feature = "cuda")]
use crate::op::Lse;
use crate::op::{Found, Given, Op};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout as Lies, Result, Shape as Dims, Tensor};
use std::sync::Arc;

/// The node of lse. An operator of candle's has one result, so lse has a node of its own; if a loss depends on it, it runs a
/// backward of its own.
struct LogSumExp {
    op: Arc<Op>,
    left: Option<Arc<Left>>,
}

/// lse, (batch, num_heads, seqlen_q), of an operator that has run with these operands.
pub(crate) fn lse_of(op: &Arc<Op>, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
    let (v, left) = join(op, v)?;
    q.apply_op3(k, &v, LogSumExp { op: op.clone(), left })
}

impl LogSumExp {
    fn dims(&self) -> Dims {
        let shape = self.op.settings.problem.shape();
        Dims::from((shape.batch, shape.num_heads, shape.seqlen_q))
    }
}

impl CustomOp3 for LogSumExp {
    fn name(&self) -> &'static str {
        "signflash-lse"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Lies,
        _: &CpuStorage,
        _: &Lies,
        _: &CpuStorage,
        _: &Lies,
    ) -> Result<(CpuStorage, Dims)> {
        let lse = self.op.saved()?.lse.on_cpu()?;
        Ok((CpuStorage::F32(lse.to_vec()), self.dims()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Lies,
        _: &CudaStorage,
        _: &Lies,
        _: &CudaStorage,
        _: &Lies,
    ) -> Result<(CudaStorage, Dims)> {
        let Lse::Cuda(lse) = &self.op.saved()?.lse else {
            candle_core::bail!("signflash: the forward ran on a CPU, lse is asked for on a GPU")
        };
        let (storage, lies) = lse.storage_and_layout();
        match &*storage {
            candle_core::Storage::Cuda(storage) => Ok((dense(storage, lies)?, self.dims())),
            _ => candle_core::bail!("signflash: the tensors of one call lie on different devices"),
        }
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        dlse: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // Nothing comes through out: where its gradient is 0, out itself counts for nothing.
        let nothing = Tensor::zeros(self.op.out_dims(), q.dtype(), q.device())?;
        let dlse = dlse.contiguous()?;
        let given = Given { q, k, v, out: &nothing, dout: &nothing, dlse: Some(&dlse) };
        let Found { dq, dk, dv, scores } = self.op.backward(&given)?;
        if let Some(left) = &self.left {
            left.leave(scores);
        }
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}
