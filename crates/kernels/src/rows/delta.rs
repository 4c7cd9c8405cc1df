//! Statistics of each query row that the backward starts from: -lse in base 2, and delta = <dout, out> - dlse, where
//! dlse is the gradient of lse, if it has one.
//!
//! delta is divided by the keep scale, which is then applied once to dq and dk instead of to every dp. Rows that see
//! no key, and those before and behind the tensor that complete a tile, get -inf and 0: their probabilities are 0.
//! dlse may be NaN in such rows, and is left out, because 0 * NaN is not 0.
//!
//! Memory-bound: two rows in, eight bytes out. A lane takes 8 columns, so that a warp takes as many rows as fit; where
//! single elements are read, one row.
use super::head::QueryHead;
use super::lse::LseRows;
use super::packed_delta::{ClearVals, several_rows};
use super::statistics;
use crate::config::{Access, DeltaRows, Layout, RowsCommon};
use crate::packed::PackedVals;
use crate::parts::args::{DeviceTensor, ProblemVals, kernel_args};
use crate::parts::sequence::Sequence;
use crate::parts::softmax::lse_of_p;
use signflash_ptx::{
    B32, Builder, Cta, F32, GlobalAddr, Half, Kernel, LaunchBounds, Thread, U32, Val, Var, Warp,
};
use std::f32::consts::LOG2_E;

/// Of a block.
pub(super) const WARPS: u32 = 8;
/// Columns of a lane where rows are read in pieces of 16 bytes.
const LANE_COLUMNS: u32 = 8;

impl DeltaRows {
    /// For rows of a problem.
    pub(crate) fn of(rows: RowsCommon) -> Self {
        let columns = rows.operands.head_dim;
        match rows.access {
            Access::Whole | Access::Pieces => {
                DeltaRows::Wide { lanes: columns.div_ceil(LANE_COLUMNS).next_power_of_two() }
            }
            Access::Elements => DeltaRows::Narrow { columns: columns.div_ceil(32) },
        }
    }

    /// Lanes that share a row: a power of two.
    pub(super) fn lanes(self) -> u32 {
        match self {
            DeltaRows::Wide { lanes } => lanes,
            DeltaRows::Narrow { .. } => 32,
        }
    }

    /// Rows that one block computes: it divides [`statistics::STEP`].
    pub(crate) fn per_block(self) -> u32 {
        WARPS * (32 / self.lanes())
    }
}

kernel_args! {
    /// Arguments of the statistics.
    DeltaArgs / DeltaVals {
        /// The forward's output.
        out: DeviceTensor,
        /// Its gradient.
        dout: DeviceTensor,
        /// (batch, num_heads, seqlen_q) f32, dense.
        lse: u64,
        /// Its gradient, likewise, or 0 for none.
        dlse: u64,
        /// (batch, num_heads, stat_rows) pairs of f32, see `statistics.rs`; written.
        stats: u64,
        /// What delta is divided by, as ds is, rather than every dp multiplied.
        ds_divisor: f32,
    }
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, (half, layout): (Half, Layout), rows: DeltaRows) -> Kernel {
    Builder::build(name, LaunchBounds { block_threads: 32 * WARPS, min_blocks_per_sm: 1 }, |cta| {
        let problem = ProblemVals::declare(cta);
        let packed = layout.is_packed().then(|| PackedVals::declare(cta));
        match &packed {
            None => one_row(cta, (half, rows), problem, DeltaVals::declare(cta)),
            Some(packed) => {
                let args = (ClearVals::declare(cta), DeltaVals::declare(cta));
                several_rows(cta, (half, rows), problem, packed, args);
            }
        }
    })
}

