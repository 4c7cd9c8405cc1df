//! What implementations that are wrong about scores take for their operands. The oracle then computes what they would.

use crate::broken::Fault;
use signflash_core::suite::{Implementation, Reference, RunError};
use signflash_core::{
    BiasRef, Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, ScoreInputs, TensorMut,
    TensorRef,
};

/// The problem and the operands that a fault makes of dense ones.
pub(crate) struct Mistaken {
    problem: Problem,
    bias: Option<Vec<f32>>,
    mask: Option<Vec<u8>>,
}

impl Mistaken {
    /// `None` if the fault is about something else.
    pub(crate) fn by<T: Element>(fault: Fault, problem: &Problem, inputs: &Inputs<'_, T>) -> Option<Self> {
        let same = Self { problem: problem.clone(), bias: None, mask: None };
        let build = |builder: signflash_core::ProblemBuilder| builder.build().expect("as valid as it came");
        let shape = problem.shape();
        let full = [1, shape.num_heads, shape.seqlen_q, shape.seqlen_k];
        match fault {
            // What makes the same scores, of slope 1.
            Fault::SlopeLeftOut => {
                let cap = problem.softcap()?;
                let capped = of_products(problem, inputs, |s, _| cap * (s / cap).tanh() - s);
                let builder = problem.to_builder().softcap(None).bias(Dtype::F32, full);
                Some(Self { problem: build(builder), bias: Some(capped), ..same })
            }
            Fault::SoftcapAfterTheBias => {
                let cap = problem.softcap()?;
                let after = |s: f64, bias: f64| cap * ((s + bias) / cap).tanh() - cap * (s / cap).tanh();
                Some(Self { bias: Some(of_products(problem, inputs, after)), ..same })
            }
            Fault::BiasOfTheNextHead => {
                let [_, heads, queries, keys] = problem.bias()?.shape;
                let bias = inputs.scores.bias.expect("as declared");
                let of_next = |n: usize| {
                    let [h, i, j] = [n / keys / queries, n / keys % queries, n % keys];
                    bias.at([0, (h + 1) % heads, i, j]) as f32
                };
                Some(Self { bias: Some((0..heads * queries * keys).map(of_next).collect()), ..same })
            }
            Fault::InvertsTheMask => {
                let [batch, heads, queries, keys] = problem.mask()?;
                let mask = inputs.scores.mask.expect("as declared");
                let inverted = |n: usize| {
                    let [row, j] = [n / keys, n % keys];
                    u8::from(mask.at([row / queries / heads, row / queries % heads, row % queries, j]) == 0)
                };
                Some(Self { mask: Some((0..batch * heads * queries * keys).map(inverted).collect()), ..same })
            }
            // Nothing else asks for it where everybody sees every key.
            Fault::AlibiOneTooFar => {
                let builder = problem.to_builder().diagonal(problem.diagonal() + 1);
                Some(Self { problem: build(builder), ..same })
            }
            Fault::ScaleOfTheHeadDimOfV => {
                let builder = problem.to_builder().softmax_scale(1.0 / (shape.head_dim_v as f64).sqrt());
                Some(Self { problem: build(builder), ..same })
            }
            Fault::SinkNotInLse => Some(Self { problem: build(problem.to_builder().sinks(false)), ..same }),
            _ => None,
        }
    }

    fn inputs<'a, T: Element>(&'a self, inputs: &Inputs<'a, T>) -> Inputs<'a, T> {
        let scores = inputs.scores;
        let bias = self.bias.as_deref().zip(self.problem.bias());
        let bias = bias.map(|(bias, declared)| BiasRef::F32(TensorRef::bshd(bias, declared.shape)));
        let mask = self.mask.as_deref().zip(self.problem.mask());
        let sinks = scores.sinks.filter(|_| self.problem.sinks());
        let scores = ScoreInputs::default()
            .alibi_slopes(scores.alibi_slopes)
            .bias(bias.or(scores.bias))
            .mask(mask.map(|(mask, shape)| TensorRef::bshd(mask, shape)).or(scores.mask))
            .sinks(sinks);
        inputs.scores(scores)
    }

    pub(crate) fn forward<T: Element>(
        &self,
        fault: Fault,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        match fault {
            Fault::SlopeLeftOut => Reference.forward(problem, inputs, outputs),
            Fault::SinkNotInLse => {
                Reference.forward(problem, inputs, outputs)?;
                let mut out = vec![T::default(); problem.shape().out().into_iter().product()];
                let out = TensorMut::bshd(&mut out, problem.shape().out());
                let mut without = Outputs::new(out, &mut outputs.lse[..]);
                Reference.forward(&self.problem, &self.inputs(inputs), &mut without)
            }
            _ => Reference.forward(&self.problem, &self.inputs(inputs), outputs),
        }
    }

    pub(crate) fn backward<T: Element>(
        &self,
        fault: Fault,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        if fault == Fault::SinkNotInLse {
            return Reference.backward(problem, inputs, gradients);
        }
        let of = self.inputs(&inputs.inputs);
        let inputs = GradInputs::new(of, inputs.out, inputs.lse, inputs.dout).dlse(inputs.dlse);
        Reference.backward(&self.problem, &inputs, gradients)
    }
}

/// A bias of one number a score of batch 0, from its scaled product and its bias.
fn of_products<T: Element>(
    problem: &Problem,
    inputs: &Inputs<'_, T>,
    of: impl Fn(f64, f64) -> f64,
) -> Vec<f32> {
    let shape = problem.shape();
    let mut all = Vec::new();
    for h in 0..shape.num_heads {
        for (i, j) in (0..shape.seqlen_q).flat_map(|i| (0..shape.seqlen_k).map(move |j| (i, j))) {
            let term = |d| {
                inputs.q.at([0, i, h, d]).to_f64() * inputs.k.at([0, j, h / shape.group_size(), d]).to_f64()
            };
            let product: f64 = (0..shape.head_dim).map(term).sum();
            let bias = inputs.scores.bias.map_or(0.0, |bias| bias.at([0, h, i, j]));
            all.push(of(problem.softmax_scale() * product, bias) as f32);
        }
    }
    all
}

/// dbias of the last batch alone.
pub(crate) fn dbias_of_one_batch<T: Element>(
    problem: &Problem,
    inputs: &GradInputs<'_, T>,
    gradients: &mut Gradients<'_, T>,
) -> Result<(), RunError> {
    let shape = problem.shape().out();
    let [batch, rows, heads, dim] = shape;
    // Where no gradient arrives none comes out.
    let dout: Vec<T> = (0..batch * rows * heads * dim)
        .map(|n| {
            let [b, i, h, d] = [n / dim / heads / rows, n / dim / heads % rows, n / dim % heads, n % dim];
            if b + 1 == batch { inputs.dout.at([b, i, h, d]) } else { T::default() }
        })
        .collect();
    let inputs = GradInputs::new(inputs.inputs, inputs.out, inputs.lse, TensorRef::bshd(&dout, shape));
    let shape = problem.shape();
    let [mut dq, mut dk, mut dv] =
        [shape.q(), shape.k(), shape.v()].map(|shape| vec![T::default(); shape.into_iter().product()]);
    let mut others = Gradients::new(
        TensorMut::bshd(&mut dq, shape.q()),
        TensorMut::bshd(&mut dk, shape.k()),
        TensorMut::bshd(&mut dv, shape.v()),
    )
    .dbias(gradients.dbias.take());
    Reference.backward(problem, &inputs, &mut others)
}
