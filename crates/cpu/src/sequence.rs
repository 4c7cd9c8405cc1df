//! The sequences of a problem: where their rows lie in the tensors, and what their queries see.

use crate::pack::Stretch;
use crate::tile::Tile;
use signflash_core::{Problem, Visibility};

/// One sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    pub(crate) place: signflash_core::Sequence,
    /// Which of its keys its queries see.
    pub(crate) visibility: Visibility<i64>,
}

impl Sequence {
    /// The row of query `row` of a head in q, out, dout and dq.
    pub(crate) fn query(&self, row: usize, head: usize) -> [usize; 3] {
        let [batch, row, head, _] = self.place.query(row, head);
        [batch, row, head]
    }

    /// The row of a key of a key head in k, v, dk and dv.
    pub(crate) fn key(&self, key: usize, head_k: usize) -> [usize; 3] {
        let [batch, row, head_k, _] = self.place.key(key, head_k);
        [batch, row, head_k]
    }

    /// The row of query `row` of a head in probs; its keys lie side by side.
    pub(crate) fn probs_row(&self, row: usize, head: usize) -> [usize; 3] {
        let [sequence, head, row, _] = self.place.probs(row, head);
        [sequence, head, row]
    }

    /// How many keys so many neighbouring queries see at most.
    pub(crate) fn keys_seen_by(&self, queries: usize) -> usize {
        self.most(self.place.seqlen_k, queries)
    }

    /// How many queries see so many neighbouring keys at most.
    pub(crate) fn queries_that_see(&self, keys: usize) -> usize {
        self.most(self.place.seqlen_q, keys)
    }

    /// Of `all` those that `others` neighbours and a bounded band have to do with.
    fn most(&self, all: usize, others: usize) -> usize {
        match (self.visibility.left, self.visibility.right) {
            (Some(left), Some(right)) => all.min((left + right) as usize + others),
            _ => all,
        }
    }

    /// The queries of a tile. Lanes that stand for none are zeros.
    pub(crate) fn queries(&self, head: usize, tile: &Tile) -> Stretch {
        let Tile { first, before, count, rows, .. } = *tile;
        Stretch { first: self.query(first, head), before, count, total: rows }
    }

    /// The keys from `first` on, at most `most` of them. Micro-tiles and pairs are whole: what is missing is zeros.
    pub(crate) fn keys(&self, head_k: usize, first: usize, most: usize) -> Stretch {
        let count = (self.place.seqlen_k - first).min(most);
        Stretch { first: self.key(first, head_k), before: 0, count, total: count.next_multiple_of(16) }
    }
}

/// All sequences of a call.
#[derive(Clone, Copy)]
pub(crate) enum Sequences<'a> {
    /// Those of a problem; in the order of these numbers, if there are any.
    Of { problem: &'a Problem, order: &'a [u32] },
    /// Those of a test: bands and places that no problem has.
    #[cfg(feature = "inside")]
    These(&'a [Sequence]),
}

impl<'a> Sequences<'a> {
    /// In the order in which they lie in the tensors.
    pub(crate) fn of(problem: &'a Problem) -> Self {
        Self::Of { problem, order: &[] }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Of { problem, .. } => problem.sequences().len(),
            #[cfg(feature = "inside")]
            Self::These(sequences) => sequences.len(),
        }
    }

    /// The `index`-th.
    pub(crate) fn at(&self, index: usize) -> Sequence {
        match self {
            Self::Of { problem, order } => {
                let index = order.get(index).map_or(index, |&index| index as usize);
                let place = problem.sequence(index).expect("a sequence of the problem");
                Sequence { place, visibility: problem.visibility_in(&place) }
            }
            #[cfg(feature = "inside")]
            Self::These(sequences) => sequences[index],
        }
    }

    /// One after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Sequence> + Clone {
        (0..self.count()).map(|index| self.at(index))
    }
}
