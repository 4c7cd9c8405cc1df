//! The passes of a backward, cut into units of work.

use crate::backward::{self, Backward, TILE_ROWS};
use crate::entry::Kernels;
use crate::forward::{self, Scores};
use crate::partial::Partials;
use crate::references::References;
use crate::schedule;
use crate::turnstile::{TellsOfPanic, Turn};
use signflash_core::Shape;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// What rows of large lse are relative to.
pub(crate) fn references(scores: &Scores<'_>, kernels: Kernels, threads: usize, lse: &[f32]) -> References {
    let shape = scores.call.problem.shape();
    let (tiles, heads) = (scores.call.tiles(scores.tile_rows), shape.num_heads);
    let mut references = References::new(lse.len());
    let writer = references.writer(lse);
    schedule::run(
        threads,
        shape.batch * heads * tiles,
        || (kernels.forward_scratch)(scores),
        |scratch, index| {
            let (head, tile) = (index / tiles, index % tiles);
            let unit = forward::Unit { batch: head / heads, head: head % heads, tile };
            // SAFETY: the instruction set was seen available, the operands were checked, and `run` hands out a unit
            // once; units write rows of their own.
            unsafe { (kernels.references)(scores, unit, scratch, &writer) }
        },
    );
    references
}

/// The single pass: each chunk of keys gives its dk and dv and adds its share of dq in turn.
pub(crate) fn run_chunks(
    backward: &Backward<'_>,
    kernels: Kernels,
    threads: usize,
    chunks: usize,
    partials: Option<&Partials>,
) {
    let Shape { batch, num_heads_k, .. } = *backward.call.problem.shape();
    let heads = batch * num_heads_k;
    let panicked = AtomicBool::new(false);
    let steps: Vec<AtomicUsize> = (0..heads * chunks).map(|_| AtomicUsize::new(0)).collect();
    // Chunk by chunk over a set of heads, so that a chunk seldom waits for the one before it; no more heads at a time
    // than threads where each holds partial sums.
    let set = if partials.is_some() { threads.min(heads) } else { heads }.max(1);
    schedule::run(
        threads,
        heads * chunks,
        || (kernels.backward_scratch)(backward),
        |scratch, index| {
            let first = index / (set * chunks) * set;
            let in_set = set.min(heads - first);
            let within = index - first * chunks;
            let (head, chunk) = (first + within % in_set, within / in_set);
            let at = head * chunks + chunk;
            let unit = backward::Unit::Chunk {
                batch: head / num_heads_k,
                head_k: head % num_heads_k,
                chunk,
                partial: partials.map(|partials| partials.get(head)),
                turn: Turn {
                    before: (chunk > 0).then(|| &steps[at - 1]),
                    own: &steps[at],
                    panicked: &panicked,
                },
            };
            let _tells_others = TellsOfPanic(&panicked);
            // SAFETY: the instruction set was seen available, the operands were checked, and `run` hands out a unit
            // once: dk and dv rows are the unit's own, dq rows its own in its turn. The partial sums are this head's
            // until `done`.
            unsafe { (kernels.backward)(backward, unit, scratch) }
            if let Some(partials) = partials {
                partials.done(head);
            }
        },
    );
}

/// dk and dv first, then dq: two more products, and no memory that grows with a length.
pub(crate) fn run_two_passes(backward: &Backward<'_>, kernels: Kernels, threads: usize, chunks: usize) {
    let Shape { batch, num_heads, num_heads_k, .. } = *backward.call.problem.shape();
    let tiles = backward.call.tiles(TILE_ROWS);
    let dkv_units = batch * num_heads_k * chunks;
    schedule::run(
        threads,
        dkv_units + batch * num_heads * tiles,
        || (kernels.backward_scratch)(backward),
        |scratch, index| {
            let unit = if index < dkv_units {
                let (head, chunk) = (index / chunks, index % chunks);
                backward::Unit::ChunkOnly { batch: head / num_heads_k, head_k: head % num_heads_k, chunk }
            } else {
                let (head, tile) = ((index - dkv_units) / tiles, (index - dkv_units) % tiles);
                backward::Unit::Queries {
                    batch: head / num_heads,
                    head: head % num_heads,
                    tile: tiles - 1 - tile,
                }
            };
            // SAFETY: as in `run_chunks`; dq rows belong to the unit of their tile.
            unsafe { (kernels.backward)(backward, unit, scratch) }
        },
    );
}
