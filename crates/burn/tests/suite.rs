//! The suite's named cases through Burn: tensors of Burn's with the cases' strides, gradients from its graph, judged by the
//! f64 oracle.

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use signflash_burn::{Inputs as BurnInputs, ScoreInputs, attention_with_lse};
use signflash_core::suite::{self, Implementation, RunError};
use signflash_core::{
    BiasMut, BiasRef, Dropout, Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, Shape,
    TensorMut, TensorRef, bf16, f16,
};

#[cfg(feature = "cuda")]
#[path = "suite/gpu.rs"]
mod gpu;

/// Attention by Burn's tensors on a device.
struct Burn {
    device: Device,
    /// The dtypes that are run there.
    dtypes: &'static [Dtype],
    is_gpu: bool,
}

/// On this machine's CPU.
fn cpu() -> Burn {
    Burn { device: Device::flex(), dtypes: &[Dtype::F32, Dtype::F16, Dtype::Bf16], is_gpu: false }
}

impl Implementation for Burn {
    fn name(&self) -> String {
        format!("Burn, {:?}", self.device)
    }

    fn supports(&self, dtype: Dtype, _: &Problem) -> Result<(), String> {
        match self.dtypes.contains(&dtype) {
            true => Ok(()),
            false => Err("it is not run here".into()),
        }
    }

    fn has_deterministic_backward(&self) -> bool {
        !self.is_gpu
    }

    fn largest_lse_of_p(&self) -> Option<f64> {
        self.is_gpu.then_some(1_048_576.0)
    }

    fn spreads_non_finite(&self) -> bool {
        self.is_gpu
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        let device = self.device.clone();
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| tensor(x, &device));
        let scores = scores(inputs, &device);
        let (out, lse) = attention_with_lse(problem, BurnInputs::new(q, k, v).scores(scores));
        write(out.swap_dims(1, 2), &mut outputs.out);
        outputs.lse.copy_from_slice(&lse.into_data().try_into_vec::<f32>().expect("numbers"));
        // Burn's graph hands out no probs: the engine's own stand there, and are judged elsewhere.
        let mut unused = vec![T::default(); problem.shape().out().iter().product()];
        let mut unused_lse = outputs.lse.to_vec();
        let mut rest = Outputs::new(TensorMut::bshd(&mut unused, problem.shape().out()), &mut unused_lse);
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
        let device = self.device.clone().autodiff();
        let GradInputs { inputs: Inputs { q, k, v, .. }, dout, dlse, .. } = inputs;
        let [q, k, v] = [q, k, v].map(|x| tensor(x, &device).require_grad());
        let mut scores = scores(&inputs.inputs, &device);
        scores.bias = scores.bias.map(Tensor::require_grad);
        scores.sinks = scores.sinks.map(Tensor::require_grad);
        let (bias, sinks) = (scores.bias.clone(), scores.sinks.clone());
        let operands = BurnInputs::new(q.clone(), k.clone(), v.clone()).scores(scores);
        let (out, lse) = attention_with_lse(problem, operands);
        let mut loss = (out * tensor(dout, &device)).sum().cast(DType::F32);
        if let Some(dlse) = dlse {
            let dlse = Tensor::<3>::from_data(TensorData::new(dlse.to_vec(), lse.dims()), &device);
            loss = loss + (lse * dlse).sum();
        }
        let found = loss.backward();
        for (x, written) in [(q, &mut gradients.dq), (k, &mut gradients.dk), (v, &mut gradients.dv)] {
            write(x.grad(&found).expect("every input has a gradient").swap_dims(1, 2), written);
        }
        if let (Some(bias), Some(dbias)) = (bias, &mut gradients.dbias) {
            let found = bias.grad(&found).expect("the bias has a gradient");
            match dbias {
                BiasMut::F32(written) => write(found, written),
                BiasMut::F16(written) => write(found, written),
                BiasMut::Bf16(written) => write(found, written),
            }
        }
        if let (Some(sinks), Some(dsinks)) = (sinks, &mut gradients.dsinks) {
            let found = sinks.grad(&found).expect("the sinks have a gradient");
            dsinks.copy_from_slice(&found.into_data().try_into_vec::<f32>().expect("numbers"));
        }
        Ok(())
    }
}

/// What scores are made of, as Burn's tensors.
fn scores<T>(inputs: &Inputs<'_, T>, device: &Device) -> ScoreInputs {
    let scores = &inputs.scores;
    let slopes =
        scores.alibi_slopes.as_ref().map(|x| strided(x, device).squeeze_dim::<3>(0).squeeze_dim::<2>(0));
    let bias = scores.bias.as_ref().map(|bias| match bias {
        BiasRef::F32(x) => strided(x, device),
        BiasRef::F16(x) => strided(x, device),
        BiasRef::Bf16(x) => strided(x, device),
    });
    let mask = scores.mask.as_ref().map(|x| {
        let number = |n: usize| {
            let [_, b, c, d] = x.shape;
            x.at([n / (b * c * d), n / (c * d) % b, n / d % c, n % d]) == 0
        };
        let hidden: Vec<bool> = (0..x.shape.iter().product()).map(number).collect();
        Tensor::<4, Bool>::from_data(TensorData::new(hidden, x.shape), device)
    });
    let sinks = scores.sinks.map(|x| Tensor::<1>::from_data(TensorData::new(x.to_vec(), [x.len()]), device));
    ScoreInputs::default().alibi_slopes(slopes).bias(bias).mask(mask).sinks(sinks)
}

