//! Sequences of different lengths, one behind the other in their tensors.
//!
//! Where they begin is known on the GPU alone. A small kernel ([`list`]) reads it and lists the tiles of all sequences,
//! in the order in which they should begin; a block of any other kernel finds in its record of 32 bytes all that it has
//! to know. The host knows how many tiles there are at most: what a launch has of blocks beyond them ends at once.
//!
//! What the kernels tell each other of rows lies in whole tiles, too, and where is a formula, not a sum over the
//! sequences before ([`first_tile`]).
pub(crate) mod list;
pub(crate) mod lists;
pub(crate) mod matrices;
mod starts;

use crate::parts::args::{ProblemVals, kernel_args};
use crate::parts::sequence::{Begins, Sequence};
use signflash_ptx::{GlobalAddr, Thread, U32, Val};

/// Bytes of a record. The first of a list has the number of the others in its first word.
pub(crate) const RECORD_BYTES: u32 = 32;

kernel_args! {
    /// A list of tiles, for a kernel whose blocks own them.
    PackedArgs / PackedVals {
        /// Its address, a multiple of 16.
        list: u64,
        /// Sequences, and one of what is left over behind the last.
        sequences: u32,
        /// How many tiles of the kernel a tile of the list is: 1, or 2, of which one sees the more the less the other
        /// does.
        tiles_each: u32,
    }
}

/// A tile of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListedTile<'k> {
    pub(crate) sequence: Sequence<'k>,
    /// Its number in the sequence.
    pub(crate) number: Val<'k, U32>,
}

impl<'k> PackedVals<'k> {
    /// How many tiles are listed.
    #[track_caller]
    pub(crate) fn count(&self, t: Thread<'k>) -> Val<'k, U32> {
        let [count] = t.load_constant::<U32, 1>(GlobalAddr::new(self.list));
        count
    }

    /// One of them, which must be there.
    #[track_caller]
    pub(crate) fn tile(
        &self,
        t: Thread<'k>,
        problem: &ProblemVals<'k>,
        index: Val<'k, U32>,
    ) -> ListedTile<'k> {
        let record = GlobalAddr::new((index + 1).widen().mul_add(u64::from(RECORD_BYTES), self.list));
        let [sequence, number, first_q, seqlen_q] = t.load_constant::<U32, 4>(record);
        let [first_k, seqlen_k] = t.load_constant::<U32, 2>(record.at(16));
        let begins = Begins { first_q, first_k, total_q: problem.seqlen_q, count: self.sequences };
        let sequence = Sequence { number: sequence, seqlen_q, seqlen_k, packed: Some(begins) };
        ListedTile { sequence, number }
    }
}

/// How many tiles of `rows` rows there are of all sequences, at most, whatever their lengths: `rows` of all of them and
/// `sequences` in number, one of what is left over among them.
pub(crate) fn most_tiles(total: u64, rows: u32, sequences: u64) -> u64 {
    total / u64::from(rows) + sequences
}
