//! The sequences of a problem: what belongs to one of them alone.
use super::args::{ProblemVals, TensorVals};
use signflash_ptx::{BoxStart, U32, U64, Val};

/// One sequence: where it is, and how long.
///
/// All have the same lengths where sequences lie in a batch; kernels ask here all the same, not [`ProblemVals`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence<'k> {
    /// Its number, by which its random stream is found.
    pub(crate) number: Val<'k, U32>,
    /// Queries.
    pub(crate) seqlen_q: Val<'k, U32>,
    /// Keys.
    pub(crate) seqlen_k: Val<'k, U32>,
    /// If sequences lie one behind the other: where.
    pub(crate) packed: Option<Begins<'k>>,
}

/// Where a packed sequence begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begins<'k> {
    /// Queries, and keys, before its own.
    pub(crate) first_q: Val<'k, U32>,
    pub(crate) first_k: Val<'k, U32>,
    /// Queries of all sequences.
    pub(crate) total_q: Val<'k, U32>,
    /// Sequences in all, one of what is left over behind the last among them.
    pub(crate) count: Val<'k, U32>,
}

/// The rows of a sequence in a tensor: its queries, its keys, or those of a tensor that has a matrix for each sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsOf<'k> {
    sequence: Val<'k, U32>,
    seqlen: Val<'k, U32>,
    /// Rows before them, where sequences lie one behind the other.
    packed: Option<Val<'k, U32>>,
}

impl<'k> Sequence<'k> {
    /// The sequence of this number, of a batch.
    #[track_caller]
    pub(crate) fn nth(problem: &ProblemVals<'k>, number: Val<'k, U32>) -> Self {
        Sequence { number, seqlen_q: problem.seqlen_q, seqlen_k: problem.seqlen_k, packed: None }
    }

    /// The sequence of a head, and that head in it, whose number counts over all sequences of a batch, `heads` each.
    #[track_caller]
    pub(crate) fn of_head(
        problem: &ProblemVals<'k>,
        number: Val<'k, U32>,
        heads: Val<'k, U32>,
    ) -> (Self, Val<'k, U32>) {
        let batch = number / heads;
        (Self::nth(problem, batch), number - batch * heads)
    }

    /// The same where the number counts over all heads of a batch, `sequences` each: what is read of a bias for a head's
    /// queries and keys may be the same for all sequences.
    #[track_caller]
    pub(crate) fn of_shared_head(
        problem: &ProblemVals<'k>,
        number: Val<'k, U32>,
        sequences: Val<'k, U32>,
    ) -> (Self, Val<'k, U32>) {
        let head = number / sequences;
        (Self::nth(problem, number - head * sequences), head)
    }

    /// Its rows in q and whatever lies like q.
    pub(crate) fn queries(&self) -> RowsOf<'k> {
        let packed = self.packed.map(|begins| begins.first_q);
        RowsOf { sequence: self.number, seqlen: self.seqlen_q, packed }
    }

    /// Its rows in k and whatever lies like k.
    pub(crate) fn keys(&self) -> RowsOf<'k> {
        let packed = self.packed.map(|begins| begins.first_k);
        RowsOf { sequence: self.number, seqlen: self.seqlen_k, packed }
    }

    /// Its rows in probs, which has a matrix for each sequence, packed or not.
    pub(crate) fn matrix(&self) -> RowsOf<'k> {
        RowsOf { packed: None, ..self.queries() }
    }
}

impl<'k> RowsOf<'k> {
    /// Where the copy engine finds one of them: as [`TensorMap::packed`](signflash_ptx::TensorMap::packed) says, if
    /// sequences are packed, so that what lies beyond the sequence lies outside.
    #[track_caller]
    pub(crate) fn coordinates(&self, row: Val<'k, U32>, head: Val<'k, U32>) -> BoxStart<'k> {
        match self.packed {
            None => [row, head, self.sequence].into(),
            Some(first) => BoxStart::packed([first, self.seqlen], row, head),
        }
    }

    /// How many there are.
    pub(crate) fn seqlen(&self) -> Val<'k, U32> {
        self.seqlen
    }

    /// The address of the first of them, of head 0.
    #[track_caller]
    pub(super) fn start(&self, tensor: &TensorVals<'k>) -> Val<'k, U64> {
        match self.packed {
            None => self.sequence.widen().mul_add(tensor.batch, tensor.ptr),
            Some(first) => first.widen().mul_add(tensor.row, tensor.ptr),
        }
    }
}
