//! How many tiles a problem has, and where they lie: what kernels compute for themselves, for whom launches them.
use crate::call::TooManyBlocks;
use crate::config::HopperKeysForm;
use crate::gpu::Gpu;
use crate::packed::most_tiles;
use crate::sm90::ScheduleArgs;
use signflash_core::Problem;

/// Rows before the tensor in its first tile of 16.
pub(crate) fn row_shift(problem: &Problem) -> u32 {
    problem.keep_rule().map_or(0, |rule| (rule.first_row() % 16) as u32)
}

/// Columns before the tensor in its first tile of 32.
pub(crate) fn column_shift(problem: &Problem) -> u32 {
    problem.keep_rule().map_or(0, |rule| (rule.first_column() % 32) as u32)
}

/// Query heads of all batches.
pub(crate) fn heads(problem: &Problem) -> u64 {
    (problem.shape().batch * problem.shape().num_heads) as u64
}

fn heads_k(problem: &Problem) -> u64 {
    (problem.shape().batch * problem.shape().num_heads_k) as u64
}

/// Packed sequences, and one of what is left over behind the last, if sequences are packed.
pub(crate) fn packed_sequences(problem: &Problem) -> Option<u64> {
    problem.is_packed().then(|| problem.sequence_count() as u64 + 1)
}

/// Tiles of so many queries, of one head. There is one even if there are no queries but rows before them. Of packed
/// sequences there may be fewer.
pub(crate) fn query_tiles(problem: &Problem, rows: u32) -> u64 {
    let seqlen_q = problem.shape().seqlen_q as u64;
    match packed_sequences(problem) {
        None => (seqlen_q + u64::from(row_shift(problem))).div_ceil(rows.into()),
        Some(sequences) => most_tiles(seqlen_q, rows, sequences),
    }
}

/// Tiles of so many keys, of one head, likewise.
pub(crate) fn key_tiles(problem: &Problem, keys: u32) -> u64 {
    let seqlen_k = problem.shape().seqlen_k as u64;
    match packed_sequences(problem) {
        None => (seqlen_k + u64::from(column_shift(problem))).div_ceil(keys.into()),
        Some(sequences) => most_tiles(seqlen_k, keys, sequences),
    }
}

/// Blocks that own so many queries each.
pub(crate) fn query_blocks(problem: &Problem, rows: u32) -> u64 {
    if problem.shape().seqlen_q == 0 { 0 } else { heads(problem) * query_tiles(problem, rows) }
}

/// Blocks that own so many keys each.
pub(crate) fn key_blocks(problem: &Problem, keys: u32) -> u64 {
    if problem.shape().seqlen_k == 0 { 0 } else { heads_k(problem) * key_tiles(problem, keys) }
}

/// Rows of a head's statistics: whole steps of any kernel.
pub(crate) fn stat_rows(problem: &Problem) -> u64 {
    let step = crate::rows::statistics::STEP;
    query_tiles(problem, step) * u64::from(step)
}

/// Whether tiles differ in length, from one end of the queries to the other: they see keys up to a diagonal, or from
/// one on. Between two diagonals all tiles are alike.
pub(crate) fn is_triangle(problem: &Problem) -> bool {
    let band = problem.visibility();
    band.left.is_some() != band.right.is_some()
}

/// How tiles of so many queries are shared out among Hopper's blocks, and how many blocks that takes.
pub(crate) fn schedule(
    problem: &Problem,
    rows: u32,
    triangle: bool,
    gpu: Gpu,
) -> Result<(ScheduleArgs, u64), TooManyBlocks> {
    let (heads, tiles, blocks) = (heads(problem), query_tiles(problem, rows), gpu.sm_count.into());
    let schedule = ScheduleArgs::new(heads, tiles, triangle, blocks);
    let schedule = schedule.ok_or(TooManyBlocks { blocks: heads * tiles })?;
    Ok((schedule, blocks.min(schedule.units.into())))
}

/// How many key heads' blocks alternate in the grid of Hopper's pass over keys.
///
/// More of them: blocks that add in order wait less for each other; in a triangle, where a head's first blocks have
/// the most to do, the last ones to start are short. Fewer: more of what they read is in the second-level cache.
/// `docs/hopper-backward.md` has what was measured.
pub(crate) fn heads_at_once(problem: &Problem, form: &HopperKeysForm, gpu: Gpu) -> u32 {
    let tiles = key_tiles(problem, form.keys).clamp(1, u32::MAX.into()) as u32;
    // A power of two, of which whole groups are left more often.
    let blocks = |count: u32| 1 << (count / tiles).max(1).ilog2();
    match (form.ordered, is_triangle(problem)) {
        (false, false) => 1,
        (false, true) => blocks(gpu.sm_count),
        (true, false) => blocks(2 * gpu.sm_count).max(8),
        (true, true) => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::hopper;
    use signflash_core::Shape;

    #[test]
    fn as_many_heads_alternate_as_have_blocks_at_once() {
        let at_once = |seqlen, causal, deterministic| {
            let (batch, num_heads, head_dim) = (1, 8, 128);
            let shape = Shape::new(batch, seqlen, seqlen).heads(num_heads, 8).head_dim(head_dim);
            let problem = Problem::builder(shape).causal(causal).build().unwrap();
            heads_at_once(&problem, &hopper::keys(128, false, deterministic), Gpu::HOPPER)
        };
        assert_eq!([1, 2048, 8192, 16384].map(|seqlen| at_once(seqlen, true, false)), [128, 8, 2, 1]);
        assert_eq!([1, 2048, 8192].map(|seqlen| at_once(seqlen, false, true)), [256, 16, 8]);
        assert_eq!((at_once(2048, false, false), at_once(2048, true, true)), (1, 32));
    }
}
