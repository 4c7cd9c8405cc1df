//! A model trains with our attention as it does with Burn's own layer. The only test here: beginnings are drawn from the
//! device's one generator.

#[path = "../examples/model/mod.rs"]
mod model;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use model::{Model, Sizes};
use signflash_burn::Generator;

const SIZES: Sizes =
    Sizes { symbols: 32, seqlen: 40, width: 64, heads: 4, layers: 2, dropout_p: 0.0, attention_dtype: None };

/// The losses of training from the same weights, with our attention if there is a generator.
fn losses(generator: Option<&Generator>) -> Vec<f32> {
    let device = Device::flex().autodiff();
    device.seed(42);
    let mut model = Model::new(&SIZES, generator, &device);
    let mut optimizer = AdamWConfig::new().init();
    let mut losses = Vec::new();
    for step in 0..30 {
        let symbols: Vec<i32> = (0..4 * 41).map(|n| (n * (step % 3 + 2) / 3) % 32).collect();
        let loss = model.loss(Tensor::<2, Int>::from_data(TensorData::new(symbols, [4, 41]), &device));
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(3e-3, model, gradients);
        losses.push(loss.into_scalar::<f32>());
    }
    losses
}

#[test]
fn losses_without_dropout_are_those_of_burns_layer() {
    let (ours, theirs) = (losses(Some(&Generator::new(1))), losses(None));
    assert!(ours[29] < 0.8 * ours[0], "it learns: {ours:?}");
    assert!(
        (ours[0] - theirs[0]).abs() < 1e-4 * theirs[0],
        "the same beginning: {} and {}",
        ours[0],
        theirs[0]
    );
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!((ours - theirs).abs() < 2e-2 * theirs, "{ours} and {theirs}");
    }
}
