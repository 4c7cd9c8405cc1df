//! Which tile of a bias a block owns, and its walk over what shares it.
use super::DbiasVals;
use crate::packed::matrices::MatricesVals;
use crate::parts::args::ProblemVals;
use crate::parts::overlays::OverlayVals;
use crate::parts::sequence::Sequence;
use crate::parts::visibility::{BandVals, Sight};
use signflash_ptx::{Cta, Pred, S32, U32, Val, Var};

/// A block's tile.
pub(crate) struct Own<'k> {
    pub(crate) key_tile: Val<'k, U32>,
    /// Of the first tile of queries that it walks over: its only one, unless all queries have the same bias.
    pub(crate) query_tile: Val<'k, U32>,
    pub(crate) head: Val<'k, U32>,
    pub(crate) batch: Val<'k, U32>,
    /// Before the tensor's first, if a shard starts there.
    pub(crate) first_key: Val<'k, U32>,
    /// Behind the last sequence, and the last head, of those that share it.
    end_sequence: Val<'k, U32>,
    end_head: Val<'k, U32>,
    /// Whether it is the bias of all queries.
    per_key: bool,
}

impl<'k> Own<'k> {
    /// This block of the grid.
    pub(crate) fn locate(
        cta: Cta<'k>,
        [rows, step]: [u32; 2],
        per_key: bool,
        problem: &ProblemVals<'k>,
        args: &DbiasVals<'k>,
    ) -> Self {
        let key_tiles = (args.dbias.columns + problem.column_shift + (step - 1)) / step;
        let (above, key_tile) = split(cta.index(), key_tiles);
        let (above, query_tile) = match per_key {
            true => (above, cta.threads().u32(0)),
            false => split(above, (args.dbias.rows + problem.row_shift + (rows - 1)) / rows),
        };
        let (batch, head) = split(above, args.bias_heads);
        let end = |own: Val<'k, U32>, of_bias: Val<'k, U32>, all| of_bias.eq(1).select(all, own + 1);
        Own {
            key_tile,
            query_tile,
            head,
            batch,
            first_key: key_tile * step - problem.column_shift,
            end_sequence: end(batch, args.bias_batches, args.sequence_count),
            end_head: end(head, args.bias_heads, problem.num_heads),
            per_key,
        }
    }
}

/// Quotient and remainder.
fn split<'k>(number: Val<'k, U32>, by: Val<'k, U32>) -> (Val<'k, U32>, Val<'k, U32>) {
    let quotient = number / by;
    (quotient, number - quotient * by)
}

/// A place of the walk: tiles of queries, then heads, then sequences.
pub(crate) struct Walk<'k> {
    tile: Var<'k, U32>,
    head: Var<'k, U32>,
    sequence: Var<'k, U32>,
}

/// What is there.
pub(crate) struct At<'k> {
    pub(crate) sequence: Sequence<'k>,
    pub(crate) head: Val<'k, U32>,
    /// The tile of queries, and its first; before the tensor's first, if a shard starts there.
    pub(crate) tile: Val<'k, U32>,
    pub(crate) first_row: Val<'k, U32>,
    pub(crate) sight: Sight<'k>,
    /// Whether any of its queries sees any of the block's keys, and whether not all see all.
    pub(crate) seen: Val<'k, Pred>,
    pub(crate) is_edge: Val<'k, Pred>,
}

/// What a walk goes over.
pub(crate) struct Ground<'a, 'k> {
    pub(crate) cta: Cta<'k>,
    pub(crate) problem: &'a ProblemVals<'k>,
    pub(crate) packed: Option<&'a MatricesVals<'k>>,
    pub(crate) overlays: &'a OverlayVals<'k>,
    pub(crate) own: &'a Own<'k>,
    pub(crate) band: Option<BandVals<'k>>,
    /// Queries and keys of a tile.
    pub(crate) rows: u32,
    pub(crate) step: u32,
}

impl<'k> Walk<'k> {
    /// At the beginning.
    pub(crate) fn new(ground: &Ground<'_, 'k>) -> Self {
        let Own { query_tile, head, batch, .. } = ground.own;
        Walk { tile: query_tile.var(), head: head.var(), sequence: batch.var() }
    }

    /// Whether it is at a place.
    pub(crate) fn more(&self, ground: &Ground<'_, 'k>) -> Val<'k, Pred> {
        self.sequence.get().lt(ground.own.end_sequence)
    }

    fn sequence(&self, ground: &Ground<'_, 'k>) -> Sequence<'k> {
        let number = self.sequence.get();
        match ground.packed {
            None => Sequence::nth(ground.problem, number),
            Some(matrices) => matrices.sequence(ground.cta.threads(), ground.problem, number),
        }
    }

    /// What is at its place, of which there must be one.
    pub(crate) fn at(&self, ground: &Ground<'_, 'k>) -> At<'k> {
        let Ground { cta, problem, own, rows, step, .. } = *ground;
        let (t, sequence, tile) = (cta.threads(), self.sequence(ground), self.tile.get());
        let first_row = tile * rows - problem.row_shift;
        let range = ground.overlays.range(t, sequence);
        let sight = Sight::new(t, problem, sequence, ground.band).within(range);
        let keys = sight.key_tiles(first_row, rows, step);
        let is_row = !sequence.seqlen_q.cast::<S32>().le(first_row.cast::<S32>());
        let begin = keys.begin;
        let begins = (!begin.is_first()).then(|| begin.unsigned().le(own.key_tile));
        let ends = own.key_tile.lt(keys.end);
        let seen = begins.map_or(ends, |begins| begins & ends) & is_row;
        At {
            sequence,
            head: self.head.get(),
            tile,
            first_row,
            sight,
            seen,
            is_edge: keys.is_edge(own.key_tile),
        }
    }

    /// Goes on.
    pub(crate) fn advance(&self, ground: &Ground<'_, 'k>) {
        let Own { head, end_head, per_key, .. } = ground.own;
        let next_head = || {
            let next = self.head.get() + 1;
            let wraps = next.eq(*end_head);
            self.head.set(wraps.select(*head, next));
            self.sequence.set(self.sequence.get() + wraps.select(1u32, 0u32));
        };
        if !per_key {
            return next_head();
        }
        let rows = ground.rows;
        let last = (self.sequence(ground).seqlen_q + ground.problem.row_shift).max(1) - 1;
        let at_last = (last / rows).le(self.tile.get());
        self.tile.set(at_last.select(ground.cta.threads().u32(0), self.tile.get() + 1));
        ground.cta.when(at_last, |_| next_head());
    }
}
