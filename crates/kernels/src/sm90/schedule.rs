//! Which tiles of queries a block works on: a fixed share.
//!
//! There are as many blocks as multiprocessors, and at any time they work on neighbouring tiles, which share keys and
//! values in the second-level cache. Where attention is causal, tiles differ in length; there a block takes a head's
//! tiles in pairs, a long one and the short one that makes up for it, so that all pairs are equally long. (Longest
//! first over all heads balances as well, but reads keys and values from memory again and again: `docs/hopper.md` has
//! times of both.) FlashAttention-3 draws tiles from a counter in memory instead, which needs one, and a launch
//! to reset it.
use crate::config::{Layout, Scores};
use crate::packed::PackedVals;
use crate::parts::args::{ProblemVals, kernel_args};
use crate::parts::sequence::Sequence;
use crate::parts::work::Work;
use signflash_ptx::{Cta, Pred, U32, Val, Var};

kernel_args! {
    /// How tiles are shared out.
    ScheduleArgs / ScheduleVals {
        /// Units of work in all: tiles, or pairs of them.
        units: u32,
        /// Of one head. Fewer than it has tiles, if these are pairs.
        units_per_head: u32,
    }
}

impl ScheduleArgs {
    /// For so many heads of so many tiles each, which differ in length if they form a triangle, on so many blocks.
    /// None if a launch cannot have so many units.
    pub(crate) fn new(heads: u64, tiles_per_head: u64, triangle: bool, blocks: u64) -> Option<Self> {
        // With a block for each tile, the long ones need not wait for the short ones.
        let pairs = triangle && heads * tiles_per_head > blocks;
        let units_per_head = if pairs { tiles_per_head.div_ceil(2) } else { tiles_per_head };
        let units = i32::try_from(heads * units_per_head).ok()? as u32;
        Some(ScheduleArgs { units, units_per_head: units_per_head as u32 })
    }
}

/// What a kernel knows of how tiles are shared out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shares<'k> {
    /// Those of equally long sequences.
    Even(ScheduleVals<'k>),
    /// Those of packed sequences.
    Listed(PackedVals<'k>),
}

impl<'k> Shares<'k> {
    /// The arguments that say it.
    pub(crate) fn declare(cta: Cta<'k>, layout: Layout) -> Self {
        match layout {
            Layout::Batch => Shares::Even(ScheduleVals::declare(cta)),
            Layout::Packed => Shares::Listed(PackedVals::declare(cta)),
        }
    }

    /// A block's way through its share. Where scores have a bias or a mask that has other numbers for each query, those
    /// of a tile may be the same for all sequences, whose tiles then run at once, so that memory is read once for them.
    #[track_caller]
    pub(crate) fn schedule(
        self,
        cta: Cta<'k>,
        problem: &ProblemVals<'k>,
        (rows, scores): (u32, Scores),
    ) -> Schedule<'k> {
        match self {
            Shares::Even(args) => {
                let tiles_first = scores.overlays.are_by_query();
                Schedule::Even(Even::new(cta, args, problem, (rows, tiles_first)))
            }
            Shares::Listed(packed) => Schedule::Listed(Listed::new(cta, packed, problem, rows)),
        }
    }
}

/// A block's way through the tiles.
#[derive(Debug)]
pub(crate) enum Schedule<'k> {
    /// Of equally long sequences.
    Even(Even<'k>),
    /// Of packed sequences.
    Listed(Listed<'k>),
}

impl<'k> Schedule<'k> {
    /// Whether there is a tile left.
    #[track_caller]
    pub(crate) fn has_more(&self) -> Val<'k, Pred> {
        match self {
            Schedule::Even(tiles) => tiles.has_more(),
            Schedule::Listed(tiles) => tiles.has_more(),
        }
    }

    /// This tile; the next call gives the next.
    #[track_caller]
    pub(crate) fn take(&self) -> Work<'k> {
        match self {
            Schedule::Even(tiles) => tiles.take(),
            Schedule::Listed(tiles) => tiles.take(),
        }
    }
}

/// Through the tiles of equally long sequences.
#[derive(Debug)]
pub(crate) struct Even<'k> {
    args: ScheduleVals<'k>,
    /// Tiles of one head.
    tiles: Val<'k, U32>,
    problem: ProblemVals<'k>,
    /// If a tile of all sequences comes before the next tile: how many there are.
    batches: Option<Val<'k, U32>>,
    blocks: Val<'k, U32>,
    unit: Var<'k, U32>,
    /// 1 for the second of a pair.
    second: Var<'k, U32>,
}

