//! The sequences of a problem: what belongs to one of them alone.
use super::args::ProblemVals;
use signflash_ptx::{U32, Val};

/// One sequence: where it is, and how long.
///
/// All have the same lengths as long as sequences lie in a batch; kernels ask here all the same, not [`ProblemVals`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence<'k> {
    /// Its number.
    pub(crate) batch: Val<'k, U32>,
    /// Queries.
    pub(crate) seqlen_q: Val<'k, U32>,
    /// Keys.
    pub(crate) seqlen_k: Val<'k, U32>,
}

impl<'k> Sequence<'k> {
    /// The sequence of this number.
    fn nth(problem: &ProblemVals<'k>, batch: Val<'k, U32>) -> Self {
        Sequence { batch, seqlen_q: problem.seqlen_q, seqlen_k: problem.seqlen_k }
    }

    /// The sequence of a head, and that head in it, whose number counts over all sequences, `heads` each.
    #[track_caller]
    pub(crate) fn of_head(
        problem: &ProblemVals<'k>,
        number: Val<'k, U32>,
        heads: Val<'k, U32>,
    ) -> (Self, Val<'k, U32>) {
        let batch = number / heads;
        (Self::nth(problem, batch), number - batch * heads)
    }

    /// Where the copy engine finds one of its rows.
    pub(crate) fn coordinates(&self, row: Val<'k, U32>, head: Val<'k, U32>) -> [Val<'k, U32>; 3] {
        [row, head, self.batch]
    }
}
