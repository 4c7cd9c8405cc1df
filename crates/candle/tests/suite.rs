//! The suite's named cases through candle: tensors of candle's with the cases' strides, gradients from candle's graph,
//! judged by the f64 oracle.

use candle_core::{DType, Device, Result, Tensor, Var, WithDType};
use signflash_candle::{Inputs as CandleInputs, Layout, ScoreInputs, attention_with_lse, probs};
use signflash_core::suite::{self, Implementation, RunError};
use signflash_core::{
    BiasMut, BiasRef, Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, TensorMut, TensorRef,
    bf16, f16,
};
use std::any::Any;

/// Attention by candle's tensors on a device, in the order of dimensions that is said.
struct Candle {
    device: Device,
    layout: Layout,
    /// The dtypes that are run there.
    dtypes: &'static [Dtype],
}

/// On this machine's CPU.
fn cpu(layout: Layout) -> Candle {
    Candle { device: Device::Cpu, layout, dtypes: &[Dtype::F32, Dtype::F16, Dtype::Bf16] }
}

/// Does something with `T` where candle knows it, too.
macro_rules! with_candles_dtype {
    ($t:ty, $this:ident . $do:ident($($argument:expr),*)) => {
        match <$t>::DTYPE {
            Dtype::F32 => $this.$do::<$t, f32>($($argument),*),
            Dtype::F16 => $this.$do::<$t, f16>($($argument),*),
            Dtype::Bf16 => $this.$do::<$t, bf16>($($argument),*),
            other => unreachable!("no case has {other:?}"),
        }
    };
}

impl Implementation for Candle {
    fn name(&self) -> String {
        format!("candle, {:?}, {:?}", self.layout, self.device.location())
    }

    fn supports(&self, dtype: Dtype, _: &Problem) -> std::result::Result<(), String> {
        match self.dtypes.contains(&dtype) {
            true => Ok(()),
            false => Err("it is not run here".into()),
        }
    }

    fn has_deterministic_backward(&self) -> bool {
        self.device.is_cpu()
    }

    fn largest_lse_of_p(&self) -> Option<f64> {
        self.device.is_cuda().then_some(1_048_576.0)
    }

    fn spreads_non_finite(&self) -> bool {
        self.device.is_cuda()
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> std::result::Result<(), RunError> {
        Ok(with_candles_dtype!(T, self.forward_of(problem, inputs, outputs))?)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> std::result::Result<(), RunError> {
        Ok(with_candles_dtype!(T, self.backward_of(problem, inputs, gradients))?)
    }
}

/// What scores are made of, as candle's tensors.
#[derive(Default)]
struct Scores {
    alibi_slopes: Option<Tensor>,
    bias: Option<Tensor>,
    mask: Option<Tensor>,
    sinks: Option<Tensor>,
}

impl Scores {
    fn inputs(&self) -> ScoreInputs<'_> {
        ScoreInputs::default()
            .alibi_slopes(self.alibi_slopes.as_ref())
            .bias(self.bias.as_ref())
            .mask(self.mask.as_ref())
            .sinks(self.sinks.as_ref())
    }
}

impl Candle {
    fn forward_of<T: Element, C: WithDType>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<()> {
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| self.tensor::<T, C>(x));
        let (q, k, v) = (q?, k?, v?);
        let scores = self.scores(inputs)?;
        let inputs = CandleInputs::new(&q, &k, &v).scores(scores.inputs());
        let (out, lse) = attention_with_lse(problem, inputs, self.layout)?;
        write::<T, C>(&self.ordered(&out)?, &mut outputs.out)?;
        outputs.lse.copy_from_slice(&lse.flatten_all()?.to_vec1()?);
        if let Some(written) = &mut outputs.probs {
            write::<T, C>(&probs(problem, inputs, self.layout)?, written)?;
        }
        Ok(())
    }

