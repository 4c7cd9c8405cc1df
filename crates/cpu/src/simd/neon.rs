//! NEON of 64-bit ARM, which every such processor has: eight lanes in two vectors of four, so that sixteen sums are under way.

use super::{EXP2_DEGREE_6, EXP2_LEAST, EXP2_SHIFT, Simd};
use crate::philox::{RowPhilox, WEYL};
use signflash_core::dropout::philox::{MUL_0, MUL_2};
use std::arch::aarch64::*;
use std::arch::asm;

/// Eight lanes of f32.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

type V = [float32x4_t; 2];

/// The same of both halves.
#[inline(always)]
fn halves(f: impl Fn(usize) -> float32x4_t) -> V {
    [f(0), f(1)]
}

#[inline(always)]
unsafe fn as_bits(x: float32x4_t) -> uint32x4_t {
    vreinterpretq_u32_f32(x)
}

impl Simd for Neon {
    const LANES: usize = 8;
    const PAIRS: bool = false;
    const PHILOX_ORDER: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
    type V = V;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [vdupq_n_f32(x); 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        [vld1q_f32(p), vld1q_f32(p.add(4))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: V) {
        vst1q_f32(p, x[0]);
        vst1q_f32(p.add(4), x[1]);
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const u32) -> V {
        Self::splat(f32::from_bits(p.read_unaligned()))
    }
    #[inline(always)]
    unsafe fn mac(acc: V, a: V, b: V) -> V {
        halves(|i| vfmaq_f32(acc[i], a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        halves(|i| vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        halves(|i| vsubq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        halves(|i| vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        halves(|i| vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        // `fmax` would make NaN of either's.
        halves(|i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    unsafe fn exp2(x: V) -> V {
        // In this order of operands the maximum keeps NaN.
        let x = Self::max(Self::splat(EXP2_LEAST), x);
        halves(|i| {
            let shift = vdupq_n_f32(EXP2_SHIFT);
            let shifted = vaddq_f32(x[i], shift);
            let f = vsubq_f32(x[i], vsubq_f32(shifted, shift));
            let mut y = vdupq_n_f32(EXP2_DEGREE_6[0]);
            for &c in &EXP2_DEGREE_6[1..] {
                y = vfmaq_f32(vdupq_n_f32(c), y, f);
            }
            vmulq_f32(y, vreinterpretq_f32_u32(vshlq_n_u32::<23>(as_bits(shifted))))
        })
    }

    #[inline(always)]
    unsafe fn abs(x: V) -> V {
        halves(|i| vabsq_f32(x[i]))
    }
    #[inline(always)]
    unsafe fn sign_where(x: V, drop: *const u16, first: u32) -> V {
        let drop = vdupq_n_u32(u32::from(*drop) >> first);
        halves(|i| {
            let bits = vld1q_u32(LANE_BITS[i].as_ptr());
            let sign = vshlq_n_u32::<31>(vtstq_u32(drop, bits));
            vreinterpretq_f32_u32(vorrq_u32(as_bits(x[i]), sign))
        })
    }
    #[inline(always)]
    unsafe fn by_sign(sign: V, plus: V, minus: V) -> V {
        halves(|i| vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(sign[i])), minus[i], plus[i]))
    }
    #[inline(always)]
    unsafe fn where_less(a: V, b: V, x: V, otherwise: V) -> V {
        halves(|i| vbslq_f32(vcltq_f32(a[i], b[i]), x[i], otherwise[i]))
    }
    #[inline(always)]
    unsafe fn all_less(x: V, limit: f32) -> bool {
        let limit = vdupq_n_f32(limit);
        vminvq_u32(vandq_u32(vcltq_f32(x[0], limit), vcltq_f32(x[1], limit))) != 0
    }
    #[inline(always)]
    unsafe fn any_reaches(x: V, limit: f32) -> bool {
        let limit = vdupq_n_f32(limit);
        vmaxvq_u32(vorrq_u32(vcageq_f32(x[0], limit), vcageq_f32(x[1], limit))) != 0
    }
    #[inline(always)]
    unsafe fn where_nonzero(test: V, x: V, otherwise: V) -> V {
        halves(|i| vbslq_f32(vceqzq_f32(test[i]), otherwise[i], x[i]))
    }

    /// Four blocks of four by four: 32-bit, then 64-bit pieces.
    #[inline(always)]
    unsafe fn transpose(src: *const u32, src_ld: usize, dst: *mut u32, dst_ld: usize) {
        for (first, word) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
            let row = |r: usize| vld1q_u32(src.add((first + r) * src_ld + word));
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let wide = |x| vreinterpretq_u64_u32(x);
            let low = (wide(vtrn1q_u32(a, b)), wide(vtrn1q_u32(c, d)));
            let high = (wide(vtrn2q_u32(a, b)), wide(vtrn2q_u32(c, d)));
            let columns = [
                vtrn1q_u64(low.0, low.1),
                vtrn1q_u64(high.0, high.1),
                vtrn2q_u64(low.0, low.1),
                vtrn2q_u64(high.0, high.1),
            ];
            for (n, column) in columns.into_iter().enumerate() {
                vst1q_u32(dst.add((word + n) * dst_ld + first), vreinterpretq_u32_u64(column));
            }
        }
    }

    /// By assembly: the intrinsics' type of f16 is not stable.
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> V {
        let halfs = vld1q_u16(p);
        let (low, high);
        asm!(
            "fcvtl {low:v}.4s, {halfs:v}.4h",
            "fcvtl2 {high:v}.4s, {halfs:v}.8h",
            halfs = in(vreg) halfs,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
        [low, high]
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> V {
        let halfs = vld1q_u16(p);
        let wide = [vshll_n_u16::<16>(vget_low_u16(halfs)), vshll_high_n_u16::<16>(halfs)];
        halves(|i| vreinterpretq_f32_u32(wide[i]))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: V) {
        let halfs: uint16x8_t;
        asm!(
            "fcvtn {halfs:v}.4h, {low:v}.4s",
            "fcvtn2 {halfs:v}.8h, {high:v}.4s",
            low = in(vreg) x[0],
            high = in(vreg) x[1],
            halfs = out(vreg) halfs,
            options(pure, nomem, nostack, preserves_flags),
        );
        vst1q_u16(p, halfs);
    }

    /// Adds half a unit, or a bit more when the result is odd.
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: V) {
        let round = |x: float32x4_t| {
            let bits = as_bits(x);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
            vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(x, x), rounded, quiet))
        };
        vst1q_u16(p, vcombine_u16(round(x[0]), round(x[1])));
    }

    unsafe fn store_weights(_: *mut u16, _: V) {
        unreachable!("words are f32 here")
    }
    unsafe fn store_pair(_: *mut u32, _: V, _: V) {
        unreachable!("words are f32 here")
    }
    unsafe fn weave(_: *const u32, _: *const u32, _: *mut u32) {
        unreachable!("words are f32 here")
    }

    /// Eight calls at a time: those of one pair of columns.
    #[inline(always)]
    unsafe fn drop_block(row: &RowPhilox, block_column: u32, threshold: u8, out: *mut u16) {
        let limit = vdupq_n_u8(threshold);
        let bits = vld1q_u8(ROW_BITS.as_ptr());
        for t in 0..4 {
            let a = rounds(row, 8 * t, block_column);
            let b = rounds(row, 8 * t + 4, block_column);
            for w in 0..4 {
                let words = uint8x16x2_t(vreinterpretq_u8_u32(a[w]), vreinterpretq_u8_u32(b[w]));
                // Bytes 0 and 2 are the even column's rows 0 to 7 and 8 to 15, bytes 1 and 3 the odd one's.
                for (odd, bytes) in BYTES.iter().enumerate() {
                    let bytes = vqtbl2q_u8(words, vld1q_u8(bytes.as_ptr()));
                    let drop = vandq_u8(vcgtq_u8(bytes, limit), bits);
                    let rows = [vaddv_u8(vget_low_u8(drop)), vaddv_u8(vget_high_u8(drop))];
                    *out.add(8 * w + 2 * t + odd) = u16::from_le_bytes(rows);
                }
            }
        }
    }
}

/// The bit of each lane.
static LANE_BITS: [[u32; 4]; 2] = [[1, 2, 4, 8], [16, 32, 64, 128]];

/// The bit of each row, twice.
static ROW_BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];

/// Of eight words, the bytes that are rows 0 to 15 of the even column; and of the odd one.
static BYTES: [[u8; 16]; 2] = [
    [0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30],
    [1, 5, 9, 13, 17, 21, 25, 29, 3, 7, 11, 15, 19, 23, 27, 31],
];

/// The high and the low halves of four products.
#[inline(always)]
unsafe fn product(factor: u32, x: uint32x4_t) -> (uint32x4_t, uint32x4_t) {
    let factor = vdupq_n_u32(factor);
    let low = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(x), vget_low_u32(factor)));
    let high = vreinterpretq_u32_u64(vmull_high_u32(x, factor));
    (vuzp2q_u32(low, high), vuzp1q_u32(low, high))
}

/// Rounds 2 to 7 of four calls.
#[inline(always)]
unsafe fn rounds(row: &RowPhilox, first: usize, block_column: u32) -> [uint32x4_t; 4] {
    let four = |words: &[u32; 32]| vld1q_u32(words.as_ptr().add(first));
    let (hi2, lo2) = product(MUL_2, veorq_u32(four(&row.a2), vdupq_n_u32(block_column)));
    let (hi0, lo0) = product(MUL_0, veorq_u32(hi2, vdupq_n_u32(row.b0)));
    let mut c = [veorq_u32(four(&row.c0), lo2), four(&row.c1), veorq_u32(hi0, four(&row.c2)), lo0];
    for weyl in &WEYL[3..] {
        let ((hi0, lo0), (hi2, lo2)) = (product(MUL_0, c[0]), product(MUL_2, c[2]));
        let keyed = |x, n: usize| veorq_u32(x, vdupq_n_u32(row.key[n].wrapping_add(weyl[n])));
        c = [veorq_u32(hi2, keyed(c[1], 0)), lo2, veorq_u32(hi0, keyed(c[3], 1)), lo0];
    }
    c
}
