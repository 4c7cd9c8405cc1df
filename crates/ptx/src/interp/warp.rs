//! One warp: its registers, which lanes are active, and where it is.
use super::clock::{Clock, Knowledge};
use super::fault::{Fault, Rule};
use super::global::Global;
use super::products::{Held, Products};
use crate::ops::wgmma::in_flight;
use crate::types::{Reg, Src, Width};
use std::panic::Location;

pub(crate) const LANES: usize = 32;
pub(crate) const ALL: u32 = u32::MAX;

/// A value for each lane.
pub type Lanes<T> = [T; LANES];

/// Registers of one width. A lane's register is poison until it is written.
#[derive(Debug)]
pub(crate) struct File<T> {
    values: Vec<Lanes<T>>,
    written: Vec<u32>,
    /// How products under way use each.
    held: Vec<Held>,
    /// How many fences there had been when it was last written.
    written_at: Vec<u32>,
    fences: u32,
    /// One that was written while a product held it.
    clobbered: Option<u32>,
}

impl<T: Copy + Default> File<T> {
    pub(crate) fn new(len: u32) -> Self {
        let len = len as usize;
        File {
            values: vec![[T::default(); LANES]; len],
            written: vec![0; len],
            held: vec![Held::No; len],
            written_at: vec![0; len],
            fences: 0,
            clobbered: None,
        }
    }

    /// All of it is poison again; a block's memory serves the next, since there is much of it.
    fn poison(&mut self) {
        self.written.fill(0);
        self.held.fill(Held::No);
        self.written_at.fill(0);
        self.fences = 0;
        self.clobbered = None;
    }

    pub(super) fn hold(&mut self, index: u32, how: Held) {
        self.held[index as usize] = how;
    }

    /// Everything written so far may be used by products.
    pub(super) fn fence(&mut self) {
        self.fences += 1;
    }

    pub(super) fn is_fenced(&self, index: u32) -> bool {
        self.written_at[index as usize] < self.fences
    }

    pub(super) fn take_clobbered(&mut self) -> Option<u32> {
        self.clobbered.take()
    }

    /// Writes a result that a product holds.
    pub(super) fn poke(&mut self, reg: Reg, values: Lanes<T>) {
        self.written[reg.index as usize] = ALL;
        self.values[reg.index as usize] = values;
    }

    fn read(&self, reg: Reg, mask: u32) -> Result<&Lanes<T>, Fault> {
        if self.held[reg.index as usize] == Held::Result {
            return Err(in_flight(reg.index, "read", "an earlier line"));
        }
        self.peek(reg, mask)
    }

    /// The same of a result that a product holds.
    pub(super) fn peek(&self, reg: Reg, mask: u32) -> Result<&Lanes<T>, Fault> {
        let index = reg.index as usize;
        if self.written[index] & mask != mask {
            let lane = (mask & !self.written[index]).trailing_zeros();
            return Err(Fault::new(
                Rule::Uninitialised,
                format!("register {reg} is read in lane {lane} before it is written"),
            ));
        }
        Ok(&self.values[index])
    }

    fn write(&mut self, reg: Reg, mask: u32, values: &Lanes<T>) {
        let index = reg.index as usize;
        if self.held[index] != Held::No {
            self.clobbered = Some(reg.index);
        }
        self.written_at[index] = self.fences;
        self.written[index] |= mask;
        if mask == ALL {
            self.values[index] = *values;
            return;
        }
        for lane in (0..LANES).filter(|lane| mask >> lane & 1 == 1) {
            self.values[index][lane] = values[lane];
        }
    }
}

/// Lanes that wait at a join for the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) before: u32,
    pub(crate) other: u32,
}

