//! Sinks: one more score of every row of a head, which has no value.
use super::args::kernel_args;
use super::scores::ScoreStage;
use super::sequence::Sequence;
use super::softmax::{RowResult, THREAD_ROWS, finite};
use signflash_ptx::{F32, GlobalAddr, Thread, U32, Val, Var};
use std::array::from_fn;
use std::f32::consts::{LN_2, LOG2_E};

kernel_args! {
    /// Where they are.
    SinksArgs / SinksVals {
        /// (num_heads) f32.
        sinks: u64,
    }
}

impl<'k> SinksVals<'k> {
    /// That of a head; what is left over behind the last of packed sequences has none.
    pub(crate) fn of_head(&self, t: Thread<'k>, sequence: Sequence<'k>, head: Val<'k, U32>) -> Val<'k, F32> {
        let from = GlobalAddr::new(head.widen().mul_add(4u64, self.sinks));
        let [sink] = t.load_constant::<F32, 1>(from);
        match sequence.packed {
            None => sink,
            Some(begins) => sequence.number.lt(begins.count - 1).select(sink, t.f32(f32::NEG_INFINITY)),
        }
    }
}

impl<'k> RowResult<'k> {
    /// The sink counts as a score that has no value. It may be larger than all others, which then are relative to it; and
    /// it alone makes the lse of a row without keys.
    pub(crate) fn with_sink(
        (t, stage): (Thread<'k>, ScoreStage<'k>),
        max: &[Var<'k, F32>; THREAD_ROWS],
        sum: [Val<'k, F32>; THREAD_ROWS],
        sink: Val<'k, F32>,
    ) -> Self {
        let rows: [_; THREAD_ROWS] = from_fn(|row| {
            let own = max[row].get() * (stage.factor() * LN_2);
            let top = finite(t, own.max(sink));
            let [of_keys, of_sink] = [own, sink].map(|x| ((x - top) * LOG2_E).ex2());
            let total = sum[row].mul_add(of_keys, of_sink);
            let none = total.eq(0.0);
            let inverse = none.select(t.f32(0.0), of_keys * total.rcp());
            (inverse, none.select(t.f32(f32::NEG_INFINITY), total.lg2().mul_add(LN_2, top)))
        });
        RowResult { inverse: rows.map(|row| row.0), lse: rows.map(|row| row.1) }
    }
}
