//! One warp: its registers, which lanes are active, and where it is.
use super::clock::Clock;
use super::fault::{Fault, Rule};
use crate::types::{Reg, Src, Width};

pub(crate) const LANES: usize = 32;
pub(crate) const ALL: u32 = u32::MAX;

/// A value for each lane.
pub type Lanes<T> = [T; LANES];

/// Registers of one width. A lane's register is poison until it is written.
#[derive(Debug)]
pub(crate) struct File<T> {
    values: Vec<Lanes<T>>,
    written: Vec<u32>,
}

impl<T: Copy + Default> File<T> {
    pub(crate) fn new(len: u32) -> Self {
        let len = len as usize;
        File { values: vec![[T::default(); LANES]; len], written: vec![0; len] }
    }

    fn read(&self, reg: Reg, mask: u32) -> Result<&Lanes<T>, Fault> {
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

/// 32 lanes in step.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) pc: usize,
    pub(crate) mask: u32,
    pub(crate) frames: Vec<Frame>,
    pub(crate) done: bool,
    pub(crate) parked: Option<String>,
    /// What this warp knows of all.
    pub(crate) clock: Clock,
    /// Up to when each warp's shared stores are known to be visible to the asynchronous proxy.
    pub(crate) fenced: Clock,
    /// Counts the points at which this warp's lanes have met.
    pub(crate) meeting: u32,
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
    pub(crate) r32: File<u32>,
    pub(crate) r64: File<u64>,
    pub(crate) pred: File<bool>,
}

impl Warp {
    pub(crate) fn new(index: usize, warps: usize, registers: [u32; 3]) -> Warp {
        let mut clock = Clock::new(warps + 1); // and the asynchronous proxy
        clock.0[index] = 1;
        Warp {
            index,
            pc: 0,
            mask: ALL,
            frames: Vec::new(),
            done: false,
            parked: None,
            clock,
            fenced: Clock::new(warps + 1),
            meeting: 0,
            waiting: None,
            groups: Default::default(),
            uncommitted: Vec::new(),
            bulk_groups: Default::default(),
            bulk_uncommitted: Vec::new(),
            r32: File::new(registers[0]),
            r64: File::new(registers[1]),
            pred: File::new(registers[2]),
        }
    }

    /// Its own time.
    pub(crate) fn now(&self) -> u32 {
        self.clock.0[self.index]
    }

    /// Everything so far is before everything from now on, for whoever joins this clock now.
    pub(crate) fn tick(&mut self) {
        self.clock.0[self.index] += 1;
        self.meeting += 1;
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

    /// It has run its last instruction.
    pub(crate) fn finish(&mut self) -> Result<(), Fault> {
        let copies = self.groups.iter().chain([&self.uncommitted]).map(Vec::len).sum::<usize>();
        if copies > 0 {
            let text = format!("{copies} asynchronous copies were issued and never waited for");
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
