//! Tiles of 16-bit numbers in shared memory, laid out so that neither rows nor columns meet in one bank.
//!
//! Rows follow each other without gaps. Within a row, 16-byte chunks are permuted by an exclusive or with some bits of
//! the row's number, chosen such that the eight rows of an ldmatrix, and eight neighbouring chunks of a row, lie in
//! different banks. For rows of 128 bytes this is the permutation that TMA calls SWIZZLE_128B.
use super::memory::SmemAddr;
use super::scope::{Thread, Warp};
use super::value::{Operand, Val};
use crate::types::{B32, U32};

const CHUNK_BYTES: u32 = 16;
/// 16-bit numbers a chunk.
const CHUNK: u32 = 8;

/// Rows of `cols` 16-bit numbers, a multiple of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileLayout {
    cols: u32,
}

impl TileLayout {
    /// For rows of so many numbers.
    ///
    /// # Panics
    /// Unless `cols` is a multiple of 16 and positive.
    pub fn new(cols: u32) -> Self {
        assert!(cols > 0 && cols.is_multiple_of(16), "a tile's row is a multiple of 16 numbers, not {cols}");
        TileLayout { cols }
    }

    /// Bytes a row.
    pub fn row_bytes(self) -> u32 {
        2 * self.cols
    }

    /// Bytes of so many rows.
    pub fn bytes(self, rows: u32) -> u32 {
        rows * self.row_bytes()
    }

    /// Chunks that are permuted among each other: the greatest power of two that divides a row, at most 8.
    fn group(self) -> u32 {
        1 << (self.cols / CHUNK).trailing_zeros().min(3)
    }

    /// The bits of the row's number that are used start here.
    fn shift(self) -> u32 {
        (8 / self.group()).trailing_zeros()
    }

    /// Where a chunk of a row is, on the device: bytes from the tile's start.
    #[track_caller]
    pub fn chunk<'k>(self, row: Val<'k, U32>, chunk: impl Operand<'k, B32>) -> Val<'k, U32> {
        row * self.row_bytes() + (self.swizzle(row).cast::<B32>() ^ chunk).cast::<U32>() * CHUNK_BYTES
    }

    #[track_caller]
    fn swizzle<'k>(self, row: Val<'k, U32>) -> Val<'k, U32> {
        (row >> self.shift()) & (self.group() - 1)
    }

    /// Where a chunk of a row is, for a host that fills or checks a tile: bytes from the tile's start.
    ///
    /// ```
    /// use signflash_ptx::TileLayout;
    /// assert_eq!(TileLayout::new(64).chunk_offset(1, 0), 128 + 16); // row 1: neighbours change places
    /// ```
    pub fn chunk_offset(self, row: u32, chunk: u32) -> u32 {
        row * self.row_bytes() + (chunk ^ (row >> self.shift()) & (self.group() - 1)) * CHUNK_BYTES
    }
}

/// In which order the four 8x8 matrices of 16 rows and 16 columns are loaded.
///
/// It matters because tensor-core operands are groups of neighbouring registers: with the wrong order every load costs
/// four moves (measured in ptxas's output: 436 moves in a loop of 1422 instructions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Down the left half, then down the right: an a-operand; transposed, two b-operands of a tile whose rows are k.
    Down,
    /// Across the upper half, then across the lower: two b-operands of a tile whose columns are k; transposed, an
    /// a-operand of the transposed tile.
    Across,
}

impl Order {
    /// The row (of 16) and the half (0 or 1) whose address a lane gives.
    #[track_caller]
    fn row_and_half<'k>(self, lane: Val<'k, U32>) -> (Val<'k, U32>, Val<'k, U32>) {
        match self {
            Order::Down => (lane & 15, lane >> 4),
            Order::Across => ((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1),
        }
    }
}

/// A lane's part of ldmatrix addresses, computed once for all tiles of one layout.
#[derive(Debug)]
pub struct TileLanes<'k> {
    layout: TileLayout,
    order: Order,
    /// For each pair of chunks of a group (in a part: for each 16 columns) the lane's row, and its chunk there.
    offsets: Vec<Val<'k, U32>>,
    /// Some columns only, from one on that is chosen on the GPU.
    is_part: bool,
}

impl<'k> Warp<'k> {
    /// The same for 16 * `count` columns from 16 * `first16` on, which count as the first.
    #[track_caller]
    pub fn tile_lanes_from(
        self,
        layout: TileLayout,
        order: Order,
        first16: Val<'k, U32>,
        count: u32,
    ) -> TileLanes<'k> {
        let (row, half) = order.row_and_half(self.threads().lane());
        let offset = |i: u32| own_offset(layout, row, (first16 + i) * 2 + half);
        TileLanes { layout, order, offsets: (0..count).map(offset).collect(), is_part: true }
    }

    /// Prepares [`load_matrices`](Warp::load_matrices) for tiles of this layout.
    #[track_caller]
    pub fn tile_lanes(self, layout: TileLayout, order: Order) -> TileLanes<'k> {
        let (row, half) = order.row_and_half(self.threads().lane());
        let own = half ^ layout.swizzle(row);
        let offset = |pair: u32| row * layout.row_bytes() + (own ^ (2 * pair)) * CHUNK_BYTES;
        TileLanes { layout, order, offsets: (0..layout.group() / 2).map(offset).collect(), is_part: false }
    }
}

