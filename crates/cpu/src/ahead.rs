//! Rows that will be needed soon, asked for while others are computed. Rows of a head among others lie far apart, and
//! hardware that fetches neighbours in advance does not find them: short problems waited for memory a third of their time.
//!
//! What is asked for changes no result, and may be wrong: it only comes earlier, or in vain.

use crate::pack::Stretch;
use crate::view::{View, ViewMut};

/// Rows of tensors.
#[derive(Clone, Copy)]
struct Asked {
    first: *const u8,
    stride_bytes: usize,
    rows: usize,
    row_bytes: usize,
    is_written: bool,
}

/// The rows of up to so many tensors.
const MOST: usize = 8;

const LINE_BYTES: usize = 64;

/// What is asked for, and how far the asking has come.
pub(crate) struct Ahead {
    asked: [Option<Asked>; MOST],
    count: usize,
    /// The tensor and the row that come next.
    tensor: usize,
    row: usize,
    /// How many rows are asked for at a time.
    few: usize,
}

impl Ahead {
    /// Nothing.
    pub(crate) fn nothing() -> Self {
        Self { asked: [None; MOST], count: 0, tensor: 0, row: 0, few: 0 }
    }

    /// These rows too, to be read.
    pub(crate) fn read(self, x: &View<'_>, rows: Stretch) -> Self {
        let row_bytes = x.shape[3] * x.dtype.size_bytes();
        let (first, stride_bytes) = (x.row(rows.first), x.row_stride_bytes());
        self.and(Asked { first, stride_bytes, rows: rows.count, row_bytes, is_written: false })
    }

    /// These rows of `dim` elements too, to be written.
    pub(crate) fn write(self, x: &ViewMut<'_>, rows: Stretch, dim: usize) -> Self {
        let row_bytes = dim * x.dtype.size_bytes();
        let (first, stride_bytes) = (x.row(rows.first).cast_const(), x.row_stride_bytes());
        self.and(Asked { first, stride_bytes, rows: rows.count, row_bytes, is_written: true })
    }

    fn and(mut self, asked: Asked) -> Self {
        self.asked[self.count] = Some(asked);
        self.count += 1;
        self
    }

    /// So that it is all asked for by so many calls of [`ask`](Self::ask).
    pub(crate) fn within(mut self, calls: usize) -> Self {
        let rows: usize = self.asked.iter().flatten().map(|asked| asked.rows).sum();
        self.few = rows.div_ceil(calls.max(1));
        self
    }

    /// Asks for the next few rows: a core can have few lines on their way, and waits where it is asked for more.
    pub(crate) fn ask(&mut self) {
        let mut left = self.few;
        while let Some(asked) = self.asked.get(self.tensor).copied().flatten() {
            while self.row < asked.rows {
                if left == 0 {
                    return;
                }
                left -= 1;
                asked.ask(self.row);
                self.row += 1;
            }
            (self.tensor, self.row) = (self.tensor + 1, 0);
        }
    }
}

impl Asked {
    fn ask(&self, row: usize) {
        let row = self.first.wrapping_add(row * self.stride_bytes);
        let before = row.addr() % LINE_BYTES; // a row may begin, and end, in the middle of a line
        for at in (0..before + self.row_bytes).step_by(LINE_BYTES) {
            prefetch(row.wrapping_sub(before).wrapping_add(at), self.is_written);
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn prefetch(p: *const u8, is_written: bool) {
    use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T1, _mm_prefetch};
    // SAFETY: a hint, whatever lies there: it reads nothing that the program sees, and never faults.
    unsafe {
        if is_written {
            _mm_prefetch::<_MM_HINT_ET0>(p.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T1>(p.cast());
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn prefetch(_: *const u8, _: bool) {}
