//! Packed sequences: where each begins, as numbers that somebody else owns.

use crate::call::Place;
use crate::error::CallError;
use signflash_core::{ProblemBuilder, ProblemError};

/// `cu_seqlens`, of queries or of keys: int32 without gaps, which may lie in the memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starts {
    /// Of the first number.
    pub address: u64,
    /// How many numbers: one more than there are sequences.
    pub len: usize,
}

/// `cu_seqlens_q` and `cu_seqlens_k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CuSeqlens {
    pub q: Starts,
    pub k: Starts,
}

/// How the sequences of a call lie in its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Lengths {
    /// Each has its own place in the first dimension.
    #[default]
    Batch,
    /// They lie one behind the other: where those of q and of k begin.
    Packed([Vec<u32>; 2]),
    /// The same of so many, where only the GPU knows it.
    OnDevice(usize),
}

impl CuSeqlens {
    /// What is known of the sequences where the call is computed.
    ///
    /// # Errors
    /// A [`CallError`] naming a negative number, or different numbers of sequences.
    ///
    /// # Safety
    /// At a place in this process's memory the numbers must be there, which nobody writes meanwhile.
    pub unsafe fn lengths(&self, at: Place) -> Result<Lengths, CallError> {
        match at {
            Place::Cpu { .. } => {
                // SAFETY: the caller's promise.
                let (q, k) = unsafe { (read("cu_seqlens_q", self.q), read("cu_seqlens_k", self.k)) };
                Ok(Lengths::Packed([q?, k?]))
            }
            Place::Cuda { .. } if self.q.len == self.k.len && self.q.len > 0 => {
                Ok(Lengths::OnDevice(self.q.len - 1))
            }
            Place::Cuda { .. } => Err(ProblemError::CuSeqlensCount { q: self.q.len, k: self.k.len }.into()),
        }
    }
}

/// # Safety
/// As [`CuSeqlens::lengths`].
unsafe fn read(argument: &'static str, starts: Starts) -> Result<Vec<u32>, CallError> {
    let first = std::ptr::with_exposed_provenance::<i32>(starts.address as usize);
    let numbers = (0..starts.len).map(|index| {
        // SAFETY: so many numbers are there, by the caller's promise; no alignment is asked for.
        let got = unsafe { first.add(index).read_unaligned() };
        u32::try_from(got).map_err(|_| CallError::NegativeStart { argument, index, got })
    });
    numbers.collect()
}

impl Lengths {
    /// The same of a problem.
    pub(crate) fn of(&self, builder: ProblemBuilder) -> ProblemBuilder {
        match self {
            Self::Batch => builder,
            Self::Packed([q, k]) => builder.packed(q, k),
            Self::OnDevice(sequences) => builder.packed_on_device(*sequences),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(numbers: &[i32]) -> Starts {
        Starts { address: numbers.as_ptr().expose_provenance() as u64, len: numbers.len() }
    }

    #[test]
    fn numbers_are_read_on_the_cpu_and_counted_on_a_gpu() {
        let (q, k, negative) = ([0, 2, 5], [0, 4], [0, -3]);
        let of = |q: &[i32], k: &[i32]| CuSeqlens { q: starts(q), k: starts(k) };
        // SAFETY: the numbers are there.
        let lengths =
            |at, starts: CuSeqlens| unsafe { starts.lengths(at) }.map_err(|error| error.to_string());
        let (cpu, gpu) = (Place::Cpu { threads: 0 }, Place::Cuda { ordinal: 0, stream: 0 });
        assert_eq!(lengths(cpu, of(&q, &k)), Ok(Lengths::Packed([vec![0, 2, 5], vec![0, 4]])));
        assert_eq!(lengths(gpu, of(&q, &q)), Ok(Lengths::OnDevice(2)));
        let refused = lengths(cpu, of(&q, &negative)).unwrap_err();
        assert!(refused.starts_with("cu_seqlens_k[1] must not be negative, got -3"), "{refused}");
        assert!(lengths(gpu, of(&q, &k)).unwrap_err().contains("got 3 and 2"));
        assert!(lengths(gpu, of(&[], &[])).is_err());
    }
}
