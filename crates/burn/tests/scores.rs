//! What scores are made of besides q and k, and packed sequences, through Burn's graph.

use burn::nn::attention::{MhaInput, MultiHeadAttentionConfig};
use burn::tensor::{Bool, Device, Distribution, Int, Tensor, TensorData};
use signflash_burn::{
    Attention, Dropout, Dtype, Generator, Inputs, MultiHeadAttention, Problem, ScoreInputs, Shape,
    attention_with_lse,
};

fn normal<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), device)
}

fn difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

fn hidden<const D: usize>(
    dims: [usize; D],
    device: &Device,
    rule: impl Fn(usize) -> bool,
) -> Tensor<D, Bool> {
    let len = dims.iter().product();
    Tensor::from_data(TensorData::new((0..len).map(rule).collect::<Vec<bool>>(), dims), device)
}

/// Compares a gradient with how the loss changes along a direction.
fn assert_slope<const D: usize>(at: Tensor<D>, gradient: Tensor<D>, loss: impl Fn(Tensor<D>) -> f32) {
    let (at, step) = (at.detach(), 1e-2);
    let direction = normal(at.dims(), &at.device());
    let along = |sign: f32| loss(at.clone() + direction.clone() * (sign * step));
    let difference = (along(1.0) - along(-1.0)) / (2.0 * step);
    let slope = (gradient * direction.inner()).sum().into_scalar::<f32>();
    assert!((difference - slope).abs() < 2e-3 * (1.0 + slope.abs()), "{difference} and {slope}");
}

#[test]
fn gradients_of_a_bias_and_of_sinks_are_finite_differences() {
    let device = Device::flex().autodiff();
    let (q, k, weight) =
        (normal([2, 4, 9, 8], &device), normal([2, 2, 11, 8], &device), normal([2, 4, 9, 8], &device));
    let lse_weight = normal([2, 4, 9], &device);
    let (bias, sinks) = (normal([1, 4, 9, 11], &device).require_grad(), normal([4], &device).require_grad());
    let shape = Shape::new(2, 9, 11).heads(4, 2).head_dim(8);
    let problem = Problem::builder(shape).softcap(3.0).bias(Dtype::F32, [1, 4, 9, 11]).sinks(true);
    let problem = problem.dropout(Dropout::new(0.3, 42, 0).unwrap()).build().unwrap();
    let loss = |bias: Tensor<4>, sinks: Tensor<1>| {
        let scores = ScoreInputs::default().bias(bias).sinks(sinks);
        let inputs = Inputs::new(q.clone(), k.clone(), k.clone()).scores(scores);
        let (out, lse) = attention_with_lse(&problem, inputs);
        (out * weight.clone()).sum() + (lse * lse_weight.clone()).sum()
    };
    let found = loss(bias.clone(), sinks.clone()).backward();
    let (dbias, dsinks) = (bias.grad(&found).unwrap(), sinks.grad(&found).unwrap());
    assert_slope(bias.clone(), dbias, |bias| loss(bias, sinks.clone()).into_scalar::<f32>());
    assert_slope(sinks, dsinks, |sinks| loss(bias.clone(), sinks).into_scalar::<f32>());
}

#[test]
fn a_bias_of_one_key_or_head_is_everybodys() {
    let device = Device::flex().autodiff();
    let q = normal([2, 4, 6, 8], &device);
    let gradient = |dims: [usize; 4]| {
        let bias = Tensor::<4>::zeros(dims, &device).require_grad();
        let inputs = Inputs::new(q.clone(), q.clone(), q.clone());
        let out = Attention::new()
            .causal(true)
            .forward_with(inputs.scores(ScoreInputs::default().bias(bias.clone())));
        bias.grad(&out.powi_scalar(2).sum().backward()).unwrap()
    };
    let whole = gradient([2, 4, 6, 6]);
    for dims in [[1, 4, 6, 6], [2, 1, 6, 6], [2, 4, 1, 6], [1, 1, 1, 6], [1, 4, 1, 1]] {
        let mut summed = whole.clone();
        for (dim, _) in dims.iter().enumerate().filter(|(_, size)| **size == 1) {
            summed = summed.sum_dim(dim);
        }
        assert!(difference(gradient(dims), summed) < 1e-4, "{dims:?}");
    }
}

#[test]
fn packed_sequences_are_each_alone_with_their_bias_and_slopes() {
    let device = Device::flex();
    let (q, sinks) = (normal([30, 2, 8], &device), normal([2], &device));
    let (bias, slopes) = (normal([3, 1, 17, 17], &device), normal([3, 2], &device));
    let settings = Attention::new().causal(true);
    let scores = ScoreInputs::default().bias(bias.clone()).alibi_slopes(slopes.clone()).sinks(sinks.clone());
    let ends = [0, 10, 27, 30];
    let inputs = Inputs::new(q.clone(), q.clone(), q.clone()).scores(scores);
    let packed = settings.forward_packed(inputs, &ends, &ends);
    for (n, (begin, len)) in [(0, 10), (10, 17), (27, 3)].into_iter().enumerate() {
        let alone = q.clone().narrow(0, begin, len).swap_dims(0, 1).unsqueeze::<4>();
        let bias = bias.clone().narrow(0, n, 1).narrow(2, 0, len).narrow(3, 0, len);
        let slopes = slopes.clone().narrow(0, n, 1);
        let scores = ScoreInputs::default().bias(bias).alibi_slopes(slopes).sinks(sinks.clone());
        let inputs = Inputs::new(alone.clone(), alone.clone(), alone).scores(scores);
        let expected = settings.forward_with(inputs).squeeze_dim::<3>(0).swap_dims(0, 1);
        assert!(difference(packed.clone().narrow(0, begin, len), expected) < 1e-6);
    }
}

