//! The passes, cut into units of work.

use crate::backward::{self, Backward, BiasTiles, GradientsOf, NextChunk, Share, TILE_ROWS};
use crate::call::Call;
use crate::chunks::{self, Chunk};
use crate::entry::Kernels;
use crate::forward::{self, Forward, Scores};
use crate::partial::Partials;
use crate::references::References;
use crate::schedule;
use crate::score_stage::TableMut;
use crate::team::Crew;
use crate::turnstile::{TellsOfPanic, Turn};
use crate::units::Units;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Who computes a pass, and how.
#[derive(Clone, Copy)]
pub(crate) struct Workers {
    pub(crate) kernels: Kernels,
    pub(crate) crew: Crew,
}

/// The tiles of all query heads, as units.
struct Tiles<'a> {
    call: &'a Call<'a>,
    rows: usize,
    units: Units<'a>,
}

impl<'a> Tiles<'a> {
    fn new(call: &'a Call<'a>, rows: usize) -> Self {
        let heads = call.problem.shape().num_heads;
        let units = Units::new(call.sequences, |sequence| heads * call.tiles(sequence, rows));
        Self { call, rows, units }
    }

    fn count(&self) -> usize {
        self.units.count()
    }

    fn at(&self, unit: usize) -> forward::Unit {
        let (sequence, within) = self.units.at(unit);
        let tiles = self.call.tiles(&sequence, self.rows);
        // Later tiles of a causal problem see more keys: longest first.
        forward::Unit { sequence, head: within / tiles, tile: tiles - 1 - within % tiles }
    }
}

impl Tiles<'_> {
    /// A unit, and the one that its thread gets next where all take equally long.
    fn task(&self, unit: usize, threads: usize) -> forward::Task {
        let next = unit + threads;
        forward::Task { unit: self.at(unit), next: (next < self.count()).then(|| self.at(next)) }
    }
}

/// out, lse and, where asked for, probs.
pub(crate) fn run_forward(forward: &Forward<'_>, workers: Workers) {
    let Workers { kernels, crew } = workers;
    let call = &forward.scores.call;
    if let Some(probs) = forward.probs.filter(|_| call.problem.is_packed()) {
        // SAFETY: probs were checked against the problem, and nothing else has begun to write them.
        unsafe { forward::clear_behind_ends(call.problem, &probs) };
    }
    let tiles = Tiles::new(call, forward.scores.tile_rows);
    schedule::run(
        crew,
        tiles.count(),
        || (kernels.forward_scratch)(&forward.scores),
        |scratch, unit| {
            // SAFETY: the instruction set was seen available, the operands were checked, and `run` hands out a unit
            // once; units write rows of their own.
            unsafe { (kernels.forward)(forward, tiles.task(unit, crew.threads), scratch) }
        },
    );
}

/// What rows of large lse are relative to.
pub(crate) fn references(scores: &Scores<'_>, workers: Workers, lse: &[f32]) -> References {
    let Workers { kernels, crew } = workers;
    let tiles = Tiles::new(&scores.call, scores.tile_rows);
    let mut references = References::new(lse.len());
    let writer = references.writer(lse);
    schedule::run(
        crew,
        tiles.count(),
        || (kernels.forward_scratch)(scores),
        |scratch, unit| {
            // SAFETY: as in `run_forward`.
            unsafe { (kernels.references)(scores, tiles.at(unit), scratch, &writer) }
        },
    );
    references
}

/// dq, dk and dv. `partial_bytes` is what the partial sums of dq of one key head may take.
pub(crate) fn run_backward(backward: &Backward<'_>, workers: Workers, partial_bytes: usize) {
    let (call, shape) = (&backward.call, backward.call.problem.shape());
    let chunks: Vec<usize> = call.sequences.iter().map(|sequence| backward.chunks(&sequence)).collect();
    let in_chunks = || call.sequences.iter().filter(|sequence| backward.chunks(sequence) > 1);
    let longest = in_chunks().map(|sequence| sequence.place.seqlen_q).max().unwrap_or(0);
    let partial_floats = shape.group_size() * longest * shape.head_dim.next_multiple_of(32);
    if backward.dq.dtype == signflash_core::Dtype::F32 || chunks.iter().all(|&chunks| chunks == 1) {
        run_chunks(backward, workers, &chunks, None);
    } else if partial_floats * size_of::<f32>() <= partial_bytes {
        let units = chunks.iter().flat_map(|&chunks| std::iter::repeat_n(chunks, shape.num_heads_k));
        run_chunks(backward, workers, &chunks, Some(&Partials::new(units, partial_floats)));
    } else {
        run_two_passes(backward, workers);
    }
}

