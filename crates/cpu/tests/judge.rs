//! No healthy result is called wrong, whatever its operands are like: the engine's against the one judge.

use signflash_core::judge::{Backward, Distance, Truth};
use signflash_core::suite::Values;
use signflash_core::{
    Dropout, Element, GradInputs, Gradients, Inputs, Outputs, Problem, Shape, TensorMut, TensorName,
    TensorRef, bf16, f16,
};
use signflash_cpu::{CpuEngine, Isa, IsaError};

const TENSORS: [TensorName; 5] =
    [TensorName::Out, TensorName::Lse, TensorName::Dq, TensorName::Dk, TensorName::Dv];

/// AMX is emulated where there is none.
fn engine_on(isa: Isa) -> Result<CpuEngine, IsaError> {
    let own = CpuEngine::new().with_isa(isa);
    if isa == Isa::Amx { own.or_else(|_| CpuEngine::emulating_amx()) } else { own }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|&isa| engine_on(isa).is_ok())
}

/// What the engine gives, in the order of [`TENSORS`], and the truth.
struct Judged {
    truth: Truth,
    results: [Vec<f64>; 5],
}

impl Judged {
    fn new<T: Element>(isa: Isa, problem: &Problem, values: &Values) -> Self {
        let shape = problem.shape();
        let rounded = |x: &[f64]| x.iter().map(|&x| T::from_f32(x as f32)).collect::<Vec<T>>();
        let (q, k, v, dout) =
            (rounded(&values.q), rounded(&values.k), rounded(&values.v), rounded(&values.dout));
        let inputs = Inputs::new(
            TensorRef::bshd(&q, shape.q()),
            TensorRef::bshd(&k, shape.k()),
            TensorRef::bshd(&v, shape.v()),
        );
        let dout = TensorRef::bshd(&dout, shape.out());
        let truth = Truth::of(problem, &inputs, Some(Backward { dout, dlse: None })).unwrap();
        let zeros = |len| vec![T::default(); len];
        let (mut out, mut lse) = (zeros(q.len()), vec![0.0; shape.lse_len()]);
        let (mut dq, mut dk, mut dv) = (zeros(q.len()), zeros(k.len()), zeros(k.len()));
        let engine = engine_on(isa).unwrap();
        let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
        engine.forward(problem, &inputs, &mut outputs).unwrap();
        let out_view = TensorRef::bshd(&out, shape.out());
        let mut gradients = Gradients::new(
            TensorMut::bshd(&mut dq, shape.q()),
            TensorMut::bshd(&mut dk, shape.k()),
            TensorMut::bshd(&mut dv, shape.v()),
        );
        let grad_inputs = GradInputs::new(inputs, out_view, &lse, dout);
        engine.backward(problem, &grad_inputs, &mut gradients).unwrap();
        let f64s = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let lse = lse.iter().copied().map(f64::from).collect();
        Self { truth, results: [f64s(&out), lse, f64s(&dq), f64s(&dk), f64s(&dv)] }
    }

    fn distances(&self) -> impl Iterator<Item = (TensorName, Distance)> + '_ {
        let pairs = TENSORS.into_iter().zip(&self.results);
        pairs.map(|(name, got)| (name, self.truth.tensor(name).unwrap().distance(|n| got[n])))
    }
}

fn judged(dtype: &str, isa: Isa, problem: &Problem, values: &Values) -> Judged {
    match dtype {
        "f32" => Judged::new::<f32>(isa, problem, values),
        "f16" => Judged::new::<f16>(isa, problem, values),
        _ => Judged::new::<bf16>(isa, problem, values),
    }
}

/// Numbers that look random and are the same every time.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

#[test]
fn no_random_problem_is_called_wrong() {
    let count = std::env::var("SIGNFLASH_JUDGE_PROBLEMS").map_or(150, |count| count.parse().unwrap());
    let isas: Vec<Isa> = isas().collect();
    let (mut draw, mut wrong, mut worst) = (Draw(1), vec![], 0.0f64);
    for n in 0..count {
        let num_heads_k = 1 + draw.below(2);
        let length = |draw: &mut Draw| {
            let end = draw.one_of(&[3, 5, 20, 140]);
            1 + draw.below(end)
        };
        let shape = Shape::new(1 + draw.below(2), length(&mut draw), length(&mut draw))
            .heads(num_heads_k * (1 + draw.below(3)), num_heads_k)
            .head_dim(draw.one_of(&[1, 2, 3, 8, 16, 33, 64, 80, 128, 200, 256]));
        let p = draw.one_of(&[0.0, 0.1, 0.5, 0.9]);
        let causal = draw.below(2) == 1;
        let problem = Problem::builder(shape).causal(causal);
        // Half of the causal ones face other keys than the default: more, fewer, all or none.
        let problem = match causal && draw.below(2) == 1 {
            true => problem.diagonal(draw.one_of(&[-200, -70, -16, -1, 0, 1, 33, 64, 150])),
            false => problem,
        };
        let problem = problem.dropout(Dropout::new(p, n as u64, 0).unwrap()).build().unwrap();
        let values = Values::normal(&shape, n as u64, 1.0, 1.0);
        let (dtype, isa) = (draw.one_of(&["f32", "f16", "bf16"]), draw.one_of(&isas));
        for (name, distance) in judged(dtype, isa, &problem, &values).distances() {
            let ratio = distance.error() / distance.bound();
            worst = worst.max(ratio);
            if !distance.is_right() {
                wrong.push(format!(
                    "{n}: {name} {dtype} {isa} {:.2e} of {:.2e}, {problem:?}",
                    distance.error(),
                    distance.bound()
                ));
            }
        }
    }
    println!("worst {worst:.3} of its bound");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Where all roundings go the same way.
#[test]
fn equal_numbers_are_not_called_wrong() {
    let mut wrong = vec![];
    for (x, seqlen_q, seqlen_k, head_dim, p) in [
        (0.7, 33, 100, 128, 0.1),
        (-0.7, 65, 129, 256, 0.0),
        (0.3, 64, 15, 64, 0.0),
        (1.0 / 15.0, 64, 64, 64, 0.0),
    ] {
        let shape = Shape::new(1, seqlen_q, seqlen_k).heads(2, 2).head_dim(head_dim);
        let problem =
            Problem::builder(shape).causal(p > 0.0).dropout(Dropout::new(p, 1, 0).unwrap()).build().unwrap();
        let mut values = Values::normal(&shape, 1, 1.0, 1.0);
        for tensor in [&mut values.q, &mut values.k, &mut values.v, &mut values.dout] {
            tensor.fill(x);
        }
        for isa in isas() {
            for dtype in ["f32", "f16", "bf16"] {
                for (name, distance) in judged(dtype, isa, &problem, &values).distances() {
                    if !distance.is_right() {
                        let (error, bound) = (distance.error(), distance.bound());
                        wrong.push(format!("all {x}: {name} {dtype} {isa} {error:.2e} of {bound:.2e}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
