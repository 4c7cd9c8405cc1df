//! What is zeroed before a backward's pass over keys adds to it or counts with it, and by whom.
use super::Plan;
use crate::call::Task;
use crate::choose::BackwardChoice;
use crate::config::{DqKernel, KeysKernel};
use crate::rows::packed_delta::ClearArgs;
use crate::workspace::Workspace;

impl BackwardChoice<'_> {
    /// Zeroes sums and counters, but for those that the statistics' kernel zeroes, and sums that the pass over keys begins.
    pub(super) fn zero_task(&self, plan: &mut Plan<'_>) {
        let clear = self.clear(plan);
        let Workspace { dq_sums, counters, bytes, .. } = self.workspace;
        let first = if clear.is_some_and(|clear| clear.counter != 0) { dq_sums } else { counters };
        let begins = matches!(self.keys, KeysKernel::Hopper(_, form) if form.begins_sums);
        let end = if begins || clear.is_some_and(|clear| clear.dq_sums != 0) { dq_sums } else { bytes };
        if matches!(self.dq, DqKernel::FromSums(..)) && end > first {
            plan.tasks.push(Task::Zero { ptr: self.call.workspace + first, bytes: end - first });
        }
    }

    /// What the statistics' kernel zeroes: of packed sequences sums and the number of tiles that have been begun.
    pub(super) fn clear(&self, plan: &Plan<'_>) -> Option<ClearArgs> {
        plan.lists.as_ref()?;
        let several = matches!(self.keys, KeysKernel::Hopper(_, form) if form.persistent);
        let counter = if several { self.counters() } else { 0 };
        Some(match self.dq {
            DqKernel::FromSums(rows, dq_step, _) => {
                let dq_row_bytes = 4 * rows.operands.head_dim;
                ClearArgs { dq_sums: self.dq_sums(), dq_step, dq_row_bytes, counter }
            }
            DqKernel::Queries(..) => ClearArgs { dq_sums: 0, dq_step: 1, dq_row_bytes: 0, counter },
        })
    }
}