/// The single pass: each chunk of keys gives its dk and dv and adds its share of dq in turn. `counts` says how many
/// chunks a head of each sequence has.
fn run_chunks(backward: &Backward<'_>, workers: Workers, counts: &[usize], partials: Option<&Partials>) {
    let Workers { kernels, crew } = workers;
    let sequences = backward.call.sequences;
    let num_heads_k = backward.call.problem.shape().num_heads_k;
    let panicked = AtomicBool::new(false);
    // No more heads at a time than threads where each holds partial sums, or where the largest come first.
    let alike = counts.iter().all(|count| *count == counts[0]);
    let set = if partials.is_some() || !alike { crew.threads } else { usize::MAX };
    let chunks = chunks::in_order(counts, num_heads_k, set);
    let steps: Vec<AtomicUsize> = chunks.iter().map(|_| AtomicUsize::new(0)).collect();
    schedule::run(
        crew,
        chunks.len(),
        || {
            let _tells_others = TellsOfPanic(&panicked);
            (kernels.backward_scratch)(backward)
        },
        |scratch, unit| {
            let Chunk { sequence, head_k, index: chunk, number } = chunks[unit];
            let head = sequence * num_heads_k + head_k;
            let before = (chunk > 0).then(|| &steps[number - 1]);
            let turn = Turn { before, own: &steps[number], panicked: &panicked };
            // A head of one chunk has the whole sum at once.
            let partials = partials.filter(|_| counts[sequence] > 1);
            let dq = Some(Share { partial: partials.map(|partials| partials.get(head)), turn });
            let gradients = GradientsOf::Chunk { head_k, chunk, dq };
            let _tells_others = TellsOfPanic(&panicked);
            let sequence = sequences.at(sequence);
            let next = chunks.get(unit + crew.threads).map(|next| NextChunk {
                sequence: sequences.at(next.sequence),
                head_k: next.head_k,
                chunk: next.index,
            });
            let task = backward::Task { unit: backward::Unit { sequence, gradients }, next };
            // SAFETY: the instruction set was seen available, the operands were checked, and `run` hands out a unit
            // once: dk and dv rows are the unit's own, dq rows its own in its turn. The partial sums are this head's
            // until `done`.
            unsafe { (kernels.backward)(backward, task, scratch) }
            if let Some(partials) = partials {
                partials.done(head);
            }
        },
    );
}

/// dk and dv first, then dq: two more products, and no memory that grows with a length.
fn run_two_passes(backward: &Backward<'_>, workers: Workers) {
    let Workers { kernels, crew } = workers;
    let call = &backward.call;
    let num_heads_k = call.problem.shape().num_heads_k;
    let chunks = Units::new(call.sequences, |sequence| num_heads_k * backward.chunks(sequence));
    let tiles = Tiles::new(call, TILE_ROWS);
    schedule::run(
        crew,
        chunks.count() + tiles.count(),
        || (kernels.backward_scratch)(backward),
        |scratch, index| {
            let unit = if index < chunks.count() {
                let (sequence, within) = chunks.at(index);
                let of_head = backward.chunks(&sequence);
                let (head_k, chunk) = (within / of_head, within % of_head);
                backward::Unit { sequence, gradients: GradientsOf::Chunk { head_k, chunk, dq: None } }
            } else {
                let forward::Unit { sequence, head, tile } = tiles.at(index - chunks.count());
                backward::Unit { sequence, gradients: GradientsOf::Queries { head, tile } }
            };
            // SAFETY: as in `run_chunks`; dq rows belong to the unit of their tile.
            unsafe { (kernels.backward)(backward, backward::Task { unit, next: None }, scratch) }
        },
    );
}

/// dbias.
pub(crate) fn run_bias(backward: &Backward<'_>, dbias: &TableMut<'_>, workers: Workers) {
    let Workers { kernels, crew } = workers;
    let tiles = BiasTiles::of(backward, dbias.shape);
    schedule::run(
        crew,
        tiles.count(),
        || (kernels.backward_scratch)(backward),
        |scratch, unit| {
            // SAFETY: the instruction set was seen available, the operands were checked, and `run` hands out a unit once:
            // the elements of its tile are the unit's own.
            unsafe { (kernels.bias)(backward, (dbias, &tiles), tiles.at(unit), scratch) }
        },
    );
}

#[cfg(feature = "inside")]
pub mod tests;
