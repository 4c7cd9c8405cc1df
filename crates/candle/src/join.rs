//! How gradients find a bias and sinks: candle's operators have three operands, attention up to five.
//!
//! v passes through a node of its own, which bias and sinks join. Forward it is a copy; backward it hands on dv, and gives
//! bias and sinks what the operator behind it, its only reader, has left for them.

use crate::op::Op;
use crate::scores::{Operands, Wanted};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout as Lies, Result, Shape as Dims, Tensor, bail};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{ThreadId, current};

/// The gradients of what scores are made of.
#[derive(Debug, Default)]
pub(crate) struct ScoreGradients {
    pub(crate) dbias: Option<Tensor>,
    pub(crate) dsinks: Option<Tensor>,
}

/// Where an operator leaves gradients for the node before it. candle walks a graph on one thread, the operator and then the
/// node, and threads may walk one graph at once: each has a place.
#[derive(Debug, Default)]
pub(crate) struct Left(Mutex<HashMap<ThreadId, ScoreGradients>>);

impl Left {
    /// In place of what a walk that failed has left.
    pub(crate) fn leave(&self, gradients: ScoreGradients) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(current().id(), gradients);
    }

    fn take(&self) -> Result<ScoreGradients> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&current().id()) {
            Some(gradients) => Ok(gradients),
            None => bail!("signflash: the gradients of a bias or of sinks are asked for before attention's"),
        }
    }
}

/// v, with the bias and the sinks that have gradients; and where these are left. Without any it is v itself.
pub(crate) fn join(op: &Op, v: &Tensor) -> Result<(Tensor, Option<Arc<Left>>)> {
    let (Operands { bias, sinks, .. }, Wanted { dbias, dsinks }) = (&op.operands, op.wanted);
    if !dbias && !dsinks {
        return Ok((v.clone(), None));
    }
    let left = Arc::new(Left::default());
    // In the place of one that has no gradient v stands again, and gets none for it.
    let bias = bias.as_ref().filter(|_| dbias).unwrap_or(v);
    let sinks = sinks.as_ref().filter(|_| dsinks).unwrap_or(v);
    Ok((v.apply_op3(bias, sinks, Join(left.clone()))?, Some(left)))
}

struct Join(Arc<Left>);

impl CustomOp3 for Join {
    fn name(&self) -> &'static str {
        "signflash-join"
    }

    fn cpu_fwd(
        &self,
        v: &CpuStorage,
        lies: &Lies,
        _: &CpuStorage,
        _: &Lies,
        _: &CpuStorage,
        _: &Lies,
    ) -> Result<(CpuStorage, Dims)> {
        Ok((dense(v, lies)?, lies.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        v: &CudaStorage,
        lies: &Lies,
        _: &CudaStorage,
        _: &Lies,
        _: &CudaStorage,
        _: &Lies,
    ) -> Result<(CudaStorage, Dims)> {
        Ok((dense(v, lies)?, lies.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dv: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ScoreGradients { dbias, dsinks } = self.0.take()?;
        Ok((Some(dv.clone()), dbias, dsinks))
    }
}

/// A dense copy.
pub(crate) fn dense<S>(storage: &S, lies: &Lies) -> Result<S>
where
    S: BackendStorage,
    S::Device: BackendDevice<Storage = S>,
{
    let mut copy = storage.device().zeros_impl(lies.shape(), storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, lies)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn each_walk_finds_what_it_has_left() {
        let left = Left::default();
        let leave = |x: f32| {
            let dsinks = Some(Tensor::new(x, &Device::Cpu).unwrap());
            left.leave(ScoreGradients { dbias: None, dsinks });
        };
        let found = || left.take().unwrap().dsinks.unwrap().to_scalar::<f32>().unwrap();
        leave(1.0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                leave(2.0);
                assert_eq!(found(), 2.0);
            });
        });
        assert_eq!(found(), 1.0, "what another thread left");
        assert!(left.take().unwrap_err().to_string().contains("asked for before attention's"));
    }
}
