//! Trains a small transformer on text twice, without and with attention dropout, draws both losses, and writes some lines.
//!
//!     cargo run --release --example train-text -- [FILES..] [--steps 300] [--dropout 0.1] [--cuda]
//!
//! Without files it learns this repository's own pages. Run in crates/burn; `--cuda` needs `--features cuda`.

mod model;
#[path = "../../../examples/rust/text.rs"]
mod text;

use burn::module::Module as _;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use model::{Model, Sizes};
use signflash_burn::Generator;
use std::path::{Path, PathBuf};
use std::time::Instant;
use text::{Batches, Curve, Text};

struct Settings {
    files: Vec<PathBuf>,
    steps: usize,
    dropout_p: f32,
    cuda: bool,
}

impl Settings {
    fn read() -> Self {
        let mut settings = Self { files: Vec::new(), steps: 300, dropout_p: 0.1, cuda: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number =
                || arguments.next().and_then(|x| x.parse::<f32>().ok()).expect("a number follows the option");
            match argument.as_str() {
                "--steps" => settings.steps = number() as usize,
                "--dropout" => settings.dropout_p = number(),
                "--cuda" => settings.cuda = true,
                file => settings.files.push(file.into()),
            }
        }
        settings
    }

    fn device(&self) -> Device {
        #[cfg(feature = "cuda")]
        if self.cuda {
            return Device::cuda(0);
        }
        assert!(!self.cuda, "--cuda needs --features cuda");
        Device::flex()
    }
}

const BATCH: usize = 8;
const SEQLEN: usize = 128;

fn main() {
    let settings = Settings::read();
    let text = Text::read(&settings.files).expect("the files are text");
    println!("{} characters, {} symbols", text.learn.len() + text.unseen.len(), text.symbols.len());
    let (device, mut curves) = (settings.device(), Vec::new());
    for dropout_p in [0.0, settings.dropout_p] {
        let sizes = Sizes {
            symbols: text.symbols.len(),
            seqlen: SEQLEN,
            width: 128,
            heads: 4,
            layers: 4,
            dropout_p,
            attention_dtype: settings.cuda.then_some(DType::BF16), // GPUs' kernels are of 16 bits, weights of f32
        };
        let (model, both) = train(&sizes, &text, settings.steps, &device);
        curves.extend(both);
        println!("p = {dropout_p} writes: {:?}", write(&model, &text, "## The ", 200, &device));
    }
    text::draw(Path::new("train-text.svg"), &curves).expect("the picture can be written");
    println!("drawn: train-text.svg");
}

fn rows(batches: &mut Batches, data: &[u32], device: &Device) -> Tensor<2, Int> {
    let rows: Vec<i32> = batches.next(data, BATCH, SEQLEN).into_iter().map(|symbol| symbol as i32).collect();
    Tensor::from_data(TensorData::new(rows, [BATCH, SEQLEN + 1]), device)
}

/// The model, trained, without autodiff.
fn train(sizes: &Sizes, text: &Text, steps: usize, plain: &Device) -> (Model, [Curve; 2]) {
    let device = plain.clone().autodiff();
    let mut model = Model::new(sizes, Some(&Generator::new(42)), &device);
    let mut optimizer = AdamWConfig::new().init();
    let curve = |kind| Curve { name: format!("p = {}, {kind} text", sizes.dropout_p), points: Vec::new() };
    let mut curves = [curve("seen"), curve("unseen")];
    let (mut batches, start) = (Batches::new(1), Instant::now());
    for step in 0..=steps {
        let loss = model.loss(rows(&mut batches, &text.learn, &device));
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-3, model, gradients);
        if step % (steps / 10).max(1) == 0 {
            let (seen, unseen) = (loss.into_scalar::<f32>(), validate(&model.valid(), text, plain));
            let (p, seconds) = (sizes.dropout_p, start.elapsed().as_secs_f32());
            println!("p = {p} step {step}: loss {seen:.3}, on unseen text {unseen:.3} ({seconds:.0} s)");
            curves[0].points.push((step, seen));
            curves[1].points.push((step, unseen));
        }
    }
    (model.valid(), curves)
}

fn validate(model: &Model, text: &Text, device: &Device) -> f32 {
    let mut batches = Batches::new(2);
    let losses = (0..4).map(|_| model.loss(rows(&mut batches, &text.unseen, device)).into_scalar::<f32>());
    losses.sum::<f32>() / 4.0
}

/// What the model finds most probable after `beginning`.
fn write(model: &Model, text: &Text, beginning: &str, len: usize, device: &Device) -> String {
    let number = |symbol| text.symbols.binary_search(&symbol).ok();
    let mut numbers: Vec<u32> = beginning.chars().filter_map(number).map(|n| n as u32).collect();
    for _ in 0..len {
        let seen = &numbers[numbers.len().saturating_sub(SEQLEN)..];
        let seen: Vec<i32> = seen.iter().map(|&symbol| symbol as i32).collect();
        let len = seen.len();
        let logits = model.forward(Tensor::from_data(TensorData::new(seen, [1, len]), device));
        let last = logits.narrow(1, len - 1, 1).flatten::<1>(0, 2);
        numbers.push(last.argmax(0).into_scalar::<i64>() as u32);
    }
    text.write(&numbers)
}
