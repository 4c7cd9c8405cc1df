//! Blocks that take several tiles of keys, one after the other: as many blocks as multiprocessors.
//!
//! A tile begins and ends with a lot of waiting: for its keys, its first queries and their flags, and until its results
//! have left. A block that ends and another that starts do that one after the other. Here, the serving warps are at the
//! next tile while the multiplying ones finish the last: dk and dv leave by way of the places of ds and dq, so that the
//! next keys can come to their own. That is worth it where tiles have few steps: in windows, and for packed sequences.
//!
//! The first tile of a block has its number. Further ones are those that nobody has begun, by a counter in memory; so
//! tiles that take longer hold up nobody. The copying warp takes the next number while the tile is under way, and tells
//! it by a ring of two words, `numbers`.
use super::multiply::{Keys, OneOfSeveral, OwnKeys, Rings};
use super::{Block, KEYS_READ, MULTIPLIERS, Smem, rows_bytes};
use crate::config::HopperKeysForm;
use crate::packed::PackedVals;
use crate::parts::args::{DropoutVals, ProblemVals, kernel_args};
use crate::parts::work::{Order, Units, Work};
use signflash_ptx::{
    BulkRing, BulkRingProducer, Cta, GlobalAddr, SmemAddr, Thread, U32, Val, Warp, Warpgroup,
};

kernel_args! {
    /// Arguments of a kernel whose blocks take several tiles.
    TilesArgs / TilesVals {
        /// Tiles of all heads; of packed sequences, which are listed, at most.
        units: u32,
        /// How many have been begun beyond the first of each block (u32), zeroed before.
        begun: u64,
    }
}

/// Bytes of that counter, and of what completes a piece of 16.
pub(crate) const NEXT_TILE_BYTES: u64 = 16;

/// Warps that ask for a number: all.
const READERS: u32 = 4 * (MULTIPLIERS + 1);

/// Where numbers of tiles are told.
pub(super) fn numbers(cta: Cta<'_>) -> BulkRing<'_> {
    cta.stage_ring("numbers", 2, 16, 1, READERS)
}

/// A block's tiles, and what every role of it knows.
pub(super) struct Tiles<'a, 'k> {
    pub(super) cta: Cta<'k>,
    pub(super) form: &'a HopperKeysForm,
    pub(super) problem: ProblemVals<'k>,
    pub(super) packed: Option<PackedVals<'k>>,
    pub(super) args: TilesVals<'k>,
    pub(super) heads_at_once: Val<'k, U32>,
    pub(super) dropout: Option<DropoutVals<'k>>,
    pub(super) smem: Smem<'k>,
    pub(super) numbers: BulkRing<'k>,
    /// The block as it is at a tile.
    pub(super) block: &'a dyn Fn(Work<'k>) -> Block<'a, 'k>,
}

impl<'a, 'k> Tiles<'a, 'k> {
    /// Goes from tile to tile.
    pub(super) fn walk(&self, wg: Warpgroup<'k>, body: impl FnOnce(Block<'a, 'k>)) {
        let (warp, t) = (wg.warps(), wg.threads());
        let mut numbers = self.numbers.consumer(warp);
        let (unit, units) = (self.cta.index().var(), self.units(t));
        wg.while_(
            || unit.get().lt(units),
            |_| {
                body((self.block)(self.work(t, unit.get())));
                let told = numbers.wait(warp);
                let [next] = t.load::<U32, 1>(told.address());
                told.release(warp);
                unit.set(next);
            },
        );
    }

    fn units(&self, t: Thread<'k>) -> Val<'k, U32> {
        match &self.packed {
            None => self.args.units,
            Some(packed) => packed.count(t) * self.problem.num_heads_k,
        }
    }

    /// All heads of a listed tile follow each other.
    fn work(&self, t: Thread<'k>, unit: Val<'k, U32>) -> Work<'k> {
        let (problem, heads) = (&self.problem, self.problem.num_heads_k);
        match &self.packed {
            None => {
                let tiles = problem.key_tiles(self.form.keys);
                let units = Units { index: unit, rows: self.args.units / tiles, blocks: tiles };
                // Who begins a step's dq, for which others wait, has started before them.
                let order = Order { reversed: self.form.begins_sums, heads_first: false };
                Work::alternate(units, problem, heads, self.heads_at_once, order)
            }
            Some(packed) => {
                let index = unit / heads;
                let tile = packed.tile(t, problem, index);
                Work { sequence: tile.sequence, head: unit - index * heads, block: tile.number }
            }
        }
    }

    /// Takes the number of the block's next tile, and tells it.
    pub(super) fn announce(&self, warp: Warp<'k>, to: &mut BulkRingProducer<'k>) {
        BulkRingProducer::fill_with_stores(&mut [to], warp, |stages| {
            let t = warp.threads();
            t.when(t.lane().eq(0), |t| {
                let number = t.take_number(GlobalAddr::new(self.args.begun)) + self.cta.count();
                t.store(stages[0], [number]);
            });
        });
    }
}

impl<'k> Block<'_, 'k> {
    /// By way of which places dk and dv leave, once ds and dq have been read: the larger where ds was.
    fn leave_by(&self) -> [SmemAddr<'k>; 2] {
        let Block { common, form, .. } = self;
        let [dk_bytes, dv_bytes] = rows_bytes(common, form.keys);
        let (ds, ds_bytes) = (self.smem.ds.data(), form.ds_stages * 2 * form.keys * form.step);
        let (dq, dq_bytes) = (self.staging().0, 4 * form.step * common.operands.dims().q);
        assert!(dk_bytes.max(dv_bytes) <= ds_bytes && dk_bytes.min(dv_bytes) <= dq_bytes, "{form:?}");
        if dk_bytes < dv_bytes { [dq, ds] } else { [ds, dq] }
    }
}

/// All that a multiplying warpgroup does.
pub(super) fn multiply<'k>(tiles: &Tiles<'_, 'k>, wg: Warpgroup<'k>, wg_number: Val<'k, U32>) {
    let (warp, t, smem) = (wg.warps(), wg.threads(), &tiles.smem);
    let mut keys = smem.keys.consumer(warp);
    let mut values = smem.values.expect("of several tiles").consumer(warp);
    let mut rings = Rings::new(wg, smem);
    let passed = t.u32(0).var();
    tiles.walk(wg, |block| {
        let (k, v) = (keys.wait(warp), values.wait(warp));
        let own = OwnKeys::new(&block, wg, wg_number, [k.address(), v.address()]);
        let mut own = Keys::new(&block, wg, wg_number, own, &mut rings);
        let turn = own.walk(Some(OneOfSeveral { k, v, passed: passed.get() }));
        own.wait_stored();
        passed.set(turn.close(&block, wg, wg_number));
        // ds and dq of all steps have been read: dk and dv leave by way of their places, and have left before the next
        // tile's first turn.
        wg.sync_among(KEYS_READ, 128 * MULTIPLIERS);
        own.finish(block.leave_by());
    });
    t.when(t.lane().eq(0), |t| t.wait_stored());
}
