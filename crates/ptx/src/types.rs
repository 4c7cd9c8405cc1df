//! What a register holds: markers for the type system, widths for the register file.

/// A register file of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 32 bits, `.b32 %r`.
    W32,
    /// 64 bits, `.b64 %rd`.
    W64,
    /// One predicate, `.pred %p`.
    Pred,
}

/// One virtual register: the driver's compiler maps it to a physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reg {
    /// Which file it is in.
    pub width: Width,
    /// Its number there.
    pub index: u32,
}

/// A register or a constant's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Src {
    /// Read from a register.
    Reg(Reg),
    /// The bits themselves.
    Imm(u64),
}

/// The type of a [`Val`](crate::Val). PTX registers are untyped bits; these keep floats from being added as integers.
pub trait Ty: Copy + std::fmt::Debug + 'static {
    /// Where such values live.
    const WIDTH: Width;
    /// As PTX writes it, without the dot.
    const NAME: &'static str;
    /// How a constant is written.
    fn literal(bits: u64) -> String;
}

macro_rules! types {
    ($($(#[$doc:meta])* $name:ident $width:ident $text:literal $literal:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;
        impl Ty for $name {
            const WIDTH: Width = Width::$width;
            const NAME: &'static str = $text;
            fn literal(bits: u64) -> String {
                let literal: fn(u64) -> String = $literal;
                literal(bits)
            }
        }
    )*};
}

types! {
    /// Unsigned 32-bit integer.
    U32 W32 "u32" |bits| format!("{}", bits as u32);
    /// Signed 32-bit integer.
    S32 W32 "s32" |bits| format!("{}", bits as u32 as i32);
    /// 32-bit float.
    F32 W32 "f32" |bits| format!("0f{:08X}", bits as u32);
    /// 32 bits of no arithmetic type: two packed 16-bit floats, four bytes, a mask.
    B32 W32 "b32" |bits| format!("0x{:08X}", bits as u32);
    /// Unsigned 64-bit integer: an address, a byte offset.
    U64 W64 "u64" |bits| format!("{bits}");
    /// True or false, a lane each.
    Pred Pred "pred" |bits| format!("{}", bits & 1);
}

/// The two 16-bit float formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE half: 5 bits of exponent, 10 of mantissa.
    F16,
    /// bfloat16: 8 bits of exponent, 7 of mantissa.
    Bf16,
}

impl Half {
    /// As PTX writes it, without the dot.
    pub fn name(self) -> &'static str {
        match self {
            Half::F16 => "f16",
            Half::Bf16 => "bf16",
        }
    }

    /// The value of 16 bits.
    pub fn to_f32(self, bits: u16) -> f32 {
        match self {
            Half::F16 => half::f16::from_bits(bits).to_f32(),
            Half::Bf16 => half::bf16::from_bits(bits).to_f32(),
        }
    }

    /// The nearest 16-bit float, ties to even.
    pub fn from_f32(self, value: f32) -> u16 {
        match self {
            Half::F16 => half::f16::from_f32(value).to_bits(),
            Half::Bf16 => half::bf16::from_f32(value).to_bits(),
        }
    }
}
