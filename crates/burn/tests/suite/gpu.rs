//! The same on GPU 0; without `SIGNFLASH_REQUIRE_GPU=1` a machine without one passes and says so.

use super::{Burn, check_mask, cpu, run};
use burn::tensor::{DType, Device, Distribution, Tensor};
use signflash_burn::{Attention, Generator, MultiHeadAttention};
use signflash_core::suite;
use signflash_core::{Dtype, bf16};

fn gpu(dtypes: &'static [Dtype]) -> Option<Burn> {
    match signflash_cuda::Device::open(0) {
        Ok(_) => Some(Burn { device: Device::cuda(0), dtypes, is_gpu: true }),
        Err(error) => {
            let required = std::env::var_os("SIGNFLASH_REQUIRE_GPU").is_some_and(|x| x == "1");
            assert!(!required, "no GPU: {error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// The kernels' own suite runs each case in both formats: here it is Burn's tensors that are tried, each case in one of
/// them unless `SIGNFLASH_TEST=full`. The driver compiles kernels one after the other, whatever threads ask, which takes most of
/// the time. Vectors are files, which a machine with a GPU need not have.
#[test]
fn cases() {
    let full = std::env::var_os("SIGNFLASH_TEST").is_some_and(|x| x == "full");
    let formats: &[&'static [Dtype]] = match full {
        true => &[&[Dtype::F16, Dtype::Bf16]],
        false => &[&[Dtype::F16], &[Dtype::Bf16]],
    };
    for (turn, dtypes) in formats.iter().enumerate() {
        let Some(gpu) = gpu(dtypes) else { return };
        let is_of_turn = |name: &str| {
            suite::NAMES.iter().position(|x| *x == name).is_some_and(|n| n % formats.len() == turn)
        };
        run(&gpu, |name| is_of_turn(name) && !name.starts_with("vector"));
    }
}

#[test]
fn the_backward_drops_what_the_forward_drops() {
    if let Some(gpu) = gpu(&[Dtype::Bf16]) {
        suite::check_backward_drops::<bf16, _>(&gpu);
    }
}

#[test]
fn the_mask_is_the_cores() {
    if let Some(gpu) = gpu(&[]) {
        check_mask(&gpu.device, DType::BF16);
        check_mask(&gpu.device, DType::F16);
    }
}

fn normal(dims: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), device)
}

/// Burn's work before attention is still running when attention is called, and its work behind is called right away. Nothing
/// here is a product of matrices, for which Burn compiles dozens of kernels to choose from.
#[test]
fn work_before_and_behind_is_in_order() {
    let Some(gpu) = gpu(&[]) else { return };
    let sizes = [4, 8, 1024, 64];
    let settings = Attention::new().causal(true);
    // The same rounded numbers on both.
    let x = normal(sizes, &cpu().device).cast(DType::BF16).into_data();
    let chain = |device: &Device, rounds: usize| {
        let mut x = Tensor::<4>::from_data(x.clone(), (device, DType::BF16));
        for _ in 0..rounds {
            let q = x.clone() * 0.5 + 0.125;
            let out = settings.forward(q.clone(), x.clone(), q);
            x = (x + out) * 0.75;
        }
        x.cast(DType::F32).to_device(&cpu().device)
    };
    let truth = chain(&cpu().device, 6);
    let norm = |x: Tensor<4>| x.powi_scalar(2).sum().into_scalar::<f32>().sqrt();
    for turn in 0..20 {
        // What is read before it is written is the last turn's, unless memory is new: other work takes it in between.
        let filler = Tensor::<4>::ones(sizes, (&gpu.device, DType::BF16)) * (turn as f32 + 3.0);
        let found = chain(&gpu.device, 6);
        drop(filler);
        let error = norm(found - truth.clone()) / norm(truth.clone());
        assert!(error < 2e-2, "turn {turn}: {error}");
    }
}

#[test]
fn gradients_in_one_order_have_the_same_bits() {
    let Some(gpu) = gpu(&[]) else { return };
    let device = gpu.device.autodiff();
    let q = normal([2, 4, 777, 64], &device).cast(DType::F16).detach().require_grad();
    let settings = Attention::new().causal(true).deterministic(true);
    let bits = || {
        let out =
            settings.forward_with(signflash_burn::Inputs::new(q.clone(), q.clone(), q.clone()).train(false));
        let gradients = out.powi_scalar(2).sum().backward();
        q.grad(&gradients).expect("a gradient").into_data()
    };
    assert_eq!(bits(), bits());
}

#[test]
#[should_panic(expected = "f16 or bf16")]
fn single_precision_is_refused() {
    let Some(gpu) = gpu(&[]) else { panic!("f16 or bf16: skipped, there is no GPU") };
    let q = normal([1, 2, 10, 64], &gpu.device);
    Attention::new().forward(q.clone(), q.clone(), q);
}

/// Weights of f32, attention of bf16: nearly what the CPU gives in f32.
#[test]
fn a_layer_of_single_precision_casts_for_attention_alone() {
    let Some(gpu) = gpu(&[]) else { return };
    let layer = burn::nn::attention::MultiHeadAttentionConfig::new(64, 4).init(&gpu.device);
    let layer = MultiHeadAttention::from_burn(layer, &Generator::new(1)).causal(true);
    let x = Tensor::<3>::random([2, 50, 64], Distribution::Normal(0.0, 1.0), &gpu.device);
    let found = layer.clone().attention_dtype(DType::BF16).forward(x.clone());
    assert_eq!(found.dtype(), DType::F32);
    let host = cpu().device;
    let truth = burn::module::Module::to_device(layer, &host).forward(x.to_device(&host));
    let error = (found.to_device(&host) - truth.clone()).powi_scalar(2).sum().into_scalar::<f32>().sqrt()
        / truth.powi_scalar(2).sum().into_scalar::<f32>().sqrt();
    assert!(error < 1e-2, "{error}");
}
