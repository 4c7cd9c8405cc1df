//! A training step of a model of 6 layers, 512 wide, with attention dropout 0.1: ours beside Burn's own layer.
//!
//!     cargo run --release --example step -- [TOKENS..]
//!
//! Prints a table of seconds a step (the middle one of five, both taking turns in one process) and of the memory that a
//! process of each had at its peak. `-- ours 8192` measures one by itself. Run in crates/burn.

mod model;
#[path = "../../../examples/rust/table.rs"]
mod table;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use model::{Model, Sizes};
use signflash_burn::Generator;
use table::Step;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tokens = |arguments: &[String]| -> Vec<usize> {
        arguments.iter().map(|argument| argument.parse().expect("a number of tokens")).collect()
    };
    match arguments.first().map(String::as_str) {
        Some(kind @ ("ours" | "Burn")) => {
            let seqlen = tokens(&arguments[1..])[0];
            let seconds = table::alone(step(kind, seqlen));
            table::say_alone(kind, seqlen, seconds, table::peak_mib());
        }
        Some("turns") => {
            let seqlen = tokens(&arguments[1..])[0];
            table::say(table::turns([step("ours", seqlen), step("Burn", seqlen)]));
        }
        Some(_) => table::table(["ours", "Burn"], &tokens(&arguments), &[]),
        None => table::table(["ours", "Burn"], &[512, 2048, 8192], &[]),
    }
}

/// A training step of a model of this kind.
fn step(kind: &str, seqlen: usize) -> Step {
    let device = Device::flex().autodiff();
    let sizes = Sizes { symbols: 256, seqlen, width: 512, heads: 8, layers: 6, dropout_p: 0.1 };
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
        loss.into_scalar::<f32>();
    })
}
