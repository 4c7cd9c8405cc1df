//! The sequences of a problem: where their rows lie in the tensors, and what their queries see.

use crate::pack::Stretch;
use crate::tile::Tile;
use signflash_core::{Problem, Visibility};

/// One sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    /// Its first index in the tensors.
    pub(crate) batch: usize,
    /// Where along the tensors' second dimension its queries begin.
    pub(crate) first_q: usize,
    /// And its keys.
    pub(crate) first_k: usize,
    /// Queries.
    pub(crate) len_q: usize,
    /// Keys.
    pub(crate) len_k: usize,
    /// As which batch of the problem it draws what is dropped.
    pub(crate) stream: usize,
    /// Which of its keys its queries see.
    pub(crate) visibility: Visibility<i64>,
}

impl Sequence {
    /// Where query `row` of a head lies in q, out, dout and dq.
    pub(crate) fn query(&self, row: usize, head: usize) -> [usize; 3] {
        [self.batch, self.first_q + row, head]
    }

    /// Where query `row` of a head lies in probs; its keys lie side by side.
    pub(crate) fn probs_row(&self, row: usize, head: usize) -> [usize; 3] {
        [self.batch, head, self.first_q + row]
    }

    /// Where a key of a key head lies in k, v, dk and dv.
    pub(crate) fn key(&self, key: usize, head_k: usize) -> [usize; 3] {
        [self.batch, self.first_k + key, head_k]
    }

    /// The queries of a tile. Lanes that stand for none are zeros.
    pub(crate) fn queries(&self, head: usize, tile: &Tile) -> Stretch {
        let Tile { first, before, count, rows, .. } = *tile;
        Stretch { first: self.query(first, head), before, count, total: rows }
    }

    /// The keys from `first` on, at most `most` of them. Micro-tiles and pairs are whole: what is missing is zeros.
    pub(crate) fn keys(&self, head_k: usize, first: usize, most: usize) -> Stretch {
        let count = (self.len_k - first).min(most);
        Stretch { first: self.key(first, head_k), before: 0, count, total: count.next_multiple_of(16) }
    }
}

/// All sequences of a call.
#[derive(Clone, Copy)]
pub(crate) enum Sequences<'a> {
    /// Those of a problem.
    Of(&'a Problem),
    /// Those of a test: bands and places that no problem has yet.
    #[cfg(test)]
    These(&'a [Sequence]),
}

impl Sequences<'_> {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Of(problem) => problem.shape().batch,
            #[cfg(test)]
            Self::These(sequences) => sequences.len(),
        }
    }

    /// The `index`-th.
    pub(crate) fn at(&self, index: usize) -> Sequence {
        match self {
            Self::Of(problem) => Sequence {
                batch: index,
                first_q: 0,
                first_k: 0,
                len_q: problem.shape().seqlen_q,
                len_k: problem.shape().seqlen_k,
                stream: index,
                visibility: problem.visibility(),
            },
            #[cfg(test)]
            Self::These(sequences) => sequences[index],
        }
    }

    /// One after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Sequence> + Clone {
        (0..self.count()).map(|index| self.at(index))
    }
}
