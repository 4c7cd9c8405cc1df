//! What a block of the forward keeps in shared memory, and who fills and reads it.
use super::forward::WG_ROWS;
use crate::config::{HopperCommon, HopperForm, Overlays, Scores};
use crate::gpu::Gpu;
use crate::parts::overlays::{BOX_KEYS, box_bytes};
use signflash_ptx::{BulkRing, Cta, SmemAddr};

/// Shared memory of a block. Tiles lie as the copy engine leaves them: boxes of 64 columns behind each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pipeline<'k> {
    /// For each warpgroup that multiplies its 64 queries: it gets the next when it has done with these, whatever the
    /// others do.
    pub(crate) q: BulkRing<'k>,
    /// Tiles of keys.
    pub(crate) k: BulkRing<'k>,
    /// Tiles of values.
    pub(crate) v: BulkRing<'k>,
    /// With dropout: for each warpgroup that multiplies a ring of its own, which has for each of its warps, each 32
    /// columns and each lane the 16 flags, a byte each. (One ring for all was slower: a stage then stays until the last
    /// has read it, and waiting goes back and forth.)
    pub(crate) flags: Option<BulkRing<'k>>,
    /// If a bias comes in boxes: for each warpgroup that multiplies a ring of its own, of its 64 queries and a step's keys.
    pub(crate) bias: Option<BulkRing<'k>>,
    /// The output on its way out; without it, the queries' place is used.
    pub(crate) out: Option<SmemAddr<'k>>,
}

/// Bytes of the flags of 16 rows and 32 columns.
pub(crate) const FLAG_BLOCK_BYTES: u32 = 16 * 32;

impl<'k> Pipeline<'k> {
    pub(crate) fn plan(cta: Cta<'k>, common: &HopperCommon, form: &HopperForm) -> Self {
        let readers = 4 * form.warpgroups;
        let [q_and_k, v_and_out] = common.boxes();
        let tile = |rows: u32, boxes: u32| rows * boxes * 128;
        let flags = || {
            let bytes = 4 * form.step / 32 * FLAG_BLOCK_BYTES;
            cta.stage_rings("flags", form.warpgroups, [form.flag_stages, bytes], 4, 4)
        };
        let bias =
            |stages: u32| cta.bulk_rings_for_lanes("bias", form.warpgroups, [stages, form.bias_bytes()], 4);
        let q = tile(WG_ROWS, q_and_k);
        let q_place = if form.out_in_q { q.max(tile(WG_ROWS, v_and_out)) } else { q };
        Pipeline {
            q: cta.bulk_rings("q", form.warpgroups, [1, q_place], 4).with_copies_of(q),
            k: cta.bulk_ring("k", form.stages, tile(form.step, q_and_k), readers),
            v: cta.bulk_ring("v", form.stages, tile(form.step, v_and_out), readers),
            out: (!form.out_in_q).then(|| cta.smem("out", tile(form.rows(), v_and_out), 1024)),
            flags: common.scores.dropout.then(flags),
            bias: common.scores.overlays.has_boxes().then(|| bias(form.bias_stages(common))),
        }
    }
}

impl HopperForm {
    /// Shared memory that a block asks for, at most.
    pub(crate) fn smem_bytes(&self, common: &HopperCommon) -> u32 {
        let rows_bytes = common.boxes().map(|boxes| boxes * 128);
        let [q, out] = rows_bytes.map(|bytes| bytes * self.rows());
        let queries = if self.out_in_q { q.max(out) } else { q + out };
        let keys = self.stages * self.step * rows_bytes.iter().sum::<u32>();
        let flags = self.warpgroups * self.flag_stages * 4 * self.step / 32 * FLAG_BLOCK_BYTES;
        let barriers = 1024;
        let all = queries + keys + barriers + if common.scores.dropout { flags } else { 0 };
        if !common.scores.overlays.has_boxes() {
            return all;
        }
        let bias = self.warpgroups * self.bias_bytes();
        let two = all + 2 * bias;
        if two <= Gpu::HOPPER.smem_per_block_bytes { two } else { all + bias }
    }

    /// Steps of a bias in boxes that it holds at once: two where there is room.
    pub(crate) fn bias_stages(&self, common: &HopperCommon) -> u32 {
        let overlays = common.scores.overlays;
        let unboxed = Overlays { bias: None, ..overlays };
        let without = HopperCommon { scores: Scores { overlays: unboxed, ..common.scores }, ..*common };
        (self.smem_bytes(common) - self.smem_bytes(&without)) / (self.warpgroups * self.bias_bytes())
    }

    /// Bytes of the boxes of a bias, of 64 queries and a step's keys.
    pub(crate) fn bias_bytes(&self) -> u32 {
        self.step / BOX_KEYS * box_bytes(WG_ROWS)
    }
}
