//! The tensors of a row.

use super::joins::{self, Joins};
use super::random::{Normal, Random};
use crate::args::Pass;
use crate::compute::len;
use crate::engine::Engine;
use crate::errors::Error;
use crate::files::{Data, FileElement};
use crate::joined::{self, Joined};
use signflash_core::{GradInputs, Gradients, Inputs, Outputs, Problem, TensorMut, TensorRef};

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
    pub(super) joined: Joined,
    /// If asked for.
    pub(super) dbias: Option<Data>,
    pub(super) dsinks: Option<Vec<f32>>,
}

impl<T: FileElement> Tensors<T> {
    pub(super) fn random(problem: &Problem, joins: &Joins) -> Self {
        let shape = problem.shape();
        let mut normal = Normal(Random::new(0x5eed));
        let [len_q, len_k, len_v, len_out] = [shape.q(), shape.k(), shape.v(), shape.out()].map(len);
        let mut tensor = |len: usize| (0..len).map(|_| T::from_f32(normal.next())).collect::<Vec<T>>();
        let touched = |len: usize| vec![T::from_f32(1.0); len];
        let [q, k, v, dout] = [len_q, len_k, len_v, len_out].map(&mut tensor);
        let (dbias, dsinks) = joins::room(problem, joins);
        Self {
            q,
            k,
            v,
            dout,
            out: touched(len_out),
            lse: vec![1.0; shape.lse_len()],
            dq: touched(len_q),
            dk: touched(len_k),
            dv: touched(len_v),
            joined: joins::random(problem, &mut normal),
            dbias,
            dsinks,
        }
    }

    /// The forward's operands.
    pub(super) fn inputs(&self, problem: &Problem) -> Inputs<'_, T> {
        inputs(problem, [&self.q, &self.k, &self.v], &self.joined)
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
        let inputs = inputs(problem, [&self.q, &self.k, &self.v], &self.joined);
        let out = TensorMut::bhsd(&mut self.out, shape.out());
        engine.forward(problem, &inputs, &mut Outputs::new(out, &mut self.lse))
    }

    fn backward(&mut self, engine: &Engine, problem: &Problem) -> Result<(), Error> {
        let shape = problem.shape();
        let inputs = GradInputs::new(
            inputs(problem, [&self.q, &self.k, &self.v], &self.joined),
            TensorRef::bhsd(&self.out, shape.out()),
            &self.lse,
            TensorRef::bhsd(&self.dout, shape.out()),
        );
        let mut gradients = Gradients::new(
            TensorMut::bhsd(&mut self.dq, shape.q()),
            TensorMut::bhsd(&mut self.dk, shape.k()),
            TensorMut::bhsd(&mut self.dv, shape.v()),
        )
        .dbias(self.dbias.as_mut().and_then(|dbias| joined::dbias(problem, dbias)))
        .dsinks(self.dsinks.as_deref_mut());
        engine.backward(problem, &inputs, &mut gradients)
    }
}

fn inputs<'a, T>(problem: &Problem, [q, k, v]: [&'a [T]; 3], joined: &'a Joined) -> Inputs<'a, T> {
    let shape = problem.shape();
    let [k, v] = [TensorRef::bhsd(k, shape.k()), TensorRef::bhsd(v, shape.v())];
    Inputs::new(TensorRef::bhsd(q, shape.q()), k, v).scores(joined.scores(problem))
}
