//! Values and variables of the GPU.
use super::Builder;
use crate::ops::alu::{self, Alu, Apply};
use crate::types::{B32, F32, Pred, Reg, S32, Src, Ty, U32, U64, Width};
use std::marker::PhantomData;

/// A value that a register or a constant holds, the same from here on. `'k` ties it to its kernel.
///
/// There is no `PartialOrd`: `if a < b` in Rust would be a choice made while building. [`lt`](Val::lt) gives a
/// [`Pred`].
#[derive(Clone, Copy, Debug)]
pub struct Val<'k, T> {
    pub(crate) builder: &'k Builder,
    pub(crate) src: Src,
    ty: PhantomData<T>,
}

/// What may stand beside a [`Val`] of type `T`: another one, or a constant of Rust.
pub trait Operand<'k, T> {
    /// Its bits.
    fn src(self) -> Src;
}

impl<'k, T> Operand<'k, T> for Val<'k, T> {
    fn src(self) -> Src {
        self.src
    }
}

macro_rules! constants {
    ($($rust:ty => $($ty:ident),*;)*) => {$($(
        impl<'k> Operand<'k, $ty> for $rust {
            fn src(self) -> Src {
                Src::Imm(self.to_bits_u64())
            }
        }
    )*)*};
}

trait ToBits {
    fn to_bits_u64(self) -> u64;
}
impl ToBits for u32 {
    fn to_bits_u64(self) -> u64 {
        self.into()
    }
}
impl ToBits for i32 {
    fn to_bits_u64(self) -> u64 {
        (self as u32).into()
    }
}
impl ToBits for u64 {
    fn to_bits_u64(self) -> u64 {
        self
    }
}
impl ToBits for f32 {
    fn to_bits_u64(self) -> u64 {
        self.to_bits().into()
    }
}
impl ToBits for bool {
    fn to_bits_u64(self) -> u64 {
        self.into()
    }
}
constants! {
    u32 => U32, B32;
    i32 => S32;
    u64 => U64;
    f32 => F32;
}

impl Builder {
    #[track_caller]
    pub(crate) fn apply<'k, T: Ty>(&'k self, op: &'static Alu, src: [Src; 3]) -> Val<'k, T> {
        debug_assert_eq!(op.output.width(), T::WIDTH);
        let dst = self.register(T::WIDTH);
        self.emit(Apply { op, dst, src });
        Val::new(self, Src::Reg(dst))
    }
}

const NONE: Src = Src::Imm(0);

impl<'k, T: Ty> Val<'k, T> {
    pub(crate) fn new(builder: &'k Builder, src: Src) -> Self {
        Val { builder, src, ty: PhantomData }
    }

    #[track_caller]
    pub(crate) fn unary<U: Ty>(self, op: &'static Alu) -> Val<'k, U> {
        self.builder.apply(op, [self.src, NONE, NONE])
    }

    #[track_caller]
    pub(crate) fn binary<U: Ty>(self, op: &'static Alu, b: Src) -> Val<'k, U> {
        self.builder.apply(op, [self.src, b, NONE])
    }

    #[track_caller]
    pub(crate) fn ternary<U: Ty>(self, op: &'static Alu, b: Src, c: Src) -> Val<'k, U> {
        self.builder.apply(op, [self.src, b, c])
    }

    /// A variable that starts as this.
    #[track_caller]
    pub fn var(self) -> Var<'k, T> {
        let var = Var::new(self.builder);
        var.set(self);
        var
    }

    /// The same bits as another type of the same width.
    pub fn cast<U: Ty>(self) -> Val<'k, U> {
        assert_eq!(T::WIDTH, U::WIDTH, "a cast keeps the width");
        Val::new(self.builder, self.src)
    }
}

/// A register that changes: what a loop carries. [`get`](Var::get) copies, so that a later [`set`](Var::set) cannot
/// change a [`Val`] that was handed out; ptxas removes the copy where it is not needed.
#[derive(Debug)]
pub struct Var<'k, T> {
    builder: &'k Builder,
    pub(crate) reg: Reg,
    ty: PhantomData<T>,
}

impl<'k, T: Ty> Var<'k, T> {
    pub(crate) fn new(builder: &'k Builder) -> Self {
        Var { builder, reg: builder.register(T::WIDTH), ty: PhantomData }
    }

    pub(crate) fn of(builder: &'k Builder, reg: Reg) -> Self {
        Var { builder, reg, ty: PhantomData }
    }

    /// Its value where it is used, without a copy: an operand that must stay in its register.
    pub(crate) fn in_place(&self) -> Src {
        Src::Reg(self.reg)
    }

    fn mov() -> &'static Alu {
        match T::WIDTH {
            Width::W32 => alu::MOV32,
            Width::W64 => alu::MOV64,
            Width::Pred => panic!("keep a condition as a number and compare it where it is needed"),
        }
    }

    /// Its value now.
    #[track_caller]
    pub fn get(&self) -> Val<'k, T> {
        self.builder.apply(Self::mov(), [Src::Reg(self.reg), NONE, NONE])
    }

    /// Gives it another value.
    #[track_caller]
    pub fn set(&self, value: impl Operand<'k, T>) {
        self.builder.emit(Apply { op: Self::mov(), dst: self.reg, src: [value.src(), NONE, NONE] });
    }
}

impl<'k> Val<'k, Pred> {
    /// Where it holds `a`, elsewhere `b`.
    #[track_caller]
    pub fn select<T: Ty>(self, a: impl Operand<'k, T>, b: impl Operand<'k, T>) -> Val<'k, T> {
        let op = if T::WIDTH == Width::W64 { alu::SELECT64 } else { alu::SELECT };
        self.builder.apply(op, [a.src(), b.src(), self.src])
    }
}
