//! The suite's named cases through Burn: tensors of Burn's with the cases' strides, gradients from its graph, judged by the
//! f64 oracle.

use burn::tensor::{DType, Device, Tensor, TensorData};
use signflash_burn::attention;
use signflash_core::suite::{self, Implementation, RunError};
use signflash_core::{
    Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, TensorMut, TensorRef, bf16, f16,
};

/// Attention by Burn's tensors.
struct Burn;

impl Implementation for Burn {
    fn name(&self) -> String {
        "Burn, Flex".into()
    }

    fn supports(&self, _: Dtype, problem: &Problem) -> Result<(), String> {
        // What `attention` takes no tensor for.
        let operands = problem.alibi().is_some() || problem.bias().is_some() || problem.mask().is_some();
        if operands || problem.sinks() { Err("scores have operands of their own".into()) } else { Ok(()) }
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        let device = Device::flex();
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| tensor(x, &device));
        write(attention(problem, q, k, v), &mut outputs.out);
        // Burn's graph hands out neither lse nor probs: the engine's own stand there, and are judged elsewhere.
        let mut unused = vec![T::default(); problem.shape().out().iter().product()];
        let mut rest = Outputs::new(TensorMut::bshd(&mut unused, problem.shape().out()), outputs.lse);
        if let Some(TensorMut { data, shape, strides }) = &mut outputs.probs {
            rest = rest.probs(TensorMut::strided(data, *shape, *strides));
        }
        Ok(signflash_cpu::CpuEngine::new().forward(problem, inputs, &mut rest)?)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        let device = Device::flex().autodiff();
        let GradInputs { inputs: Inputs { q, k, v, .. }, dout, .. } = inputs;
        let [q, k, v] = [q, k, v].map(|x| tensor(x, &device).require_grad());
        let out = attention(problem, q.clone(), k.clone(), v.clone());
        let found = (out * tensor(dout, &device)).sum().backward();
        for (x, written) in [(q, &mut gradients.dq), (k, &mut gradients.dk), (v, &mut gradients.dv)] {
            write(x.grad(&found).expect("every input has a gradient"), written);
        }
        Ok(())
    }
}

fn dtype_of(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
        other => unreachable!("no case has {other:?}"),
    }
}

/// A tensor of Burn's, (batch, heads, seqlen, head_dim), with the strides of ours: a buffer that is dense in the order of
/// the strides, cut where there are gaps, repeated where a stride is 0.
fn tensor<T: Element>(ours: &TensorRef<'_, T>, device: &Device) -> Tensor<4> {
    let to = (device, dtype_of(T::DTYPE));
    let [batch, seqlen, heads, head_dim] = ours.shape;
    if ours.shape.contains(&0) {
        return Tensor::zeros([batch, heads, seqlen, head_dim], to);
    }
    let mut order = [0, 1, 2, 3];
    order.sort_by_key(|&dim| std::cmp::Reverse(ours.strides[dim]));
    let stored: Vec<usize> = order.iter().copied().filter(|&dim| ours.strides[dim] != 0).collect();
    let mut extents = [1; 4];
    for n in 0..stored.len() {
        extents[n] = match n {
            0 => ours.shape[stored[0]],
            n => ours.strides[stored[n - 1]] / ours.strides[stored[n]],
        };
    }
    let len: usize = extents.iter().product();
    let mut data: Vec<T> = ours.data.iter().take(len).copied().collect();
    data.resize(len, T::from_f32(f32::NAN));
    let data = match T::DTYPE {
        Dtype::F32 => TensorData::new(data.iter().map(|x| x.to_f32()).collect::<Vec<f32>>(), extents),
        Dtype::F16 => {
            TensorData::new(data.iter().map(|x| f16::from_f32(x.to_f32())).collect::<Vec<_>>(), extents)
        }
        _ => TensorData::new(data.iter().map(|x| bf16::from_f32(x.to_f32())).collect::<Vec<_>>(), extents),
    };
    let mut tensor = Tensor::<4>::from_data(data, to);
    for (n, &dim) in stored.iter().enumerate() {
        tensor = tensor.narrow(n, 0, ours.shape[dim]);
    }
    let place =
        |dim: usize| order.iter().position(|&at| at == dim).expect("each dimension has a place") as isize;
    let tensor = tensor.permute([place(0), place(1), place(2), place(3)]);
    tensor.expand(ours.shape).swap_dims(1, 2)
}

fn write<T: Element>(from: Tensor<4>, to: &mut TensorMut<'_, T>) {
    assert_eq!(from.dtype(), dtype_of(T::DTYPE), "results have the dtype of the operands");
    let [_, seqlen, heads, head_dim] = to.shape;
    let numbers = from.swap_dims(1, 2).into_data().convert::<f32>().try_into_vec::<f32>().expect("numbers");
    for (n, x) in numbers.into_iter().enumerate() {
        let (rows, row) = (heads * head_dim, n / (heads * head_dim));
        let index = [row / seqlen, row % seqlen, n % rows / head_dim, n % head_dim];
        *to.at_mut(index) = T::from_f32(x);
    }
}

/// Cases that a graph of Burn's has no place for: a gradient through lse, and pieces of the columns, whose backward is given
/// the whole's out and lse.
fn needs_more_than_a_graph(name: &str) -> bool {
    name.contains("through_lse")
        || name.starts_with("pieces") && (name.contains("columns") || name.contains("everything"))
        || matches!(name, "nan_in_one_dlse" | "huge_scores_in_pieces")
}

/// Runs the cases whose names `which` chooses; of a feature that the engine does not have, none.
fn run(which: impl Fn(&str) -> bool) {
    let (mut ran, mut failed) = (0, Vec::new());
    for name in suite::NAMES.iter().filter(|name| !needs_more_than_a_graph(name) && which(name)) {
        let case = suite::case(name).expect("a name of the list has a case");
        let report = suite::run_case(name, &case, &Burn);
        ran += report.ran;
        failed.extend(report.failures.iter().map(|failure| failure.to_string()));
    }
    assert!(failed.is_empty(), "{} of {ran} failed:\n{}", failed.len(), failed.join("\n"));
    println!("{ran} runs of cases passed");
    assert!(ran > 0);
}

#[test]
fn cases_of_attention_and_dropout() {
    run(|name| !name.contains("1024") && !name.starts_with("packed") && !name.starts_with("window"));
}

#[test]
fn cases_of_windows() {
    run(|name| name.starts_with("window"));
}

#[test]
fn cases_of_packed_sequences() {
    run(|name| name.starts_with("packed"));
}

#[test]
fn the_backward_drops_what_the_forward_drops() {
    suite::check_backward_drops::<f32, _>(&Burn);
    suite::check_backward_drops::<bf16, _>(&Burn);
}
