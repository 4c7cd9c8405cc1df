//! Statistics of each query row that the backward starts from: -lse in base 2, and delta = <dout, out>.
//!
//! delta is divided by the keep scale, which is then applied once to dq and dk instead of to every dp. Rows that see no
//! key, and those before and behind the tensor that complete a tile, get -inf and 0: their probabilities are 0.
//!
//! A warp takes a row. Memory-bound: two rows in, eight bytes out.
use crate::config::Common;
use crate::parts::args::{DeviceTensor, ProblemVals, kernel_args};
use crate::parts::copy::Access;
use signflash_ptx::{B32, Builder, F32, GlobalAddr, Kernel, Shape, Thread, U32, Val, Var};
use std::f32::consts::LOG2_E;

const WARPS: u32 = 8;
/// Rows that one block computes.
pub(crate) const ROWS_PER_BLOCK: u32 = WARPS;
/// Heads have a multiple of so many rows in the statistics.
pub(crate) const STEP: u32 = 64;

kernel_args! {
    /// Arguments of the statistics.
    DeltaArgs / DeltaVals {
        /// The forward's output.
        out: DeviceTensor,
        /// Its gradient.
        dout: DeviceTensor,
        /// (batch, num_heads, seqlen_q) f32, dense.
        lse: u64,
        /// (batch, num_heads, stat_rows, 2) f32; written.
        stats: u64,
        /// Factor of kept probabilities.
        keep_scale: f32,
    }
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, common: &Common) -> Kernel {
    Builder::build(name, Shape { block_threads: 32 * WARPS, min_blocks_per_sm: 1 }, |cta| {
        let problem = ProblemVals::declare(cta);
        let args = DeltaVals::declare(cta);
        let (warp, t) = (cta.warps(), cta.threads());
        let index = cta.index() * WARPS + warp.index();
        let bh = index / problem.stat_rows;
        let row = index - bh * problem.stat_rows - problem.row_shift;
        let batch = bh / problem.num_heads;
        let head = bh - batch * problem.num_heads;

        let delta = t.f32(0.0).var();
        let lse = t.f32(f32::INFINITY).var();
        t.when(row.lt(problem.seqlen_q), |t| {
            let (out, dout) = (args.out.head(batch, head).row(row), args.dout.head(batch, head).row(row));
            for first in (0..common.head_dim).step_by(64) {
                dot_pair(t, common, t.lane() * 2 + first, problem.head_dim, [out, dout], &delta);
            }
            let at = (bh.mul_wide(problem.seqlen_q) + row.widen()) * 4u64 + args.lse;
            let [own] = t.load::<F32, 1>(GlobalAddr::new(at));
            // A row without keys has lse = -inf; its probabilities shall be 0, not exp(s + inf).
            lse.set(own.eq(f32::NEG_INFINITY).select(t.f32(f32::INFINITY), own));
        });
        let delta =
            [16, 8, 4, 2, 1].into_iter().fold(delta.get(), |sum, bit| sum + warp.shuffle_xor(sum, bit));
        let stat = [-(lse.get() * LOG2_E), delta * args.keep_scale.rcp()];
        t.when(t.lane().eq(0), |t| t.store(GlobalAddr::new(index.mul_wide(8u32) + args.stats), stat));
    })
}

/// Adds the products of two columns to `sum`, as far as they are real.
fn dot_pair<'k>(
    t: Thread<'k>,
    common: &Common,
    col: Val<'k, U32>,
    head_dim: Val<'k, U32>,
    rows: [GlobalAddr<'k>; 2],
    sum: &Var<'k, F32>,
) {
    let own = rows.map(|row| row.plus((col * 2).widen()));
    let add = |x: Val<'k, B32>, y: Val<'k, B32>| {
        sum.set(x.half_to_f32(common.half).mul_add(y.half_to_f32(common.half), sum.get()));
    };
    match common.access {
        // head_dim is even: both columns are real, or none.
        Access::Wide => t.when(col.lt(head_dim), |t| {
            let [x, y] = own.map(|own| t.load_constant::<B32, 1>(own)[0]);
            add(x, y);
            add(x >> 16u32, y >> 16u32);
        }),
        Access::Narrow => {
            for i in 0..2 {
                t.when((col + i).lt(head_dim), |t| {
                    let [x, y] = own.map(|own| t.load_half(own.at(2 * i64::from(i))));
                    add(x, y);
                });
            }
        }
    }
}
