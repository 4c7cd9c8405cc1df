//! A query head of a sequence, as everything without strides counts rows.
//!
//! lse, statistics and sums of dq are asked for by this head and a row of its sequence: how sequences follow each
//! other there is said in this folder alone.
use crate::parts::args::ProblemVals;
use crate::parts::sequence::Sequence;
use signflash_ptx::{U32, Val};

/// The query heads of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryHeads<'k> {
    /// The number of the first among those of all sequences.
    first: Val<'k, U32>,
    sequence: Sequence<'k>,
    problem: ProblemVals<'k>,
}

/// A query head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryHead<'k> {
    /// Its number among those of all sequences.
    pub(super) number: Val<'k, U32>,
    pub(super) sequence: Sequence<'k>,
    pub(super) problem: ProblemVals<'k>,
}

impl<'k> QueryHeads<'k> {
    /// Of a sequence.
    #[track_caller]
    pub(crate) fn of(problem: &ProblemVals<'k>, sequence: Sequence<'k>) -> Self {
        QueryHeads { first: sequence.batch * problem.num_heads, sequence, problem: *problem }
    }

    /// One of them.
    #[track_caller]
    pub(crate) fn nth(&self, head: Val<'k, U32>) -> QueryHead<'k> {
        let QueryHeads { first, sequence, problem } = *self;
        QueryHead { number: first + head, sequence, problem }
    }
}
