//! Rows of tensors as matrix operands: in place where that is fast, else copied, converted and padded with zeros.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::buffer::Buffer;
use crate::gemm::NV;
use crate::simd::Simd;
use crate::view::View;
use half::{bf16, f16};
use signflash_core::{Dtype, Shape};

/// Rows of words: row r begins at `p[r * ld]`.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) p: *const u32,
    pub(crate) ld: usize,
}

/// Which rows of one head an operand takes.
#[derive(Clone, Copy)]
pub(crate) struct Stretch {
    /// Index of the first real row.
    pub(crate) first: [usize; 3],
    /// Rows of zeros before it.
    pub(crate) before: usize,
    /// Real rows.
    pub(crate) count: usize,
    /// All rows, zeros before and after included.
    pub(crate) total: usize,
}

impl Stretch {
    /// The same with zeros behind it up to a multiple of `step` rows.
    pub(crate) fn in_steps_of(self, step: usize) -> Self {
        Self { total: self.total.next_multiple_of(step), ..self }
    }

    /// Index of a real row.
    fn row(&self, r: usize) -> [usize; 3] {
        let [batch, first, head] = self.first;
        [batch, first + r, head]
    }
}

/// Elements of rows: as the tensors have them, and padded to whole transposable blocks of words.
#[derive(Clone, Copy)]
pub(crate) struct Dims {
    /// Of q, k and their gradients.
    pub(crate) qk: usize,
    pub(crate) qk_padded: usize,
    /// Of v, out and their gradients.
    pub(crate) v: usize,
    pub(crate) v_padded: usize,
}

impl Dims {
    pub(crate) fn of<S: Simd>(shape: &Shape) -> Self {
        let ([.., qk], [.., v]) = (shape.k(), shape.v());
        Self { qk, qk_padded: padded_dim::<S>(qk), v, v_padded: padded_dim::<S>(v) }
    }
}

/// A number of elements, padded.
fn padded_dim<S: Simd>(dim: usize) -> usize {
    dim.next_multiple_of(16 * S::UNIT)
}

/// Whether every padded number of elements is one of whole panels, so that nothing narrower need be compiled.
pub(crate) const fn whole_panels<S: Simd>() -> bool {
    (16 * S::UNIT).is_multiple_of(panel_width::<S>())
}

/// Rows further apart than this share few sets of the first-level cache: they are copied. (In a prototype on Zen 4,
/// rows 4 KiB apart ran at 43 to 47 % of the peak in place and at 81 to 83 % copied.)
const FAR_BYTES: usize = 1024;

/// The same for tiles, which are loaded row by row.
const FAR_BYTES_OF_TILES: usize = 256;

const fn far_bytes<S: Simd>() -> usize {
    if S::TILES { FAR_BYTES_OF_TILES } else { FAR_BYTES }
}

/// The rows of `stretch` as words, in place if possible, else copied to `buffer`, which must hold
/// `stretch.total * padded_dim / UNIT` words.
///
/// # Safety
/// As [`Simd`]; `stretch` must lie inside `x`, whose rows have `head_dim` elements.
#[inline(always)]
pub(crate) unsafe fn rows<S: Simd>(
    x: &View<'_>,
    head_dim: usize,
    stretch: Stretch,
    buffer: &mut Buffer,
) -> Rows {
    match in_place::<S>(x, head_dim, stretch) {
        Some(rows) if x.row_stride_bytes() <= far_bytes::<S>() => rows,
        _ => copy_rows::<S>(x, head_dim, stretch, buffer.words()),
    }
}

/// As [`rows`], for what is read once only: how far apart rows are does not matter then.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
pub(crate) unsafe fn rows_once<S: Simd>(
    x: &View<'_>,
    head_dim: usize,
    stretch: Stretch,
    buffer: &mut Buffer,
) -> Rows {
    in_place::<S>(x, head_dim, stretch)
        .unwrap_or_else(|| copy_rows::<S>(x, head_dim, stretch, buffer.words()))
}

/// The rows where they lie, if they are words already.
fn in_place<S: Simd>(x: &View<'_>, head_dim: usize, stretch: Stretch) -> Option<Rows> {
    let native = if S::PAIRS { Dtype::Bf16 } else { Dtype::F32 };
    let stride = x.row_stride_bytes();
    let whole = stretch.count == stretch.total && head_dim == padded_dim::<S>(head_dim);
    let apart = stride.is_multiple_of(4) && stride >= head_dim * x.dtype.size_bytes();
    (x.dtype == native && whole && apart).then(|| Rows { p: x.row(stretch.first).cast(), ld: stride / 4 })
}

/// As [`rows`], always copied.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn copy_rows<S: Simd>(x: &View<'_>, head_dim: usize, stretch: Stretch, buffer: *mut u32) -> Rows {
    let ld = padded_dim::<S>(head_dim) / S::UNIT;
    buffer.write_bytes(0, stretch.before * ld);
    for r in 0..stretch.count {
        let src = x.row(stretch.row(r));
        copy_row::<S>(x.dtype, src, head_dim, buffer.add((stretch.before + r) * ld), ld);
    }
    let end = stretch.before + stretch.count;
    buffer.add(end * ld).write_bytes(0, (stretch.total - end) * ld);
    Rows { p: buffer, ld }
}

/// One row as words, zeros up to `ld`.
#[inline(always)]
unsafe fn copy_row<S: Simd>(dtype: Dtype, src: *const u8, head_dim: usize, dst: *mut u32, ld: usize) {
    if S::PAIRS || dtype == Dtype::F32 {
        let bytes = head_dim * dtype.size_bytes();
        src.copy_to_nonoverlapping(dst.cast(), bytes);
        dst.cast::<u8>().add(bytes).write_bytes(0, 4 * ld - bytes);
    } else {
        load_row::<S>(dtype, src, head_dim, dst.cast());
        dst.add(head_dim).write_bytes(0, ld - head_dim);
    }
}

