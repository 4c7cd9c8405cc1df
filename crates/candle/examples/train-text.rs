//! Trains a small transformer on text twice, without and with attention dropout, draws both losses, and writes some lines.
//!
//!     cargo run --release --example train-text -- [FILES..] [--steps 300] [--dropout 0.1] [--cuda]
//!
//! Without files it learns this repository's own pages. Run in crates/candle; `--cuda` needs `--features cuda`.

mod model;
#[path = "../../../examples/rust/text.rs"]
mod text;

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use model::{Kind, Model, Sizes};
use signflash_candle::Generator;
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
}

const BATCH: usize = 8;
const SEQLEN: usize = 128;

fn main() -> Result<()> {
    let settings = Settings::read();
    let text = Text::read(&settings.files)?;
    let device = if settings.cuda { Device::new_cuda(0)? } else { Device::Cpu };
    println!(
        "{} characters, {} symbols, on {device:?}",
        text.learn.len() + text.unseen.len(),
        text.symbols.len()
    );
    let mut curves = Vec::new();
    for dropout_p in [0.0, settings.dropout_p] {
        let sizes =
            Sizes { symbols: text.symbols.len(), seqlen: SEQLEN, width: 128, heads: 4, layers: 4, dropout_p };
        let weights = VarMap::new();
        let kind = Kind::Ours(Generator::new(42));
        let model = Model::new(&sizes, &kind, VarBuilder::from_varmap(&weights, DType::F32, &device))?;
        curves.extend(train(&model, &weights, &text, settings.steps, &device, dropout_p)?);
        println!("p = {dropout_p} writes: {:?}", write(&model, &text, "## The ", 200, &device)?);
    }
    text::draw(Path::new("train-text.svg"), &curves)?;
    println!("drawn: train-text.svg");
    Ok(())
}

fn rows(batches: &mut Batches, data: &[u32], device: &Device) -> Result<Tensor> {
    Tensor::from_vec(batches.next(data, BATCH, SEQLEN), (BATCH, SEQLEN + 1), device)
}

fn train(
    model: &Model,
    weights: &VarMap,
    text: &Text,
    steps: usize,
    device: &Device,
    dropout_p: f32,
) -> Result<[Curve; 2]> {
    let mut optimizer = AdamW::new(weights.all_vars(), ParamsAdamW { lr: 1e-3, ..Default::default() })?;
    let curve = |kind| Curve { name: format!("p = {dropout_p}, {kind} text"), points: Vec::new() };
    let mut curves = [curve("seen"), curve("unseen")];
    let (mut batches, start) = (Batches::new(1), Instant::now());
    for step in 0..=steps {
        let loss = model.loss(&rows(&mut batches, &text.learn, device)?, true)?;
        optimizer.backward_step(&loss)?;
        if step % (steps / 10).max(1) == 0 {
            let (seen, unseen) = (loss.to_scalar()?, validate(model, text, device)?);
            let seconds = start.elapsed().as_secs_f32();
            println!(
                "p = {dropout_p} step {step}: loss {seen:.3}, on unseen text {unseen:.3} ({seconds:.0} s)"
            );
            curves[0].points.push((step, seen));
            curves[1].points.push((step, unseen));
        }
    }
    Ok(curves)
}

fn validate(model: &Model, text: &Text, device: &Device) -> Result<f32> {
    let mut batches = Batches::new(2);
    let mut sum = 0.0;
    for _ in 0..4 {
        sum += model.loss(&rows(&mut batches, &text.unseen, device)?, false)?.to_scalar::<f32>()?;
    }
    Ok(sum / 4.0)
}

/// What the model finds most probable after `beginning`.
fn write(model: &Model, text: &Text, beginning: &str, len: usize, device: &Device) -> Result<String> {
    let number = |symbol| text.symbols.binary_search(&symbol).ok();
    let mut numbers: Vec<u32> = beginning.chars().filter_map(number).map(|n| n as u32).collect();
    for _ in 0..len {
        let seen = &numbers[numbers.len().saturating_sub(SEQLEN)..];
        let logits = model.forward(&Tensor::new(seen, device)?.unsqueeze(0)?, false)?;
        let last = logits.i((0, seen.len() - 1))?.to_dtype(DType::F32)?;
        numbers.push(last.argmax(0)?.to_scalar()?);
    }
    Ok(text.write(&numbers))
}
