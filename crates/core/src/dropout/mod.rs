//! The dropout mask: a pure function of position, FlashAttention-2's bit for bit.
//!
//! One call of Philox-4x32 with 7 rounds gives 16 random bytes. They serve one lane of one block of 16 rows by 32
//! columns of the score matrix of one (batch, head):
//!
//! ```text
//! key     = (seed low 32, seed high 32)
//! counter = (o low 32, o high 32, i / 16, j / 32)     o = offset + (batch * num_heads + head) * 32 + lane
//! lane    = (i % 8) * 4 + (j % 8) / 2
//! byte    = 8 * ((j / 16) % 2) + 4 * ((j / 8) % 2) + 2 * ((i / 8) % 2) + j % 2    little endian in the four words
//! kept    = byte value <= threshold                   threshold = floor(255.0 * (1.0f - p)), 1.0f - p in f32
//! ```
//!
//! i is the row (query), j the column (key), both counted from 0 in the whole problem; num_heads counts its query
//! heads. The scheme is that of FlashAttention-2's `dropout.h` (Dao, 2023).

mod generator;
pub mod philox;
mod shared;

pub use generator::{DropoutGenerator, GeneratorState};
pub use shared::SharedGenerator;

use crate::error::ProblemError;
use crate::shape::{Shape, Shard};
use philox::{DROPOUT_ROUNDS, philox4x32};
use std::ops::Range;

/// Rows that one Philox block covers.
pub const BLOCK_ROWS: usize = 16;
/// Columns that one Philox block covers.
pub const BLOCK_COLUMNS: usize = 32;
/// Philox calls per block.
pub const LANES: usize = 32;

/// By what kept probabilities are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// `256 / (threshold + 1)`: the expectation of the output is the undropped output, exactly.
    #[default]
    Unbiased,
    /// `1 / (1 - p)`, as FlashAttention-2 and PyTorch: 0.17 % low at p = 0.1, four times too high at p = 0.999,
    /// because dropout keeps `(threshold + 1) / 256` and not `1 - p`.
    Nominal,
}

/// A dropout setting: the probability of dropping, the random state, the scale rule.
///
/// ```
/// use signflash_core::{Dropout, ScaleRule};
/// let dropout = Dropout::new(0.1, 42, 0)?;
/// assert_eq!(dropout.threshold(), 229);
/// assert_eq!(dropout.keep_probability(), 230.0 / 256.0); // what is really kept, not 0.9
/// assert_eq!(dropout.keep_scale(), 256.0 / 230.0);
/// assert_eq!(dropout.with_scale_rule(ScaleRule::Nominal).keep_scale(), f64::from(1.0 / (1.0 - 0.1f32)));
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    p: f32,
    seed: u64,
    offset: u64,
    scale_rule: ScaleRule,
}

impl Dropout {
    /// Dropout with probability `p` in [0, 1) of dropping, at a random state of your own, unbiased. Use a
    /// [`DropoutGenerator`] to have successive calls drop different entries.
    ///
    /// # Errors
    /// [`ProblemError::DropoutP`].
    pub fn new(p: f32, seed: u64, offset: u64) -> Result<Self, ProblemError> {
        if !(0.0..1.0).contains(&p) {
            return Err(ProblemError::DropoutP { got: p });
        }
        Ok(Self { p, seed, offset, scale_rule: ScaleRule::Unbiased })
    }

    /// The same with another scale rule.
    pub const fn with_scale_rule(mut self, scale_rule: ScaleRule) -> Self {
        self.scale_rule = scale_rule;
        self
    }

    /// The probability of dropping, as given.
    pub const fn p(&self) -> f32 {
        self.p
    }

    /// The Philox key.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The Philox counter at batch 0, head 0, lane 0.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// How kept probabilities are scaled.
    pub const fn scale_rule(&self) -> ScaleRule {
        self.scale_rule
    }

    /// Whether anything is dropped: `p > 0`.
    pub fn is_active(&self) -> bool {
        self.p > 0.0
    }

