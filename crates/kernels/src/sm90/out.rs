//! A warpgroup's output: from its accumulator through shared memory to the tensor.
use super::forward::WG_ROWS;
use super::pipeline::Pipeline;
use crate::config::HopperCommon;
use crate::parts::product::pack;
use signflash_ptx::{Acc, B32, BoxStart, Half, Order, SmemAddr, Tensor, TileLayout, U32, Val, Warpgroup};

/// A warpgroup's place for 64 rows, as boxes of 64 columns.
#[derive(Debug)]
pub(crate) struct OutTile<'k> {
    at: SmemAddr<'k>,
    boxes: u32,
    half: Half,
    barrier: Val<'k, U32>,
}

/// Named barriers from this one on keep a warpgroup's threads together here.
const FIRST_BARRIER: u32 = 8;

impl<'k> OutTile<'k> {
    /// Of one warpgroup: its queries' place, or a place for itself.
    pub(crate) fn new(smem: &Pipeline<'k>, common: &HopperCommon, wg_number: Val<'k, U32>) -> Self {
        let [_, boxes] = common.boxes();
        let at = match smem.out {
            Some(out) => out.plus(wg_number * (boxes * BOX_BYTES)),
            None => smem.q.nth(wg_number).data(),
        };
        OutTile { at, boxes, half: common.operands.half, barrier: wg_number + FIRST_BARRIER }
    }

    /// Rounds an accumulator and starts to write it to the box whose first row is `at[0]`. What was stored before has
    /// left.
    #[track_caller]
    pub(crate) fn store(&self, wg: Warpgroup<'k>, out: &Acc<'k>, to: Tensor<'k>, at: BoxStart<'k>) {
        stage_words(wg, &pack(out, self.half, false), self.at);
        let t = wg.threads();
        t.fence_proxy_async();
        self.meet(wg);
        t.when((t.index() & 127).eq(0), |t| {
            t.store_boxes((0..self.boxes).map(|i| (self.at.at(i * BOX_BYTES), to.at(64 * i, at))));
        });
    }

    /// Waits until what was stored last has left.
    #[track_caller]
    pub(crate) fn wait(&self, wg: Warpgroup<'k>) {
        self.wait_stored(wg);
        self.meet(wg);
    }

    /// Waits for the warpgroup's other threads.
    #[track_caller]
    pub(crate) fn meet(&self, wg: Warpgroup<'k>) {
        wg.sync_among(self.barrier, 128);
    }

    /// The same for the storing thread alone.
    #[track_caller]
    pub(crate) fn wait_stored(&self, wg: Warpgroup<'k>) {
        let t = wg.threads();
        t.when((t.index() & 127).eq(0), |t| t.wait_stored());
    }
}

/// Writes packed accumulators of 64 rows into boxes of 64 columns.
#[track_caller]
pub(super) fn stage_words<'k>(wg: Warpgroup<'k>, words: &[[Val<'k, B32>; 4]], to: SmemAddr<'k>) {
    let (warp, layout) = (wg.warps(), TileLayout::new(64));
    let lanes = warp.tile_lanes(layout, Order::Down);
    let own = to.plus((warp.index() & 3) * layout.bytes(16));
    for (k16, words) in (0..).zip(words) {
        warp.store_matrices(&lanes, own.at(k16 / 4 * BOX_BYTES), 0, k16 % 4, *words);
    }
}

/// Bytes of 64 rows of 64 columns.
const BOX_BYTES: u32 = WG_ROWS * 128;
