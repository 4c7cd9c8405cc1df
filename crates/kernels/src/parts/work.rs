//! Which part of the problem a block works on.
//!
//! Tiles lie on the lattice of the dropout mask's blocks, 16 rows by 32 columns of the whole. A shard that starts
//! inside such a block has its first tile start before the tensor: those rows and columns are outside, like those
//! behind the end. So no kernel knows of shards, and words of random bytes always meet their own accumulators.
use super::args::ProblemVals;
use super::sequence::Sequence;
use crate::packed::PackedVals;
use signflash_ptx::{Cta, U32, Val};

/// A tile of rows of one head, or of key columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'k> {
    pub(crate) sequence: Sequence<'k>,
    pub(crate) head: Val<'k, U32>,
    /// The tile's number along the sequence.
    pub(crate) block: Val<'k, U32>,
}

/// In which order blocks take heads and tiles of a grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// The last tile of a head first.
    pub(crate) reversed: bool,
    /// A head of all sequences, then the next head; else all heads of a sequence first.
    pub(crate) heads_first: bool,
}

/// A tile's number among those of all heads of all sequences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Units<'k> {
    pub(crate) index: Val<'k, U32>,
    /// Heads of all sequences, and tiles of each.
    pub(crate) rows: Val<'k, U32>,
    pub(crate) blocks: Val<'k, U32>,
}

impl<'k> Units<'k> {
    /// Where the grid has a block for each.
    #[track_caller]
    pub(crate) fn of_grid(cta: Cta<'k>, blocks: Val<'k, U32>) -> Self {
        let (index, rows) = (cta.index(), cta.count() / blocks);
        Units { index, rows, blocks }
    }
}

impl<'k> Work<'k> {
    /// The `blocks` tiles of a head follow each other in the grid, then heads, then batches. With `reversed` the last
    /// tile comes first: where attention is causal it has the most to do.
    #[track_caller]
    pub(crate) fn locate(
        cta: Cta<'k>,
        problem: &ProblemVals<'k>,
        blocks: Val<'k, U32>,
        heads: Val<'k, U32>,
        reversed: bool,
    ) -> Self {
        let work = Work::nth(cta.index(), problem, blocks, heads);
        Work { block: if reversed { blocks - 1 - work.block } else { work.block }, ..work }
    }

    /// Tile number `index` of all heads.
    #[track_caller]
    pub(crate) fn nth(
        index: Val<'k, U32>,
        problem: &ProblemVals<'k>,
        blocks: Val<'k, U32>,
        heads: Val<'k, U32>,
    ) -> Self {
        let row = index / blocks;
        let block = index - row * blocks;
        let (sequence, head) = Sequence::of_head(problem, row, heads);
        Work { sequence, head, block }
    }

    /// The tiles of `at_once` heads alternate in the grid: so many first tiles, then as many second ones; with
    /// `reversed` so many last ones first.
    #[track_caller]
    pub(crate) fn alternate(
        units: Units<'k>,
        problem: &ProblemVals<'k>,
        heads: Val<'k, U32>,
        at_once: Val<'k, U32>,
        Order { reversed, heads_first }: Order,
    ) -> Self {
        let Units { index, rows, blocks } = units;
        let first = index / (blocks * at_once) * at_once;
        let (width, within) = ((rows - first).min(at_once), index - first * blocks);
        let block = within / width;
        let row = first + within - block * width;
        let block = if reversed { blocks - 1 - block } else { block };
        let (sequence, head) = match heads_first {
            false => Sequence::of_head(problem, row, heads),
            true => Sequence::of_shared_head(problem, row, rows / heads),
        };
        Work { sequence, head, block }
    }

    /// A unit of a list's tile and a head: all heads of a tile follow each other. The block ends if there is none.
    #[track_caller]
    pub(crate) fn listed(
        cta: Cta<'k>,
        problem: &ProblemVals<'k>,
        packed: &PackedVals<'k>,
        unit: Val<'k, U32>,
        heads: Val<'k, U32>,
    ) -> Self {
        let (t, index) = (cta.threads(), unit / heads);
        cta.when(!index.lt(packed.count(t)), |cta| cta.exit());
        let tile = packed.tile(t, problem, index);
        Work { sequence: tile.sequence, head: unit - index * heads, block: tile.number }
    }

    /// The same tile counted from the last of those of `rows` rows, of which a sequence has `seqlen`.
    #[track_caller]
    pub(crate) fn counted_from_the_last(self, seqlen: Val<'k, U32>, rows: u32) -> Self {
        let tiles = (seqlen + (rows - 1)) / rows;
        Work { block: tiles - 1 - self.block, ..self }
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
}