impl<'k> Even<'k> {
    #[track_caller]
    fn new(
        cta: Cta<'k>,
        args: ScheduleVals<'k>,
        problem: &ProblemVals<'k>,
        (rows, tiles_first): (u32, bool),
    ) -> Self {
        Even {
            batches: tiles_first.then(|| args.units / args.units_per_head / problem.num_heads),
            args,
            tiles: problem.query_tiles(rows),
            problem: *problem,
            blocks: cta.count(),
            unit: cta.index().var(),
            second: cta.threads().u32(0).var(),
        }
    }

    #[track_caller]
    fn has_more(&self) -> Val<'k, Pred> {
        self.unit.get().lt(self.args.units)
    }

    #[track_caller]
    fn take(&self) -> Work<'k> {
        let (unit, second) = (self.unit.get(), self.second.get().ne(0));
        // A head's units, of one sequence or of all.
        let (heads_unit, batch) = match self.batches {
            None => (unit, None),
            Some(batches) => {
                let heads_unit = unit / batches;
                (heads_unit, Some(unit - heads_unit * batches))
            }
        };
        let number = heads_unit / self.args.units_per_head;
        let short = heads_unit - number * self.args.units_per_head;
        let long = self.tiles - 1 - short;
        let two = self.args.units_per_head.lt(self.tiles) & short.lt(long);
        let stays = two & !second;
        self.second.set(stays.select(1u32, 0u32));
        self.unit.set(stays.select(unit, unit + self.blocks));
        let (sequence, head) = match batch {
            None => Sequence::of_head(&self.problem, number, self.problem.num_heads),
            Some(batch) => (Sequence::nth(&self.problem, batch), number),
        };
        Work { sequence, head, block: second.select(short, long) }
    }
}

/// Through the listed tiles of packed sequences, or pairs of them; all heads of one follow each other.
///
/// The list begins with those that take longest. A block takes the units of its number, then those of its number
/// counted from the other end of as many as there are blocks, and so on in turn: so who had the longest of one round has
/// the shortest of the next.
#[derive(Debug)]
pub(crate) struct Listed<'k> {
    packed: PackedVals<'k>,
    problem: ProblemVals<'k>,
    rows: u32,
    /// Units of work in all.
    units: Val<'k, U32>,
    unit: Var<'k, U32>,
    /// From this unit to the next; both strides of two rounds together.
    stride: Var<'k, U32>,
    strides: Val<'k, U32>,
    /// 1 for the second of a pair.
    second: Var<'k, U32>,
    cta: Cta<'k>,
}

impl<'k> Listed<'k> {
    #[track_caller]
    fn new(cta: Cta<'k>, packed: PackedVals<'k>, problem: &ProblemVals<'k>, rows: u32) -> Self {
        let (t, index, strides) = (cta.threads(), cta.index(), cta.count() * 2);
        Listed {
            packed,
            problem: *problem,
            rows,
            units: packed.count(t) * problem.num_heads,
            unit: index.var(),
            stride: (strides - 1 - index * 2).var(),
            strides,
            second: t.u32(0).var(),
            cta,
        }
    }

    #[track_caller]
    fn has_more(&self) -> Val<'k, Pred> {
        self.unit.get().lt(self.units)
    }

    #[track_caller]
    fn take(&self) -> Work<'k> {
        let (unit, second, stride) = (self.unit.get(), self.second.get().ne(0), self.stride.get());
        let index = unit / self.problem.num_heads;
        let tile = self.packed.tile(self.cta.threads(), &self.problem, index);
        let tiles = (tile.sequence.seqlen_q + (self.rows - 1)) / self.rows;
        let (short, long) = (tile.number, tiles - 1 - tile.number);
        let two = self.packed.tiles_each.eq(2) & short.lt(long);
        let stays = two & !second;
        self.second.set(stays.select(1u32, 0u32));
        self.unit.set(stays.select(unit, unit + stride));
        self.stride.set(stays.select(stride, self.strides - stride));
        let head = unit - index * self.problem.num_heads;
        Work { sequence: tile.sequence, head, block: second.select(short, long) }
    }
}

#[cfg(test)]
mod tests {
    use super::ScheduleArgs;

    #[test]
    fn pairs_are_for_causal_problems_of_more_tiles_than_blocks() {
        let units = |heads, tiles, causal| {
            let args = ScheduleArgs::new(heads, tiles, causal, 132).unwrap();
            (args.units, args.units_per_head)
        };
        assert_eq!(units(16, 9, false), (144, 9));
        assert_eq!(units(16, 9, true), (80, 5));
        assert_eq!(units(16, 8, true), (128, 8));
        assert_eq!(units(200, 1, true), (200, 1));
        assert!(ScheduleArgs::new(1 << 20, 1 << 20, false, 132).is_none());
    }
}