    fn backward_of<T: Element, C: WithDType>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<()> {
        let [q, k, v] =
            [&inputs.inputs.q, &inputs.inputs.k, &inputs.inputs.v].map(|x| self.tensor::<T, C>(x));
        // Variables are dense: the graph's leaf is not the strided view, and what leads there is candle's.
        let (q, k, v) = (Var::from_tensor(&q?)?, Var::from_tensor(&k?)?, Var::from_tensor(&v?)?);
        let mut scores = self.scores(&inputs.inputs)?;
        let var = |x: &mut Option<Tensor>| -> Result<Option<Var>> {
            let var = x.as_ref().map(Var::from_tensor).transpose()?;
            *x = var.as_ref().map(|var| var.as_tensor().clone());
            Ok(var)
        };
        let (bias, sinks) = (var(&mut scores.bias)?, var(&mut scores.sinks)?);
        let operands = CandleInputs::new(&q, &k, &v).scores(scores.inputs());
        let (out, lse) = attention_with_lse(problem, operands, self.layout)?;
        let dout = self.tensor::<T, C>(&inputs.dout)?;
        let mut loss = out.mul(&dout)?.sum_all()?.to_dtype(DType::F32)?;
        if let Some(dlse) = inputs.dlse {
            let dlse = Tensor::from_slice(dlse, lse.shape(), &self.device)?;
            loss = (loss + lse.mul(&dlse)?.sum_all()?)?;
        }
        let found = loss.backward()?;
        let gradient = |var: &Var| found.get(var).expect("every input has a gradient");
        for (var, written) in [(&q, &mut gradients.dq), (&k, &mut gradients.dk), (&v, &mut gradients.dv)] {
            write::<T, C>(&self.ordered(gradient(var))?, written)?;
        }
        if let (Some(bias), Some(dbias)) = (&bias, &mut gradients.dbias) {
            match dbias {
                BiasMut::F32(written) => write::<f32, f32>(gradient(bias), written)?,
                BiasMut::F16(written) => write::<f16, f16>(gradient(bias), written)?,
                BiasMut::Bf16(written) => write::<bf16, bf16>(gradient(bias), written)?,
            }
        }
        if let (Some(sinks), Some(dsinks)) = (&sinks, &mut gradients.dsinks) {
            dsinks.copy_from_slice(&gradient(sinks).to_vec1()?);
        }
        Ok(())
    }

    fn scores<T>(&self, inputs: &Inputs<'_, T>) -> Result<Scores> {
        let scores = &inputs.scores;
        let slopes =
            scores.alibi_slopes.as_ref().map(|x| self.strided::<f32, f32>(x)?.squeeze(0)?.squeeze(0));
        let bias = scores.bias.as_ref().map(|bias| match bias {
            BiasRef::F32(x) => self.strided::<f32, f32>(x),
            BiasRef::F16(x) => self.strided::<f16, f16>(x),
            BiasRef::Bf16(x) => self.strided::<bf16, bf16>(x),
        });
        let mask = scores.mask.as_ref().map(|x| self.strided::<u8, u8>(x));
        let sinks = scores.sinks.map(|x| Tensor::from_slice(x, x.len(), &self.device));
        Ok(Scores {
            alibi_slopes: slopes.transpose()?,
            bias: bias.transpose()?,
            mask: mask.transpose()?,
            sinks: sinks.transpose()?,
        })
    }

    /// (batch, seqlen, heads, head_dim) in this order of dimensions.
    fn tensor<T: Element, C: WithDType>(&self, ours: &TensorRef<'_, T>) -> Result<Tensor> {
        self.ordered(&self.strided::<T, C>(ours)?)
    }

    /// A tensor of candle's with the strides of ours: a buffer that is dense in the order of the strides, narrowed where
    /// there are gaps, repeated where a stride is 0.
    fn strided<T: Any + Copy, C: WithDType>(&self, ours: &TensorRef<'_, T>) -> Result<Tensor> {
        if ours.shape.contains(&0) {
            return Tensor::zeros(&ours.shape, C::DTYPE, &self.device);
        }
        let mut order = [0, 1, 2, 3];
        order.sort_by_key(|&dim| std::cmp::Reverse(ours.strides[dim]));
        let shared = |dim: usize| ours.strides[dim] == 0;
        let stored: Vec<usize> = order.iter().copied().filter(|&dim| !shared(dim)).collect();
        let extent = |n: usize| match n {
            0 => ours.shape[stored[0]],
            n => ours.strides[stored[n - 1]] / ours.strides[stored[n]],
        };
        let mut extents: Vec<usize> = (0..stored.len()).map(extent).collect();
        let repeated = order.len() - stored.len();
        extents.extend(std::iter::repeat_n(1, repeated));
        let len: usize = extents.iter().product();
        let mut data: Vec<C> = ours.data.iter().take(len).map(|&x| same::<T, C>(x)).collect();
        data.resize(len, C::from_f64(f64::NAN));
        let mut tensor = Tensor::from_vec(data, extents, &self.device)?;
        for (n, &dim) in stored.iter().enumerate() {
            tensor = tensor.narrow(n, 0, ours.shape[dim])?;
        }
        let place = |dim: usize| order.iter().position(|&at| at == dim).expect("each dimension has a place");
        let tensor = tensor.permute([place(0), place(1), place(2), place(3)])?;
        tensor.broadcast_as(ours.shape.as_slice())
    }

