//! Which keys of a block the rows of a tile see. All of it follows from core's `Visibility`, and begin and end go
//! together everywhere: a band that is bounded on the left needs nothing here.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::call::BLOCK_KEYS;
use crate::gemm::{NV, step_keys};
use crate::pack::panel_width;
use crate::sequence::Sequence;
use crate::simd::Simd;
use crate::tile::Tile;
use signflash_core::{Cover, Span};
use std::iter::StepBy;
use std::ops::Range;

/// The keys that any row of a tile sees, and that all do.
pub(crate) fn keys_of_tile(sequence: &Sequence, tile: &Tile) -> Cover<i64> {
    let last = tile.first + tile.count - 1;
    sequence.visibility.keys_of_all(tile.first as i64, last as i64)
}

/// The first keys of the blocks that hold some of these. Blocks lie alike for all rows, since the points where a row is
/// rescaled depend on them, and with them its last bits.
pub(crate) fn blocks(keys: Span<i64>) -> StepBy<Range<usize>> {
    let keys = keys.positions();
    (keys.start / BLOCK_KEYS * BLOCK_KEYS..keys.end).step_by(BLOCK_KEYS)
}

/// Those of some keys that lie in the block from `first_key` on, counted in the block and widened to whole steps of
/// `step` keys; `None` if none do.
pub(crate) fn within_block(keys: Span<i64>, first_key: usize, step: usize) -> Option<Span<usize>> {
    let keys = keys.positions();
    let (begin, end) = (keys.start.max(first_key), keys.end.min(first_key + BLOCK_KEYS));
    (begin < end).then(|| Span {
        begin: (begin - first_key) / step * step,
        end: (end - first_key).next_multiple_of(step),
    })
}

/// The panels of a tile some of whose rows see some of these keys; none if nobody does.
pub(crate) fn panels_that_see<S: Simd>(
    sequence: &Sequence,
    tile: &Tile,
    first_key: usize,
    count: usize,
) -> Span<usize> {
    let (first, last) = (first_key as i64, (first_key + count - 1) as i64);
    let rows = sequence.visibility.queries_of_all(first, last).some.positions();
    let (begin, end) = (rows.start.max(tile.first), rows.end.min(tile.first + tile.count));
    if begin >= end {
        return Span { begin: 0, end: 0 };
    }
    let panel = |row: usize| tile.lane_of(row) / panel_width::<S>();
    Span { begin: panel(begin), end: panel(end - 1) + 1 }
}

/// Where a block of keys and a tile of queries see each other.
#[derive(Clone, Copy)]
pub(crate) struct Overlap {
    /// Keys to compute, counted in the block: those that any row sees. What one row does not see of them gets 0.
    pub(crate) keys: Span<usize>,
    /// Panels of the tile whose rows see some.
    pub(crate) panels: Span<usize>,
}

impl Overlap {
    /// For the block of `count` keys from `first_key` on, in steps of `step` keys; `None` if they do not.
    pub(crate) fn new<S: Simd>(
        sequence: &Sequence,
        tile: &Tile,
        first_key: usize,
        count: usize,
        step: usize,
    ) -> Option<Self> {
        let keys = within_block(keys_of_tile(sequence, tile).some, first_key, step)?;
        let panels = panels_that_see::<S>(sequence, tile, first_key, count);
        (panels.begin < panels.end).then_some(Self { keys, panels })
    }

    /// The lanes of its panels.
    pub(crate) fn lanes<S: Simd>(&self) -> Range<usize> {
        lanes_of::<S>(self.panels)
    }
}

/// The lanes of panels.
pub(crate) fn lanes_of<S: Simd>(panels: Span<usize>) -> Range<usize> {
    panels.begin * panel_width::<S>()..panels.end * panel_width::<S>()
}

/// What of one block of keys the rows of one panel see.
#[derive(Clone, Copy)]
pub(crate) struct Visible {
    /// Keys of the block to compute, counted in it.
    pub(crate) keys: Span<usize>,
    /// Whether some row sees not all of them.
    pub(crate) hides: bool,
    /// Whether some row begins to see within them.
    begins: bool,
    /// First lane of the panel in its tile.
    lane: usize,
    first_key: usize,
}

impl Visible {
    /// For the panel from `lane` on and the block of keys from `first_key` on, in [steps](step_keys); `None` if
    /// no row sees any.
    pub(crate) fn new<S: Simd, const MR: usize>(
        sequence: &Sequence,
        tile: &Tile,
        lane: usize,
        first_key: usize,
    ) -> Option<Self> {
        let cover = keys_of_panel::<S>(sequence, tile, lane);
        let keys = within_block(cover.some, first_key, step_keys::<S, MR>())?;
        Some(Self::of::<S>(cover, tile, lane, first_key, keys))
    }