    /// Largest random byte that is kept. The subtraction is in f32, the product in f64: p = 0.6 gives 101, not 102.
    pub fn threshold(&self) -> u8 {
        (f64::from(1.0f32 - self.p) * 255.0).floor() as u8
    }

    /// The exact probability of keeping, `(threshold + 1) / 256`; 1 if p is 0.
    pub fn keep_probability(&self) -> f64 {
        if self.is_active() { (f64::from(self.threshold()) + 1.0) / 256.0 } else { 1.0 }
    }

    /// The factor of kept probabilities; 1 if p is 0.
    pub fn keep_scale(&self) -> f64 {
        match self.scale_rule {
            ScaleRule::Unbiased => 1.0 / self.keep_probability(),
            ScaleRule::Nominal => f64::from(1.0 / (1.0 - self.p)),
        }
    }
}

/// Which entries of one problem survive dropout. Coordinates are the problem's own; the shard's position is added.
///
/// ```
/// use signflash_core::{Dropout, Problem, Shape};
/// let shape = Shape::new(1, 40, 70).heads(2, 2).head_dim(8);
/// let problem = Problem::builder(shape).dropout(Dropout::new(0.3, 1, 0)?).build()?;
/// let rule = problem.keep_rule().expect("p is not 0");
/// let block = rule.keep_block(0, 1, 3..40, 5..70);
/// assert_eq!(block.keep(0, 0), rule.keep(0, 1, 3, 5));
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeepRule {
    dropout: Dropout,
    num_heads_total: u64,
    shard: Shard,
}

impl KeepRule {
    pub(crate) fn new(dropout: Dropout, shape: &Shape, shard: &Shard) -> Self {
        let num_heads_total = shard.num_heads_total.unwrap_or(shape.num_heads) as u64;
        Self { dropout, num_heads_total, shard: *shard }
    }

    /// Largest random byte that is kept.
    pub fn threshold(&self) -> u8 {
        self.dropout.threshold()
    }

    /// The Philox key.
    pub const fn key(&self) -> [u32; 2] {
        [self.dropout.seed as u32, (self.dropout.seed >> 32) as u32]
    }

    /// The 64-bit counter (words 0 and 1) of lane 0 for one (batch, head) of this problem; lane l adds l, wrapping.
    pub const fn head_counter(&self, batch: usize, head: usize) -> u64 {
        let batch = (batch + self.shard.first_batch) as u64;
        let head = (head + self.shard.first_head) as u64;
        let index = batch.wrapping_mul(self.num_heads_total).wrapping_add(head);
        self.dropout.offset.wrapping_add(index.wrapping_mul(LANES as u64))
    }

    /// Row of the whole that is this problem's row 0.
    pub const fn first_row(&self) -> usize {
        self.shard.first_row
    }

    /// Column of the whole that is this problem's column 0.
    pub const fn first_column(&self) -> usize {
        self.shard.first_column
    }

    /// Whether entry (row, column) of (batch, head) survives.
    pub fn keep(&self, batch: usize, head: usize, row: usize, column: usize) -> bool {
        let (i, j) = (row + self.shard.first_row, column + self.shard.first_column);
        let lane = (i % 8) * 4 + (j % 8) / 2;
        let byte = 8 * ((j / 16) % 2) + 4 * ((j / 8) % 2) + 2 * ((i / 8) % 2) + j % 2;
        let words = self.lane_words(self.head_counter(batch, head), lane, i / BLOCK_ROWS, j / BLOCK_COLUMNS);
        words[byte / 4].to_le_bytes()[byte % 4] <= self.threshold()
    }