/// Statistics of a row, of equally long sequences.
fn one_row<'k>(cta: Cta<'k>, (half, rows): (Half, DeltaRows), problem: ProblemVals<'k>, args: DeltaVals<'k>) {
    let (warp, t) = (cta.warps(), cta.threads());
    let lanes = rows.lanes();
    let lane = t.lane() & (lanes - 1);
    let Own { head_of, head, row, index } = Own::of_batch(cta, rows, problem);
    let sequence = head_of.sequence;

    let delta = t.f32(0.0).var();
    let lse = t.f32(f32::INFINITY).var();
    let dlse = t.f32(0.0).var();
    t.when(row.lt(sequence.seqlen_q), |t| {
        let both = [args.out, args.dout].map(|tensor| tensor.head(sequence.queries(), head).row(row));
        dot(t, (half, rows), lane, problem.head_dim, &[(both, &delta)]);
        let place = LseRows::of(head_of).place(row);
        let [own] = t.load::<F32, 1>(place.of(args.lse));
        let blind = own.eq(f32::NEG_INFINITY);
        lse.set(lse_of_p(t, own));
        t.when(args.dlse.ne(0u64), |t| {
            let [own] = t.load::<F32, 1>(place.of(args.dlse));
            dlse.set(blind.select(t.f32(0.0), own));
        });
    });
    let delta = over_lanes(warp, lanes, delta.get());
    let to = statistics::of_row(args.stats, index.widen());
    t.when(lane.eq(0), |t| {
        t.store(to, [-(lse.get() * LOG2_E)]);
        t.store(to.at(statistics::DELTA.into()), [(delta - dlse.get()) * args.ds_divisor.rcp()]);
    });
}

/// The sum of a row's lanes.
pub(super) fn over_lanes<'k>(warp: Warp<'k>, lanes: u32, sum: Val<'k, F32>) -> Val<'k, F32> {
    let halves = [16, 8, 4, 2, 1].into_iter().filter(|bit| *bit < lanes);
    halves.fold(sum, |sum, bit| sum + warp.shuffle_xor(sum, bit))
}

/// The row of a lane.
struct Own<'k> {
    head_of: QueryHead<'k>,
    /// The head's number in its sequence.
    head: Val<'k, U32>,
    row: Val<'k, U32>,
    /// The row's number among those of all statistics.
    index: Val<'k, U32>,
}

impl<'k> Own<'k> {
    fn of_batch(cta: Cta<'k>, rows: DeltaRows, problem: ProblemVals<'k>) -> Self {
        let index = cta.index() * rows.per_block() + cta.threads().index() / rows.lanes();
        let number = index / problem.stat_rows;
        let row = index - number * problem.stat_rows - problem.row_shift;
        let (sequence, head) = Sequence::of_head(&problem, number, problem.num_heads);
        Own { head_of: QueryHead { number, sequence, problem }, head, row, index }
    }
}

/// Adds the products of the lane's columns of rows of out and dout to a sum for each, as far as they are real. What is
/// read of all rows is asked for before the first is used.
pub(super) fn dot<'k>(
    t: Thread<'k>,
    (half, read): (Half, DeltaRows),
    lane: Val<'k, U32>,
    head_dim: Val<'k, U32>,
    rows: &[([GlobalAddr<'k>; 2], &Var<'k, F32>)],
) {
    let add = |sum: &Var<'k, F32>, x: Val<'k, B32>, y: Val<'k, B32>| {
        sum.set(x.half_to_f32(half).mul_add(y.half_to_f32(half), sum.get()));
    };
    match read {
        // head_dim is a multiple of 8: all columns are real, or none.
        DeltaRows::Wide { .. } => {
            let first = lane * LANE_COLUMNS;
            t.when(first.lt(head_dim), |t| {
                let pieces = rows.iter().map(|(both, sum)| {
                    let pieces = both.map(|row| t.load_constant::<B32, 4>(row.plus((first * 2).widen())));
                    (pieces, sum)
                });
                for ([out, dout], sum) in pieces.collect::<Vec<_>>() {
                    for (x, y) in out.into_iter().zip(dout) {
                        add(sum, x, y);
                        add(sum, x >> 16u32, y >> 16u32);
                    }
                }
            });
        }
        DeltaRows::Narrow { columns } => {
            for column in (0..columns).map(|i| lane + 32 * i) {
                t.when(column.lt(head_dim), |t| {
                    for (both, sum) in rows {
                        let [x, y] = both.map(|row| t.load_half(row.plus((column * 2).widen())));
                        add(sum, x, y);
                    }
                });
            }
        }
    }
}
