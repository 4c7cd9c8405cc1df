//! A layer of Burn's, trained with attention dropout.

use burn::nn::attention::MultiHeadAttentionConfig;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};
use signflash_burn::{Generator, MultiHeadAttention};

fn main() {
    let (device, generator) = (Device::flex().autodiff(), Generator::new(42));
    let config = MultiHeadAttentionConfig::new(64, 4).with_dropout(0.1);
    let mut layer = MultiHeadAttention::from_burn(config.init(&device), &generator).causal(true);

    let x = Tensor::<3>::random([2, 50, 64], Distribution::Normal(0.0, 1.0), &device);
    let mut optimizer = AdamWConfig::new().init();
    for step in 0..3 {
        let loss = layer.forward(x.clone()).powi_scalar(2).mean(); // the device has autodiff, so it drops
        println!("step {step}: loss {:.4}", loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(1e-2, layer, gradients);
    }
    println!("for the checkpoint: {:?}", generator.state());
}
