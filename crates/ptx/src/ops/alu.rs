//! Pure functions of a lane's registers: arithmetic, bits, comparisons, conversions.
//!
//! Each is one row of a table: its PTX, its operands, its meaning. The tests walk the table, so that a new row is
//! printed, compiled by ptxas and compared with a GPU without another line.
//!
//! Floats are always rounded explicitly (`.rn`), because without it ptxas may fuse `mul` and `add`: so these rows agree
//! with a GPU bit for bit. Exceptions are `ex2`, `lg2` and `rcp`, whose `approx` forms are within 2 ulp of what is
//! computed here (PTX ISA, "Floating point instructions").
use super::lanes::{each_lane, narrow, wide};
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::warp::LANES;
use crate::interp::{Fault, Lanes, Machine};
use crate::mutation::Mistake;
use crate::target::Needs;
use crate::types::{B32, F32, Half, Pred, Reg, S32, Src, U32, U64, Width};

/// The type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    U32,
    S32,
    F32,
    B32,
    U64,
    Pred,
}

impl Kind {
    fn text(self, src: Src) -> String {
        match self {
            Kind::U32 => src.text::<U32>(),
            Kind::S32 => src.text::<S32>(),
            Kind::F32 => src.text::<F32>(),
            Kind::B32 => src.text::<B32>(),
            Kind::U64 => src.text::<U64>(),
            Kind::Pred => src.text::<Pred>(),
        }
    }

    /// The register file of such an operand.
    pub fn width(self) -> Width {
        match self {
            Kind::U64 => Width::W64,
            Kind::Pred => Width::Pred,
            _ => Width::W32,
        }
    }
}

/// One row: an instruction without its operands.
#[derive(Debug)]
pub struct Alu {
    /// As PTX writes it.
    pub text: &'static str,
    /// What follows the operands: lop3's table.
    pub suffix: &'static str,
    /// The types of its sources.
    pub inputs: &'static [Kind],
    /// The type of its result.
    pub output: Kind,
    /// What it computes, for one lane.
    pub run: fn([u64; 3]) -> u64,
    /// The same for all lanes at once: loops that the compiler can vectorise, as wide as the widest operand.
    narrow: fn([&Lanes<u32>; 3]) -> Lanes<u32>,
    wide: fn([&Lanes<u64>; 3]) -> Lanes<u64>,
    /// How many units in the last place a GPU may differ by.
    pub ulps: u32,
    /// The least PTX version and GPU.
    pub needs: Needs,
}

/// A row with its operands.
#[derive(Debug)]
pub(crate) struct Apply {
    pub(crate) op: &'static Alu,
    pub(crate) dst: Reg,
    pub(crate) src: [Src; 3],
}

impl Instruction for Apply {
    fn needs(&self) -> Needs {
        self.op.needs
    }

    fn print(&self, ptx: &mut Printer) {
        let operands: Vec<String> =
            self.op.inputs.iter().zip(self.src).map(|(kind, src)| kind.text(src)).collect();
        ptx.line(format_args!("{} {}, {}{}", self.op.text, self.dst, operands.join(", "), self.op.suffix));
    }

    fn slips(&self) -> Vec<Mistake> {
        self.slips_of_row()
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        if self.op.is_wide() {
            self.step_wide(machine)?
        } else {
            self.step_narrow(machine)?
        }
        Ok(Flow::Next)
    }
}

impl Alu {
    fn is_wide(&self) -> bool {
        self.output == Kind::U64 || self.inputs.contains(&Kind::U64)
    }
}

/// Most of what an interpreter does is done here, so that 32 bits are not made 64 of, nor registers copied, without need.
impl Apply {
    fn step_narrow(&self, machine: &mut Machine<'_>) -> Result<(), Fault> {
        let mut spare = [[0; LANES]; 3];
        let mut values = [&[0; LANES]; 3];
        for (((kind, src), value), spare) in self.sources().zip(&mut values).zip(&mut spare) {
            *value = match kind.width() {
                Width::Pred => {
                    *spare = each_lane(&machine.read_pred(src)?, u32::from);
                    spare
                }
                _ => machine.warp.look32(src, spare)?,
            };
        }
        let results = (self.op.narrow)(values);
        match self.op.output.width() {
            Width::Pred => machine.write_pred(self.dst, &each_lane(&results, |x| x != 0)),
            _ => machine.write32(self.dst, &results),
        }
        Ok(())
    }

