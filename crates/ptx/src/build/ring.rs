//! Ampere's asynchronous copies, from issue to release. Commits, waits and slots live here and nowhere else.
//!
//! A wait names what it waits for; how many groups are newer, which is what PTX wants to know, is counted here. The
//! count is right because no `if` and no loop may change which copies are in flight (checked while building).
use super::Builder;
use super::memory::SmemAddr;
use super::scope::Cta;
use super::value::{Val, Var};
use crate::ops::cp_async::{CommitGroup, WaitGroup};
use crate::types::{Src, U32};
use std::cell::Cell;
use std::collections::VecDeque;

/// Who committed a group: a ring or a single copy, by number.
type Owner = u32;

/// What is in flight at this place of the code.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    owners: u32,
    groups: VecDeque<Owner>,
    uncommitted: bool,
    barriers: u32,
}

impl Copies {
    fn owner(&mut self) -> Owner {
        self.owners += 1;
        self.owners
    }

    pub(crate) fn issue(&mut self) {
        self.uncommitted = true;
    }

    pub(crate) fn barrier(&mut self) {
        self.barriers += 1;
    }

    /// Groups in flight; the same before and after every loop and `if`.
    pub(crate) fn state(&self) -> VecDeque<Owner> {
        self.groups.clone()
    }

    pub(crate) fn check_end(&self, kernel: &str) {
        assert!(
            self.groups.is_empty(),
            "{kernel} ends with {} groups of copies in flight",
            self.groups.len()
        );
        assert!(!self.uncommitted, "{kernel} ends with copies that were never committed");
    }

    fn commit(&mut self, owner: Owner) {
        self.uncommitted = false;
        self.groups.push_back(owner);
    }

    /// The oldest group of `owner` and all before it land; returns how many stay in flight.
    fn land(&mut self, owner: Owner) -> u32 {
        let at =
            self.groups.iter().position(|o| *o == owner).expect("a copy that is waited for was committed");
        self.groups.drain(..=at);
        self.groups.len() as u32
    }
}

/// Copies in flight. What they write may not be touched before [`wait`](PendingCopy::wait), which the interpreter
/// checks byte by byte.
#[must_use = "a copy in flight must be waited for"]
#[derive(Debug)]
pub struct PendingCopy<'k> {
    builder: &'k Builder,
    owner: Owner,
}

impl<'k> Cta<'k> {
    /// Closes a group of the copies that `issue` starts.
    #[track_caller]
    pub fn copy_group(self, issue: impl FnOnce()) -> PendingCopy<'k> {
        issue();
        let mut copies = self.0.copies.borrow_mut();
        let owner = copies.owner();
        copies.commit(owner);
        drop(copies);
        self.0.emit(CommitGroup);
        PendingCopy { builder: self.0, owner }
    }

    /// `slots` equal pieces of shared memory that are filled and read in turn.
    #[track_caller]
    pub fn copy_ring(self, name: &str, slots: u32, slot_bytes: u32) -> CopyRing<'k> {
        assert!(slots > 0, "a ring has slots");
        let base = self.smem(name, slots * slot_bytes, 1024);
        let zero = || Val::new(self.0, Src::Imm(0)).var();
        let owner = self.0.copies.borrow_mut().owner();
        CopyRing {
            name: name.to_owned(),
            builder: self.0,
            base,
            slots,
            slot_bytes,
            owner,
            read: zero(),
            in_flight: Cell::new(0),
            held: Cell::new(0),
            let_go: Cell::new(None),
        }
    }
}

impl<'k> PendingCopy<'k> {
    /// Waits for these copies and all earlier ones, and meets the whole block: everybody sees the data.
    #[track_caller]
    pub fn wait(self, cta: Cta<'k>) {
        let newer = self.builder.copies.borrow_mut().land(self.owner);
        self.builder.emit(WaitGroup { newer });
        cta.sync();
    }
}

