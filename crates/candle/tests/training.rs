//! A model trains with our attention as it does with candle's own operators.

#[path = "../examples/model/mod.rs"]
mod model;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
use model::{Kind, Model, Sizes};
use signflash_candle::Generator;

const SIZES: Sizes = Sizes { symbols: 32, seqlen: 40, width: 64, heads: 4, layers: 2, dropout_p: 0.0 };

/// The losses of training from these weights.
fn losses(kind: Kind, beginning: &VarMap) -> Result<Vec<f32>> {
    let mut weights = VarMap::new();
    let model = Model::new(&SIZES, &kind, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
    let copied = beginning.data().lock().unwrap().clone();
    weights.set(copied.iter().map(|(name, var)| (name, var.as_tensor())))?;
    let mut optimizer = AdamW::new_lr(weights.all_vars(), 3e-3)?;
    let mut losses = Vec::new();
    for step in 0..30 {
        let symbols: Vec<u32> = (0..4 * 41).map(|n| (n * (step % 3 + 2) / 3) % 32).collect();
        let loss = model.loss(&Tensor::from_vec(symbols, (4, 41), &Device::Cpu)?, true)?;
        optimizer.backward_step(&loss)?;
        losses.push(loss.to_scalar()?);
    }
    Ok(losses)
}

#[test]
fn losses_without_dropout_are_those_of_candles_operators() -> Result<()> {
    let beginning = VarMap::new();
    Model::new(&SIZES, &Kind::Candles, VarBuilder::from_varmap(&beginning, DType::F32, &Device::Cpu))?;
    let ours = losses(Kind::Ours(Generator::new(1)), &beginning)?;
    let theirs = losses(Kind::Candles, &beginning)?;
    assert!(ours[29] < 0.8 * ours[0], "it learns: {ours:?}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!((ours - theirs).abs() < 2e-2 * theirs, "{ours} and {theirs}");
    }
    Ok(())
}
