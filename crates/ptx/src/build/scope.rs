//! Who executes: the receiver of a method says it, and only what it can do exists there.
use super::Builder;
use super::memory::SmemAddr;
use super::value::{Operand, Val};
use crate::kernel::Param;
use crate::ops::barrier::{NamedBarrier, WarpBarrier};
use crate::ops::control::Exit;
use crate::ops::param::{LoadParam, LoadSpecial, SmemBase, Special};
use crate::ops::shuffle::{From, Shuffle};
use crate::ops::vote::Any;
use crate::types::{F32, Pred, Src, Ty, U32, U64, Width};

/// All threads of the block, which meet here.
#[derive(Clone, Copy, Debug)]
pub struct Cta<'k>(pub(crate) &'k Builder);

/// Each warp, its 32 lanes in step.
#[derive(Clone, Copy, Debug)]
pub struct Warp<'k>(pub(crate) &'k Builder);

/// Each thread for itself.
#[derive(Clone, Copy, Debug)]
pub struct Thread<'k>(pub(crate) &'k Builder);

impl<'k> Cta<'k> {
    pub(crate) fn new(builder: &'k Builder) -> Self {
        Cta(builder)
    }

    /// Every warp of the block.
    pub fn warps(self) -> Warp<'k> {
        Warp(self.0)
    }

    /// Every thread of the block.
    pub fn threads(self) -> Thread<'k> {
        Thread(self.0)
    }

    #[track_caller]
    fn param<T: Ty>(self, name: &'static str) -> Val<'k, T> {
        let index = self.0.add_param(Param { name, ty: T::NAME });
        let dst = self.0.register(T::WIDTH);
        self.0.emit(LoadParam { dst, index, name, ty: T::NAME });
        Val::new(self.0, Src::Reg(dst))
    }

    /// The next parameter of the kernel: 32 bits.
    #[track_caller]
    pub fn param_u32(self, name: &'static str) -> Val<'k, U32> {
        self.param(name)
    }

    /// The next parameter of the kernel: 64 bits.
    #[track_caller]
    pub fn param_u64(self, name: &'static str) -> Val<'k, U64> {
        self.param(name)
    }

    /// The next parameter of the kernel: a float.
    #[track_caller]
    pub fn param_f32(self, name: &'static str) -> Val<'k, F32> {
        self.param(name)
    }

    /// The number of this block in the grid.
    #[track_caller]
    pub fn index(self) -> Val<'k, U32> {
        special(self.0, Special::Block)
    }

    /// How many blocks there are.
    #[track_caller]
    pub fn count(self) -> Val<'k, U32> {
        special(self.0, Special::Blocks)
    }

    /// Shared memory, laid out behind what was asked for before. `name` appears in reports and in the PTX.
    #[track_caller]
    pub fn smem(self, name: &str, bytes: u32, align: u32) -> SmemAddr<'k> {
        let offset = self.0.add_region(name, bytes, align);
        let base = self.0.register(Width::W32);
        self.0.emit(SmemBase { dst: base });
        SmemAddr { base: Val::new(self.0, Src::Reg(base)), offset }
    }

    /// Waits for all threads of the block; their accesses to shared memory so far are before all from now on.
    #[track_caller]
    pub fn sync(self) {
        self.0.emit(NamedBarrier { id: Src::Imm(0), threads: self.0.bounds.block_threads, waits: true });
        self.0.copies.borrow_mut().barrier();
    }

    /// Ends the block.
    #[track_caller]
    pub fn exit(self) {
        self.0.emit(Exit);
    }
}

fn special<'k>(builder: &'k Builder, special: Special) -> Val<'k, U32> {
    let dst = builder.register(Width::W32);
    builder.emit(LoadSpecial { dst, special });
    Val::new(builder, Src::Reg(dst))
}

impl<'k> Warp<'k> {
    /// Every lane of the warp.
    pub fn threads(self) -> Thread<'k> {
        Thread(self.0)
    }

    /// Its number in the block, the same value in all lanes.
    #[track_caller]
    pub fn index(self) -> Val<'k, U32> {
        let index = self.threads().index() >> 5;
        self.shuffle(index, From::Lane(0))
    }

    /// Lanes see each other's accesses to shared memory from here on.
    #[track_caller]
    pub fn sync(self) {
        self.0.emit(WarpBarrier);
    }

    /// Waits with the other warps that come to this barrier, `threads` in all, themselves included. Numbers 1 to 15:
    /// 0 is [`Cta::sync`]'s.
    #[track_caller]
    pub fn sync_among(self, id: impl Operand<'k, U32>, threads: u32) {
        assert!(threads.is_multiple_of(32), "a barrier of {threads} threads");
        self.0.emit(NamedBarrier { id: id.src(), threads, waits: true });
    }

    #[track_caller]
    fn shuffle<T: Ty>(self, value: Val<'k, T>, from: From) -> Val<'k, T> {
        assert_eq!(T::WIDTH, Width::W32, "a shuffle moves 32 bits");
        let dst = self.0.register(Width::W32);
        self.0.emit(Shuffle { dst, src: value.src, from });
        Val::new(self.0, Src::Reg(dst))
    }

    /// The value of lane 0 in all lanes. ptxas then knows that it is the same everywhere, and can keep it in a uniform
    /// register.
    #[track_caller]
    pub fn uniform<T: Ty>(self, value: Val<'k, T>) -> Val<'k, T> {
        self.shuffle(value, From::Lane(0))
    }

    /// Whether it holds in some lane.
    #[track_caller]
    pub fn any(self, cond: Val<'k, Pred>) -> Val<'k, Pred> {
        let dst = self.0.register(Width::Pred);
        self.0.emit(Any { dst, src: cond.src });
        Val::new(self.0, Src::Reg(dst))
    }

    /// The value of the lane whose number differs in `bits`.
    #[track_caller]
    pub fn shuffle_xor<T: Ty>(self, value: Val<'k, T>, bits: u32) -> Val<'k, T> {
        self.shuffle(value, From::Xor(bits))
    }
}

impl<'k> Thread<'k> {
    /// Its number in the block.
    #[track_caller]
    pub fn index(self) -> Val<'k, U32> {
        special(self.0, Special::Thread)
    }

    /// Cycles of the multiprocessor's clock, from wherever on, modulo 2^32: for measurements. Always 0 in the
    /// interpreter.
    #[track_caller]
    pub fn clock(self) -> Val<'k, U32> {
        special(self.0, Special::Clock)
    }

    /// Its number in its warp.
    #[track_caller]
    pub fn lane(self) -> Val<'k, U32> {
        self.index() & 31
    }

    /// A constant as a value.
    pub fn u32(self, constant: u32) -> Val<'k, U32> {
        Val::new(self.0, Operand::<U32>::src(constant))
    }

    /// A constant as a value.
    pub fn f32(self, constant: f32) -> Val<'k, F32> {
        Val::new(self.0, Operand::<F32>::src(constant))
    }
}
