//! Gradients of sinks: of a head's, minus the sum over all rows of its weight there times delta.
//!
//! From statistics, which have -lse and delta (without dlse) of each row. A block owns a head, and adds in one order: a
//! thread its share of the rows, then warps, then the block.
use super::statistics::{self, DELTA};
use crate::parts::args::{ProblemVals, kernel_args};
use signflash_ptx::{Builder, F32, GlobalAddr, Kernel, LaunchBounds, Val, Warp};
use std::f32::consts::LOG2_E;

kernel_args! {
    /// Arguments of the sums.
    DsinksArgs / DsinksVals {
        /// (num_heads) f32.
        sinks: u64,
        /// Written, likewise.
        dsinks: u64,
        /// Of `statistics.rs`.
        stats: u64,
        /// Rows of a head's statistics in all sequences, divided by [`UNIT`].
        units: u32,
        /// Of one sequence; of packed ones, which follow each other, of all.
        units_per_sequence: u32,
        /// What delta was divided by.
        ds_divisor: f32,
    }
}

const WARPS: u32 = 16;

/// Rows that a thread takes at once: half of what lies together in statistics.
pub(crate) const UNIT: u32 = 4;

/// The kernel.
pub(crate) fn kernel(name: &str) -> Kernel {
    let bounds = LaunchBounds { block_threads: 32 * WARPS, min_blocks_per_sm: 1 };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let args = DsinksVals::declare(cta);
        let sums = cta.smem("sums", 4 * WARPS, 16);
        let (warp, t, head) = (cta.warps(), cta.threads(), cta.index());
        let place = head.widen() * 4u64;
        let [sink] = t.load_constant::<F32, 1>(GlobalAddr::new(place + args.sinks));

        // Heads have whole steps of rows, of which each is a unit for each lane of a warp.
        let (sum, first) = (t.f32(0.0).var(), (warp.index() * 32).var());
        warp.while_(
            || first.get().lt(args.units),
            |_| {
                let own = first.get() + t.lane();
                let sequence = own / args.units_per_sequence;
                let row = (sequence * problem.num_heads + head).mul_wide(problem.stat_rows)
                    + ((own - sequence * args.units_per_sequence) * UNIT).widen();
                let from = statistics::of_row(args.stats, row);
                let shifts = t.load_constant::<F32, 4>(from);
                let deltas = t.load_constant::<F32, 4>(from.at(DELTA.into()));
                for (shift, delta) in shifts.into_iter().zip(deltas) {
                    let weighed = sink.mul_add(LOG2_E, shift).ex2() * delta;
                    // Where there is no row, the weight need not be a number.
                    sum.set(sum.get() + delta.eq(0.0).select(t.f32(0.0), weighed));
                }
                first.set(first.get() + 32 * WARPS);
            },
        );
        let of_warp = over_lanes(warp, sum.get());
        let own = sums.plus(warp.index() * 4);
        t.when(t.lane().eq(0), |t| t.store(own, [of_warp]));
        cta.sync();
        t.when(t.index().eq(0), |t| {
            let of_warps = (0..WARPS).map(|i| t.load::<F32, 1>(sums.at(4 * i))[0]);
            let sum = of_warps.reduce(|a, b| a + b).expect("a block has warps");
            t.store(GlobalAddr::new(place + args.dsinks), [-(sum * args.ds_divisor)]);
        });
    })
}

fn over_lanes<'k>(warp: Warp<'k>, value: Val<'k, F32>) -> Val<'k, F32> {
    [16, 8, 4, 2, 1].into_iter().fold(value, |sum, lanes| sum + warp.shuffle_xor(sum, lanes))
}
