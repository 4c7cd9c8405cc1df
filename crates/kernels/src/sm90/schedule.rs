//! Which tiles of queries a block works on: a fixed share, the longest first.
//!
//! There are as many blocks as multiprocessors. Tiles are numbered so that neighbours share keys and values: some heads
//! (a section) at a time, of a section the last rows of every head first, which see most keys if causal. Blocks take
//! tiles in rounds, forwards and backwards in turn: who had the longest of a round has the shortest of the next.
//! (Always forwards, the first blocks had 17 % more than their share: 595 instead of 700 TFLOP/s, causal, 8192 keys.)
//! FlashAttention-3 draws tiles from a counter in memory instead, which needs one, and a launch to reset it.
use crate::parts::args::{ProblemVals, kernel_args};
use crate::parts::work::Work;
use signflash_ptx::{Cta, U32, Val, Var};

kernel_args! {
    /// How tiles are numbered.
    ScheduleArgs / ScheduleVals {
        /// Tiles in all.
        tiles: u32,
        /// Pairs of batch and head.
        heads_total: u32,
        /// Of which a section has so many.
        heads_per_section: u32,
    }
}

/// A block's way through the tiles.
#[derive(Debug)]
pub(crate) struct Schedule<'k> {
    args: ScheduleVals<'k>,
    /// Tiles of one head.
    blocks: Val<'k, U32>,
    num_heads: Val<'k, U32>,
    next: Var<'k, U32>,
    /// The sum of this tile's number and that of the block's next.
    both: Var<'k, U32>,
    two_rounds: Val<'k, U32>,
}

impl<'k> Schedule<'k> {
    #[track_caller]
    pub(crate) fn new(cta: Cta<'k>, args: ScheduleVals<'k>, problem: &ProblemVals<'k>, rows: u32) -> Self {
        Schedule {
            args,
            blocks: problem.query_tiles(rows),
            num_heads: problem.num_heads,
            next: cta.index().var(),
            both: (cta.count() * 2 - 1).var(),
            two_rounds: cta.count() * 2,
        }
    }

    /// Whether there is a tile left.
    #[track_caller]
    pub(crate) fn has_more(&self) -> Val<'k, signflash_ptx::Pred> {
        self.next.get().lt(self.args.tiles)
    }

    /// This tile; the next call gives the next.
    #[track_caller]
    pub(crate) fn take(&self) -> Work<'k> {
        let tile = self.next.get();
        let both = self.both.get();
        self.next.set(both - tile);
        self.both.set(both + self.two_rounds);
        let per_section = self.args.heads_per_section * self.blocks;
        let section = tile / per_section;
        let first_head = section * self.args.heads_per_section;
        let heads = self.args.heads_per_section.min(self.args.heads_total - first_head);
        let rest = tile - section * per_section;
        let rank = rest / heads;
        let pair = first_head + (rest - rank * heads);
        let batch = pair / self.num_heads;
        Work { batch, head: pair - batch * self.num_heads, block: self.blocks - 1 - rank }
    }
}
