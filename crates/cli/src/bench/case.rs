//! One row: make inputs, check a result, time the rest.

use super::{check, gpu};
use crate::args::Pass;
use crate::compute::len;
use crate::engine::Engine;
use crate::errors::Error;
use crate::files::FileElement;
use crate::memory;
use crate::settings::{AXES, Settings};
use signflash_core::{Dtype, GradInputs, Gradients, Inputs, Outputs, Problem, Shape, TensorMut, TensorRef};
use std::fmt;
use std::time::Instant;

/// Without --reps: so long, and so many.
const SECONDS: f64 = 1.0;
const REPS: std::ops::RangeInclusive<usize> = 3..=30;

/// What a row measures.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) dtype: Dtype,
    pub(super) pass: Pass,
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) heads_k: usize,
    pub(super) head_dim: usize,
    pub(super) seqlen: usize,
    pub(super) settings: Settings,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// Median of the timed calls.
    pub(super) median_ms: f64,
    /// The fastest of them.
    pub(super) min_ms: f64,
    /// How many there were.
    pub(super) reps: usize,
    /// On the CPU what the first call allocated at most beyond operands and results, on a GPU the call's workspace.
    pub(super) extra_bytes: usize,
    /// Of the first call, with compiling or loading its kernels, on a GPU.
    pub(super) first_ms: Option<f64>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dtype, head_dim, seqlen, settings, .. } = self;
        write!(f, "{dtype} {} head_dim {head_dim} seqlen {seqlen}", self.pass_name())?;
        AXES.iter().try_for_each(|axis| write!(f, " {} {}", axis.name, (axis.text)(settings)))
    }
}

impl Case {
    /// The pass's name.
    pub(super) fn pass_name(&self) -> &'static str {
        match self.pass {
            Pass::Fwd => "fwd",
            Pass::Bwd => "bwd",
        }
    }

    /// Whether it can be run at all.
    pub(super) fn check(&self) -> Result<(), Error> {
        let sizes = [("--batch", self.batch), ("--seqlen", self.seqlen)];
        for (argument, got) in sizes {
            if got == 0 {
                return Err(Error::Argument { argument, expected: "at least 1".into(), got: "0".into() });
            }
        }
        let shape = *self.problem()?.shape();
        let elements = |shape: [usize; 4]| shape.into_iter().fold(1u64, |n, x| n.saturating_mul(x as u64));
        // And their gradients.
        let tensors = [shape.q(), shape.k(), shape.v(), shape.out()].map(elements);
        let tensors = tensors.into_iter().fold(0u64, u64::saturating_add).saturating_mul(2);
        let bytes = tensors.saturating_mul(self.dtype.size_bytes() as u64);
        memory::check(&format!("bench {self}"), bytes, "choose a shorter --seqlen or fewer --heads")
    }

    /// The problem.
    pub(super) fn problem(&self) -> Result<Problem, Error> {
        let shape = Shape::new(self.batch, self.seqlen, self.seqlen)
            .heads(self.heads, self.heads_k)
            .head_dim(self.head_dim);
        self.settings.problem(shape)
    }

    /// By the field's convention.
    pub(super) fn flops(&self) -> f64 {
        let Self { batch, heads, seqlen, head_dim, .. } = *self;
        let forward =
            4.0 * [batch, heads, seqlen, seqlen, head_dim].map(|x| x as f64).into_iter().product::<f64>();
        let seen = if self.settings.causal { forward / 2.0 } else { forward };
        match self.pass {
            Pass::Fwd => seen,
            Pass::Bwd => 2.5 * seen,
        }
    }

    /// Runs it.
    pub(super) fn measure<T: FileElement>(
        &self,
        engine: &Engine,
        reps: Option<usize>,
        calls: usize,
    ) -> Result<Measured, Error> {
        if let Engine::Cuda(engine) = engine {
            return gpu::measure::<T>(self, engine, reps, calls);
        }
        let problem = self.problem()?;
        let mut tensors = Tensors::<T>::random(problem.shape());
        if self.pass == Pass::Bwd {
            tensors.forward(engine, &problem)?;
        }
        let (called, extra_bytes) = memory::extra_bytes(|| tensors.call(engine, &problem, self.pass));
        called?;
        check::check(self, &problem, &tensors)?;
        let mut times = Vec::new();
        let begin = Instant::now();
        while match reps {
            Some(reps) => times.len() < reps.max(1),
            None => {
                times.len() < *REPS.start()
                    || (times.len() < *REPS.end() && begin.elapsed().as_secs_f64() < SECONDS)
            }
        } {
            let (start, calls) = (Instant::now(), calls.max(1));
            (0..calls).try_for_each(|_| tensors.call(engine, &problem, self.pass))?;
            times.push(start.elapsed().as_secs_f64() * 1e3 / calls as f64);
        }
        times.sort_by(f64::total_cmp);
        let (median_ms, min_ms) = (times[times.len() / 2], times[0]);
        Ok(Measured { median_ms, min_ms, reps: times.len(), extra_bytes, first_ms: None })
    }
}

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
        let mut normal = Normal { state: 0x5eed };
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
struct Normal {
    state: u64,
}

impl Normal {
    fn next(&mut self) -> f32 {
        let mut sum = -6.0;
        for _ in 0..3 {
            // splitmix64 (Steele, Lea and Flood 2014); four 16-bit numbers of each output.
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            sum += (0..4).map(|i| ((z >> (16 * i)) & 0xffff) as f32 / 65536.0).sum::<f32>();
        }
        sum
    }
}
