//! What candle's graph, training and checkpoints ask of the operator.

use candle_core::{D, DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use signflash_candle::{
    Attention, Dropout, Generator, Layout, MultiHeadAttention, MultiHeadConfig, Problem, Shape, attention,
    probs,
};
use std::collections::HashMap;

const CPU: &Device = &Device::Cpu;

fn var(dims: &[usize]) -> Result<Var> {
    Var::randn(0f32, 1.0, dims, CPU)
}

fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// Attention by candle's own operators, (batch, seqlen, heads, head_dim), with what is kept as a tensor.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, keep: &Tensor) -> Result<Tensor> {
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
    let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
    let scores = (q.matmul(&k.t()?.contiguous()?)? * scale)?;
    (candle_nn::ops::softmax(&scores, D::Minus1)? * keep)?.matmul(&v)?.transpose(1, 2)
}

#[test]
fn gradients_are_those_of_candles_operators_with_the_core_s_mask() -> Result<()> {
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
    let keep = Tensor::from_vec(keep, (2, 3, 33, 47), CPU)?;
    let (q, k, v, weight) = (var(&shape.q())?, var(&shape.k())?, var(&shape.v())?, var(&shape.out())?);
    let (ours, theirs) = (attention(&problem, [&q, &k, &v], Layout::Bshd)?, composed(&q, &k, &v, &keep)?);
    assert!(difference(&ours, &theirs)? < 2e-6);
    let weigh = |out: &Tensor| out.mul(&weight)?.sum_all()?.backward();
    let (ours, theirs) = (weigh(&ours)?, weigh(&theirs)?);
    for x in [&q, &k, &v] {
        assert!(difference(ours.get(x).unwrap(), theirs.get(x).unwrap())? < 1e-5);
    }
    // The sign bit of probs is the core's mask, too.
    let signs = probs(&problem, [&q, &k, &v], Layout::Bshd)?.flatten_all()?.to_vec1::<f32>()?;
    let kept = keep.flatten_all()?.to_vec1::<f32>()?;
    assert!(signs.iter().zip(kept).all(|(p, kept)| p.is_sign_negative() == (kept == 0.0)));
    Ok(())
}

#[test]
fn one_graph_is_differentiated_twice_or_never() -> Result<()> {
    let q = var(&[1, 20, 2, 8])?;
    let attention = Attention::new().dropout(0.2, &Generator::new(1));
    let loss = attention.forward(&q, &q, &q, true)?.sqr()?.sum_all()?;
    let (first, second) = (loss.backward()?, loss.backward()?);
    assert_eq!(bits(first.get(&q).unwrap())?, bits(second.get(&q).unwrap())?);
    drop(attention.forward(&q, &q, &q, true)?); // and nothing waits for a backward
    Ok(())
}

#[test]
fn a_layer_of_f32_computes_attention_in_16_bits_where_it_is_asked_to() -> Result<()> {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, CPU);
    let layer = MultiHeadAttention::new(MultiHeadConfig::new(32, 4), Attention::new(), vb)?;
    let x = var(&[2, 12, 32])?;
    let whole = layer.forward_t(&x, true)?;
    let half = layer.attention_dtype(DType::BF16).forward_t(&x, true)?;
    assert_eq!(half.dtype(), DType::F32);
    let size = |x: &Tensor| -> Result<f32> { x.abs()?.flatten_all()?.max(0)?.to_scalar() };
    let apart = difference(&whole, &half)?;
    assert!(apart > 0.0 && apart < 2e-2 * size(&whole)?, "{apart}");
    let [whole, half] = [whole, half].map(|out| out.sqr()?.sum_all()?.backward());
    let (whole, half) = (whole?, half?);
    // The keys' bias has no gradient but what rounding leaves, so all are compared with the largest.
    let mut largest = 0f32;
    for var in weights.all_vars() {
        largest = largest.max(size(whole.get(&var).unwrap())?);
    }
    for var in weights.all_vars() {
        let (whole, half) = (whole.get(&var).unwrap(), half.get(&var).unwrap());
        assert_eq!(half.dtype(), DType::F32);
        assert!(difference(whole, half)? < 3e-2 * largest);
    }
    Ok(())
}

