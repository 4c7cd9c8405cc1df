//! On CPUs: views of candle's memory, our engine.

use crate::call::refused;
use crate::layout::Layout;
use crate::op::{Lse, Op, Saved};
use candle_core::{CpuStorage, Device, Layout as Lies, Result, Storage, Tensor, WithDType, bail};
use signflash_core::{
    Element, GradInputs, Gradients, Inputs, Outputs, TensorMut, TensorRef, contiguous_strides,
};
use signflash_cpu::CpuEngine;

impl Op {
    pub(crate) fn cpu_forward<T: Element + WithDType>(
        &self,
        [q, k, v]: [(&CpuStorage, &Lies); 3],
    ) -> Result<CpuStorage> {
        let (problem, layout) = (&self.settings.problem, self.settings.layout);
        let shape = problem.shape();
        let inputs =
            Inputs::new(view::<T>(q.0, q.1, layout)?, view(k.0, k.1, layout)?, view(v.0, v.1, layout)?);
        let (mut out, mut lse) = (zeros(shape.out()), vec![0.0; shape.lse_len()]);
        let mut probs = self.settings.probs.then(|| zeros::<T>(problem.probs()));
        let mut outputs = Outputs::new(written(&mut out, shape.out(), layout), &mut lse);
        if let Some(probs) = &mut probs {
            outputs = outputs.probs(TensorMut::bshd(probs, problem.probs()));
        }
        CpuEngine::new().forward(problem, &inputs, &mut outputs).map_err(refused)?;
        let probs = probs.map(|probs| Tensor::from_vec(probs, &problem.probs(), &Device::Cpu)).transpose()?;
        self.save(Saved { lse: Lse::Cpu(lse), probs })?;
        Ok(T::to_cpu_storage_owned(out))
    }

    pub(crate) fn cpu_backward<T: Element + WithDType>(&self, tensors: [&Tensor; 5]) -> Result<[Tensor; 3]> {
        let (problem, layout) = (&self.settings.problem, self.settings.layout);
        let shape = problem.shape();
        let lse = match &self.saved()?.lse {
            Lse::Cpu(lse) => lse,
            #[cfg(feature = "cuda")]
            Lse::Cuda(_) => {
                bail!("signflash: the forward ran on a GPU, the backward's tensors lie in host memory")
            }
        };
        let guards = tensors.map(|tensor| tensor.storage_and_layout());
        let [q, k, v, out, dout] = guards.each_ref().map(|(storage, lies)| match &**storage {
            Storage::Cpu(storage) => view::<T>(storage, lies, layout),
            _ => bail!("signflash: the tensors of one call lie on different devices"),
        });
        let inputs = GradInputs::new(Inputs::new(q?, k?, v?), out?, lse, dout?);
        let (mut dq, mut dk, mut dv) = (zeros::<T>(shape.q()), zeros(shape.k()), zeros(shape.v()));
        let mut gradients = Gradients::new(
            written(&mut dq, shape.q(), layout),
            written(&mut dk, shape.k(), layout),
            written(&mut dv, shape.v(), layout),
        );
        CpuEngine::new().backward(problem, &inputs, &mut gradients).map_err(refused)?;
        let tensor = |data, sizes| Tensor::from_vec(data, &layout.swap(sizes), &Device::Cpu);
        Ok([tensor(dq, shape.q())?, tensor(dk, shape.k())?, tensor(dv, shape.v())?])
    }
}

fn zeros<T: Element>(sizes: [usize; 4]) -> Vec<T> {
    vec![<T as Default>::default(); sizes.iter().product()]
}

/// A tensor of candle's, to read.
fn view<'a, T: Element + WithDType>(
    storage: &'a CpuStorage,
    lies: &Lies,
    layout: Layout,
) -> Result<TensorRef<'a, T>> {
    let [sizes, strides] = layout.read(lies)?;
    let data = T::cpu_storage_as_slice(storage)?.get(lies.start_offset()..).unwrap_or_default();
    Ok(TensorRef::strided(data, sizes, strides))
}

/// A dense tensor to write, of (batch, seqlen, num_heads, head_dim) elements, stored in the layout's order.
fn written<T>(data: &mut [T], sizes: [usize; 4], layout: Layout) -> TensorMut<'_, T> {
    TensorMut::strided(data, sizes, layout.swap(contiguous_strides(layout.swap(sizes))))
}
