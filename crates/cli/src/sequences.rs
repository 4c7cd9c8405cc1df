//! A problem's rows, by the sequences that they belong to.

use signflash_core::{Problem, Sequence};
use std::ops::Range;

/// The sequences that have any of these rows of a batch, each with those of its own queries, counted from its first.
pub fn among(
    problem: &Problem,
    batch: usize,
    rows: Range<usize>,
) -> impl Iterator<Item = (Sequence, Range<usize>)> {
    problem.sequences().filter_map(move |sequence| {
        let (first, end) = (sequence.first_q, sequence.first_q + sequence.seqlen_q);
        let own = rows.start.max(first)..rows.end.min(end);
        (sequence.batch == batch && !own.is_empty()).then(|| (sequence, own.start - first..own.end - first))
    })
}

/// The keys that a query of a sequence sees, as columns of the tensors that hold it.
pub fn columns(problem: &Problem, sequence: &Sequence, query: usize) -> Range<usize> {
    let keys = problem.visibility_in(sequence).keys_of(query as i64).positions();
    keys.start + sequence.first_k..keys.end + sequence.first_k
}
