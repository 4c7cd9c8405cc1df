//! AVX2, FMA and F16C: eight lanes.

use super::{EXP2_DEGREE_6, EXP2_LEAST, EXP2_SHIFT, Simd};
use crate::philox::{RowPhilox, WEYL};
use signflash_core::dropout::philox::{MUL_0, MUL_2};
use std::arch::x86_64::*;

/// Eight lanes of f32.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

impl Simd for Avx2 {
    const LANES: usize = 8;
    const PAIRS: bool = false;
    /// So that `shuffle_ps` of two vectors of 64-bit lanes leaves rows 0 to 3 in the low half and 4 to 7 in the high.
    const PHILOX_ORDER: [usize; 8] = [0, 1, 4, 5, 2, 3, 6, 7];
    type V = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        _mm256_storeu_ps(p, x)
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const u32) -> __m256 {
        _mm256_castsi256_ps(_mm256_set1_epi32(p.read_unaligned() as i32))
    }
    #[inline(always)]
    unsafe fn mac(acc: __m256, a: __m256, b: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, acc)
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn exp2(x: __m256) -> __m256 {
        // In this order of operands the maximum keeps NaN.
        let x = _mm256_max_ps(_mm256_set1_ps(EXP2_LEAST), x);
        let shifted = _mm256_add_ps(x, _mm256_set1_ps(EXP2_SHIFT));
        let f = _mm256_sub_ps(x, _mm256_sub_ps(shifted, _mm256_set1_ps(EXP2_SHIFT)));
        let mut y = _mm256_set1_ps(EXP2_DEGREE_6[0]);
        for &c in &EXP2_DEGREE_6[1..] {
            y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(c));
        }
        _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted))))
    }

    #[inline(always)]
    unsafe fn abs(x: __m256) -> __m256 {
        _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
    }
    #[inline(always)]
    unsafe fn sign_where(x: __m256, drop: *const u16, first: u32) -> __m256 {
        let lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(*drop) >> first), lane_bit);
        let dropped = _mm256_cmpeq_epi32(set, lane_bit);
        let sign = _mm256_slli_epi32::<31>(dropped);
        _mm256_or_ps(x, _mm256_castsi256_ps(sign))
    }
    #[inline(always)]
    unsafe fn by_sign(sign: __m256, plus: __m256, minus: __m256) -> __m256 {
        _mm256_blendv_ps(plus, minus, sign)
    }
    #[inline(always)]
    unsafe fn where_less(a: __m256, b: __m256, x: __m256, otherwise: __m256) -> __m256 {
        _mm256_blendv_ps(otherwise, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    unsafe fn all_less(x: __m256, limit: f32) -> bool {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(limit))) == 0xff
    }
    #[inline(always)]
    unsafe fn any_reaches(x: __m256, limit: f32) -> bool {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(Self::abs(x), _mm256_set1_ps(limit))) != 0
    }
    #[inline(always)]
    unsafe fn where_nonzero(test: __m256, x: __m256, otherwise: __m256) -> __m256 {
        _mm256_blendv_ps(x, otherwise, _mm256_cmp_ps::<_CMP_EQ_OQ>(test, _mm256_setzero_ps()))
    }

    #[inline(always)]
    unsafe fn transpose(src: *const u32, src_ld: usize, dst: *mut u32, dst_ld: usize) {
        let mut r = [_mm256_setzero_ps(); 8];
        for (i, row) in r.iter_mut().enumerate() {
            *row = _mm256_loadu_ps(src.add(i * src_ld).cast());
        }
        let mut t = r;
        for i in 0..4 {
            t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..2 {
            for j in 0..2 {
                let (a, b) = (t[4 * i + j], t[4 * i + 2 + j]);
                r[4 * i + 2 * j] = _mm256_shuffle_ps::<0x44>(a, b);
                r[4 * i + 2 * j + 1] = _mm256_shuffle_ps::<0xee>(a, b);
            }
        }
        for j in 0..4 {
            let column = _mm256_permute2f128_ps::<0x20>(r[j], r[4 + j]);
            _mm256_storeu_ps(dst.add(j * dst_ld).cast(), column);
            let column = _mm256_permute2f128_ps::<0x31>(r[j], r[4 + j]);
            _mm256_storeu_ps(dst.add((j + 4) * dst_ld).cast(), column);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m256) {
        _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m256) {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let words = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
        let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(_mm256_packus_epi32(words, words));
        _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed))
    }

    unsafe fn store_weights(_: *mut u16, _: __m256) {
        unreachable!("words are f32 here")
    }
    unsafe fn store_pair(_: *mut u32, _: __m256, _: __m256) {
        unreachable!("words are f32 here")
    }
    unsafe fn weave(_: *const u32, _: *const u32, _: *mut u32) {
        unreachable!("words are f32 here")
    }

    /// Four calls at a time in the low halves of 64-bit lanes.
    #[inline(always)]
    unsafe fn drop_block(row: &RowPhilox, block_column: u32, threshold: u8, out: *mut u16) {
        let limit = _mm256_set1_epi8(threshold as i8);
        let by_byte = _mm256_setr_epi8(
            0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3,
            7, 11, 15,
        );
        // Bytes 0 and 2 are the even column's rows 0 to 7 and 8 to 15, bytes 1 and 3 the odd one's.
        let by_column = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
        for t in 0..4 {
            let a = rounds(row, 8 * t, block_column);
            let b = rounds(row, 8 * t + 4, block_column);
            for w in 0..4 {
                let rows = _mm256_shuffle_ps::<0x88>(_mm256_castsi256_ps(a[w]), _mm256_castsi256_ps(b[w]));
                let bytes = _mm256_shuffle_epi8(_mm256_castps_si256(rows), by_byte);
                let bytes = _mm256_permutevar8x32_epi32(bytes, by_column);
                let kept = _mm256_cmpeq_epi8(_mm256_max_epu8(bytes, limit), limit);
                let drop = !_mm256_movemask_epi8(kept) as u32;
                out.add(8 * w + 2 * t).cast::<u32>().write_unaligned(drop);
            }
        }
    }
}

