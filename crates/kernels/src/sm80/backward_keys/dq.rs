//! dq of a step, of all keys of the block: at once, or a step late.
use super::{Keys, Own};
use crate::config::{DqSums, PortableForm};
use crate::rows::dq_sums::SumsTile;
use signflash_ptx::{Acc, SmemAddr, Thread, U32, Val, Var, Warp};

/// The step whose dq is still to be added.
pub(super) struct Behind<'k> {
    /// Its number among those of all heads; `NO_STEP` before the first.
    pub(super) tile: Var<'k, U32>,
    /// Where ds of the next step goes; that of the last is at the other place.
    pub(super) place: Var<'k, U32>,
}

const NO_STEP: u32 = u32::MAX;

impl<'k> Behind<'k> {
    /// Before the first step.
    pub(super) fn new(t: Thread<'k>) -> Self {
        Behind { tile: t.u32(NO_STEP).var(), place: t.u32(0).var() }
    }
}

impl<'k> Keys<'_, 'k> {
    /// Whether dq is added, a step later.
    pub(super) fn is_late(&self) -> bool {
        self.sums != DqSums::None && self.form.late_dq
    }

    /// Of ds of one step; a power of two.
    pub(super) fn ds_bytes(&self) -> u32 {
        self.smem.ds_layout.bytes(self.form.rows())
    }

    /// Adds dq of the step before, if there was one. The block has met since its ds was written.
    pub(super) fn add_dq_behind(&self, own: &Own<'_, 'k>, behind: &Behind<'k>) {
        let Some(ds) = self.smem.ds.filter(|_| self.is_late()) else { return };
        let tile = behind.tile.get();
        self.cta.when(tile.ne(NO_STEP), |_| {
            self.add_dq(own, ds.plus(behind.place.get() ^ self.ds_bytes()), tile);
        });
    }

    /// dq += ds k: each warp takes some rows and some columns, over all keys of the block.
    pub(super) fn add_dq(&self, own: &Own<'_, 'k>, ds: SmemAddr<'k>, tile: Val<'k, U32>) {
        let (warp, t, form, layout) = (self.cta.warps(), self.cta.threads(), self.form, self.smem.layout);
        let share = DqShare::new(form, self.common.operands.head_dim);
        let sums =
            SumsTile::new(t, self.args.dq_sums, tile, [form.step, self.common.operands.head_dim], self.sums);
        let index = warp.index();
        let (part, column) = (index.modulo(share.row_parts), index / share.row_parts);
        let row_tile = |i: u32| part * share.row_tiles + i;
        let rows: Vec<SmemAddr<'k>> =
            (0..share.row_tiles).map(|i| own.ds_lanes.a_column(warp, ds, row_tile(i))).collect();
        for piece in 0..share.pieces {
            let col16 = column + piece * share.column_parts;
            let add = |warp: Warp<'k>| {
                let k = own.lanes.b_column(warp, self.smem.k, col16);
                let mut acc: Vec<Acc<'k>> = rows.iter().map(|_| warp.acc(16)).collect();
                acc.iter().for_each(Acc::clear);
                for key in (0..form.rows()).step_by(16) {
                    let b = warp.load_matrices_at(k.at(layout.bytes(key)), true);
                    for (acc, rows) in acc.iter_mut().zip(&rows) {
                        let a = warp.load_matrices_at(rows.at(self.smem.ds_layout.bytes(key)), true);
                        warp.mma(acc, 0, a, [b[0], b[1]], self.common.operands.half);
                        warp.mma(acc, 1, a, [b[2], b[3]], self.common.operands.half);
                    }
                }
                for (i, group) in (0..share.row_tiles).flat_map(|i| [(i, 0), (i, 1)]) {
                    let place = sums.place(row_tile(i), col16 * 2 + group);
                    let values = [0, 1, 2, 3].map(|r| acc[i as usize].at(group as usize, r).get());
                    sums.add(t, place, values);
                }
            };
            if share.is_even {
                add(warp);
            } else {
                warp.when(col16.lt(self.common.operands.head_dim / 16), add);
            }
        }
    }
}

/// How the warps share a step's dq out.
struct DqShare {
    /// Tiles of 16 rows that a warp takes.
    row_tiles: u32,
    row_parts: u32,
    /// Warps side by side; each takes every so-many-th piece of 16 columns.
    column_parts: u32,
    pieces: u32,
    is_even: bool,
}

impl DqShare {
    fn new(form: &PortableForm, head_dim: u32) -> Self {
        let row_tiles = if form.step >= 32 { 2 } else { 1 };
        let row_parts = form.step / 16 / row_tiles;
        assert!(form.warps.is_multiple_of(row_parts), "{} warps for {row_parts} parts of rows", form.warps);
        let (column_parts, columns) = (form.warps / row_parts, head_dim / 16);
        let pieces = columns.div_ceil(column_parts);
        DqShare { row_tiles, row_parts, column_parts, pieces, is_even: columns.is_multiple_of(column_parts) }
    }
}
