//! Four warps that multiply together: wgmma.
use super::Builder;
use super::fragment::Acc;
use super::memory::SmemAddr;
use super::scope::{Cta, Thread, Warp};
use super::value::{Operand, Val, Var};
use crate::ops::barrier::NamedBarrier;
use crate::ops::registers::SetRegisters;
use crate::ops::wgmma::{Left, Major, Tile, Wgmma, WgmmaOrder};
use crate::types::{B32, Half, U32};

/// Each warpgroup: four warps, the first of which has a number divisible by four.
#[derive(Clone, Copy, Debug)]
pub struct Warpgroup<'k>(pub(crate) &'k Builder);

impl<'k> Cta<'k> {
    /// Every warpgroup of the block.
    pub fn warpgroups(self) -> Warpgroup<'k> {
        Warpgroup(self.0)
    }
}

/// A tile of 16-bit numbers in shared memory: boxes of 64 columns behind each other, each with 128-byte rows as
/// [`TensorMap`](crate::TensorMap) says.
#[derive(Clone, Copy, Debug)]
pub struct BoxTile<'k> {
    /// In units of 16 bytes.
    start: Val<'k, U32>,
    /// Rows of a box.
    rows: u32,
    /// The first row that is meant.
    first_row: u32,
    /// What comes before the first column that is meant, in units of 16 bytes.
    skipped: u32,
}

/// Units of 16 bytes a row of a box.
const ROW: u32 = 128 / 16;

impl<'k> BoxTile<'k> {
    /// The tile of so many rows at an address that all threads of a warpgroup agree on.
    #[track_caller]
    pub fn new(at: SmemAddr<'k>, rows: u32) -> Self {
        assert!(rows.is_multiple_of(8), "a tile of {rows} rows");
        BoxTile { start: (at.base + at.offset) >> 4u32, rows, first_row: 0, skipped: 0 }
    }

    /// From this row on, a multiple of 8.
    pub fn from_row(self, row: u32) -> Self {
        assert!(row.is_multiple_of(8), "a part of a tile from row {row}");
        BoxTile { first_row: self.first_row + row, ..self }
    }

    /// From this row on, a multiple of 8 that all threads of a warpgroup agree on.
    #[track_caller]
    pub fn from_row_of(self, row: Val<'k, U32>) -> Self {
        BoxTile { start: self.start + row * ROW, ..self }
    }

    /// Columns `16 * k16..` of every row: the depth lies side by side.
    fn by_columns(self, k16: u32) -> Tile {
        let offset = k16 / 4 * self.rows * ROW + self.first_row * ROW + k16 % 4 * 2;
        Tile { start: self.start.src, offset, piece: self.rows * ROW, major: Major::Depth }
    }

    /// From this column on, a multiple of 8, for a tile whose rows are the depth. What is taken of it must end in the
    /// same box, or start with one.
    pub fn from_column(self, column: u32) -> Self {
        assert!(column.is_multiple_of(8), "a part of a tile from column {column}");
        let skipped = self.skipped + column / 64 * self.rows * ROW + column % 64 / 8;
        BoxTile { skipped, ..self }
    }

    /// Rows `16 * k16..`, every column: rows are the depth.
    fn by_rows(self, k16: u32) -> Tile {
        let offset = self.skipped + (self.first_row + 16 * k16) * ROW;
        Tile { start: self.start.src, offset, piece: self.rows * ROW, major: Major::Other }
    }
}

/// The left operand of a product.
#[derive(Debug)]
pub enum Rows<'a, 'k> {
    /// 64 rows of a tile.
    Tile(BoxTile<'k>),
    /// 64 columns of a tile, each of whose rows is a step of the depth: tile^T * b.
    ColumnsOf(BoxTile<'k>),
    /// Each warp's 16 rows in registers, four for each 16 columns, in the order of [`Acc`]'s.
    Registers(&'a [[Var<'k, B32>; 4]]),
}

impl<'k> Rows<'_, 'k> {
    fn left(&self, k16: u32) -> Left {
        match self {
            Rows::Tile(tile) => Left::Tile(tile.by_columns(k16)),
            Rows::ColumnsOf(tile) => Left::Tile(tile.by_rows(k16)),
            Rows::Registers(pieces) => {
                Left::Registers([0, 1, 2, 3].map(|i| pieces[k16 as usize][i].in_place()))
            }
        }
    }
}