    /// (batch, seqlen, heads, head_dim) as this order of dimensions, and the other way round.
    fn ordered(&self, tensor: &Tensor) -> Result<Tensor> {
        match self.layout {
            Layout::Bshd => Ok(tensor.clone()),
            Layout::Bhsd => tensor.transpose(1, 2),
        }
    }
}

/// The same number, of a type that is the same one.
fn same<A: Any + Copy, B: Any + Copy>(number: A) -> B {
    *(&number as &dyn Any).downcast_ref().expect("both are the type of one dtype")
}

fn write<T: Element, C: WithDType>(from: &Tensor, to: &mut TensorMut<'_, T>) -> Result<()> {
    let [_, b, c, d] = to.shape;
    for (n, x) in from.flatten_all()?.to_vec1::<C>()?.into_iter().enumerate() {
        let index = [n / (b * c * d), n / (c * d) % b, n / d % c, n % d];
        *to.at_mut(index) = same::<C, T>(x);
    }
    Ok(())
}

/// Runs the cases whose names `which` chooses.
fn run(candle: &Candle, which: impl Fn(&str) -> bool) {
    let has_place = |name: &str| {
        let case = suite::case(name).expect("a name of the list has a case");
        !case.cuts_keys() // a graph has no place for out and lse of a whole
    };
    let names: Vec<&str> =
        suite::NAMES.iter().copied().filter(|name| which(name) && has_place(name)).collect();
    let report = suite::run_names(&names, candle);
    assert!(report.failures.is_empty() && report.ran > 0, "{report}");
    println!("{} runs of cases passed", report.ran);
}

#[test]
fn cases_of_attention_and_dropout() {
    run(&cpu(Layout::Bshd), |name| {
        !is_long(name) && !name.starts_with("packed") && !name.starts_with("window")
    });
}

#[test]
fn cases_of_windows() {
    run(&cpu(Layout::Bshd), |name| name.starts_with("window"));
}

#[test]
fn cases_of_packed_sequences() {
    run(&cpu(Layout::Bshd), |name| name.starts_with("packed"));
}

#[test]
fn cases_with_heads_before_rows() {
    run(&cpu(Layout::Bhsd), |name| name.starts_with("head_") || name.starts_with("layout"));
}

fn is_long(name: &str) -> bool {
    name.contains("1024") || name.contains("long")
}

#[test]
fn the_backward_drops_what_the_forward_drops() {
    suite::check_backward_drops::<f32, _>(&cpu(Layout::Bshd));
    suite::check_backward_drops::<bf16, _>(&cpu(Layout::Bshd));
}

/// On GPU 0; without `SIGNFLASH_REQUIRE_GPU=1` a machine without one passes and says so.
#[cfg(feature = "cuda")]
mod gpu {
    use super::*;
    use signflash_candle::{Attention, Generator};

    fn gpu(layout: Layout, dtypes: &'static [Dtype]) -> Option<Candle> {
        match Device::new_cuda(0) {
            Ok(device) => Some(Candle { device, layout, dtypes }),
            Err(error) => {
                assert!(
                    std::env::var_os("SIGNFLASH_REQUIRE_GPU").is_none_or(|x| x != "1"),
                    "no GPU: {error}"
                );
                println!("skipped: {error}");
                None
            }
        }
    }

