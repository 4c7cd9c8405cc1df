//! A training step of a model of 6 layers, 512 wide, with attention dropout 0.1: ours beside Burn's own layer.
//!
//!     cargo run --release --example step -- [TOKENS..]
//!
//! Prints a table of seconds a step (the median of five, after two) and of the memory that the process had at its peak. Run
//! in crates/burn.

mod model;
#[path = "../../../examples/rust/table.rs"]
mod table;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use model::{Model, Sizes};
use signflash_burn::Generator;
use std::time::Instant;
use table::{Measured, median};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tokens = |arguments: &[String]| -> Vec<usize> {
        arguments.iter().map(|argument| argument.parse().expect("a number of tokens")).collect()
    };
    match arguments.first().map(String::as_str) {
        Some(kind @ ("ours" | "Burn")) => measure(kind, tokens(&arguments[1..])[0]),
        Some(_) => table::table(["ours", "Burn"], &tokens(&arguments), &[]),
        None => table::table(["ours", "Burn"], &[512, 2048, 8192], &[]),
    }
}

fn measure(kind: &str, seqlen: usize) {
    let device = Device::flex().autodiff();
    let sizes = Sizes { symbols: 256, seqlen, width: 512, heads: 8, layers: 6, dropout_p: 0.1 };
    let generator = Generator::new(42);
    let mut model = Model::new(&sizes, (kind == "ours").then_some(&generator), &device);
    let mut optimizer = AdamWConfig::new().init();
    let symbols: Vec<i32> = (0..=seqlen as i32).map(|n| n * 7919 % 256).collect();
    let rows = Tensor::<2, Int>::from_data(TensorData::new(symbols, [1, seqlen + 1]), &device);
    let mut seconds = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        let loss = model.loss(rows.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-4, model, gradients);
        loss.into_scalar::<f32>();
        seconds.push(start.elapsed().as_secs_f64());
    }
    table::say(Measured { seconds: median(seconds.split_off(2)), mib: table::peak_mib() });
}
