//! Statistics of each query row that the backward starts from: -lse in base 2, and delta = <dout, out> - dlse, where
//! dlse is the gradient of lse, if it has one.
//!
//! delta is divided by the keep scale, which is then applied once to dq and dk instead of to every dp. Rows that see
//! no key, and those before and behind the tensor that complete a tile, get -inf and 0: their probabilities are 0.
//! dlse may be NaN in such rows, and is left out, because 0 * NaN is not 0.
//!
//! Memory-bound: two rows in, eight bytes out. A lane takes 8 columns, so that a warp takes as many rows as fit; where
//! single elements are read, one row.
use super::head::{QueryHead, QueryHeads};
use super::lse::LseRows;
use super::statistics::{self, StatRows};
use crate::config::{Access, DeltaRows, Layout, RowsCommon};
use crate::packed::PackedVals;
use crate::parts::args::{DeviceTensor, ProblemVals, kernel_args};
use crate::parts::sequence::Sequence;
use crate::parts::softmax::lse_of_p;
use crate::parts::work::Work;
use signflash_ptx::{B32, Builder, Cta, F32, GlobalAddr, Half, Kernel, LaunchBounds, Thread, U32, Val, Var};
use std::f32::consts::LOG2_E;

const WARPS: u32 = 8;
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
    fn lanes(self) -> u32 {
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
        let args = DeltaVals::declare(cta);
        let (warp, t) = (cta.warps(), cta.threads());
        let lanes = rows.lanes();
        let lane = t.lane() & (lanes - 1);
        let Own { head_of, head, row, index } = match &packed {
            None => Own::of_batch(cta, rows, problem),
            Some(packed) => Own::listed(cta, rows, problem, packed),
        };
        let sequence = head_of.sequence;

        let delta = t.f32(0.0).var();
        let lse = t.f32(f32::INFINITY).var();
        let dlse = t.f32(0.0).var();
        t.when(row.lt(sequence.seqlen_q), |t| {
            let both = [args.out, args.dout].map(|tensor| tensor.head(sequence.queries(), head).row(row));
            dot(t, (half, rows), lane, problem.head_dim, both, &delta);
            let place = LseRows::of(head_of).place(row);
            let [own] = t.load::<F32, 1>(place.of(args.lse));
            let blind = own.eq(f32::NEG_INFINITY);
            lse.set(lse_of_p(t, own));
            t.when(args.dlse.ne(0u64), |t| {
                let [own] = t.load::<F32, 1>(place.of(args.dlse));
                dlse.set(blind.select(t.f32(0.0), own));
            });
        });
        let halves = [16, 8, 4, 2, 1].into_iter().filter(|bit| *bit < lanes);
        let delta = halves.fold(delta.get(), |sum, bit| sum + warp.shuffle_xor(sum, bit));
        let to = match index {
            Some(index) => statistics::of_row(args.stats, index.widen()),
            None => StatRows::of(head_of).place(args.stats, row),
        };
        t.when(lane.eq(0), |t| {
            t.store(to, [-(lse.get() * LOG2_E)]);
            t.store(to.at(statistics::DELTA.into()), [(delta - dlse.get()) * args.ds_divisor.rcp()]);
        });
    })
}

/// The row of a lane.
struct Own<'k> {
    head_of: QueryHead<'k>,
    /// The head's number in its sequence.
    head: Val<'k, U32>,
    row: Val<'k, U32>,
    /// The row's number among those of all statistics, if that is where it came from.
    index: Option<Val<'k, U32>>,
}

impl<'k> Own<'k> {
    fn of_batch(cta: Cta<'k>, rows: DeltaRows, problem: ProblemVals<'k>) -> Self {
        let index = cta.index() * rows.per_block() + cta.threads().index() / rows.lanes();
        let number = index / problem.stat_rows;
        let row = index - number * problem.stat_rows - problem.row_shift;
        let (sequence, head) = Sequence::of_head(&problem, number, problem.num_heads);
        Own { head_of: QueryHead { number, sequence, problem }, head, row, index: Some(index) }
    }

    /// Several blocks share a tile of [`statistics::STEP`] rows.
    fn listed(cta: Cta<'k>, rows: DeltaRows, problem: ProblemVals<'k>, packed: &PackedVals<'k>) -> Self {
        let blocks = statistics::STEP / rows.per_block();
        let unit = cta.index() / blocks;
        let Work { sequence, head, block } = Work::listed(cta, &problem, packed, unit, problem.num_heads);
        let part = cta.index() - unit * blocks;
        let first = block * statistics::STEP + part * rows.per_block();
        let row = first + cta.threads().index() / rows.lanes();
        Own { head_of: QueryHeads::of(&problem, sequence).nth(head), head, row, index: None }
    }
}

/// Adds the products of the lane's columns to `sum`, as far as they are real.
fn dot<'k>(
    t: Thread<'k>,
    (half, read): (Half, DeltaRows),
    lane: Val<'k, U32>,
    head_dim: Val<'k, U32>,
    rows: [GlobalAddr<'k>; 2],
    sum: &Var<'k, F32>,
) {
    let add = |x: Val<'k, B32>, y: Val<'k, B32>| {
        sum.set(x.half_to_f32(half).mul_add(y.half_to_f32(half), sum.get()));
    };
    match read {
        // head_dim is a multiple of 8: all columns are real, or none.
        DeltaRows::Wide { .. } => {
            let first = lane * LANE_COLUMNS;
            t.when(first.lt(head_dim), |t| {
                let [out, dout] = rows.map(|row| t.load_constant::<B32, 4>(row.plus((first * 2).widen())));
                for (x, y) in out.into_iter().zip(dout) {
                    add(x, y);
                    add(x >> 16u32, y >> 16u32);
                }
            });
        }
        DeltaRows::Narrow { columns } => {
            for column in (0..columns).map(|i| lane + 32 * i) {
                t.when(column.lt(head_dim), |t| {
                    let [x, y] = rows.map(|row| t.load_half(row.plus((column * 2).widen())));
                    add(x, y);
                });
            }
        }
    }
}
