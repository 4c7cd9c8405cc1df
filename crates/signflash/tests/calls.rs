//! That the functions give what the engine gives.

use signflash::prelude::*;
use signflash::{BackwardWith, GradInputs, Gradients, Outputs};

fn numbers(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * step).sin()).collect()
}

fn problem() -> Problem {
    let shape = Shape::new(2, 33, 47).heads(4, 2).head_dim(16);
    let dropout = Dropout::new(0.2, 42, 7).unwrap();
    Problem::builder(shape).causal(true).dropout(dropout).build().unwrap()
}

#[test]
fn results_are_the_engines_to_the_bit() {
    let problem = problem();
    let shape = problem.shape();
    let [q, k, v] = [(shape.q(), 0.3), (shape.k(), 0.7), (shape.v(), 1.1)]
        .map(|(shape, step)| numbers(shape.iter().product(), step));
    let (dout, dlse) = (numbers(q.len(), 0.9), numbers(shape.lse_len(), 0.5));
    let attended = attention(&problem, &q, &k, &v).unwrap();
    let (plain, through_lse) = (
        attended.backward(&dout).unwrap(),
        attended.backward_with(&dout, BackwardWith { dlse: Some(&dlse), ..Default::default() }).unwrap(),
    );

    let inputs = Inputs::new(
        TensorRef::bshd(&q, shape.q()),
        TensorRef::bshd(&k, shape.k()),
        TensorRef::bshd(&v, shape.v()),
    );
    let (mut out, mut lse) = (vec![0.0f32; q.len()], vec![0.0; shape.lse_len()]);
    let mut probs = vec![0.0; shape.probs().iter().product()];
    let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse)
        .probs(TensorMut::bshd(&mut probs, shape.probs()));
    CpuEngine::new().forward(&problem, &inputs, &mut outputs).unwrap();
    assert_eq!((&attended.out, &attended.lse), (&out, &lse));
    assert!(attended.probs().unwrap().iter().zip(&probs).all(|(a, b)| a.to_bits() == b.to_bits()));

    let (mut dq, mut dk, mut dv) = (vec![0.0f32; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let read = GradInputs::new(
        inputs,
        TensorRef::bshd(&out, shape.out()),
        &lse,
        TensorRef::bshd(&dout, shape.out()),
    );
    for (dlse, ours) in [(None, plain), (Some(&dlse[..]), through_lse)] {
        let mut gradients = Gradients::new(
            TensorMut::bshd(&mut dq, shape.q()),
            TensorMut::bshd(&mut dk, shape.k()),
            TensorMut::bshd(&mut dv, shape.v()),
        );
        CpuEngine::new().backward(&problem, &read.dlse(dlse), &mut gradients).unwrap();
        assert_eq!((ours.dq, ours.dk, ours.dv), (dq.clone(), dk.clone(), dv.clone()));
    }
}

#[test]
fn a_slice_of_another_length_is_refused_by_name() {
    let problem = problem();
    let (q, k) = (vec![0.0f32; 4224], vec![0.0; 3008]);
    let refused = attention(&problem, &q, &k, &q).unwrap_err().to_string();
    let expected = "v has shape [4224], expected [2, 47, 2, 16] (batch, seqlen, num_heads, head_dim), dense";
    assert_eq!(refused, expected);
    let attended = attention(&problem, &q, &k, &k).unwrap();
    assert!(attended.backward(&q[1..]).unwrap_err().to_string().starts_with("dout has shape [4223]"));
    let refused = |with| attended.backward_with(&q, with).unwrap_err().to_string();
    let without_rows = BackwardWith { dlse: Some(&[]), ..Default::default() };
    assert!(refused(without_rows).starts_with("dlse has shape [0]"));
    for with in [
        BackwardWith { dbias: true, ..Default::default() },
        BackwardWith { dsinks: true, ..Default::default() },
    ] {
        let words = refused(with);
        assert!(
            words.starts_with("dbias") || words.starts_with("dsinks") || words.contains("declare"),
            "{words}"
        );
    }
}