#[test]
fn packed_sequences_draw_a_mask_each_and_have_gradients() {
    let device = Device::flex().autodiff();
    let q = normal([30, 2, 8], &device).require_grad();
    let (generator, ends) = (Generator::new(3), [0, 10, 27, 30]);
    let settings = Attention::new().dropout(0.5, &generator);
    let out = settings.forward_packed([q.clone(), q.clone(), q.clone()], &ends, &ends);
    assert_eq!(generator.state().offset, 3 * 2 * 32, "three sequences of two heads draw a mask each");
    let found = q.grad(&out.narrow(0, 0, 10).sum().backward()).unwrap();
    assert!(found.clone().narrow(0, 0, 10).abs().sum().into_scalar::<f32>() > 1.0);
    assert_eq!(found.narrow(0, 10, 20).abs().sum().into_scalar::<f32>(), 0.0, "of another sequence");
}

#[test]
fn masks_are_burns() {
    let device = Device::flex();
    let theirs = MultiHeadAttentionConfig::new(32, 4).init(&device);
    let ours = MultiHeadAttention::from_burn(theirs.clone(), &Generator::new(1));
    let x = normal([2, 12, 32], &device);
    let pad = hidden([2, 12], &device, |n| n >= 19);
    let attn = hidden([2, 12, 12], &device, |n| n % 12 > (n / 12) % 12);
    let input = || MhaInput::self_attn(x.clone());
    for (input, scores) in [
        (input().mask_pad(pad.clone()), ScoreInputs::default().mask_pad(pad.clone())),
        (input().mask_attn(attn.clone()), ScoreInputs::default().mask_attn(attn.clone())),
        (
            input().mask_pad(pad.clone()).mask_attn(attn.clone()),
            ScoreInputs::default().mask_pad(pad).mask_attn(attn),
        ),
    ] {
        let expected = theirs.forward(input).context;
        assert!(difference(ours.forward_with([x.clone(), x.clone(), x.clone()], scores), expected) < 1e-5);
    }
}

#[test]
fn the_quiet_softmax_is_burns_with_its_gradients() {
    let device = Device::flex().autodiff();
    let config = MultiHeadAttentionConfig::new(32, 4).with_dropout(0.0).with_quiet_softmax(true);
    let theirs = config.init(&device);
    let ours = MultiHeadAttention::from_burn(theirs.clone(), &Generator::new(1));
    let x = normal([2, 12, 32], &device).require_grad();
    let (found, expected) = (ours.forward(x.clone()), theirs.forward(MhaInput::self_attn(x.clone())).context);
    assert!(difference(found.clone(), expected.clone()) < 1e-5);
    let [found, expected] =
        [found, expected].map(|out| x.grad(&out.powi_scalar(2).sum().backward()).unwrap());
    assert!(difference(found, expected) < 1e-4);
}

#[test]
fn nobody_looks_where_everything_is_hidden() {
    let device = Device::flex();
    let q = normal([1, 2, 5, 8], &device);
    let scores = ScoreInputs::default().mask(hidden([1, 1, 5, 5], &device, |n| n / 5 == 3));
    let out = Attention::new().forward_with(Inputs::new(q.clone(), q.clone(), q).scores(scores));
    assert_eq!(out.narrow(2, 3, 1).abs().sum().into_scalar::<f32>(), 0.0);
}

fn refused(scores: ScoreInputs) {
    let q = normal([2, 4, 6, 8], &Device::flex().autodiff());
    Attention::new().forward_with(Inputs::new(q.clone(), q.clone(), q).scores(scores));
}

#[test]
#[should_panic(expected = "bias has shape [2, 3, 6, 6], expected its dimension 1 to be 1 or 4, num_heads")]
fn a_bias_that_does_not_fit_is_named() {
    refused(ScoreInputs::default().bias(normal([2, 3, 6, 6], &Device::flex().autodiff())));
}

#[test]
#[should_panic(expected = "sinks has shape [5], expected [4] (num_heads), dense")]
fn sinks_that_do_not_fit_are_named() {
    refused(ScoreInputs::default().sinks(normal([5], &Device::flex().autodiff())));
}

#[test]
#[should_panic(expected = "alibi_slopes must not require a gradient")]
fn slopes_with_a_gradient_are_refused() {
    refused(ScoreInputs::default().alibi_slopes(normal([1, 4], &Device::flex().autodiff()).require_grad()));
}

#[test]
#[should_panic(expected = "mask has shape [1, 1, 6, 7], expected its dimension 3 to be 6, seqlen_k")]
fn a_mask_that_does_not_fit_is_named() {
    refused(ScoreInputs::default().mask(hidden([1, 1, 6, 7], &Device::flex(), |_| false)));
}

#[test]
fn a_bias_from_a_table_of_relative_positions_learns() {
    let device = Device::flex().autodiff();
    let table = Tensor::<2>::zeros([11, 4], &device).require_grad(); // (distances, num_heads)
    let distances: Vec<i32> = (0..36).map(|n| n % 6 - n / 6 + 5).collect();
    let distances = Tensor::<1, Int>::from_data(TensorData::new(distances, [36]), &device);
    let bias = table.clone().select(0, distances).reshape([1, 6, 6, 4]).permute([0, 3, 1, 2]);
    let q = normal([2, 4, 6, 8], &device);
    let inputs = Inputs::new(q.clone(), q.clone(), q).scores(ScoreInputs::default().bias(bias));
    let out = Attention::new().forward_with(inputs);
    let gradient = table.grad(&out.powi_scalar(2).sum().backward()).unwrap();
    assert!(gradient.abs().sum().into_scalar::<f32>() > 1e-2);
}
