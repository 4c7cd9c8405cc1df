//! What scores are made of besides q and k, through candle's graph.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use signflash_candle::{
    Attention, Dropout, Dtype, Generator, Inputs, Layout, MultiHeadAttention, MultiHeadConfig, Problem,
    ScoreInputs, Shape, attention_with_lse,
};

const CPU: &Device = &Device::Cpu;

fn normal(dims: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, dims, CPU)
}

fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Compares a gradient with how the loss changes along a direction.
fn assert_slope(var: &Var, gradient: &Tensor, loss: impl Fn() -> Result<f32>) -> Result<()> {
    let direction = normal(var.dims())?;
    let (at, step) = (var.as_tensor().copy()?, 1e-2);
    let along = |sign: f64| -> Result<f32> {
        var.set(&(&at + (&direction * (sign * step))?)?)?;
        loss()
    };
    let difference = (along(1.0)? - along(-1.0)?) / (2.0 * step as f32);
    var.set(&at)?;
    let slope = gradient.mul(&direction)?.sum_all()?.to_scalar::<f32>()?;
    assert!((difference - slope).abs() < 2e-3 * (1.0 + slope.abs()), "{difference} and {slope}");
    Ok(())
}

#[test]
fn gradients_of_a_bias_and_of_sinks_are_finite_differences() -> Result<()> {
    let (q, k, weight) = (normal(&[2, 9, 4, 8])?, normal(&[2, 11, 2, 8])?, normal(&[2, 9, 4, 8])?);
    let lse_weight = normal(&[2, 4, 9])?;
    let (bias, sinks) = (Var::from_tensor(&normal(&[1, 4, 9, 11])?)?, Var::from_tensor(&normal(&[4])?)?);
    let shape = Shape::new(2, 9, 11).heads(4, 2).head_dim(8);
    let problem = Problem::builder(shape).softcap(3.0).bias(Dtype::F32, [1, 4, 9, 11]).sinks(true);
    let problem = problem.dropout(Dropout::new(0.3, 42, 0).unwrap()).build().unwrap();
    let loss = || {
        let scores = ScoreInputs::default().bias(&*bias).sinks(&*sinks);
        let (out, lse) = attention_with_lse(&problem, Inputs::new(&q, &k, &k).scores(scores), Layout::Bshd)?;
        out.mul(&weight)?.sum_all()? + lse.mul(&lse_weight)?.sum_all()?
    };
    let found = loss()?.backward()?;
    for var in [&bias, &sinks] {
        assert_slope(var, found.get(var).unwrap(), || loss()?.to_scalar())?;
    }
    Ok(())
}

#[test]
fn lse_has_a_gradient() -> Result<()> {
    let q = Var::from_tensor(&normal(&[1, 9, 4, 8])?)?;
    let (k, weight) = (normal(&[1, 11, 4, 8])?, normal(&[1, 4, 9])?);
    let problem = Problem::builder(Shape::new(1, 9, 11).heads(4, 4).head_dim(8)).build().unwrap();
    let loss = || attention_with_lse(&problem, [&q, &k, &k], Layout::Bshd)?.1.mul(&weight)?.sum_all();
    assert_slope(&q, loss()?.backward()?.get(&q).unwrap(), || loss()?.to_scalar())
}

