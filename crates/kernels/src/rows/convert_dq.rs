//! dq from its sums in f32, which lie in the order of accumulators: scaled, rounded, put into rows.
//!
//! A warp takes 16 rows.
use super::dq_sums::SumsTile;
use super::from_the_last;
use super::head::QueryHeads;
use crate::config::{DqSums, RowsCommon};
use crate::packed::PackedVals;
use crate::parts::args::{DeviceTensor, ProblemVals, kernel_args};
use crate::parts::copy::{TileCopy, TileRows};
use crate::parts::epilogue::store_rows;
use crate::parts::softmax::scale_rows;
use crate::parts::work::Work;
use signflash_ptx::{Builder, Kernel, LaunchBounds, TileLayout};

kernel_args! {
    /// Arguments of the conversion.
    ConvertDqArgs / ConvertDqVals {
        /// Written.
        dq: DeviceTensor,
        /// Sums, see `dq_sums.rs`.
        dq_sums: u64,
        /// What ds was divided by.
        ds_divisor: f32,
    }
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, rows: &RowsCommon, step: u32, sums: DqSums) -> Kernel {
    let row_tiles = step / 16;
    let bounds = LaunchBounds { block_threads: 32 * row_tiles, min_blocks_per_sm: 1 };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let packed = rows.operands.layout.is_packed().then(|| PackedVals::declare(cta));
        let args = ConvertDqVals::declare(cta);
        let layout = TileLayout::new(rows.operands.head_dim);
        let staging = cta.smem("dq", layout.bytes(step), 1024);
        let (warp, t) = (cta.warps(), cta.threads());
        let index = from_the_last(cta);
        let (work, tile) = match &packed {
            None => (Work::nth(index, &problem, problem.query_tiles(step), problem.num_heads), index),
            Some(packed) => {
                let work = Work::listed(cta, &problem, packed, index, problem.num_heads);
                let head = QueryHeads::of(&problem, work.sequence).nth(work.head);
                (work, head.first_dq_tile(step) + work.block)
            }
        };

        let all = SumsTile::new(t, args.dq_sums, tile, [step, rows.operands.head_dim], sums);
        let own = all.at_row_tile(warp.index(), t);
        let acc = warp.acc(rows.operands.head_dim);
        own.read(t, &acc);
        let factor = problem.scale * args.ds_divisor;
        scale_rows(&acc, [factor, factor]);

        let own_row = warp.index() * 16;
        let target = TileRows {
            rows: args.dq.head(work.sequence.queries(), work.head),
            first: work.block * step - problem.row_shift + own_row,
            seqlen: work.sequence.seqlen_q,
            head_dim: problem.head_dim,
        };
        let staging = staging.plus(own_row * layout.row_bytes());
        store_rows(warp, &[acc], rows.operands, staging, &TileCopy::new(t, *rows, t.lane(), 32), target);
    })
}