/// What a bulk copy brings to global memory.
#[derive(Debug)]
pub(crate) struct BulkWrite {
    pub(crate) to: u64,
    pub(crate) bytes: Vec<u8>,
    /// f32 numbers are added to what is there.
    pub(crate) add: bool,
    pub(crate) at: &'static Location<'static>,
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// 32 lanes in step.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) pc: usize,
    pub(crate) mask: u32,
    pub(crate) frames: Vec<Frame>,
    pub(crate) done: bool,
    pub(crate) parked: Option<String>,
    /// Whether what it is parked for is what another block does.
    pub(crate) awaits_block: bool,
    /// What all lanes know.
    pub(crate) known: Knowledge,
    /// What some lanes alone know, because they alone waited for a barrier.
    private: Vec<(u32, Knowledge)>,
    /// Accesses of this warp up to this time are before the next of every lane of it.
    pub(crate) met: u32,
    /// When each lane last touched shared memory.
    pub(crate) touched: Lanes<u32>,
    /// The generation of the named barrier it waits at.
    pub(crate) waiting: Option<u64>,
    /// Committed groups of cp.async, oldest first; each holds the flights that it will land.
    pub(crate) groups: std::collections::VecDeque<Vec<u32>>,
    /// Copies since the last commit.
    pub(crate) uncommitted: Vec<u32>,
    /// Groups of bulk stores, oldest first.
    pub(crate) bulk_groups: std::collections::VecDeque<Vec<u32>>,
    /// Bulk stores since the last commit.
    pub(crate) bulk_uncommitted: Vec<u32>,
    /// What bulk copies bring to global memory, oldest first: as late as it may, which is when it is waited for, or at the
    /// warp's end.
    pub(crate) bulk_writes: Vec<BulkWrite>,
    /// wgmma's products under way.
    pub(super) products: Products,
    pub(crate) r32: File<u32>,
    pub(crate) r64: File<u64>,
    pub(crate) pred: File<bool>,
}

impl Warp {
    pub(crate) fn new(index: usize, warps: usize, registers: [u32; 3]) -> Warp {
        let mut clock = Clock::new(warps);
        clock.0[index] = 1;
        Warp {
            index,
            pc: 0,
            mask: ALL,
            frames: Vec::new(),
            done: false,
            parked: None,
            awaits_block: false,
            known: Knowledge { clock, fenced: Clock::new(warps) },
            private: Vec::new(),
            met: 0,
            touched: [0; LANES],
            waiting: None,
            groups: Default::default(),
            uncommitted: Vec::new(),
            bulk_groups: Default::default(),
            bulk_uncommitted: Vec::new(),
            bulk_writes: Vec::new(),
            products: Products::default(),
            r32: File::new(registers[0]),
            r64: File::new(registers[1]),
            pred: File::new(registers[2]),
        }
    }

    /// A warp of the next block, in the place of one that has ended.
    pub(crate) fn again(self, warps: usize) -> Warp {
        let Warp { index, mut r32, mut r64, mut pred, .. } = self;
        r32.poison();
        r64.poison();
        pred.poison();
        Warp { r32, r64, pred, ..Warp::new(index, warps, [0; 3]) }
    }

    /// Its own time.
    #[inline]
    pub(crate) fn now(&self) -> u32 {
        self.known.clock.0[self.index]
    }

    /// Everything so far is before everything from now on, for whoever learns of it now.
    pub(crate) fn tick(&mut self) {
        self.known.clock.0[self.index] += 1;
    }

    /// All lanes meet: what one did or knows is before whatever another does.
    pub(crate) fn meet(&mut self) {
        self.gather();
        self.met = self.now();
        self.tick();
    }

    /// What some lanes know becomes known to all.
    pub(crate) fn gather(&mut self) {
        for (_, knowledge) in std::mem::take(&mut self.private) {
            self.known.join(&knowledge);
        }
    }

    /// What lanes of `mask` make known when they arrive somewhere: their own accesses, and those of other lanes only up
    /// to where they met.
    pub(crate) fn published(&self, mask: u32) -> Knowledge {
        let mut published = self.known.clone();
        let others = (0..LANES).filter(|lane| mask >> lane & 1 == 0);
        if others.into_iter().any(|lane| self.touched[lane] > self.met) {
            published.clock.0[self.index] = self.met;
        }
        for (lanes, knowledge) in self.private.iter().filter(|(lanes, _)| mask & !lanes == 0) {
            debug_assert_ne!(*lanes, 0);
            published.join(knowledge);
        }
        published
    }

    /// The active lanes learn something.
    pub(crate) fn learn(&mut self, what: &Knowledge) {
        if self.mask == ALL {
            self.met = self.met.max(what.clock.0.get(self.index).copied().unwrap_or(0));
            self.known.join(what);
        } else {
            match self.private.iter_mut().find(|(lanes, _)| *lanes == self.mask) {
                Some((_, knowledge)) => knowledge.join(what),
                None => self.private.push((self.mask, what.clone())),
            }
        }
        self.tick();
    }

