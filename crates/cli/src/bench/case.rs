//! What a row is: a problem, a pass, and what was measured of it.

use crate::args::Pass;
use crate::errors::Error;
use crate::memory;
use crate::settings::{AXES, Settings};
use signflash_core::{Dtype, Problem, Shape};
use std::fmt;

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
}