#[test]
fn a_bias_and_a_mask_broadcast_and_their_gradients_find_back() -> Result<()> {
    let q = normal(&[2, 6, 4, 8])?;
    let whole = Var::zeros((2, 4, 6, 6), DType::F32, CPU)?;
    let gradient = |bias: &Var, layout: Layout| -> Result<Tensor> {
        let q = if layout == Layout::Bhsd { q.transpose(1, 2)? } else { q.clone() };
        let inputs = Inputs::new(&q, &q, &q).scores(ScoreInputs::default().bias(&**bias));
        let out = Attention::new().causal(true).layout(layout).forward_with(inputs, true)?;
        Ok(out.sqr()?.sum_all()?.backward()?.get(bias).unwrap().clone())
    };
    let expected = gradient(&whole, Layout::Bshd)?;
    assert!(numbers(&expected)?.iter().any(|x| x.abs() > 1e-2));
    for dims in [vec![2, 4, 6, 6], vec![4, 6, 6], vec![6, 6], vec![6], vec![4, 1, 1], vec![4, 6, 1]] {
        let bias = Var::zeros(dims.clone(), DType::F32, CPU)?;
        let mut summed = expected.clone();
        let padded: Vec<usize> = std::iter::repeat_n(1, 4 - dims.len()).chain(dims.clone()).collect();
        for (dim, &size) in padded.iter().enumerate() {
            summed = if size == 1 { summed.sum_keepdim(dim)? } else { summed };
        }
        for layout in [Layout::Bshd, Layout::Bhsd] {
            let found = gradient(&bias, layout)?;
            assert!(difference(&found, &summed.reshape(dims.clone())?)? < 1e-4, "{dims:?}");
        }
    }
    let mask = Tensor::new(&[1u8, 1, 0, 1, 0, 0], CPU)?;
    let masked = Inputs::new(&q, &q, &q).scores(ScoreInputs::default().mask(&mask));
    let masked = Attention::new().forward_with(masked, false)?;
    let seen = Tensor::new(&[0u32, 1, 3], CPU)?;
    let k = q.index_select(&seen, 1)?;
    assert!(difference(&masked, &Attention::new().forward(&q, &k, &k, false)?)? < 1e-6);
    Ok(())
}

#[test]
fn one_graph_with_a_bias_is_differentiated_twice_on_two_threads_or_never() -> Result<()> {
    let (q, bias) = (Var::from_tensor(&normal(&[1, 40, 2, 8])?)?, Var::from_tensor(&normal(&[2, 40, 40])?)?);
    let sinks = Var::from_tensor(&normal(&[2])?)?;
    let scores = ScoreInputs::default().bias(&*bias).sinks(&*sinks);
    let attention = Attention::new().dropout(0.2, &Generator::new(1));
    let out = attention.forward_with(Inputs::new(&q, &q, &q).scores(scores), true)?;
    let losses = [out.sqr()?.sum_all()?, out.sum_all()?];
    let alone = losses.each_ref().map(|loss| {
        let found = loss.backward().unwrap();
        [&q, &bias, &sinks].map(|x| numbers(found.get(x).unwrap()).unwrap())
    });
    assert_ne!(alone[0], alone[1]);
    std::thread::scope(|scope| {
        for (loss, expected) in losses.iter().zip(&alone) {
            let vars = [&q, &bias, &sinks];
            scope.spawn(move || {
                for _ in 0..20 {
                    let found = loss.backward().unwrap();
                    let got = vars.map(|x| numbers(found.get(x).unwrap()).unwrap());
                    assert!(&got == expected, "another thread's gradients");
                }
            });
        }
    });
    drop(attention.forward_with(Inputs::new(&q, &q, &q).scores(scores), true)?);
    Ok(())
}

#[test]
fn packed_sequences_have_each_a_bias_and_slopes() -> Result<()> {
    let (q, sinks) = (normal(&[30, 2, 8])?, normal(&[2])?);
    let (bias, slopes) = (normal(&[3, 1, 17, 17])?, normal(&[3, 2])?);
    let settings = Attention::new().causal(true);
    let scores = ScoreInputs::default().bias(&bias).alibi_slopes(&slopes).sinks(&sinks);
    let ends = [0, 10, 27, 30];
    let packed = settings.forward_packed(Inputs::new(&q, &q, &q).scores(scores), &ends, &ends, false)?;
    for (n, (begin, len)) in [(0, 10), (10, 17), (27, 3)].into_iter().enumerate() {
        let alone = q.narrow(0, begin, len)?.unsqueeze(0)?;
        let bias = bias.narrow(0, n, 1)?.narrow(2, 0, len)?.narrow(3, 0, len)?;
        let slopes = slopes.narrow(0, n, 1)?;
        let scores = ScoreInputs::default().bias(&bias).alibi_slopes(&slopes).sinks(&sinks);
        let inputs = Inputs::new(&alone, &alone, &alone).scores(scores);
        let expected = settings.forward_with(inputs, false)?.squeeze(0)?;
        assert!(difference(&packed.narrow(0, begin, len)?, &expected)? < 1e-6);
    }
    Ok(())
}

