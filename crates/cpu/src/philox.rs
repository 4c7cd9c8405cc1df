//! Philox for whole blocks, with all that does not change along a row of blocks computed once.
//!
//! A call's counter is (lane counter low, high, block row, block column). Walking along a row of blocks only the last
//! word changes, and Philox mixes two words a round: the first round's products and half of the second and third
//! round's depend on the row alone. [`RowPhilox`] keeps them; a block then takes 10 multiplications a call, not 14.

use crate::simd::Simd;
use signflash_core::KeepRule;
use signflash_core::dropout::philox::{DROPOUT_ROUNDS, MUL_0, MUL_2, WEYL_0, WEYL_1};
use signflash_core::dropout::{BLOCK_COLUMNS, BLOCK_ROWS, LANES};
use std::ops::Range;

/// What the key words have grown by in each round.
pub(crate) const WEYL: [[u32; 2]; DROPOUT_ROUNDS] = {
    let mut weyl = [[0u32; 2]; DROPOUT_ROUNDS];
    let mut round = 1;
    while round < DROPOUT_ROUNDS {
        weyl[round] = [weyl[round - 1][0].wrapping_add(WEYL_0), weyl[round - 1][1].wrapping_add(WEYL_1)];
        round += 1;
    }
    weyl
};

/// Philox on one row of blocks. Element `8 * t + x` is lane `4 * PHILOX_ORDER[x] + t`, so
/// that eight neighbours are the eight rows of one column pair.
#[derive(Clone)]
pub(crate) struct RowPhilox {
    pub(crate) key: [u32; 2],
    /// Counter word 2 after round 1, before the block column is mixed in.
    pub(crate) a2: [u32; LANES],
    /// What round 2 mixes into counter word 0.
    pub(crate) b0: u32,
    /// Counter word 0 after round 3, before round 2's word 1 is mixed in.
    pub(crate) c0: [u32; LANES],
    /// Counter word 1 after round 3.
    pub(crate) c1: [u32; LANES],
    /// What round 3 mixes into counter word 2.
    pub(crate) c2: [u32; LANES],
}

fn product(a: u32, b: u32) -> (u32, u32) {
    let p = u64::from(a) * u64::from(b);
    ((p >> 32) as u32, p as u32)
}

impl RowPhilox {
    /// `block_row` counts in the whole problem.
    pub(crate) fn new<S: Simd>(rule: &KeepRule, batch: usize, head: usize, block_row: usize) -> Self {
        let key @ [k0, k1] = rule.key();
        let counter = rule.head_counter(batch, head);
        let (hi2, lo2) = product(MUL_2, block_row as u32);
        let mut row = Self {
            key,
            a2: [0; LANES],
            b0: lo2 ^ k0.wrapping_add(WEYL[1][0]),
            c0: [0; LANES],
            c1: [0; LANES],
            c2: [0; LANES],
        };
        for index in 0..LANES {
            let lane = 4 * S::PHILOX_ORDER[index % 8] + index / 8;
            let o = counter.wrapping_add(lane as u64);
            let (hi0, lo0) = product(MUL_0, o as u32);
            let a0 = hi2 ^ (o >> 32) as u32 ^ k0;
            row.a2[index] = hi0 ^ k1;
            let (hi0, lo0_second) = product(MUL_0, a0);
            let b2 = hi0 ^ lo0 ^ k1.wrapping_add(WEYL[1][1]);
            let (hi2, lo2) = product(MUL_2, b2);
            row.c0[index] = hi2 ^ k0.wrapping_add(WEYL[2][0]);
            row.c1[index] = lo2;
            row.c2[index] = lo0_second ^ k1.wrapping_add(WEYL[2][1]);
        }
        row
    }

