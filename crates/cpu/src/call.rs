//! What both passes know of a call, and how rows are cut into tiles.

use crate::gemm::NV;
use crate::simd::Simd;
use signflash_core::dropout::BLOCK_ROWS;
use signflash_core::{KeepRule, Problem};

/// Keys that are worked on at a time. The same for every instruction set: the points where rows are rescaled depend on
/// it, and with them the last bits of the result.
pub(crate) const BLOCK_KEYS: usize = 64;

/// A validated problem in the units of the kernels.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) rule: Option<KeepRule>,
    /// Scores are kept in base 2: [`Problem::scale_log2`].
    pub(crate) scale_log2: f32,
    /// The sign of softmax_scale, as the sign that q takes when it is packed.
    pub(crate) negative_scale: bool,
    pub(crate) keep_scale: f64,
    /// The inputs hold an infinity or a NaN: weights of zero must be kept away from them.
    pub(crate) careful: bool,
}

impl<'a> Call<'a> {
    pub(crate) fn new(problem: &'a Problem, careful: bool) -> Self {
        Self {
            problem,
            rule: problem.keep_rule(),
            scale_log2: problem.scale_log2(),
            negative_scale: problem.negates(),
            keep_scale: problem.keep_scale(),
            careful,
        }
    }

    /// The score of a product `q k`.
    pub(crate) fn score(&self, product: f32) -> f64 {
        f64::from(product) * self.problem.softmax_scale().abs()
    }

    /// The logarithm of a row's sum of exponentials, which are relative to `max`, its largest product `q k`: to its
    /// rounded score in base 2 if that is below `large`, else to the score itself.
    pub(crate) fn lse(&self, max: f32, sum: f64, large: f32) -> f32 {
        let max_log2 = max * self.scale_log2;
        if sum == 0.0 {
            f32::NEG_INFINITY
        } else if max_log2.abs() >= large {
            (self.score(max) + sum.ln()) as f32
        } else {
            (f64::from(max_log2) * std::f64::consts::LN_2 + sum.ln()) as f32
        }
    }

    /// How many rows of a Philox block lie before row 0. Tiles begin at such a block, so the first one may begin with
    /// rows that do not exist.
    fn row_phase(&self) -> usize {
        self.rule.map_or(0, |rule| rule.first_row() % BLOCK_ROWS)
    }

    /// How many tiles of `rows` rows there are.
    pub(crate) fn tiles(&self, rows: usize) -> usize {
        match self.problem.shape().seqlen_q {
            0 => 0,
            seqlen_q => (seqlen_q + self.row_phase()).div_ceil(rows),
        }
    }

    /// Tile `index` of `rows` rows, the last one cut down to whole panels of `width`.
    pub(crate) fn tile(&self, index: usize, rows: usize, width: usize) -> Tile {
        let phase = self.row_phase();
        let (start, end) = (index * rows, self.problem.shape().seqlen_q + phase);
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

/// Rows of one (batch, head) that are worked on together: one lane each.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Sequence index of the first real row.
    pub(crate) first: usize,
    /// Lanes before it that stand for no row.
    pub(crate) before: usize,
    /// Real rows.
    pub(crate) count: usize,
    /// Lanes.
    pub(crate) rows: usize,
    /// Philox block row, in the whole problem, of lane 0.
    pub(crate) block_row: usize,
}

impl Tile {
    /// The row of a lane; lanes that stand for none take the nearest row's part.
    pub(crate) fn row_of(&self, lane: usize) -> usize {
        self.first + lane.saturating_sub(self.before).min(self.count - 1)
    }

    /// Whether the lane stands for a row.
    pub(crate) fn is_real(&self, lane: usize) -> bool {
        (self.before..self.before + self.count).contains(&lane)
    }

    /// One past the last key that any of its rows sees.
    pub(crate) fn key_end(&self, problem: &Problem) -> usize {
        problem.visible_keys(self.first + self.count - 1).end
    }
}

/// What of one block of keys the rows of one panel see.
#[derive(Clone, Copy)]
pub(crate) struct Visible {
    /// Keys of the block to compute: all that any row of the panel sees, rounded up to a micro-tile.
    pub(crate) keys: usize,
    /// Whether every row sees all of them.
    pub(crate) all: bool,
    /// First lane of the panel in its tile.
    lane: usize,
    first_key: usize,
}

impl Visible {
    /// For the `width` lanes from `lane` on and the keys from `first_key` on; `None` if no row sees any.
    pub(crate) fn new<const MR: usize>(
        problem: &Problem,
        tile: &Tile,
        lane: usize,
        width: usize,
        first_key: usize,
    ) -> Option<Self> {
        // Visibility ends later for later rows, so the first and the last lane bound the others. Lanes that stand for
        // no row see nothing: their zeros would make NaN of an infinite key.
        let real = tile.is_real(lane) && tile.is_real(lane + width - 1);
        let least = if real { problem.visible_keys(tile.row_of(lane)).end } else { 0 };
        let most = problem.visible_keys(tile.row_of(lane + width - 1)).end;
        if most <= first_key {
            return None;
        }
        let keys = (most - first_key).min(BLOCK_KEYS).next_multiple_of(MR);
        Some(Self { keys, all: least >= first_key + keys, lane, first_key })
    }

    /// The same panel and block, computing `keys` keys, seen or not.
    pub(crate) fn computing(self, keys: usize) -> Self {
        Self { all: self.all && self.keys >= keys, keys, ..self }
    }

    /// For each lane, how many keys of the block its row sees, as lane vectors.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn ends<S: Simd>(&self, problem: &Problem, tile: &Tile) -> [S::V; NV] {
        let mut ends = [0.0f32; 64];
        for (lane, end) in ends[..NV * S::LANES].iter_mut().enumerate() {
            if tile.is_real(self.lane + lane) {
                let visible = problem.visible_keys(tile.row_of(self.lane + lane)).end;
                *end = visible.saturating_sub(self.first_key).min(BLOCK_KEYS) as f32;
            }
        }
        // SAFETY: `ends` has room for NV vectors of at most 16 lanes.
        std::array::from_fn(|n| unsafe { S::load(ends.as_ptr().add(n * S::LANES)) })
    }
}
