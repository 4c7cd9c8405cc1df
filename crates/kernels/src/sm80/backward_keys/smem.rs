//! A block's shared memory.
use crate::config::{Common, DqSums, HeadDims, PortableForm};
use crate::rows::statistics::STAT_BYTES;
use signflash_ptx::{CopyRing, Cta, SmemAddr, TileLayout};

/// Bytes of shared memory that a block of a form asks for, at most.
pub(crate) fn smem_bytes(dims: HeadDims, form: &PortableForm) -> u32 {
    let keys = 2 * dims.sum() * form.rows();
    let slot = (2 * dims.sum() + STAT_BYTES) * form.step;
    let (p, ds) = (2 * form.rows() * form.step, 4 * form.rows() * form.step);
    keys + form.slots * slot.next_multiple_of(1024) + p + ds
}

/// Everything the block keeps in shared memory.
pub(super) struct Smem<'k> {
    /// The block's keys and values; in the end dk and dv on their way out.
    pub(super) k: SmemAddr<'k>,
    pub(super) v: SmemAddr<'k>,
    /// `form.step` rows of q, as many of dout, and their statistics.
    pub(super) queries: CopyRing<'k>,
    /// p and ds of a step, their rows keys: read by the warps on the same keys, and ds by all warps for dq.
    pub(super) p: Option<SmemAddr<'k>>,
    pub(super) ds: Option<SmemAddr<'k>>,
    /// Of q and k, and of v and dout.
    pub(super) layout: TileLayout,
    pub(super) layout_v: TileLayout,
    pub(super) ds_layout: TileLayout,
}

impl<'k> Smem<'k> {
    /// Bytes of so many rows of q, and as many of dout.
    pub(super) fn rows_bytes(&self, rows: u32) -> u32 {
        self.layout.bytes(rows) + self.layout_v.bytes(rows)
    }

    pub(super) fn plan(cta: Cta<'k>, common: &Common, form: &PortableForm, sums: DqSums) -> Self {
        let [layout, layout_v] = common.operands.dims().map(TileLayout::new);
        let ds_layout = TileLayout::new(form.step);
        let slot = layout.bytes(form.step) + layout_v.bytes(form.step) + form.step * STAT_BYTES;
        Smem {
            k: cta.smem("k", layout.bytes(form.rows()), 1024),
            v: cta.smem("v", layout_v.bytes(form.rows()), 1024),
            queries: cta.copy_ring("queries", form.slots, slot.next_multiple_of(1024)),
            p: (form.split > 1).then(|| cta.smem("p", ds_layout.bytes(form.rows()), 1024)),
            ds: (sums != DqSums::None || form.split > 1).then(|| {
                let places = if sums != DqSums::None && form.late_dq { 2 } else { 1 };
                cta.smem("ds", places * ds_layout.bytes(form.rows()), 1024)
            }),
            layout,
            layout_v,
            ds_layout,
        }
    }
}
