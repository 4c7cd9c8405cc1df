//! dk and dv: from accumulators through shared memory to the tensors.
use super::{Block, ds_scale};
use crate::config::Stored;
use crate::parts::epilogue::Before;
use crate::parts::product::pack;
use crate::parts::softmax::scale_rows;
use crate::sm90::forward::WG_ROWS;
use crate::sm90::out::stage_words;
use crate::sm90::results::{ResultVals, WideRows};
use signflash_ptx::{Acc, F32, SmemAddr, Thread, U32, Val, Warpgroup};

/// dk or dv of 64 keys, whole boxes of columns, and where it goes.
pub(super) struct KeyGradient<'s, 'k> {
    pub(super) sum: &'s Acc<'k>,
    pub(super) scale: Val<'k, F32>,
    /// For 64 rows.
    pub(super) place: SmemAddr<'k>,
    pub(super) to: ResultVals<'k>,
}

impl<'k> Block<'_, 'k> {
    /// What sums of dk and of dv have to be multiplied by.
    pub(super) fn result_scales(&self, t: Thread<'k>) -> [Val<'k, F32>; 2] {
        let keep_scale = self.dropout.as_ref().map_or(t.f32(1.0), |args| args.keep_scale);
        [self.problem.scale * keep_scale * ds_scale(self.common.scores.dropout), keep_scale]
    }

    /// Scales, rounds unless they are wide, and starts to write a warpgroup's results, rows `first_key..`. `barrier` is its
    /// own. What they are copied from must stay until [`wait_stored`](Thread::wait_stored) by the thread that stores,
    /// which does `then` next.
    pub(super) fn write(
        &self,
        wg: Warpgroup<'k>,
        barrier: Val<'k, U32>,
        first_key: Val<'k, U32>,
        results: &[KeyGradient<'_, 'k>],
        then: impl FnOnce(Thread<'k>),
    ) {
        let (common, t) = (self.common, wg.threads());
        let before = if common.operands.stored == Stored::Added { Before::Added } else { Before::Nothing };
        let (rows, head) = (self.work.sequence.keys(), self.work.head);
        for KeyGradient { sum, scale, place, to } in results {
            scale_rows(sum, [*scale, *scale]);
            match to {
                ResultVals::Boxes(_) => stage_words(wg, &pack(sum, common.operands.half, false), *place),
                ResultVals::Wide(to) => to.store(wg, sum, WideRows { rows, head, first: first_key }, before),
            }
        }
        t.fence_proxy_async();
        wg.sync_among(barrier, 128);
        let at = rows.coordinates(first_key, head);
        t.when((t.index() & 127).eq(0), |t| {
            for KeyGradient { sum, place, to, .. } in results {
                let ResultVals::Boxes(to) = to else { continue };
                let boxes = 0..sum.groups() as u32 / 8;
                t.store_boxes(boxes.map(|i| (place.at(i * WG_ROWS * 128), to.at(64 * i, at))));
            }
            then(t);
        });
    }
}
