//! What went wrong, in sentences.

use crate::{Dtype, TensorName};
use std::fmt;

/// What is wrong with one tensor, or with a call.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Finding {
    /// The call itself failed, or gave what cannot be compared.
    Call {
        /// The error's message.
        message: String,
    },
    /// An element still holds what was there before.
    Unwritten {
        /// Which.
        index: [usize; 4],
    },
    /// An element that shape and strides do not address was changed.
    WrittenOutside {
        /// Distance from the tensor's first element.
        at: isize,
    },
    /// Too far from the oracle.
    Error {
        /// Frobenius norm of the difference over that of the oracle, or that of the worst entry.
        error: f64,
        /// The largest that is accepted.
        bound: f64,
        /// Where the difference is largest.
        worst: Entry,
    },
    /// NaN, infinity or exact zero where the oracle has something else, or the other way round.
    Special {
        /// How many entries.
        count: usize,
        /// The first.
        first: Entry,
    },
    /// Sign bits that differ from the dropout mask, or a visible sign at an entry that is not visible.
    SignBits {
        /// How many entries.
        count: usize,
        /// The first.
        first: Entry,
    },
    /// Two runs on the same operands gave different bits.
    NotReproducible,
    /// A packed sequence whose neighbours are NaNs.
    BesideNans {
        /// What is wrong with it.
        finding: Box<Finding>,
    },
}

/// One element of both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Where, in the order of the tensor's dimensions.
    pub index: [usize; 4],
    /// What the implementation gave.
    pub got: f64,
    /// What the oracle gave.
    pub expected: f64,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:?}: got {:e}, expected {:e}", self.index, self.got, self.expected)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call { message } => f.write_str(message),
            Self::Unwritten { index } => write!(f, "element {index:?} was not written"),
            Self::WrittenOutside { at } => {
                write!(f, "wrote outside the tensor, {at} elements from its first")
            }
            Self::Error { error, bound, worst } => {
                write!(f, "error {error:.2e} exceeds {bound:.2e}, worst {worst}")
            }
            Self::Special { count, first } => {
                write!(f, "{count} NaN, infinite or exactly zero entries are not the oracle's, first {first}")
            }
            Self::SignBits { count, first } => write!(f, "{count} wrong sign bits, first {first}"),
            Self::NotReproducible => f.write_str("a second run gave other bits"),
            Self::BesideNans { finding } => write!(f, "beside sequences of NaNs: {finding}"),
        }
    }
}

/// A failing case.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The case's name.
    pub case: String,
    /// With which element type.
    pub dtype: Dtype,
    /// Which tensor; `None` if the call failed.
    pub tensor: Option<TensorName>,
    /// What is wrong with it.
    pub finding: Finding,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.case, self.dtype)?;
        if let Some(tensor) = self.tensor {
            write!(f, " {tensor}")?;
        }
        write!(f, ": {}", self.finding)
    }
}

/// What a run of the suite found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Cases that ran, counted once for each dtype.
    pub ran: usize,
    /// What the implementation does not support: case, dtype and reason.
    pub skipped: Vec<(String, Dtype, String)>,
    /// What failed.
    pub failures: Vec<Failure>,
}

impl Report {
    /// With what another run has found.
    pub fn add(&mut self, more: Report) {
        let Report { ran, skipped, failures } = more;
        self.ran += ran;
        self.skipped.extend(skipped);
        self.failures.extend(failures);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ran, skipped, failures } = self;
        write!(f, "{ran} ran, {} skipped, {} failures", skipped.len(), failures.len())?;
        for (case, dtype, reason) in skipped {
            write!(f, "\n  skipped {case} {dtype}: {reason}")?;
        }
        failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}
