//! A layer of candle's, trained with attention dropout.

use candle_core::{DType, Device, ModuleT, Result, Tensor};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
use signflash_candle::{Attention, Generator, MultiHeadAttention, MultiHeadConfig};

fn main() -> Result<()> {
    let (device, weights, generator) = (Device::Cpu, VarMap::new(), Generator::new(42));
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &device);
    let attention = Attention::new().causal(true).dropout(0.1, &generator);
    let layer = MultiHeadAttention::new(MultiHeadConfig::new(64, 4), attention, vb.pp("layer"))?;

    let (x, target) =
        (Tensor::randn(0f32, 1.0, (2, 50, 64), &device)?, Tensor::zeros((2, 50, 64), DType::F32, &device)?);
    let mut optimizer = AdamW::new_lr(weights.all_vars(), 1e-2)?;
    for step in 0..3 {
        let loss = (layer.forward_t(&x, true)? - &target)?.sqr()?.mean_all()?; // `true`: training, so it drops
        optimizer.backward_step(&loss)?;
        println!("step {step}: loss {:.4}", loss.to_scalar::<f32>()?);
    }
    println!("for the checkpoint: {:?}", generator.state());
    Ok(())
}