    fn step_wide(&self, machine: &mut Machine<'_>) -> Result<(), Fault> {
        let mut values = [[0; LANES]; 3];
        for ((kind, src), value) in self.sources().zip(&mut values) {
            *value = match kind.width() {
                Width::W32 => each_lane(&machine.read32(src)?, u64::from),
                Width::W64 => machine.read64(src)?,
                Width::Pred => each_lane(&machine.read_pred(src)?, u64::from),
            };
        }
        let results = (self.op.wide)(values.each_ref());
        match self.op.output.width() {
            Width::W32 => machine.write32(self.dst, &each_lane(&results, |x| x as u32)),
            Width::W64 => machine.write64(self.dst, &results),
            Width::Pred => machine.write_pred(self.dst, &each_lane(&results, |x| x != 0)),
        }
        Ok(())
    }

    fn sources(&self) -> impl Iterator<Item = (Kind, Src)> + use<> {
        self.op.inputs.iter().copied().zip(self.src)
    }
}

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(value: f32) -> u64 {
    value.to_bits().into()
}

/// Subnormals become zeros of their sign.
fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

/// PTX's min and max: the other operand if one is a NaN, and -0 below +0.
fn least(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f32::from_bits(0x7FFF_FFFF),
        (true, false) => b,
        (false, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

fn greatest(a: f32, b: f32) -> f32 {
    if a.is_nan() && b.is_nan() { least(a, b) } else { -least(-a, -b) }
}

/// Canonical NaN, as GPUs return it.
fn canonical(value: f32) -> u64 {
    if value.is_nan() { 0x7FFF_FFFF } else { bits(value) }
}

/// `mul_add`, which calls a library where the compiler may not use the instruction. In f64 the product is exact and the
/// sum is rounded once; rounding it again to f32 matters only halfway between two floats, or if they are subnormal.
fn fused(a: f32, b: f32, c: f32) -> f32 {
    let sum = f64::from(a) * f64::from(b) + f64::from(c);
    let rounded = sum as f32;
    let halfway = sum.to_bits() & 0x1FFF_FFFF == 0x1000_0000;
    if halfway || rounded.abs() <= f32::MIN_POSITIVE { a.mul_add(b, c) } else { rounded }
}

fn pack(half: Half, hi: u64, lo: u64, relu: bool) -> u64 {
    let one = |x: u64| {
        let x = f(x);
        // relu turns negative numbers and -0 into +0; a NaN stays one.
        let x = if relu && !x.is_nan() && x.is_sign_negative() { 0.0 } else { x };
        if x.is_nan() { 0x7FFF } else { half.from_f32(x) }
    };
    u64::from(one(hi)) << 16 | u64::from(one(lo))
}

fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |out, i| {
        let choice = selector >> (4 * i) & 0xF;
        let byte = (bytes >> (8 * (choice & 7))) as u8;
        // Bit 3 of a choice replicates the byte's sign.
        let byte = if choice & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        out | u32::from(byte) << (8 * i)
    })
}