    /// Of packed sequences candle's GPU makes no probs, which every case asks for; vectors are files, which a machine with a
    /// GPU need not have.
    fn is_taken(name: &str) -> bool {
        let is_packed = || suite::case(name).is_some_and(|case| case.problem().is_packed());
        !name.starts_with("vector") && !is_packed()
    }

    /// The kernels' own suite runs each case in both formats: here it is candle's tensors that are tried, each case in one
    /// of them unless `SIGNFLASH_TEST=full`. The driver compiles kernels one after the other, whatever threads ask, which takes
    /// most of the time.
    #[test]
    fn cases_of_attention_dropout_and_windows() {
        let full = std::env::var_os("SIGNFLASH_TEST").is_some_and(|x| x == "full");
        let formats: &[&'static [Dtype]] = match full {
            true => &[&[Dtype::F16, Dtype::Bf16]],
            false => &[&[Dtype::F16], &[Dtype::Bf16]],
        };
        for (turn, dtypes) in formats.iter().enumerate() {
            let Some(gpu) = gpu(Layout::Bshd, dtypes) else { return };
            let is_of_turn = |name: &str| {
                suite::NAMES.iter().position(|x| *x == name).is_some_and(|n| n % formats.len() == turn)
            };
            run(&gpu, |name| is_of_turn(name) && is_taken(name));
        }
    }

    #[test]
    fn cases_with_heads_before_rows() {
        if let Some(gpu) = gpu(Layout::Bhsd, &[Dtype::Bf16]) {
            run(&gpu, |name| name.starts_with("head_") || name.starts_with("layout"));
        }
    }

    #[test]
    fn packed_sequences_are_each_alone() -> Result<()> {
        let Some(Candle { device, .. }) = gpu(Layout::Bshd, &[]) else { return Ok(()) };
        let q = Tensor::randn(0f32, 1.0, (300, 2, 64), &device)?.to_dtype(DType::BF16)?;
        let q = Var::from_tensor(&q)?;
        let settings = Attention::new().causal(true);
        let cu_seqlens = [0, 100, 270, 300];
        let packed = settings.forward_packed([&q, &q, &q], &cu_seqlens, &cu_seqlens, false)?;
        let gradients = packed.sqr()?.sum_all()?.backward()?;
        let packed_dq = gradients.get(&q).expect("a gradient");
        let close = |a: &Tensor, b: &Tensor, bound: f64| -> Result<()> {
            let [a, b] = [a, b].map(|x| x.to_dtype(DType::F32));
            let (a, b) = (a?, b?);
            let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>().map(f64::from);
            assert!(norm(&(&a - &b)?)? < bound * bound * norm(&b)?);
            Ok(())
        };
        for (begin, len) in [(0, 100), (100, 170), (270, 30)] {
            let alone = Var::from_tensor(&q.narrow(0, begin, len)?.unsqueeze(0)?.contiguous()?)?;
            let out = settings.forward(&alone, &alone, &alone, false)?;
            let gradients = out.sqr()?.sum_all()?.backward()?;
            close(&packed.narrow(0, begin, len)?, &out.squeeze(0)?, 4e-3)?;
            let dq = gradients.get(&alone).expect("a gradient").squeeze(0)?;
            close(&packed_dq.narrow(0, begin, len)?, &dq, 2e-2)?;
        }
        Ok(())
    }

    #[test]
    fn gradients_in_one_order_have_the_same_bits() -> Result<()> {
        let Some(Candle { device, .. }) = gpu(Layout::Bshd, &[]) else { return Ok(()) };
        let q = Tensor::randn(0f32, 1.0, (2, 777, 4, 64), &device)?.to_dtype(DType::F16)?;
        let q = Var::from_tensor(&q)?;
        let settings = Attention::new().causal(true).deterministic(true);
        let settings = settings.dropout(0.1, &Generator::new(3));
        let out = settings.forward(&q, &q, &q, true)?.sqr()?.sum_all()?;
        let [first, second] = [out.backward()?, out.backward()?]
            .map(|found| found.get(&q).expect("a gradient").flatten_all().and_then(|x| x.to_vec1::<f16>()));
        assert_eq!(first?, second?);
        Ok(())
    }
}
