//! The serving warpgroup: copies for the multiplying ones, and flags.
use super::tiles::Tiles;
use super::{Block, FLAG_BYTES, MULTIPLIERS, QUERIES, Smem, rows_bytes};
use crate::config::{HopperCommon, HopperKeysForm};
use crate::parts::args::DropoutVals;
use crate::parts::cursor::Cursor;
use crate::parts::dropout::{DropSigns, Philox, StreamColumn};
use crate::parts::overlays::{BOX_KEYS, box_bytes};
use crate::rows::head::QueryHeads;
use crate::rows::statistics::{STAT_BYTES, StatRows};
use signflash_ptx::{
    BulkRing, BulkRingProducer, Cta, Filling, Pred, Tensor, Thread, U32, Val, Warp, Warpgroup,
};

impl<'k> Block<'_, 'k> {
    /// All that the serving warpgroup does.
    pub(super) fn serve(&self, wg: Warpgroup<'k>) {
        let warp = wg.warps();
        let mut copies = Copies::new(&self.smem, warp);
        copies.keys(self, warp);
        let mut draws = self.dropout.as_ref().map(|args| Draws::new(self.form, &self.smem, warp, args));
        let columns = draws.as_ref().map(|draws| draws.columns(self));
        let at = self.cursor();
        at.walk(wg, || {
            copies.next(self, warp, &at);
            if let (Some(draws), Some(columns)) = (&mut draws, columns) {
                draws.next(self, warp, &at, columns);
            }
            copies.bias(self, warp, &at);
        });
    }
}

/// The same of a block that takes several tiles: it is at the next tile while the last one's results leave.
pub(super) fn serve_tiles<'k>(tiles: &Tiles<'_, 'k>, wg: Warpgroup<'k>) {
    let (warp, t) = (wg.warps(), wg.threads());
    let mut copies = Copies::new(&tiles.smem, warp);
    let mut draws = tiles.dropout.as_ref().map(|args| Draws::new(tiles.form, &tiles.smem, warp, args));
    let mut numbers = tiles.numbers.producer(t);
    tiles.walk(wg, |block| {
        let columns = draws.as_ref().map(|draws| draws.columns(&block));
        let (at, due) = (block.cursor(), t.u32(1).var());
        let mut keys = |copies: &mut Copies<'k>| {
            copies.keys(&block, warp);
            warp.when(copies.is_copier, |warp| tiles.announce(warp, &mut numbers));
        };
        at.walk(wg, || {
            copies.next(&block, warp, &at);
            warp.when(due.get().eq(1), |_| keys(&mut copies));
            due.set(t.u32(0));
            if let (Some(draws), Some(columns)) = (&mut draws, columns) {
                draws.next(&block, warp, &at, columns);
            }
        });
        // Keys that nobody sees.
        warp.when(due.get().eq(1), |_| keys(&mut copies));
    });
}

/// Where a bias in boxes is, if there is one. There is room for two steps unless flags need it.
pub(super) fn bias_ring<'k>(
    cta: Cta<'k>,
    common: &HopperCommon,
    form: &HopperKeysForm,
) -> Option<BulkRing<'k>> {
    let stages = if common.operands.dims().max() > 64 && common.scores.dropout { 1 } else { 2 };
    let bytes = form.keys / BOX_KEYS * box_bytes(form.step);
    let has_boxes = common.scores.overlays.has_boxes();
    has_boxes.then(|| cta.bulk_ring_for_lanes("bias", stages, bytes, 4 * MULTIPLIERS))
}

/// What the first warp copies. All its lanes wait and count, so that what they count is the same for all of them, which
/// saves registers; lane 0 copies.
struct Copies<'k> {
    is_copier: Val<'k, Pred>,
    queries: BulkRingProducer<'k>,
    keys: BulkRingProducer<'k>,
    /// If values have a ring of their own.
    values: Option<BulkRingProducer<'k>>,
    bias: Option<BulkRingProducer<'k>>,
}

impl<'k> Copies<'k> {
    fn new(smem: &Smem<'k>, warp: Warp<'k>) -> Self {
        let t = warp.threads();
        let queries = smem.queries.producer(t);
        let [values, bias] = [smem.values, smem.bias].map(|ring| ring.map(|ring| ring.producer(t)));
        Copies { queries, is_copier: (warp.index() & 3).eq(0), keys: smem.keys.producer(t), values, bias }
    }

    /// The block's keys and values.
    fn keys(&mut self, block: &Block<'_, 'k>, warp: Warp<'k>) {
        let Block { args, work, common, form, .. } = block;
        let Copies { is_copier, keys, values, .. } = self;
        let load = |t: Thread<'k>, filling: &Filling<'k>, (tensor, boxes, to): (Tensor<'k>, u32, u32)| {
            for i in 0..boxes {
                let rows = work.sequence.keys();
                let from = tensor.at(64 * i, rows.coordinates(block.first_key(), work.head));
                filling.load(t, to + i * form.keys * 128, from);
            }
        };
        let ([k_boxes, v_boxes], [k_bytes, _]) = (common.boxes(), rows_bytes(common, form.keys));
        warp.when(*is_copier, |warp| match values {
            None => keys.fill_by_warp(warp, |t, filling| {
                load(t, &filling, (args.k, k_boxes, 0));
                load(t, &filling, (args.v, v_boxes, k_bytes));
            }),
            // The place of v is free first, unless that of k has been all the time.
            Some(values) => {
                let k = |t: Thread<'k>, filling| load(t, &filling, (args.k, k_boxes, 0));
                let v = |t: Thread<'k>, filling| load(t, &filling, (args.v, v_boxes, 0));
                if form.key_stages[0] > form.key_stages[1] {
                    keys.fill_by_warp(warp, k);
                    values.fill_by_warp(warp, v);
                } else {
                    values.fill_by_warp(warp, v);
                    keys.fill_by_warp(warp, k);
                }
            }
        });
    }

