//! Biases and masks: tensors of one number a score, read through any strides.
#![allow(unsafe_op_in_unsafe_fn)]

use super::panel::{Panel, Scratch};
use crate::call::BLOCK_KEYS;
use crate::pack::{self, panel_width};
use crate::raw::RawTensor;
use crate::sequence::Sequence;
use crate::simd::Simd;
use bytemuck::Pod;
use half::{bf16, f16};
use signflash_core::{Dtype, Element};
use std::marker::PhantomData;
use std::ops::Range;

/// What the elements of a table are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of a bias.
    Number(Dtype),
    /// Of a mask: not 0 shows the key.
    Byte,
}

/// A tensor of (sequences, num_heads, queries, keys) to read, each but the last of which may be 1 and then holds for all.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    base: *const u8,
    /// In bytes; 0 along dimensions of 1.
    strides: [usize; 4],
    kind: Kind,
    /// Whether all queries have the same row.
    one_row: bool,
    lifetime: PhantomData<&'a [u8]>,
}

// SAFETY: nobody writes what a table reads, by the promise to `Table::new`, and elements are plain numbers.
unsafe impl Send for Table<'_> {}
// SAFETY: as above.
unsafe impl Sync for Table<'_> {}

/// The numbers of a panel, in memory.
#[derive(Clone, Copy)]
pub(crate) enum Numbers {
    /// `[key]`: all queries have the same.
    OfKeys(*const f32),
    /// `[key][lane]`.
    OfScores(*const f32),
}

impl<'a> Table<'a> {
    /// # Safety
    /// The elements stay, and nobody writes them, for `'a`; shape and strides were checked.
    pub(crate) unsafe fn new<T: Pod>(x: RawTensor<T>, kind: Kind) -> Self {
        let mut strides = x.strides;
        for (stride, size) in strides.iter_mut().zip(x.shape) {
            *stride = if size == 1 { 0 } else { *stride * size_of::<T>() };
        }
        Self { base: x.first.cast(), strides, kind, one_row: x.shape[2] == 1, lifetime: PhantomData }
    }

    /// The element of a key and a query, both counted in the sequence.
    fn at(&self, sequence: &Sequence, head: usize, query: usize, key: usize) -> *const u8 {
        let [of_sequence, of_head, of_query, of_key] = self.strides;
        let (row, column) =
            (sequence.place.stream * of_sequence + head * of_head, query * of_query + key * of_key);
        self.base.wrapping_add(row + column)
    }

    /// Whether neighbouring keys lie side by side.
    fn is_dense(&self) -> bool {
        self.strides[3] == self.element_bytes()
    }

    fn element_bytes(&self) -> usize {
        match self.kind {
            Kind::Number(dtype) => dtype.size_bytes(),
            Kind::Byte => 1,
        }
    }

    /// Whether a mask shows any of these keys to any of these queries.
    pub(crate) fn shows_any(
        &self,
        sequence: &Sequence,
        head: usize,
        queries: Range<usize>,
        keys: Range<usize>,
    ) -> bool {
        self.has(sequence, head, queries, keys, |shown| shown)
    }

    /// Whether a mask shows all of these keys to all of these queries.
    pub(crate) fn shows_all(
        &self,
        sequence: &Sequence,
        head: usize,
        queries: Range<usize>,
        keys: Range<usize>,
    ) -> bool {
        !self.has(sequence, head, queries, keys, |shown| !shown)
    }

    /// Whether one of a mask's entries, told as whether it shows its key, is as wanted.
    fn has(
        &self,
        sequence: &Sequence,
        head: usize,
        queries: Range<usize>,
        keys: Range<usize>,
        wanted: impl Fn(bool) -> bool,
    ) -> bool {
        let mut queries = if self.one_row { 0..1 } else { queries };
        queries.any(|query| {
            let first = self.at(sequence, head, query, keys.start);
            if self.is_dense() {
                // SAFETY: the keys lie in the row, as the checks of the operands proved; nobody writes them, by the
                // promise to `new`.
                let row = unsafe { std::slice::from_raw_parts(first, keys.len()) };
                // Without early exit, so that it vectorises.
                return row.iter().fold(false, |any, &x| any | wanted(x != 0));
            }
            // SAFETY: as above.
            (0..keys.len()).any(|key| wanted(unsafe { *first.wrapping_add(key * self.strides[3]) } != 0))
        })
    }

