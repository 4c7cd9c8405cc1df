//! Tiles: rows that are worked on together.

/// Rows of one head of a sequence that are worked on together: one lane each.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The first real row, counted in the sequence.
    pub(crate) first: usize,
    /// Lanes before it that stand for no row.
    pub(crate) before: usize,
    /// Real rows.
    pub(crate) count: usize,
    /// Lanes.
    pub(crate) rows: usize,
    /// Philox block row, in the whole problem, of lane 0.
    pub(crate) block_row: usize,
}

impl Tile {
    /// The row of a lane; lanes that stand for none take the nearest row's part.
    pub(crate) fn row_of(&self, lane: usize) -> usize {
        self.first + lane.saturating_sub(self.before).min(self.count - 1)
    }

    /// The lane of a row, or of the tile's nearest.
    pub(crate) fn lane_of(&self, row: usize) -> usize {
        self.before + row.saturating_sub(self.first).min(self.count - 1)
    }

    /// Whether the lane stands for a row.
    pub(crate) fn is_real(&self, lane: usize) -> bool {
        (self.before..self.before + self.count).contains(&lane)
    }
}
