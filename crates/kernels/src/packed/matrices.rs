//! The probabilities of packed sequences: a matrix for each, as large as the longest needs.
use super::starts::Starts;
use crate::parts::args::{ProblemVals, kernel_args};
use crate::parts::sequence::{Begins, Sequence};
use crate::parts::work::Work;
use signflash_core::Problem;
use signflash_ptx::{Cta, Thread, U32, Val};

kernel_args! {
    /// Which matrices there are.
    MatricesArgs / MatricesVals {
        /// Where sequences begin, of queries and of keys.
        cu_seqlens_q: u64,
        cu_seqlens_k: u64,
        /// How many.
        sequences: u32,
        /// Of each matrix.
        rows: u32,
        columns: u32,
    }
}

impl MatricesArgs {
    /// Blocks that write so many rows each.
    pub(crate) fn blocks(&self, problem: &Problem, rows: u32) -> u64 {
        let matrices = u64::from(self.sequences) * problem.shape().num_heads as u64;
        if self.columns == 0 { 0 } else { matrices * u64::from(self.rows).div_ceil(rows.into()) }
    }
}

impl<'k> MatricesVals<'k> {
    /// The tile of `rows` rows of a matrix that this block of the grid writes: tiles, then heads, then sequences.
    #[track_caller]
    pub(crate) fn locate(&self, cta: Cta<'k>, problem: &ProblemVals<'k>, rows: u32) -> Work<'k> {
        let (index, tiles) = (cta.index(), (self.rows + (rows - 1)) / rows);
        let matrix = index / tiles;
        let number = matrix / problem.num_heads;
        Work {
            sequence: self.sequence(cta.threads(), problem, number),
            head: matrix - number * problem.num_heads,
            block: index - matrix * tiles,
        }
    }

    /// A sequence, packed.
    #[track_caller]
    pub(crate) fn sequence(
        &self,
        t: Thread<'k>,
        problem: &ProblemVals<'k>,
        number: Val<'k, U32>,
    ) -> Sequence<'k> {
        let (total_q, total_k, sequences) = (problem.seqlen_q, problem.seqlen_k, self.sequences);
        let of = |cu_seqlens, total| Starts { cu_seqlens, total, sequences }.of(t, number);
        let (queries, keys) = (of(self.cu_seqlens_q, total_q), of(self.cu_seqlens_k, total_k));
        let (first_q, first_k, count) = (queries.first, keys.first, sequences + 1);
        let begins = Begins { first_q, first_k, total_q, count };
        Sequence { number, seqlen_q: queries.len, seqlen_k: keys.len, packed: Some(begins) }
    }
}
