//! On Burn's CPU back end: views of its memory, our engine.

use crate::attention::or_panic;
use crate::operator::{Backwards, Call, Forward, SignflashBackend};
use burn::backend::{Flex, tensor::FloatTensor};
use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use signflash_core::{Element, GradInputs, Gradients, Inputs, Outputs, TensorMut, TensorRef};
use signflash_cpu::CpuEngine;

type Tensor = FloatTensor<Flex>;

impl SignflashBackend for Flex {
    fn signflash_forward(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Forward<Self> {
        let tensors = [q, k, v].map(dense_rows);
        match tensors[0].dtype() {
            DType::F32 => forward::<f32>(tensors, &call),
            DType::F16 => forward::<f16>(tensors, &call),
            DType::BF16 => forward::<bf16>(tensors, &call),
            other => unknown_dtype(other),
        }
    }

    fn signflash_backward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        dout: Tensor,
        call: Call,
    ) -> Backwards<Self> {
        let tensors = [q, k, v, out, dout].map(dense_rows);
        match tensors[0].dtype() {
            DType::F32 => backward::<f32>(tensors, &lse, &call),
            DType::F16 => backward::<f16>(tensors, &lse, &call),
            DType::BF16 => backward::<bf16>(tensors, &lse, &call),
            other => unknown_dtype(other),
        }
    }
}

fn unknown_dtype(dtype: DType) -> ! {
    panic!("signflash: q, k and v must be f32, f16 or bf16, got {dtype:?}; cast them")
}

fn forward<T: Element + burn::tensor::Element>([q, k, v]: [Tensor; 3], call: &Call) -> Forward<Flex> {
    let Call(problem) = call;
    let shape = problem.shape();
    let (mut out, mut lse) = (zeros(shape.out()), vec![0.0f32; shape.lse_len()]);
    let inputs = Inputs::new(view::<T>(&q), view(&k), view(&v));
    let mut outputs = Outputs::new(TensorMut::bhsd(&mut out, shape.out()), &mut lse);
    or_panic(CpuEngine::new().forward(problem, &inputs, &mut outputs));
    let lse = TensorData::new(lse, [shape.batch, shape.num_heads, shape.seqlen_q]);
    Forward { out: tensor(out, shape.out()), lse: Tensor::from_data(lse) }
}

fn backward<T: Element + burn::tensor::Element>(
    [q, k, v, out, dout]: [Tensor; 5],
    lse: &Tensor,
    call: &Call,
) -> Backwards<Flex> {
    let Call(problem) = call;
    let shape = problem.shape();
    let (mut dq, mut dk, mut dv) = (zeros::<T>(shape.q()), zeros(shape.k()), zeros(shape.v()));
    let inputs = Inputs::new(view::<T>(&q), view(&k), view(&v));
    let inputs = GradInputs::new(inputs, view(&out), lse.storage::<f32>(), view(&dout));
    let mut gradients = Gradients::new(
        TensorMut::bhsd(&mut dq, shape.q()),
        TensorMut::bhsd(&mut dk, shape.k()),
        TensorMut::bhsd(&mut dv, shape.v()),
    );
    or_panic(CpuEngine::new().backward(problem, &inputs, &mut gradients));
    Backwards { dq: tensor(dq, shape.q()), dk: tensor(dk, shape.k()), dv: tensor(dv, shape.v()) }
}

fn zeros<T: Element>(sizes: [usize; 4]) -> Vec<T> {
    vec![<T as Default>::default(); sizes.iter().product()]
}

/// The tensor, copied if its rows are not dense or its strides are negative.
fn dense_rows(tensor: Tensor) -> Tensor {
    let strides = tensor.layout().strides();
    if strides.iter().all(|&stride| stride >= 0) && strides.last() == Some(&1) {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// (batch, heads, seqlen, head_dim) of Burn's as (batch, seqlen, heads, head_dim); its strides are those that
/// [`dense_rows`] has seen.
fn view<T: Element + burn::tensor::Element>(tensor: &Tensor) -> TensorRef<'_, T> {
    let layout = tensor.layout();
    let [batch, heads, seqlen, head_dim] = layout.shape().dims::<4>();
    let stride = |dim: usize| layout.strides()[dim].unsigned_abs();
    let data = tensor.storage::<T>().get(layout.start_offset()..).unwrap_or_default();
    let (sizes, strides) = ([batch, seqlen, heads, head_dim], [stride(0), stride(2), stride(1), stride(3)]);
    TensorRef::strided(data, sizes, strides)
}

/// (batch, seqlen, heads, head_dim), stored with its heads before its rows, as a tensor of Burn's.
fn tensor<T: burn::tensor::Element>(data: Vec<T>, [batch, seqlen, heads, head_dim]: [usize; 4]) -> Tensor {
    Tensor::from_data(TensorData::new(data, [batch, heads, seqlen, head_dim]))
}
