//! How many tiles a problem has, and where they lie: what kernels compute for themselves, for whom launches them.
use crate::call::TooManyBlocks;
use crate::config::{BandKind, HopperKeysForm};
use crate::gpu::Gpu;
use crate::overlays::are_by_query;
use crate::packed::most_tiles;
use crate::sm90::ScheduleArgs;
use signflash_core::{Problem, Span};

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
/// one on, which crosses them. Between two diagonals most tiles are alike, unless these are far from each other.
pub(crate) fn is_triangle(problem: &Problem) -> bool {
    let band = problem.visibility();
    let keys_of = |query: i64| {
        let Span { begin, end } = band.keys_of(query);
        (end - begin).max(0)
    };
    let end = band.queries - 1;
    let [first, third, two_thirds, last] = [0, end / 3, end - end / 3, end].map(keys_of);
    match BandKind::of(problem.sides()) {
        BandKind::Full => false,
        BandKind::Right => first != last,
        // Over a third of the queries, at least.
        BandKind::Both => (first < third && third < last) || (first > two_thirds && two_thirds > last),
    }
}

/// How tiles of so many queries are shared out among Hopper's blocks, and how many blocks that takes.
pub(crate) fn schedule(
    problem: &Problem,
    rows: u32,
    triangle: bool,
    (gpu, blocks_each): (Gpu, u64),
) -> Result<(ScheduleArgs, u64), TooManyBlocks> {
    let blocks = blocks_each * u64::from(gpu.sm_count);
    let (heads, tiles) = (heads(problem), query_tiles(problem, rows));
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
    let window = BandKind::of(problem.sides()) == BandKind::Both;
    if are_by_query(problem) && problem.shape().batch > 1 {
        // All sequences' blocks that may read the same part of a bias run at once, so that memory is read once for them.
        return (problem.shape().batch * if form.ordered { 4 } else { 1 }) as u32;
    }
    match (form.ordered, is_triangle(problem)) {
        // A block comes a step's time behind the next one: the fewer of a head run at once, the less they wait.
        (true, _) if window => 32,
        (false, false) => 1,
        (false, true) => blocks(gpu.sm_count),
        (true, false) => blocks(2 * gpu.sm_count).max(8),
        (true, true) => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HeadDims, Product};
    use crate::tables::hopper;
    use signflash_core::{Shape, Window};

    fn triangle(queries: usize, keys: usize, sides: [Option<usize>; 2], diagonal: Option<i64>) -> bool {
        let shape = Shape::new(1, queries, keys).heads(1, 1).head_dim(64);
        let problem = Problem::builder(shape).window(sides[0], sides[1]);
        let problem = diagonal.map_or(problem.clone(), |diagonal| problem.diagonal(diagonal));
        is_triangle(&problem.build().unwrap())
    }

    #[test]
    fn tiles_differ_where_one_diagonal_crosses_them_or_two_that_are_far_apart() {
        let causal = |diagonal| triangle(1000, 1000, [None, Some(0)], diagonal);
        assert!(causal(None) && causal(Some(-900)) && causal(Some(900)));
        // It crosses no query: all keys are seen by all, or by none.
        assert!(!causal(Some(-1000)) && !causal(Some(1000)) && !causal(Some(-5000)));
        assert!(!triangle(1000, 1000, [None; 2], None) && triangle(1000, 1000, [Some(5), None], None));
        let window = |left, right| triangle(1200, 1200, [Some(left), Some(right)], None);
        assert_eq!([100, 380, 500, 1000].map(|left| window(left, 0)), [false, false, true, true]);
        assert_eq!([100, 500, 1000].map(|right| window(0, right)), [false, true, true]);
        assert!(!window(300, 300), "both ends are short");
    }

    #[test]
    fn as_many_heads_alternate_as_have_blocks_at_once() {
        let at_once = |seqlen, window: Window, deterministic| {
            let (batch, num_heads, head_dim) = (1, 8, 128);
            let shape = Shape::new(batch, seqlen, seqlen).heads(num_heads, 8).head_dim(head_dim);
            let problem = Problem::builder(shape).window(window.left, window.right).build().unwrap();
            heads_at_once(
                &problem,
                &hopper::keys(
                    HeadDims { q: 128, v: 128 },
                    (Product::Scaled, false, false),
                    (false, deterministic),
                    hopper::Walk::of(&problem),
                ),
                Gpu::HOPPER,
            )
        };
        assert_eq!(
            [2, 2048, 8192, 16384].map(|seqlen| at_once(seqlen, Window::CAUSAL, false)),
            [128, 8, 2, 1]
        );
        assert_eq!([1, 2048, 8192].map(|seqlen| at_once(seqlen, Window::FULL, true)), [256, 16, 8]);
        assert_eq!((at_once(2048, Window::FULL, false), at_once(2048, Window::CAUSAL, true)), (1, 32));
        let window = |left| Window { left: Some(left), right: Some(0) };
        assert_eq!([256, 2000].map(|left| at_once(2048, window(left), false)), [1, 8]);
        assert_eq!([256, 2000].map(|left| at_once(2048, window(left), true)), [32, 32]);
    }
}
