//! The loading warpgroups: copies by one thread, and with dropout flags by all.
use super::flags::FlagWriter;
use super::forward::{Block, GROUP_ROWS, Tile};
use signflash_ptx::{BulkRingProducer, Filling, Tensor, Thread, U32, Val, Warp};

/// What the copying thread fills.
struct Copies<'a, 'k> {
    block: &'a Block<'a, 'k>,
    /// For each warpgroup that multiplies.
    q: Vec<BulkRingProducer<'k>>,
    k: BulkRingProducer<'k>,
    v: BulkRingProducer<'k>,
}

impl<'k> Block<'_, 'k> {
    /// All that the loading warpgroups do.
    pub(super) fn load(&self, warp: Warp<'k>) {
        match &self.dropout {
            Some(args) => {
                let rings = self.smem.flags.expect("planned with dropout");
                self.load_tiles(warp, Some(FlagWriter::new(warp, rings, self.shape, args)));
            }
            None => {
                // One warp is enough; the others are done.
                let copies = warp.index().eq(4 * self.shape.groups);
                warp.when(copies, |warp| self.load_tiles(warp, None));
            }
        }
    }

    /// A step's keys come before its flags, and its values last: in the order in which they are needed. The copying
    /// thread waits for values' places longest, and by then its warp has drawn the flags.
    fn load_tiles(&self, warp: Warp<'k>, mut flags: Option<FlagWriter<'_, 'k>>) {
        let t = warp.threads();
        let copier = t.index().eq(128 * self.shape.groups);
        let mut copies = Copies::new(self, t);
        let tiles = self.tiles();
        warp.while_(
            || tiles.has_more(),
            |warp| {
                let tile = self.tile(tiles.take());
                // The first warpgroup can begin while the others are still at their last tile.
                t.when(copier, |t| {
                    copies.queries(t, &tile, 0);
                    copies.keys(t, &tile, t.u32(0));
                    (1..self.shape.groups).for_each(|group| copies.queries(t, &tile, group));
                });
                flags.iter_mut().for_each(|flags| flags.begin(warp, tile.work));
                let next = t.u32(0).var();
                warp.while_(
                    || next.get().lt(tile.steps),
                    |warp| {
                        let step = next.get();
                        let more = copier & (step + 1).lt(tile.steps);
                        t.when(more, |t| copies.keys(t, &tile, step + 1));
                        flags.iter_mut().for_each(|flags| flags.write(warp, step));
                        t.when(copier, |t| copies.values(t, &tile, step));
                        next.set(step + 1);
                    },
                );
            },
        );
    }
}

impl<'a, 'k> Copies<'a, 'k> {
    fn new(block: &'a Block<'a, 'k>, t: Thread<'k>) -> Self {
        let smem = &block.smem;
        let q = (0..block.shape.groups).map(|group| smem.q.nth(t.u32(group)).producer(t)).collect();
        Copies { block, q, k: smem.k.producer(t), v: smem.v.producer(t) }
    }

    fn queries(&mut self, t: Thread<'k>, tile: &Tile<'k>, group: u32) {
        let Block { common, args, .. } = self.block;
        let at = [tile.first_row + group * GROUP_ROWS, tile.work.head, tile.work.batch];
        self.q[group as usize].fill_by(t, |filling| {
            for i in 0..common.boxes() {
                filling.load(t, i * GROUP_ROWS * 128, args.q.at(64 * i, at));
            }
        });
    }

    fn keys(&mut self, t: Thread<'k>, tile: &Tile<'k>, step: Val<'k, U32>) {
        let Copies { block, k, .. } = self;
        k.fill_by(t, |filling| block.copy_step(t, filling, block.args.k, tile, step));
    }

    fn values(&mut self, t: Thread<'k>, tile: &Tile<'k>, step: Val<'k, U32>) {
        let Copies { block, v, .. } = self;
        v.fill_by(t, |filling| block.copy_step(t, filling, block.args.v, tile, step));
    }
}

impl<'k> Block<'_, 'k> {
    /// The keys of one step, of either tensor.
    fn copy_step(
        &self,
        t: Thread<'k>,
        filling: Filling<'k>,
        tensor: Tensor<'k>,
        tile: &Tile<'k>,
        step: Val<'k, U32>,
    ) {
        let first = step * self.shape.step - self.problem.column_shift;
        for i in 0..self.common.boxes() {
            let from = tensor.at(64 * i, [first, tile.head_k, tile.work.batch]);
            filling.load(t, i * self.shape.step * 128, from);
        }
    }
}