    /// Whether an access by another warp (or copy) is before the next one of this lane.
    #[inline]
    pub(crate) fn knows(&self, lane: usize, who: usize, time: u32) -> bool {
        self.known.clock.knows(who, time) || self.in_private(lane, |k| k.clock.knows(who, time))
    }

    /// Whether a store is visible to an asynchronous copy that this lane starts now.
    pub(crate) fn knows_fenced(&self, lane: usize, who: usize, time: u32) -> bool {
        self.known.fenced.knows(who, time) || self.in_private(lane, |k| k.fenced.knows(who, time))
    }

    fn in_private(&self, lane: usize, knows: impl Fn(&Knowledge) -> bool) -> bool {
        self.private
            .iter()
            .any(|(lanes, knowledge)| lane < LANES && lanes >> lane & 1 == 1 && knows(knowledge))
    }

    /// Where a value for each lane stands: in its register, or, if it is a constant, in `spare`.
    #[inline]
    pub(crate) fn look32<'a>(&'a self, src: Src, spare: &'a mut Lanes<u32>) -> Result<&'a Lanes<u32>, Fault> {
        match src {
            Src::Reg(reg) => self.r32.read(reg, self.mask),
            Src::Imm(bits) => {
                *spare = [bits as u32; LANES];
                Ok(spare)
            }
        }
    }

    pub(crate) fn read32(&self, src: Src) -> Result<Lanes<u32>, Fault> {
        match src {
            Src::Reg(reg) => self.r32.read(reg, self.mask).copied(),
            Src::Imm(bits) => Ok([bits as u32; LANES]),
        }
    }

    pub(crate) fn read64(&self, src: Src) -> Result<Lanes<u64>, Fault> {
        match src {
            Src::Reg(reg) => self.r64.read(reg, self.mask).copied(),
            Src::Imm(bits) => Ok([bits; LANES]),
        }
    }

    pub(crate) fn read_pred(&self, src: Src) -> Result<Lanes<bool>, Fault> {
        match src {
            Src::Reg(reg) => self.pred.read(reg, self.mask).copied(),
            Src::Imm(bits) => Ok([bits & 1 == 1; LANES]),
        }
    }

    pub(crate) fn write32(&mut self, reg: Reg, values: &Lanes<u32>) {
        debug_assert_eq!(reg.width, Width::W32);
        self.r32.write(reg, self.mask, values);
    }

    pub(crate) fn write64(&mut self, reg: Reg, values: &Lanes<u64>) {
        debug_assert_eq!(reg.width, Width::W64);
        self.r64.write(reg, self.mask, values);
    }

    pub(crate) fn write_pred(&mut self, reg: Reg, values: &Lanes<bool>) {
        debug_assert_eq!(reg.width, Width::Pred);
        self.pred.write(reg, self.mask, values);
    }

    /// What it brings to global memory is there.
    pub(crate) fn land_writes(
        &mut self,
        global: &mut Global,
    ) -> Result<(), (&'static Location<'static>, Fault)> {
        self.bulk_writes.drain(..).try_for_each(|BulkWrite { to, bytes, add, at }| {
            let landed = if add { global.add_f32(to, &floats(&bytes)) } else { global.begin(to, &bytes) };
            landed.map_err(|fault| (at, fault))
        })
    }

    /// It has run its last instruction.
    pub(crate) fn finish(&mut self) -> Result<(), Fault> {
        let groups = self.groups.iter().chain(&self.bulk_groups);
        let copies: usize = groups.chain([&self.uncommitted, &self.bulk_uncommitted]).map(Vec::len).sum();
        if copies > 0 {
            let text = format!("{copies} asynchronous copies were issued and never waited for");
            return Err(Fault::new(Rule::Abandoned, text));
        }
        if self.products.are_under_way() {
            let text = "products were started and never waited for";
            return Err(Fault::new(Rule::Abandoned, text));
        }
        self.done = true;
        Ok(())
    }

    /// Lanes at work.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        let mask = self.mask;
        (0..LANES).filter(move |lane| mask >> lane & 1 == 1)
    }
}