#[test]
fn a_layer_does_not_look_at_padding() -> Result<()> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, CPU);
    let layer = MultiHeadAttention::new(MultiHeadConfig::new(32, 4), Attention::new(), vb)?;
    let x = normal(&[2, 12, 32])?;
    let mask = Tensor::from_vec((0..24).map(|n| u8::from(n < 19)).collect(), (2, 1, 1, 12), CPU)?;
    let scores = ScoreInputs::default().mask(&mask);
    let out = layer.forward_with(&x, &x, scores, false)?.narrow(0, 1, 1)?.narrow(1, 0, 7)?;
    let short = x.narrow(0, 1, 1)?.narrow(1, 0, 7)?.contiguous()?;
    assert!(difference(&out, &layer.forward(&short, &short, false)?)? < 1e-5);
    Ok(())
}

#[test]
fn a_bias_without_a_variable_costs_no_gradient() -> Result<()> {
    let (q, bias) = (Var::from_tensor(&normal(&[1, 9, 2, 8])?)?, normal(&[9, 9])?);
    let inputs = Inputs::new(&q, &q, &q).scores(ScoreInputs::default().bias(&bias));
    let found = Attention::new().forward_with(inputs, true)?.sqr()?.sum_all()?.backward()?;
    assert!(found.get(&q).is_some() && found.get(&bias).is_none());
    Ok(())
}

#[test]
fn operands_that_do_not_fit_are_said_in_words() -> Result<()> {
    let q = normal(&[2, 6, 4, 8])?;
    let generator = Generator::new(0);
    let attention = Attention::new().dropout(0.5, &generator);
    let words = |scores: ScoreInputs<'_>| {
        attention.forward_with(Inputs::new(&q, &q, &q).scores(scores), true).unwrap_err().to_string()
    };
    let [wide, long, narrow] = [normal(&[2, 3, 6, 6])?, normal(&[6, 7])?, normal(&[1, 2, 4, 6, 6])?];
    let integers = wide.to_dtype(DType::I64)?;
    let variable = Var::from_tensor(&normal(&[4])?)?;
    let scores = ScoreInputs::default();
    for (scores, expected) in [
        (scores.bias(&wide), "bias has shape [2, 3, 6, 6], expected its dimension 1 to be 1 or 4, num_heads"),
        (scores.bias(&long), "bias has shape [1, 1, 6, 7], expected its dimension 3 to be 6, seqlen_k"),
        (scores.bias(&narrow), "bias must be (batch, num_heads, seqlen_q, seqlen_k)"),
        (scores.bias(&integers), "bias must be f32, f16 or bf16, got I64; convert it with to_dtype"),
        (
            scores.mask(&long),
            "mask must be u8, 0 where a query does not see a key, got F32; make it with ne(0)",
        ),
        (scores.sinks(&long), "sinks must be (num_heads), got [6, 7]"),
        (scores.alibi_slopes(&narrow), "alibi_slopes must be (num_heads) or (batch, num_heads)"),
        (scores.alibi_slopes(&*variable), "alibi_slopes must not require a gradient"),
    ] {
        let words = words(scores);
        assert!(words.contains(expected), "{words}");
    }
    let sinks = normal(&[5])?;
    let words = words(scores.sinks(&sinks));
    assert!(words.contains("sinks has shape [5], expected [4] (num_heads), dense"), "{words}");
    assert_eq!(generator.state().offset, 0, "what is refused draws nothing");
    Ok(())
}
