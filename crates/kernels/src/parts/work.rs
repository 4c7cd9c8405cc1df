//! Which part of the problem a block works on, and what its rows see.
//!
//! Tiles lie on the lattice of the dropout mask's blocks, 16 rows by 32 columns of the whole. A shard that starts
//! inside such a block has its first tile start before the tensor: those rows and columns are outside, like those
//! behind the end. So no kernel knows of shards, and words of random bytes always meet their own accumulators.
use super::args::ProblemVals;
use super::sequence::Sequence;
use signflash_ptx::{Cta, Pred, S32, U32, Val};

/// A tile of rows of one head, or of key columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'k> {
    pub(crate) sequence: Sequence<'k>,
    pub(crate) head: Val<'k, U32>,
    /// The tile's number along the sequence.
    pub(crate) block: Val<'k, U32>,
}

impl<'k> Work<'k> {
    /// The `blocks` tiles of a head follow each other in the grid, then heads, then batches. With `reversed` the last
    /// tile comes first: under a causal mask it has the most to do.
    #[track_caller]
    pub(crate) fn locate(
        cta: Cta<'k>,
        problem: &ProblemVals<'k>,
        blocks: Val<'k, U32>,
        heads: Val<'k, U32>,
        reversed: bool,
    ) -> Self {
        let index = cta.index();
        let row = index / blocks;
        let block = index - row * blocks;
        let block = if reversed { blocks - 1 - block } else { block };
        let (sequence, head) = Sequence::of_head(problem, row, heads);
        Work { sequence, head, block }
    }

    /// The tiles of `at_once` heads alternate in the grid: so many first tiles, then as many second ones.
    #[track_caller]
    pub(crate) fn alternate(
        cta: Cta<'k>,
        problem: &ProblemVals<'k>,
        blocks: Val<'k, U32>,
        heads: Val<'k, U32>,
        at_once: Val<'k, U32>,
    ) -> Self {
        let (index, rows) = (cta.index(), cta.count() / blocks);
        let first = index / (blocks * at_once) * at_once;
        let (width, within) = ((rows - first).min(at_once), index - first * blocks);
        let block = within / width;
        let row = first + within - block * width;
        let (sequence, head) = Sequence::of_head(problem, row, heads);
        Work { sequence, head, block }
    }
}

impl<'k> ProblemVals<'k> {
    /// Tiles of `rows` rows that cover the queries.
    #[track_caller]
    pub(crate) fn query_tiles(&self, rows: u32) -> Val<'k, U32> {
        (self.seqlen_q + self.row_shift + (rows - 1)) / rows
    }

    /// Tiles of `columns` columns that cover the keys.
    #[track_caller]
    pub(crate) fn key_tiles(&self, columns: u32) -> Val<'k, U32> {
        (self.seqlen_k + self.column_shift + (columns - 1)) / columns
    }

    /// How many keys a query sees: those from 0 on. Rows before 0 and behind the end get what they would have.
    #[track_caller]
    pub(crate) fn visible(&self, row: Val<'k, U32>, causal: bool) -> Val<'k, U32> {
        if !causal {
            return self.seqlen_k;
        }
        let limit: Val<'k, S32> = (row + 1 + self.seqlen_k - self.seqlen_q).cast();
        limit.min(self.seqlen_k.cast::<S32>()).max(0).cast()
    }
}

/// The key tiles that a tile of rows must look at, and which of them need no mask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyTiles<'k> {
    /// Behind the last one.
    pub(crate) end: Val<'k, U32>,
    /// From here on, a column of the tile is hidden from some row.
    edge: Val<'k, U32>,
    columns: u32,
    shift: Val<'k, U32>,
}

impl<'k> KeyTiles<'k> {
    /// For rows `first..first + rows` and tiles of so many columns.
    #[track_caller]
    pub(crate) fn of_rows(
        problem: &ProblemVals<'k>,
        first: Val<'k, U32>,
        rows: u32,
        columns: u32,
        causal: bool,
    ) -> Self {
        let last = (first + (rows - 1)).cast::<S32>().min((problem.seqlen_q - 1).cast::<S32>()).cast();
        let (fewest, most) = (problem.visible(first, causal), problem.visible(last, causal));
        let tiles = (most + problem.column_shift + (columns - 1)) / columns;
        KeyTiles {
            end: most.eq(0).select(0u32, tiles),
            edge: fewest + problem.column_shift,
            columns,
            shift: problem.column_shift,
        }
    }

    /// Whether some column of a tile is hidden from some row: behind what a row sees, or before column 0.
    #[track_caller]
    pub(crate) fn is_edge(&self, tile: Val<'k, U32>) -> Val<'k, Pred> {
        let first = tile * self.columns;
        self.edge.lt(first + self.columns) | first.lt(self.shift)
    }
}
