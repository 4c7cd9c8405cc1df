//! The cells of the picture: each covers a block of entries, all of which count.

use super::color::Scale;
use crate::cli::Bin;
use signflash_core::Element;
use std::ops::Range;

/// Pixels that a side of the map may have; more entries than this are binned.
pub(super) const MAX_PIXELS: usize = 1600;
/// Pixels that a side should have at least, so that a single query is more than a line.
const MIN_PIXELS: usize = 96;

/// One cell.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell {
    sum: f32,
    max: f32,
    visible: u32,
    dropped: u32,
}

impl Cell {
    /// The magnitude to show; `None` if no entry is visible.
    pub(super) fn magnitude(&self, bin: Bin) -> Option<f32> {
        (self.visible > 0).then(|| match bin {
            Bin::Mean => self.sum / self.visible as f32,
            Bin::Max => self.max,
        })
    }

    /// The share of visible entries that were dropped.
    pub(super) fn dropped_share(&self) -> f32 {
        if self.visible == 0 { 0.0 } else { self.dropped as f32 / self.visible as f32 }
    }
}

/// One axis: which entries make which cell, and how many pixels a cell has.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// The entries that are drawn.
    pub(super) entries: Range<usize>,
    /// Entries a cell; 1 unless binned.
    pub(super) bin: usize,
    /// Pixels a cell; 1 if binned.
    pub(super) pixels: usize,
}

impl Axis {
    fn new(entries: Range<usize>, pixels: usize) -> Self {
        let bin = entries.len().div_ceil(MAX_PIXELS).max(1);
        Self { entries, bin, pixels: if bin > 1 { 1 } else { pixels } }
    }

    /// Number of cells.
    pub(super) fn cells(&self) -> usize {
        self.entries.len().div_ceil(self.bin)
    }

    /// Number of pixels.
    pub(super) fn len_pixels(&self) -> usize {
        self.cells() * self.pixels
    }

    /// The pixel at the middle of an entry.
    pub(super) fn pixel_of(&self, entry: usize) -> usize {
        let cell = (entry - self.entries.start) / self.bin;
        cell * self.pixels + self.pixels / 2
    }
}

/// The map, binned to fit the picture.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    /// Queries, downwards.
    pub(super) queries: Axis,
    /// Keys, to the right.
    pub(super) keys: Axis,
    cells: Vec<Cell>,
    /// Visible entries, and those of them that were dropped.
    pub(super) counts: (u64, u64),
}

impl Grid {
    /// An empty map of these entries.
    pub(super) fn new(queries: Range<usize>, keys: Range<usize>) -> Self {
        // One scale for both axes where both fit, so that squares stay squares.
        let common = (MAX_PIXELS / queries.len().max(keys.len()).max(1)).max(1);
        let pixels = |len: usize| common.max(MIN_PIXELS.div_ceil(len.max(1)));
        let queries = Axis::new(queries.clone(), pixels(queries.len()));
        let keys = Axis::new(keys.clone(), pixels(keys.len()));
        let cells = vec![Cell::default(); queries.cells() * keys.cells()];
        Self { queries, keys, cells, counts: (0, 0) }
    }

    /// Counts the entries of one query, for all keys of the problem.
    pub(super) fn add_row<T: Element>(&mut self, query: usize, entries: &[T], visible: Range<usize>) {
        let first_cell = (query - self.queries.entries.start) / self.queries.bin * self.keys.cells();
        let drawn = visible.start.max(self.keys.entries.start)..visible.end.min(self.keys.entries.end);
        for key in drawn {
            let (magnitude, dropped) = entries[key].decode();
            let magnitude = magnitude.to_f32();
            let cell = &mut self.cells[first_cell + (key - self.keys.entries.start) / self.keys.bin];
            cell.sum += magnitude;
            cell.max = cell.max.max(magnitude);
            cell.visible += 1;
            cell.dropped += u32::from(dropped);
            self.counts.0 += 1;
            self.counts.1 += u64::from(dropped);
        }
    }

    /// The cell of a row and a column of cells.
    pub(super) fn cell(&self, row: usize, column: usize) -> &Cell {
        &self.cells[row * self.keys.cells() + column]
    }

    /// From what magnitude to what the brightness ranges: all but the largest and the smallest 0.5 % lie between, at
    /// most four decades, so that outliers do not take the contrast from the rest.
    pub(super) fn scale(&self, bin: Bin) -> Scale {
        let usable = |x: &f32| x.is_finite() && *x > 0.0;
        let mut magnitudes: Vec<f32> =
            self.cells.iter().filter_map(|cell| cell.magnitude(bin)).filter(usable).collect();
        magnitudes.sort_unstable_by(f32::total_cmp);
        let Some(last) = magnitudes.len().checked_sub(1) else { return Scale { dark: 1e-4, bright: 1.0 } };
        let bright = magnitudes[last - last / 200];
        let dark = magnitudes[last / 200].max(bright * 1e-4);
        // Equal magnitudes (one key, say) still need a scale to stand on.
        Scale::rounded(dark.min(bright / 10.0), bright)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_counts_however_long_the_sequence() {
        let (queries, keys) = (3001, 1999);
        let mut grid = Grid::new(0..queries, 0..keys);
        let row: Vec<f32> = (0..keys).map(|j| if j % 4 == 0 { -0.5 } else { 0.25 }).collect();
        (0..queries).for_each(|i| grid.add_row(i, &row, 0..keys));
        assert_eq!((grid.queries.bin, grid.keys.bin), (2, 2));
        assert_eq!(grid.counts, (3001 * 1999, 3001 * 500));
        let visible: u64 = grid.cells.iter().map(|cell| u64::from(cell.visible)).sum();
        assert_eq!(visible, 3001 * 1999);
        assert!(grid.queries.len_pixels() <= MAX_PIXELS && grid.keys.len_pixels() <= MAX_PIXELS);
    }

    #[test]
    fn a_dropped_zero_counts_as_dropped() {
        let mut grid = Grid::new(0..1, 0..2);
        grid.add_row(0, &[0.0f32, -0.0], 0..2);
        assert_eq!((grid.cell(0, 0).dropped_share(), grid.cell(0, 1).dropped_share()), (0.0, 1.0));
    }

    #[test]
    fn hidden_entries_have_no_magnitude() {
        let mut grid = Grid::new(0..1, 0..2);
        grid.add_row(0, &[1.0f32, 0.0], 0..1);
        assert_eq!(grid.cell(0, 0).magnitude(Bin::Mean), Some(1.0));
        assert_eq!(grid.cell(0, 1).magnitude(Bin::Mean), None);
    }
}
