//! Arithmetic on values: operators where Rust has them, methods elsewhere. One row of the table each.
use super::value::{Operand, Val};
use crate::ops::alu;
use crate::types::{B32, F32, Half, Pred, S32, Src, U32, U64};
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Shl, Shr, Sub};

impl<'k, R: Operand<'k, U32>> Div<R> for Val<'k, U32> {
    type Output = Val<'k, U32>;
    /// By a power of two that is known now it is a shift: ptxas makes a long division of it where the dividend is the
    /// same for all lanes.
    #[track_caller]
    fn div(self, rhs: R) -> Self::Output {
        match rhs.src() {
            Src::Imm(divisor) if divisor.is_power_of_two() => {
                self.binary(alu::SHR, Src::Imm(divisor.trailing_zeros().into()))
            }
            src => self.binary(alu::DIV, src),
        }
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $ty:ident $rhs:ident $row:ident;)*) => {$(
        impl<'k, R: Operand<'k, $rhs>> $trait<R> for Val<'k, $ty> {
            type Output = Val<'k, $ty>;
            #[track_caller]
            fn $method(self, rhs: R) -> Self::Output {
                self.binary(alu::$row, rhs.src())
            }
        }
    )*};
}
operators! {
    Add add U32 U32 ADD;
    Sub sub U32 U32 SUB;
    Mul mul U32 U32 MUL;
    Add add S32 S32 ADD;
    Sub sub S32 S32 SUB;
    Shr shr S32 U32 SHR_S;
    BitAnd bitand U32 U32 AND;
    BitOr bitor U32 U32 OR;
    BitXor bitxor U32 U32 XOR;
    Shl shl U32 U32 SHL;
    Shr shr U32 U32 SHR;
    BitAnd bitand B32 B32 AND;
    BitOr bitor B32 B32 OR;
    BitXor bitxor B32 B32 XOR;
    Shl shl B32 U32 SHL;
    Shr shr B32 U32 SHR;
    Add add U64 U64 ADD64;
    Mul mul U64 U64 MUL64;
    Shr shr U64 U32 SHR64;
    Add add F32 F32 ADD_F;
    Sub sub F32 F32 SUB_F;
    Mul mul F32 F32 MUL_F;
    BitAnd bitand Pred Pred AND_P;
    BitOr bitor Pred Pred OR_P;
}

impl<'k> Neg for Val<'k, F32> {
    type Output = Self;
    #[track_caller]
    fn neg(self) -> Self {
        self.unary(alu::NEG_F)
    }
}
impl<'k> Not for Val<'k, Pred> {
    type Output = Self;
    #[track_caller]
    fn not(self) -> Self {
        self.unary(alu::NOT_P)
    }
}
impl<'k> Not for Val<'k, B32> {
    type Output = Self;
    #[track_caller]
    fn not(self) -> Self {
        self.unary(alu::NOT)
    }
}