/// 0xFFFF in each half where `a <= b` as f16 numbers.
fn halves_le(a: u64, b: u64) -> u64 {
    let le = |shift: u32| {
        let (a, b) = (Half::F16.to_f32((a >> shift) as u16), Half::F16.to_f32((b >> shift) as u16));
        if a <= b { 0xFFFFu64 << shift } else { 0 }
    };
    le(0) | le(16)
}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $text:literal $(then $suffix:literal)?, [$($input:ident),*] -> $output:ident,
        $run:expr $(, ulps $ulps:literal)? $(, needs $needs:expr)?;)*) => {
        $($(#[$doc])* pub const $name: &Alu = {
            // A constant alone would be compiled again, loops and all, in every crate that names it, and as little
            // optimised as that crate is.
            static ROW: Alu = Alu {
                text: $text,
                suffix: concat!($($suffix)?),
                inputs: &[$(Kind::$input),*],
                output: Kind::$output,
                run: $run,
                narrow: |values| narrow(values, $run),
                wide: |values| wide(values, $run),
                ulps: 0 $(+ $ulps)?,
                needs: { #[allow(unused_mut, unused_assignments)] { let mut needs = Needs::SM80; $(needs = $needs;)? needs } },
            };
            &ROW
        };)*
        /// Every row.
        pub const TABLE: &[&Alu] = &[$($name),*];
    };
}

