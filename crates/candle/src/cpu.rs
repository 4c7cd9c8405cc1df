//! On CPUs: views of candle's memory, our engine.

use crate::call::refused;
use crate::join::ScoreGradients;
use crate::layout::Layout;
use crate::op::{Found, Given, Lse, Op, Saved};
use crate::scores::{Held, HeldOperands};
use candle_core::{CpuStorage, DType, Device, Layout as Lies, Result, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};
use signflash_core::{
    BiasGrad, BiasRef, Element, GradInputs, Gradients, Inputs, Outputs, ScoreInputs, TensorMut, TensorRef,
    contiguous_strides,
};
use signflash_cpu::CpuEngine;

impl Op {
    pub(crate) fn cpu_forward<T: Element + WithDType>(
        &self,
        [q, k, v]: [(&CpuStorage, &Lies); 3],
    ) -> Result<CpuStorage> {
        let (problem, layout) = (&self.settings.problem, self.settings.layout);
        let shape = problem.shape();
        let held = self.operands.held();
        let inputs =
            Inputs::new(view::<T>(q.0, q.1, layout)?, view(k.0, k.1, layout)?, view(v.0, v.1, layout)?);
        let inputs = inputs.scores(held.on_cpu()?);
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

    pub(crate) fn cpu_backward<T: Element + WithDType>(&self, given: &Given<'_>) -> Result<Found> {
        let (problem, layout) = (&self.settings.problem, self.settings.layout);
        let shape = problem.shape();
        let lse = self.saved()?.lse.on_cpu()?;
        let held = self.operands.held();
        let guards = [given.q, given.k, given.v, given.out, given.dout].map(Held::of);
        let [q, k, v, out, dout] = guards.each_ref().map(|guard| view_of::<T>(guard, layout));
        let dlse = given.dlse.map(Held::of);
        let dlse = dlse.as_ref().map(dense_of::<f32>).transpose()?;
        let inputs = Inputs::new(q?, k?, v?).scores(held.on_cpu()?);
        let inputs = GradInputs::new(inputs, out?, lse, dout?).dlse(dlse);

        let bias = problem.bias().filter(|_| self.wanted.dbias);
        let mut dbias = bias.as_ref().map(BiasGrad::zeros);
        let mut dsinks = self.wanted.dsinks.then(|| vec![0.0; shape.num_heads]);
        let (mut dq, mut dk, mut dv) = (zeros::<T>(shape.q()), zeros(shape.k()), zeros(shape.v()));
        let mut gradients = Gradients::new(
            written(&mut dq, shape.q(), layout),
            written(&mut dk, shape.k(), layout),
            written(&mut dv, shape.v(), layout),
        )
        .dbias(dbias.as_mut().zip(bias).map(|(dbias, bias)| dbias.as_mut(&bias)))
        .dsinks(dsinks.as_deref_mut());
        CpuEngine::new().backward(problem, &inputs, &mut gradients).map_err(refused)?;

        let tensor = |data, sizes| Tensor::from_vec(data, &layout.swap(sizes), &Device::Cpu);
        let dbias = dbias.zip(bias).map(|(dbias, bias)| match dbias {
            BiasGrad::F32(data) => Tensor::from_vec(data, &bias.shape, &Device::Cpu),
            BiasGrad::F16(data) => Tensor::from_vec(data, &bias.shape, &Device::Cpu),
            BiasGrad::Bf16(data) => Tensor::from_vec(data, &bias.shape, &Device::Cpu),
        });
        let dsinks = dsinks.map(|data| Tensor::from_vec(data, shape.num_heads, &Device::Cpu));
        Ok(Found {
            dq: tensor(dq, shape.q())?,
            dk: tensor(dk, shape.k())?,
            dv: tensor(dv, shape.v())?,
            scores: ScoreGradients { dbias: dbias.transpose()?, dsinks: dsinks.transpose()? },
        })
    }
}

impl HeldOperands<'_> {
    /// The same as the engine reads them.
    fn on_cpu(&self) -> Result<ScoreInputs<'_>> {
        // Their dimensions are (batch, num_heads, seqlen_q, seqlen_k): none change places.
        let order = Layout::Bshd;
        let slopes = self.alibi_slopes.as_ref().map(|held| view_of::<f32>(held, order)).transpose()?;
        let bias = self.bias.as_ref().map(|held| {
            Ok::<_, candle_core::Error>(match held.storage().dtype() {
                DType::F16 => BiasRef::F16(view_of::<f16>(held, order)?),
                DType::BF16 => BiasRef::Bf16(view_of::<bf16>(held, order)?),
                _ => BiasRef::F32(view_of::<f32>(held, order)?),
            })
        });
        let mask = self.mask.as_ref().map(|held| view_of::<u8>(held, order)).transpose()?;
        let sinks = self.sinks.as_ref().map(dense_of::<f32>).transpose()?;
        Ok(ScoreInputs::default().alibi_slopes(slopes).bias(bias.transpose()?).mask(mask).sinks(sinks))
    }
}

/// The elements of a dense tensor.
fn dense_of<'a, T: WithDType>(held: &'a Held<'_>) -> Result<&'a [T]> {
    let begin = held.lies.start_offset();
    let data = T::cpu_storage_as_slice(on_cpu(held.storage())?)?;
    Ok(data.get(begin..begin + held.lies.shape().elem_count()).unwrap_or_default())
}

/// A tensor of candle's, to read.
fn view_of<'a, T: WithDType>(held: &'a Held<'_>, layout: Layout) -> Result<TensorRef<'a, T>> {
    view(on_cpu(held.storage())?, held.lies, layout)
}

fn on_cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("signflash: the tensors of one call lie on different devices"),
    }
}

fn zeros<T: Element>(sizes: [usize; 4]) -> Vec<T> {
    vec![<T as Default>::default(); sizes.iter().product()]
}

fn view<'a, T: WithDType>(storage: &'a CpuStorage, lies: &Lies, layout: Layout) -> Result<TensorRef<'a, T>> {
    let [sizes, strides] = layout.read(lies)?;
    let data = T::cpu_storage_as_slice(storage)?.get(lies.start_offset()..).unwrap_or_default();
    Ok(TensorRef::strided(data, sizes, strides))
}

/// A dense tensor to write, of (batch, seqlen, num_heads, head_dim) elements, stored in the layout's order.
fn written<T>(data: &mut [T], sizes: [usize; 4], layout: Layout) -> TensorMut<'_, T> {
    TensorMut::strided(data, sizes, layout.swap(contiguous_strides(layout.swap(sizes))))
}
