//! The tensors of a row.

use super::random::Random;
use crate::args::Pass;
use crate::compute::len;
use crate::engine::Engine;
use crate::errors::Error;
use crate::files::FileElement;
use signflash_core::{GradInputs, Gradients, Inputs, Outputs, Problem, Shape, TensorMut, TensorRef};

/// Operands and results, stored as (batch, heads, seqlen, head_dim). All pages are touched, so that memory measured
/// later is the engine's.
#[derive(Clone)]
pub(super) struct Tensors<T> {
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) dout: Vec<T>,
    pub(super) out: Vec<T>,
    pub(super) lse: Vec<f32>,
    pub(super) dq: Vec<T>,
    pub(super) dk: Vec<T>,
    pub(super) dv: Vec<T>,
}

impl<T: FileElement> Tensors<T> {
    pub(super) fn random(shape: &Shape) -> Self {
        let mut normal = Normal(Random::new(0x5eed));
        let [len_q, len_k, len_v, len_out] = [shape.q(), shape.k(), shape.v(), shape.out()].map(len);
        let mut tensor = |len: usize| (0..len).map(|_| T::from_f32(normal.next())).collect::<Vec<T>>();
        let touched = |len: usize| vec![T::from_f32(1.0); len];
        Self {
            q: tensor(len_q),
            k: tensor(len_k),
            v: tensor(len_v),
            dout: tensor(len_out),
            out: touched(len_out),
            lse: vec![1.0; shape.lse_len()],
            dq: touched(len_q),
            dk: touched(len_k),
            dv: touched(len_v),
        }
    }

    /// The forward's operands.
    pub(super) fn inputs(&self, shape: &Shape) -> Inputs<'_, T> {
        inputs(shape, &self.q, &self.k, &self.v)
    }

    /// One pass; a backward's needs the results of a forward.
    pub(super) fn call(&mut self, engine: &Engine, problem: &Problem, pass: Pass) -> Result<(), Error> {
        match pass {
            Pass::Fwd => self.forward(engine, problem),
            Pass::Bwd => self.backward(engine, problem),
        }
    }

    fn forward(&mut self, engine: &Engine, problem: &Problem) -> Result<(), Error> {
        let shape = problem.shape();
        let inputs = inputs(shape, &self.q, &self.k, &self.v);
        let out = TensorMut::bhsd(&mut self.out, shape.out());
        engine.forward(problem, &inputs, &mut Outputs::new(out, &mut self.lse))
    }

    fn backward(&mut self, engine: &Engine, problem: &Problem) -> Result<(), Error> {
        let shape = problem.shape();
        let inputs = GradInputs::new(
            inputs(shape, &self.q, &self.k, &self.v),
            TensorRef::bhsd(&self.out, shape.out()),
            &self.lse,
            TensorRef::bhsd(&self.dout, shape.out()),
        );
        let mut gradients = Gradients::new(
            TensorMut::bhsd(&mut self.dq, shape.q()),
            TensorMut::bhsd(&mut self.dk, shape.k()),
            TensorMut::bhsd(&mut self.dv, shape.v()),
        );
        engine.backward(problem, &inputs, &mut gradients)
    }
}

fn inputs<'a, T>(shape: &Shape, q: &'a [T], k: &'a [T], v: &'a [T]) -> Inputs<'a, T> {
    Inputs::new(TensorRef::bhsd(q, shape.q()), TensorRef::bhsd(k, shape.k()), TensorRef::bhsd(v, shape.v()))
}

/// About normal numbers, the same every time: the sum of twelve uniform ones.
struct Normal(Random);

impl Normal {
    fn next(&mut self) -> f32 {
        let mut sum = -6.0;
        for _ in 0..3 {
            let four = self.0.next(); // numbers of 16 bits
            sum += (0..4).map(|i| ((four >> (16 * i)) & 0xffff) as f32 / 65536.0).sum::<f32>();
        }
        sum
    }
}
