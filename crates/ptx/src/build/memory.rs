//! Addresses, loads and stores of one thread.
use super::scope::Thread;
use super::value::{Operand, Val};
use crate::ops::atomic::AddFloats;
use crate::ops::counter::{CounterAdvance, CounterTake, CounterWait};
use crate::ops::cp_async::CopyAsync;
use crate::ops::memory::{Address, Load, Space, Store, Unit};
use crate::types::{B32, F32, Reg, Src, Ty, U32, U64, Width};

/// A place in shared memory: a register and a constant, both in bytes.
#[derive(Clone, Copy, Debug)]
pub struct SmemAddr<'k> {
    pub(crate) base: Val<'k, U32>,
    pub(crate) offset: u32,
}

impl<'k> SmemAddr<'k> {
    /// So many bytes further. Costs nothing.
    pub fn at(self, bytes: u32) -> Self {
        SmemAddr { offset: self.offset + bytes, ..self }
    }

    /// So many bytes further.
    #[track_caller]
    pub fn plus(self, bytes: Val<'k, U32>) -> Self {
        SmemAddr { base: self.base + bytes, ..self }
    }

    /// The way from `origin` to here, for [`TileLanes::from_origin`](super::TileLanes::from_origin).
    #[track_caller]
    pub fn relative_to(self, origin: SmemAddr<'k>) -> Self {
        SmemAddr { base: self.base - origin.base - origin.offset, ..self }
    }

    pub(crate) fn address(self) -> Address {
        Address { space: Space::Shared, base: self.base.src, offset: self.offset.into() }
    }
}

/// A place in global memory: a register and a constant, both in bytes.
#[derive(Clone, Copy, Debug)]
pub struct GlobalAddr<'k> {
    pub(crate) base: Val<'k, U64>,
    pub(crate) offset: i64,
}

impl<'k> GlobalAddr<'k> {
    /// What a pointer points to.
    pub fn new(base: Val<'k, U64>) -> Self {
        GlobalAddr { base, offset: 0 }
    }

    /// So many bytes further. Costs nothing.
    pub fn at(self, bytes: i64) -> Self {
        GlobalAddr { offset: self.offset + bytes, ..self }
    }

    /// So many bytes further.
    #[track_caller]
    pub fn plus(self, bytes: impl Operand<'k, U64>) -> Self {
        GlobalAddr { base: self.base + bytes, ..self }
    }

    pub(crate) fn address(self) -> Address {
        Address { space: Space::Global, base: self.base.src, offset: self.offset }
    }
}

/// Anything with an address.
pub trait Place<'k> {
    #[doc(hidden)]
    fn place(self) -> PlaceAddress;
}

#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct PlaceAddress(pub(crate) Address);

impl<'k> Place<'k> for SmemAddr<'k> {
    fn place(self) -> PlaceAddress {
        PlaceAddress(self.address())
    }
}
impl<'k> Place<'k> for GlobalAddr<'k> {
    fn place(self) -> PlaceAddress {
        PlaceAddress(self.address())
    }
}

impl<'k> Thread<'k> {
    #[track_caller]
    fn load_registers<const N: usize>(self, from: Address, unit: Unit, constant: bool) -> [Reg; N] {
        let dst = [(); N].map(|()| self.0.register(Width::W32));
        self.0.emit(Load { dst: dst.to_vec(), unit, from, constant });
        dst
    }

    /// 4, 8 or 16 bytes: one, two or four words. The address is a multiple of the size.
    #[track_caller]
    pub fn load<T: Ty, const N: usize>(self, from: impl Place<'k>) -> [Val<'k, T>; N] {
        assert_eq!(T::WIDTH, Width::W32, "loads are of words of 32 bits");
        self.load_registers::<N>(from.place().0, Unit::Word, false).map(|reg| Val::new(self.0, Src::Reg(reg)))
    }

    /// The same from global memory that nobody writes during the launch.
    #[track_caller]
    pub fn load_constant<T: Ty, const N: usize>(self, from: GlobalAddr<'k>) -> [Val<'k, T>; N] {
        assert_eq!(T::WIDTH, Width::W32, "loads are of words of 32 bits");
        self.load_registers::<N>(from.address(), Unit::Word, true).map(|reg| Val::new(self.0, Src::Reg(reg)))
    }