/// The right operand of a product.
#[derive(Clone, Copy, Debug)]
pub enum Columns<'k> {
    /// Each row of the tile is a column: a * tile^T.
    OfRows(BoxTile<'k>),
    /// Each row of the tile is a step of the depth: a * tile.
    Plain(BoxTile<'k>),
}

/// A product of 64 rows by the accumulator's columns.
#[derive(Debug)]
pub struct Product<'a, 'k> {
    /// Left.
    pub rows: Rows<'a, 'k>,
    /// Right.
    pub columns: Columns<'k>,
    /// A multiple of 16.
    pub depth: u32,
    /// Format of both operands.
    pub half: Half,
    /// Added to what the accumulator holds, or in place of it.
    pub add: bool,
    /// How many columns of [`Columns::Plain`] an instruction has, a multiple of 64; all, if none. (ptxas wants the
    /// registers of one instruction to fit those that a block starts with.)
    pub columns_at_once: Option<u32>,
}

impl<'k> Warpgroup<'k> {
    /// Every warp of the group.
    pub fn warps(self) -> Warp<'k> {
        Warp(self.0)
    }

    /// Every thread of the group.
    pub fn threads(self) -> Thread<'k> {
        Thread(self.0)
    }

    /// Its number in the block, the same value in all lanes.
    #[track_caller]
    pub fn index(self) -> Val<'k, U32> {
        self.warps().uniform(self.threads().index() >> 7)
    }

    /// Gives registers back: from here on each thread has so many, a multiple of 8. All four warps must do it.
    #[track_caller]
    pub fn shrink_registers(self, count: u32) {
        self.0.emit(SetRegisters { count, more: false });
    }

    /// Waits for as many registers a thread, a multiple of 8 up to 240.
    #[track_caller]
    pub fn grow_registers(self, count: u32) {
        self.0.emit(SetRegisters { count, more: true });
    }

    /// Waits for the other threads that come to barrier `id`, `threads` in all. Numbers 1 to 15, as
    /// [`Warp::sync_among`].
    #[track_caller]
    pub fn sync_among(self, id: impl Operand<'k, U32>, threads: u32) {
        self.warps().sync_among(id, threads);
    }

    /// Arrives at barrier `id` and goes on.
    #[track_caller]
    pub fn arrive_among(self, id: impl Operand<'k, U32>, threads: u32) {
        self.0.emit(NamedBarrier { id: id.src(), threads, waits: false });
    }

    /// An accumulator of 64 rows, 16 of which each warp has; not written yet.
    pub fn acc(self, columns: u32) -> Acc<'k> {
        self.warps().acc(columns)
    }

    /// Starts a product, which goes on while the warps do something else. Nobody may touch the accumulator, nor change
    /// its operands, before [`PendingProduct::wait`].
    #[track_caller]
    pub fn multiply<'a>(self, acc: &'a mut Acc<'k>, product: &Product<'_, 'k>) -> PendingProduct<'a, 'k> {
        assert!(product.depth.is_multiple_of(16) && product.depth > 0, "a depth of {}", product.depth);
        let number = self.start(acc, product);
        PendingProduct { builder: self.0, acc: Some(acc), number }
    }

    /// Starts a product, a group of its own: its number.
    #[track_caller]
    fn start(self, acc: &Acc<'k>, product: &Product<'_, 'k>) -> u32 {
        self.0.emit(WgmmaOrder::Fence);
        let registers = acc.registers();
        // A thread has two numbers of each 4 columns.
        let at_once = product.columns_at_once.map_or(registers.len(), |columns| columns as usize / 2);
        for k16 in 0..product.depth / 16 {
            for (i, acc) in (0..).zip(registers.chunks(at_once)) {
                let b = match product.columns {
                    Columns::OfRows(tile) => tile.by_columns(k16),
                    Columns::Plain(tile) => tile.from_column(i * 2 * at_once as u32).by_rows(k16),
                };
                let (a, half, add) = (product.rows.left(k16), product.half, product.add || k16 > 0);
                self.0.emit(Wgmma { acc: acc.to_vec(), a, b, half, add });
            }
        }
        self.0.emit(WgmmaOrder::Commit);
        self.0.products.borrow_mut().start()
    }
}

/// Products under way while building.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    started: u32,
    /// Numbers of those not waited for, oldest first.
    open: Vec<u32>,
}

impl InFlight {
    fn start(&mut self) -> u32 {
        self.started += 1;
        self.open.push(self.started);
        self.started
    }

    /// How many newer ones may stay under way.
    fn wait(&mut self, number: u32) -> u32 {
        let older = self.open.iter().position(|&open| open == number).expect("each is waited for once");
        self.open.drain(..=older);
        self.open.len() as u32
    }

    pub(super) fn under_way(&self) -> usize {
        self.open.len()
    }
}

/// A product under way. It borrows its accumulator.
#[must_use = "a product must be waited for"]
#[derive(Debug)]
pub struct PendingProduct<'a, 'k> {
    builder: &'k Builder,
    /// Until it is waited for.
    acc: Option<&'a mut Acc<'k>>,
    number: u32,
}

impl<'a, 'k> PendingProduct<'a, 'k> {
    /// Waits for it, and for those that were started before; newer ones go on. Gives the accumulator back.
    #[track_caller]
    pub fn wait(mut self) -> &'a mut Acc<'k> {
        let newest = self.builder.products.borrow_mut().wait(self.number);
        self.builder.emit(WgmmaOrder::Wait(newest));
        self.acc.take().expect("a product is waited for once")
    }
}

impl Drop for PendingProduct<'_, '_> {
    fn drop(&mut self) {
        if self.acc.is_some() && !std::thread::panicking() {
            panic!("a product was started and never waited for");
        }
    }
}

impl Acc<'_> {
    fn registers(&self) -> Vec<crate::types::Reg> {
        (0..self.groups()).flat_map(|group| [0, 1, 2, 3].map(|i| self.at(group, i).reg)).collect()
    }
}
