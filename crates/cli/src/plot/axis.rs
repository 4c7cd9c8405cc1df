//! One axis of the map: which entries make which cell, how many pixels a cell has, which numbers stand beside it.

use std::ops::Range;

/// Pixels that the longer side of the map may have.
pub(super) const MAX_PIXELS: usize = 1600;
/// Pixels that the longer side should have at least, and the shorter one.
const MIN_PIXELS: usize = 480;
const SHORT_SIDE: usize = 400;
/// Pixels of a cell's side at most, unless the map would be smaller than that.
const MAX_CELL: usize = 160;
/// Pixels of a cell's side at least: on most screens the picture is shown at half its size, and a cell less than a
/// pixel would be mixed with its neighbours.
const MIN_CELL: usize = 2;
/// How many times longer one side may be than the other; cells of longer maps are stretched.
const MAX_ASPECT: usize = 3;

/// One axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// The entries that are drawn.
    pub(super) entries: Range<usize>,
    /// Entries a cell; 1 unless binned.
    pub(super) bin: usize,
    /// Pixels a cell.
    pub(super) pixels: usize,
}

/// The axes of a map of these queries and keys: squares stay squares unless the map is too long for that.
pub(super) fn axes(queries: Range<usize>, keys: Range<usize>) -> [Axis; 2] {
    let longest = queries.len().max(keys.len()).max(1);
    let side = (longest.saturating_mul(MAX_CELL)).clamp(MIN_PIXELS, MAX_PIXELS);
    [queries, keys].map(|entries| {
        let proportional = side as u128 * entries.len() as u128 / longest as u128;
        Axis::new(entries, (proportional as usize).max(side / MAX_ASPECT).max(SHORT_SIDE))
    })
}

impl Axis {
    /// An axis of about this many pixels.
    fn new(entries: Range<usize>, pixels: usize) -> Self {
        let bin = entries.len().div_ceil(pixels.div_ceil(MIN_CELL)).max(1);
        let cells = entries.len().div_ceil(bin);
        Self { entries, bin, pixels: (pixels / cells.max(1)).max(MIN_CELL) }
    }

    /// Number of cells.
    pub(super) fn cells(&self) -> usize {
        self.entries.len().div_ceil(self.bin)
    }

    /// Number of pixels.
    pub(super) fn len_pixels(&self) -> usize {
        self.cells() * self.pixels
    }

    /// The cell that an entry belongs to.
    pub(super) fn cell_of(&self, entry: usize) -> usize {
        (entry - self.entries.start) / self.bin
    }

    /// The pixel at the middle of an entry's cell.
    pub(super) fn pixel_of(&self, entry: usize) -> usize {
        self.cell_of(entry) * self.pixels + self.pixels / 2
    }

    /// Round numbers, and the last entry, none nearer than `apart` pixels to another; powers of two where the axis
    /// ends at one's multiple.
    pub(super) fn ticks(&self, apart: usize) -> Vec<usize> {
        let len = self.entries.len();
        let Some(last) = self.entries.end.checked_sub(1).filter(|_| len > 0) else { return Vec::new() };
        let binary = self.entries.end.is_multiple_of(32);
        let step = |k: u32| {
            let decimal = 10usize.saturating_pow(k / 3).saturating_mul([1, 2, 5][k as usize % 3]);
            if binary { 1usize << k } else { decimal }
        };
        // In pixels times entries, so that nothing is rounded.
        let fits = |step: &usize| *step as u128 * self.len_pixels() as u128 >= apart as u128 * len as u128;
        let step = (0..60).map(step).find(fits).unwrap_or(len);
        let first = self.entries.start.next_multiple_of(step);
        let mut ticks: Vec<usize> = (first..self.entries.end).step_by(step).collect();
        // The last entry says how long the axis is, unless its number would touch a neighbour's.
        if ticks.last().is_none_or(|&tick| self.pixel_of(last) - self.pixel_of(tick) >= apart) {
            ticks.push(last);
        }
        ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_map_is_longer_than_three_to_one_or_smaller_than_a_legend() {
        for (queries, keys) in [
            (1, 1),
            (1, 3000),
            (3000, 1),
            (20, 20),
            (20, 4000),
            (2, 7),
            (1601, 1599),
            (70_000, 70_000),
            (1, 1 << 40),
        ] {
            let [q, k] = axes(0..queries, 0..keys);
            let [height, width] = [q.len_pixels(), k.len_pixels()];
            assert!(width.max(height) <= MAX_PIXELS, "{queries} x {keys}: {height} x {width}");
            assert!(width.min(height) >= 360, "{queries} x {keys}: {height} x {width}");
            assert!(width.max(height) <= 4 * width.min(height), "{queries} x {keys}: {height} x {width}");
            assert!(q.pixels >= MIN_CELL && k.pixels >= MIN_CELL);
        }
    }

    #[test]
    fn squares_stay_squares() {
        for (queries, keys) in [(1, 1), (20, 20), (100, 127), (128, 384), (799, 800), (333, 257), (5, 15)] {
            let [q, k] = axes(0..queries, 0..keys);
            assert_eq!((q.pixels, q.bin), (k.pixels, k.bin), "{queries} x {keys}");
        }
    }

    #[test]
    fn every_axis_has_numbers_that_do_not_touch() {
        for len in [1, 2, 3, 7, 20, 21, 64, 100, 384, 1999, 2000, 3000, 4096, 65_537] {
            for start in [0, 5, 1000] {
                let [axis, _] = axes(start..start + len, 0..len);
                let ticks = axis.ticks(110);
                assert!(ticks.len() >= 3.min(len) && ticks.len() <= 16, "{start}+{len}: {ticks:?}");
                let pixels: Vec<usize> = ticks.iter().map(|&tick| axis.pixel_of(tick)).collect();
                assert!(pixels.is_sorted_by(|a, b| a + 100 <= *b), "{start}+{len}: {ticks:?} {pixels:?}");
            }
        }
    }
}
