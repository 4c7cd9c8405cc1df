//! One number for a probability and what becomes of it: magnitude = probability, sign bit = dropped.
//!
//! Probabilities are never negative, so their sign bit is free. A dropped zero is -0.0, and `-0.0 < 0.0` is false:
//! test the sign *bit*, never `x < 0` or `x >= 0`.

use crate::problem::Problem;
use crate::tensor::TensorRef;
use crate::{Element, ProblemError, TensorName};
use half::{bf16, f16};

/// The sign-bit codec of one floating-point type.
///
/// ```
/// use signflash_core::{SignBit, f16};
/// let entry = f16::from_f32(0.0).encode(true); // a dropped probability that underflowed
/// assert_eq!(entry.decode(), (f16::from_f32(0.0), true));
/// assert!(entry >= f16::from_f32(0.0)); // why `>=` cannot tell
/// ```
pub trait SignBit: Copy {
    /// The bit pattern with its sign bit replaced by `dropped`. Meant for probabilities (not negative); any other
    /// value, NaN included, keeps its magnitude bits.
    fn encode(self, dropped: bool) -> Self;

    /// (probability, dropped): the magnitude, and the sign bit.
    fn decode(self) -> (Self, bool);

    /// The sign bit.
    fn is_dropped(self) -> bool {
        self.decode().1
    }

    /// The magnitude.
    fn probability(self) -> Self {
        self.decode().0
    }
}

macro_rules! sign_bit {
    ($($float:ty: $bits:ty),*) => {$(
        impl SignBit for $float {
            #[inline(always)]
            fn encode(self, dropped: bool) -> Self {
                const SIGN: $bits = 1 << (<$bits>::BITS - 1);
                Self::from_bits((self.to_bits() & !SIGN) | if dropped { SIGN } else { 0 })
            }

            #[inline(always)]
            fn decode(self) -> (Self, bool) {
                const SIGN: $bits = 1 << (<$bits>::BITS - 1);
                (Self::from_bits(self.to_bits() & !SIGN), self.to_bits() & SIGN != 0)
            }
        }
    )*};
}

// f64 is the oracle's; tensors hold the others.
sign_bit!(f64: u64, f32: u32, f16: u16, bf16: u16);

/// A `probs` tensor, read through the codec: (batch, num_heads, seqlen_q, seqlen_k), normalised probabilities whose
/// sign bit says dropped. Entries that a query does not see are +0.0.
///
/// ```
/// use signflash_core::{Probs, Problem, Shape, TensorRef};
/// let shape = Shape::new(1, 2, 2).heads(1, 1).head_dim(4);
/// let problem = Problem::builder(shape).causal(true).build()?;
/// let stored = [1.0f32, 0.0, 0.25, -0.75];
/// let probs = Probs::new(&problem, TensorRef::bshd(&stored, shape.probs()))?;
/// assert_eq!((probs.probability([0, 0, 1, 1]), probs.is_dropped([0, 0, 1, 1])), (0.75, true));
/// assert_eq!(probs.kept_fraction(), Some(2.0 / 3.0)); // of the three visible entries
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Probs<'a, T> {
    problem: &'a Problem,
    tensor: TensorRef<'a, T>,
}

/// One visible entry of a [`Probs`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbsEntry {
    /// Sequence, head, row, column.
    pub index: [usize; 4],
    /// The normalised probability, before keep_scale.
    pub probability: f32,
    /// Whether dropout took it.
    pub dropped: bool,
}

impl<'a, T: Element> Probs<'a, T> {
    /// Reads `tensor` as the probabilities of `problem`.
    ///
    /// # Errors
    /// [`ProblemError::Shape`], [`ProblemError::LastStride`] or [`ProblemError::Storage`] on `probs`.
    pub fn new(problem: &'a Problem, tensor: TensorRef<'a, T>) -> Result<Self, ProblemError> {
        problem.check_lengths_known()?;
        crate::operands::check_read(TensorName::Probs, &tensor, problem.probs())?;
        Ok(Self { problem, tensor })
    }

    /// The probability of an entry, dropped or not.
    ///
    /// # Panics
    /// If the index lies outside.
    pub fn probability(&self, index: [usize; 4]) -> f32 {
        self.entry(index).probability
    }

    /// Whether dropout took the entry.
    ///
    /// # Panics
    /// If the index lies outside.
    pub fn is_dropped(&self, index: [usize; 4]) -> bool {
        self.entry(index).dropped
    }

    /// Both at once.
    ///
    /// # Panics
    /// If the index lies outside.
    pub fn entry(&self, index: [usize; 4]) -> ProbsEntry {
        let inside = index.into_iter().zip(self.tensor.shape).all(|(i, size)| i < size);
        assert!(inside, "{index:?} lies outside probs of shape {:?}", self.tensor.shape);
        let (probability, dropped) = self.tensor.at(index).decode();
        ProbsEntry { index, probability: probability.to_f32(), dropped }
    }

    /// The visible entries of one row of a sequence, in order; none behind its last row.
    pub fn row(&self, sequence: usize, head: usize, row: usize) -> impl Iterator<Item = ProbsEntry> + '_ {
        let own = self.problem.sequence(sequence).filter(|own| row < own.seqlen_q);
        let visible =
            own.map_or(0..0, |own| self.problem.visibility_in(&own).keys_of(row as i64).positions());
        visible.map(move |column| self.entry([sequence, head, row, column]))
    }

    /// All visible entries, row by row.
    pub fn iter(&self) -> impl Iterator<Item = ProbsEntry> + '_ {
        let [sequences, heads, rows, _] = self.tensor.shape;
        (0..sequences)
            .flat_map(move |b| (0..heads).flat_map(move |h| (0..rows).map(move |i| (b, h, i))))
            .flat_map(move |(b, h, i)| self.row(b, h, i))
    }

    /// The share of visible entries that survived; `None` if none is visible.
    pub fn kept_fraction(&self) -> Option<f64> {
        let (mut kept, mut seen) = (0u64, 0u64);
        for entry in self.iter() {
            seen += 1;
            kept += u64::from(!entry.dropped);
        }
        (seen > 0).then(|| kept as f64 / seen as f64)
    }
}