#[test]
fn evaluation_drops_nothing_and_draws_nothing() -> Result<()> {
    let generator = Generator::new(7);
    let q = var(&[1, 20, 2, 8])?;
    let attention = Attention::new().dropout(0.5, &generator);
    let plain = Attention::new().forward(&q, &q, &q, true)?;
    assert_eq!(bits(&attention.forward(&q, &q, &q, false)?)?, bits(&plain)?);
    assert_eq!(generator.state().offset, 0);
    assert!(difference(&attention.forward(&q, &q, &q, true)?, &plain)? > 0.1);
    assert_ne!(generator.state().offset, 0);
    Ok(())
}

#[test]
fn a_restored_generator_draws_the_same_again() -> Result<()> {
    let generator = Generator::new(7);
    let q = var(&[1, 20, 2, 8])?;
    let layers = [Attention::new().dropout(0.5, &generator), Attention::new().dropout(0.5, &generator)];
    let saved = generator.state();
    let run =
        || layers.iter().map(|layer| bits(&layer.forward(&q, &q, &q, true)?)).collect::<Result<Vec<_>>>();
    let first = run()?;
    assert_ne!(first[0], first[1], "layers that share a generator drop differently");
    assert_ne!(run()?, first);
    generator.restore(saved);
    assert_eq!(run()?, first);
    Ok(())
}

#[test]
fn both_layouts_and_any_strides_give_the_same() -> Result<()> {
    let (q, k) = (var(&[2, 20, 4, 8])?, var(&[2, 30, 2, 8])?);
    let settings = Attention::new().causal(true).window(Some(9), None);
    let expected = settings.forward(&q, &k, &k, false)?;
    let swapped = |x: &Tensor| x.transpose(1, 2); // a view
    let heads_first = settings.clone().layout(Layout::Bhsd);
    let out = heads_first.forward(&swapped(&q)?, &swapped(&k)?, &swapped(&k)?, false)?;
    assert!(out.is_contiguous());
    assert_eq!(bits(&swapped(&out)?)?, bits(&expected)?);
    // Rows that are not dense are copied, and gradients find their way back.
    let columns_first = Var::from_tensor(&q.permute((3, 0, 1, 2))?.contiguous()?)?;
    let view = columns_first.permute((1, 2, 3, 0))?;
    let out = settings.forward(&view, &k, &k, false)?;
    assert_eq!(bits(&out)?, bits(&expected)?);
    let gradients = [out, expected].map(|out| out.sqr()?.sum_all()?.backward());
    let [through_view, direct] = gradients;
    let (through_view, direct) = (through_view?, direct?);
    let back = through_view.get(&columns_first).unwrap().permute((1, 2, 3, 0))?;
    assert_eq!(bits(&back)?, bits(direct.get(&q).unwrap())?);
    Ok(())
}

#[test]
fn packed_sequences_are_each_alone() -> Result<()> {
    let q = var(&[30, 2, 8])?;
    let settings = Attention::new().causal(true);
    let cu_seqlens = [0, 10, 27, 30];
    let packed = settings.forward_packed([&q, &q, &q], &cu_seqlens, &cu_seqlens, false)?;
    for (begin, len) in [(0, 10), (10, 17), (27, 3)] {
        let alone = q.narrow(0, begin, len)?.unsqueeze(0)?;
        let expected = settings.forward(&alone, &alone, &alone, false)?.squeeze(0)?;
        assert!(difference(&packed.narrow(0, begin, len)?, &expected)? < 1e-6);
    }
    let generator = Generator::new(3);
    settings.dropout(0.5, &generator).forward_packed([&q, &q, &q], &cu_seqlens, &cu_seqlens, true)?;
    assert_eq!(generator.state().offset, 3 * 2 * 32, "three sequences of two heads draw a mask each");
    Ok(())
}

