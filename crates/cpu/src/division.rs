//! How large units of work are.

use crate::call::BLOCK_KEYS;
use crate::sequence::{Sequence, Sequences};
use signflash_core::{Problem, Shape};

/// The sum of something over all sequences.
pub(crate) fn sum_of_sequences(problem: &Problem, of: impl Fn(&Sequence) -> f64) -> f64 {
    let sequences = Sequences::of(problem);
    match (problem.is_packed(), sequences.count()) {
        (true, _) => sequences.iter().map(|sequence| of(&sequence)).sum(),
        (false, 0) => 0.0,
        (false, count) => count as f64 * of(&sequences.at(0)), // all are alike
    }
}

/// Floating-point operations of a pass of `each` per score and element of head_dim.
pub(crate) fn operations(problem: &Problem, each: f64) -> f64 {
    let Shape { num_heads, head_dim, head_dim_v, .. } = *problem.shape();
    let scores = sum_of_sequences(problem, |sequence| {
        sequence.place.seqlen_q as f64 * sequence.keys_seen_by(1) as f64
    });
    scores * num_heads as f64 * (head_dim + head_dim_v) as f64 / 2.0 * each
}

/// The longest sequence's queries or keys, as `of` says.
fn longest(problem: &Problem, of: impl Fn(&signflash_core::Sequence) -> usize) -> usize {
    let sequences = problem.sequences().take(if problem.is_packed() { usize::MAX } else { 1 });
    sequences.map(|sequence| of(&sequence)).max().unwrap_or(0)
}

/// Queries per unit: many, so that keys are read seldom, and seldom packed for tiles; few, so that all threads have work, and
/// what a tile gathers stays in the second-level cache. Results do not depend on it, because every row is computed alike in any tile.
pub(crate) fn forward_tile_rows(problem: &Problem, threads: usize, tiles: bool) -> usize {
    let units = |rows: usize| {
        let tiles = sum_of_sequences(problem, |sequence| sequence.place.seqlen_q.div_ceil(rows) as f64);
        tiles * problem.shape().num_heads as f64
    };
    let longest = longest(problem, |sequence| sequence.seqlen_q);
    let Shape { head_dim, head_dim_v, .. } = *problem.shape();
    let mut rows = if tiles && head_dim.max(head_dim_v) <= 128 { 512 } else { 256 };
    while rows > 64 && (units(rows) < (4 * threads) as f64 || rows / 2 >= longest) {
        rows /= 2;
    }
    rows
}

/// Keys per unit of the backward. Many, so that a tile of queries is prepared seldom and its share of dq seldom added
/// (f32, head_dim 128, length 2048 on Zen 5: 69, 76, 83, 86 % of the peak with 128, 256, 512, 1024 keys); few enough
/// that there are some 32 units to share. By the lengths and the instruction set alone, since dq is summed chunk by chunk:
/// tiles multiply so fast that what a chunk sums has to stay in the second-level cache.
pub(crate) fn chunk_keys(problem: &Problem, tiles: bool) -> usize {
    let shape = problem.shape();
    let most = (131_072 / shape.head_dim.max(shape.head_dim_v).next_multiple_of(32)).clamp(512, 1024)
        / BLOCK_KEYS
        * BLOCK_KEYS;
    let chunks = sum_of_sequences(problem, |sequence| sequence.place.seqlen_k.div_ceil(most) as f64);
    let keys = match chunks * (shape.num_heads_k as f64) < 32.0 {
        _ if tiles => 256,
        true => most / 2,
        false => most,
    };
    keys.min(longest(problem, |sequence| sequence.seqlen_k).next_multiple_of(BLOCK_KEYS)).max(BLOCK_KEYS)
}
