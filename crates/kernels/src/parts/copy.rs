//! Tiles between global and shared memory. Rows outside the tensor, and columns beyond head_dim, are zeros.
use super::args::HeadRows;
use crate::config::{Access, RowsCommon};
use signflash_ptx::{B32, GlobalAddr, Pred, SmemAddr, Thread, TileLayout, TileThread, U32, Val};

/// The rows of a tile in global memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileRows<'k> {
    pub(crate) rows: HeadRows<'k>,
    /// The first row of the tile. Rows before 0 are taken for huge ones, and so are outside too.
    pub(crate) first: Val<'k, U32>,
    /// Rows of the tensor.
    pub(crate) seqlen: Val<'k, U32>,
    /// Columns of the tensor.
    pub(crate) head_dim: Val<'k, U32>,
}

/// One thread's share of copying tiles of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileCopy<'k> {
    pub(crate) thread: Thread<'k>,
    pub(crate) share: TileThread<'k>,
    pub(crate) access: Access,
    /// The tensor's column that is the tile's first.
    pub(crate) first_col: Val<'k, U32>,
}

impl<'k> TileCopy<'k> {
    /// Thread `index` of `threads`, for tiles of a head's width.
    #[track_caller]
    pub(crate) fn new(thread: Thread<'k>, rows: RowsCommon, index: Val<'k, U32>, threads: u32) -> Self {
        let RowsCommon { operands, access } = rows;
        let share = thread.tile_thread(TileLayout::new(operands.head_dim), index, threads);
        TileCopy { thread, share, access, first_col: thread.u32(0) }
    }

    /// The same for tiles that hold `columns` of a head's columns, from `first_col` on.
    #[track_caller]
    pub(crate) fn of_columns(
        self,
        index: Val<'k, U32>,
        threads: u32,
        columns: u32,
        first_col: Val<'k, U32>,
    ) -> Self {
        let share = self.thread.tile_thread(TileLayout::new(columns), index, threads);
        TileCopy { share, first_col, ..self }
    }

    /// The tensor's column of one of the thread's chunks.
    #[track_caller]
    fn col(&self, chunk: u32) -> Val<'k, U32> {
        self.first_col + self.share.col + chunk * self.share.col_step()
    }

    /// Starts to bring `count` rows to `tile`. They are there once the group of copies has been waited for.
    #[track_caller]
    pub(crate) fn load(&self, tile: SmemAddr<'k>, source: TileRows<'k>, count: u32) {
        self.each_row(source, count, |pass, row, real| {
            for chunk in 0..self.share.chunks() {
                let to = self.share.at(tile, pass, chunk);
                let from = row.at(2 * i64::from(chunk * self.share.col_step()));
                let col = self.col(chunk);
                match self.access {
                    Access::Whole | Access::Pieces => {
                        let real = self.real_columns(real, col, source.head_dim);
                        self.thread.copy_async(to, from, real);
                    }
                    Access::Elements => self.load_elements(to, from, real, source.head_dim, col),
                }
            }
        });
    }

    /// Writes `count` rows of `tile` to global memory, as far as they are in the tensor.
    #[track_caller]
    pub(crate) fn store(&self, tile: SmemAddr<'k>, target: TileRows<'k>, count: u32) {
        self.each_row(target, count, |pass, row, real| {
            for chunk in 0..self.share.chunks() {
                let words: [Val<'k, B32>; 4] = self.thread.load(self.share.at(tile, pass, chunk));
                let to = row.at(2 * i64::from(chunk * self.share.col_step()));
                let col = self.col(chunk);
                match self.access {
                    Access::Whole | Access::Pieces => {
                        let real = self.real_columns(real, col, target.head_dim);
                        self.thread.when(real, |t| t.store(to, words));
                    }
                    Access::Elements => self.store_elements(to, words, real, target.head_dim, col),
                }
            }
        });
    }

    /// Of rows that are real, whether their columns from `col` on are.
    fn real_columns(&self, rows: Val<'k, Pred>, col: Val<'k, U32>, head_dim: Val<'k, U32>) -> Val<'k, Pred> {
        if self.access == Access::Whole { rows } else { rows & col.lt(head_dim) }
    }

    fn each_row(
        &self,
        tile: TileRows<'k>,
        count: u32,
        mut body: impl FnMut(u32, GlobalAddr<'k>, Val<'k, Pred>),
    ) {
        let at_once = self.share.rows_at_once;
        let first = tile.first + self.share.row;
        let mut address = tile.rows.row(first).plus(((self.first_col + self.share.col) * 2).widen());
        let step = tile.rows.stride * u64::from(at_once);
        for pass in 0..count.div_ceil(at_once) {
            if pass > 0 {
                address = address.plus(step);
            }
            let done = pass * at_once;
            let real = (first + done).lt(tile.seqlen);
            if done + at_once <= count {
                body(pass, address, real);
            } else {
                // More threads than rows are left.
                self.thread.when(self.share.row.lt(count - done), |_| body(pass, address, real));
            }
        }
    }

    fn load_elements(
        &self,
        to: SmemAddr<'k>,
        from: GlobalAddr<'k>,
        real: Val<'k, Pred>,
        head_dim: Val<'k, U32>,
        col: Val<'k, U32>,
    ) {
        let words = [0, 2, 4, 6].map(|i| {
            let [low, high] = [i, i + 1].map(|i| {
                let element = self.thread.u32(0).cast::<B32>().var();
                self.thread.when(real & (col + i).lt(head_dim), |t| {
                    element.set(t.load_half(from.at(2 * i64::from(i))))
                });
                element.get()
            });
            low | high << 16u32
        });
        self.thread.store(to, words);
    }

    fn store_elements(
        &self,
        to: GlobalAddr<'k>,
        words: [Val<'k, B32>; 4],
        real: Val<'k, Pred>,
        head_dim: Val<'k, U32>,
        col: Val<'k, U32>,
    ) {
        for i in 0..8u32 {
            let word = words[i as usize / 2];
            let element = if i % 2 == 0 { word } else { word >> 16u32 };
            self.thread
                .when(real & (col + i).lt(head_dim), |t| t.store_half(to.at(2 * i64::from(i)), element));
        }
    }
}