#[test]
fn a_layer_trains() -> Result<()> {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, CPU);
    let attention = Attention::new().causal(true).dropout(0.1, &Generator::new(5));
    let config = MultiHeadConfig { num_heads_k: 2, ..MultiHeadConfig::new(32, 4) };
    let layer = MultiHeadAttention::new(config, attention, vb.pp("layer"))?;
    let (x, target) =
        (Tensor::randn(0f32, 1.0, (2, 12, 32), CPU)?, Tensor::randn(0f32, 1.0, (2, 12, 32), CPU)?);
    let mut optimizer = candle_nn::AdamW::new_lr(weights.all_vars(), 3e-2)?;
    let mut losses = Vec::new();
    for _ in 0..40 {
        let loss = (layer.forward_t(&x, true)? - &target)?.sqr()?.mean_all()?;
        losses.push(loss.to_scalar::<f32>()?);
        candle_nn::Optimizer::backward_step(&mut optimizer, &loss)?;
    }
    assert!(losses[39] < 0.8 * losses[0], "{losses:?}");
    Ok(())
}

#[test]
fn a_layer_takes_the_weights_that_a_checkpoint_names() -> Result<()> {
    let mut tensors = HashMap::new();
    for name in ["self.query", "self.key", "self.value", "output.dense"] {
        tensors.insert(format!("attention.{name}.weight"), Tensor::eye(32, DType::F32, CPU)?);
        tensors.insert(format!("attention.{name}.bias"), Tensor::zeros(32, DType::F32, CPU)?);
    }
    let vb = VarBuilder::from_tensors(tensors, DType::F32, CPU);
    let names = ["self.query", "self.key", "self.value", "output.dense"];
    let config = MultiHeadConfig { names, ..MultiHeadConfig::new(32, 4) };
    let layer = MultiHeadAttention::new(config, Attention::new(), vb.pp("attention"))?;
    let x = Tensor::randn(0f32, 1.0, (2, 12, 32), CPU)?;
    let heads = x.reshape((2, 12, 4, 8))?;
    let expected = Attention::new().forward(&heads, &heads, &heads, false)?.flatten_from(2)?;
    assert!(difference(&layer.forward_t(&x, false)?, &expected)? < 1e-6);
    Ok(())
}

#[test]
fn what_is_not_computed_is_said_in_words() -> Result<()> {
    let (q, k) = (var(&[1, 20, 2, 8])?, var(&[1, 30, 3, 8])?);
    let plain = Attention::new();
    let words = |result: Result<Tensor>| result.unwrap_err().to_string();
    let heads = words(plain.forward(&q, &k, &k, false));
    assert!(
        heads.contains("num_heads must be a positive multiple of num_heads_k, got num_heads 2"),
        "{heads}"
    );
    let dtype = words(plain.forward(&q, &q.to_dtype(DType::F16)?, &q, false));
    assert!(dtype.contains("k must have q's dtype F32, got F16"), "{dtype}");
    let integers = q.to_dtype(DType::I64)?;
    let dtype = words(plain.forward(&integers, &integers, &integers, false));
    assert!(dtype.contains("q, k and v must be f32, f16 or bf16 on a CPU, got I64"), "{dtype}");
    let flat = q.flatten_from(2)?;
    let rank = words(plain.forward(&flat, &flat, &flat, false));
    assert!(rank.contains("q must be (batch, seqlen, num_heads, head_dim), got [1, 20, 16]"), "{rank}");
    let generator = Generator::new(0);
    let p = words(Attention::new().dropout(1.5, &generator).forward(&q, &q, &q, true));
    assert!(p.contains("dropout_p must be in [0, 1), got 1.5"), "{p}");
    let v = words(plain.forward(&q, &q, &q.narrow(1, 0, 19)?, false));
    assert!(v.contains("v has shape [1, 19, 2, 8], expected [1, 20, 2, 8]"), "{v}");
    assert_eq!(generator.state().offset, 0);
    Ok(())
}