/// A ring of slots between copies and their readers: [`fill`](CopyRing::fill), [`take`](CopyRing::take),
/// [`release`](FullSlot::release).
///
/// ```
/// # use signflash_ptx::{Builder, GlobalAddr, LaunchBounds, U32, Val};
/// let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
/// Builder::build("stream", bounds, |cta| {
///     let x = GlobalAddr::new(cta.param_u64("x"));
///     let rounds = cta.param_u32("rounds");
///     let t = cta.threads();
///     let ring = cta.copy_ring("x", 2, 512);
///     let fill = |round: Val<'_, U32>| {
///         let there = ring.next_fill().plus(t.index() * 16);
///         let from = x.plus((round * 512 + t.index() * 16).widen());
///         ring.fill(cta, || t.copy_async(there, from, round.lt(rounds)));
///     };
///     fill(t.u32(0));
///     let round = t.u32(0).var();
///     cta.while_(|| round.get().lt(rounds), |cta| {
///         let slot = ring.take(cta); //      this round's data, for everybody
///         fill(round.get() + 1); //          the next round's, while we read
///         let _: [_; 4] = t.load::<signflash_ptx::F32, 4>(slot.address().plus(t.index() * 16));
///         slot.release();
///         round.set(round.get() + 1);
///     });
///     ring.take(cta).release(); // the last fill copied nothing, but it was a group
/// });
/// ```
#[derive(Debug)]
pub struct CopyRing<'k> {
    name: String,
    builder: &'k Builder,
    base: SmemAddr<'k>,
    slots: u32,
    slot_bytes: u32,
    owner: Owner,
    /// Where the next slot to be taken starts. That to be filled is so many further as are in flight.
    read: Var<'k, U32>,
    in_flight: Cell<u32>,
    held: Cell<u32>,
    /// The number of block barriers when a slot was last released.
    let_go: Cell<Option<u32>>,
}

impl<'k> CopyRing<'k> {
    /// Where the next [`fill`](Self::fill) goes.
    #[track_caller]
    pub fn next_fill(&self) -> SmemAddr<'k> {
        self.slot(self.in_flight.get())
    }

    /// The slot that is `further` slots behind the next to be taken.
    #[track_caller]
    fn slot(&self, further: u32) -> SmemAddr<'k> {
        if self.slots == 1 { self.base } else { self.base.plus(self.offset(further % self.slots)) }
    }

    #[track_caller]
    fn offset(&self, further: u32) -> Val<'k, U32> {
        let (read, bytes) = (self.read.get(), self.slot_bytes);
        match (further, self.slots) {
            (0, _) => read,
            (_, 2) if bytes.is_power_of_two() => read ^ bytes,
            (_, slots) => {
                let wraps = (read + further * bytes).lt(slots * bytes);
                wraps.select(read + further * bytes, read - (slots - further) * bytes)
            }
        }
    }

    /// Closes a group of the copies into the next slot that `issue` starts. Call it also when there is nothing left to
    /// copy (an empty group lands at once): waits count groups.
    ///
    /// # Panics
    /// While building, if all slots are full or being read, or if a slot was released and the block has not met since.
    #[track_caller]
    pub fn fill(&self, _: Cta<'k>, issue: impl FnOnce()) {
        let copies = self.builder.copies.borrow();
        let unmet = self.let_go.get() == Some(copies.barriers);
        let busy = self.in_flight.get() + self.held.get() + u32::from(unmet);
        assert!(
            busy < self.slots,
            "ring `{}`: all {} slots are full or still being read",
            self.name,
            self.slots
        );
        drop(copies);
        issue();
        self.builder.copies.borrow_mut().commit(self.owner);
        self.builder.emit(CommitGroup);
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// Waits for the oldest slot that was filled, and meets the whole block. That also means that everybody is done
    /// with what was released before.
    #[track_caller]
    pub fn take(&self, cta: Cta<'k>) -> FullSlot<'_, 'k> {
        assert!(self.in_flight.get() > 0, "ring `{}`: nothing was filled", self.name);
        let newer = self.builder.copies.borrow_mut().land(self.owner);
        self.builder.emit(WaitGroup { newer });
        cta.sync();
        self.in_flight.set(self.in_flight.get() - 1);
        self.held.set(self.held.get() + 1);
        let address = self.slot(0);
        if self.slots > 1 {
            self.read.set(self.offset(1));
        }
        FullSlot { ring: self, address, released: false }
    }
}

/// A slot whose data is there. It must be released.
#[must_use = "a slot must be released"]
#[derive(Debug)]
pub struct FullSlot<'r, 'k> {
    ring: &'r CopyRing<'k>,
    address: SmemAddr<'k>,
    released: bool,
}

impl<'k> FullSlot<'_, 'k> {
    /// Where the data is.
    pub fn address(&self) -> SmemAddr<'k> {
        self.address
    }

    /// This thread has read all it wants. The slot can be filled once the block has met again.
    pub fn release(mut self) {
        self.released = true;
        self.ring.held.set(self.ring.held.get() - 1);
        self.ring.let_go.set(Some(self.ring.builder.copies.borrow().barriers));
    }
}

impl Drop for FullSlot<'_, '_> {
    fn drop(&mut self) {
        if !self.released && !std::thread::panicking() {
            panic!("ring `{}`: a slot was taken and never released", self.ring.name);
        }
    }
}