/// `n` elements of any type as f32.
///
/// # Safety
/// As [`Simd`]; `src` must hold `n` elements, `dst` must have room for them.
#[inline(always)]
pub(crate) unsafe fn load_row<S: Simd>(dtype: Dtype, src: *const u8, n: usize, dst: *mut f32) {
    let whole = n - n % S::LANES;
    let half: *const u16 = src.cast();
    match dtype {
        Dtype::F16 => {
            for i in (0..whole).step_by(S::LANES) {
                S::store(dst.add(i), S::load_f16(half.add(i)));
            }
            for i in whole..n {
                *dst.add(i) = f16::from_bits(*half.add(i)).to_f32();
            }
        }
        Dtype::Bf16 => {
            for i in (0..whole).step_by(S::LANES) {
                S::store(dst.add(i), S::load_bf16(half.add(i)));
            }
            for i in whole..n {
                *dst.add(i) = bf16::from_bits(*half.add(i)).to_f32();
            }
        }
        _ => src.cast::<f32>().copy_to_nonoverlapping(dst, n),
    }
}

/// `n` f32 as elements of any type, rounded to nearest even.
///
/// # Safety
/// As [`Simd`]; `src` must hold `n` floats, `dst` must have room for `n` elements.
#[inline(always)]
pub(crate) unsafe fn store_row<S: Simd>(dtype: Dtype, src: *const f32, n: usize, dst: *mut u8) {
    let whole = n - n % S::LANES;
    let half: *mut u16 = dst.cast();
    match dtype {
        Dtype::F16 => {
            for i in (0..whole).step_by(S::LANES) {
                S::store_f16(half.add(i), S::load(src.add(i)));
            }
            for i in whole..n {
                *half.add(i) = f16::from_f32(*src.add(i)).to_bits();
            }
        }
        Dtype::Bf16 => {
            for i in (0..whole).step_by(S::LANES) {
                S::store_bf16(half.add(i), S::load(src.add(i)));
            }
            for i in whole..n {
                *half.add(i) = bf16::from_f32(*src.add(i)).to_bits();
            }
        }
        _ => src.copy_to_nonoverlapping(dst.cast(), n),
    }
}

/// Queries that a panel of the lane operand holds.
pub(crate) const fn panel_width<S: Simd>() -> usize {
    NV * S::LANES
}

/// Transposes `panels` panels of rows: word k of lane r of panel p goes to `dst[(p * depth + k) * width + r]`.
/// `flip` is added to every word without carry: it turns signs.
///
/// # Safety
/// As [`Simd`]; `src` must hold all rows of the panels, `depth` words each, a multiple of 16; `dst` must have room.
#[inline(always)]
pub(crate) unsafe fn transpose_panels<S: Simd>(
    src: Rows,
    panels: usize,
    depth: usize,
    flip: u32,
    dst: *mut u32,
) {
    let width = panel_width::<S>();
    for r in (0..panels * width).step_by(S::LANES) {
        let panel = dst.add(r / width * depth * width + r % width);
        for k in (0..depth).step_by(S::LANES) {
            S::transpose(src.p.add(r * src.ld + k), src.ld, panel.add(k * width), width);
        }
    }
    if flip != 0 {
        for word in std::slice::from_raw_parts_mut(dst, panels * depth * width) {
            *word ^= flip;
        }
    }
}

/// The bits that turn the sign of each element of a word.
pub(crate) const fn sign_flip<S: Simd>() -> u32 {
    if S::PAIRS { 0x8000_8000 } else { 0x8000_0000 }
}

/// Rows as the *steps* of a product that sums over rows: themselves if words are f32; if words are pairs, two
/// neighbouring rows woven into one of twice the words, in `buffer`.
///
/// # Safety
/// As [`Simd`]; `src` must hold `count` rows, an even number, of `words` words, a multiple of 16; `buffer` must have
/// room for as many.
#[inline(always)]
pub(crate) unsafe fn steps<S: Simd>(src: Rows, count: usize, words: usize, buffer: &mut Buffer) -> Rows {
    if !S::PAIRS {
        return src;
    }
    let buffer = buffer.words();
    for r in 0..count / 2 {
        let (even, odd) = (src.p.add(2 * r * src.ld), src.p.add((2 * r + 1) * src.ld));
        for c in (0..words).step_by(16) {
            S::weave(even.add(c), odd.add(c), buffer.add(2 * (r * words + c)));
        }
    }
    Rows { p: buffer, ld: 2 * words }
}

/// Steps as *columns*, the left operand of a product of tiles that sums over rows: word w of the c-th goes to
/// `buffer[c * ld + w]`, for `count` rows of `words` words woven.
///
/// # Safety
/// As [`Simd`], of 16 lanes; `src` must hold the steps of `count` rows, a multiple of 32, of `words` words, a multiple of
/// 16; `buffer` must have room for `2 * words` columns.
#[inline(always)]
pub(crate) unsafe fn columns<S: Simd>(
    src: Rows,
    count: usize,
    words: usize,
    ld: usize,
    buffer: *mut u32,
) -> Rows {
    for step in (0..count / 2).step_by(S::LANES) {
        for c in (0..2 * words).step_by(S::LANES) {
            S::transpose(src.p.add(step * src.ld + c), src.ld, buffer.add(c * ld + step), ld);
        }
    }
    Rows { p: buffer, ld }
}
