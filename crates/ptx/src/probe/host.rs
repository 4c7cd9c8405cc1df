//! The table's rows again, by other means: wide integers, f64 and tables of bits. Nothing here calls what the
//! interpreter calls.
use crate::ops::alu::Alu;
use crate::types::Half;

const NAN: u64 = 0x7FFF_FFFF;

/// What a row computes.
///
/// # Panics
/// For a row that this file has not heard of: a new row needs its reference.
pub(super) fn evaluate(row: &Alu, x: [u64; 3]) -> u64 {
    let [a, b, c] = x;
    let wide = x.map(u128::from);
    let signed = x.map(|x| i128::from(x & 0x7FFF_FFFF) - i128::from(x & 0x8000_0000));
    let low32 = |x: u128| (x % (1 << 32)) as u64;
    let low64 = |x: u128| (x % (1 << 64)) as u64;
    match row.text {
        "mov.b32" | "mov.b64" | "cvt.u64.u32" => a,
        "add.u32" => low32(wide[0] + wide[1]),
        "sub.u32" => low32((1 << 32) + wide[0] - wide[1]),
        "mul.lo.u32" => low32(wide[0] * wide[1]),
        "mul.hi.u32" => low32((wide[0] * wide[1]) / (1 << 32)),
        "mad.lo.u32" => low32(wide[0] * wide[1] + wide[2]),
        "div.u32" if b == 0 => 0xFFFF_FFFF,
        "div.u32" => a / b,
        "min.u32" => {
            if a < b {
                a
            } else {
                b
            }
        }
        "max.u32" => {
            if a > b {
                a
            } else {
                b
            }
        }
        "min.s32" => {
            if signed[0] < signed[1] {
                a
            } else {
                b
            }
        }
        "max.s32" => {
            if signed[0] > signed[1] {
                a
            } else {
                b
            }
        }
        "and.b32" => bitwise(0xC0, x),
        "or.b32" => bitwise(0xFC, x),
        "xor.b32" => bitwise(0x3C, x),
        "not.b32" => bitwise(0x0F, x),
        "lop3.b32" => {
            let table = row.suffix.trim_start_matches(", 0x");
            bitwise(u32::from_str_radix(table, 16).expect("lop3's table"), x)
        }
        "shl.b32" if b > 31 => 0,
        "shl.b32" => low32(wide[0] * 2u128.pow(b as u32)),
        "shr.u32" if b > 31 => 0,
        "shr.u32" => a / 2u64.pow(b as u32),
        "shr.s32" => (signed[0].div_euclid(2i128.pow(b.min(31) as u32)) as u32).into(),
        "prmt.b32" => permute(a, b, c),
        "add.u64" => low64(wide[0] + wide[1]),
        "mul.lo.u64" => low64((wide[0] * wide[1]) % (1 << 64)),
        "mad.lo.u64" => low64((wide[0] * wide[1]) % (1 << 64) + wide[2]),
        "mul.wide.u32" => low64(wide[0] * wide[1]),
        "mad.wide.u32" => low64(wide[0] * wide[1] + wide[2]),
        "mad.wide.s32" => (signed[0] * signed[1] + i128::from(c)).rem_euclid(1 << 64) as u64,
        "cvt.s64.s32" => signed[0].rem_euclid(1 << 64) as u64,
        "cvt.u32.u64" => low32(wide[0]),
        "shr.u64" if b > 63 => 0,
        "shr.u64" => a / 2u64.pow(b as u32),
        "cvt.rn.f32.u32" => round(a as f64),
        "cvt.rn.f32.s32" => round(signed[0] as f64),
        "set.le.u32.f16x2" => {
            let le = |i: u32| half_value(Half::F16, a >> i) <= half_value(Half::F16, b >> i);
            u64::from(le(0)) * 0xFFFF + u64::from(le(16)) * 0xFFFF_0000
        }
        "setp.eq.u32" => (a == b).into(),
        "setp.ne.u32" | "setp.ne.u64" => (a != b).into(),
        "setp.lt.u32" => (a < b).into(),
        "setp.le.u32" => (a <= b).into(),
        "setp.lt.s32" => (signed[0] < signed[1]).into(),
        "setp.le.s32" => (signed[0] <= signed[1]).into(),
        "and.pred" => a * b,
        "or.pred" => (a + b).min(1),
        "not.pred" => 1 - a,
        "selp.b32" | "selp.b64" => [b, a][c as usize],
        _ => floats(row, x),
    }
}

