//! Where a walk over queries is: all tiles of a head, then those of the next head of the group.
use super::args::ProblemVals;
use super::visibility::QueryTiles;
use signflash_ptx::{Pred, Thread, U32, Val, Var, Warpgroup};

/// A block of keys' walk over the queries that see some of them.
#[derive(Debug)]
pub(crate) struct Cursor<'k> {
    tiles: QueryTiles<'k>,
    /// Query heads of a key head.
    heads: Val<'k, U32>,
    /// The tile of queries.
    pub(crate) step: Var<'k, U32>,
    /// Heads of the group that are done.
    pub(crate) member: Var<'k, U32>,
}

impl<'k> Cursor<'k> {
    /// At the beginning.
    #[track_caller]
    pub(crate) fn new(t: Thread<'k>, problem: &ProblemVals<'k>, tiles: QueryTiles<'k>) -> Self {
        Cursor { tiles, heads: problem.group_size, step: tiles.begin.var(), member: t.u32(0).var() }
    }

    /// Whether it is at a tile.
    #[track_caller]
    pub(crate) fn more(&self) -> Val<'k, Pred> {
        self.member.get().lt(self.heads) & self.tiles.begin.lt(self.tiles.end)
    }

    /// Goes on.
    #[track_caller]
    pub(crate) fn advance(&self) {
        let next = self.step.get() + 1;
        let wraps = next.eq(self.tiles.end);
        self.step.set(wraps.select(self.tiles.begin, next));
        self.member.set(self.member.get() + wraps.select(1u32, 0u32));
    }

    /// Goes on as long as there is a tile of which this holds.
    #[track_caller]
    pub(crate) fn walk_while(
        &self,
        wg: Warpgroup<'k>,
        holds: impl FnOnce() -> Val<'k, Pred>,
        body: impl FnOnce(),
    ) {
        wg.while_(
            || self.more() & holds(),
            |_| {
                body();
                self.advance();
            },
        );
    }

    /// Goes all the way.
    #[track_caller]
    pub(crate) fn walk(&self, wg: Warpgroup<'k>, body: impl FnOnce()) {
        wg.while_(
            || self.more(),
            |_| {
                body();
                self.advance();
            },
        );
    }
}
