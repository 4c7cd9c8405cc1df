//! What scores are made of besides q and k, as the kernels read it.

use super::table::{Kind, Table};
use crate::raw::{RawBias, RawScoreInputs, of_bias};
use crate::sequence::Sequence;
use crate::tile::Tile;
use crate::view::View;
use std::ops::Range;

/// The operands of the stage; those that a problem has.
#[derive(Clone, Copy, Default)]
pub(crate) struct ScoreOperands<'a> {
    /// (1, 1, 1 or sequences, num_heads).
    pub(crate) alibi_slopes: Option<View<'a>>,
    pub(crate) bias: Option<Table<'a>>,
    pub(crate) mask: Option<Table<'a>>,
    /// (num_heads).
    pub(crate) sinks: Option<&'a [f32]>,
}

impl<'a> ScoreOperands<'a> {
    /// # Safety
    /// The elements stay, and nobody writes them, for `'a`; shapes and strides were checked.
    pub(crate) unsafe fn new(scores: RawScoreInputs<'a>) -> Self {
        let RawScoreInputs { alibi_slopes, bias, mask, sinks } = scores;
        // SAFETY: the caller's promise, of each.
        unsafe {
            Self {
                alibi_slopes: alibi_slopes.map(|slopes| View::new(slopes)),
                bias: bias
                    .map(|bias| of_bias!(RawBias, bias, x => Table::new(x, Kind::Number(bias.dtype())))),
                mask: mask.map(|mask| Table::new(mask, Kind::Byte)),
                sinks,
            }
        }
    }

    /// The slope of ALiBi of a head of a sequence.
    pub(super) fn alibi_slope(&self, sequence: &Sequence, head: usize) -> Option<f32> {
        self.alibi_slopes.map(|slopes| {
            let of_sequence = if slopes.shape[2] == 1 { 0 } else { sequence.place.stream };
            // SAFETY: inside of the tensor, as the checks of the operands proved; nobody writes it, by the promise to
            // `View::new`.
            unsafe { *slopes.row([0, 0, of_sequence]).cast::<f32>().add(head) }
        })
    }

    /// Whether a mask shows any of these keys of a sequence to any row of these lanes; where there is none, it does.
    pub(crate) fn show(
        &self,
        sequence: &Sequence,
        head: usize,
        at: (&Tile, Range<usize>),
        keys: Range<usize>,
    ) -> bool {
        self.mask.is_none_or(|mask| mask.shows_any(sequence, head, rows_of(at), there(sequence, keys)))
    }

    /// Whether it shows all of them to all rows.
    pub(crate) fn show_all(
        &self,
        sequence: &Sequence,
        head: usize,
        at: (&Tile, Range<usize>),
        keys: Range<usize>,
    ) -> bool {
        self.mask.is_none_or(|mask| mask.shows_all(sequence, head, rows_of(at), there(sequence, keys)))
    }
}

/// The rows of lanes that stand for one.
fn rows_of((tile, lanes): (&Tile, Range<usize>)) -> Range<usize> {
    tile.row_of(lanes.start)..tile.row_of(lanes.end - 1) + 1
}

/// Those of the keys that there are.
fn there(sequence: &Sequence, keys: Range<usize>) -> Range<usize> {
    keys.start..keys.end.min(sequence.place.seqlen_k)
}
