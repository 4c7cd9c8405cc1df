//! A block's shared memory.
use crate::config::{Common, DqSums, PortableForm};
use crate::rows::statistics::STAT_BYTES;
use signflash_ptx::{CopyRing, Cta, SmemAddr, TileLayout};

/// Bytes of shared memory that a block of a form asks for, at most.
pub(crate) fn smem_bytes(head_dim: u32, form: &PortableForm) -> u32 {
    let keys = 4 * head_dim * form.rows();
    let slot = (4 * head_dim + STAT_BYTES) * form.step;
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
    pub(super) layout: TileLayout,
    pub(super) ds_layout: TileLayout,
}

impl<'k> Smem<'k> {
    pub(super) fn plan(cta: Cta<'k>, common: &Common, form: &PortableForm, sums: DqSums) -> Self {
        let (layout, ds_layout) = (TileLayout::new(common.operands.head_dim), TileLayout::new(form.step));
        let slot = 2 * layout.bytes(form.step) + form.step * STAT_BYTES;
        Smem {
            k: cta.smem("k", layout.bytes(form.rows()), 1024),
            v: cta.smem("v", layout.bytes(form.rows()), 1024),
            queries: cta.copy_ring("queries", form.slots, slot.next_multiple_of(1024)),
            p: (form.split > 1).then(|| cta.smem("p", ds_layout.bytes(form.rows()), 1024)),
            ds: (sums != DqSums::None || form.split > 1).then(|| {
                let places = if sums != DqSums::None && form.late_dq { 2 } else { 1 };
                cta.smem("ds", places * ds_layout.bytes(form.rows()), 1024)
            }),
            layout,
            ds_layout,
        }
    }
}