impl<'k> TileLanes<'k> {
    /// The same with a tile's address already added: tiles are then given [relative](SmemAddr::relative_to) to it. A
    /// tile that stays where it is then needs no registers of its own.
    #[track_caller]
    pub fn from_origin(self, origin: SmemAddr<'k>) -> Self {
        let offsets = self.offsets.iter().map(|offset| origin.base + *offset + origin.offset).collect();
        TileLanes { offsets, ..self }
    }

    /// The tiles' layout.
    pub fn layout(&self) -> TileLayout {
        self.layout
    }

    /// The order in which matrices come.
    pub fn order(&self) -> Order {
        self.order
    }

    /// The lane's part of addresses of 16 columns that are chosen on the GPU, for [`Warp::load_matrices_at`]. Rows
    /// further down are [`TileLayout::bytes`] further.
    #[track_caller]
    pub fn column(&self, warp: Warp<'k>, col16: Val<'k, U32>) -> Val<'k, U32> {
        let (row, half) = self.order.row_and_half(warp.threads().lane());
        own_offset(self.layout, row, col16 * 2 + half)
    }

    #[track_caller]
    pub(crate) fn matrices(&self, tile: SmemAddr<'k>, row: u32, col16: u32) -> SmemAddr<'k> {
        assert!(
            row.is_multiple_of(16) && 16 * col16 < self.layout.cols,
            "row {row}, columns from {}",
            16 * col16
        );
        if self.is_part {
            return tile.plus(self.offsets[col16 as usize]).at(self.layout.bytes(row));
        }
        let pairs = self.offsets.len() as u32;
        let group_start = 2 * (col16 / pairs * pairs) * CHUNK_BYTES;
        tile.plus(self.offsets[(col16 % pairs) as usize]).at(self.layout.bytes(row) + group_start)
    }
}

/// A thread's part in copying a tile, 16 bytes at a time: it has the same few columns in many rows.
#[derive(Clone, Copy, Debug)]
pub struct TileThread<'k> {
    layout: TileLayout,
    /// The thread's first row.
    pub row: Val<'k, U32>,
    /// The thread's first column.
    pub col: Val<'k, U32>,
    offset: Val<'k, U32>,
    /// Rows that all threads together cover at once.
    pub rows_at_once: u32,
}

impl<'k> Thread<'k> {
    /// Shares a tile out among `threads` threads, of which this is number `index`.
    #[track_caller]
    pub fn tile_thread(self, layout: TileLayout, index: Val<'k, U32>, threads: u32) -> TileThread<'k> {
        let group = layout.group();
        let (row, chunk) = (index >> group.trailing_zeros(), index & (group - 1));
        let rows_at_once = threads / group;
        // Rows further down then have the same permutation.
        assert!(
            rows_at_once.is_multiple_of(8) || threads == 32,
            "{threads} threads for groups of {group} chunks"
        );
        let offset = row * layout.row_bytes() + (chunk ^ layout.swizzle(row)) * CHUNK_BYTES;
        TileThread { layout, row, col: chunk * CHUNK, offset, rows_at_once }
    }
}

#[track_caller]
fn own_offset<'k>(layout: TileLayout, row: Val<'k, U32>, chunk: Val<'k, U32>) -> Val<'k, U32> {
    row * layout.row_bytes() + (chunk ^ layout.swizzle(row)) * CHUNK_BYTES
}

impl<'k> TileThread<'k> {
    /// How many chunks of each row the thread has; the next is [`col_step`](Self::col_step) columns further.
    pub fn chunks(&self) -> u32 {
        self.layout.cols / CHUNK / self.layout.group()
    }

    /// Columns from one chunk of the thread to its next.
    pub fn col_step(&self) -> u32 {
        self.layout.group() * CHUNK
    }

    /// Where chunk number `chunk` of its row number `pass` is in a tile.
    #[track_caller]
    pub fn at(&self, tile: SmemAddr<'k>, pass: u32, chunk: u32) -> SmemAddr<'k> {
        let rows = pass * self.rows_at_once;
        let further = 2 * chunk * self.col_step();
        if rows.is_multiple_of(8) {
            return tile.plus(self.offset).at(self.layout.bytes(rows) + further); // the same permutation
        }
        tile.plus(own_offset(self.layout, self.row + rows, self.col / CHUNK)).at(further)
    }
}
