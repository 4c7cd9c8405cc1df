//! Masks of keys, the same for all queries, that are looked at only where they hide some.
//!
//! Such a mask is padding nearly always: what it leaves are the keys from a first to a last, which are known before
//! (`padding.rs`), and tiles between them are computed as if there were no mask. Where it has holes, and in the tile that
//! its first key does not begin, a lane asks it of its keys after the product, without having read ahead.
use super::OverlayVals;
use super::numbers::load_one;
use crate::config::Numbers;
use crate::parts::args::ScoreTensorVals;
use crate::parts::sequence::Sequence;
use crate::parts::visibility::SeenRange;
use signflash_ptx::{GlobalAddr, Pred, S32, Thread, U32, U64, Val};

/// A sequence's mask of keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyMask<'k> {
    tensor: ScoreTensorVals<'k>,
    start: Val<'k, U64>,
}

impl<'k> OverlayVals<'k> {
    /// The same where a mask of keys is not read with what else is added to scores, but [asked](Self::key_mask).
    pub(crate) fn asking(self) -> Self {
        OverlayVals { asks: self.padding.is_some(), ..self }
    }

    /// Whether lanes read something for every tile.
    pub(crate) fn reads(&self) -> bool {
        self.bias.is_some_and(|(kind, _)| !kind.boxes) || (self.mask.is_some() && !self.asks)
    }

    /// The mask to ask of a sequence's keys, if there is one.
    #[track_caller]
    pub(crate) fn key_mask(&self, t: Thread<'k>, sequence: Sequence<'k>) -> Option<KeyMask<'k>> {
        let (_, tensor) = self.mask.filter(|_| self.asks)?;
        Some(KeyMask { tensor, start: self.matrix(&tensor, sequence, t.u32(0)) })
    }
}

impl<'k> KeyMask<'k> {
    /// Whether a key is seen.
    #[track_caller]
    pub(crate) fn sees(&self, t: Thread<'k>, key: Val<'k, U32>) -> Val<'k, Pred> {
        let column = key.min(self.tensor.columns - 1).widen();
        let place = GlobalAddr::new(column.mul_add(self.tensor.column, self.start));
        load_one(t, Numbers::Bytes, place).cast::<U32>().ne(0)
    }
}

impl<'k> SeenRange<'k> {
    /// Whether a mask may hide some of a tile's keys, the first of which this is, before the range's end.
    #[track_caller]
    pub(crate) fn is_to_be_asked(&self, first: Val<'k, U32>) -> Option<Val<'k, Pred>> {
        let (begin, has_holes) = self.begin.zip(self.has_holes)?;
        Some(has_holes | !begin.cast::<S32>().le(first.cast::<S32>()))
    }
}
