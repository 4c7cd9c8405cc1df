//! What Burn's own tests ask of its `MultiHeadAttention`, asked of ours: shapes, which biases there are, padding, decoding
//! with a cache, dropout behind the softmax, and that tensors which do not fit are named.

use burn::nn::attention::{
    MhaCache as BurnCache, MhaInput, MultiHeadAttentionConfig, generate_autoregressive_mask,
};
use burn::tensor::{Bool, Device, Distribution, Tensor, TensorData};
use signflash_burn::{Generator, MhaCache, MultiHeadAttention, ScoreInputs};

fn normal<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), device)
}

fn difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).abs().max().into_scalar::<f32>()
}

fn layer(config: &MultiHeadAttentionConfig, device: &Device) -> MultiHeadAttention {
    MultiHeadAttention::from_burn(config.init(device), &Generator::new(1))
}

fn same(x: &Tensor<3>) -> [Tensor<3>; 3] {
    [x.clone(), x.clone(), x.clone()]
}

#[test]
fn shapes_are_those_of_the_queries() {
    let device = Device::flex();
    let layer = layer(&MultiHeadAttentionConfig::new(32, 4), &device);
    assert_eq!(layer.forward(normal([7, 13, 32], &device)).dims(), [7, 13, 32]);
    let memory = normal([7, 15, 32], &device);
    assert_eq!(layer.forward_cross(normal([7, 13, 32], &device), memory.clone(), memory).dims(), [7, 13, 32]);
}

#[test]
fn a_projection_has_a_bias_where_burns_has() {
    let (device, config) = (Device::flex(), MultiHeadAttentionConfig::new(32, 4));
    let biases = |config: MultiHeadAttentionConfig| {
        let layer = layer(&config, &device);
        assert_eq!(layer.forward(normal([1, 3, 32], &device)).dims(), [1, 3, 32]);
        [&layer.query, &layer.key, &layer.value, &layer.output].map(|linear| linear.bias.is_some())
    };
    assert_eq!(biases(config.clone()), [true, true, true, true]);
    assert_eq!(biases(config.clone().with_query_bias(false)), [false, true, true, true]);
    assert_eq!(biases(config.clone().with_key_bias(false)), [true, false, true, true]);
    assert_eq!(biases(config.clone().with_value_bias(false)), [true, true, false, true]);
    assert_eq!(biases(config.with_output_bias(false)), [true, true, true, false]);
}

#[test]
fn padding_changes_nothing_before_it() {
    let device = Device::flex();
    let layer = layer(&MultiHeadAttentionConfig::new(32, 2), &device);
    let pad: Vec<bool> = (0..18).map(|n| n % 6 >= 4).collect();
    let pad = Tensor::<2, Bool>::from_data(TensorData::new(pad, [3, 6]), &device);
    let x = normal([3, 6, 32], &device);
    let other = x.clone().slice_assign([0..3, 4..6, 0..32], normal([3, 2, 32], &device));
    let [out, other] = [x, other]
        .map(|x| layer.forward_with(same(&x), ScoreInputs::default().mask_pad(pad.clone())).narrow(1, 0, 4));
    assert_eq!(difference(out, other), 0.0);
}

#[test]
fn decoding_token_by_token_is_burns_and_that_of_a_causal_layer() {
    let (device, config) = (Device::flex(), MultiHeadAttentionConfig::new(12, 2));
    let theirs = config.init(&device);
    let ours = MultiHeadAttention::from_burn(theirs.clone(), &Generator::new(1));
    let x = normal([3, 6, 12], &device);
    let (mut cache, mut burns) = (MhaCache::autoregressive(), BurnCache::autoregressive());
    for seqlen in 1..=6 {
        let seen = x.clone().narrow(1, 0, seqlen);
        let expected = theirs.forward_cache(MhaInput::self_attn(seen.clone()), &mut burns).context;
        let found = ours.forward_cache(same(&seen), ScoreInputs::default(), &mut cache);
        assert!(difference(found, expected) < 1e-5);
        assert_eq!(cache.len(), seqlen);
    }
    let mask = generate_autoregressive_mask(3, 6, &device);
    let masked = ours.forward_with(same(&x), ScoreInputs::default().mask_attn(mask.clone()));
    let causal = ours.causal(true);
    let whole = causal.forward(x.clone());
    assert!(difference(masked, whole.clone()) < 1e-5);
    // A beginning of three tokens, then two, then one; masks say the same of the rows that are left.
    for scores in [None, Some(mask)] {
        let mut cache = MhaCache::autoregressive();
        let mut out = None;
        for seqlen in [3, 5, 6] {
            let seen = x.clone().narrow(1, 0, seqlen);
            let scores = scores.clone().map_or_else(ScoreInputs::default, |mask| {
                ScoreInputs::default().mask_attn(mask.narrow(1, 0, seqlen).narrow(2, 0, seqlen))
            });
            out = Some(causal.forward_cache(same(&seen), scores, &mut cache));
        }
        assert!(difference(out.unwrap(), whole.clone()) < 1e-5);
    }
}