    /// What is added to a step's scores, if it comes in boxes. There is room for it when the last step's has been used: until
    /// then the warp had better draw.
    fn bias(&mut self, block: &Block<'_, 'k>, warp: Warp<'k>, at: &Cursor<'k>) {
        let Copies { is_copier, bias: Some(bias), .. } = self else { return };
        let (boxed, overlays) = block.boxed.as_ref().zip(block.overlays.as_ref()).expect("a bias in boxes");
        warp.when(*is_copier, |warp| {
            let rows = overlays.box_at((block.work.sequence, block.head(at)), block.first_row(at));
            bias.fill_by_warp(warp, |t, filling| {
                for i in 0..block.form.keys / BOX_KEYS {
                    let from = boxed.boxed_bias.at_columns(block.first_key() + i * BOX_KEYS, rows);
                    filling.load(t, i * box_bytes(block.form.step), from);
                }
            });
        });
    }

    /// A step's queries.
    fn next(&mut self, block: &Block<'_, 'k>, warp: Warp<'k>, at: &Cursor<'k>) {
        let Copies { is_copier, queries, .. } = self;
        let Block { args, sums, problem, work, common, form, .. } = block;
        warp.when(*is_copier, |warp| {
            let head = block.head(at);
            let place = work.sequence.queries().coordinates(block.first_row(at), head);
            let ([q_boxes, dout_boxes], [q_bytes, dout_bytes]) =
                (common.boxes(), rows_bytes(common, form.step));
            queries.fill_by_warp(warp, |t, filling| {
                for (tensor, boxes, to) in [(args.q, q_boxes, 0), (args.dout, dout_boxes, q_bytes)] {
                    for i in 0..boxes {
                        filling.load(t, to + i * form.step * 128, tensor.at(64 * i, place));
                    }
                }
                let rows = StatRows::of(QueryHeads::of(problem, work.sequence).nth(head));
                let stats = rows.from(sums.stats, at.step.get() * form.step);
                filling.load_bytes(t, q_bytes + dout_bytes, stats, form.step * STAT_BYTES);
            });
        });
    }
}

/// Flags: warp w draws what queries 16 w.. of each 64 drop, of all keys.
struct Draws<'k> {
    philox: Philox<'k>,
    signs: DropSigns<'k>,
    ring: BulkRingProducer<'k>,
    /// The place of the lane's first words in a stage.
    own: Val<'k, U32>,
    /// The warp's first row, and the problem's first column.
    row16: Val<'k, U32>,
    column32: Val<'k, U32>,
}

impl<'k> Draws<'k> {
    fn new(form: &HopperKeysForm, smem: &Smem<'k>, warp: Warp<'k>, args: &DropoutVals<'k>) -> Self {
        let t = warp.threads();
        let number = warp.index() & 3;
        Draws {
            philox: Philox::new(warp, args),
            signs: DropSigns::new(t, args),
            ring: smem.flags.expect("planned with dropout").producer(t),
            own: ((t.lane() >> 3u32) * (form.step / 16) + number) * FLAG_BYTES + (t.lane() & 7) * 16,
            row16: args.first_row16 + number,
            column32: args.first_column32,
        }
    }

    /// The block's first columns.
    fn columns(&self, block: &Block<'_, 'k>) -> Val<'k, U32> {
        self.column32 + block.work.block * (block.form.keys / 32)
    }

    /// A step's, as soon as there is room for them.
    fn next(&mut self, block: &Block<'_, 'k>, warp: Warp<'k>, at: &Cursor<'k>, column32: Val<'k, U32>) {
        let Draws { philox, signs, ring, own, row16, .. } = self;
        let (t, step) = (warp.threads(), block.form.step);
        let stream = philox.stream(t, block.work.sequence, block.head(at));
        let first16 = *row16 + at.step.get() * (step / 16);
        BulkRingProducer::fill_with_stores(&mut [ring], warp, |stages| {
            let to = stages[0].plus(*own);
            for part in 0..step / QUERIES {
                let row = stream.row(first16 + QUERIES / 16 * part);
                for column in 0..block.form.keys / 32 {
                    let bytes = philox.block(&row, &StreamColumn::new(stream.lane(), column32 + column));
                    let flags = bytes.map(|bytes| signs.pairs(bytes));
                    let place = 4 * (column * (step / 16) + part) * FLAG_BYTES;
                    warp.store_matrices_at(to.at(place), true, flags);
                }
            }
        });
    }
}
