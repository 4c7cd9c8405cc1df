//! A query head of a sequence, as everything without strides counts rows.
//!
//! lse, statistics and sums of dq are asked for by this head and a row of its sequence: how sequences follow each
//! other there is said in this folder alone.
use super::statistics;
use crate::parts::args::ProblemVals;
use crate::parts::sequence::{Begins, Sequence};
use signflash_ptx::{Operand, U32, U64, Val};

/// The query heads of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryHeads<'k> {
    /// The number of the first among those of all sequences, where these do not share heads.
    first: Option<Val<'k, U32>>,
    sequence: Sequence<'k>,
    problem: ProblemVals<'k>,
}

/// A query head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryHead<'k> {
    /// Its number among those of all sequences; of packed ones, which share heads, its own.
    pub(super) number: Val<'k, U32>,
    pub(super) sequence: Sequence<'k>,
    pub(super) problem: ProblemVals<'k>,
}

impl<'k> QueryHeads<'k> {
    /// Of a sequence.
    #[track_caller]
    pub(crate) fn of(problem: &ProblemVals<'k>, sequence: Sequence<'k>) -> Self {
        let first = match sequence.packed {
            None => Some(sequence.number * problem.num_heads),
            Some(_) => None,
        };
        QueryHeads { first, sequence, problem: *problem }
    }

    /// One of them.
    #[track_caller]
    pub(crate) fn nth(&self, head: Val<'k, U32>) -> QueryHead<'k> {
        let QueryHeads { first, sequence, problem } = *self;
        QueryHead { number: first.map_or(head, |first| first + head), sequence, problem }
    }
}

impl<'k> QueryHead<'k> {
    /// The number of its first query among those of all heads, as lse counts them.
    #[track_caller]
    pub(super) fn first_row(&self) -> Val<'k, U64> {
        let first = self.number.mul_wide(self.problem.seqlen_q);
        self.sequence.packed.map_or(first, |begins| first + begins.first_q.widen())
    }

    /// The number of its first tile of `rows` queries among those of all heads.
    #[track_caller]
    pub(super) fn first_tile(&self, rows: u32) -> Val<'k, U32> {
        match self.sequence.packed {
            None => self.number * self.problem.query_tiles(rows),
            Some(begins) => self.first_packed_tile(begins, rows),
        }
    }

    /// The same of packed sequences, whose rows a tile may be known on the GPU alone.
    #[track_caller]
    pub(super) fn first_packed_tile(
        &self,
        begins: Begins<'k>,
        rows: impl Operand<'k, U32> + Copy,
    ) -> Val<'k, U32> {
        let tiles = begins.total_q / rows + begins.count;
        self.number.mul_add(tiles, self.tiles_before(begins, rows))
    }

    /// The number of its first row among those of all heads' statistics.
    #[track_caller]
    pub(super) fn first_stat_row(&self) -> Val<'k, U64> {
        let first = self.number.mul_wide(self.problem.stat_rows);
        self.sequence.packed.map_or(first, |begins| {
            first + (self.tiles_before(begins, statistics::STEP) * statistics::STEP).widen()
        })
    }

    /// Tiles before those of a packed sequence: whole tiles of all rows before it, and one for each sequence, since each
    /// may begin another. (FlashAttention-2's padded offsets.)
    #[track_caller]
    fn tiles_before(&self, begins: Begins<'k>, rows: impl Operand<'k, U32>) -> Val<'k, U32> {
        begins.first_q / rows + self.sequence.number
    }
}
