//! AVX-512 F, BW, DQ, VL; and, with `BF16`, pairs of bf16, whose products are dot products or, with `TILES`, AMX's.

use super::{
    EXP2_DEGREE_5, EXP2_DEGREE_5_ABOVE, EXP2_DEGREE_6, EXP2_LEAST, EXP2_LEAST_NORMAL, EXP2_SHIFT, Simd,
};
use crate::philox::{RowPhilox, WEYL};
use signflash_core::dropout::philox::{MUL_0, MUL_2};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Sixteen lanes; `BF16` makes words pairs of bf16, and `TILES` multiplies these as tiles.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool, const TILES: bool = false>;

/// Down to a whole number, no exceptions.
const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;

/// As [`Simd::exp2`], with the instructions that take a number apart and scale it by a power of two: nine instead of twelve,
/// and of two a cycle on Intel's processors, which are those that have tiles.
#[inline(always)]
unsafe fn exp2_by_scaling(x: __m512) -> __m512 {
    let f = _mm512_reduce_ps::<DOWN>(x);
    let [highest, others @ ..] = EXP2_DEGREE_5_ABOVE;
    let mut y = _mm512_set1_ps(highest);
    for c in others {
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
    }
    // Not less: NaN stays. What would be subnormal is 0: it would take a hundred times as long.
    let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(EXP2_LEAST_NORMAL));
    _mm512_maskz_scalef_ps(normal, y, x)
}

