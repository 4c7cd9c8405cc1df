//! Plain Rust over four lanes, which compilers turn into whatever the target guarantees (SSE2, NEON, ...).

use super::{EXP2_DEGREE_6, EXP2_LEAST, EXP2_SHIFT, Simd};
use crate::philox::RowPhilox;
use half::{bf16, f16};

/// Four lanes of f32.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; 4];

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> V {
    [f(0), f(1), f(2), f(3)]
}

/// A fused multiply-add only where the target has one: elsewhere it would be a library call.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

impl Simd for Portable {
    const LANES: usize = 4;
    const PAIRS: bool = false;
    const PHILOX_ORDER: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
    type V = V;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        p.cast::<V>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: V) {
        p.cast::<V>().write_unaligned(x)
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const u32) -> V {
        [f32::from_bits(p.read_unaligned()); 4]
    }
    #[inline(always)]
    unsafe fn mac(acc: V, a: V, b: V) -> V {
        lanes(|i| fma(a[i], b[i], acc[i]))
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        lanes(|i| fma(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    unsafe fn exp2(x: V) -> V {
        lanes(|i| {
            // Written so that NaN stays.
            let x = if EXP2_LEAST > x[i] { EXP2_LEAST } else { x[i] };
            let shifted = x + EXP2_SHIFT;
            let f = x - (shifted - EXP2_SHIFT);
            let mut y = EXP2_DEGREE_6[0];
            for &c in &EXP2_DEGREE_6[1..] {
                y = fma(y, f, c);
            }
            y * f32::from_bits(shifted.to_bits() << 23)
        })
    }

    #[inline(always)]
    unsafe fn abs(x: V) -> V {
        lanes(|i| x[i].abs())
    }
    #[inline(always)]
    unsafe fn sign_where(x: V, drop: *const u16, first: u32) -> V {
        let drop = u32::from(*drop) >> first;
        lanes(|i| f32::from_bits(x[i].to_bits() | (drop >> i & 1) << 31))
    }
    #[inline(always)]
    unsafe fn by_sign(sign: V, plus: V, minus: V) -> V {
        lanes(|i| if sign[i].is_sign_negative() { minus[i] } else { plus[i] })
    }
    #[inline(always)]
    unsafe fn where_less(a: V, b: V, x: V, otherwise: V) -> V {
        lanes(|i| if a[i] < b[i] { x[i] } else { otherwise[i] })
    }
    #[inline(always)]
    unsafe fn all_less(x: V, limit: f32) -> bool {
        x.iter().all(|&x| x < limit)
    }
    #[inline(always)]
    unsafe fn any_reaches(x: V, limit: f32) -> bool {
        x.iter().any(|x| x.abs() >= limit)
    }
    #[inline(always)]
    unsafe fn where_nonzero(test: V, x: V, otherwise: V) -> V {
        lanes(|i| if test[i] == 0.0 { otherwise[i] } else { x[i] })
    }

    #[inline(always)]
    unsafe fn transpose(src: *const u32, src_ld: usize, dst: *mut u32, dst_ld: usize) {
        for r in 0..4 {
            for c in 0..4 {
                *dst.add(c * dst_ld + r) = src.add(r * src_ld + c).read_unaligned();
            }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> V {
        lanes(|i| f16::from_bits(*p.add(i)).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> V {
        lanes(|i| bf16::from_bits(*p.add(i)).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: V) {
        for (i, x) in x.into_iter().enumerate() {
            *p.add(i) = f16::from_f32(x).to_bits();
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: V) {
        for (i, x) in x.into_iter().enumerate() {
            *p.add(i) = bf16::from_f32(x).to_bits();
        }
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

    #[inline(always)]
    unsafe fn drop_block(row: &RowPhilox, block_column: u32, threshold: u8, out: *mut u16) {
        let out = std::slice::from_raw_parts_mut(out, 32);
        out.fill(0);
        for (index, words) in row.words(block_column).into_iter().enumerate() {
            let (t, row) = (index / 8, index % 8);
            for (w, word) in words.into_iter().enumerate() {
                for (n, byte) in word.to_le_bytes().into_iter().enumerate() {
                    out[8 * w + 2 * t + n % 2] |= u16::from(byte > threshold) << (row + 8 * (n / 2));
                }
            }
        }
    }
}