/// Rounds 2 to 7 of four calls.
#[inline(always)]
unsafe fn rounds(row: &RowPhilox, first: usize, block_column: u32) -> [__m256i; 4] {
    let (m0, m2) = (_mm256_set1_epi64x(MUL_0 as i64), _mm256_set1_epi64x(MUL_2 as i64));
    let a2 = _mm256_xor_si256(four(&row.a2, first), _mm256_set1_epi64x(i64::from(block_column)));
    let p2 = _mm256_mul_epu32(m2, a2);
    let b0 = _mm256_xor_si256(_mm256_srli_epi64::<32>(p2), _mm256_set1_epi64x(i64::from(row.b0)));
    let p0 = _mm256_mul_epu32(m0, b0);
    let mut c0 = _mm256_xor_si256(four(&row.c0, first), p2);
    let mut c1 = four(&row.c1, first);
    let mut c2 = _mm256_xor_si256(_mm256_srli_epi64::<32>(p0), four(&row.c2, first));
    let mut c3 = p0;
    for weyl in &WEYL[3..] {
        let k0 = _mm256_set1_epi64x(i64::from(row.key[0].wrapping_add(weyl[0])));
        let k1 = _mm256_set1_epi64x(i64::from(row.key[1].wrapping_add(weyl[1])));
        let (p0, p2) = (_mm256_mul_epu32(m0, c0), _mm256_mul_epu32(m2, c2));
        c0 = _mm256_xor_si256(_mm256_srli_epi64::<32>(p2), _mm256_xor_si256(c1, k0));
        c2 = _mm256_xor_si256(_mm256_srli_epi64::<32>(p0), _mm256_xor_si256(c3, k1));
        (c1, c3) = (p2, p0);
    }
    [c0, c1, c2, c3]
}

/// Four calls' share of a row's state.
#[inline(always)]
unsafe fn four(words: &[u32; 32], first: usize) -> __m256i {
    _mm256_cvtepu32_epi64(_mm_loadu_si128(words.as_ptr().add(first).cast()))
}