    /// Which entries of a block of one (batch, head) survive.
    ///
    /// # Panics
    /// If the block would have more than 2^64 entries.
    pub fn keep_block(
        &self,
        batch: usize,
        head: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> KeepBlock {
        let mut kept = KeepBlock::all_dropped(rows.len(), columns.len());
        if rows.is_empty() || columns.is_empty() {
            return kept;
        }
        let (row_0, column_0) = (rows.start + self.shard.first_row, columns.start + self.shard.first_column);
        let (row_end, column_end) = (row_0 + rows.len(), column_0 + columns.len());
        for block_row in row_0 / BLOCK_ROWS..row_end.div_ceil(BLOCK_ROWS) {
            for block_column in column_0 / BLOCK_COLUMNS..column_end.div_ceil(BLOCK_COLUMNS) {
                let block = self.block(batch, head, block_row, block_column);
                let first = (block_row * BLOCK_ROWS, block_column * BLOCK_COLUMNS);
                for i in first.0.max(row_0)..(first.0 + BLOCK_ROWS).min(row_end) {
                    for j in first.1.max(column_0)..(first.1 + BLOCK_COLUMNS).min(column_end) {
                        if block[j - first.1] >> (i - first.0) & 1 != 0 {
                            kept.set(i - row_0, j - column_0);
                        }
                    }
                }
            }
        }
        kept
    }

    /// One whole Philox block in the coordinates of the whole: bit r of element c says whether row
    /// `block_row * 16 + r`, column `block_column * 32 + c` survives.
    pub fn block(
        &self,
        batch: usize,
        head: usize,
        block_row: usize,
        block_column: usize,
    ) -> [u16; BLOCK_COLUMNS] {
        let counter = self.head_counter(batch, head);
        let threshold = self.threshold();
        let mut columns = [0u16; BLOCK_COLUMNS];
        for lane in 0..LANES {
            let words = self.lane_words(counter, lane, block_row, block_column);
            let (row, column) = (lane / 4, 2 * (lane % 4));
            for (eight, word) in words.into_iter().enumerate() {
                for (n, byte) in word.to_le_bytes().into_iter().enumerate() {
                    let kept = u16::from(byte <= threshold);
                    columns[8 * eight + column + n % 2] |= kept << (row + 8 * (n / 2));
                }
            }
        }
        columns
    }

    fn lane_words(&self, counter: u64, lane: usize, block_row: usize, block_column: usize) -> [u32; 4] {
        let o = counter.wrapping_add(lane as u64);
        philox4x32::<DROPOUT_ROUNDS>(
            self.key(),
            [o as u32, (o >> 32) as u32, block_row as u32, block_column as u32],
        )
    }
}

/// Which entries of a block survive, one bit an entry: an eighth of what bools take.
///
/// ```
/// use signflash_core::{Dropout, Problem, Shape};
/// let shape = Shape::new(1, 100, 200).heads(1, 1).head_dim(8);
/// let dropout = Dropout::new(0.25, 1, 0)?;
/// let rule = Problem::builder(shape).dropout(dropout).build()?.keep_rule().expect("p is not 0");
/// let block = rule.keep_block(0, 0, 0..100, 0..200);
/// let fraction = block.kept() as f64 / 20_000.0;
/// assert!((fraction - dropout.keep_probability()).abs() < 0.01);
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepBlock {
    rows: usize,
    columns: usize,
    words: Vec<u64>,
}

impl KeepBlock {
    fn all_dropped(rows: usize, columns: usize) -> Self {
        let bits = rows.checked_mul(columns).expect("a block of more than 2^64 entries");
        Self { rows, columns, words: vec![0; bits.div_ceil(64)] }
    }

    fn set(&mut self, row: usize, column: usize) {
        let bit = row * self.columns + column;
        self.words[bit / 64] |= 1 << (bit % 64);
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Whether the entry survives; row and column count from the block's first.
    ///
    /// # Panics
    /// If row or column lies outside.
    pub fn keep(&self, row: usize, column: usize) -> bool {
        assert!(
            row < self.rows && column < self.columns,
            "({row}, {column}) outside {} x {}",
            self.rows,
            self.columns
        );
        let bit = row * self.columns + column;
        self.words[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// Entries that survive.
    pub fn kept(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}
