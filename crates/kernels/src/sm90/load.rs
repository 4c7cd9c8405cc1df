//! What multiplying warpgroups are given: tensors by the copying thread, with dropout flags by the drawing warps.
use super::flags::FlagWriter;
use super::forward::{Block, Tile, WG_ROWS};
use crate::parts::overlays::{BOX_KEYS, box_bytes};
use crate::parts::work::Work;
use signflash_ptx::{BulkRing, BulkRingProducer, Filling, Tensor, Thread, U32, Val, Warp};

impl<'k> Block<'_, 'k> {
    /// All that the drawing warps do.
    pub(super) fn draw(&self, warp: Warp<'k>) {
        let args = self.dropout.as_ref().expect("only dropout draws");
        let rings = self.smem.flags.expect("planned with dropout");
        let mut flags = FlagWriter::new(warp, rings, self.form, self.common, args);
        let tiles = self.tiles();
        warp.while_(
            || tiles.has_more(),
            |warp| {
                let tile = self.tile(tiles.take());
                flags.begin(warp, tile.work);
                let next = tile.steps.first.var();
                warp.while_(
                    || tile.steps.have(next.get()),
                    |warp| {
                        flags.write(warp, next.get());
                        next.set(tile.steps.after(next.get()));
                    },
                );
            },
        );
    }

    /// All that the copying thread does: what it copies is in the order in which it is needed.
    pub(super) fn copy(&self, t: Thread<'k>) {
        let mut copies = Copies::new(self, t);
        let tiles = self.tiles();
        t.while_(
            || tiles.has_more(),
            |t| {
                let tile = self.tile(tiles.take());
                // The first warpgroup can begin while the others are still at their last tile.
                copies.queries(t, &tile, 0);
                copies.keys(t, &tile, tile.steps.first);
                (1..self.form.warpgroups).for_each(|wg_number| copies.queries(t, &tile, wg_number));
                copies.bias(t, &tile, tile.steps.first);
                let (steps, next) = (tile.steps, tile.steps.first.var());
                t.while_(
                    || steps.have(next.get()),
                    |t| {
                        let step = next.get();
                        let (after, has_more) = (steps.after(step), steps.have(steps.after(step)));
                        t.when(has_more, |t| copies.keys(t, &tile, after));
                        copies.values(t, &tile, step);
                        // There is room for it when the step's numbers have been used.
                        if !copies.bias.is_empty() {
                            t.when(has_more, |t| copies.bias(t, &tile, after));
                        }
                        next.set(steps.after(step));
                    },
                );
            },
        );
    }
}

/// What the copying thread fills.
struct Copies<'a, 'k> {
    block: &'a Block<'a, 'k>,
    /// For each warpgroup that multiplies.
    q: Vec<BulkRingProducer<'k>>,
    k: BulkRingProducer<'k>,
    v: BulkRingProducer<'k>,
    /// For each warpgroup that multiplies, if a bias comes in boxes.
    bias: Vec<BulkRingProducer<'k>>,
}

impl<'a, 'k> Copies<'a, 'k> {
    fn new(block: &'a Block<'a, 'k>, t: Thread<'k>) -> Self {
        let smem = &block.smem;
        let of_each = |ring: BulkRing<'k>| {
            (0..block.form.warpgroups).map(|wg_number| ring.nth(t.u32(wg_number)).producer(t)).collect()
        };
        let bias = smem.bias.map(of_each).unwrap_or_default();
        Copies { block, q: of_each(smem.q), k: smem.k.producer(t), v: smem.v.producer(t), bias }
    }

    fn queries(&mut self, t: Thread<'k>, tile: &Tile<'k>, wg_number: u32) {
        let Block { common, args, .. } = self.block;
        let Work { sequence, head, .. } = tile.work;
        let at = sequence.queries().coordinates(tile.first_row + wg_number * WG_ROWS, head);
        self.q[wg_number as usize].fill_by(t, |filling| {
            let [boxes, _] = common.boxes();
            for i in 0..boxes {
                filling.load(t, i * WG_ROWS * 128, args.q.at(64 * i, at));
            }
        });
    }

    fn keys(&mut self, t: Thread<'k>, tile: &Tile<'k>, step: Val<'k, U32>) {
        let Copies { block, k, .. } = self;
        let [boxes, _] = block.common.boxes();
        k.fill_by(t, |filling| block.copy_step(t, filling, (block.args.k, boxes), tile, step));
    }

    /// What is added to a step's scores, if it comes in boxes.
    fn bias(&mut self, t: Thread<'k>, tile: &Tile<'k>, step: Val<'k, U32>) {
        let Block { form, boxed, overlays, problem, .. } = self.block;
        let Some((boxed, overlays)) = boxed.as_ref().zip(overlays.as_ref()) else { return };
        let Work { sequence, head, .. } = tile.work;
        let first_key = step * form.step - problem.column_shift;
        for (wg_number, bias) in (0..).zip(&mut self.bias) {
            let at = overlays.box_at((sequence, head), tile.first_row + wg_number * WG_ROWS);
            bias.fill_by(t, |filling| {
                for i in 0..form.step / BOX_KEYS {
                    let from = boxed.boxed_bias.at_columns(first_key + i * BOX_KEYS, at);
                    filling.load(t, i * box_bytes(WG_ROWS), from);
                }
            });
        }
    }

    fn values(&mut self, t: Thread<'k>, tile: &Tile<'k>, step: Val<'k, U32>) {
        let Copies { block, v, .. } = self;
        let [_, boxes] = block.common.boxes();
        v.fill_by(t, |filling| block.copy_step(t, filling, (block.args.v, boxes), tile, step));
    }
}

impl<'k> Block<'_, 'k> {
    /// The keys of one step, of either tensor, whose rows take so many boxes.
    fn copy_step(
        &self,
        t: Thread<'k>,
        filling: Filling<'k>,
        (tensor, boxes): (Tensor<'k>, u32),
        tile: &Tile<'k>,
        step: Val<'k, U32>,
    ) {
        let first = step * self.form.step - self.problem.column_shift;
        for i in 0..boxes {
            let from = tensor.at(64 * i, tile.work.sequence.keys().coordinates(first, tile.head_k));
            filling.load(t, i * self.form.step * 128, from);
        }
    }
}
