//! The order of the forward where products are tiles': panel by panel, each against a stretch of many keys, so that what a
//! panel gathers is read and written once a stretch and not once a block.
//!
//! ```text
//! for each stretch of keys                          k rows, v columns: packed once, in the second-level cache
//!     for each panel of queries                     q^T and s^T of it in the first
//!         for each block of 64 keys
//!             s^T  = K q^T
//!             p^T  = 2^(s - m)                      one pass, where no maximum need move
//!         out^T = out^T + V^T p^T                   of all its blocks; of those so far, before out^T is rescaled
//! ```
//!
//! Sums run over the keys in order however they are cut, so the bits are those of block after block.
#![allow(unsafe_op_in_unsafe_fn)]

use super::{Scratch, Work};
use crate::call::BLOCK_KEYS;
use crate::gemm::{NV, step_keys};
use crate::pack::{self, Rows};
use crate::simd::Simd;
use crate::view::View;
use crate::visible::Visible;
use signflash_core::Span;
use std::ops::Range;

/// Keys of a stretch: such that k, v, and q and out of the tile fit the second-level cache.
pub(super) const STRETCH_KEYS: usize = 256;

/// From one column of v to the next, in words, of so many keys: such that neighbours do not share sets of the first-level
/// cache.
pub(super) const fn columns_ld(keys: usize) -> usize {
    keys / 2 + 16
}

/// The operands of a stretch.
#[derive(Clone, Copy)]
struct Packed {
    k: Rows,
    /// Columns.
    v: Rows,
}

impl Work<'_> {
    /// A stretch of keys, of whole blocks but for the last key's, against every panel of the tile.
    #[inline(always)]
    pub(super) unsafe fn stretch<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        v: &View<'_>,
        keys: Range<usize>,
    ) {
        let packed = self.pack::<S, MR>(scratch, v, keys.clone());
        for panel in 0..self.panels::<S>() {
            self.panel::<S, MR>(scratch, packed, panel, keys.clone());
        }
    }

    /// Packs k, and v block by block of those that a mask does not hide, and draws what is dropped of these.
    #[inline(always)]
    unsafe fn pack<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        v: &View<'_>,
        keys: Range<usize>,
    ) -> Packed {
        let (k, _) = self.keys::<S, MR>(scratch, keys.start, keys.len());
        let words = self.dims.v_padded / S::UNIT;
        let (columns, ld) = (scratch.v_columns.words(), scratch.columns_ld);
        for first_key in keys.clone().step_by(BLOCK_KEYS) {
            if !self.is_shown(0..self.tile.rows, first_key..first_key + BLOCK_KEYS) {
                continue;
            }
            let at = first_key - keys.start;
            let values = self.unit.sequence.keys(self.head_k, first_key, BLOCK_KEYS);
            let values = values.in_steps_of(step_keys::<S, MR>());
            let rows = pack::rows_once::<S>(v, self.dims.v, values, &mut scratch.v_rows);
            self.scores.call.look::<S>(rows, values.count, words);
            let steps = pack::steps::<S>(rows, values.total, words, &mut scratch.v);
            pack::columns::<S>(steps, values.total, words, ld, columns.add(at / 2));
            self.draw::<S>(scratch, first_key, values.count, at);
        }
        Packed { k, v: Rows { p: columns, ld } }
    }

    /// One panel against the stretch.
    #[inline(always)]
    unsafe fn panel<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        Packed { k, v }: Packed,
        panel: usize,
        keys: Range<usize>,
    ) {
        // The keys whose weights are not in out yet.
        let mut waiting = Span { begin: 0, end: 0 };
        for first_key in keys.clone().step_by(BLOCK_KEYS) {
            let Some(visible) = self.visible::<S, MR>(panel, first_key) else { continue };
            let at = first_key - keys.start;
            let block = Rows { p: k.p.wrapping_add(at * k.ld), ..k };
            self.scores_in_memory::<S, MR>(scratch, block, panel, first_key, visible);
            let rescale = self.weights::<S>(scratch, panel, at, visible);
            let weighed = Span { begin: at + visible.keys.begin, end: at + visible.keys.end };
            if rescale.is_none() && waiting.end == weighed.begin {
                waiting.end = weighed.end;
                continue;
            }
            self.gather::<S, MR>(scratch, v, panel, waiting);
            if let Some(rescale) = rescale {
                self.rescale::<S>(scratch, panel, rescale);
            }
            waiting = weighed;
        }
        self.gather::<S, MR>(scratch, v, panel, waiting);
    }

    /// Adds what waits to out.
    #[inline(always)]
    unsafe fn gather<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        v: Rows,
        panel: usize,
        keys: Span<usize>,
    ) {
        if keys.begin < keys.end {
            self.accumulate::<S, MR>(scratch, v, panel, keys, [S::splat(1.0); NV]);
        }
    }

    /// The weights of one panel and the block of keys from `first_key` on, which is `at` in the stretch. Returns the factor of what
    /// was gathered before, unless that is 1 of every row.
    #[inline(always)]
    unsafe fn weights<S: Simd>(
        &self,
        scratch: &mut Scratch,
        panel: usize,
        at: usize,
        visible: Visible,
    ) -> Option<[S::V; NV]> {
        let (keys, drops) = (visible.keys, scratch.drop.is_some());
        let stays = !visible.hides
            && match drops {
                true => self.weigh_if_maxima_stay::<S, true>(scratch, panel, (keys, at)),
                false => self.weigh_if_maxima_stay::<S, false>(scratch, panel, (keys, at)),
            };
        if stays {
            return None;
        }
        let bounds = self.bounds::<S>(visible);
        let block_max = self.maxima::<S>(scratch, visible, &bounds);
        let rescale = match drops {
            true => self.weigh::<S, true, false>(scratch, panel, (keys, at), block_max),
            false => self.weigh::<S, false, false>(scratch, panel, (keys, at), block_max),
        };
        let one = S::splat(1.0);
        let moves = rescale.iter().any(|&factor| S::any_reaches(S::sub(factor, one), f32::MIN_POSITIVE));
        moves.then_some(rescale)
    }
}