fn dtype_of(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
        other => unreachable!("no case has {other:?}"),
    }
}

/// (batch, seqlen, heads, head_dim) as Burn's (batch, heads, seqlen, head_dim).
fn tensor<T: Element>(ours: &TensorRef<'_, T>, device: &Device) -> Tensor<4> {
    strided(ours, device).swap_dims(1, 2)
}

/// A tensor of Burn's with the strides of ours: a buffer that is dense in the order of the strides, cut where there are
/// gaps, repeated where a stride is 0.
fn strided<T: Element>(ours: &TensorRef<'_, T>, device: &Device) -> Tensor<4> {
    let to = (device, dtype_of(T::DTYPE));
    if ours.shape.contains(&0) {
        return Tensor::zeros(ours.shape, to);
    }
    let mut order = [0, 1, 2, 3];
    order.sort_by_key(|&dim| std::cmp::Reverse(ours.strides[dim]));
    let stored: Vec<usize> = order.iter().copied().filter(|&dim| ours.strides[dim] != 0).collect();
    let mut extents = [1; 4];
    for (n, extent) in extents.iter_mut().enumerate().take(stored.len()) {
        *extent = match n {
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
    tensor.expand(ours.shape)
}

fn write<T: Element>(from: Tensor<4>, to: &mut TensorMut<'_, T>) {
    assert_eq!(from.dtype(), dtype_of(T::DTYPE), "results have the dtype of the operands");
    let [_, b, c, d] = to.shape;
    let numbers = from.into_data().convert::<f32>().try_into_vec::<f32>().expect("numbers");
    for (n, x) in numbers.into_iter().enumerate() {
        *to.at_mut([n / (b * c * d), n / (c * d) % b, n / d % c, n % d]) = T::from_f32(x);
    }
}

/// Runs the cases whose names `which` chooses.
fn run(burn: &Burn, which: impl Fn(&str) -> bool) {
    let has_place = |name: &str| {
        let case = suite::case(name).expect("a name of the list has a case");
        !case.cuts_keys() // a graph has no place for out and lse of a whole
    };
    let names: Vec<&str> =
        suite::NAMES.iter().copied().filter(|name| which(name) && has_place(name)).collect();
    let report = suite::run_names(&names, burn);
    assert!(report.failures.is_empty() && report.ran > 0, "{report}");
    println!("{} runs of cases passed", report.ran);
}

#[test]
fn cases_of_attention_and_dropout() {
    run(&cpu(), |name| !name.contains("1024") && !name.starts_with("packed") && !name.starts_with("window"));
}

#[test]
fn cases_of_windows() {
    run(&cpu(), |name| name.starts_with("window"));
}

#[test]
fn cases_of_packed_sequences() {
    run(&cpu(), |name| name.starts_with("packed"));
}

#[test]
fn the_backward_drops_what_the_forward_drops() {
    suite::check_backward_drops::<f32, _>(&cpu());
    suite::check_backward_drops::<bf16, _>(&cpu());
}

#[test]
fn the_mask_is_the_cores() {
    check_mask(&cpu().device, DType::F32);
}

/// Equal scores and the identity in the place of v: what comes out is 0 where the core drops, and nowhere else.
fn check_mask(device: &Device, dtype: DType) {
    let shape = Shape::new(2, 77, 128).heads(3, 3).head_dim(64).head_dim_v(128);
    let dropout = Dropout::new(0.3, 0x1234_5678_9abc_def0, 17).expect("0.3 is a probability");
    let problem = Problem::builder(shape).dropout(dropout).build().expect("the sizes fit");
    let zeros = |rows| Tensor::<4>::zeros([2, 3, rows, 64], (device, dtype));
    let v = Tensor::<2>::eye(128, device).cast(dtype).unsqueeze::<4>().expand([2, 3, 128, 128]);
    let out = signflash_burn::attention(&problem, [zeros(77), zeros(128), v]);
    let out = out.into_data().convert::<f32>().try_into_vec::<f32>().expect("numbers");
    let (rule, mut kept) = (problem.keep_rule().expect("p is not 0"), 0);
    for (n, x) in out.iter().enumerate() {
        let [batch, head, row, column] = [n / (3 * 77 * 128), n / (77 * 128) % 3, n / 128 % 77, n % 128];
        assert_eq!(*x != 0.0, rule.keep(batch, head, row, column), "{batch} {head} {row} {column}: {x}");
        kept += usize::from(*x != 0.0);
    }
    assert!(kept > out.len() / 2 && kept < out.len());
}