    /// The same, but computing these keys of the block, seen or not.
    pub(crate) fn computing<S: Simd>(
        sequence: &Sequence,
        tile: &Tile,
        lane: usize,
        first_key: usize,
        keys: Span<usize>,
    ) -> Self {
        Self::of::<S>(keys_of_panel::<S>(sequence, tile, lane), tile, lane, first_key, keys)
    }

    fn of<S: Simd>(cover: Cover<i64>, tile: &Tile, lane: usize, first_key: usize, keys: Span<usize>) -> Self {
        // Lanes that stand for no row see nothing: their zeros would make NaN of an infinite key.
        let real = tile.is_real(lane) && tile.is_real(lane + panel_width::<S>() - 1);
        let begins = cover.all.begin > (first_key + keys.begin) as i64;
        let hides = begins || !real || cover.all.end < (first_key + keys.end) as i64;
        Self { keys, hides, begins, lane, first_key }
    }

    /// What each lane's row sees of the block.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn bounds<S: Simd>(&self, sequence: &Sequence, tile: &Tile) -> Bounds<S> {
        let (mut begins, mut ends) = ([0.0f32; 64], [0.0f32; 64]);
        let in_block = |key: i64| (key - self.first_key as i64).clamp(0, BLOCK_KEYS as i64) as f32;
        for lane in (0..panel_width::<S>()).filter(|lane| tile.is_real(self.lane + lane)) {
            let keys = sequence.visibility.keys_of(tile.row_of(self.lane + lane) as i64);
            ends[lane] = in_block(keys.end);
            if self.begins {
                begins[lane] = in_block(keys.begin);
            }
        }
        let vectors =
            |x: &[f32; 64]| -> [S::V; NV] { std::array::from_fn(|n| S::load(x.as_ptr().add(n * S::LANES))) };
        Bounds { begins: vectors(&begins), ends: vectors(&ends), left: self.begins }
    }
}

fn keys_of_panel<S: Simd>(sequence: &Sequence, tile: &Tile, lane: usize) -> Cover<i64> {
    let (first, last) = (tile.row_of(lane), tile.row_of(lane + panel_width::<S>() - 1));
    sequence.visibility.keys_of_all(first as i64, last as i64)
}

/// The keys of a block that the rows of a panel see, lane by lane.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<S: Simd> {
    begins: [S::V; NV],
    ends: [S::V; NV],
    /// Whether `begins` hides anything.
    left: bool,
}

impl<S: Simd> Bounds<S> {
    /// For panels of which every row sees all that is computed: nothing is hidden, and nobody asks.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn none() -> Self {
        let zero = S::splat(0.0);
        Self { begins: [zero; NV], ends: [zero; NV], left: false }
    }

    /// `x`, of the `n`-th vector of rows and a key of the block, where the row sees the key; else `hidden`.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn hide(&self, n: usize, key: usize, x: S::V, hidden: S::V) -> S::V {
        let x = self.hide_behind(n, key, x, hidden);
        if self.left { S::where_less(S::splat(key as f32), self.begins[n], hidden, x) } else { x }
    }

    /// One side of that: what lies behind the last keys that the rows see.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn hide_behind(&self, n: usize, key: usize, x: S::V, hidden: S::V) -> S::V {
        S::where_less(S::splat(key as f32), self.ends[n], x, hidden)
    }

    /// The other side, of a micro-tile whose first key this is: what lies before the first keys that the rows see.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn hide_before<const MR: usize>(
        &self,
        key: usize,
        x: &mut [[S::V; NV]; MR],
        hidden: S::V,
    ) {
        if self.left {
            for (m, x) in x.iter_mut().enumerate() {
                let key = S::splat((key + m) as f32);
                for (x, begin) in x.iter_mut().zip(self.begins) {
                    *x = S::where_less(key, begin, hidden, *x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_begin_where_the_first_seen_key_lies() {
        let of = |begin, end| blocks(Span { begin, end }).collect::<Vec<usize>>();
        assert_eq!(of(0, 65), [0, 64]);
        assert_eq!(of(63, 64), [0]);
        assert_eq!(of(64, 129), [64, 128]);
        assert_eq!(of(200, 201), [192]);
        assert!(of(5, 5).is_empty());
        assert!(of(9, 3).is_empty());
    }
}
