//! lse, and whatever lies like it: (batch, num_heads, seqlen_q) f32, dense.
use super::head::QueryHead;
use crate::parts::epilogue::Before;
use crate::parts::softmax::{RowResult, THREAD_ROWS};
use signflash_ptx::{F32, GlobalAddr, Thread, U32, U64, Val, Warp};

/// The rows of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LseRows<'k> {
    head: QueryHead<'k>,
    first: Val<'k, U64>,
}

/// Where a row lies in each such tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LsePlace<'k>(Val<'k, U64>);

impl<'k> LseRows<'k> {
    /// Of a head.
    #[track_caller]
    pub(crate) fn of(head: QueryHead<'k>) -> Self {
        LseRows { head, first: head.first_row() }
    }

    /// Of a query.
    #[track_caller]
    pub(crate) fn place(&self, row: Val<'k, U32>) -> LsePlace<'k> {
        LsePlace((self.first + row.widen()) * 4u64)
    }

    /// Of a thread's two rows of an accumulator: a result together with that of other keys, whose lse is here, and what
    /// becomes of their out.
    #[track_caller]
    pub(crate) fn with_others(
        &self,
        warp: Warp<'k>,
        tensor: Val<'k, U64>,
        rows: [Val<'k, U32>; THREAD_ROWS],
        own: RowResult<'k>,
    ) -> (RowResult<'k>, Before<'k>) {
        let t = warp.threads();
        let (both, old) = own.with_others(t, rows.map(|row| self.load(t, tensor, row)));
        warp.sync(); // all four lanes of a row have read what one of them writes
        (both, Before::Weighed(old))
    }

    /// Reads that of a row of an accumulator; -inf if it is no query.
    #[track_caller]
    fn load(&self, t: Thread<'k>, tensor: Val<'k, U64>, row: Val<'k, U32>) -> Val<'k, F32> {
        let found = t.f32(f32::NEG_INFINITY).var();
        let from = self.place(row).of(tensor);
        t.when(row.lt(self.head.sequence.seqlen_q), |t| {
            let [lse] = t.load(from);
            found.set(lse);
        });
        found.get()
    }

    /// Writes that of a row of an accumulator, once of the four lanes that share it, and only if it is a query.
    #[track_caller]
    pub(crate) fn store(&self, t: Thread<'k>, tensor: Val<'k, U64>, row: Val<'k, U32>, lse: Val<'k, F32>) {
        let real = row.lt(self.head.sequence.seqlen_q) & (t.lane() & 3).eq(0);
        let to = self.place(row).of(tensor);
        t.when(real, |t| t.store(to, [lse]));
    }
}

impl<'k> LsePlace<'k> {
    /// In a tensor.
    #[track_caller]
    pub(crate) fn of(self, tensor: Val<'k, U64>) -> GlobalAddr<'k> {
        GlobalAddr::new(self.0 + tensor)
    }
}