    /// The four output words of every call of one block, in this row's order.
    pub(crate) fn words(&self, block_column: u32) -> [[u32; 4]; LANES] {
        let mut words = [[0; 4]; LANES];
        for (index, words) in words.iter_mut().enumerate() {
            let (hi2, lo2) = product(MUL_2, self.a2[index] ^ block_column);
            let (hi0, lo0) = product(MUL_0, hi2 ^ self.b0);
            let mut c = [self.c0[index] ^ lo2, self.c1[index], hi0 ^ self.c2[index], lo0];
            for weyl in &WEYL[3..] {
                let ((hi0, lo0), (hi2, lo2)) = (product(MUL_0, c[0]), product(MUL_2, c[2]));
                c = [
                    hi2 ^ c[1] ^ self.key[0].wrapping_add(weyl[0]),
                    lo2,
                    hi0 ^ c[3] ^ self.key[1].wrapping_add(weyl[1]),
                    lo0,
                ];
            }
            *words = c;
        }
        words
    }
}

/// The dropped entries of a tile of rows and a block of keys, as one bit a row.
pub(crate) struct DropTile {
    rows: Vec<RowPhilox>,
    threshold: u8,
    first_column: usize,
    /// Bit r of `bits[block_row * stride + phase + j]`: row `16 * block_row + r`, key j of the block.
    bits: Vec<u16>,
    stride: usize,
    phase: usize,
}

impl DropTile {
    /// For tiles of `rows` rows and blocks of at most `keys` keys.
    pub(crate) fn new(rule: &KeepRule, rows: usize, keys: usize) -> Self {
        let stride = keys.next_multiple_of(BLOCK_COLUMNS) + BLOCK_COLUMNS;
        Self {
            rows: Vec::with_capacity(rows.div_ceil(BLOCK_ROWS)),
            threshold: rule.threshold(),
            first_column: rule.first_column(),
            bits: vec![0; stride * rows.div_ceil(BLOCK_ROWS)],
            stride,
            phase: 0,
        }
    }

    /// Turns to another tile, whose first row is block row `block_row` of the whole.
    pub(crate) fn start<S: Simd>(
        &mut self,
        rule: &KeepRule,
        batch: usize,
        head: usize,
        block_row: usize,
        rows: usize,
    ) {
        self.rows.clear();
        let count = rows.div_ceil(BLOCK_ROWS);
        self.rows.extend((0..count).map(|r| RowPhilox::new::<S>(rule, batch, head, block_row + r)));
    }

    /// Draws what is dropped of keys `first..first + keys` for these lanes of the tile, and puts it where the bits of the `at`-th key
    /// lie, a multiple of 32. What it says of the others is arbitrary; where it overlaps what was drawn of neighbouring keys it is the same.
    ///
    /// # Safety
    /// As [`Simd`]. `keys` must not exceed what [`new`](Self::new) was told.
    #[inline(always)]
    pub(crate) unsafe fn draw<S: Simd>(&mut self, first: usize, keys: usize, lanes: Range<usize>, at: usize) {
        let column = self.first_column + first;
        self.phase = column % BLOCK_COLUMNS;
        let blocks = column / BLOCK_COLUMNS..(column + keys).div_ceil(BLOCK_COLUMNS);
        assert!(
            at + blocks.len() * BLOCK_COLUMNS <= self.stride
                && self.rows.len() * self.stride <= self.bits.len()
        );
        let rows = lanes.start / BLOCK_ROWS..lanes.end.div_ceil(BLOCK_ROWS).min(self.rows.len());
        for (r, row) in self.rows.iter().enumerate().take(rows.end).skip(rows.start) {
            for (n, block) in blocks.clone().enumerate() {
                let at = r * self.stride + at + n * BLOCK_COLUMNS;
                // SAFETY: the assertion above keeps the 32 columns of every block inside `bits`.
                unsafe { S::drop_block(row, block as u32, self.threshold, self.bits.as_mut_ptr().add(at)) };
            }
        }
    }

    /// The bits of the vector of rows that starts at tile row `row`: one u16 a key, of which the lowest
    /// `S::LANES` of `bits >> shift` count.
    #[inline(always)]
    pub(crate) fn lanes(&self, row: usize) -> (*const u16, u32) {
        let at = row / BLOCK_ROWS * self.stride + self.phase;
        (self.bits[at..].as_ptr(), (row % BLOCK_ROWS) as u32)
    }
}
