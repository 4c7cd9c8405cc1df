//! A training step of a model of 6 layers, 512 wide, with attention dropout 0.1: ours beside Burn's own layer.
//!
//!     cargo run --release --example step -- [TOKENS..] [--cuda]
//!
//! Prints a table of seconds a step (the middle one of five, both taking turns in one process) and of the memory that a
//! process of each had at its peak; on a GPU, that Burn's pools hold. `-- ours 8192` measures one by itself. Run in
//! crates/burn; `--cuda` (bf16) needs `--features cuda,burn/autotune`.

mod model;
#[path = "../../../examples/rust/table.rs"]
mod table;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use model::{Model, Sizes};
use signflash_burn::Generator;
use table::Step;

fn main() {
    let (options, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let tokens = |arguments: &[String]| -> Vec<usize> {
        arguments.iter().map(|argument| argument.parse().expect("a number of tokens")).collect()
    };
    let device = || match options.iter().any(|option| option == "--cuda") {
        true => gpu(),
        false => Device::flex(),
    };
    match arguments.first().map(String::as_str) {
        Some(kind @ ("ours" | "Burn")) => {
            let (seqlen, device) = (tokens(&arguments[1..])[0], device());
            let seconds = table::alone(step(kind, seqlen, &device));
            table::say_alone(kind, seqlen, seconds, peak_mib(&device));
        }
        Some("turns") => {
            let (seqlen, device) = (tokens(&arguments[1..])[0], device());
            table::say(table::turns([step("ours", seqlen, &device), step("Burn", seqlen, &device)]));
        }
        Some(_) => table::table(["ours", "Burn"], &tokens(&arguments), &options),
        None => table::table(["ours", "Burn"], &[512, 2048, 8192], &options),
    }
}

/// The first GPU, whose tensors are bf16 unless they say otherwise.
#[cfg(feature = "cuda")]
fn gpu() -> Device {
    let mut device = Device::cuda(0);
    device.configure(burn::tensor::FloatDType::BF16).expect("nothing has been made there yet");
    device
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Device {
    panic!("--cuda needs --features cuda")
}

fn peak_mib(device: &Device) -> f64 {
    let of_pools = device.memory_pool_usage().map(|usage| usage.bytes_reserved as f64 / (1 << 20) as f64);
    of_pools.unwrap_or_else(table::peak_mib)
}

/// A training step of a model of this kind.
fn step(kind: &str, seqlen: usize, device: &Device) -> Step {
    let device = device.clone().autodiff();
    let sizes = Sizes {
        symbols: 256,
        seqlen,
        width: 512,
        heads: 8,
        layers: 6,
        dropout_p: 0.1,
        attention_dtype: None,
    };
    let generator = Generator::new(42);
    let mut model = Some(Model::new(&sizes, (kind == "ours").then_some(&generator), &device));
    let mut optimizer = AdamWConfig::new().init();
    let symbols: Vec<i32> = (0..=seqlen as i32).map(|n| n * 7919 % 256).collect();
    let rows = Tensor::<2, Int>::from_data(TensorData::new(symbols, [1, seqlen + 1]), &device);
    Box::new(move || {
        let before = model.take().expect("each step leaves a model");
        let loss = before.loss(rows.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &before);
        model = Some(optimizer.step(1e-4, before, gradients));
        loss.cast(DType::F32).into_scalar::<f32>();
        device.sync().expect("the step is computed");
    })
}
