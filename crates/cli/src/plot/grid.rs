//! The cells of the picture: each covers a block of entries, all of which count.

use super::axis::{Axis, axes};
use super::scale::Scale;
use crate::args::Bin;
use signflash_core::Element;
use std::ops::Range;

/// One cell. Sums are f64: a cell of a long map covers thousands of entries that differ by decades.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell {
    sum: f64,
    dropped_sum: f64,
    max: f32,
    max_is_dropped: bool,
    /// Visible numbers, and those of them that were dropped.
    numbers: u64,
    dropped: u64,
    /// Visible entries that are NaN or infinite.
    not_numbers: u64,
}

/// What a cell shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shown {
    /// No entry is visible.
    Hidden,
    /// At least one entry is NaN or infinite: that is never averaged away.
    NotANumber,
    /// Probabilities.
    Probability {
        /// The mean, or the largest.
        magnitude: f32,
        /// How much of that was dropped, from 0 to 1.
        dropped: f32,
    },
}

impl Cell {
    /// What the cell shows. The mean keeps how much probability lies there, and its hue how much of that was
    /// dropped; the largest keeps a single entry, and its hue whether that one was.
    pub(super) fn shown(&self, bin: Bin) -> Shown {
        if self.not_numbers > 0 {
            return Shown::NotANumber;
        }
        if self.numbers == 0 {
            return Shown::Hidden;
        }
        match bin {
            // Zeros have no probability to share; their numbers say what became of them.
            Bin::Mean if self.sum == 0.0 => Shown::Probability {
                magnitude: 0.0,
                dropped: (self.dropped as f64 / self.numbers as f64) as f32,
            },
            Bin::Mean => Shown::Probability {
                magnitude: (self.sum / self.numbers as f64) as f32,
                dropped: (self.dropped_sum / self.sum) as f32,
            },
            Bin::Max => {
                Shown::Probability { magnitude: self.max, dropped: f32::from(u8::from(self.max_is_dropped)) }
            }
        }
    }

    fn add<T: Element>(&mut self, entry: T, counts: &mut Counts) {
        let (magnitude, dropped) = entry.decode();
        let magnitude = magnitude.to_f32();
        if !magnitude.is_finite() {
            self.not_numbers += 1;
            counts.not_numbers += 1;
            return;
        }
        self.sum += f64::from(magnitude);
        self.numbers += 1;
        if magnitude > self.max || self.numbers == 1 {
            (self.max, self.max_is_dropped) = (magnitude, dropped);
        }
        if dropped {
            self.dropped_sum += f64::from(magnitude);
            self.dropped += 1;
            counts.dropped += 1;
        } else {
            counts.kept += 1;
        }
    }
}

/// How many visible entries of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Numbers that were kept.
    pub(super) kept: u64,
    /// Numbers that were dropped.
    pub(super) dropped: u64,
    /// NaN or infinite.
    pub(super) not_numbers: u64,
}

impl Counts {
    /// All visible entries.
    pub(super) fn visible(&self) -> u64 {
        self.kept + self.dropped + self.not_numbers
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
    /// The visible entries.
    pub(super) counts: Counts,
}

impl Grid {
    /// An empty map of these entries.
    pub(super) fn new(queries: Range<usize>, keys: Range<usize>) -> Self {
        let [queries, keys] = axes(queries, keys);
        let cells = vec![Cell::default(); queries.cells() * keys.cells()];
        Self { queries, keys, cells, counts: Counts::default() }
    }

    /// Counts the entries of one query, for all keys of the problem.
    pub(super) fn add_row<T: Element>(&mut self, query: usize, entries: &[T], visible: Range<usize>) {
        let first_cell = self.queries.cell_of(query) * self.keys.cells();
        let drawn = visible.start.max(self.keys.entries.start)..visible.end.min(self.keys.entries.end);
        for key in drawn {
            self.cells[first_cell + self.keys.cell_of(key)].add(entries[key], &mut self.counts);
        }
    }

    /// What the cell of a row and a column of cells shows.
    pub(super) fn shown(&self, row: usize, column: usize, bin: Bin) -> Shown {
        self.cells[row * self.keys.cells() + column].shown(bin)
    }

    /// Which magnitude is how bright.
    pub(super) fn scale(&self, bin: Bin) -> Scale {
        let probability = |cell: &Cell| match cell.shown(bin) {
            Shown::Probability { magnitude, .. } => Some((magnitude, cell.sum)),
            _ => None,
        };
        Scale::of(self.cells.iter().filter_map(probability).collect())
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
        assert!(grid.queries.bin > 1 && grid.keys.bin > 1);
        assert_eq!(grid.counts, Counts { kept: 3001 * 1499, dropped: 3001 * 500, not_numbers: 0 });
        let numbers: u64 = grid.cells.iter().map(|cell| cell.numbers).sum();
        let sum: f64 = grid.cells.iter().map(|cell| cell.sum).sum();
        assert_eq!((numbers, sum), (3001 * 1999, 3001.0 * (500.0 * 0.5 + 1499.0 * 0.25)));
    }

    fn row(entries: &[f32], visible: Range<usize>, bin: Bin) -> Vec<Shown> {
        let mut grid = Grid::new(0..1, 0..entries.len());
        grid.add_row(0, entries, visible);
        (0..grid.keys.cells()).map(|column| grid.shown(0, column, bin)).collect()
    }

    fn number(magnitude: f32, dropped: f32) -> Shown {
        Shown::Probability { magnitude, dropped }
    }

    #[test]
    fn a_dropped_zero_counts_as_dropped() {
        for bin in [Bin::Mean, Bin::Max] {
            assert_eq!(row(&[0.0, -0.0], 0..2, bin), [number(0.0, 0.0), number(0.0, 1.0)]);
        }
    }

    #[test]
    fn hidden_entries_have_no_magnitude() {
        assert_eq!(row(&[1.0, 0.0], 0..1, Bin::Mean), [number(1.0, 0.0), Shown::Hidden]);
    }

    #[test]
    fn nan_is_neither_kept_nor_dropped_and_never_averaged_away() {
        let mut grid = Grid::new(0..1, 0..4);
        grid.add_row(0, &[0.5, f32::NAN, -f32::NAN, f32::INFINITY], 0..4);
        assert_eq!(grid.counts, Counts { kept: 1, dropped: 0, not_numbers: 3 });
        assert_eq!(grid.scale(Bin::Max).bright, 0.5);

        let mut entries = vec![0.001f32; 4000];
        entries[1234] = f32::NAN;
        for bin in [Bin::Mean, Bin::Max] {
            let shown = row(&entries, 0..4000, bin);
            let cell = shown.iter().position(|cell| *cell == Shown::NotANumber).unwrap();
            assert_eq!(cell, 1234 * shown.len() / 4000);
            assert_eq!(shown.iter().filter(|cell| **cell == Shown::NotANumber).count(), 1);
        }
    }

    #[test]
    fn the_hue_of_a_cell_is_that_of_its_probability() {
        // A dropped 0.9 among entries that hold nothing: the cell is dropped, not one part in five of it.
        let mut entries = vec![1e-20f32; 4000];
        entries[2] = -0.9;
        let cell = |bin| row(&entries, 0..4000, bin)[0];
        assert!(matches!(cell(Bin::Mean), Shown::Probability { dropped, .. } if dropped > 0.99));
        assert_eq!(cell(Bin::Max), number(0.9, 1.0));
    }
}