/// Round to nearest even, no exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl<const BF16: bool, const TILES: bool> Simd for Avx512<BF16, TILES> {
    const LANES: usize = 16;
    const PAIRS: bool = BF16;
    const TILES: bool = TILES;
    const PHILOX_ORDER: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
    type V = __m512;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        _mm512_storeu_ps(p, x)
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const u32) -> __m512 {
        _mm512_castsi512_ps(_mm512_set1_epi32(p.read_unaligned() as i32))
    }
    #[inline(always)]
    unsafe fn mac(acc: __m512, a: __m512, b: __m512) -> __m512 {
        if BF16 {
            _mm512_dpbf16_ps(acc, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b))
        } else {
            _mm512_fmadd_ps(a, b, acc)
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn exp2(x: __m512) -> __m512 {
        if TILES {
            return exp2_by_scaling(x);
        }
        // In this order of operands the maximum keeps NaN.
        let x = _mm512_max_ps(_mm512_set1_ps(EXP2_LEAST), x);
        let shifted = _mm512_add_ps(x, _mm512_set1_ps(EXP2_SHIFT));
        let f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, _mm512_set1_ps(EXP2_SHIFT)));
        let coefficients: &[f32] = if BF16 { &EXP2_DEGREE_5 } else { &EXP2_DEGREE_6 };
        let mut y = _mm512_set1_ps(coefficients[0]);
        for &c in &coefficients[1..] {
            y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
        }
        _mm512_mul_ps(y, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(shifted))))
    }

    #[inline(always)]
    unsafe fn abs(x: __m512) -> __m512 {
        _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX)))
    }
    #[inline(always)]
    unsafe fn sign_where(x: __m512, drop: *const u16, _: u32) -> __m512 {
        let x = _mm512_castps_si512(x);
        _mm512_castsi512_ps(_mm512_mask_or_epi32(x, *drop, x, _mm512_set1_epi32(i32::MIN)))
    }
    #[inline(always)]
    unsafe fn by_sign(sign: __m512, plus: __m512, minus: __m512) -> __m512 {
        _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign)), plus, minus)
    }
    #[inline(always)]
    unsafe fn where_less(a: __m512, b: __m512, x: __m512, otherwise: __m512) -> __m512 {
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), otherwise, x)
    }
    #[inline(always)]
    unsafe fn all_less(x: __m512, limit: f32) -> bool {
        _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(limit)) == 0xffff
    }
    #[inline(always)]
    unsafe fn any_reaches(x: __m512, limit: f32) -> bool {
        _mm512_cmp_ps_mask::<_CMP_GE_OQ>(Self::abs(x), _mm512_set1_ps(limit)) != 0
    }
    #[inline(always)]
    unsafe fn where_nonzero(test: __m512, x: __m512, otherwise: __m512) -> __m512 {
        let zero = _mm512_setzero_ps();
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(test, zero), x, otherwise)
    }

    /// Four rounds of pairwise weaving: 32-bit, 64-bit, then 128-bit pieces twice.
    #[inline(always)]
    unsafe fn transpose(src: *const u32, src_ld: usize, dst: *mut u32, dst_ld: usize) {
        let mut r = [_mm512_setzero_si512(); 16];
        for (i, row) in r.iter_mut().enumerate() {
            *row = _mm512_loadu_si512(src.add(i * src_ld).cast());
        }
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            for j in 0..2 {
                r[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
                r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            }
        }
        for i in 0..2 {
            for j in 0..4 {
                t[8 * i + j] = _mm512_shuffle_i32x4::<0x88>(r[8 * i + j], r[8 * i + 4 + j]);
                t[8 * i + 4 + j] = _mm512_shuffle_i32x4::<0xdd>(r[8 * i + j], r[8 * i + 4 + j]);
            }
        }
        for j in 0..8 {
            let column = _mm512_shuffle_i32x4::<0x88>(t[j], t[8 + j]);
            _mm512_storeu_si512(dst.add(j * dst_ld).cast(), column);
            let column = _mm512_shuffle_i32x4::<0xdd>(t[j], t[8 + j]);
            _mm512_storeu_si512(dst.add((j + 8) * dst_ld).cast(), column);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m512) {
        _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<NEAREST>(x))
    }

    /// In integers, because `vcvtneps2bf16` flushes subnormals: add half a unit, or a bit more when the result is odd.
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m512) {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
        let rounded = _mm512_mask_blend_epi32(nan, rounded, quiet);
        _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded)))
    }

    #[inline(always)]
    unsafe fn store_weights(p: *mut u16, x: __m512) {
        _mm256_storeu_si256(p.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)))
    }

    #[inline(always)]
    unsafe fn store_pair(p: *mut u32, even: __m512, odd: __m512) {
        // Indices of (even 0, odd 0, even 1, odd 1, ...), written as 32-bit pairs.
        let woven = _mm512_setr_epi32(
            0x10_0000, 0x11_0001, 0x12_0002, 0x13_0003, 0x14_0004, 0x15_0005, 0x16_0006, 0x17_0007,
            0x18_0008, 0x19_0009, 0x1a_000a, 0x1b_000b, 0x1c_000c, 0x1d_000d, 0x1e_000e, 0x1f_000f,
        );
        let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
        _mm512_storeu_si512(p.cast(), _mm512_permutexvar_epi16(woven, both));
    }

    /// With tiles in integers, which takes half of the time.
    #[inline(always)]
    unsafe fn store_weight_pair(p: *mut u32, even: __m512, odd: __m512) {
        if !TILES {
            return Self::store_pair(p, even, odd);
        }
        let half = _mm512_set1_epi32(0x8000);
        let even = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(even), half));
        let odd = _mm512_add_epi32(_mm512_castps_si512(odd), half);
        _mm512_storeu_si512(p.cast(), _mm512_mask_blend_epi16(0xaaaa_aaaa, even, odd));
    }

    #[inline(always)]
    unsafe fn weave(even: *const u32, odd: *const u32, dst: *mut u32) {
        let (even, odd) = (_mm512_loadu_si512(even.cast()), _mm512_loadu_si512(odd.cast()));
        let low = _mm512_setr_epi32(
            0x20_0000, 0x21_0001, 0x22_0002, 0x23_0003, 0x24_0004, 0x25_0005, 0x26_0006, 0x27_0007,
            0x28_0008, 0x29_0009, 0x2a_000a, 0x2b_000b, 0x2c_000c, 0x2d_000d, 0x2e_000e, 0x2f_000f,
        );
        let high = _mm512_add_epi32(low, _mm512_set1_epi32(0x10_0010));
        _mm512_storeu_si512(dst.cast(), _mm512_permutex2var_epi16(even, low, odd));
        _mm512_storeu_si512(dst.add(16).cast(), _mm512_permutex2var_epi16(even, high, odd));
    }

    /// Eight calls at a time in the low halves of 64-bit lanes; what the high halves hold does not matter.
    #[inline(always)]
    unsafe fn drop_block(row: &RowPhilox, block_column: u32, threshold: u8, out: *mut u16) {
        let (m0, m2) = (_mm512_set1_epi64(MUL_0 as i64), _mm512_set1_epi64(MUL_2 as i64));
        let column = _mm512_set1_epi64(i64::from(block_column));
        let limit = _mm512_set1_epi8(threshold as i8);
        // Behind `black_box`, because LLVM would merge the two shuffles into a chain of twelve.
        let order = std::hint::black_box(&ORDER);
        let beside = _mm512_broadcast_i32x4(_mm_loadu_si128(order.beside.as_ptr().cast()));
        let gathered = _mm512_loadu_si512(order.gathered.as_ptr().cast());
        for t in 0..4 {
            let a2 = _mm512_xor_si512(eight(&row.a2, t), column);
            let p2 = _mm512_mul_epu32(m2, a2);
            let b0 = _mm512_xor_si512(_mm512_srli_epi64::<32>(p2), _mm512_set1_epi64(i64::from(row.b0)));
            let p0 = _mm512_mul_epu32(m0, b0);
            let mut c0 = _mm512_xor_si512(eight(&row.c0, t), p2);
            let mut c1 = eight(&row.c1, t);
            let mut c2 = _mm512_xor_si512(_mm512_srli_epi64::<32>(p0), eight(&row.c2, t));
            let mut c3 = p0;
            for weyl in &WEYL[3..] {
                let k0 = _mm512_set1_epi64(i64::from(row.key[0].wrapping_add(weyl[0])));
                let k1 = _mm512_set1_epi64(i64::from(row.key[1].wrapping_add(weyl[1])));
                let (p0, p2) = (_mm512_mul_epu32(m0, c0), _mm512_mul_epu32(m2, c2));
                c0 = _mm512_ternarylogic_epi64::<0x96>(_mm512_srli_epi64::<32>(p2), c1, k0);
                c2 = _mm512_ternarylogic_epi64::<0x96>(_mm512_srli_epi64::<32>(p0), c3, k1);
                (c1, c3) = (p2, p0);
            }
            for (half, low, high) in [(0, c0, c1), (1, c2, c3)] {
                let both = _mm512_shuffle_ps::<0x88>(_mm512_castsi512_ps(low), _mm512_castsi512_ps(high));
                let bytes = _mm512_shuffle_epi8(_mm512_castps_si512(both), beside);
                let drop: u64 = _mm512_cmpgt_epu8_mask(_mm512_permutexvar_epi16(gathered, bytes), limit);
                let columns = out.add(16 * half + 2 * t);
                columns.cast::<u32>().write_unaligned(drop as u32);
                columns.add(8).cast::<u32>().write_unaligned((drop >> 32) as u32);
            }
        }
    }
}

/// How the bytes of two words of eight calls become the bits of four columns: two shuffles.
struct Order {
    /// Rows r and r + 1 share a 128-bit lane: each of their bytes side by side.
    beside: [u8; 16],
    /// Then by word, column parity, row half and row pair: 16 rows of each of four columns.
    gathered: [u16; 32],
}

static ORDER: Order = Order {
    beside: [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15],
    gathered: [
        0, 8, 16, 24, 2, 10, 18, 26, 1, 9, 17, 25, 3, 11, 19, 27, 4, 12, 20, 28, 6, 14, 22, 30, 5, 13, 21,
        29, 7, 15, 23, 31,
    ],
};

/// Eight calls' share of a row's state.
#[inline(always)]
unsafe fn eight(words: &[u32; 32], t: usize) -> __m512i {
    _mm512_cvtepu32_epi64(_mm256_loadu_si256(words.as_ptr().add(8 * t).cast()))
}
