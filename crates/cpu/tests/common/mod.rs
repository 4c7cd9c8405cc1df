//! The engine as an implementation that the suite's cases run on.

use signflash_core::suite::{Implementation, RunError};
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem};
use signflash_cpu::{CpuEngine, Isa, IsaError};

/// The engine as one of these tests sets it up.
pub(crate) enum Engine {
    /// AMX is emulated where there is none.
    On(Isa),
    /// The fastest, its dq of 16 bits always in a pass of its own.
    InTwoPasses,
    /// One of these, which leaves the best instruction set what it need not run itself.
    #[allow(dead_code)] // random problems are not shared out
    Sharing(&'static Engine),
}

impl Engine {
    fn engine(&self) -> Result<CpuEngine, IsaError> {
        match self {
            Self::On(Isa::Amx) if !Isa::Amx.is_available() => CpuEngine::emulating_amx(),
            Self::On(isa) => CpuEngine::new().with_isa(*isa),
            Self::InTwoPasses => Ok(CpuEngine::new().with_partial_bytes(0)),
            Self::Sharing(engine) => engine.engine(),
        }
    }
}

impl Engine {
    /// Whether this machine has it, or what its emulation needs.
    #[allow(dead_code)] // the suite's cases ask `supports`
    pub(crate) fn is_there(&self) -> bool {
        self.engine().is_ok()
    }

    /// Whether it is the last instruction set that this machine has.
    fn is_best(&self) -> bool {
        let best = Isa::available().pop();
        matches!(self, Self::On(isa) if Some(*isa) == best)
    }

    /// Of those that are not the best.
    fn number(&self) -> usize {
        match self {
            // NEON is the best where it is: not counted.
            Self::On(isa) => (*isa as usize).saturating_sub(Isa::Neon as usize) % ENGINES,
            Self::InTwoPasses => Isa::Avx512Bf16 as usize - Isa::Neon as usize,
            Self::Sharing(engine) => engine.number(),
        }
    }
}

/// How many engines share cases out.
const ENGINES: usize = 5;

/// Whose a case is: a number that its pieces have alike, since whoever leaves out one of them leaves out the case.
fn lot(problem: &Problem) -> usize {
    let shape = problem.shape();
    let own = match problem.shard().num_heads_total {
        Some(total) => total,
        None => shape.num_heads + shape.seqlen_q + shape.seqlen_k,
    };
    (own + shape.head_dim / 8) % ENGINES
}

impl Implementation for Engine {
    fn name(&self) -> String {
        self.engine().map_or_else(|error| error.to_string(), |engine| format!("{engine:?}"))
    }

    /// With `SIGNFLASH_TEST=full`, which `.ci/run` sets, every case. Without it the best instruction set runs all, and those
    /// that share have them shared out among themselves, but for a thousand queries of as many keys, which are slow
    /// without vector units.
    fn supports(&self, _: Dtype, problem: &Problem) -> Result<(), String> {
        let is_large = problem.shape().seqlen_q * problem.shape().seqlen_k >= 1 << 20;
        let is_full = matches!(std::env::var("SIGNFLASH_TEST").as_deref(), Ok("full" | "all"));
        if let Self::Sharing(engine) = self {
            let is_slow = matches!(engine, Self::On(Isa::Portable | Isa::Amx)) && is_large;
            if !is_full && (is_slow || !engine.is_best() && lot(problem) != engine.number()) {
                return Err("SIGNFLASH_TEST=full runs it".into());
            }
        }
        self.engine().map(drop).map_err(|error| error.to_string())
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.engine()?.forward(problem, inputs, outputs)?)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.engine()?.backward(problem, inputs, gradients)?)
    }
}
