//! Sinks: one more score of every row of a head, which has no value.
use crate::parts::args::kernel_args;
use crate::parts::sequence::Sequence;
use signflash_ptx::{F32, GlobalAddr, Thread, U32, Val};

kernel_args! {
    /// Where they are.
    SinksArgs / SinksVals {
        /// (num_heads) f32.
        sinks: u64,
    }
}

impl<'k> SinksVals<'k> {
    /// That of a head; what is left over behind the last of packed sequences has none.
    #[track_caller]
    pub(crate) fn of_head(&self, t: Thread<'k>, sequence: Sequence<'k>, head: Val<'k, U32>) -> Val<'k, F32> {
        let from = GlobalAddr::new(head.widen().mul_add(4u64, self.sinks));
        let [sink] = t.load_constant::<F32, 1>(from);
        match sequence.packed {
            None => sink,
            Some(begins) => sequence.number.lt(begins.count - 1).select(sink, t.f32(f32::NEG_INFINITY)),
        }
    }
}
