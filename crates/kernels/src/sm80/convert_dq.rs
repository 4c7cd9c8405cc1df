//! dq from its sums in f32, which lie in the order of accumulators: scaled, rounded, put into rows.
//!
//! A warp takes 16 rows.
use crate::config::{DqSums, Rows};
use crate::parts::args::{DeviceTensor, ProblemVals, kernel_args};
use crate::parts::copy::{TileCopy, TileRows};
use crate::parts::epilogue::store_rows;
use crate::parts::work::Work;
use signflash_ptx::{Acc, Builder, F32, GlobalAddr, Kernel, LaunchBounds, Thread, TileLayout, U32, Val};

kernel_args! {
    /// Arguments of the conversion.
    ConvertDqArgs / ConvertDqVals {
        /// Written.
        dq: DeviceTensor,
        /// Sums, see [`SumsTile`].
        dq_sums: u64,
        /// Factor of kept probabilities.
        keep_scale: f32,
    }
}

/// The sums of one step of queries in global memory: for each tile of 16 rows and each group of 8 columns, the four
/// registers of 32 lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SumsTile<'k> {
    start: GlobalAddr<'k>,
    groups: u32,
    /// Registers of a lane are neighbours; else lanes are.
    wide: bool,
}

impl<'k> SumsTile<'k> {
    /// Of tile number `tile` of all (batch, head, step).
    #[track_caller]
    pub(crate) fn new(
        t: Thread<'k>,
        sums: Val<'k, signflash_ptx::U64>,
        tile: Val<'k, U32>,
        size: [u32; 2],
        sums_as: DqSums,
    ) -> Self {
        let ([step, head_dim], wide) = (size, sums_as == DqSums::Wide);
        let own = t.lane() * if wide { 16 } else { 4 };
        let start = tile.widen().mul_add(u64::from(4 * step * head_dim), sums) + own.widen();
        SumsTile { start: GlobalAddr::new(start), groups: head_dim / 8, wide }
    }

    fn at(&self, row_tile: u32, group: u32) -> GlobalAddr<'k> {
        self.start.at(512 * i64::from(row_tile * self.groups + group))
    }

    /// Adds four registers to those of other blocks.
    #[track_caller]
    pub(crate) fn add(&self, t: Thread<'k>, place: GlobalAddr<'k>, values: [Val<'k, F32>; 4]) {
        if self.wide {
            return t.add_floats(place, values);
        }
        for (i, value) in values.into_iter().enumerate() {
            t.add_floats(place.at(128 * i as i64), [value]);
        }
    }

    /// Where registers go whose row tile and group are chosen on the GPU.
    #[track_caller]
    pub(crate) fn place(&self, row_tile: Val<'k, U32>, group: Val<'k, U32>) -> GlobalAddr<'k> {
        self.start.plus(((row_tile * self.groups + group) * 512).widen())
    }

    #[track_caller]
    fn read(&self, t: Thread<'k>, acc: &Acc<'k>) {
        for group in 0..self.groups {
            let at = self.at(0, group);
            let values = if self.wide {
                t.load_constant::<F32, 4>(at)
            } else {
                [0, 1, 2, 3].map(|i| t.load_constant::<F32, 1>(at.at(128 * i))[0])
            };
            values.into_iter().enumerate().for_each(|(i, value)| acc.at(group as usize, i).set(value));
        }
    }
}

/// The kernel of a configuration.
pub(crate) fn kernel(name: &str, rows: &Rows, step: u32, sums: DqSums) -> Kernel {
    let row_tiles = step / 16;
    let bounds = LaunchBounds { block_threads: 32 * row_tiles, min_blocks_per_sm: 1 };
    Builder::build(name, bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let args = ConvertDqVals::declare(cta);
        let layout = TileLayout::new(rows.operands.head_dim);
        let staging = cta.smem("dq", layout.bytes(step), 1024);
        let (warp, t) = (cta.warps(), cta.threads());
        let steps = problem.query_tiles(step);
        let work = Work::locate(cta, steps, problem.num_heads, false);

        let all = SumsTile::new(t, args.dq_sums, cta.index(), [step, rows.operands.head_dim], sums);
        let own = SumsTile { start: all.place(warp.index(), t.u32(0)), ..all };
        let acc = warp.acc(rows.operands.head_dim);
        own.read(t, &acc);
        let factor = problem.scale * args.keep_scale;
        crate::parts::softmax::scale_rows(&acc, [factor, factor]);

        let own_row = warp.index() * 16;
        let target = TileRows {
            rows: args.dq.head(work.batch, work.head),
            first: work.block * step - problem.row_shift + own_row,
            seqlen: problem.seqlen_q,
            head_dim: problem.head_dim,
        };
        let staging = staging.plus(own_row * layout.row_bytes());
        store_rows(warp, &[acc], rows.operands.half, staging, &TileCopy::new(t, *rows, t.lane(), 32), target);
    })
}
