//! The dropout mask, written out to be looked at: a byte an entry.

use crate::error::CallError;
use crate::foreign;
use crate::joined::Declared;
use crate::lengths::Lengths;
use crate::pool;
use crate::settings::{RandomState, Settings};
use rayon::prelude::*;
use signflash_core::{Shape, TensorName};

/// Rows that are drawn at a time.
const ROWS: usize = 64;

/// Writes 1 where an entry is kept and 0 where it is dropped, densely, as (batch, num_heads, seqlen_q, seqlen_k).
///
/// # Errors
/// A [`CallError`] naming the argument, or that there are no threads.
///
/// # Safety
/// `to` must be the address of that many bytes, which nobody else uses.
pub unsafe fn write(
    to: u64,
    shape: [usize; 4],
    state: &RandomState,
    settings: &Settings,
) -> Result<(), CallError> {
    let [batch, num_heads, seqlen_q, seqlen_k] = shape;
    let whole = Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads).head_dim(1);
    let problem = settings.of_shape(state, whole, &Lengths::Batch, &Declared::default())?;
    let bytes = shape.into_iter().fold(1, usize::saturating_mul);
    // SAFETY: the caller's promise.
    let entries = unsafe { foreign::bytes_mut(TensorName::Probs, to, bytes) }?;
    let Some(rule) = problem.keep_rule() else {
        entries.fill(1);
        return Ok(());
    };
    if entries.is_empty() {
        return Ok(());
    }
    let fill = |(index, block): (usize, &mut [u8])| {
        let blocks = seqlen_q.div_ceil(ROWS);
        let (head, first) = (index / blocks, index % blocks * ROWS);
        let rows = first..(first + ROWS).min(seqlen_q);
        let kept = rule.keep_block(head / num_heads, head % num_heads, rows, 0..seqlen_k);
        for (i, row) in block.chunks_mut(seqlen_k).enumerate() {
            for (j, entry) in row.iter_mut().enumerate() {
                *entry = kept.keep(i, j).into();
            }
        }
    };
    pool::run(|| {
        let blocks = entries.par_chunks_mut(seqlen_q * seqlen_k).enumerate().flat_map(|(head, entries)| {
            let first = head * seqlen_q.div_ceil(ROWS);
            let blocks = entries.par_chunks_mut(ROWS * seqlen_k).enumerate();
            blocks.map(move |(index, block)| (first + index, block))
        });
        blocks.for_each(fill);
    })
}
