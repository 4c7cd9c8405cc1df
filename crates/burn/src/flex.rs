//! On Burn's CPU back end: views of its memory, our engine.

use crate::attention::or_panic;
use crate::operator::{
    Backwards, Call, Forward, Given, MaybeFloat, Operands, SignflashBackend, SignflashGradients,
};
use burn::backend::{Flex, tensor::FloatTensor};
use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use signflash_core::{
    BiasGrad, BiasRef, Element, GradInputs, Gradients, Inputs, Outputs, Problem, ScoreInputs, TensorMut,
    TensorRef,
};
use signflash_cpu::CpuEngine;

type Tensor = FloatTensor<Flex>;

impl SignflashBackend for Flex {
    fn signflash_forward(operands: Operands<Self>, call: Call) -> Forward<Self> {
        let operands = Readable::of(operands);
        match operands.qkv[0].dtype() {
            DType::F32 => forward::<f32>(&operands, &call),
            DType::F16 => forward::<f16>(&operands, &call),
            DType::BF16 => forward::<bf16>(&operands, &call),
            other => unknown_dtype(other),
        }
    }
}

impl SignflashGradients for Flex {
    fn signflash_backward(given: Given<Self>, call: Call) -> Backwards<Self> {
        match given.operands.q.dtype() {
            DType::F32 => backward::<f32>(given, &call.problem),
            DType::F16 => backward::<f16>(given, &call.problem),
            DType::BF16 => backward::<bf16>(given, &call.problem),
            other => unknown_dtype(other),
        }
    }
}

/// The tensors of a call, their strides such as the engine takes.
struct Readable {
    qkv: [Tensor; 3],
    alibi_slopes: Option<Tensor>,
    bias: Option<Tensor>,
    mask: Option<Tensor>,
    sinks: Option<Tensor>,
}

impl Readable {
    fn of(operands: Operands<Flex>) -> Self {
        let Operands { q, k, v, alibi_slopes, bias, mask, sinks } = operands;
        Self {
            qkv: [q, k, v].map(dense_rows),
            alibi_slopes: alibi_slopes.given().map(|slopes| slopes.to_contiguous()),
            bias: bias.given().map(forwards),
            mask: mask.given().map(forwards),
            sinks: sinks.given().map(|sinks| sinks.to_contiguous()),
        }
    }

    fn inputs<T: Element + burn::tensor::Element>(&self) -> Inputs<'_, T> {
        let [q, k, v] = self.qkv.each_ref().map(|x| view::<T>(x));
        let slopes = self.alibi_slopes.as_ref().map(|slopes| {
            let [sequences, num_heads] = slopes.layout().shape().dims::<2>();
            TensorRef::bshd(dense(slopes), [1, 1, sequences, num_heads])
        });
        let bias = self.bias.as_ref().map(|bias| match bias.dtype() {
            DType::F16 => BiasRef::F16(entries(bias, bias.storage::<f16>())),
            DType::BF16 => BiasRef::Bf16(entries(bias, bias.storage::<bf16>())),
            _ => BiasRef::F32(entries(bias, bias.storage::<f32>())),
        });
        let scores = ScoreInputs::default()
            .alibi_slopes(slopes)
            .bias(bias)
            .mask(self.mask.as_ref().map(|mask| entries(mask, mask.storage::<u8>())))
            .sinks(self.sinks.as_ref().map(dense));
        Inputs::new(q, k, v).scores(scores)
    }
}

fn unknown_dtype(dtype: DType) -> ! {
    panic!("signflash: q, k and v must be f32, f16 or bf16, got {dtype:?}; cast them")
}

fn forward<T: Element + burn::tensor::Element>(operands: &Readable, call: &Call) -> Forward<Flex> {
    let problem = &call.problem;
    let shape = problem.shape();
    let (mut out, mut lse) = (zeros::<T>(shape.out()), vec![0.0f32; shape.lse_len()]);
    let mut outputs = Outputs::new(TensorMut::bhsd(&mut out, shape.out()), &mut lse);
    or_panic(CpuEngine::new().forward(problem, &operands.inputs::<T>(), &mut outputs));
    let lse = TensorData::new(lse, [shape.batch, shape.num_heads, shape.seqlen_q]);
    Forward { out: tensor(out, shape.out()), lse: Tensor::from_data(lse) }
}

