//! What Burn's graph, modules and records ask of the operator.

use burn::module::Module as _;
use burn::nn::attention::{MhaInput, MultiHeadAttentionConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use signflash_burn::{Attention, Dropout, Generator, MultiHeadAttention, Problem, Shape, attention};

fn normal<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), device)
}

fn difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("numbers")
}

#[test]
fn gradients_are_those_of_burns_operators_with_the_core_s_mask() {
    let device = Device::flex().autodiff();
    let shape = Shape::new(2, 33, 47).heads(3, 3).head_dim(16);
    let problem = Problem::builder(shape).dropout(Dropout::new(0.3, 42, 0).unwrap()).build().unwrap();
    let rule = problem.keep_rule().unwrap();
    let mut keep = Vec::new();
    for (batch, head) in (0..2).flat_map(|batch| (0..3).map(move |head| (batch, head))) {
        for (row, column) in (0..33).flat_map(|row| (0..47).map(move |column| (row, column))) {
            let kept = rule.keep(batch, head, row, column);
            keep.push(if kept { problem.keep_scale() as f32 } else { 0.0 });
        }
    }
    let keep = Tensor::<4>::from_data(TensorData::new(keep, [2, 3, 33, 47]), &device);
    let operands = [33, 47, 47].map(|seqlen| normal([2, 3, seqlen, 16], &device).require_grad());
    let weight = normal([2, 3, 33, 16], &device);
    let [q, k, v] = operands.clone();
    let ours = attention(&problem, [q.clone(), k.clone(), v.clone()]);
    let probs = softmax(q.matmul(k.transpose()).div_scalar(4.0), 3);
    let theirs = (probs * keep).matmul(v);
    assert!(difference(ours.clone(), theirs.clone()) < 2e-6);
    let (ours, theirs) = ((ours * weight.clone()).sum().backward(), (theirs * weight).sum().backward());
    for x in operands {
        assert!(difference(x.grad(&ours).unwrap(), x.grad(&theirs).unwrap()) < 1e-5);
    }
}

#[test]
fn evaluation_drops_nothing_and_draws_nothing() {
    let (plain, training) = (Device::flex(), Device::flex().autodiff());
    let generator = Generator::new(7);
    let settings = Attention::new().dropout(0.5, &generator);
    let data = normal([1, 2, 20, 8], &plain).into_data();
    let [q, trained] = [&plain, &training].map(|device| Tensor::<4>::from_data(data.clone(), device));
    let out = settings.forward(q.clone(), q.clone(), q.clone());
    assert_eq!(numbers(out.clone()), numbers(Attention::new().forward(q.clone(), q.clone(), q)));
    assert_eq!(generator.state().offset, 0);
    let saved = generator.state();
    let [first, second] =
        [(), ()].map(|()| settings.forward(trained.clone(), trained.clone(), trained.clone()));
    let (first, second) = (numbers(first), numbers(second));
    assert_ne!(first, numbers(out));
    assert_ne!(first, second);
    generator.restore(saved);
    assert_eq!(numbers(settings.forward(trained.clone(), trained.clone(), trained)), first);
}

#[test]
fn the_layer_is_burns_with_burns_weights() {
    let device = Device::flex();
    let theirs = MultiHeadAttentionConfig::new(32, 4).with_dropout(0.5).init(&device);
    let ours = MultiHeadAttention::from_burn(theirs.clone(), &Generator::new(1));
    let x = normal([2, 12, 32], &device);
    let expected = theirs.forward(MhaInput::self_attn(x.clone())).context;
    assert!(difference(ours.forward(x), expected) < 1e-5);
    let (q, memory) = (normal([2, 5, 32], &device), normal([2, 9, 32], &device));
    let expected = theirs.forward(MhaInput::new(q.clone(), memory.clone(), memory.clone())).context;
    assert!(difference(ours.forward_cross(q, memory.clone(), memory), expected) < 1e-5);
}

#[test]
fn a_record_of_burns_layer_loads() {
    let device = Device::flex();
    let config = MultiHeadAttentionConfig::new(32, 4);
    let theirs = config.init(&device);
    let other = MultiHeadAttention::from_burn(config.init(&device), &Generator::new(1));
    let x = normal([2, 12, 32], &device);
    let expected = theirs.forward(MhaInput::self_attn(x.clone())).context;
    assert!(difference(other.forward(x.clone()), expected.clone()) > 1e-3, "other weights at first");
    let loaded = other.load_record(theirs.into_record());
    assert!(difference(loaded.forward(x), expected) < 1e-5);
}

#[test]
fn the_layer_s_gradients_without_dropout_are_burns() {
    let device = Device::flex().autodiff();
    let theirs = MultiHeadAttentionConfig::new(32, 4).with_dropout(0.0).init(&device);
    let ours = MultiHeadAttention::from_burn(theirs.clone(), &Generator::new(1));
    let x = normal([2, 12, 32], &device).require_grad();
    let weight = normal([2, 12, 32], &device);
    let expected = (theirs.forward(MhaInput::self_attn(x.clone())).context * weight.clone()).sum().backward();
    let found = (ours.forward(x.clone()) * weight).sum().backward();
    assert!(difference(x.grad(&found).unwrap(), x.grad(&expected).unwrap()) < 1e-5);
    for (ours, theirs) in [(&ours.query, &theirs.query), (&ours.value, &theirs.value)] {
        let (found, expected) =
            (ours.weight.val().grad(&found).unwrap(), theirs.weight.val().grad(&expected).unwrap());
        assert!(difference(found, expected) < 1e-4);
    }
}

#[test]
#[should_panic(expected = "num_heads must be a positive multiple of num_heads_k, got num_heads 2")]
fn heads_that_do_not_fit_are_said_in_words() {
    let device = Device::flex();
    let (q, k) = (normal([1, 2, 20, 8], &device), normal([1, 3, 30, 8], &device));
    Attention::new().forward(q, k.clone(), k);
}

#[test]
#[should_panic(expected = "v has shape [1, 19, 2, 8], expected [1, 20, 2, 8]")]
fn a_tensor_that_does_not_fit_is_named() {
    let q = normal([1, 2, 20, 8], &Device::flex());
    Attention::new().forward(q.clone(), q.clone(), q.narrow(2, 0, 19));
}