    /// 16 bits, zeros above them.
    #[track_caller]
    pub fn load_half(self, from: impl Place<'k>) -> Val<'k, B32> {
        let [reg] = self.load_registers::<1>(from.place().0, Unit::Half, false);
        Val::new(self.0, Src::Reg(reg))
    }

    /// The same from global memory that nobody writes during the launch.
    #[track_caller]
    pub fn load_constant_half(self, from: GlobalAddr<'k>) -> Val<'k, B32> {
        let [reg] = self.load_registers::<1>(from.address(), Unit::Half, true);
        Val::new(self.0, Src::Reg(reg))
    }

    /// 8 bits, zeros above them, from global memory that nobody writes during the launch.
    #[track_caller]
    pub fn load_constant_byte(self, from: GlobalAddr<'k>) -> Val<'k, B32> {
        let [reg] = self.load_registers::<1>(from.address(), Unit::Byte, true);
        Val::new(self.0, Src::Reg(reg))
    }

    /// 4, 8 or 16 bytes.
    #[track_caller]
    pub fn store<T: Ty, const N: usize>(self, to: impl Place<'k>, values: [Val<'k, T>; N]) {
        assert_eq!(T::WIDTH, Width::W32, "stores are of words of 32 bits");
        let src = values.iter().map(|v| v.src).collect();
        self.0.emit(Store { src, unit: Unit::Word, to: to.place().0 });
    }

    /// The low 16 bits.
    #[track_caller]
    pub fn store_half(self, to: impl Place<'k>, value: Val<'k, B32>) {
        self.0.emit(Store { src: vec![value.src], unit: Unit::Half, to: to.place().0 });
    }

    /// Adds to one float of global memory, or to two or four neighbours (Hopper). In which order blocks add is not
    /// known.
    #[track_caller]
    pub fn add_floats<const N: usize>(self, to: GlobalAddr<'k>, values: [Val<'k, F32>; N]) {
        assert!(matches!(N, 1 | 2 | 4), "one, two or four floats are added at once");
        self.0.emit(AddFloats { to: to.address(), src: values.iter().map(|v| v.src).collect() });
    }

    /// Counts one more in global memory (u32). Who [waits](Self::wait_counter) for it finds there what this thread has
    /// written before, and what [`wait_written`](Self::wait_written) has waited for.
    #[track_caller]
    pub fn advance_counter(self, counter: GlobalAddr<'k>) {
        self.0.emit(CounterAdvance { counter: counter.address() });
    }

    /// Waits until a counter is at least so much. That is for blocks that have started when this one does or end
    /// without it: those of lower numbers.
    #[track_caller]
    pub fn wait_counter(self, counter: GlobalAddr<'k>, at_least: Val<'k, U32>) {
        let number = self.0.register(Width::Pred).index; // any number that is used once
        self.0.emit(CounterWait { counter: counter.address(), at_least: at_least.src, number });
    }

    /// Counts one more in global memory (u32), and says how many there were before: a number that no other thread gets.
    #[track_caller]
    pub fn take_number(self, counter: GlobalAddr<'k>) -> Val<'k, U32> {
        let dst = self.0.register(Width::W32);
        self.0.emit(CounterTake { dst, counter: counter.address() });
        Val::new(self.0, Src::Reg(dst))
    }

    /// Starts to copy 16 bytes, or to write zeros where `real` is false; nothing is read there. The data may be
    /// touched after the wait of [`PendingCopy`](super::PendingCopy) or [`CopyRing`](super::CopyRing).
    #[track_caller]
    pub fn copy_async(self, to: SmemAddr<'k>, from: GlobalAddr<'k>, real: Val<'k, crate::types::Pred>) {
        let bytes: Val<'k, U32> = real.select(16u32, 0u32);
        self.0.emit(CopyAsync { to: to.address(), from: from.address(), bytes: bytes.src });
        self.0.copies.borrow_mut().issue();
    }
}