    /// The numbers of a panel: those of a mask as 0 and others.
    ///
    /// # Safety
    /// As [`Simd`]; the panel lies in what the table was checked against.
    #[inline(always)]
    pub(super) unsafe fn numbers<S: Simd>(&self, panel: &Panel<'_>, scratch: &mut Scratch) -> Numbers {
        let keys = panel.keys_there();
        let row = |query: usize| self.at(panel.sequence, panel.head, query, panel.first_key + keys.start);
        let rows = scratch.rows.floats();
        if self.one_row {
            self.load_row::<S>(row(0), keys.len(), rows.add(keys.start));
            return Numbers::OfKeys(rows);
        }
        let width = panel_width::<S>();
        let numbers = scratch.numbers.floats();
        let all_are_real = panel.tile.is_real(panel.lane) && panel.tile.is_real(panel.lane + width - 1);
        let in_place = self.kind == Kind::Number(Dtype::F32)
            && self.is_dense()
            && all_are_real
            && keys.len() == BLOCK_KEYS
            && self.strides[2].is_multiple_of(size_of::<f32>());
        let (src, ld) = if in_place {
            (row(panel.tile.row_of(panel.lane)).cast::<u32>(), self.strides[2] / size_of::<f32>())
        } else {
            for lane in (0..width).filter(|lane| panel.tile.is_real(panel.lane + lane)) {
                let query = panel.tile.row_of(panel.lane + lane);
                self.load_row::<S>(row(query), keys.len(), rows.add(lane * BLOCK_KEYS + keys.start));
            }
            (rows.cast_const().cast(), BLOCK_KEYS)
        };
        for lane in (0..width).step_by(S::LANES) {
            for key in (panel.keys.begin / S::LANES * S::LANES..panel.keys.end).step_by(S::LANES) {
                S::transpose(src.add(lane * ld + key), ld, numbers.add(key * width + lane).cast(), width);
            }
        }
        Numbers::OfScores(numbers)
    }

    /// `n` neighbouring elements as f32.
    #[inline(always)]
    unsafe fn load_row<S: Simd>(&self, src: *const u8, n: usize, dst: *mut f32) {
        match self.kind {
            Kind::Number(dtype) if self.is_dense() => pack::load_row::<S>(dtype, src, n, dst),
            Kind::Byte if self.is_dense() => {
                for key in 0..n {
                    *dst.add(key) = f32::from(*src.add(key));
                }
            }
            _ => {
                for key in 0..n {
                    *dst.add(key) = self.load(src.wrapping_add(key * self.strides[3]));
                }
            }
        }
    }

    /// One element as f32.
    ///
    /// # Safety
    /// It must lie in the table.
    unsafe fn load(&self, src: *const u8) -> f32 {
        match self.kind {
            Kind::Number(Dtype::F16) => f16::from_bits(*src.cast()).to_f32(),
            Kind::Number(Dtype::Bf16) => bf16::from_bits(*src.cast()).to_f32(),
            Kind::Number(_) => *src.cast(),
            Kind::Byte => f32::from(*src),
        }
    }
}

/// The gradient of a bias, to write, by several threads at once.
#[derive(Clone, Copy)]
pub(crate) struct TableMut<'a> {
    base: *mut u8,
    pub(crate) shape: [usize; 4],
    /// In elements.
    strides: [usize; 4],
    dtype: Dtype,
    lifetime: PhantomData<&'a mut [u8]>,
}

// SAFETY: nobody else uses the elements, by the promise to `TableMut::new`; distinct indices are distinct elements, as
// the checks of the operands proved; and every element is written by one unit of work.
unsafe impl Send for TableMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for TableMut<'_> {}

impl<'a> TableMut<'a> {
    /// # Safety
    /// The elements stay, and nobody else uses them, for `'a`; shape and strides were checked.
    pub(crate) unsafe fn new<T: Element>(x: RawTensor<T>) -> Self {
        let RawTensor { first, shape, strides } = x;
        Self { base: first.cast(), shape, strides, dtype: T::DTYPE, lifetime: PhantomData }
    }

    /// Writes `n` neighbours along the last dimension, rounded.
    ///
    /// # Safety
    /// As [`Simd`]; they lie in the table, `src` holds as many, and no other thread writes them.
    #[inline(always)]
    pub(crate) unsafe fn write_row<S: Simd>(&self, index: [usize; 4], src: *const f32, n: usize) {
        let bytes = self.dtype.size_bytes();
        let first: usize = index.into_iter().zip(self.strides).map(|(at, stride)| at * stride).sum();
        let dst = |at: usize| self.base.wrapping_add((first + at * self.strides[3]) * bytes);
        if self.strides[3] == 1 {
            return pack::store_row::<S>(self.dtype, src, n, dst(0));
        }
        for at in 0..n {
            pack::store_row::<S>(self.dtype, src.add(at), 1, dst(at));
        }
    }
}