macro_rules! methods {
    ($ty:ident: $($(#[$doc:meta])* $name:ident($($arg:ident: $rhs:ident),*) -> $out:ident $row:ident;)*) => {
        impl<'k> Val<'k, $ty> {$(
            $(#[$doc])*
            #[track_caller]
            pub fn $name(self, $($arg: impl Operand<'k, $rhs>),*) -> Val<'k, $out> {
                methods!(@call self, $row, $($arg),*)
            }
        )*}
    };
    (@call $self:ident, $row:ident,) => { $self.unary(alu::$row) };
    (@call $self:ident, $row:ident, $a:ident) => { $self.binary(alu::$row, $a.src()) };
    (@call $self:ident, $row:ident, $a:ident, $b:ident) => { $self.ternary(alu::$row, $a.src(), $b.src()) };
}

methods! { U32:
    /// The lesser.
    min(other: U32) -> U32 MIN;
    /// The greater.
    max(other: U32) -> U32 MAX;
    /// The high half of the product.
    mul_hi(other: U32) -> U32 MUL_HI;
    /// The whole product.
    mul_wide(other: U32) -> U64 MUL_WIDE;
    /// self * b + c with a whole product.
    mul_wide_add(b: U32, c: U64) -> U64 MAD_WIDE;
    /// self * b + c.
    mul_add(b: U32, c: U32) -> U32 MAD;
    /// As 64 bits.
    widen() -> U64 WIDEN;
    /// As a float.
    to_f32() -> F32 U32_F32;
    /// self == other.
    eq(other: U32) -> Pred EQ;
    /// self != other.
    ne(other: U32) -> Pred NE;
    /// self < other.
    lt(other: U32) -> Pred LT;
    /// self <= other.
    le(other: U32) -> Pred LE;
}
methods! { S32:
    /// As 64 bits, the sign kept.
    widen() -> U64 WIDEN_S;
    /// The lesser.
    min(other: S32) -> S32 MIN_S;
    /// The greater.
    max(other: S32) -> S32 MAX_S;
    /// self * b + c with a whole product.
    mul_wide_add(b: S32, c: U64) -> U64 MAD_WIDE_S;
    /// As a float.
    to_f32() -> F32 S32_F32;
    /// self < other.
    lt(other: S32) -> Pred LT_S;
    /// self <= other.
    le(other: S32) -> Pred LE_S;
}
methods! { U64:
    /// self * b + c.
    mul_add(b: U64, c: U64) -> U64 MAD64;
    /// The low 32 bits.
    low() -> U32 LOW;
    /// self != other.
    ne(other: U64) -> Pred NE64;
}
methods! { F32:
    /// self * b + c, rounded once.
    mul_add(b: F32, c: F32) -> F32 FMA_F;
    /// The lesser; a NaN loses.
    min(other: F32) -> F32 MIN_F;
    /// The greater; a NaN loses.
    max(other: F32) -> F32 MAX_F;
    /// No sign.
    abs() -> F32 ABS_F;
    /// 2^self, within 2 ulp; subnormals are flushed.
    ex2() -> F32 EX2;
    /// log2(self), within 4 ulp.
    lg2() -> F32 LG2;
    /// 1 / self, within 2 ulp.
    rcp() -> F32 RCP;
    /// self == other; a NaN equals nothing.
    eq(other: F32) -> Pred EQ_F;
    /// self < other; false with a NaN.
    lt(other: F32) -> Pred LT_F;
}
methods! { B32:
    /// Four bytes of `self` (0 to 3) and `other` (4 to 7), chosen by the nibbles of `selector`, lowest first. Bit 3 of
    /// a nibble replicates the byte's sign.
    permute(other: B32, selector: B32) -> B32 PRMT;
    /// self ^ b ^ c.
    xor3(b: B32, c: B32) -> B32 XOR3;
    /// The bits of self where `mask` is set, else those of b.
    choose(b: B32, mask: B32) -> B32 CHOOSE;
    /// Each bit that at least two of the three have.
    majority(b: B32, c: B32) -> B32 MAJORITY;
    /// The f16 number in the low half.
    f16_to_f32() -> F32 F16_F32;
    /// In each half all ones where self <= b as f16 numbers, subnormals included.
    le_f16x2(b: B32) -> B32 LE_F16X2;
}

impl<'k> Val<'k, U32> {
    /// The remainder of a division by a constant.
    #[track_caller]
    pub fn modulo(self, divisor: u32) -> Val<'k, U32> {
        if divisor.is_power_of_two() { self & (divisor - 1) } else { self - self / divisor * divisor }
    }
}

impl<'k> Val<'k, B32> {
    /// The 16-bit float in the low half.
    #[track_caller]
    pub fn half_to_f32(self, half: Half) -> Val<'k, F32> {
        match half {
            Half::Bf16 => (self << 16u32).cast(),
            Half::F16 => self.f16_to_f32(),
        }
    }
}

impl<'k> Val<'k, F32> {
    /// Two 16-bit floats, `self` in the low half. With `relu` negative ones, -0 too, become +0.
    #[track_caller]
    pub fn pack(self, high: Val<'k, F32>, half: Half, relu: bool) -> Val<'k, B32> {
        let row = match (half, relu) {
            (Half::Bf16, false) => alu::PACK_BF16,
            (Half::Bf16, true) => alu::PACK_BF16_RELU,
            (Half::F16, false) => alu::PACK_F16,
            (Half::F16, true) => alu::PACK_F16_RELU,
        };
        high.binary(row, self.src)
    }
}
