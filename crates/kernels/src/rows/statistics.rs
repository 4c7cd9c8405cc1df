//! Statistics: -lse in base 2 and delta of each query, as `delta.rs` makes them for the backward's other kernels.
//!
//! They lie head after head, each with `stat_rows` rows, which start where its first tile does: for each 8 rows, -lse
//! of all and then delta of all, so that a lane reads those of two neighbours at once.
use super::head::QueryHead;
use signflash_ptx::{F32, GlobalAddr, SmemAddr, Thread, U32, U64, Val};

/// Heads have a multiple of so many rows: whole tiles of any kernel.
pub(crate) const STEP: u32 = 128;

/// Bytes of a query's.
pub(crate) const STAT_BYTES: u32 = 8;

/// From a row's -lse to its delta.
pub(crate) const DELTA: u32 = 32;

/// Bytes of 8 rows.
const EIGHT_ROWS_BYTES: u32 = 64;

/// Where -lse of a row is, rows counted over all heads.
#[track_caller]
pub(crate) fn of_row<'k>(stats: Val<'k, U64>, row: Val<'k, U64>) -> GlobalAddr<'k> {
    let place = (row >> 3u32) * u64::from(EIGHT_ROWS_BYTES) + (row.low() & 7).widen() * 4u64;
    GlobalAddr::new(place + stats)
}

/// -lse of the two of 8 columns that a lane of an accumulator has, in shared memory; [`DELTA`] further on, delta.
#[track_caller]
pub(crate) fn of_columns<'k>(t: Thread<'k>, stats: SmemAddr<'k>, group: u32) -> [Val<'k, F32>; 2] {
    t.load(stats.plus((t.lane() & 3) * 8).at(EIGHT_ROWS_BYTES * group))
}

/// The rows of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatRows<'k> {
    head: QueryHead<'k>,
    first: Val<'k, U64>,
}

impl<'k> StatRows<'k> {
    /// Of a head.
    #[track_caller]
    pub(crate) fn of(head: QueryHead<'k>) -> Self {
        StatRows { head, first: head.first_stat_row() }
    }

    /// From this row on: a multiple of 8, counted from where the first tile starts.
    #[track_caller]
    pub(crate) fn from(&self, stats: Val<'k, U64>, row: Val<'k, U32>) -> GlobalAddr<'k> {
        let row = self.first + row.widen();
        GlobalAddr::new(row * u64::from(STAT_BYTES) + stats)
    }

    /// Where -lse of a row is, counted from where the first tile starts.
    #[track_caller]
    pub(super) fn place(&self, stats: Val<'k, U64>, row: Val<'k, U32>) -> GlobalAddr<'k> {
        of_row(stats, self.first + row.widen())
    }

    /// -lse and delta of a row, counted from where the first tile starts. Tiles may reach behind the last: the last's
    /// then.
    #[track_caller]
    pub(crate) fn load(&self, t: Thread<'k>, stats: Val<'k, U64>, row: Val<'k, U32>) -> [Val<'k, F32>; 2] {
        let rows = match self.head.sequence.packed {
            None => self.head.problem.stat_rows,
            Some(_) => (self.head.sequence.seqlen_q + (STEP - 1)) / STEP * STEP,
        };
        let from = self.place(stats, row.min(rows - 1));
        let [lse] = t.load_constant::<F32, 1>(from);
        let [delta] = t.load_constant::<F32, 1>(from.at(DELTA.into()));
        [lse, delta]
    }
}
