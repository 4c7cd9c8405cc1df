//! What a row is: a problem, a pass, and what was measured of it.

use super::joins::Joins;
use crate::args::Pass;
use crate::errors::Error;
use crate::memory;
use crate::settings::{AXES, Settings};
use signflash_core::{Dtype, Problem, Sequence, Shape};
use std::fmt;

/// What a row measures.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) dtype: Dtype,
    pub(super) pass: Pass,
    pub(super) sequences: Sequences,
    pub(super) heads: usize,
    pub(super) heads_k: usize,
    pub(super) head_dim: usize,
    /// Of v.
    pub(super) head_dim_v: usize,
    pub(super) joins: Joins,
    pub(super) settings: Settings,
}

/// The sequences of a row, each of as many queries as keys.
#[derive(Clone, Debug)]
pub(super) enum Sequences {
    /// In a batch, all of one length.
    Batch { batch: usize, seqlen: usize },
    /// One behind the other.
    Packed { text: String, cu_seqlens: Vec<u32> },
}

impl Sequences {
    /// Packed ones of these lengths.
    ///
    /// # Errors
    /// [`Error::Argument`] if they are too long to be counted.
    pub(super) fn packed(text: &str, lengths: &[u32]) -> Result<Self, Error> {
        let mut cu_seqlens = vec![0u32];
        for &length in lengths {
            let begin = cu_seqlens[cu_seqlens.len() - 1];
            cu_seqlens.push(begin.checked_add(length).ok_or_else(|| Error::Argument {
                argument: "--lengths",
                expected: "of less than 2^32 tokens together".into(),
                got: text.to_string(),
            })?);
        }
        Ok(Self::Packed { text: text.to_string(), cu_seqlens })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Batch { batch, .. } => *batch,
            Self::Packed { cu_seqlens, .. } => cu_seqlens.len() - 1,
        }
    }

    /// How many queries they have together.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Batch { batch, seqlen } => batch * seqlen,
            Self::Packed { cu_seqlens, .. } => cu_seqlens.last().map_or(0, |&end| end as usize),
        }
    }

    /// How many the longest has.
    pub(super) fn longest(&self) -> usize {
        match self {
            Self::Batch { seqlen, .. } => *seqlen,
            Self::Packed { cu_seqlens, .. } => {
                let lengths = cu_seqlens.windows(2).map(|ends| (ends[1] - ends[0]) as usize);
                lengths.max().unwrap_or(0)
            }
        }
    }

    /// In the table: a length, or what the command line says of several.
    pub(super) fn cell(&self) -> String {
        match self {
            Self::Batch { seqlen, .. } => seqlen.to_string(),
            Self::Packed { text, .. } => text.clone(),
        }
    }
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
        let Self { dtype, head_dim, sequences, settings, .. } = self;
        let lengths = match sequences {
            Sequences::Batch { .. } => "seqlen",
            Sequences::Packed { .. } => "lengths",
        };
        write!(f, "{dtype} {} head_dim {head_dim}", self.pass_name())?;
        if self.head_dim_v != *head_dim {
            write!(f, ", of v {}", self.head_dim_v)?;
        }
        write!(f, " {lengths} {}", sequences.cell())?;
        for (name, cell) in self.joins.named() {
            cell.map_or(Ok(()), |cell| write!(f, " {name} {cell}"))?;
        }
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
        let sizes = match self.sequences {
            Sequences::Batch { batch, seqlen } => vec![("--batch", batch), ("--seqlen", seqlen)],
            Sequences::Packed { .. } => vec![("the tokens of --lengths", self.sequences.tokens())],
        };
        for (argument, got) in sizes {
            if got == 0 {
                return Err(Error::Argument { argument, expected: "at least 1".into(), got: "0".into() });
            }
        }
        let problem = self.problem()?;
        let shape = *problem.shape();
        let elements = |shape: [usize; 4]| shape.into_iter().fold(1u64, |n, x| n.saturating_mul(x as u64));
        // And their gradients.
        let tensors = [shape.q(), shape.k(), shape.v(), shape.out()].map(elements);
        let tensors = tensors.into_iter().fold(0u64, u64::saturating_add).saturating_mul(2);
        let bytes = tensors.saturating_mul(self.dtype.size_bytes() as u64);
        let bias = problem.bias().map_or(0, |bias| elements(bias.shape) * bias.dtype.size_bytes() as u64);
        let mask = problem.mask().map_or(0, elements);
        let bytes = bytes.saturating_add(2 * bias).saturating_add(mask);
        memory::check(
            &format!("bench {self}"),
            bytes,
            "choose a shorter --seqlen, or --lengths, or fewer --heads",
        )
    }

    /// The problem.
    pub(super) fn problem(&self) -> Result<Problem, Error> {
        let shape = |batch, seqlen| {
            let shape = Shape::new(batch, seqlen, seqlen).heads(self.heads, self.heads_k);
            shape.head_dim(self.head_dim).head_dim_v(self.head_dim_v)
        };
        let sequences = (self.sequences.count(), self.sequences.longest());
        let join = |builder| self.joins.declare(builder, self.heads, sequences);
        match &self.sequences {
            Sequences::Batch { batch, seqlen } => {
                Ok(join(self.settings.builder(shape(*batch, *seqlen))?).build()?)
            }
            Sequences::Packed { cu_seqlens, .. } => {
                let builder = join(self.settings.builder(shape(1, self.sequences.tokens()))?);
                Ok(builder.packed(cu_seqlens, cu_seqlens).build()?)
            }
        }
    }

    /// Operations on what is seen: a product for the score of each visible entry and one for its share of out; for a
    /// backward three of q's and k's columns, and two of v's. A mask is not looked at, and dbias not counted.
    pub(super) fn flops(&self, problem: &Problem) -> f64 {
        let entries: f64 = match self.sequences {
            // All alike.
            Sequences::Batch { batch, .. } => {
                batch as f64
                    * problem.sequences().take(1).map(|sequence| visible(problem, &sequence)).sum::<f64>()
            }
            Sequences::Packed { .. } => problem.sequences().map(|sequence| visible(problem, &sequence)).sum(),
        };
        let columns = match self.pass {
            Pass::Fwd => self.head_dim + self.head_dim_v,
            Pass::Bwd => 3 * self.head_dim + 2 * self.head_dim_v,
        };
        2.0 * self.heads as f64 * columns as f64 * entries
    }
}

/// How many entries a head of a sequence sees.
fn visible(problem: &Problem, sequence: &Sequence) -> f64 {
    let band = problem.visibility_in(sequence);
    (0..sequence.seqlen_q).map(|i| band.keys_of(i as i64).positions().len() as f64).sum()
}
