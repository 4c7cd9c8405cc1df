//! Where packed sequences begin, as the GPU reads it.
use signflash_ptx::{GlobalAddr, Thread, U32, U64, Val};

/// The queries of all sequences, or the keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Starts<'k> {
    /// Where each begins and the last ends: `sequences + 1` numbers.
    pub(crate) cu_seqlens: Val<'k, U64>,
    /// Rows of the tensor.
    pub(crate) total: Val<'k, U32>,
    pub(crate) sequences: Val<'k, U32>,
}

/// Rows of a sequence, which are next to each other in a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch<'k> {
    pub(crate) first: Val<'k, U32>,
    pub(crate) len: Val<'k, U32>,
}

impl<'k> Starts<'k> {
    /// Those of a sequence; of number `sequences`, those behind the last. Nothing reaches behind the tensor, whatever the
    /// numbers are.
    #[track_caller]
    pub(crate) fn of(&self, t: Thread<'k>, sequence: Val<'k, U32>) -> Stretch<'k> {
        let at = |index: Val<'k, U32>| {
            let place = GlobalAddr::new(index.widen().mul_add(4u64, self.cu_seqlens));
            let [number] = t.load_constant::<U32, 1>(place);
            number.min(self.total)
        };
        let (first, is_last) = (at(sequence), sequence.eq(self.sequences));
        let end = is_last.select(self.total, at((sequence + 1).min(self.sequences)));
        Stretch { first, len: end.max(first) - first }
    }
}
