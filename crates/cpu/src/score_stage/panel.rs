//! What becomes of the products of a panel of queries and a block of keys, in memory, feature by feature: a problem pays
//! for those that it has, and none knows of the others.
//!
//! ```text
//! t  = tanh(s |scale| / cap)                                            `cap`; its slope is kept for ds
//! t  = t unit - slope |i + diagonal - j|                                `alibi`
//! t  = t unit + bias                     -inf where the bias is         `bias`
//! t  = -inf where the mask is 0                                         `mask`
//! ```
//!
//! unit is what makes an exponent of e of what came before: |scale|, cap under a softcap, 1 once something was added.
#![allow(unsafe_op_in_unsafe_fn)]

use super::table::Numbers;
use super::{HIDDEN, ScoreStage};
use crate::buffer::Buffer;
use crate::call::{BLOCK_KEYS, Call};
use crate::gemm::NV;
use crate::pack::panel_width;
use crate::sequence::Sequence;
use crate::simd::Simd;
use crate::simd::tanh::Tanh;
use crate::tile::Tile;
use signflash_core::Span;
use std::ops::Range;

/// Where a panel lies, and its scores: `[key of the block][lane]`.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) sequence: &'a Sequence,
    pub(crate) head: usize,
    pub(crate) tile: &'a Tile,
    /// Its first lane in the tile.
    pub(crate) lane: usize,
    /// The block's first key.
    pub(crate) first_key: usize,
    /// Of the block, those that were computed.
    pub(crate) keys: Span<usize>,
    pub(crate) scores: *mut f32,
    /// Where the slopes of softcap go, laid out alike; null if nobody asks.
    pub(crate) slopes: *mut f32,
}

/// What the stage of one worker needs.
pub(crate) struct Scratch {
    /// Rows of a table: `[lane][key]`.
    pub(super) rows: Buffer,
    /// The same, `[key][lane]`.
    pub(super) numbers: Buffer,
}

impl Scratch {
    pub(crate) fn new<S: Simd>() -> Self {
        let len = BLOCK_KEYS * panel_width::<S>();
        Self { rows: Buffer::new(len), numbers: Buffer::new(len) }
    }
}

impl Panel<'_> {
    /// Of the computed keys those that there are, counted in the block.
    pub(super) fn keys_there(&self) -> Range<usize> {
        self.keys.begin..self.keys.end.min(self.sequence.place.seqlen_k - self.first_key)
    }

    /// Changes every vector of scores; `change` is told its key and which of the panel's vectors it is.
    #[inline(always)]
    unsafe fn each<S: Simd>(&self, mut change: impl FnMut(usize, usize, S::V) -> S::V) {
        for key in self.keys.begin..self.keys.end {
            for n in 0..NV {
                let at = self.scores.add(key * panel_width::<S>() + n * S::LANES);
                S::store(at, change(key, n, S::load(at)));
            }
        }
    }
}

impl ScoreStage {
    /// All of it, for one panel of products.
    ///
    /// # Safety
    /// As [`Simd`]; the panel's memory holds a block of keys, and the operands were checked against the problem.
    #[inline(always)]
    pub(crate) unsafe fn change<S: Simd>(&self, call: &Call<'_>, panel: &Panel<'_>, scratch: &mut Scratch) {
        let operands = &call.operands;
        let mut unit = self.unit;
        if let Some(inverse) = self.inverse_cap {
            cap::<S>(panel, inverse);
        }
        if let Some(slope) = operands.alibi_slope(panel.sequence, panel.head) {
            alibi::<S>(panel, unit, slope);
            unit = 1.0;
        }
        if let Some(table) = &operands.bias {
            bias::<S>(panel, unit, table.numbers::<S>(panel, scratch));
        }
        if let Some(table) = &operands.mask {
            mask::<S>(panel, table.numbers::<S>(panel, scratch));
        }
    }
}

#[inline(always)]
unsafe fn cap<S: Simd>(panel: &Panel<'_>, inverse: f32) {
    let inverse = S::splat(inverse);
    if panel.slopes.is_null() {
        panel.each::<S>(|_, _, s| Tanh::<S>::of(S::mul(s, inverse)).value);
    } else {
        panel.each::<S>(|key, n, s| {
            let tanh = Tanh::<S>::of(S::mul(s, inverse));
            S::store(panel.slopes.add(key * panel_width::<S>() + n * S::LANES), tanh.slope);
            tanh.value
        });
    }
}

#[inline(always)]
unsafe fn alibi<S: Simd>(panel: &Panel<'_>, unit: f32, slope: f32) {
    let Panel { tile, lane, first_key, .. } = *panel;
    // The key that each lane faces, counted in the block: exact, and of lanes that stand for no row anything.
    let row = (tile.first + lane) as i64 - tile.before as i64;
    let faces = row + panel.sequence.visibility.diagonal - first_key as i64;
    let faces: [f32; 64] = std::array::from_fn(|lane| (faces + lane as i64) as f32);
    let faces: [S::V; NV] = std::array::from_fn(|n| S::load(faces.as_ptr().add(n * S::LANES)));
    let (unit, slope) = (S::splat(unit), S::splat(-slope));
    panel.each::<S>(|key, n, t| {
        let distance = S::abs(S::sub(faces[n], S::splat(key as f32)));
        S::fma(distance, slope, S::mul(t, unit))
    });
}

#[inline(always)]
unsafe fn bias<S: Simd>(panel: &Panel<'_>, unit: f32, numbers: Numbers) {
    let unit = S::splat(unit);
    let (hidden, least) = (S::splat(f32::NEG_INFINITY), S::splat(HIDDEN));
    // A bias of -inf hides whatever the score is, NaN or not.
    let add = |t, bias| S::where_less(bias, least, hidden, S::fma(t, unit, bias));
    match numbers {
        Numbers::OfKeys(p) => panel.each::<S>(|key, _, t| add(t, S::splat(*p.add(key)))),
        Numbers::OfScores(p) => {
            panel.each::<S>(|key, n, t| add(t, S::load(p.add(key * panel_width::<S>() + n * S::LANES))))
        }
    }
}

#[inline(always)]
unsafe fn mask<S: Simd>(panel: &Panel<'_>, numbers: Numbers) {
    let hidden = S::splat(f32::NEG_INFINITY);
    match numbers {
        Numbers::OfKeys(p) => {
            for key in panel.keys_there().filter(|&key| *p.add(key) == 0.0) {
                for n in 0..NV {
                    S::store(panel.scores.add(key * panel_width::<S>() + n * S::LANES), hidden);
                }
            }
        }
        Numbers::OfScores(p) => panel.each::<S>(|key, n, t| {
            S::where_nonzero(S::load(p.add(key * panel_width::<S>() + n * S::LANES)), t, hidden)
        }),
    }
}