fn backward<T: Element + burn::tensor::Element>(given: Given<Flex>, problem: &Problem) -> Backwards<Flex> {
    let Given { operands, lse, out, dout, dlse, dbias, dsinks } = given;
    let (operands, shape) = (Readable::of(operands), problem.shape());
    // Where nothing comes through out, its gradient is 0, and out itself counts for nothing.
    let [out, dout] = [out, dout]
        .map(|x| x.given().map_or_else(|| tensor(zeros::<T>(shape.out()), shape.out()), dense_rows));
    let dlse = dlse.given().map(|dlse| dlse.to_contiguous());
    let inputs = GradInputs::new(operands.inputs::<T>(), view(&out), dense(&lse), view(&dout))
        .dlse(dlse.as_ref().map(dense));

    let bias = problem.bias().filter(|_| dbias);
    let mut dbias = bias.as_ref().map(BiasGrad::zeros);
    let mut dsinks = dsinks.then(|| vec![0.0f32; shape.num_heads]);
    let (mut dq, mut dk, mut dv) = (zeros::<T>(shape.q()), zeros(shape.k()), zeros(shape.v()));
    let mut gradients = Gradients::new(
        TensorMut::bhsd(&mut dq, shape.q()),
        TensorMut::bhsd(&mut dk, shape.k()),
        TensorMut::bhsd(&mut dv, shape.v()),
    )
    .dbias(dbias.as_mut().zip(bias).map(|(dbias, bias)| dbias.as_mut(&bias)))
    .dsinks(dsinks.as_deref_mut());
    or_panic(CpuEngine::new().backward(problem, &inputs, &mut gradients));

    let dbias = dbias.zip(bias).map(|(dbias, bias)| match dbias {
        BiasGrad::F32(data) => TensorData::new(data, bias.shape),
        BiasGrad::F16(data) => TensorData::new(data, bias.shape),
        BiasGrad::Bf16(data) => TensorData::new(data, bias.shape),
    });
    Backwards {
        dq: tensor(dq, shape.q()),
        dk: tensor(dk, shape.k()),
        dv: tensor(dv, shape.v()),
        dbias: MaybeFloat::of(dbias.map(Tensor::from_data)),
        dsinks: MaybeFloat::of(
            dsinks.map(|data| Tensor::from_data(TensorData::new(data, [shape.num_heads]))),
        ),
    }
}

fn zeros<T: Element>(sizes: [usize; 4]) -> Vec<T> {
    vec![<T as Default>::default(); sizes.iter().product()]
}

/// The tensor, copied if its rows are not dense or its strides are negative.
fn dense_rows(tensor: Tensor) -> Tensor {
    if tensor.layout().strides().last() == Some(&1) { forwards(tensor) } else { tensor.to_contiguous() }
}

/// The tensor, copied if its strides are negative.
fn forwards(tensor: Tensor) -> Tensor {
    if tensor.layout().strides().iter().all(|&stride| stride >= 0) { tensor } else { tensor.to_contiguous() }
}

/// The elements of a dense tensor of f32.
fn dense(tensor: &Tensor) -> &[f32] {
    let begin = tensor.layout().start_offset();
    let end = begin + tensor.layout().shape().num_elements();
    tensor.storage::<f32>().get(begin..end).unwrap_or_default()
}

/// (batch, num_heads, seqlen_q, seqlen_k) as it is; its strides are those that [`forwards`] has seen.
fn entries<'a, T>(tensor: &Tensor, storage: &'a [T]) -> TensorRef<'a, T> {
    let layout = tensor.layout();
    let strides = [0, 1, 2, 3].map(|dim| layout.strides()[dim].unsigned_abs());
    let data = storage.get(layout.start_offset()..).unwrap_or_default();
    TensorRef::strided(data, layout.shape().dims::<4>(), strides)
}

/// (batch, heads, seqlen, head_dim) of Burn's as (batch, seqlen, heads, head_dim); its strides are those that
/// [`dense_rows`] has seen.
fn view<T: Element + burn::tensor::Element>(tensor: &Tensor) -> TensorRef<'_, T> {
    let TensorRef { data, shape: [a, b, c, d], strides: [e, f, g, h] } =
        entries(tensor, tensor.storage::<T>());
    TensorRef::strided(data, [a, c, b, d], [e, g, f, h])
}

/// (batch, seqlen, heads, head_dim), stored with its heads before its rows, as a tensor of Burn's.
fn tensor<T: burn::tensor::Element>(data: Vec<T>, [batch, seqlen, heads, head_dim]: [usize; 4]) -> Tensor {
    Tensor::from_data(TensorData::new(data, [batch, heads, seqlen, head_dim]))
}