fn floats(row: &Alu, x: [u64; 3]) -> u64 {
    let [a, b, c] = x.map(|x| f64::from(f32::from_bits(x as u32)));
    let flush = |x: f64| if x.abs() < f64::from(f32::MIN_POSITIVE) { 0.0f64.copysign(x) } else { x };
    match row.text {
        // One operation in f64, rounded again to f32, is as good as one in f32: 53 >= 2 * 24 + 2.
        "add.rn.f32" => round(a + b),
        "sub.rn.f32" => round(a - b),
        "mul.rn.f32" => round(a * b),
        "fma.rn.f32" => round(to_odd(a * b, c)),
        "min.f32" => lesser(x[0], x[1]),
        "max.f32" => match lesser(x[0] ^ 0x8000_0000, x[1] ^ 0x8000_0000) {
            NAN => NAN,
            least => least ^ 0x8000_0000,
        },
        "neg.f32" | "abs.f32" if a.is_nan() => NAN,
        "neg.f32" => x[0] ^ 0x8000_0000,
        "abs.f32" => x[0] & 0x7FFF_FFFF,
        "setp.eq.f32" => (a == b).into(),
        "setp.lt.f32" => (a < b).into(),
        "ex2.approx.ftz.f32" => round(flush(flush(a).exp2())),
        "lg2.approx.ftz.f32" => round(flush(flush(a).log2())),
        "rcp.approx.ftz.f32" => round(flush(1.0 / flush(a))),
        "cvt.f32.f16" => round(half_value(Half::F16, x[0])),
        "cvt.rn.bf16x2.f32" => pack(Half::Bf16, [b, a], false),
        "cvt.rn.relu.bf16x2.f32" => pack(Half::Bf16, [b, a], true),
        "cvt.rn.f16x2.f32" => pack(Half::F16, [b, a], false),
        "cvt.rn.relu.f16x2.f32" => pack(Half::F16, [b, a], true),
        other => panic!("`{other}` has no reference: add one beside its row"),
    }
}

fn round(x: f64) -> u64 {
    if x.is_nan() { NAN } else { (x as f32).to_bits().into() }
}

/// p + c, rounded to odd: rounding it to f32 afterwards gives the correctly rounded sum (Boldo, Melquiond 2008).
fn to_odd(p: f64, c: f64) -> f64 {
    let s = p + c;
    let z = s - p;
    let error = (p - (s - z)) + (c - z);
    if !s.is_finite() || error == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    let away = (error > 0.0) == (s > 0.0);
    f64::from_bits(if away { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// The lesser in the order of signed magnitudes, where -0 is below +0; a NaN loses.
fn lesser(a: u64, b: u64) -> u64 {
    let is_nan = |x: u64| x & 0x7FFF_FFFF > 0x7F80_0000;
    let key = |x: u64| if x >> 31 == 1 { -((x & 0x7FFF_FFFF) as i64) - 1 } else { x as i64 };
    match (is_nan(a), is_nan(b)) {
        (true, true) => NAN,
        (true, false) => b,
        (false, true) => a,
        _ => {
            if key(a) < key(b) {
                a
            } else {
                b
            }
        }
    }
}

/// A function of three bits, for each of 32 bits, by its table.
fn bitwise(table: u32, [a, b, c]: [u64; 3]) -> u64 {
    let bit = |x: u64, i: u32| x >> i & 1;
    let one = |i| u64::from(table >> (bit(a, i) << 2 | bit(b, i) << 1 | bit(c, i)) & 1) << i;
    (0..32).map(one).sum()
}

fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let mut bytes = (a as u32).to_le_bytes().to_vec();
    bytes.extend((b as u32).to_le_bytes());
    let chosen = [0, 1, 2, 3].map(|i| {
        let nibble = (selector as usize / 16usize.pow(i)) % 16;
        let byte = bytes[nibble % 8];
        match nibble {
            0..8 => byte,
            _ if byte < 128 => 0x00,
            _ => 0xFF,
        }
    });
    u32::from_le_bytes(chosen).into()
}

/// Bits of mantissa, exponent of the least normal number.
fn format(half: Half) -> (i32, i32) {
    match half {
        Half::F16 => (10, -14),
        Half::Bf16 => (7, -126),
    }
}

/// The value of the low 16 bits.
pub(super) fn half_value(half: Half, bits: u64) -> f64 {
    let (mantissa_bits, least) = format(half);
    let exponents = 1 << (15 - mantissa_bits);
    let (exponent, mantissa) =
        ((bits as i32 & 0x7FFF) >> mantissa_bits, bits as i32 & ((1 << mantissa_bits) - 1));
    let magnitude = match (exponent, mantissa) {
        (0, m) => f64::from(m) * 2f64.powi(least - mantissa_bits),
        (e, 0) if e == exponents - 1 => f64::INFINITY,
        (e, _) if e == exponents - 1 => return f64::NAN,
        (e, m) => f64::from(m + (1 << mantissa_bits)) * 2f64.powi(e - 1 + least - mantissa_bits),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// The nearest 16-bit float, ties to even: the value is a multiple of a power of two, which is then counted.
fn half_bits(half: Half, x: f64) -> u64 {
    let (mantissa_bits, least) = format(half);
    if x.is_nan() {
        return 0x7FFF;
    }
    let sign = u64::from(x.is_sign_negative()) << 15;
    let infinity = 0x7FFF >> mantissa_bits << mantissa_bits;
    if x.is_infinite() {
        return sign | infinity;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7FF) as i32 - 1023).max(least);
    let quantum = 2f64.powi(exponent - mantissa_bits);
    let count = (x.abs() / quantum).round_ties_even() as u64;
    // Counts run on from one exponent into the next, as the bits do.
    let start = (exponent - least) as u64 * (1 << mantissa_bits);
    sign | (start + count).min(infinity)
}

fn pack(half: Half, [low, high]: [f64; 2], relu: bool) -> u64 {
    let one = |x: f64| match half_bits(half, x) {
        bits if relu && !x.is_nan() && bits >= 0x8000 => 0,
        bits => bits,
    };
    one(high) << 16 | one(low)
}