table! {
    /// A copy, 32 bits.
    MOV32 = "mov.b32", [B32] -> B32, |[a, ..]| a;
    /// A copy, 64 bits.
    MOV64 = "mov.b64", [U64] -> U64, |[a, ..]| a;
    /// Sum, modulo 2^32.
    ADD = "add.u32", [U32, U32] -> U32, |[a, b, _]| (a as u32).wrapping_add(b as u32).into();
    /// Difference, modulo 2^32.
    SUB = "sub.u32", [U32, U32] -> U32, |[a, b, _]| (a as u32).wrapping_sub(b as u32).into();
    /// Low half of the product.
    MUL = "mul.lo.u32", [U32, U32] -> U32, |[a, b, _]| (a as u32).wrapping_mul(b as u32).into();
    /// High half of the product.
    MUL_HI = "mul.hi.u32", [U32, U32] -> U32, |[a, b, _]| (a * b) >> 32;
    /// a * b + c, modulo 2^32.
    MAD = "mad.lo.u32", [U32, U32, U32] -> U32, |[a, b, c]| (a as u32).wrapping_mul(b as u32).wrapping_add(c as u32).into();
    /// Quotient; a divisor of 0 gives all ones.
    DIV = "div.u32", [U32, U32] -> U32, |[a, b, _]| (a as u32).checked_div(b as u32).unwrap_or(u32::MAX).into();
    /// Lesser, unsigned.
    MIN = "min.u32", [U32, U32] -> U32, |[a, b, _]| a.min(b);
    /// Greater, unsigned.
    MAX = "max.u32", [U32, U32] -> U32, |[a, b, _]| a.max(b);
    /// Lesser, signed.
    MIN_S = "min.s32", [S32, S32] -> S32, |[a, b, _]| ((a as i32).min(b as i32) as u32).into();
    /// Greater, signed.
    MAX_S = "max.s32", [S32, S32] -> S32, |[a, b, _]| ((a as i32).max(b as i32) as u32).into();
    /// Bits of both.
    AND = "and.b32", [B32, B32] -> B32, |[a, b, _]| a & b;
    /// Bits of either.
    OR = "or.b32", [B32, B32] -> B32, |[a, b, _]| a | b;
    /// Bits of one alone.
    XOR = "xor.b32", [B32, B32] -> B32, |[a, b, _]| a ^ b;
    /// The three operands' exclusive or. The table is the function of 0xF0, 0xCC, 0xAA.
    XOR3 = "lop3.b32" then ", 0x96", [B32, B32, B32] -> B32, |[a, b, c]| a ^ b ^ c;
    /// The bits of a where c is set, else those of b.
    CHOOSE = "lop3.b32" then ", 0xE4", [B32, B32, B32] -> B32, |[a, b, c]| a & c | b & !c;
    /// Each bit that at least two operands have.
    MAJORITY = "lop3.b32" then ", 0xE8", [B32, B32, B32] -> B32, |[a, b, c]| a & b | b & c | c & a;
    /// The other bits.
    NOT = "not.b32", [B32] -> B32, |[a, ..]| (!(a as u32)).into();
    /// Left by b; 32 and more give 0.
    SHL = "shl.b32", [B32, U32] -> B32, |[a, b, _]| (a as u32).checked_shl(b as u32).unwrap_or(0).into();
    /// Right by b, zeros coming in; 32 and more give 0.
    SHR = "shr.u32", [U32, U32] -> U32, |[a, b, _]| (a as u32).checked_shr(b as u32).unwrap_or(0).into();
    /// Right by b, the sign coming in.
    SHR_S = "shr.s32", [S32, U32] -> S32, |[a, b, _]| (((a as i32) >> (b as u32).min(31)) as u32).into();
    /// Four bytes chosen from eight by the nibbles of c; bit 3 of a nibble replicates the byte's sign.
    PRMT = "prmt.b32", [B32, B32, B32] -> B32, |[a, b, c]| permute(a as u32, b as u32, c as u32).into();
    /// Sum, modulo 2^64.
    ADD64 = "add.u64", [U64, U64] -> U64, |[a, b, _]| a.wrapping_add(b);
    /// Low half of the product.
    MUL64 = "mul.lo.u64", [U64, U64] -> U64, |[a, b, _]| a.wrapping_mul(b);
    /// a * b + c, modulo 2^64.
    MAD64 = "mad.lo.u64", [U64, U64, U64] -> U64, |[a, b, c]| a.wrapping_mul(b).wrapping_add(c);
    /// The whole product of two 32-bit numbers.
    MUL_WIDE = "mul.wide.u32", [U32, U32] -> U64, |[a, b, _]| a * b;
    /// a * b + c with a whole product.
    MAD_WIDE = "mad.wide.u32", [U32, U32, U64] -> U64, |[a, b, c]| (a * b).wrapping_add(c);
    /// The same with signed factors.
    MAD_WIDE_S = "mad.wide.s32", [S32, S32, U64] -> U64,
        |[a, b, c]| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c);
    /// 32 bits as 64.
    WIDEN = "cvt.u64.u32", [U32] -> U64, |[a, ..]| a;
    /// A signed number as 64 bits.
    WIDEN_S = "cvt.s64.s32", [S32] -> U64, |[a, ..]| i64::from(a as i32) as u64;
    /// The low 32 bits.
    LOW = "cvt.u32.u64", [U64] -> U32, |[a, ..]| a & 0xFFFF_FFFF;
    /// Right by b bits; 64 and more give 0.
    SHR64 = "shr.u64", [U64, U32] -> U64, |[a, b, _]| a.checked_shr(b as u32).unwrap_or(0);
    /// Sum.
    ADD_F = "add.rn.f32", [F32, F32] -> F32, |[a, b, _]| canonical(f(a) + f(b));
    /// Difference.
    SUB_F = "sub.rn.f32", [F32, F32] -> F32, |[a, b, _]| canonical(f(a) - f(b));
    /// Product.
    MUL_F = "mul.rn.f32", [F32, F32] -> F32, |[a, b, _]| canonical(f(a) * f(b));
    /// a * b + c, rounded once.
    FMA_F = "fma.rn.f32", [F32, F32, F32] -> F32, |[a, b, c]| canonical(fused(f(a), f(b), f(c)));
    /// Lesser; a NaN loses.
    MIN_F = "min.f32", [F32, F32] -> F32, |[a, b, _]| bits(least(f(a), f(b)));
    /// Greater; a NaN loses.
    MAX_F = "max.f32", [F32, F32] -> F32, |[a, b, _]| bits(greatest(f(a), f(b)));
    /// The other sign.
    NEG_F = "neg.f32", [F32] -> F32, |[a, ..]| canonical(-f(a));
    /// No sign.
    ABS_F = "abs.f32", [F32] -> F32, |[a, ..]| canonical(f(a).abs());
    /// 2^a, subnormals flushed.
    EX2 = "ex2.approx.ftz.f32", [F32] -> F32, |[a, ..]| canonical(flush(flush(f(a)).exp2())), ulps 2;
    /// log2(a), subnormals flushed.
    LG2 = "lg2.approx.ftz.f32", [F32] -> F32, |[a, ..]| canonical(flush(flush(f(a)).log2())), ulps 4;
    /// 1 / a, subnormals flushed.
    RCP = "rcp.approx.ftz.f32", [F32] -> F32, |[a, ..]| canonical(flush(1.0 / flush(f(a)))), ulps 2;
    /// An integer as the nearest float.
    U32_F32 = "cvt.rn.f32.u32", [U32] -> F32, |[a, ..]| bits(a as f32);
    /// A signed integer as the nearest float.
    S32_F32 = "cvt.rn.f32.s32", [S32] -> F32, |[a, ..]| bits(a as i32 as f32);
    /// The f16 number in the low half.
    F16_F32 = "cvt.f32.f16", [B32] -> F32, |[a, ..]| canonical(Half::F16.to_f32(a as u16));
    /// Two floats as bf16: a in the high half, b in the low.
    PACK_BF16 = "cvt.rn.bf16x2.f32", [F32, F32] -> B32, |[a, b, _]| pack(Half::Bf16, a, b, false);
    /// The same, negative ones becoming +0.
    PACK_BF16_RELU = "cvt.rn.relu.bf16x2.f32", [F32, F32] -> B32, |[a, b, _]| pack(Half::Bf16, a, b, true);
    /// Two floats as f16: a in the high half, b in the low.
    PACK_F16 = "cvt.rn.f16x2.f32", [F32, F32] -> B32, |[a, b, _]| pack(Half::F16, a, b, false);
    /// The same, negative ones becoming +0.
    PACK_F16_RELU = "cvt.rn.relu.f16x2.f32", [F32, F32] -> B32, |[a, b, _]| pack(Half::F16, a, b, true);
    /// In each half, all ones where a <= b as f16 numbers, subnormals included.
    LE_F16X2 = "set.le.u32.f16x2", [B32, B32] -> B32, |[a, b, _]| halves_le(a, b);
    /// a == b.
    EQ = "setp.eq.u32", [U32, U32] -> Pred, |[a, b, _]| (a == b).into();
    /// a != b.
    NE = "setp.ne.u32", [U32, U32] -> Pred, |[a, b, _]| (a != b).into();
    /// a < b.
    LT = "setp.lt.u32", [U32, U32] -> Pred, |[a, b, _]| (a < b).into();
    /// a <= b.
    LE = "setp.le.u32", [U32, U32] -> Pred, |[a, b, _]| (a <= b).into();
    /// a < b, signed.
    LT_S = "setp.lt.s32", [S32, S32] -> Pred, |[a, b, _]| ((a as i32) < (b as i32)).into();
    /// a <= b, signed.
    LE_S = "setp.le.s32", [S32, S32] -> Pred, |[a, b, _]| ((a as i32) <= (b as i32)).into();
    /// a == b; a NaN equals nothing.
    EQ_F = "setp.eq.f32", [F32, F32] -> Pred, |[a, b, _]| (f(a) == f(b)).into();
    /// a < b; false with a NaN.
    LT_F = "setp.lt.f32", [F32, F32] -> Pred, |[a, b, _]| (f(a) < f(b)).into();
    /// a != b, 64 bits.
    NE64 = "setp.ne.u64", [U64, U64] -> Pred, |[a, b, _]| (a != b).into();
    /// Both.
    AND_P = "and.pred", [Pred, Pred] -> Pred, |[a, b, _]| a & b;
    /// Either.
    OR_P = "or.pred", [Pred, Pred] -> Pred, |[a, b, _]| a | b;
    /// The contrary.
    NOT_P = "not.pred", [Pred] -> Pred, |[a, ..]| a ^ 1;
    /// a if c, else b.
    SELECT = "selp.b32", [B32, B32, Pred] -> B32, |[a, b, c]| if c != 0 { a } else { b };
    /// a if c, else b, 64 bits.
    SELECT64 = "selp.b64", [U64, U64, Pred] -> U64, |[a, b, c]| if c != 0 { a } else { b };
}
