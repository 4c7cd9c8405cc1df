//! What both passes know of a call, and how the rows of a sequence are cut into tiles.

use crate::finite;
use crate::pack::Rows;
use crate::score_stage::{ScoreOperands, ScoreStage};
use crate::sequence::{Sequence, Sequences};
use crate::simd::Simd;
use crate::tile::Tile;
use crate::tiles::Tiles;
use signflash_core::dropout::BLOCK_ROWS;
use signflash_core::{KeepRule, Problem};
use std::sync::atomic::{AtomicBool, Ordering};

/// Keys that are worked on at a time. The same for every instruction set: the points where rows are rescaled depend on
/// it, and with them the last bits of the result.
pub(crate) const BLOCK_KEYS: usize = 64;

/// A validated problem in the units of the kernels.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) sequences: Sequences<'a>,
    pub(crate) rule: Option<KeepRule>,
    pub(crate) stage: ScoreStage,
    pub(crate) operands: ScoreOperands<'a>,
    pub(crate) keep_scale: f64,
    /// The inputs hold an infinity or a NaN: weights of zero must be kept away from them.
    pub(crate) careful: bool,
    /// What multiplies where the instruction set multiplies tiles.
    pub(crate) tiles: Tiles,
    /// Set where that is met in a call that is not careful: its results are worth nothing.
    pub(crate) met: &'a AtomicBool,
}

/// Runs `pass`, and once more carefully if it met an infinity or a NaN: nearly no call does, and looking for them in
/// advance would read all operands from memory one more time.
pub(crate) fn until_careful<'a>(call: Call<'a>, pass: impl Fn(Call<'a>)) {
    pass(call);
    if call.is_in_vain() {
        pass(Call { careful: true, ..call });
    }
}

impl<'a> Call<'a> {
    /// `operands` were checked against the problem. The call is not careful, and its tiles, if any, are emulated.
    pub(crate) fn new(
        problem: &'a Problem,
        sequences: Sequences<'a>,
        operands: ScoreOperands<'a>,
        met: &'a AtomicBool,
    ) -> Self {
        Self {
            problem,
            sequences,
            rule: problem.keep_rule(),
            stage: ScoreStage::of(problem),
            operands,
            keep_scale: problem.keep_scale(),
            careful: false,
            tiles: Tiles::Emulated,
            met,
        }
    }

    /// Looks for infinities and NaNs in operands, which have just been packed and lie in the nearest cache.
    ///
    /// # Safety
    /// As [`Simd`]; `words` words of `count` rows must be readable.
    #[inline(always)]
    pub(crate) unsafe fn look<S: Simd>(&self, rows: Rows, count: usize, words: usize) {
        // SAFETY: the caller's promise.
        if !self.careful && unsafe { !finite::rows_are_finite::<S>(rows, count, words) } {
            self.met.store(true, Ordering::Relaxed);
        }
    }

    /// Whether nothing more need be computed, since all of it will be again.
    pub(crate) fn is_in_vain(&self) -> bool {
        !self.careful && self.met.load(Ordering::Relaxed)
    }

    /// Where the rows of a head begin in what has one number a row: lse, its gradient, references.
    pub(crate) fn first_row(&self, sequence: &Sequence, head: usize) -> usize {
        sequence.place.lse(self.problem.shape(), 0, head)
    }

    /// What every row of a head has besides its scores, if there is a sink.
    pub(crate) fn sink(&self, sequence: &Sequence, head: usize) -> Option<f64> {
        // Rows behind the last packed sequence are nobody's.
        self.operands
            .sinks
            .filter(|_| !self.problem.is_left_over(&sequence.place))
            .map(|sinks| sinks[head].into())
    }

    /// How many rows of a Philox block lie before row 0. Tiles begin at such a block, so the first one may begin with
    /// rows that do not exist.
    pub(crate) fn row_phase(&self) -> usize {
        self.rule.map_or(0, |rule| rule.first_row() % BLOCK_ROWS)
    }

    /// How many tiles of `rows` rows a head has.
    pub(crate) fn tiles(&self, sequence: &Sequence, rows: usize) -> usize {
        match sequence.place.seqlen_q {
            0 => 0,
            len_q => (len_q + self.row_phase()).div_ceil(rows),
        }
    }

    /// Tile `index` of `rows` rows, the last one cut down to whole panels of `width`.
    pub(crate) fn tile(&self, sequence: &Sequence, index: usize, rows: usize, width: usize) -> Tile {
        let phase = self.row_phase();
        let (start, end) = (index * rows, sequence.place.seqlen_q + phase);
        let before = phase.saturating_sub(start);
        let filled = rows.min(end - start);
        Tile {
            first: start + before - phase,
            before,
            count: filled - before,
            rows: filled.next_multiple_of(width),
            block_row: self.rule.map_or(0, |rule| (rule.first_row() + start - phase) / BLOCK_ROWS),
        }
    }
}