#[test]
fn decoding_beside_another_sequence_is_burns() {
    let (device, config) = (Device::flex(), MultiHeadAttentionConfig::new(12, 2));
    let theirs = config.init(&device);
    let ours = MultiHeadAttention::from_burn(theirs.clone(), &Generator::new(1));
    let (x, memory) = (normal([2, 5, 12], &device), normal([2, 9, 12], &device));
    let pad: Vec<bool> = (0..18).map(|n| n == 8 || n > 14).collect();
    let pad = Tensor::<2, Bool>::from_data(TensorData::new(pad, [2, 9]), &device);
    let mut cache = MhaCache::autoregressive_cross_attention();
    let mut burns = BurnCache::autoregressive_cross_attention();
    for seqlen in 1..=5 {
        let seen = x.clone().narrow(1, 0, seqlen);
        let input = MhaInput::new(seen.clone(), memory.clone(), memory.clone()).mask_pad(pad.clone());
        let expected = theirs.forward_cache(input, &mut burns).context;
        let scores = ScoreInputs::default().mask_pad(pad.clone());
        let found = ours.forward_cache([seen, memory.clone(), memory.clone()], scores, &mut cache);
        assert!(difference(found, expected) < 1e-5);
    }
}

#[test]
#[should_panic(expected = "query has 4 tokens, expected more than the 4 that the cache has seen")]
fn a_cache_without_a_new_token_is_refused() {
    let device = Device::flex();
    let layer = layer(&MultiHeadAttentionConfig::new(12, 2), &device);
    let (x, mut cache) = (normal([2, 4, 12], &device), MhaCache::autoregressive());
    for _ in 0..2 {
        layer.forward_cache(same(&x), ScoreInputs::default(), &mut cache);
    }
}

#[test]
#[should_panic(expected = "key has 4 tokens, expected more than the 4 that the cache has seen")]
fn a_cache_whose_keys_do_not_grow_is_refused() {
    let device = Device::flex();
    let layer = layer(&MultiHeadAttentionConfig::new(12, 2), &device);
    let (x, mut cache) = (normal([2, 5, 12], &device), MhaCache::autoregressive());
    for seqlen in [4, 5] {
        let (query, key) = (x.clone().narrow(1, 0, seqlen), x.clone().narrow(1, 0, 4));
        layer.forward_cache([query, key.clone(), key], ScoreInputs::default(), &mut cache);
    }
}

/// With values of 1 and projections that copy, each output is a sum of what was kept of two probabilities of 1/2: half the
/// scale, once or twice, or 0. Before the softmax dropout would leave sums of 1.
#[test]
fn dropout_acts_behind_the_softmax() {
    let device = Device::flex().autodiff();
    let config = MultiHeadAttentionConfig::new(1, 1).with_dropout(0.5);
    let mut layer = layer(&config, &device);
    for linear in [&mut layer.query, &mut layer.key, &mut layer.value, &mut layer.output] {
        linear.weight = linear.weight.clone().map(|x| x.ones_like());
        linear.bias = None;
    }
    let out = layer.forward(Tensor::ones([64, 2, 1], &device));
    let scale = 256.0 / 128.0;
    let mut counts = [0; 3];
    for found in out.into_data().try_into_vec::<f32>().unwrap() {
        let kept = (found / (0.5 * scale)).round();
        assert!((found - kept * 0.5 * scale).abs() < 1e-6 && kept <= 2.0, "{found}");
        counts[kept as usize] += 1;
    }
    assert!(counts.iter().all(|&count| count > 10), "none, one and both are kept: {counts:?}");
}

#[test]
#[should_panic(expected = "k has shape [1, 3, 2, 4], expected [2, 3, 2, 4]")]
fn keys_of_another_batch_are_named() {
    let device = Device::flex();
    let layer = layer(&MultiHeadAttentionConfig::new(8, 2), &device);
    let key = normal([1, 3, 8], &device);
    layer.forward_cross(normal([2, 3, 8], &device), key.clone(), key);
}

#[test]
#[should_panic(expected = "v has shape [1, 3, 2, 4], expected [2, 3, 2, 4]")]
fn values_of_another_batch_are_named() {
    let device = Device::flex();
    let layer = layer(&MultiHeadAttentionConfig::new(8, 2), &device);
    let x = normal([2, 3, 8], &device);
    layer.forward_cross(x.clone(), x, normal([1, 3, 8], &device));
}
