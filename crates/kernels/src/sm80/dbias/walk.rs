//! Which tile of a bias a block owns, and its walk over what shares it.
use super::{Block, DbiasVals};
use crate::config::{Common, PortableForm};
use crate::parts::args::ProblemVals;
use crate::parts::sequence::Sequence;
use crate::parts::visibility::Sight;
use signflash_ptx::{Cta, Pred, S32, U32, Val, Var};

/// A block's tile.
pub(super) struct Own<'k> {
    pub(super) key_tile: Val<'k, U32>,
    /// Of the first tile of queries that it walks over: its only one, unless all queries have the same bias.
    pub(super) query_tile: Val<'k, U32>,
    pub(super) head: Val<'k, U32>,
    pub(super) batch: Val<'k, U32>,
    /// Before the tensor's first, if a shard starts there.
    pub(super) first_key: Val<'k, U32>,
    /// Behind the last sequence, and the last head, of those that share it.
    end_sequence: Val<'k, U32>,
    end_head: Val<'k, U32>,
    /// Whether it is the bias of all queries.
    per_key: bool,
}

impl<'k> Own<'k> {
    /// This block of the grid.
    pub(super) fn locate(
        cta: Cta<'k>,
        common: &Common,
        form: &PortableForm,
        problem: &ProblemVals<'k>,
        args: &DbiasVals<'k>,
    ) -> Self {
        let per_key = common.scores.overlays.bias.is_some_and(|bias| bias.per_key);
        let key_tiles = (args.dbias.columns + problem.column_shift + (form.step - 1)) / form.step;
        let (above, key_tile) = split(cta.index(), key_tiles);
        let (above, query_tile) = match per_key {
            true => (above, cta.threads().u32(0)),
            false => split(above, (args.dbias.rows + problem.row_shift + (form.rows() - 1)) / form.rows()),
        };
        let (batch, head) = split(above, args.bias_heads);
        let end = |own: Val<'k, U32>, of_bias: Val<'k, U32>, all| of_bias.eq(1).select(all, own + 1);
        Own {
            key_tile,
            query_tile,
            head,
            batch,
            first_key: key_tile * form.step - problem.column_shift,
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
pub(super) struct Walk<'k> {
    tile: Var<'k, U32>,
    head: Var<'k, U32>,
    sequence: Var<'k, U32>,
}

/// What is there.
pub(super) struct At<'k> {
    pub(super) sequence: Sequence<'k>,
    pub(super) head: Val<'k, U32>,
    /// The tile of queries, and its first; before the tensor's first, if a shard starts there.
    pub(super) tile: Val<'k, U32>,
    pub(super) first_row: Val<'k, U32>,
    pub(super) sight: Sight<'k>,
    /// Whether any of its queries sees any of the block's keys, and whether not all see all.
    pub(super) seen: Val<'k, Pred>,
    pub(super) is_edge: Val<'k, Pred>,
}

impl<'k> Walk<'k> {
    /// At the beginning.
    pub(super) fn new(block: &Block<'_, 'k>) -> Self {
        let Own { query_tile, head, batch, .. } = &block.own;
        Walk { tile: query_tile.var(), head: head.var(), sequence: batch.var() }
    }

    /// Whether it is at a place.
    pub(super) fn more(&self, block: &Block<'_, 'k>) -> Val<'k, Pred> {
        self.sequence.get().lt(block.own.end_sequence)
    }

    fn sequence(&self, block: &Block<'_, 'k>) -> Sequence<'k> {
        let number = self.sequence.get();
        match &block.packed {
            None => Sequence::nth(&block.problem, number),
            Some(matrices) => matrices.sequence(block.cta.threads(), &block.problem, number),
        }
    }

    /// What is at its place, of which there must be one.
    pub(super) fn at(&self, block: &Block<'_, 'k>) -> At<'k> {
        let Block { cta, form, problem, own, .. } = block;
        let (t, sequence, tile) = (cta.threads(), self.sequence(block), self.tile.get());
        let first_row = tile * form.rows() - problem.row_shift;
        let range = block.overlays.range(t, sequence);
        let sight = Sight::new(t, problem, sequence, block.scores.band).within(range);
        let keys = sight.key_tiles(first_row, form.rows(), form.step);
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
    pub(super) fn advance(&self, block: &Block<'_, 'k>) {
        let Own { head, end_head, per_key, .. } = &block.own;
        let next_head = || {
            let next = self.head.get() + 1;
            let wraps = next.eq(*end_head);
            self.head.set(wraps.select(*head, next));
            self.sequence.set(self.sequence.get() + wraps.select(1u32, 0u32));
        };
        if !per_key {
            return next_head();
        }
        let rows = block.form.rows();
        let last = (self.sequence(block).seqlen_q + block.problem.row_shift).max(1) - 1;
        let at_last = (last / rows).le(self.tile.get());
        self.tile.set(at_last.select(block.cta.threads().u32(0), self.tile.get() + 1));
        block.cta.when(at_last, |_| next_head());
    }
}
