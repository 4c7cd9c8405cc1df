//! How wide rows are: those of q, k and their gradients, and those of v, out and theirs.
use super::args::{HeadRows, ProblemVals, kernel_args};
use super::copy::{TileCopy, TileRows};
use crate::config::{Common, RowsCommon};
use signflash_core::Problem;
use signflash_ptx::{Cta, Thread, TileLayout, U32, Val};

kernel_args! {
    /// What kernels that read v are told besides, if it has a head_dim of its own.
    WidthArgs / WidthVals {
        /// Real columns of v and out.
        head_dim_v: u32,
    }
}

impl WidthArgs {
    /// For kernels of these operands.
    pub(crate) fn of(problem: &Problem, common: &Common) -> Option<Self> {
        let head_dim_v = problem.shape().head_dim_v as u32;
        common.operands.head_dim_v.map(|_| WidthArgs { head_dim_v })
    }
}

/// The columns of a tensor's rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Width<'k> {
    /// In shared memory, and how they come there.
    pub(crate) rows: RowsCommon,
    /// In the tensor.
    pub(crate) real: Val<'k, U32>,
}

/// Those of all tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widths<'k> {
    /// Of q, k and their gradients.
    pub(crate) q: Width<'k>,
    /// Of v, out and theirs.
    pub(crate) v: Width<'k>,
}

impl<'k> Widths<'k> {
    /// As the kernel is told, at this place of its parameters.
    pub(crate) fn declare(cta: Cta<'k>, problem: &ProblemVals<'k>, common: &Common) -> Self {
        let own = common.operands.head_dim_v.map(|_| WidthVals::declare(cta).head_dim_v);
        Widths {
            q: Width { rows: common.rows(), real: problem.head_dim },
            v: Width { rows: common.rows_v(), real: own.unwrap_or(problem.head_dim) },
        }
    }
}

impl<'k> Widths<'k> {
    /// Thread `index` of `threads` that copy tiles, of q or k and of v or out.
    #[track_caller]
    pub(crate) fn copies(&self, t: Thread<'k>, index: Val<'k, U32>, threads: u32) -> [TileCopy<'k>; 2] {
        let q = self.q.copy(t, index, threads);
        [q, if self.v.rows == self.q.rows { q } else { self.v.copy(t, index, threads) }]
    }
}

impl<'k> Width<'k> {
    /// How tiles of such rows lie in shared memory.
    pub(crate) fn layout(&self) -> TileLayout {
        TileLayout::new(self.rows.operands.head_dim)
    }

    /// Thread `index` of `threads` that copy such tiles.
    #[track_caller]
    pub(crate) fn copy(&self, t: Thread<'k>, index: Val<'k, U32>, threads: u32) -> TileCopy<'k> {
        TileCopy::new(t, self.rows, index, threads)
    }

    /// Such rows, of which a sequence has `seqlen`, from `first` on.
    pub(crate) fn tile(&self, rows: HeadRows<'k>, first: Val<'k, U32>, seqlen: Val<'k, U32>) -> TileRows<'k> {
        TileRows { rows, first, seqlen, head_dim: self.real }
    }
}
